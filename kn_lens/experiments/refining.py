"""Stage ``neurons``: each fact's neurons, with the baselines and the control; Table 2 and Figure 3.

Records, one for each fact and kind of neurons: ``relation``, ``key``, ``neurons`` (the kind), ``layer`` and ``index``
(lists, of one length), ``share_threshold`` (where the relation's ``p`` came to rest; NaN where none was moved).

    found        refined from attributions, with the threshold moved until a relation's facts have 2 to 5 neurons each
    baseline     refined from activations in the same way (``baseline_threshold``): the paper's baseline
    activation   as many as found, those of highest mean activation
    random       as many as found in each layer, drawn at random: the control
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from kn_lens._refining import prompts_by_fact
from kn_lens.attribution import Attribution, attribute
from kn_lens.experiments import sweep
from kn_lens.experiments.overlap_tables import layer_table, table_2
from kn_lens.experiments.passes import Passes
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Shown, Stage, Study, Tick, write_records
from kn_lens.facts import Fact
from kn_lens.neuron_sets import NeuronSet
from kn_lens.neurons import RelationRefinement, activation_neurons, random_neurons, refine_by_relation

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("found", "baseline", "activation", "random")
CELLS_AT_ONCE = 1 << 26
"""About as many activations are held at a time."""

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("relation", "key", "neurons")),
        *((name, pa.list_(pa.int32())) for name in ("layer", "index")),
        ("share_threshold", pa.float64()),
    ]
)


def _make(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    settings, relation = study.settings, shard.relation
    found = refined(study, sweep.scores(study, sweep.ATTRIBUTIONS, relation), settings.attr_threshold)
    baseline = refined(study, sweep.scores(study, sweep.ACTIVATIONS, relation), settings.baseline_threshold)
    kinds: dict[str, Mapping[Fact, NeuronSet]] = {
        "found": found.neurons,
        "baseline": baseline.neurons,
        "activation": _most_active(study, relation, found.neurons, tick),
        "random": {
            fact: random_neurons(neurons, study.host, study.seeds(fact.key)) for fact, neurons in found.neurons.items()
        },
    }
    thresholds = {"found": found.share_threshold[relation], "baseline": baseline.share_threshold[relation]}
    write_sets(path, kinds, thresholds)


def write_sets(path: Path, kinds: Mapping[str, Mapping[Fact, NeuronSet]], thresholds: Mapping[str, float]) -> None:
    """Write neuron sets as records, by kind and fact, with the thresholds that some of the kinds came to rest at."""
    rows = [(fact, kind, neurons) for kind, sets in kinds.items() for fact, neurons in sets.items()]
    columns: dict[str, list[Any]] = {
        "relation": [fact.relation for fact, _, _ in rows],
        "key": [fact.key for fact, _, _ in rows],
        "neurons": [kind for _, kind, _ in rows],
        "layer": [[neuron.layer for neuron in neurons] for *_, neurons in rows],
        "index": [[neuron.index for neuron in neurons] for *_, neurons in rows],
        "share_threshold": [thresholds.get(kind, float("nan")) for _, kind, _ in rows],
    }
    write_records(path, columns, SCHEMA)


def refined(study: Study, scores: Attribution, threshold: float) -> RelationRefinement:
    """Refine scores as the settings say."""
    settings = study.settings
    return refine_by_relation(
        scores,
        attr_threshold=threshold,
        share_threshold=settings.share_threshold,
        step=settings.share_step,
        max_moves=settings.max_moves,
        min_prompts=settings.min_prompts,
    )


def _most_active(study: Study, relation: str, neurons: Mapping[Fact, NeuronSet], tick: Tick) -> dict[Fact, NeuronSet]:
    """Return as many neurons of highest activation, some facts at a time: means over prompts need all activations."""
    prompts, host = study.prompts(relation), study.host
    most = max(1, CELLS_AT_ONCE // (host.n_layers * host.d_mlp))
    groups: list[tuple[list[Fact], list[torch.Tensor]]] = []
    room = 0
    for fact, mine in prompts_by_fact(prompts).items():
        if len(mine) > room:
            groups.append(([], []))
            room = most
        groups[-1][0].append(fact)
        groups[-1][1].append(mine)
        room -= len(mine)
    active: dict[Fact, NeuronSet] = {}
    for facts, members in groups:
        part = prompts.select(torch.cat(members).to(prompts.tokens.device))
        activations = attribute(host.model, part, method="activation", memory_budget=study.memory_budget)
        active |= activation_neurons(activations, {fact: neurons[fact] for fact in facts})
        tick(len(active), len(neurons))
    return active


def _tables(study: Study) -> "dict[str, pd.DataFrame]":
    sets = {
        kind: {relation: list(study.neurons(kind, relation).values()) for relation in study.relations()}
        for kind in KINDS
    }
    how: dict[str, Any] = {"n_resamples": study.settings.n_resamples, "seed": study.settings.seed}
    across = study.settings.across_samples
    return {
        **table_2(sets, across_samples=across, **how),
        "figure3": layer_table(sets, study.host.n_layers, **how),
    }


STAGE = Stage(
    name="neurons",
    title="Refining; Table 2 and Figure 3",
    make=_make,
    tables=_tables,
    shown={
        "table2": Shown("Table 2: neurons of a fact, and how many two facts share, of one relation and of two"),
        "figure3": Shown("Figure 3: share of the neurons in each layer, beside an even spread"),
    },
    needs=(sweep.ATTRIBUTIONS, sweep.ACTIVATIONS),
    settings=(
        "attr_threshold", "baseline_threshold", "share_threshold", "share_step", "max_moves", "min_prompts", "seed",
    ),
    passes=lambda study, shard: Passes(whole=study.n_rows(shard.relation)),
)  # fmt: skip
