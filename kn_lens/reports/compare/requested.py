"""Statistics of the stages that run on request: neurons at the subject, circuits, query neurons, redundancy, editors.

Each stage measures some facts of each relation, so that runs are compared on the facts that it measured in all of them.
As for other statistics, that of a relation is the sum of the facts' numerators over the sum of their denominators. A
fact that a statistic is not about, such as one that the model does not know, has the denominator 0.
"""

from typing import TYPE_CHECKING

from kn_lens._core.names import EDITORS as EDITOR_LABELS
from kn_lens._core.names import editor_statistic
from kn_lens.edits import HELD_OUT
from kn_lens.runs.stage import Stage
from kn_lens.runs.stages.circuits import CIRCUITS, CIRCUITS_SCHEMA, QUERIES, QUERIES_SCHEMA
from kn_lens.runs.stages.editors import EDITORS, EDITORS_SCHEMA, others_together
from kn_lens.runs.stages.positions import POSITIONS, POSITIONS_SCHEMA
from kn_lens.runs.stages.redundancy import CONSISTENCY, CONSISTENCY_SCHEMA, DEGENERATE, DEGENERATE_SCHEMA

if TYPE_CHECKING:
    import pandas as pd

REQUESTED = {
    POSITIONS: (POSITIONS_SCHEMA, "positions", ("role", "layer", "neuron_set")),
    CIRCUITS: (CIRCUITS_SCHEMA, "circuits", ("neuron_set", "size")),
    QUERIES: (QUERIES_SCHEMA, "query_neurons", ("layer", "index")),
    DEGENERATE: (DEGENERATE_SCHEMA, "degenerate", ("neuron_set", "criterion")),
    CONSISTENCY: (CONSISTENCY_SCHEMA, "consistency", ()),
    EDITORS: (EDITORS_SCHEMA, "editors", ("editor", "neuron_set", "question")),
}
"""The schema of a stage's records, a table that exists once they are complete, and the columns of which a fact has each
combination at most once."""
CIRCUIT_SIZE = 100
"""Number of nodes of the circuits whose faithfulness is compared."""

CRITERION = "probability"
"""The criterion of degenerate sets that are compared: the answer keeps half of its probability."""


FactRatios = dict[tuple[str, str], "pd.DataFrame"]
"""``numerator`` and ``denominator`` of each measured fact, by statistic and neuron set; indexed by key."""


def fact_ratios(stage: Stage, records: "pd.DataFrame", n_layers: int) -> FactRatios:
    """Return the statistics of the records of a stage.

    Args:
        stage: one of ``REQUESTED``.
        records: of all relations.
        n_layers: number of layers of the model.
    """
    if stage is POSITIONS:
        return _position_ratios(records)
    if stage is CIRCUITS:
        return _circuit_ratios(records)
    if stage is DEGENERATE:
        return _degenerate_ratios(records)
    if stage is CONSISTENCY:
        return _consistency_ratios(records)
    if stage is EDITORS:
        return _editor_ratios(records)
    depth = (records["layer"] + 0.5) / n_layers
    return {("query_depth", "found"): _table(records["key"], depth, 1.0).groupby("key").mean()}


def _position_ratios(records: "pd.DataFrame") -> FactRatios:
    ratios: FactRatios = {}
    at_subject = records.loc[(records["neuron_set"] != "") & (records["role"] == "subject_last")]
    for neuron_set, rows in at_subject.groupby("neuron_set", sort=False):
        change = rows["n_prompts"] * (rows["after"] - rows["before"])
        table = _table(rows["key"], change, rows["n_prompts"] * rows["before"])
        ratios["suppress_at_subject", str(neuron_set)] = table
    return ratios


def _circuit_ratios(records: "pd.DataFrame") -> FactRatios:
    first = records.drop_duplicates("key")
    ratios: FactRatios = {
        ("circuit_nodes", "found"): _table(first["key"], first["n_kept"], 1.0),
        ("circuit_at_read", "found"): _table(first["key"], first["at_read"], 1.0),
    }
    of_size = records.loc[records["size"] == CIRCUIT_SIZE]
    for neuron_set, rows in of_size.groupby("neuron_set", sort=False):
        gap = rows["n_pairs"] * (rows["clean"] - rows["empty"])
        kept, lost = rows["kept"] - rows["empty"], rows["clean"] - rows["left"]
        for statistic, part in (("faithfulness_100", kept), ("completeness_100", lost)):
            ratios[statistic, str(neuron_set)] = _table(rows["key"], rows["n_pairs"] * part, gap)
    return ratios


def _degenerate_ratios(records: "pd.DataFrame") -> FactRatios:
    ratios: FactRatios = {}
    of_criterion = records.loc[records["criterion"] == CRITERION]
    for neuron_set, rows in of_criterion.groupby("neuron_set", sort=False):
        known = rows["known"].astype(float)
        has_smallest = known * rows["n_smallest"].notna()
        size = rows["n_smallest"].fillna(0.0)
        for statistic, numerator, denominator in (
            ("taken", known * rows["taken"], known),
            ("degenerate", known * rows["degenerate"], known),
            ("smallest_set", has_smallest * size, has_smallest),
            ("smallest_suffices", has_smallest * rows["smallest_suffices"], has_smallest),
        ):
            ratios[statistic, str(neuron_set)] = _table(rows["key"], numerator, denominator)
    return ratios


def _consistency_ratios(records: "pd.DataFrame") -> FactRatios:
    tested = records["p"].notna().astype(float)
    ratios: FactRatios = {}
    for statistic, neuron_set, column in (
        ("consistent", "found", "consistent"),
        ("wordings_jaccard", "found", "jaccard"),
        ("wordings_jaccard", "random", "null_mean"),
    ):
        value = records[column].astype(float).fillna(0.0)
        ratios[statistic, neuron_set] = _table(records["key"], tested * value, tested)
    return ratios


def _editor_ratios(records: "pd.DataFrame") -> FactRatios:
    ratios: FactRatios = {}
    for name, label in EDITOR_LABELS.items():
        of_editor = records.loc[records["editor"] == label]
        held_out = of_editor.loc[of_editor["question"] == HELD_OUT]
        for neuron_set, rows in held_out.groupby("neuron_set", sort=False):
            right = rows["n_prompts"] * rows["new_right_after"]
            ratios[editor_statistic("success", name), str(neuron_set)] = _table(rows["key"], right, rows["n_prompts"])
        for neuron_set, rows in others_together(of_editor).groupby("neuron_set", sort=False):
            kept, right = rows["n_prompts"] * rows["kept"], rows["n_prompts"] * rows["right_before"]
            ratios[editor_statistic("kept", name), str(neuron_set)] = _table(rows["key"], kept, right)
    return ratios


def _table(key: "pd.Series", numerator: "pd.Series", denominator: "pd.Series | float") -> "pd.DataFrame":
    import pandas as pd

    table = pd.DataFrame({"key": key, "numerator": numerator, "denominator": denominator}, dtype=object)
    return table.set_index("key").astype(float)
