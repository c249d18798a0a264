"""How the tables of a run look in a terminal. They say what they hold; how that is laid out is decided here alone.

The kinds of neurons become columns, so that those found stand beside their controls: the found ones with their
interval, the others with theirs where there is room, each with the paper's value behind it where there is one.
"""

from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table

from kn_lens._draws import WHY_NONE
from kn_lens.cli._tables import ROWS_SHOWN, table

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.experiments.study import Shown

FOUND, RANDOM = "found", "random"

Row = dict[str, Any]
Lines = dict[tuple[Any, ...], dict[str, Row]]
"""By labels and kind of neurons; without kinds, by labels and ""."""


def result_table(rows: "pd.DataFrame", shown: "Shown", console: Console) -> Group:
    """Return one of a run's tables, as wide as the console has room for."""
    if shown.measures:
        rows = rows.loc[rows["measure"].isin(shown.measures)]
    by_kind = "neurons" in rows and FOUND in set(rows["neurons"])
    labels = [name for name in rows.columns[: rows.columns.get_loc("value")] if not (by_kind and name == "neurons")]
    lines = _lines(rows, labels, by_kind, shown.measures)
    labels = [name for name in labels if rows[name].nunique() > 1]
    anything = console.options.update(max_width=1000)
    for intervals, gap in ((True, 1), (False, 1), (False, 0)):
        drawn = _drawn(shown.caption, labels, lines, intervals, gap)
        if console.measure(drawn, options=anything).maximum <= console.width:
            break
    hidden = len(lines) - ROWS_SHOWN
    said = [f"{hidden:,} more rows are not shown."] if hidden > 0 else []
    if any(_has(row, "value") and "low" in row and not _has(row, "low") for row in rows.to_dict("records")):
        said.append(WHY_NONE)
    return Group(drawn, *([*said, ""] if said else []))


def _lines(rows: "pd.DataFrame", labels: list[str], by_kind: bool, measures: tuple[str, ...]) -> Lines:
    """Return what stands in each line, in order of the labels: of their own as they come first, or as is given."""
    ranks = [{value: place for place, value in enumerate(rows[name].unique())} for name in labels]
    if measures:
        ranks[labels.index("measure")] = {value: place for place, value in enumerate(measures)}
    lines: Lines = {}
    for row in rows.to_dict("records"):
        key = tuple(row[name] for name in labels)
        lines.setdefault(key, {})[row["neurons"] if by_kind else ""] = row
    in_order = sorted(lines, key=lambda key: [rank[value] for rank, value in zip(ranks, key, strict=True)])
    return {key: lines[key] for key in in_order}


def _drawn(caption: str, labels: list[str], lines: Lines, intervals: bool, gap: int) -> Table:
    kinds = sorted({kind for of_kind in lines.values() for kind in of_kind}, key=_order)
    with_paper = [kind for kind in kinds if any(_has(of_kind.get(kind), "paper") for of_kind in lines.values())]
    with_control = any(_control_beside(of_kind) for of_kind in lines.values())
    drawn = table(caption)
    drawn.padding = (0, gap, 0, 0)
    for name in labels:
        words = (word for of_kind in lines.values() for row in of_kind.values() for word in _label(row[name]).split())
        drawn.add_column(name.replace("_", " "), min_width=max(map(len, words)))
    for kind in kinds:
        for head in (kind or "value", *(["paper"] if kind in with_paper else [])):
            drawn.add_column(head, justify="right", no_wrap=True)
    for head in (*(["control"] if with_control else []), "n"):
        drawn.add_column(head, justify="right", no_wrap=True)
    for of_kind in list(lines.values())[:ROWS_SHOWN]:
        first = min(of_kind.items(), key=lambda item: _order(item[0]))[1]
        cells = [_label(first[name]) for name in labels]
        for kind in kinds:
            row = of_kind.get(kind)
            cells.append(_value(row, interval=intervals or kind in ("", FOUND)))
            cells += [_number(row, "paper")] if kind in with_paper else []
        drawn.add_row(*cells, *([_number(first, "control")] if with_control else []), f"{first['n']:,}")
    return drawn


def _order(kind: str) -> tuple[bool, bool, str]:
    return kind != FOUND, kind == RANDOM, kind


def _control_beside(of_kind: dict[str, Row]) -> bool:
    """Return whether there is a control that is not in a column of its own already."""
    random = of_kind.get(RANDOM, {}).get("value")
    return any(_has(row, "control") and row["control"] != random for row in of_kind.values())


def _has(row: Row | None, name: str) -> bool:
    return row is not None and name in row and row[name] == row[name]


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def _value(row: Row | None, *, interval: bool) -> str:
    if row is None or not interval or not _has(row, "value") or "low" not in row:
        return _number(row, "value")
    if not _has(row, "low"):
        return f"{_number(row, 'value')} [-]"
    return f"{_number(row, 'value')} [{_number(row, 'low', 'value')}, {_number(row, 'high', 'value')}]"


def _number(row: Row | None, name: str, like: str = "") -> str:
    """Return a number with three digits or more, as many as that in another column has; a dash where there is none."""
    if row is None or not _has(row, name):
        return "-"
    size = abs(row[like or name])
    return f"{row[name]:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"
