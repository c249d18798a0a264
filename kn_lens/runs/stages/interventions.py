"""Stages ``effects`` and ``doses``: suppressing and amplifying neurons; Figures 4 and 5, and the dose-response curve.

The activations of each fact's neurons are multiplied by a factor, and the probability of the answer is computed again
for the fact itself (scope ``own``) and, where the source has one, for a random fact of another relation (``other``):
``controlled_effects``. The same is done with the neurons of the baseline and with random neurons. ``effects`` takes the
factors 0 and 2 and all facts, ``doses`` more factors and some facts of each relation.

Records: the rows of ``controlled_effects`` with their ``factor``. ``neuron_set`` is a kind of the stage ``neurons``:
``found``, ``random``, and ``activation`` or ``baseline`` as the setting ``baseline`` says.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from kn_lens._core.bootstrap import with_control
from kn_lens.facts import Fact
from kn_lens.interventions import Amplify, Suppress, controlled_effects, effect_table
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.paper import CHANGE_RATIO
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_records
from kn_lens.runs.stages.neurons import N_COMPARED_KINDS, NEURONS

if TYPE_CHECKING:
    import pandas as pd

FACTORS = (0.0, 2.0)
"""Factors of ``effects``: suppression and amplification."""
EFFECTS_SCHEMA = pa.schema(
    [
        ("factor", pa.float64()),
        ("relation", pa.string()),
        ("key", pa.string()),
        ("neuron_set", pa.string()),
        ("scope", pa.string()),
        ("measured", pa.string()),
        ("n_neurons", pa.int32()),
        ("n_prompts", pa.int32()),
        ("before", pa.float64()),
        ("after", pa.float64()),
    ]
)


def _make_effects(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    facts = context.queried_facts(shard.relation)
    _measure(context, shard.relation, facts, FACTORS, path, progress)


def _make_doses(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    facts = _dose_facts(context, shard.relation)
    _measure(context, shard.relation, facts, context.settings.doses, path, progress)


def _dose_facts(context: RunContext, relation: str) -> list[Fact]:
    return context.sample_facts(relation, context.settings.dose_facts, "doses")


def _measure(
    context: RunContext,
    relation: str,
    facts: Sequence[Fact],
    factors: Sequence[float],
    path: Path,
    progress: Progress,
) -> None:
    baseline = "activation" if context.settings.baseline == "matched" else "baseline"
    found = context.neurons("found", relation)
    active = context.neurons(baseline, relation)
    others = context.sample_other_facts(relation, len(facts), "others", relation)
    interventions = {}
    for factor in factors:
        interventions[factor] = partial(Amplify, factor=factor) if factor else Suppress
    prompts = context.make_prompts([*facts, *others])
    effects = controlled_effects(
        context.host,
        prompts,
        {fact: found[fact] for fact in facts},
        {fact: active[fact] for fact in facts},
        intervene=interventions,
        across_relations=context.has_other_relations(prompts),
        seed=context.settings.seed,
        memory_budget=context.memory_budget,
        progress=progress,
    )
    effects = effects.rename(columns={"intervention": "factor"})
    effects = effects.replace({"neuron_set": {"activation": baseline}})
    write_records(path, effects, EFFECTS_SCHEMA)


def _effect_tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    effects = context.all_records(EFFECTS)
    return {
        "figures4_5": _change_ratios(context, effects, by_relation=False),
        "figures4_5_by_relation": _change_ratios(context, effects, by_relation=True),
    }


def _dose_tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    doses = context.all_records(DOSES)
    return {"dose_response": _change_ratios(context, doses, by_relation=False)}


def _change_ratios(context: RunContext, effects: "pd.DataFrame", by_relation: bool) -> "pd.DataFrame":
    """Return change ratios by factor, with intervals, the values of random neurons and those of the paper."""
    import pandas as pd

    settings = context.settings
    tables = []
    for factor, group in effects.groupby("factor"):
        table = effect_table(group, by_relation=by_relation, n_resamples=settings.n_resamples, seed=settings.seed)
        table.insert(0, "factor", factor)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    table = table.rename(columns={"change_ratio": "value", "n_facts": "n"})
    table = with_control(table)
    paper = []
    for factor, kind, scope in zip(table["factor"], table["neuron_set"], table["scope"], strict=True):
        in_paper = scope == "own" and not by_relation
        paper.append(CHANGE_RATIO.get((factor, kind), np.nan) if in_paper else np.nan)
    table["paper"] = paper
    return table


def _effect_passes(context: RunContext, shard: Shard) -> Passes:
    return _passes(context, shard, context.queried_facts(shard.relation), len(FACTORS))


def _dose_passes(context: RunContext, shard: Shard) -> Passes:
    facts = _dose_facts(context, shard.relation)
    return _passes(context, shard, facts, len(context.settings.doses))


def _passes(context: RunContext, shard: Shard, facts: Sequence[Fact], n_factors: int) -> Passes:
    """Count the clean passes of own and other facts, and the passes with three kinds of neurons for each factor."""
    records = context.fact_records(shard.relation)
    n_rows = dict(zip(records["key"], records["n_rows"], strict=True))
    found = context.n_neurons("found", shard.relation)
    intervened = facts if found is None else [fact for fact in facts if found[fact]]
    n_own = sum(n_rows[fact.key] for fact in facts)
    n_intervened = sum(n_rows[fact.key] for fact in intervened)
    n_resumed = n_intervened * N_COMPARED_KINDS * n_factors
    if len(context.source.relations) < 2:
        return Passes(whole=n_own, resumed=n_resumed)
    # Each fact has one other fact, drawn at random from as many and assumed to have as many rows; draws can coincide.
    n_others = n_own * (1 - (1 - 1 / max(1, len(facts))) ** len(facts))
    n_resumed *= 2
    return Passes(whole=n_own + n_others, resumed=n_resumed)


EFFECTS = Stage(
    name="effects",
    title="Suppressing and amplifying; Figures 4 and 5",
    make=_make_effects,
    tables=_effect_tables,
    shown={
        "figures4_5": TableDisplay(
            "Figures 4 and 5: relative change of P(answer), neurons suppressed (0) and doubled (2)"
        )
    },
    needs=(NEURONS,),
    settings=("baseline", "seed"),
    across=True,
    passes=_effect_passes,
)
"""Suppression and amplification of every fact's neurons; tables ``figures4_5`` and by relation."""

DOSES = Stage(
    name="doses",
    title="Dose-response curve",
    make=_make_doses,
    tables=_dose_tables,
    shown={
        "dose_response": TableDisplay(
            "Dose-response: relative change of P(answer), neurons multiplied by other factors"
        )
    },
    needs=(NEURONS,),
    settings=("baseline", "seed", "doses", "dose_facts"),
    across=True,
    passes=_dose_passes,
)
"""The same for more factors and fewer facts; table ``dose_response``."""
