"""Stage ``positions``: at which tokens and in which layers the answer comes about, and neurons found elsewhere.

It runs on request alone (``--stage positions``), since the subject of an encoder-decoder's prompts is in the encoder.
It takes some facts of each relation (``check_facts``) and attributes the answer at every token of their prompts, with
the quadrature of the settings. Records, one row for each fact, role of tokens and layer, and one for each fact,
position and kind of neurons:

    relation, key
    role                   of the tokens (``kn_lens.prompts.ROLES``); of the second kind ``subject_last`` or ``read``
    layer                  -1 in rows of the second kind
    neuron_set             empty in rows of the first kind; found (refined from the scores there), activation, random
    n_prompts              that have a token of the role
    effect                 of the first kind: P(w) - P(w0) with the layer moved at the token, a mean over prompts
    n_neurons              of the second kind
    before, after          likewise: mean probability of the answer without and with the neurons suppressed there

Scores of different positions do not add up: what one token writes, others read.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kn_lens._core.bootstrap import bootstrap_table, fact_mean, with_control
from kn_lens.attribution import attribute
from kn_lens.interventions import controlled_effects, effect_table
from kn_lens.neurons import most_active_neurons, refine
from kn_lens.prompts import ROLES, PositionName
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_rows
from kn_lens.runs.stages.attributions import attribution_passes
from kn_lens.runs.stages.facts import FACTS

if TYPE_CHECKING:
    import pandas as pd

PLACES: tuple[PositionName, ...] = ("subject_last", "read")
"""The positions whose neurons are suppressed."""

POSITIONS_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("role", pa.string()),
        ("layer", pa.int32()),
        ("neuron_set", pa.string()),
        ("n_prompts", pa.int32()),
        ("effect", pa.float64()),
        ("n_neurons", pa.int32()),
        ("before", pa.float64()),
        ("after", pa.float64()),
    ]
)


def _make(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    settings, host, memory = context.settings, context.host, context.memory_budget
    facts = context.sample_facts(shard.relation, settings.check_facts, "positions")
    prompts = context.make_prompts(facts)
    attribution = attribute(
        host,
        prompts,
        positions="all",
        quadrature=settings.quadrature,
        n_steps=settings.n_steps,
        tolerance=settings.tolerance,
        start=context.start(shard.relation),
        keep=settings.keep,
        memory_budget=memory,
    )
    progress(1, 1 + len(PLACES))
    rows: list[dict[str, Any]] = []
    for fact in facts:
        for row in attribution[fact].by_role().to_dict("records"):
            names = {name: row[name] for name in ("role", "layer", "n_prompts", "effect")}
            rows.append({"relation": fact.relation, "key": fact.key, "neuron_set": "", **names})
    for n_done, place in enumerate(PLACES, start=2):
        there = attribution.at(place)
        neurons = refine(
            there,
            attr_threshold=settings.attr_threshold,
            share_threshold=settings.share_threshold,
            min_prompts=settings.min_prompts,
        )
        effects = controlled_effects(
            host,
            there.prompts,
            neurons,
            most_active_neurons(host, there.prompts, neurons, memory_budget=memory),
            across_relations=False,
            seed=settings.seed,
            memory_budget=memory,
        )
        for row in effects.to_dict("records"):
            names = {name: row[name] for name in ("relation", "key", "neuron_set", "n_prompts", "n_neurons")}
            rows.append({"role": place, "layer": -1, **names, "before": row["before"], "after": row["after"]})
        progress(n_done, 1 + len(PLACES))
    write_rows(path, rows, POSITIONS_SCHEMA)


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return what layers carry at the tokens of each role, and what suppressing the neurons found there does."""
    import pandas as pd

    records = context.all_records(POSITIONS)
    n_resamples, seed = context.settings.n_resamples, context.settings.seed
    layers = records.loc[records["neuron_set"] == ""]
    carried = bootstrap_table(layers, ["role", "layer"], fact_mean("effect"), n_resamples=n_resamples, seed=seed)
    order = {role: number for number, role in enumerate(ROLES)}
    carried = carried.sort_values(["role", "layer"], key=lambda column: column.replace(order), ignore_index=True)
    tables = []
    for place in PLACES:
        effects = records.loc[(records["neuron_set"] != "") & (records["role"] == place)]
        effects = effects.assign(scope="own", measured=effects["key"])
        table = effect_table(effects, n_resamples=n_resamples, seed=seed)
        table.insert(0, "role", place)
        table = table.rename(columns={"change_ratio": "value", "n_facts": "n"})
        tables.append(with_control(table))
    return {"positions": carried, "position_effects": pd.concat(tables, ignore_index=True)}


def _passes(context: RunContext, shard: Shard) -> Passes:
    facts = context.sample_facts(shard.relation, context.settings.check_facts, "positions")
    prompts = context.make_prompts(facts)
    n_positions = float(prompts.counted_length.sum())
    return attribution_passes(context, n_positions) + Passes(whole=6.0 * len(PLACES) * len(prompts))


POSITIONS = Stage(
    name="positions",
    title="Positions: where the answer comes about",
    make=_make,
    tables=_tables,
    shown={
        "positions": TableDisplay("Positions: P(w) - P(w0) with one layer moved at the tokens of one role"),
        "position_effects": TableDisplay("Positions: relative change of P(answer), neurons found there suppressed"),
    },
    needs=(FACTS,),
    settings=(
        "seed",
        "quadrature",
        "n_steps",
        "tolerance",
        "start",
        "keep",
        "attr_threshold",
        "share_threshold",
        "min_prompts",
        "check_facts",
    ),
    passes=_passes,
)
"""Where layers carry the answer, and neurons at two positions; tables ``positions`` and ``position_effects``."""
