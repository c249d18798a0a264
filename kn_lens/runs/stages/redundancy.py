"""Stages ``degenerate`` and ``consistency``: facts with more than one home, and facts whose neurons depend on wording.

Both run on request alone (``--stage degenerate``). ``degenerate`` takes some facts of each relation (``check_facts``)
and searches their neurons of each kind for subsets that take the answer, and for subsets each of which suffices for it:
``kn_lens.degenerate_sets``. It does so under two criteria, since most answers stay the most probable ones whatever is
suppressed: that they do, and that they keep ``SHARE`` of their probability. Records, one row for each fact, kind and
criterion:

    relation, key
    neuron_set             found, activation, random
    criterion              ``answer`` or ``probability``
    n_neurons, n_prompts
    exact                  whether all subsets were measured
    known                  whether the criterion is met with nothing suppressed
    taken                  whether it is not with all neurons suppressed
    n_smallest             size of the smallest subset that takes the answer; NaN where there is none
    smallest_suffices      whether this subset suffices too
    n_sufficient           number of subsets, without a common neuron, each of which suffices
    degenerate             whether there are two or more
    before, after          mean probability of the answer, without and with all neurons suppressed

``consistency`` compares the coarse sets of the prompts of all queried facts, from the scores of ``attributions``:
``kn_lens.consistency``. Records, one row for each fact: ``relation``, ``key``, ``n_prompts``, ``jaccard``,
``null_mean``, ``null_high``, ``p``, ``consistent``.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from kn_lens._core.bootstrap import with_control
from kn_lens.interventions import degeneracy_table, degenerate_sets
from kn_lens.neurons import ALPHA, consistency, consistency_table
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_records
from kn_lens.runs.stages.attributions import ATTRIBUTIONS, read_scores
from kn_lens.runs.stages.neurons import NEURONS

if TYPE_CHECKING:
    import pandas as pd

SHARE = 0.5
"""Share of its probability that an answer has to keep."""
CRITERIA = {"answer": None, "probability": SHARE}
"""The argument ``share`` of each criterion."""
N_KINDS = 3
"""Kinds of neurons that are searched."""
SUBSETS_PER_SET = 64
"""Approximate number of subsets that are measured of each set of neurons."""

DEGENERATE_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("neuron_set", pa.string()),
        ("criterion", pa.string()),
        ("n_neurons", pa.int32()),
        ("n_prompts", pa.int32()),
        ("exact", pa.bool_()),
        ("known", pa.bool_()),
        ("taken", pa.bool_()),
        ("n_smallest", pa.float64()),
        ("smallest_suffices", pa.bool_()),
        ("n_sufficient", pa.int32()),
        ("degenerate", pa.bool_()),
        ("before", pa.float64()),
        ("after", pa.float64()),
    ]
)
CONSISTENCY_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("n_prompts", pa.int32()),
        ("jaccard", pa.float64()),
        ("null_mean", pa.float64()),
        ("null_high", pa.float64()),
        ("p", pa.float64()),
        ("consistent", pa.bool_()),
    ]
)


# --- degenerate -----------------------------------------------------------------------------------


def _make_degenerate(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    import pandas as pd

    facts = context.sample_facts(shard.relation, context.settings.check_facts, "degenerate")
    prompts = context.make_prompts(facts)
    found = context.neurons("found", shard.relation)
    active = context.neurons("activation", shard.relation)
    tables = []
    for n_done, (criterion, share) in enumerate(CRITERIA.items(), start=1):
        sets = degenerate_sets(
            context.host,
            prompts,
            {fact: found[fact] for fact in facts},
            {fact: active[fact] for fact in facts},
            share=share,
            seed=context.settings.seed,
            memory_budget=context.memory_budget,
        )
        tables.append(sets.table().assign(criterion=criterion))
        progress(n_done, len(CRITERIA))
    write_records(path, pd.concat(tables, ignore_index=True), DEGENERATE_SCHEMA)


def _degenerate_tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the share of facts whose answer is taken, and of degenerate ones, and the size of the smallest subsets."""
    import pandas as pd

    records = context.all_records(DEGENERATE)
    tables = []
    for criterion in CRITERIA:
        rows = records.loc[records["criterion"] == criterion]
        table = degeneracy_table(rows, n_resamples=context.settings.n_resamples, seed=context.settings.seed)
        table.insert(0, "criterion", criterion)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    return {"degenerate": with_control(table)} if len(table) else {}


def _degenerate_passes(context: RunContext, shard: Shard) -> Passes:
    n_facts = max(1, len(context.queried_facts(shard.relation)))
    n_rows = context.n_rows(shard.relation) * min(context.settings.check_facts, n_facts) / n_facts
    return n_rows * Passes(whole=len(CRITERIA), resumed=len(CRITERIA) * N_KINDS * SUBSETS_PER_SET)


DEGENERATE = Stage(
    name="degenerate",
    title="Degenerate sets: facts with more than one home",
    make=_make_degenerate,
    tables=_degenerate_tables,
    shown={
        "degenerate": TableDisplay(
            "Degenerate sets: facts whose answer all neurons take, and in which several subsets each suffice"
        )
    },
    needs=(NEURONS,),
    settings=("seed", "check_facts"),
    passes=_degenerate_passes,
)
"""Subsets of the neurons that take the answer, or suffice for it; table ``degenerate``."""


# --- consistency ----------------------------------------------------------------------------------


def _make_consistency(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    settings = context.settings
    scores = read_scores(context, ATTRIBUTIONS, shard.relation)
    found = consistency(scores, attr_threshold=settings.attr_threshold, seed=settings.seed)
    write_records(path, found.table, CONSISTENCY_SCHEMA)


def _consistency_tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the share of consistent facts and their mean Jaccard index."""
    records = context.all_records(CONSISTENCY)
    settings = context.settings
    tables = {}
    for name, by_relation in {"consistency": False, "consistency_by_relation": True}.items():
        table = consistency_table(
            records, ALPHA, by_relation=by_relation, n_resamples=settings.n_resamples, seed=settings.seed
        )
        if len(table):
            tables[name] = table
    return tables


CONSISTENCY = Stage(
    name="consistency",
    title="Consistency of the neurons over wordings",
    make=_make_consistency,
    tables=_consistency_tables,
    shown={
        "consistency": TableDisplay(
            "Consistency: facts whose prompts share more neurons than those of shuffled facts. Control: by chance"
        )
    },
    needs=(ATTRIBUTIONS,),
    settings=("seed", "attr_threshold"),
)
"""Likeness of the coarse sets of a fact's prompts, beside shuffled facts; tables ``consistency`` and by relation."""
