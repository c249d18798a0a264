"""The figures of a run, each with its caption and the table that it is drawn from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kn_lens import figures
from kn_lens._figure_parts import KINDS
from kn_lens._run_records import RunRecords
from kn_lens.errors import ArgumentError, DataError

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

MAP = "neuron_relation_map"
READ = {
    "answers": "measure value low high n control",
    "answers_by_relation": "measure relation value low high",
    "answer_readouts": "neurons value low high",
    "completeness": "n_pairs largest_gap above_tolerance",
    "dose_response": "factor neurons facts value low high",
    "figure3": "neurons layer value low high control",
    "figures4_5": "factor neurons facts value low high n control",
    "figures4_5_by_relation": "factor neurons facts relation value low high",
    "methods": "neurons value low high",
    "stability": "varied value low high control",
    "table2": "statistic neurons value low high n",
}
"""The tables that figures and findings are made from, with the columns that these read."""


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


def drawn(run: RunRecords, tables: "Mapping[str, pd.DataFrame]") -> "dict[str, Figure]":
    """Return the figures of a run by name: those whose tables (of ``sources``) are there and have rows.

    Raises:
        DataError: a table holds nothing that its figure shows.
    """
    by_name = {}
    for panel in PANELS:
        if len(tables.get(panel.source, ())):
            try:
                by_name[panel.name] = panel.draw(tables[panel.source])
            except ArgumentError as error:
                raise _damaged(run, panel.source, str(error)) from None
    return by_name


def sources(run: RunRecords) -> "dict[str, pd.DataFrame]":
    """Return the tables of a run, and the one of its neurons by relation.

    That has one row for each ``relation`` and neuron (``layer``, ``index``): ``n_facts`` of the relation that have it,
    and their ``share``.

    Raises:
        DataError: a table cannot be read, or lacks a column that the report reads.
    """
    tables = run.tables()
    for name, columns in READ.items():
        for column in columns.split() if name in tables else ():
            if column not in tables[name]:
                raise _damaged(run, name, f"It has no column {column}; expected {columns}.")
    records = run.records("neurons")
    return tables if records is None else {**tables, MAP: by_relation(records)}


def _damaged(run: RunRecords, table: str, why: str) -> DataError:
    path = run.path / "tables" / f"{table}.csv"
    return DataError(f"{path} is not the table that was written. {why} It is written anew by: {run.command()}")


def by_relation(records: "pd.DataFrame") -> "pd.DataFrame":
    """Return how many facts of each relation have a neuron, and which share of them, from records of ``neurons``."""
    found = records.loc[records["neurons"] == "found"]
    sizes = found.groupby("relation", sort=False).size()
    cells = found.loc[:, ["relation", "layer", "index"]].explode(["layer", "index"]).dropna()
    counts = cells.groupby(["relation", "layer", "index"], sort=False).size().rename("n_facts").reset_index()
    counts = counts.astype({"layer": int, "index": int})
    return counts.assign(share=counts["n_facts"] / counts["relation"].map(sizes).to_numpy())
