"""Stages ``stability`` and ``methods``: checks that later work asks for.

``stability`` refines some facts of each relation again, from fewer prompts (drawn at random, several times), with other
thresholds and other quadratures, and compares with the set of the settings: the Jaccard index, 1 for equal sets. Its
control is that of the set with the set of another fact of the relation: what facts have in common anyway.

``methods`` takes as many neurons of highest mean score by other methods as were found, and switches them off: the truth
that scores stand for. Its control are random neurons of the same layers.

Records of ``stability``, one a comparison: ``relation``, ``key``, ``varied``, ``jaccard``, ``n_neurons`` of the varied
set. Of ``methods``, one a fact and method: ``relation``, ``key``, ``neurons`` (the method), ``n_neurons``,
``n_prompts``, ``before`` and ``after``, mean probabilities of the answer.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from jaxtyping import Bool
from torch import Tensor

from kn_lens._refining import prompts_by_fact, prompts_needed
from kn_lens.attribution import attribute
from kn_lens.effects import measure
from kn_lens.experiments import refining
from kn_lens.experiments.bootstrap import change_ratio, mean_of, summed_up, with_control
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Shown, Stage, Study, Tick, write_records
from kn_lens.experiments.sweep import COST_OF_POINT
from kn_lens.facts import Fact
from kn_lens.interventions import Suppress
from kn_lens.neuron_sets import NeuronSet
from kn_lens.neurons import coarse, matched_neurons
from kn_lens.overlap import jaccard

if TYPE_CHECKING:
    import pandas as pd

OTHER_FACT = "another fact"
SHARES = (0.25, 0.5, 0.75)
"""Of a fact's prompts."""
THRESHOLDS = {"attr_threshold": (0.1, 0.3), "share_threshold": (0.5, 0.9)}
RULES = {"left": 20, "right": 20, "midpoint": 20, "gauss-legendre": 10}
"""Other quadratures, by number of points."""
METHODS = ("integrated_gradients", "gradient_x_activation", "activation")

STABILITY_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("relation", "key", "varied")),
        ("jaccard", pa.float64()),
        ("n_neurons", pa.int32()),
    ]
)
METHODS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("relation", "key", "neurons")),
        *((name, pa.int32()) for name in ("n_neurons", "n_prompts")),
        *((name, pa.float64()) for name in ("before", "after")),
    ]
)

Members = dict[Fact, Bool[Tensor, "prompt n_layers d_mlp"]]
"""The coarse sets of each fact's prompts."""


