"""Stages ``stability`` and ``methods``: checks that later work asks for.

``stability`` refines some facts of each relation again, from fewer prompts (drawn at random, several times), with other
thresholds and other quadratures, and compares with the set of the settings: the Jaccard index, 1 for equal sets. Its
control is that of the set with the set of another fact of the relation: what facts have in common anyway.

``methods`` takes as many neurons of highest mean score by other methods as were found, and switches them off: the truth
that scores stand for. Its control are random neurons of the same layers. Methods that need a pass for every neuron
(``NEURON_BY_NEURON``) choose among candidates: those found, and of each other method ``CANDIDATES`` times as many.

Records of ``stability``, one a comparison: ``relation``, ``key``, ``varied``, ``jaccard``, ``n_neurons`` of the varied
set. Of ``methods``, one a fact and method: ``relation``, ``key``, ``neurons`` (the method), ``n_neurons``,
``n_prompts``, ``before`` and ``after``, mean probabilities of the answer.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from jaxtyping import Bool
from torch import Tensor

from kn_lens._bootstrap import change_ratio, share_of, summed_up, with_control
from kn_lens._refining import prompts_by_fact, prompts_needed
from kn_lens.attribution import Attribution, attribute
from kn_lens.effects import measure
from kn_lens.experiments import refining
from kn_lens.experiments.passes import Passes, integrated
from kn_lens.experiments.readouts import NEURONS
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Shown, Stage, Study, Tick, write_records
from kn_lens.experiments.sweep import passes_of
from kn_lens.facts import Fact
from kn_lens.interventions import Suppress
from kn_lens.neuron_sets import NeuronSet
from kn_lens.neurons import coarse, highest_neurons
from kn_lens.overlap import jaccard
from kn_lens.prompts import PromptBatch

if TYPE_CHECKING:
    import pandas as pd

OTHER_FACT = "another fact"
SHARES = (0.25, 0.5, 0.75)
"""Of a fact's prompts."""
THRESHOLDS = {"attr_threshold": (0.1, 0.3), "share_threshold": (0.5, 0.9)}
SUM_POINTS, GAUSS_POINTS = 20, 10
"""Of other quadratures: left, right and midpoint sums, and Gauss-Legendre."""
N_RULES = 4
METHODS = ("integrated_gradients", "gradient_x_activation", "activation")
NEURON_BY_NEURON = ("ablation", "log_prob_gain")
CANDIDATES = 2
CANDIDATES_PER_FOUND = 4
"""In all, more or less: methods agree on some."""

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
    settings = study.settings
    prompts = study.ask(study.some_facts(shard.relation, settings.check_facts, "checks"))
    mine = prompts_by_fact(prompts)

    def attributed(quadrature: str, n_steps: int | None, **how: Any) -> Attribution:
        how = {"quadrature": quadrature, "n_steps": n_steps, "memory_budget": study.memory_budget, **how}
        return attribute(study.host.model, prompts, **how)

    def members(attr: Attribution, threshold: float) -> Members:
        cells = coarse(attr, threshold)
        return {fact: cells[chosen] for fact, chosen in mine.items()}

    attr = attributed(settings.quadrature, settings.n_steps, tolerance=settings.tolerance)
    standard = members(attr, settings.attr_threshold)
    tick(1, 1 + N_RULES)
    thresholds = {threshold: members(attr, threshold) for threshold in THRESHOLDS["attr_threshold"]}
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
        for threshold, varied in thresholds.items():
            rows.append((fact, f"attr_threshold {threshold}", _refined(varied[fact], share, least)))
        others = [one for one in reference if one != fact]
        if others:
            rows.append((fact, OTHER_FACT, reference[others[generator.integers(len(others))]]))
    for number, (rule, attr) in enumerate(_by_other_rules(attributed)):
        varied = members(attr, settings.attr_threshold)
        rows += [(fact, rule, _refined(cells, share, least)) for fact, cells in varied.items()]
        tick(2 + number, 1 + N_RULES)
    compared = [row for row in rows if reference[row[0]]]
    columns = {
        "relation": [fact.relation for fact, *_ in compared],
        "key": [fact.key for fact, *_ in compared],
        "varied": [varied for _, varied, _ in compared],
        "jaccard": [jaccard(reference[fact], neurons) for fact, _, neurons in compared],
        "n_neurons": [len(neurons) for *_, neurons in compared],
    }
    write_records(path, columns, STABILITY_SCHEMA)


def _by_other_rules(attributed: Callable[[str, int], Attribution]) -> Iterator[tuple[str, Attribution]]:
    """Yield the attributions by other quadratures.

    The left sum and the right one of as many points have all but an end in common: one follows from the other.
    """
    left = attributed("left", SUM_POINTS)
    yield f"left {SUM_POINTS}", left
    at_start, at_end = (attributed(end, 1).scores for end in ("left", "right"))
    yield f"right {SUM_POINTS}", replace(left, scores=left.scores + (at_end - at_start) / SUM_POINTS)
    yield f"midpoint {SUM_POINTS}", attributed("midpoint", SUM_POINTS)
    yield f"gauss-legendre {GAUSS_POINTS}", attributed("gauss-legendre", GAUSS_POINTS)


def _refined(cells: Bool[Tensor, "prompt n_layers d_mlp"], share: float, least: int) -> NeuronSet:
    """Return the neurons in the coarse sets of enough prompts."""
    enough = cells.sum(0) >= prompts_needed(len(cells), share, least)
    return NeuronSet((layer, index) for layer, index in enough.nonzero().tolist())


