"""The ``kn-lens`` command: the main job and its parts, from a shell.

Results go to stdout, as tables for people or with ``--json`` as one document for machines; progress and messages go to
stderr. Exit codes: 0 done, 2 bad input (one line says what and how to cure it), 130 interrupted; 1
when some runs of a study failed, and, silently, when nobody reads stdout any more.

The commands import PyTorch and TransformerLens when they run, so that ``--help`` need not wait for them.
"""

import os
import sys
import warnings
from typing import Any

from kn_lens._shown import shown
from kn_lens.errors import KNLensError

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process; the entry point of ``kn-lens``."""
    try:
        code = _exit_code()
    except (KeyboardInterrupt, Exception) as error:
        if not _is_interrupt(error):
            raise
        code = 130
    if code == 130:
        print("kn-lens: interrupted; nothing was written.", file=sys.stderr)
    sys.exit(code)


def _exit_code() -> int:
    """Run the command and return the exit code."""
    _prepare_process()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without Unicode is no reason to stop
    import typer  # here, so that an interrupt during the import ends in one line too

    from kn_lens.cli._app import app
    from kn_lens.cli._terminal import Guarded, telling

    sys.stdout, sys.stderr = Guarded(sys.stdout), Guarded(sys.stderr)  # type: ignore[assignment]  # all that is used

    # What typer raises for a command line that it cannot parse. Newer releases carry their own copy of click, so the
    # class has no import path that all of them share.
    usage_error: Any = typer.BadParameter.__mro__[1]
    try:
        with telling():
            code = app(prog_name="kn-lens", standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except typer.Abort:
        return 130
    except usage_error as error:
        return _fail(error.format_message())
    except KNLensError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever read us has left, as `| head` does. What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error))


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception is Ctrl-C, or comes of one that an import wrapped."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__))


def _fail(message: str) -> int:
    print("kn-lens: error:", shown(" ".join(message.split())), file=sys.stderr)
    return 2


def _prepare_process() -> None:
    """Set what holds for a whole process, before PyTorch is imported; the library itself sets nothing of the kind."""
    # Other libraries' notices and bars are not ours to show; `working` says what goes on.
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Threads that wait for one another spin unless told to sleep, which on a busy machine costs far more than it saves.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Arrow's own way to allocate keeps what was freed; workers of this process inherit the setting.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