def _make_stability(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    settings, facts = study.settings, _chosen(study, shard.relation)
    prompts = study.ask(facts)
    mine = prompts_by_fact(prompts)

    def members(threshold: float, **rule: Any) -> list[Members]:
        how = {"quadrature": settings.quadrature, "n_steps": settings.n_steps, "tolerance": settings.tolerance, **rule}
        attr = attribute(study.host.model, prompts, memory_budget=study.memory_budget, **how)
        return [
            {fact: cells[chosen] for fact, chosen in mine.items()}
            for cells in (coarse(attr, one) for one in (threshold, *THRESHOLDS["attr_threshold"]))
        ]

    standard, *thresholds = members(settings.attr_threshold)
    tick(1, 1 + len(RULES))
    share, least = settings.share_threshold, settings.min_prompts
    reference = {fact: _refined(cells, share, least) for fact, cells in standard.items()}
    rows: list[tuple[Fact, str, NeuronSet]] = []
    for fact, cells in standard.items():
        generator = study.generator("stability", fact.key)
        for part in SHARES:
            n = round(part * len(cells))
            for _ in range(settings.check_draws if n >= least else 0):
                drawn = torch.as_tensor(generator.choice(len(cells), n, replace=False))
                rows.append((fact, f"{part:.0%} of the prompts", _refined(cells[drawn], share, least)))
        for other in THRESHOLDS["share_threshold"]:
            rows.append((fact, f"share_threshold {other}", _refined(cells, other, least)))
        for threshold, varied in zip(THRESHOLDS["attr_threshold"], thresholds, strict=True):
            rows.append((fact, f"attr_threshold {threshold}", _refined(varied[fact], share, least)))
        others = [one for one in reference if one != fact]
        if others:
            rows.append((fact, OTHER_FACT, reference[others[generator.integers(len(others))]]))
    for number, (rule, n_steps) in enumerate(RULES.items()):
        varied, *_ = members(settings.attr_threshold, quadrature=rule, n_steps=n_steps)
        rows += [(fact, f"{rule} {n_steps}", _refined(cells, share, least)) for fact, cells in varied.items()]
        tick(2 + number, 1 + len(RULES))
    compared = [row for row in rows if reference[row[0]]]
    columns = {
        "relation": [fact.relation for fact, *_ in compared],
        "key": [fact.key for fact, *_ in compared],
        "varied": [varied for _, varied, _ in compared],
        "jaccard": [jaccard(reference[fact], neurons) for fact, _, neurons in compared],
        "n_neurons": [len(neurons) for *_, neurons in compared],
    }
    write_records(path, columns, STABILITY_SCHEMA)


def _refined(cells: Bool[Tensor, "prompt n_layers d_mlp"], share: float, least: int) -> NeuronSet:
    """Return the neurons in the coarse sets of enough prompts."""
    enough = cells.sum(0) >= prompts_needed(len(cells), share, least)
    return NeuronSet((layer, index) for layer, index in enough.nonzero().tolist())


def _make_methods(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    found = study.neurons("found", shard.relation)
    sets = {"random": study.neurons("random", shard.relation)}
    facts = [fact for fact in _chosen(study, shard.relation) if found[fact]]
    rows = []
    if facts:
        prompts = study.ask(facts)
        wanted = {fact: found[fact] for fact in facts}
        mine = {fact: chosen.cpu().numpy() for fact, chosen in prompts_by_fact(prompts).items()}
        kinds = {"refined": found}
        for number, method in enumerate(METHODS):
            attr = attribute(study.host.model, prompts, method=method, memory_budget=study.memory_budget)
            kinds[method] = matched_neurons(attr, wanted)
            tick(1 + number, 1 + len(METHODS))
        for kind, of_fact in {**kinds, **sets}.items():
            neurons = [of_fact[prompts.fact(prompt)] for prompt in range(len(prompts))]
            effect = measure(study.host.model, prompts, Suppress(neurons), memory_budget=study.memory_budget)
            for fact, chosen in mine.items():
                means = effect[["before", "after"]].iloc[chosen].mean()
                rows.append((fact.relation, fact.key, kind, len(of_fact[fact]), len(chosen), *means))
    columns = {name: [row[place] for row in rows] for place, name in enumerate(METHODS_SCHEMA.names)}
    write_records(path, columns, METHODS_SCHEMA)


def _chosen(study: Study, relation: str) -> list[Fact]:
    """Return the facts of a relation that the checks are made on."""
    facts = study.asked_facts(relation)
    n = min(len(facts), study.settings.check_facts)
    chosen = study.generator("checks", relation).choice(len(facts), size=n, replace=False)
    return [facts[i] for i in sorted(chosen.tolist())]


def _stability_tables(study: Study) -> "dict[str, pd.DataFrame]":
    records = study.all_records(STABILITY)
    if records.empty:
        return {}
    facts = records.groupby(["relation", "key", "varied"], sort=False, as_index=False).agg({"jaccard": "mean"})
    how: dict[str, Any] = {"n_resamples": study.settings.n_resamples, "seed": study.settings.seed}
    table = with_control(summed_up(facts, ["varied"], mean_of("jaccard"), **how), "varied", OTHER_FACT)
    return {"stability": table}


def _methods_tables(study: Study) -> "dict[str, pd.DataFrame]":
    """Return change ratios with the neurons of each method off, the most harmful first."""
    records = study.all_records(METHODS_STAGE)
    if records.empty:
        return {}
    how: dict[str, Any] = {"n_resamples": study.settings.n_resamples, "seed": study.settings.seed}
    table = with_control(summed_up(records, ["neurons"], change_ratio(), **how))
    return {"methods": table.sort_values("value", kind="stable", ignore_index=True)}


def _cost(points: int, study: Study, shard: Shard) -> float:
    n_asked = max(1, len(study.asked_facts(shard.relation)))
    rows = study.n_rows(shard.relation) * min(study.settings.check_facts, n_asked) / n_asked
    return rows * (10 + COST_OF_POINT * points * study.host.n_layers)


STABILITY = Stage(
    name="stability",
    title="Stability of the neurons",
    make=_make_stability,
    tables=_stability_tables,
    shown={"stability": Shown("Stability: likeness (Jaccard) of a fact's neurons to those found otherwise")},
    needs=(refining.STAGE,),
    settings=(
        "seed", "quadrature", "n_steps", "tolerance", "attr_threshold", "share_threshold", "min_prompts",
        "check_facts", "check_draws",
    ),
    cost=lambda study, shard: _cost(5 + sum(RULES.values()), study, shard),
)  # fmt: skip
METHODS_STAGE = Stage(
    name="methods",
    title="Other attribution methods, judged by ablation",
    make=_make_methods,
    tables=_methods_tables,
    shown={"methods": Shown("Other methods: change of P(answer), relative, with as many of their neurons off")},
    needs=(refining.STAGE,),
    settings=("seed", "check_facts"),
    cost=lambda study, shard: _cost(6, study, shard),
)
