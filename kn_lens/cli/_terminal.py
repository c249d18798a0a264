"""The two streams: results on stdout, what goes on meanwhile on stderr."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Timer
from typing import Any

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

SHOW_AFTER = 2.0
"""Seconds that work may take without a sign of it."""

# Names of facts, files and models are shown as they are, also where they look like markup: "[/b]", ":x:".
_AS_IT_IS: Mapping[str, Any] = {"highlight": False, "markup": False, "emoji": False}
out = Console(**_AS_IT_IS)
err = Console(stderr=True, **_AS_IT_IS)

Progressed = Callable[[int, int], None]


@contextmanager
def working(what: str, unit: str = "") -> Iterator[Progressed]:
    """Show a bar on a terminal's stderr if the work inside takes longer than ``SHOW_AFTER`` seconds.

    Yields a function to call with (done, total). Until it is called, the time passed is shown instead of the time left.
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
    task = bar.add_task(what, total=None)
    late = Timer(SHOW_AFTER, bar.start)
    late.daemon = True
    late.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        late.cancel()
        late.join()  # it may be starting the bar just now
        bar.stop()


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
    sys.stdout.write(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
