"""Layout of results in a terminal: tables, numbers, intervals, and the tables that several commands print."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from kn_lens._core.escape import escaped
from kn_lens._core.notation import neuron_name
from kn_lens._core.wording import counted
from kn_lens.cli._terminal import UNLIMITED

LEAST_TEXT_WIDTH = 12
"""Width to which a column of texts folds."""
ROWS_SHOWN = 40
FACTS_SHOWN = 8
NEURON_SETS = {"found": "knowledge neurons", "activation": "most active", "random": "random"}
"""Labels of the neuron sets."""


class EscapedTable(Table):
    r"""A table that is whole on any terminal, with control characters escaped, as in ``\n``.

    The heading is as wide as the terminal. Columns move together where the terminal is narrow, then texts fold. Where
    this is not enough, each row becomes a block of lines: its labels, then each value with the name of its column.
    """

    def __init__(self, heading: str, **options: Any) -> None:
        super().__init__(**options)
        self.heading = escaped(heading)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the heading and the table, or the rows."""
        if self.heading:
            yield Text(self.heading, style="bold")
        if console.measure(self, options=options.update(max_width=UNLIMITED)).maximum > options.max_width:
            self.padding = 0
        if self._least_width() > options.max_width:
            yield from self._blocks()
        else:
            yield from super().__rich_console__(console, options)

    def _least_width(self) -> int:
        """Return the width with all texts folded: of the columns, and of the dividers and edges around them."""
        widths = []
        for column in self.columns:
            width = max(len(str(cell)) for cell in (column.header, *column.cells))
            folded = max(LEAST_TEXT_WIDTH, column.min_width or 0)
            widths.append(width if column.no_wrap else min(width, folded))
        return sum(widths) + len(widths) + 1

    def _blocks(self) -> Iterator[Text]:
        """Yield the lines of each row: the texts before its first number, then a line for each other column."""
        n_labels = next((i for i, column in enumerate(self.columns) if column.no_wrap), 1)
        names = [str(column.header) for column in self.columns]
        longest = max(map(len, names[n_labels:]), default=0)
        for row in zip(*(column.cells for column in self.columns), strict=True):
            yield Text("  ".join(str(cell) for cell in row[:n_labels] if cell))
            for name, cell in zip(names[n_labels:], row[n_labels:], strict=True):
                yield Text(f"  {name:<{longest}}  {cell}")

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        """Add a column, with an escaped header."""
        super().add_column(_escaped_text(header), *args, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of escaped cells."""
        super().add_row(*map(_escaped_text, cells), **options)


def _escaped_text(cell: Any) -> Any:
    """Return a cell with its control characters escaped, if it is a text."""
    return escaped(cell) if isinstance(cell, str) else cell


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in the style of all commands; the columns named in ``right`` contain numbers."""
    result = EscapedTable(title, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        is_number = column in right
        result.add_column(column, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return result


def neuron_names(pairs: Sequence[Sequence[int]], limit: int = 6) -> str:
    """Return the names of neurons, given by their keys.

    >>> neuron_names([(3, 412), (3, 77)])
    'L3N412 L3N77'
    """
    if not pairs:
        return "none"
    names = " ".join(neuron_name(*pair) for pair in pairs[:limit])
    if len(pairs) > limit:
        names += f" +{len(pairs) - limit}"
    return names


def is_missing(value: float | None) -> bool:
    """Return whether a number is None or NaN."""
    return value is None or math.isnan(value)


def number(value: float | None, form: str = ".1e") -> str:
    """Return a number as text; a dash if it is missing."""
    if value is None or math.isnan(value):
        return "-"
    return format(value, form)


def percent(value: float | None) -> str:
    """Return a signed ratio in percent; a dash if it is missing."""
    if value is None or math.isnan(value):
        return "-"
    return f"{100 * value:+.1f}%"


def interval(row: Mapping[str, Any], form: str, factor: float = 1) -> str:
    """Return the interval of a row in brackets, times a factor; ``[-]`` if it is missing."""
    if is_missing(row["low"]):
        return "[-]"
    return f"[{factor * row['low']:{form}}, {factor * row['high']:{form}}]"


def left_out_lines(left_out: Mapping[str, int], facts: Sequence[str]) -> Iterator[str]:
    """Yield the numbers of excluded prompts with their reasons, and the facts without any remaining prompt."""
    for reason, n in left_out.items():
        yield f"Left out: {counted(n, 'prompt')} ({reason})"
    if facts:
        names = ", ".join(facts[:FACTS_SHOWN])
        if len(facts) > FACTS_SHOWN:
            names += ", ..."
        yield f"Facts without any prompt left: {len(facts):,} ({names})"


def effects_table(title: str, effects: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Return the changes of own and other facts, for each intervention and neuron set."""
    row_of: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for intervention, rows in effects.items():
        for row in rows:
            row_of[intervention, row["neuron_set"], row["scope"]] = row
    present = {scope for _, _, scope in row_of}
    scopes = [scope for scope in ("own", "other") if scope in present]
    numbers = ("n", *(f"{scope} facts" for scope in scopes))
    result = table(title, "neurons", "", *numbers, right=numbers)
    for intervention in effects:
        for neuron_set, label in NEURON_SETS.items():
            own = row_of.get((intervention, neuron_set, "own"))
            if own is not None:
                changes = [_change(row_of[intervention, neuron_set, scope]) for scope in scopes]
                result.add_row(label, intervention, f"{own['n_neurons']:.1f}", *changes)
        result.add_section()
    return result


def _change(row: Mapping[str, Any]) -> str:
    return f"{percent(row['change_ratio'])} {interval(row, '+.1f', 100)}"
