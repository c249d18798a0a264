"""The figures of a run, each with its caption and the table that it is drawn from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kn_lens import figures
from kn_lens._figure_parts import KINDS
from kn_lens._run_records import RunRecords

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

MAP = "neuron_relation_map"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure of the report.

    Attributes:
        name: of the figure, and of its files.
        title: of its section.
        caption: what is to be seen, and how it was measured.
        source: the table that it is drawn from.
        draw: from that table to the figure.
    """

    name: str
    title: str
    caption: str
    source: str
    draw: "Callable[[pd.DataFrame], Figure]"


def _answers(table: "pd.DataFrame") -> "Figure":
    rows = table.loc[table["measure"] == "accuracy"].sort_values("value", ascending=False, kind="stable")
    return figures.estimates(
        rows, "relation", title="Prompts answered rightly", value="share of the prompts", form=".0%"
    )


def _methods(table: "pd.DataFrame") -> "Figure":
    return figures.estimates(_named(table), "neurons", title="Other methods", value=figures.CHANGE, form="+.0%")


def _answer_readouts(table: "pd.DataFrame") -> "Figure":
    title = "Neurons that write to the answer"
    return figures.estimates(_named(table), "neurons", title=title, value="share of a fact's neurons", form=".0%")


def _named(table: "pd.DataFrame") -> "pd.DataFrame":
    return table.assign(neurons=[KINDS.get(name, name.replace("_", " ")) for name in table["neurons"]])


def _stability(table: "pd.DataFrame") -> "Figure":
    return figures.estimates(table, "varied", title="Stability", value="Jaccard index with the neurons found")


PANELS = (
    Panel(
        name="effects",
        title="What the neurons do",
        caption="Mean over relations of the relative change of the answer's probability when a fact's neurons are "
        "switched off or doubled: filled marks on the fact itself, open marks on a random fact of another relation. "
        "The most active neurons are as many as were found; random neurons lie in the same layers.",
        source="figures4_5",
        draw=figures.effects,
    ),
    Panel(
        name="effects_by_relation",
        title="Effect by relation",
        caption="The same for each relation, on its own facts, with random neurons of the same layers beside it.",
        source="figures4_5_by_relation",
        draw=figures.effects_by_relation,
    ),
    Panel(
        name="dose_response",
        title="Dose response",
        caption="The same for more factors, on a sample of each relation's facts. At factor 1 nothing changes.",
        source="dose_response",
        draw=figures.dose_response,
    ),
    Panel(
        name="layer_distribution",
        title="Where the neurons are",
        caption="Share of the neurons of all facts in each layer; a neuron counts once for each fact that has it. "
        "Layer 0 is the first.",
        source="figure3",
        draw=figures.layer_distribution,
    ),
    Panel(
        name=MAP,
        title="Neurons and relations",
        caption="The neurons that most facts have, and the share of each relation's facts that have them. Empty "
        "cells: no fact has it. Off the diagonal, relations share neurons.",
        source=MAP,
        draw=figures.neuron_relation_map,
    ),
    Panel(
        name="answers",
        title="What the model knows",
        caption="Share of a relation's prompts whose most probable answer is the right one. Control: always giving the "
        "relation's most frequent answer.",
        source="answers_by_relation",
        draw=_answers,
    ),
    Panel(
        name="stability",
        title="Stability of the neurons",
        caption="How much of a fact's neurons is found again from fewer prompts, with other thresholds and with other "
        "quadratures: the Jaccard index, 1 for equal sets. Control: the set of another fact of the relation.",
        source="stability",
        draw=_stability,
    ),
    Panel(
        name="methods",
        title="Other attribution methods",
        caption="As many neurons of highest score by each method, switched off: the more the answer loses, the "
        "better the method found what carries it. Control: random neurons of the same layers.",
        source="methods",
        draw=_methods,
    ),
    Panel(
        name="answer_readouts",
        title="Neurons that write to the answer",
        caption="Share of a fact's neurons with a token of its answer among the ten that the model's head raises most "
        "when it is given the neuron's row of W_out and nothing else. Control: random neurons of the same layers.",
        source="answer_readouts",
        draw=_answer_readouts,
    ),
)
"""In the order of the report."""


def drawn(tables: "Mapping[str, pd.DataFrame]") -> "dict[str, Figure]":
    """Return the figures of a run by name: those whose tables (of ``sources``) are there and have rows."""
    return {panel.name: panel.draw(tables[panel.source]) for panel in PANELS if len(tables.get(panel.source, ()))}


def sources(run: RunRecords) -> "dict[str, pd.DataFrame]":
    """Return the tables of a run, and the one of its neurons by relation.

    That has one row for each ``relation`` and neuron (``layer``, ``index``): ``n_facts`` of the relation that have it,
    and their ``share``.
    """
    tables = run.tables()
    records = run.records("neurons")
    return tables if records is None else {**tables, MAP: by_relation(records)}


def by_relation(records: "pd.DataFrame") -> "pd.DataFrame":
    """Return how many facts of each relation have a neuron, and which share of them, from records of ``neurons``."""
    found = records.loc[records["neurons"] == "found"]
    sizes = found.groupby("relation", sort=False).size()
    cells = found.loc[:, ["relation", "layer", "index"]].explode(["layer", "index"]).dropna()
    counts = cells.groupby(["relation", "layer", "index"], sort=False).size().rename("n_facts").reset_index()
    counts = counts.astype({"layer": int, "index": int})
    return counts.assign(share=counts["n_facts"] / counts["relation"].map(sizes).to_numpy())
