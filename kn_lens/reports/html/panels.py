"""The figures of a run, each with its caption and its source table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kn_lens.errors import ArgumentError, DataError
from kn_lens.reports import figures
from kn_lens.reports.html.neuron_columns import KEY_COLUMNS, neuron_cells, without_missing_experts
from kn_lens.reports.html.wording import cell_label, varied_label
from kn_lens.reports.notebook import circuit_figure
from kn_lens.reports.style import plain
from kn_lens.runs.reader import RunRecords

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

    from kn_lens.circuits import Circuit

MAP = "neuron_relation_map"
GRAPH = "circuit_graph"
OF_RECORDS = (MAP, GRAPH)
"""Tables that figures read, made of records; they are no tables of the run."""
READ = {
    "answers": "measure value low high n control",
    "answers_by_relation": "measure relation value low high",
    "answer_readouts": "neuron_set value low high",
    "circuits": "neuron_set size measure value low high",
    "completeness": "n_pairs largest_gap above_tolerance",
    "consistency_by_relation": "relation measure value low high control",
    "degenerate": "criterion measure neuron_set value low high control",
    "dose_response": "factor neuron_set scope value low high",
    "editors": "editor neuron_set question measure value low high",
    "figure3": "neuron_set layer value low high control",
    "figures4_5": "factor neuron_set scope value low high n control",
    "figures4_5_by_relation": "factor neuron_set scope relation value low high",
    "methods": "neuron_set value low high",
    "positions": "role layer value",
    "stability": "varied value low high control",
    "table2": "statistic neuron_set value low high n",
}
"""Columns that figures and findings read, by table."""


DEGENERATE_LABELS = {"taken": "lost without all", "degenerate": "several suffice"}
"""Short labels of the measures of ``degenerate`` that are drawn; the criterion follows."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure of the report.

    Attributes:
        name: name of the figure and of its files.
        title: title of its section.
        caption: content of the figure, and how it was measured.
        source: name of its table.
        draw: function from the table to the figure.
    """

    name: str
    title: str
    caption: str
    source: str
    draw: "Callable[[pd.DataFrame], Figure]"


def _positions(table: "pd.DataFrame") -> "Figure":
    return figures.position_map(table, value="value")


def _drawn_circuit(table: "pd.DataFrame") -> "Circuit":
    from kn_lens.circuits import Circuit  # with all that computes circuits, which few runs have

    return Circuit.from_json(table["circuit"].iloc[0])


def _circuit_graph(table: "pd.DataFrame") -> "Figure":
    circuit = _drawn_circuit(table)
    figure = circuit_figure(circuit)
    prompt, answer = circuit.meta["prompt"], circuit.meta["object"]
    return figure.update_xaxes(title_text=plain(f"token of: {prompt} ({answer})"))  # the page shows no titles


def table_below(panel: Panel, tables: "Mapping[str, pd.DataFrame]") -> "pd.DataFrame":
    """Return the table that a figure shows: its source, or of a graph the nodes and their tokens."""
    table = tables[panel.source]
    if panel.name != GRAPH:
        return table
    circuit = _drawn_circuit(table)
    nodes = circuit.to_frame()
    tokens = [circuit.meta["tokens"][position] for position in nodes["position"]]
    return nodes.assign(token=tokens).loc[:, ["node", "kind", "layer", "token", "score"]]


def _answers(table: "pd.DataFrame") -> "Figure":
    rows = table.loc[table["measure"] == "accuracy"].sort_values(
        "value",
        ascending=False,
        kind="stable",
    )
    return figures.estimates(
        rows,
        "relation",
        title="Correct answers",
        value="share of the prompts",
        form=".0%",
    )


def _methods(table: "pd.DataFrame") -> "Figure":
    return figures.estimates(
        _with_labels(table),
        "neuron_set",
        title="Other methods",
        value=figures.CHANGE,
        form="+.0%",
    )


def _answer_readouts(table: "pd.DataFrame") -> "Figure":
    title = "Neurons that promote the answer"
    return figures.estimates(
        _with_labels(table),
        "neuron_set",
        title=title,
        value="share of a fact's neurons",
        form=".0%",
    )


def _consistency(table: "pd.DataFrame") -> "Figure":
    rows = table.loc[table["measure"] == "consistent"].sort_values("value", ascending=False, kind="stable")
    return figures.estimates(
        rows, "relation", title="Consistency over wordings", value="share of the facts", form=".0%"
    )


def _degenerate(table: "pd.DataFrame") -> "Figure":
    rows = table.loc[(table["neuron_set"] == "found") & table["measure"].isin(["taken", "degenerate"])]
    names = []
    for criterion, measure in zip(rows["criterion"], rows["measure"], strict=True):
        names.append(f"{DEGENERATE_LABELS[measure]}: {cell_label('criterion', criterion)}")
    title = "Facts with more than one home"
    return figures.estimates(rows.assign(name=names), "name", title=title, value="share of the known facts", form=".0%")


def _with_labels(table: "pd.DataFrame") -> "pd.DataFrame":
    labels = [cell_label("neuron_set", name) for name in table["neuron_set"]]
    return table.assign(neuron_set=labels)


def _stability(table: "pd.DataFrame") -> "Figure":
    return figures.estimates(
        table.assign(varied=list(map(varied_label, table["varied"]))),
        "varied",
        title="Stability",
        value="Jaccard index",
    )


PANELS = (
    Panel(
        name="effects",
        title="Effects of the neurons",
        caption="Mean over relations of the relative change of the answer's probability when a "
        "fact's neurons are suppressed or doubled: filled marks on the fact itself, open marks on "
        "a random fact of another relation. The most active neurons are as many as were found; "
        "random neurons lie in the same layers.",
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
        title="Layers of the neurons",
        caption="Share of the neurons of all facts in each layer; a neuron counts once for each "
        "fact that has it. Layer 0 is the first.",
        source="figure3",
        draw=figures.layer_distribution,
    ),
    Panel(
        name=MAP,
        title="Neurons and relations",
        caption="The neurons that most facts have, and the share of each relation's facts that "
        "have them. Empty cells: no fact has it. Off the diagonal, relations share neurons.",
        source=MAP,
        draw=figures.neuron_relation_map,
    ),
    Panel(
        name="answers",
        title="What the model knows",
        caption="Share of a relation's prompts whose most probable answer is correct. Control: "
        "always the most frequent answer of the relation.",
        source="answers_by_relation",
        draw=_answers,
    ),
    Panel(
        name="stability",
        title="Stability of the neurons",
        caption="Agreement of a fact's neurons with those found from fewer prompts, with other "
        "thresholds and with other quadratures: the Jaccard index, 1 for equal sets. Control: the "
        "set of another fact of the relation.",
        source="stability",
        draw=_stability,
    ),
    Panel(
        name="methods",
        title="Other attribution methods",
        caption="As many neurons of highest score by each method, suppressed: the larger the loss "
        "of the answer, the better the method finds the neurons that carry it. Control: random "
        "neurons of the same layers.",
        source="methods",
        draw=_methods,
    ),
    Panel(
        name="positions",
        title="Where the answer comes about",
        caption="What the answer loses with the MLP of one layer silent (or at the mean of other subjects) at the "
        "tokens of one role: mean over tokens, prompts and facts. Losses at different tokens do not add up.",
        source="positions",
        draw=_positions,
    ),
    Panel(
        name="circuits",
        title="Circuits of neurons and heads",
        caption="What the nodes with the largest scores keep of the logit difference between the answer and that of "
        "another fact, while all other neurons and heads have their activations under that fact's prompt "
        "(faithfulness), and what is lost without them (completeness). Controls: as many nodes in each layer and "
        "position, the most active ones and random ones.",
        source="circuits",
        draw=figures.circuit_curve,
    ),
    Panel(
        name=GRAPH,
        title="One circuit",
        caption="The smallest circuit that keeps 80% of the logit difference in one prompt of the first relation, "
        "which stands below it with its answer. Circles are neurons and squares heads, by layer and token. Marks grow "
        "with the score, and are blue where it speaks for the answer, orange where it speaks against it. Lines are the "
        "largest direct effects between the nodes of largest scores.",
        source=GRAPH,
        draw=_circuit_graph,
    ),
    Panel(
        name="degenerate",
        title="Facts with more than one home",
        caption="Share of the known facts whose answer is lost with all neurons of the fact suppressed, and share in "
        "which moreover two or more subsets of the neurons, without a common one, each suffice for it. The answer "
        "counts as given while it is the most probable one in half of the prompts, or while it keeps half of its "
        "probability. Control: the same search among random neurons of the same layers.",
        source="degenerate",
        draw=_degenerate,
    ),
    Panel(
        name="consistency",
        title="Consistency over wordings",
        caption="Share of the facts whose prompts share more neurons than those of 95% of shuffled facts, which have "
        "the same wordings with other subjects of the relation. Control: the share that chance alone would have.",
        source="consistency_by_relation",
        draw=_consistency,
    ),
    Panel(
        name="editors",
        title="Editors beside one another",
        caption="Known facts are given the object of another fact of their relation, one at a time. Shares of prompts "
        "with the new answer on top, in the wordings that editors saw and in held-out ones, and share of the right "
        "answers to other facts that stay right, means over relations. Controls: the same rows of change, dealt to "
        "the most active neurons of the layer and to random ones.",
        source="editors",
        draw=figures.editors,
    ),
    Panel(
        name="answer_readouts",
        title="Neurons that promote the answer",
        caption="Share of a fact's neurons with a token of its answer among the ten of highest "
        "logit when the model's head reads the neuron's row of W_out alone. Control: random "
        "neurons of the same layers.",
        source="answer_readouts",
        draw=_answer_readouts,
    ),
)
"""All panels, in the order of the report."""


def draw_figures(run: RunRecords, tables: "Mapping[str, pd.DataFrame]") -> "dict[str, Figure]":
    """Return the figures of a run by name: those whose tables (see ``read_tables``) have rows.

    Raises:
        DataError: A table has no row that its figure shows.
    """
    result = {}
    for panel in PANELS:
        if len(tables.get(panel.source, ())):
            try:
                result[panel.name] = panel.draw(tables[panel.source])
            except (ArgumentError, DataError) as error:
                raise _damaged(run, panel.source, str(error)) from None
    return result


def read_tables(run: RunRecords) -> "dict[str, pd.DataFrame]":
    """Return the tables of a run, and those of ``OF_RECORDS``.

    Relations have their names, such as ``capital (P36)``.

    Raises:
        DataError: A table cannot be read, or lacks a column of the report.
    """
    tables = run.tables()
    for name, columns in READ.items():
        if name not in tables:
            continue
        for column in columns.split():
            if column not in tables[name]:
                raise _damaged(run, name, f"It has no column {column}; expected {columns}.")
    records = run.records("neurons")
    if records is not None:
        tables = {**tables, MAP: neurons_by_relation(records)}
    records = run.records("circuits")
    if records is not None and "circuit" in records:
        tables = {**tables, GRAPH: records.loc[records["circuit"] != "", ["relation", "circuit"]]}
    names = run.relation_names()
    return {name: with_relation_names(table, names) for name, table in tables.items()}


def with_relation_names(table: "pd.DataFrame", names: Mapping[str, str]) -> "pd.DataFrame":
    """Return a table whose column ``relation``, if it has one, holds names in place of identifiers."""
    if "relation" not in table:
        return table
    relations = [names.get(relation, relation) for relation in table["relation"]]
    return table.assign(relation=relations)


def _damaged(run: RunRecords, table: str, reason: str) -> DataError:
    path = run.path / "records" / "circuits" if table == GRAPH else run.path / "tables" / f"{table}.csv"
    return DataError(f"{path} is damaged. {reason} This command writes it again: {run.command()}")


def neurons_by_relation(records: "pd.DataFrame") -> "pd.DataFrame":
    """Return one row for each ``relation`` and neuron, from records of the stage ``neurons``.

    A neuron is its ``layer``, its ``expert`` where the model has some, and its ``index``.

    ``n_facts`` is the number of the relation's facts that have the neuron, ``share`` their share.
    """
    found = records.loc[records["neuron_set"] == "found"]
    sizes = found.groupby("relation", sort=False).size()
    cells = neuron_cells(found, "relation")
    groups = cells.groupby(["relation", *KEY_COLUMNS], sort=False, dropna=False)
    counts = without_missing_experts(groups.size().to_frame("n_facts").reset_index())
    return counts.assign(share=counts["n_facts"] / counts["relation"].map(sizes).to_numpy())
