"""Progress bars: one look for the command line, for a Python prompt and for notebooks."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from html import escape
from typing import Any, ParamSpec, TypeVar

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

P = ParamSpec("P")
R = TypeVar("R")

Report = Callable[[int, int], None]
"""Called with (done, total)."""

UPDATE_EVERY = 0.1
"""Seconds between updates of a bar in a notebook."""


class RateColumn(ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Return the rate, or an empty text while it is unknown."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self.unit}/s" if speed else "", style="progress.data.speed")


def terminal_bar(console: Console, unit: str) -> Progress:
    """Return a bar on a terminal that vanishes when it stops; on anything else it draws nothing."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        RateColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[Report]:
    """Draw the work inside as a bar, on a terminal (on stderr) or below the cell of a notebook; it vanishes at the end.

    Where stderr is neither, nothing is drawn.

    Args:
        description: what is done.
        unit: what is counted.

    Yields:
        A function to be called with (done, total).
    """
    console = Console(stderr=True)
    if console.is_jupyter:
        notebook_bar = _NotebookBar(description, unit)
        try:
            yield notebook_bar
        finally:
            notebook_bar.remove()
        return
    bar = terminal_bar(console, unit)
    if bar.disable:  # not even begun: rich before 14.3 ends the line of a bar that it never drew
        yield lambda done, total: None
        return
    with bar:
        task = bar.add_task(description, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        yield update


@contextmanager
def reported(
    progress: Report | bool | None,
    description: str,
    unit: str,
) -> Iterator[Report | None]:
    """Yield what an argument ``progress`` stands for: the caller's function, that of a bar for True, or None."""
    if progress is True:
        with progress_bar(description, unit) as report:
            yield report
    else:
        yield progress or None


def draws_progress(description: str, unit: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function with a keyword ``progress`` take True for it: it is then given the function of a bar."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            progress: Any = kwargs.pop("progress", None)
            with reported(progress, description, unit) as report:
                return function(*args, **kwargs, progress=report)  # pyright: ignore[reportCallIssue]

        return call

    return decorate


class _NotebookBar:
    """A bar below a cell, of HTML that every notebook shows; the bar of rich needs ipywidgets there."""

    def __init__(self, description: str, unit: str) -> None:
        from IPython import display  # there is one wherever there is a notebook

        self.html = display.HTML
        self.description = description
        self.unit = unit
        self.start = self.last_update = time.perf_counter()
        self.handle: Any = display.display(self.html(self._text(0, 0)), display_id=True)

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self.last_update >= UPDATE_EVERY:
            self.last_update = now
            self.handle.update(self.html(self._text(done, total)))

    def _text(self, done: int, total: int) -> str:
        amount = f"{done:,} of {total:,} {self.unit}, " if total else ""
        seconds = time.perf_counter() - self.start
        value = f' value="{done}" max="{total}"' if total else ""  # without them the bar moves to and fro
        return f"<progress{value}></progress> {escape(self.description)}: {escape(amount)}{seconds:.0f} s"

    def remove(self) -> None:
        """Leave nothing below the cell."""
        self.handle.update(self.html(""))
