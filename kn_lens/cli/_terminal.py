"""Terminal output: results on stdout, progress and messages on stderr.

Names may contain control sequences that a terminal would obey, so the consoles ``out`` and ``err`` escape all that they
print. Anything else written to the two streams, such as a traceback, goes through ``EscapingStream``.
"""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread, Timer
from typing import Any, TextIO

from rich.console import Console, ConsoleDimensions
from rich.progress import Progress
from rich.text import Text

from kn_lens._core.escape import escaped, json_text, shown
from kn_lens._core.progress import terminal_bar

UNLIMITED = 100_000
"""Width of a console that is no terminal."""
SHOW_AFTER = 2.0
"""Seconds of work before a progress bar appears on a terminal."""
FIRST_LINE = 5.0
"""Seconds before the first status line, where stderr is no terminal."""
LINE_EVERY = 30.0
"""Seconds between further status lines."""


class EscapingConsole(Console):
    """A console that prints text literally: markup and emoji codes have no effect, control sequences are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    @property
    def size(self) -> ConsoleDimensions:  # type: ignore[override]  # a width is given to the constructor, never set
        """The size of the terminal; a file or a pipe takes lines of any length, so that nothing is wrapped or cut."""
        size = super().size
        return size if self.is_terminal else ConsoleDimensions(UNLIMITED, size.height)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as it is displayed, in a table or alone."""
        return super().render_str(shown(text, keep="\n"), **options)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print objects. With ``soft_wrap`` a text is a single line of any length: line breaks in it are escaped."""
        if soft_wrap:
            objects = tuple(shown(item) if isinstance(item, str) else item for item in objects)
        super().print(*objects, soft_wrap=soft_wrap, **options)


class EscapingStream:
    """A stream that escapes all text except line breaks. Rich consoles, which escape themselves, bypass it."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # rich consoles write to this attribute of their stream

    def write(self, text: str) -> int:
        """Write a text, escaped."""
        self.rich_proxied_file.write(escaped(text, keep="\n"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts, escaped."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


out = EscapingConsole()
err = EscapingConsole(stderr=True)


class Activity:
    """Work in progress: a description and an amount. Call it with (done, total) to report progress."""

    def __init__(self, description: str, unit: str = "", bar: Progress | None = None) -> None:
        self.description = description
        self.unit = unit
        self.bar = bar
        self.done = 0.0
        self.total = 0.0
        self.start = time.perf_counter()
        self.task = None
        if bar is not None:
            self.task = bar.add_task(shown(description), total=None)

    def __call__(self, done: float, total: float, description: str | None = None) -> None:
        self.done = done
        self.total = total
        self.description = description or self.description
        if self.bar is not None and self.task is not None:
            self.bar.update(
                self.task,
                description=shown(self.description),
                completed=done,
                total=total or None,
            )

    def line(self) -> str:
        """Return the state as one line: description, amount, rate, remaining and elapsed time."""
        elapsed = time.perf_counter() - self.start
        rate = self.done / elapsed if elapsed > 0 else 0.0
        parts = []
        if self.total:
            parts.append(f"{self.done:,.0f} of {self.total:,.0f} {self.unit}".rstrip())
        if self.total and rate:
            remaining = duration((self.total - self.done) / rate)
            per_second = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            parts.append(f"{per_second}/s, {remaining} left")
        parts.append(f"{duration(elapsed)} so far")
        return f"kn-lens: {self.description}: {', '.join(parts)}"


_activities: list[Activity] = []
"""Current activities of this process, the innermost last. ``status_lines`` reads them from its thread."""


@contextmanager
def show_progress(description: str, unit: str = "") -> Iterator[Activity]:
    """Report the work inside on stderr if it takes long: by a bar on a terminal, otherwise by ``status_lines``.

    Yields the activity, to be called with (done, total). Until it is called, the elapsed time is shown instead of the
    remaining time.
    """
    bar = terminal_bar(err, unit)
    activity = Activity(description, unit, bar)
    _activities.append(activity)
    delay = Timer(SHOW_AFTER, bar.start)
    delay.daemon = True
    delay.start()
    try:
        yield activity
    finally:
        delay.cancel()
        delay.join()  # it may be starting the bar at this moment
        if not bar.disable:  # rich before 14.3 ends the line of a bar that was never shown
            bar.stop()
        _activities.remove(activity)


@contextmanager
def status_lines() -> Iterator[None]:
    """Print the current activity at intervals while the work inside runs, if stderr is no terminal."""
    if err.is_terminal:
        yield
        return
    command = Activity("working")
    stop = Event()

    def print_lines() -> None:
        pause = FIRST_LINE
        while not stop.wait(pause):
            pause = LINE_EVERY
            activity = _activities[-1] if _activities else command
            try:
                err.print(activity.line(), soft_wrap=True)
            except (OSError, ValueError):  # stderr is closed
                return

    thread = Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours.

    >>> duration(90), duration(600), duration(9000)
    ('90 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def print_json(document: Mapping[str, Any]) -> None:
    """Write one JSON document to stdout. Numbers that JSON cannot represent (NaN, infinity) become null."""
    sys.stdout.write(json_text(_json_value(document), indent=2) + "\n")


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if hasattr(value, "item"):  # a scalar of NumPy or PyTorch
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
