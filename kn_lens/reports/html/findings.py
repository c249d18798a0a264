"""The findings of a report: its main numbers, with intervals and controls."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number with all that is needed to judge it.

    Attributes:
        title: subject of the number.
        value: the number, as text.
        interval: its 95% interval, as text; empty if there is none.
        meaning: definition of the number, in a sentence.
        beside: names and values of controls, and of the paper's result.
        verdict: whether the number differs from its control; empty if there is none.
    """

    title: str
    value: str
    interval: str = ""
    meaning: str
    beside: tuple[tuple[str, str], ...] = ()
    verdict: str = ""


def findings(tables: "Mapping[str, pd.DataFrame]") -> list[Finding]:
    """Return the findings of a run, as far as its tables exist."""
    candidates = (
        _effect(tables, 0.0, "Suppressed", "suppressed"),
        _effect(tables, 2.0, "Amplified", "doubled"),
        _per_fact(tables),
        _layer(tables),
        _sharing(tables),
        _known_answers(tables),
        _stability(tables),
        _exactness(tables),
    )
    return [finding for finding in candidates if finding is not None]


def _effect(
    tables: "Mapping[str, pd.DataFrame]",
    factor: float,
    title: str,
    intervention: str,
) -> Finding | None:
    own = _row(tables, "figures4_5", factor=factor, neuron_set="found", scope="own")
    other = _row(tables, "figures4_5", factor=factor, neuron_set="found", scope="other")
    if own is None:
        return None
    beside = [("random neurons", _percent(own["control"]))]
    on_another = "left out: one relation" if other is None else _percent(other["value"])
    beside.append(("on another fact", on_another))
    if is_known(own.get("paper")):
        beside.append(("Dai et al. (2022)", _percent(own["paper"])))
    return Finding(
        title=title,
        value=_percent(own["value"]),
        interval=_interval(own, _percent),
        meaning=f"change of the answer's probability with the fact's neurons {intervention}; mean "
        f"over relations, {own['n']:,.0f} facts",
        beside=tuple(beside),
        verdict=_verdict(own),
    )


def _per_fact(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    row = _row(tables, "table2", statistic="neurons_per_fact", neuron_set="found")
    if row is None:
        return None
    return Finding(
        title="Neurons per fact",
        value=_number(row["value"]),
        interval=_interval(row, _number),
        meaning=f"knowledge neurons of a fact, mean over {row['n']:,.0f} facts",
        beside=(("Dai et al. (2022)", _number(row["paper"])),) if is_known(row.get("paper")) else (),
    )


def _layer(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    table = tables.get("figure3")
    if table is None:
        return None
    found = table.loc[(table["neuron_set"] == "found") & table["value"].notna()]
    if found.empty:
        return None
    row = found.loc[found["value"].idxmax()].to_dict()
    last = table["layer"].max()
    return Finding(
        title="Layers",
        value=f"{row['value']:.0%}",
        interval=_interval(row, "{:.0%}".format),
        meaning=f"of the neurons lie in layer {row['layer']:.0f}, the fullest of layers 0 to {last:.0f}",
        beside=(("even spread", f"{row['control']:.0%}"),),
    )


def _sharing(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    within = _row(tables, "table2", statistic="shared_within", neuron_set="found")
    across = _row(tables, "table2", statistic="shared_across", neuron_set="found")
    if within is None or not is_known(within["value"]):
        return None
    beside = []
    if across is not None and is_known(across["value"]):
        beside.append(("of different relations", _number(across["value"])))
    if is_known(within.get("paper")):
        beside.append(("Dai et al. (2022)", _number(within["paper"])))
    return Finding(
        title="Shared neurons",
        value=_number(within["value"]),
        interval=_interval(within, _number),
        meaning="neurons that two facts of the same relation share, mean over pairs",
        beside=tuple(beside),
    )


def _known_answers(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    row = _row(tables, "answers", measure="accuracy")
    if row is None:
        return None
    return Finding(
        title="Known answers",
        value=f"{row['value']:.1%}",
        interval=_interval(row, "{:.1%}".format),
        meaning=f"of the answers are correct, mean over the relations of {row['n']:,.0f} facts",
        beside=(("always the most frequent answer", f"{row['control']:.1%}"),),
        verdict=_verdict(row),
    )


def _stability(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    row = _row(tables, "stability", varied="50% of the prompts")
    if row is None:
        return None
    beside: tuple[tuple[str, str], ...] = ()
    if is_known(row["control"]):
        beside = (("another fact of the relation", _number(row["control"])),)
    return Finding(
        title="Stability",
        value=_number(row["value"]),
        interval=_interval(row, _number),
        meaning="Jaccard index of a fact's neurons with those found from half of its prompts; 1 for equal sets",
        beside=beside,
        verdict=_verdict(row),
    )


def _exactness(tables: "Mapping[str, pd.DataFrame]") -> Finding | None:
    table = tables.get("completeness")
    if table is None or table.empty:
        return None
    n_above = table["above_tolerance"].sum()
    n_pairs = table["n_pairs"].sum()
    return Finding(
        title="Numerical error",
        value=f"{table['largest_gap'].max():.2g}",
        meaning="largest gap between the scores of a layer and the sum that they must have, in probability",
        beside=(("prompts and layers above the tolerance", f"{n_above:,.0f} of {n_pairs:,.0f}"),),
    )


def _row(tables: "Mapping[str, pd.DataFrame]", name: str, **cell: Any) -> dict[str, Any] | None:
    """Return the row of a table with the given entries; None without table or row."""
    table = tables.get(name)
    if table is None:
        return None
    for column, value in cell.items():
        table = table.loc[table[column] == value]
    return table.iloc[0].to_dict() if len(table) else None


def is_known(value: Any) -> bool:
    """Return whether a number is neither None nor NaN."""
    return value is not None and not math.isnan(value)


def _verdict(row: Mapping[str, Any]) -> str:
    if not all(is_known(row.get(name)) for name in ("low", "high", "control")):
        return ""
    if row["low"] <= row["control"] <= row["high"]:
        return "the interval includes the control"
    return "the interval excludes the control"


def _interval(row: Mapping[str, Any], form: Callable[[float], str]) -> str:
    if not is_known(row["low"]):
        return ""
    return f"{form(row['low'])} to {form(row['high'])}"


def _percent(value: float) -> str:
    text = f"{value:+.1%}"
    if text in ("+0.0%", "-0.0%"):
        return "0.0%"
    return text.replace("-", "\N{MINUS SIGN}")


def _number(value: float) -> str:
    return f"{value:.2f}"
