"""The ``kn-lens`` command line.

Results go to stdout: tables for people, or one JSON document with ``--json``. Progress and messages go to stderr. Exit
codes: 0 success; 1 failed runs of a study, or a closed stdout (silently); 2 invalid input, explained in one line with
its remedy; 130 interrupt.

Each command has a module. ``_app`` assembles the commands, ``_options`` holds their shared options, ``_facts`` reads
facts, ``_run`` loads and queries models, ``_tables`` lays out results and ``_terminal`` writes to both streams. A
command imports PyTorch and TransformerLens only when it runs, so that ``--help`` is fast.
"""

import os
import sys
import warnings
from typing import Any

from kn_lens._core.escape import shown
from kn_lens.errors import KNLensError

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """Run the command line of this process: the entry point of ``kn-lens``."""
    try:
        code = _exit_code()
    except (KeyboardInterrupt, Exception) as error:
        if not _is_interrupt(error):
            raise
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("kn-lens: interrupted; nothing was written.", file=sys.stderr)
    sys.exit(code)


def _exit_code() -> int:
    """Run the command and return its exit code."""
    _prepare_process()
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks must not stop the command.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # both are text streams
    import typer  # inside the function, so that an interrupt during the import also ends in one line

    from kn_lens.cli._app import app
    from kn_lens.cli._terminal import EscapingStream, status_lines

    sys.stdout = EscapingStream(sys.stdout)  # type: ignore[assignment]  # delegates all other methods
    sys.stderr = EscapingStream(sys.stderr)  # type: ignore[assignment]  # delegates all other methods

    # The class of typer's usage errors. Newer releases carry their own copy of click, so the class has no import path
    # that all releases share.
    usage_error: Any = typer.BadParameter.__mro__[1]
    try:
        with status_lines():
            code = app(prog_name="kn-lens", standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except typer.Abort:
        return INTERRUPTED
    except usage_error as error:
        return _fail(error.format_message())
    except KNLensError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader of stdout is gone, as with `| head`. The remaining buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error))


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception is a keyboard interrupt, or was raised from one during an import."""
    if error is None:
        return False
    return isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__)


def _fail(message: str) -> int:
    print("kn-lens: error:", shown(" ".join(message.split())), file=sys.stderr)
    return 2


def _prepare_process() -> None:
    """Set process-wide options before PyTorch is imported. The library itself sets none of them."""
    # Notices and progress bars of other libraries are suppressed; `show_progress` reports what happens.
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Waiting OpenMP threads spin by default. On a busy machine, this costs far more than it saves.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Arrow's own allocator retains freed memory. Worker processes inherit the setting.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
