"""The first lines of a report: what was found, how sure that is, and beside what it stands."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number with all that is needed to judge it.

    Attributes:
        title: what it is about.
        value: the number, as text.
        interval: its 95% interval, as text; empty where there is none.
        meaning: a sentence that says what the number is.
        beside: controls and the paper's value, each with its number.
        verdict: whether it is told apart from its control; empty where there is none.
    """

    title: str
    value: str
    interval: str = ""
    meaning: str
    beside: tuple[tuple[str, str], ...] = ()
    verdict: str = ""


def findings(tables: "Mapping[str, pd.DataFrame]") -> list[Finding]:
    """Return what the tables of a run say, as far as they are there."""
    makers = (_effect_off, _effect_up, _per_fact, _layer, _sharing, _known, _stability, _exactness)
    return [finding for make in makers if (finding := make(tables)) is not None]


def _effect_off(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    return _effect(tables, 0.0, "Switched off", "switched off")


def _effect_up(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    return _effect(tables, 2.0, "Turned up", "doubled")


def _effect(tables: "Mapping[str, pd.DataFrame]", factor: float, title: str, what: str) -> Finding | None:
    about = {"factor": factor, "neurons": "found"}
    own, other = (_row(tables, "figures4_5", **about, facts=scope) for scope in ("own", "other"))
    if own is None:
        return None
    beside = [("random neurons", _percent(own["control"]))]
    if other is not None:
        beside.append(("on another fact", _percent(other["value"])))
    if known(own.get("paper")):
        beside.append(("Dai et al. (2022)", _percent(own["paper"])))
    return Finding(
        title=title,
        value=_percent(own["value"]),
        interval=_interval(own, _percent),
        meaning=f"change of the answer's probability with the fact's neurons {what}; mean over relations, "
        f"{own['n']:,.0f} facts",
        beside=tuple(beside),
        verdict=_verdict(own),
    )


def _per_fact(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    row = _row(tables, "table2", statistic="neurons_per_fact", neurons="found")
    if row is None:
        return None
    return Finding(
        title="Neurons per fact",
        value=_number(row["value"]),
        interval=_interval(row, _number),
        meaning=f"knowledge neurons of a fact, mean over {row['n']:,.0f} facts",
        beside=(("Dai et al. (2022)", _number(row["paper"])),) if known(row.get("paper")) else (),
    )


def _layer(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    table = tables.get("figure3")
    if table is None:
        return None
    found = table.loc[(table["neurons"] == "found") & table["value"].notna()]
    if found.empty:
        return None
    row, last = found.loc[found["value"].idxmax()].to_dict(), table["layer"].max()
    return Finding(
        title="Where they are",
        value=f"{row['value']:.0%}",
        interval=_interval(row, "{:.0%}".format),
        meaning=f"of the neurons lie in layer {row['layer']:.0f}, the fullest of layers 0 to {last:.0f}",
        beside=(("even spread", f"{row['control']:.0%}"),),
    )


def _sharing(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    within, across = (
        _row(tables, "table2", statistic=f"shared_{where}", neurons="found") for where in ("within", "across")
    )
    if within is None or not known(within["value"]):
        return None
    beside = (
        [] if across is None or not known(across["value"]) else [("of different relations", _number(across["value"]))]
    )
    if known(within.get("paper")):
        beside.append(("Dai et al. (2022)", _number(within["paper"])))
    return Finding(
        title="Shared neurons",
        value=_number(within["value"]),
        interval=_interval(within, _number),
        meaning="neurons that two facts of the same relation share, mean over pairs",
        beside=tuple(beside),
    )


def _known(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    row = _row(tables, "answers", measure="accuracy")
    if row is None:
        return None
    return Finding(
        title="Known answers",
        value=f"{row['value']:.1%}",
        interval=_interval(row, "{:.1%}".format),
        meaning=f"of the prompts are answered rightly, mean over the relations of {row['n']:,.0f} facts",
        beside=(("always the most frequent answer", f"{row['control']:.1%}"),),
        verdict=_verdict(row),
    )


def _stability(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    row = _row(tables, "stability", varied="50% of the prompts")
    if row is None:
        return None
    return Finding(
        title="Found again",
        value=_number(row["value"]),
        interval=_interval(row, _number),
        meaning="Jaccard index of a fact's neurons with those found from half of its prompts; 1 for equal sets",
        beside=(("another fact of the relation", _number(row["control"])),) if known(row["control"]) else (),
        verdict=_verdict(row),
    )


def _exactness(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    table = tables.get("completeness")
    if table is None or table.empty:
        return None
    above, pairs = table["above_tolerance"].sum(), table["n_pairs"].sum()
    return Finding(
        title="Numerical error",
        value=f"{table['largest_gap'].max():.2g}",
        meaning="largest gap between the scores of a layer and the sum that they must have, in probability",
        beside=(("prompts and layers above the tolerance", f"{above:,.0f} of {pairs:,.0f}"),),
    )


def _row(tables: "Mapping[str, pd.DataFrame]", name: str, **cell: Any) -> dict[str, Any] | None:
    """Return the one row of a table with these entries, None without table or row."""
    table = tables.get(name)
    if table is None:
        return None
    for column, value in cell.items():
        table = table.loc[table[column] == value]
    return table.iloc[0].to_dict() if len(table) else None


def known(value: Any) -> bool:
    """Return whether there is such a number."""
    return value is not None and not math.isnan(value)


def _verdict(row: Mapping[str, Any]) -> str:
    if not all(known(row.get(name)) for name in ("low", "high", "control")):
        return ""
    inside = row["low"] <= row["control"] <= row["high"]
    return "not told apart from the control" if inside else "the interval excludes the control"


def _interval(row: Mapping[str, Any], form: Any) -> str:
    return f"{form(row['low'])} to {form(row['high'])}" if known(row["low"]) else ""


def _percent(value: float) -> str:
    return f"{value:+.1%}".replace("-", "\N{MINUS SIGN}")


def _number(value: float) -> str:
    return f"{value:.2f}"
