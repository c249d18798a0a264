"""Statistics of the stages that run on request: neurons at the subject, circuits, and query neurons.

Each stage measures some facts of each relation, so that runs are compared on the facts that it measured in all of them.
As for other statistics, that of a relation is the sum of the facts' numerators over the sum of their denominators.
"""

from typing import TYPE_CHECKING

from kn_lens.runs.stage import Stage
from kn_lens.runs.stages.circuits import CIRCUITS, CIRCUITS_SCHEMA, QUERIES, QUERIES_SCHEMA
from kn_lens.runs.stages.positions import POSITIONS, POSITIONS_SCHEMA

if TYPE_CHECKING:
    import pandas as pd

REQUESTED = {
    POSITIONS: (POSITIONS_SCHEMA, "positions", ("role", "layer", "neuron_set")),
    CIRCUITS: (CIRCUITS_SCHEMA, "circuits", ("neuron_set", "size")),
    QUERIES: (QUERIES_SCHEMA, "query_neurons", ("layer", "index")),
}
"""The schema of a stage's records, a table that exists once they are complete, and the columns of which a fact has each
combination at most once."""
CIRCUIT_SIZE = 100
"""Number of nodes of the circuits whose faithfulness is compared."""

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


def _table(key: "pd.Series", numerator: "pd.Series", denominator: "pd.Series | float") -> "pd.DataFrame":
    import pandas as pd

    table = pd.DataFrame({"key": key, "numerator": numerator, "denominator": denominator}, dtype=object)
    return table.set_index("key").astype(float)
