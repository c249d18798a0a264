"""Layout of results in a terminal: tables, numbers, intervals, and the tables that several commands print."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from kn_lens._core.escape import escaped
from kn_lens._core.notation import neuron_name
from kn_lens._core.wording import counted

ROWS_SHOWN = 40
FACTS_SHOWN = 8
NEURON_SETS = {"found": "knowledge neurons", "activation": "most active", "random": "random"}
"""Labels of the neuron sets."""


class EscapedTable(Table):
    r"""A table whose texts are single lines: line breaks and control sequences are escaped, as in ``\n``."""

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
    result = EscapedTable(
        title=escaped(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in columns:
        is_number = column in right
        result.add_column(column, justify="right" if is_number else "left", no_wrap=is_number)
    return result


def neuron_names(pairs: Sequence[Sequence[int]], limit: int = 6) -> str:
    """Return the names of neurons.

    >>> neuron_names([(3, 412), (3, 77)])
    'L3N412 L3N77'
    """
    if not pairs:
        return "none"
    names = " ".join(neuron_name(layer, index) for layer, index in pairs[:limit])
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
