"""Stage ``neurons``: the neurons of each fact, with the baselines and the control; Table 2 and Figure 3.

Records, one row for each fact and kind of neurons:

    relation, key
    neuron_set         the kind
    layer, expert, index   lists of the same length: the neurons; no expert where the layer has one MLP
    share_threshold    the share of prompts at which refining the relation ended; NaN for kinds that are not refined

Kinds:

    found        refined from attributions; the threshold moves until the facts of the relation have 2 to 5 neurons each
    baseline     refined from activations in the same way, with ``baseline_threshold``: the paper's baseline
    activation   as many as found, those of highest mean activation
    random       as many as found in each layer, drawn at random: the control
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from kn_lens._core.notation import key_columns
from kn_lens.attribution import Attribution, attribute
from kn_lens.facts import Fact
from kn_lens.neurons import (
    NeuronSet,
    RelationRefinement,
    activation_neurons,
    prompts_by_fact,
    random_neurons,
    refine_by_relation,
)
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.overlap_tables import expert_table, layer_table, table_2
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_rows
from kn_lens.runs.stages.attributions import ACTIVATIONS, ATTRIBUTIONS, read_scores

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("found", "baseline", "activation", "random")
N_COMPARED_KINDS = 3
"""Kinds that interventions and edits compare: found, those of the baseline, and random."""
CELLS_AT_ONCE = 1 << 26
"""Approximate number of activations in memory at a time."""

NEURONS_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("neuron_set", pa.string()),
        ("layer", pa.list_(pa.int32())),
        ("expert", pa.list_(pa.int32())),
        ("index", pa.list_(pa.int32())),
        ("share_threshold", pa.float64()),
    ]
)


def _make(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    settings, relation = context.settings, shard.relation
    found = refine_scores(context, read_scores(context, ATTRIBUTIONS, relation), settings.attr_threshold)
    baseline = refine_scores(context, read_scores(context, ACTIVATIONS, relation), settings.baseline_threshold)
    sets: dict[str, Mapping[Fact, NeuronSet]] = {
        "found": found.neurons,
        "baseline": baseline.neurons,
        "activation": _most_active(context, relation, found.neurons, progress),
        "random": random_controls(context, found.neurons),
    }
    thresholds = {
        "found": found.share_threshold[relation],
        "baseline": baseline.share_threshold[relation],
    }
    write_sets(path, sets, thresholds)


def refine_scores(context: RunContext, scores: Attribution, threshold: float) -> RelationRefinement:
    """Refine scores with the settings of the run, from coarse sets with this threshold."""
    settings = context.settings
    return refine_by_relation(
        scores,
        attr_threshold=threshold,
        share_threshold=settings.share_threshold,
        step=settings.share_step,
        max_moves=settings.max_moves,
        min_prompts=settings.min_prompts,
    )


def random_controls(context: RunContext, neurons: Mapping[Fact, NeuronSet]) -> dict[Fact, NeuronSet]:
    """Return random neurons for each fact, as many in each layer as it has there."""
    controls = {}
    for fact, fact_neurons in neurons.items():
        controls[fact] = random_neurons(fact_neurons, context.host, context.seeds(fact.key))
    return controls


def write_sets(path: Path, sets: Mapping[str, Mapping[Fact, NeuronSet]], thresholds: Mapping[str, float]) -> None:
    """Write neuron sets, given by kind and fact, as records of the stage; see its docstring.

    Args:
        path: the record file.
        sets: by kind of neurons and fact.
        thresholds: ``share_threshold`` of the kinds that were refined.
    """
    rows: list[dict[str, Any]] = []
    for kind, kind_sets in sets.items():
        for fact, neurons in kind_sets.items():
            rows.append(
                {
                    "relation": fact.relation,
                    "key": fact.key,
                    "neuron_set": kind,
                    **key_columns(neurons),
                    "share_threshold": thresholds.get(kind, float("nan")),
                }
            )
    write_rows(path, rows, NEURONS_SCHEMA)


def _most_active(
    context: RunContext, relation: str, neurons: Mapping[Fact, NeuronSet], progress: Progress
) -> dict[Fact, NeuronSet]:
    """Return as many neurons of highest mean activation for each fact.

    The mean over prompts needs all activations of a fact, so that facts are taken in groups of limited size.
    """
    prompts, host = context.prompts(relation), context.host
    max_prompts = max(1, CELLS_AT_ONCE // (host.n_layers * host.d_active))
    groups: list[dict[Fact, torch.Tensor]] = []
    room = 0
    for fact, prompt_ids in prompts_by_fact(prompts).items():
        if len(prompt_ids) > room:
            groups.append({})
            room = max_prompts
        groups[-1][fact] = prompt_ids
        room -= len(prompt_ids)
    active: dict[Fact, NeuronSet] = {}
    for group in groups:
        group_prompts = prompts.select(torch.cat(list(group.values())).to(prompts.tokens.device))
        activations = attribute(host, group_prompts, method="activation", memory_budget=context.memory_budget)
        active |= activation_neurons(activations, {fact: neurons[fact] for fact in group})
        progress(len(active), len(neurons))
    return active


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    settings = context.settings
    sets: dict[str, dict[str, list[NeuronSet]]] = {}
    for kind in KINDS:
        sets[kind] = {}
        for relation in context.relations():
            sets[kind][relation] = list(context.neurons(kind, relation).values())
    tables = table_2(
        sets,
        across_samples=settings.across_samples,
        n_resamples=settings.n_resamples,
        seed=settings.seed,
    )
    tables["figure3"] = layer_table(sets, context.host.n_layers, n_resamples=settings.n_resamples, seed=settings.seed)
    if context.host.layout.has_experts:
        tables["experts"] = expert_table(
            sets, context.host.layout, n_resamples=settings.n_resamples, seed=settings.seed
        )
    return tables


def _passes(context: RunContext, shard: Shard) -> Passes:
    return Passes(whole=context.n_rows(shard.relation))


NEURONS = Stage(
    name="neurons",
    title="Refining; Table 2 and Figure 3",
    make=_make,
    tables=_tables,
    shown={
        "table2": TableDisplay(
            "Table 2: neurons of a fact, and neurons that two facts of one or of two relations share"
        ),
        "figure3": TableDisplay("Figure 3: share of the neurons in each layer; the control is an even spread"),
        "experts": TableDisplay("Share of the neurons in each expert; the control is an even spread"),
    },
    needs=(ATTRIBUTIONS, ACTIVATIONS),
    settings=(
        "attr_threshold",
        "baseline_threshold",
        "share_threshold",
        "share_step",
        "max_moves",
        "min_prompts",
        "seed",
    ),
    passes=_passes,
)
"""The neurons of each fact; records of each fact and kind, tables ``table2``, by relation, and ``figure3``.

Where the model has experts also ``experts``.
"""
