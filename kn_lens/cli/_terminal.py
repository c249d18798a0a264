"""The two streams: results on stdout, what goes on meanwhile on stderr.

Whatever is printed through ``out`` and ``err`` is escaped: names may hold what a terminal obeys. What else writes to
these streams, a traceback for one, goes through ``Guarded``.
"""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread, Timer
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from kn_lens._shown import escaped, json_text, shown

SHOW_AFTER = 2.0
"""Seconds that work may take without a sign of it on a terminal."""
FIRST_LINE, LINE_EVERY = 5.0, 30.0
"""Elsewhere: seconds before the first line, and between two."""


class EscapingConsole(Console):
    """Prints texts as they are, also where they look like markup ("[/b]", ":x:"), but for what a terminal obeys."""

    def __init__(self, **how: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        """Return a text as it is shown, in a table or alone."""
        return super().render_str(shown(text, keep="\n"), **how)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **how: Any) -> None:
        """Print; with ``soft_wrap`` one line, however long, so that a line break in it is a name's."""
        if soft_wrap:
            objects = tuple(shown(one) if isinstance(one, str) else one for one in objects)
        super().print(*objects, soft_wrap=soft_wrap, **how)


class Guarded:
    """A stream that escapes all that is written to it, but for line breaks; consoles, which escape, go past it."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # what consoles of rich write to in place of this

    def write(self, text: str) -> int:
        """Write a text as it is shown."""
        self.rich_proxied_file.write(escaped(text, keep="\n"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts as they are shown."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


out = EscapingConsole()
err = EscapingConsole(stderr=True)


class Work:
    """Work that takes long: what, and how far it is. Call it with (done, total) whenever there is more to tell."""

    def __init__(self, what: str, unit: str = "", bar: Progress | None = None) -> None:
        self.what, self.unit, self.bar = what, unit, bar
        self.done = self.total = 0.0
        self.began = time.perf_counter()
        self.task = None if bar is None else bar.add_task(shown(what), total=None)

    def __call__(self, done: float, total: float, what: str | None = None) -> None:
        self.done, self.total, self.what = done, total, what or self.what
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=shown(self.what), completed=done, total=total or None)

    def line(self) -> str:
        """Return what there is to tell, for a stream that is read later: what, how far, how fast, how long yet."""
        passed = time.perf_counter() - self.began
        rate = self.done / passed if passed > 0 else 0.0
        far = [f"{duration(passed)} so far"]
        if self.total:
            far.insert(0, f"{self.done:,.0f} of {self.total:,.0f} {self.unit}".rstrip())
        if self.total and rate:
            left = duration((self.total - self.done) / rate)
            far.insert(1, f"{rate:,.0f}/s, {left} left" if rate >= 10 else f"{rate:.2g}/s, {left} left")
        return f"kn-lens: {self.what}: {', '.join(far)}"


_at_work: list[Work] = []
"""What this process works at, the innermost last; a thread tells about it."""


@contextmanager
def working(what: str, unit: str = "") -> Iterator[Work]:
    """Tell on stderr about the work inside if it takes long: with a bar on a terminal, elsewhere see ``telling``.

    Yields what to call with (done, total). Until it is called, the time passed is shown instead of the time left.
    """
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        _Rate(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    work = Work(what, unit, bar)
    _at_work.append(work)
    late = Timer(SHOW_AFTER, bar.start)
    late.daemon = True
    late.start()
    try:
        yield work
    finally:
        late.cancel()
        late.join()  # it may be starting the bar just now
        bar.stop()
        _at_work.remove(work)


@contextmanager
def telling() -> Iterator[None]:
    """Print a line about what goes on now and then, as long as what is inside takes, where stderr is no terminal."""
    if err.is_terminal:
        yield
        return
    whole, stop = Work("working"), Event()

    def tell() -> None:
        pause = FIRST_LINE
        while not stop.wait(pause):
            pause = LINE_EVERY
            try:
                err.print((_at_work or [whole])[-1].line(), soft_wrap=True)
            except (OSError, ValueError):  # nobody reads it any more
                return

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


class _Rate(ProgressColumn):
    """How many units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing while it is unknown."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self.unit}/s" if speed else "", style="progress.data.speed")


def print_json(document: Mapping[str, Any]) -> None:
    """Write one JSON document to stdout; numbers that JSON cannot hold (NaN, infinity) become null."""
    sys.stdout.write(json_text(_plain(document), indent=2) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a number of NumPy or PyTorch
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