def _make_methods(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    found = study.neurons("found", shard.relation)
    chosen = study.some_facts(shard.relation, study.settings.check_facts, "checks")
    facts = [fact for fact in chosen if found[fact]]
    rows = []
    if facts:
        prompts = study.ask(facts)
        mine = {fact: chosen.tolist() for fact, chosen in prompts_by_fact(prompts).items()}
        others = _by_other_methods(study, prompts, {fact: found[fact] for fact in facts}, tick)
        for kind, of_fact in {"refined": found, **others, "random": study.neurons("random", shard.relation)}.items():
            neurons = [of_fact[prompts.fact(prompt)] for prompt in range(len(prompts))]
            effect = measure(study.host.model, prompts, Suppress(neurons), memory_budget=study.memory_budget)
            for fact, chosen in mine.items():
                means = effect[["before", "after"]].iloc[chosen].mean()
                rows.append((fact.relation, fact.key, kind, len(of_fact[fact]), len(chosen), *means))
    columns = {name: [row[place] for row in rows] for place, name in enumerate(METHODS_SCHEMA.names)}
    write_records(path, columns, METHODS_SCHEMA)


def _by_other_methods(
    study: Study, prompts: PromptBatch, found: Mapping[Fact, NeuronSet], tick: Tick
) -> dict[str, dict[Fact, NeuronSet]]:
    """Return as many neurons as were found, of highest mean score by each other method."""
    host = study.host
    how: dict[str, Any] = {"memory_budget": study.memory_budget}
    n_found = {fact: len(neurons) for fact, neurons in found.items()}
    n_more = {fact: min(CANDIDATES * n, host.n_layers * host.d_mlp) for fact, n in n_found.items()}
    n_steps = len(METHODS) + len(NEURON_BY_NEURON) * len(found) + 1
    candidates = dict(found)
    by_method: dict[str, dict[Fact, NeuronSet]] = {}
    for done, method in enumerate(METHODS, start=1):
        attr = attribute(host.model, prompts, method=method, **how)
        by_method[method] = highest_neurons(attr, n_found)
        candidates = {fact: candidates[fact] | more for fact, more in highest_neurons(attr, n_more).items()}
        tick(done, n_steps)
    prompts_of = prompts_by_fact(prompts)
    for done, (method, fact) in enumerate(product(NEURON_BY_NEURON, found), start=1 + len(METHODS)):
        attr = attribute(host.model, prompts.select(prompts_of[fact]), method=method, neurons=candidates[fact], **how)
        by_method.setdefault(method, {}).update(highest_neurons(attr, {fact: n_found[fact]}))
        tick(done, n_steps)
    return by_method


def _stability_tables(study: Study) -> "dict[str, pd.DataFrame]":
    records = study.all_records(STABILITY)
    if records.empty:
        return {}
    facts = records.groupby(["relation", "key", "varied"], sort=False, as_index=False).agg({"jaccard": "mean"})
    how: dict[str, Any] = {"n_resamples": study.settings.n_resamples, "seed": study.settings.seed}
    table = with_control(summed_up(facts, ["varied"], share_of("jaccard"), **how), "varied", OTHER_FACT)
    return {"stability": table}


def _methods_tables(study: Study) -> "dict[str, pd.DataFrame]":
    """Return change ratios with the neurons of each method off, the most harmful first."""
    records = study.all_records(METHODS_STAGE)
    if records.empty:
        return {}
    how: dict[str, Any] = {"n_resamples": study.settings.n_resamples, "seed": study.settings.seed}
    table = with_control(summed_up(records, ["neurons"], change_ratio(), **how))
    return {"methods": table.sort_values("value", kind="stable", ignore_index=True)}


def _rows(study: Study, relation: str) -> float:
    n_asked = max(1, len(study.asked_facts(relation)))
    return study.n_rows(relation) * min(study.settings.check_facts, n_asked) / n_asked


def _stability_passes(study: Study, shard: Shard) -> Passes:
    rows, n_layers = _rows(study, shard.relation), study.host.n_layers
    rules = (
        ("left", SUM_POINTS), ("left", 1), ("right", 1), ("midpoint", SUM_POINTS), ("gauss-legendre", GAUSS_POINTS),
    )  # fmt: skip
    return sum((integrated(rows, n_layers, *rule) for rule in rules), passes_of(study, rows))


def _methods_passes(study: Study, shard: Shard) -> Passes:
    """Gradients, activations, a pass for each candidate by two methods, and answers with each method's neurons off."""
    rows, n_layers = _rows(study, shard.relation) * study.share_with_neurons(shard.relation), study.host.n_layers
    candidates = CANDIDATES_PER_FOUND * _neurons_per_fact(study, shard.relation)
    n_read = 2 + len(METHODS) + len(NEURON_BY_NEURON)
    return rows * (
        integrated(1, n_layers)
        + Passes(whole=4, resumed=2 * n_layers, whole_gradients=1)  # two layer by layer, one with a backward pass
        + Passes(resumed=len(NEURON_BY_NEURON) * candidates, whole=2 * n_read)
    )


def _neurons_per_fact(study: Study, relation: str) -> float:
    if study.run.noted("neurons", Shard(relation)) is None:
        return NEURONS
    sizes = [len(neurons) for neurons in study.neurons("found", relation).values() if neurons]
    return sum(sizes) / max(1, len(sizes))


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
    passes=_stability_passes,
)  # fmt: skip
METHODS_STAGE = Stage(
    name="methods",
    title="Other attribution methods, judged by ablation",
    make=_make_methods,
    tables=_methods_tables,
    shown={"methods": Shown("Other methods: change of P(answer), relative, with as many of their neurons off")},
    needs=(refining.STAGE,),
    settings=("seed", "check_facts"),
    version=2,
    passes=_methods_passes,
)
