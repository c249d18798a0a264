"""Stage ``erasures``: erasing relations; Table 5.

The value rows of a relation's most frequent neurons are set to zero, or to another value: ``erase_effects``. The
``found`` neurons are compared with as many neurons of highest ``activation``, and with as many ``random`` neurons of
the same layers.

Records: the rows of ``erase_effects``. A relation without found neurons has none.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from kn_lens._core.bootstrap import with_control
from kn_lens.edits import OTHER_RELATIONS, SAME_RELATION, edit_table, erase_effects
from kn_lens.facts import Fact
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_records, write_rows
from kn_lens.runs.stages.neurons import N_COMPARED_KINDS, NEURONS
from kn_lens.runs.stages.updates import CURRENT_ANSWER_FIELDS

if TYPE_CHECKING:
    import pandas as pd

PERPLEXITIES = ("perplexity_before", "perplexity_after", "perplexity_growth")
TABLE_5 = {
    ("P19", SAME_RELATION): (1450.0, 2996.0, 1.066),
    ("P19", OTHER_RELATIONS): (120.3, 121.6, 0.011),
    ("P27", SAME_RELATION): (28.0, 38.3, 0.367),
    ("P27", OTHER_RELATIONS): (143.6, 149.5, 0.042),
    ("P106", SAME_RELATION): (2279.0, 5202.0, 1.282),
    ("P106", OTHER_RELATIONS): (120.1, 125.3, 0.043),
    ("P937", SAME_RELATION): (58.0, 140.0, 1.412),
    ("P937", OTHER_RELATIONS): (138.0, 151.9, 0.101),
}
"""Dai et al. (2022), bert-base-cased on ParaRel: ``PERPLEXITIES`` by relation and queried facts, found neurons."""

ERASE_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("neuron_set", pa.string()),
        ("question", pa.string()),
        ("measured", pa.string()),
        ("measured_relation", pa.string()),
        ("n_neurons", pa.int32()),
        *CURRENT_ANSWER_FIELDS,
    ]
)


def _make(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    relation, settings = shard.relation, context.settings
    found = context.neurons("found", relation)
    if not any(found.values()):
        write_rows(path, [], ERASE_SCHEMA)
        return
    prompts = context.make_prompts([*_own_facts(context, relation), *_other_facts(context, relation)])
    effects = erase_effects(
        context.host,
        prompts,
        found,
        context.neurons("activation", relation),
        top=settings.erase_top,
        value=settings.erase_value,
        across_relations=context.has_other_relations(prompts),
        seed=settings.seed,
        memory_budget=context.memory_budget,
        progress=progress,
    )
    write_records(path, effects, ERASE_SCHEMA)


def _own_facts(context: RunContext, relation: str) -> list[Fact]:
    """Return the facts of the relation that its erasure is measured on."""
    return context.sample_facts(relation, context.settings.erase_facts, "erasures")


def _other_facts(context: RunContext, relation: str) -> list[Fact]:
    """Return the facts of other relations that the erasure is measured on."""
    n_facts = context.settings.erase_others
    return context.sample_other_facts(relation, n_facts, "edits", relation, "False")


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    import pandas as pd

    records = context.all_records(ERASURES)
    found = records[records["neuron_set"] == "found"]
    n_neurons = found.groupby("relation")["n_neurons"].first().to_dict()
    rows = []
    for relation in context.relations():
        rows.append({"relation": relation, "n_neurons": int(n_neurons.get(relation, 0))})
    tables = {"erased": pd.DataFrame(rows)}
    if len(records):
        tables["table5"] = _table_5(context, records, by_relation=False)
        tables["table5_by_relation"] = _table_5(context, records, by_relation=True)
    return tables


def _table_5(context: RunContext, records: "pd.DataFrame", by_relation: bool) -> "pd.DataFrame":
    settings = context.settings
    table = edit_table(records, by_relation=by_relation, n_resamples=settings.n_resamples, seed=settings.seed)
    table = with_control(table.rename(columns={"n_facts": "n"}))
    paper = []
    for row in table.to_dict("records"):
        values: dict[str, float] = {}
        if by_relation and row["neuron_set"] == "found":
            reported = TABLE_5.get((row["relation"], row["question"]), ())
            values = dict(zip(PERPLEXITIES, reported, strict=False))
        paper.append(values.get(row["measure"], np.nan))
    return table.assign(paper=paper)


def _passes(context: RunContext, shard: Shard) -> Passes:
    """Count all queried facts, without edit and with the relation erased by each kind of neurons."""
    relation = shard.relation
    if not context.share_with_neurons(relation):
        return Passes()
    n_own_rows = context.n_rows_of(_own_facts(context, relation))
    n_other_rows = context.n_rows_of(_other_facts(context, relation))
    return Passes(whole=(1 + N_COMPARED_KINDS) * (n_own_rows + n_other_rows))


ERASURES = Stage(
    name="erasures",
    title="Erasing relations; Table 5",
    make=_make,
    tables=_tables,
    shown={"table5": TableDisplay("Table 5: relations erased", ("changed", *PERPLEXITIES))},
    needs=(NEURONS,),
    settings=("seed", "erase_top", "erase_value", "erase_facts", "erase_others"),
    across=True,
    passes=_passes,
)
"""Relations erased; records of each erased relation and measured fact, tables ``erased``, ``table5``, by relation."""
