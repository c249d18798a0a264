"""Stages ``stability`` and ``methods``: how far the neurons of a fact depend on the choices made to find them.

``stability`` refines some facts of each relation again, from fewer prompts (drawn at random, several times), with other
thresholds and with other quadratures. The result is compared with the set found with the settings by the Jaccard index,
1 for equal sets. The control is the Jaccard index with the set of another fact of the relation: what facts have in
common anyway.

``methods`` takes the neurons of highest mean score by each other attribution method, as many as were found, and
suppresses them: the effect that scores stand for. The control are random neurons of the same layers. Methods with one
pass for each neuron (``NEURON_BY_NEURON``) choose among candidates: the found neurons, and ``CANDIDATES`` times as many
by each other method.

Records of ``stability``, one row for each comparison:

    relation, key
    varied       what differs from the settings
    jaccard      Jaccard index of the varied set and the set found with the settings
    n_neurons    size of the varied set

Records of ``methods``, one row for each fact and method:

    relation, key
    neuron_set                the method
    n_neurons, n_prompts
    before, after             mean probabilities of the answer
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from jaxtyping import Bool
from torch import Tensor

from kn_lens._core.bootstrap import bootstrap_table, change_ratio, fact_share, with_control
from kn_lens._core.names import Method
from kn_lens.attribution import Attribution, attribute
from kn_lens.facts import Fact
from kn_lens.hosts import Host
from kn_lens.interventions import Suppress, measure
from kn_lens.neurons import NeuronSet, coarse, highest_neurons, jaccard, prompts_by_fact, prompts_needed
from kn_lens.prompts import PromptBatch
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes, integrated
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_rows
from kn_lens.runs.stages.attributions import attribution_passes
from kn_lens.runs.stages.neurons import NEURONS
from kn_lens.runs.stages.readouts import NEURONS_PER_FACT

if TYPE_CHECKING:
    import pandas as pd

OTHER_FACT = "another fact"
SHARES = (0.25, 0.5, 0.75)
"""Shares of a fact's prompts."""
ATTR_THRESHOLDS = (0.1, 0.3)
SHARE_THRESHOLDS = (0.5, 0.9)
SUM_POINTS, GAUSS_POINTS = 20, 10
"""Points of the other quadratures: of left, right and midpoint sums, and of Gauss-Legendre."""
N_RULES = 4
"""Number of other quadratures."""
LAYERWISE_METHODS = ("integrated_gradients", "gradient_x_activation", "activation")
NEURON_BY_NEURON: tuple[Method, ...] = ("ablation", "log_prob_gain")
CANDIDATES = 2
CANDIDATES_PER_FOUND = 4
"""Approximate number of candidates for each found neuron in all: the methods agree on some."""

STABILITY_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("varied", pa.string()),
        ("jaccard", pa.float64()),
        ("n_neurons", pa.int32()),
    ]
)
METHODS_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("neuron_set", pa.string()),
        ("n_neurons", pa.int32()),
        ("n_prompts", pa.int32()),
        ("before", pa.float64()),
        ("after", pa.float64()),
    ]
)

CoarseSets = Bool[Tensor, "prompt n_layers d_mlp"]
"""Whether each prompt's coarse set has each neuron."""


def _checked_facts(context: RunContext, relation: str) -> list[Fact]:
    return context.sample_facts(relation, context.settings.check_facts, "checks")


# --- stability ------------------------------------------------------------------------------------


def _make_stability(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    settings = context.settings
    prompts = context.make_prompts(_checked_facts(context, shard.relation))
    attribution = attribute(
        context.host,
        prompts,
        quadrature=settings.quadrature,
        n_steps=settings.n_steps,
        tolerance=settings.tolerance,
        start=context.start(shard.relation),
        memory_budget=context.memory_budget,
    )
    progress(1, 1 + N_RULES)
    reference = _refine_all(context, _coarse_sets(attribution, settings.attr_threshold))
    varied = list(_vary_prompts_and_thresholds(context, attribution, reference))
    for n_done, (rule, other_attribution) in enumerate(_vary_quadrature(context, prompts, shard.relation), start=2):
        sets = _refine_all(context, _coarse_sets(other_attribution, settings.attr_threshold))
        for fact, neurons in sets.items():
            varied.append((fact, rule, neurons))
        progress(n_done, 1 + N_RULES)
    rows: list[dict[str, Any]] = []
    for fact, name, neurons in varied:
        if not reference[fact]:
            continue
        rows.append(
            {
                "relation": fact.relation,
                "key": fact.key,
                "varied": name,
                "jaccard": jaccard(reference[fact], neurons),
                "n_neurons": len(neurons),
            }
        )
    write_rows(path, rows, STABILITY_SCHEMA)


def _vary_prompts_and_thresholds(
    context: RunContext, attribution: Attribution, reference: Mapping[Fact, NeuronSet]
) -> Iterator[tuple[Fact, str, NeuronSet]]:
    """Yield each fact's neurons from fewer prompts and with other thresholds, and the neurons of another fact."""
    settings = context.settings
    share_threshold, min_prompts = settings.share_threshold, settings.min_prompts
    other_sets = {threshold: _coarse_sets(attribution, threshold) for threshold in ATTR_THRESHOLDS}
    for fact, cells in _coarse_sets(attribution, settings.attr_threshold).items():
        generator = context.generator("stability", fact.key)
        for share in SHARES:
            n_prompts = round(share * len(cells))
            n_draws = settings.check_draws if n_prompts >= min_prompts else 0
            for _ in range(n_draws):
                drawn = torch.as_tensor(generator.choice(len(cells), n_prompts, replace=False))
                yield (
                    fact,
                    f"{share:.0%} of the prompts",
                    _refine(context, cells[drawn], share_threshold, min_prompts),
                )
        for threshold in SHARE_THRESHOLDS:
            yield fact, f"share_threshold {threshold}", _refine(context, cells, threshold, min_prompts)
        for threshold, sets in other_sets.items():
            yield fact, f"attr_threshold {threshold}", _refine(context, sets[fact], share_threshold, min_prompts)
        others = [other for other in reference if other != fact]
        if others:
            yield fact, OTHER_FACT, reference[others[generator.integers(len(others))]]


def _vary_quadrature(context: RunContext, prompts: PromptBatch, relation: str) -> Iterator[tuple[str, Attribution]]:
    """Yield the attributions of the prompts by other quadratures.

    The left and the right sum of equally many points share all points but one at either end: the right sum follows from
    the left one.
    """

    def attributed(quadrature: str, n_steps: int) -> Attribution:
        return attribute(
            context.host,
            prompts,
            quadrature=quadrature,
            n_steps=n_steps,
            start=context.start(relation),
            memory_budget=context.memory_budget,
        )

    left = attributed("left", SUM_POINTS)
    yield f"left {SUM_POINTS}", left
    at_start = attributed("left", 1).scores
    at_end = attributed("right", 1).scores
    yield f"right {SUM_POINTS}", replace(left, scores=left.scores + (at_end - at_start) / SUM_POINTS)
    yield f"midpoint {SUM_POINTS}", attributed("midpoint", SUM_POINTS)
    yield f"gauss-legendre {GAUSS_POINTS}", attributed("gauss-legendre", GAUSS_POINTS)


def _coarse_sets(attribution: Attribution, threshold: float) -> dict[Fact, CoarseSets]:
    """Return the coarse sets of each fact's prompts."""
    cells = coarse(attribution, threshold)
    sets = {}
    for fact, prompt_ids in prompts_by_fact(attribution.prompts).items():
        sets[fact] = cells[prompt_ids]
    return sets


def _refine_all(context: RunContext, coarse_sets: Mapping[Fact, CoarseSets]) -> dict[Fact, NeuronSet]:
    """Return each fact's neurons with the thresholds of the settings."""
    settings = context.settings
    sets = {}
    for fact, cells in coarse_sets.items():
        sets[fact] = _refine(context, cells, settings.share_threshold, settings.min_prompts)
    return sets


def _refine(context: RunContext, cells: CoarseSets, share_threshold: float, min_prompts: int) -> NeuronSet:
    """Return the neurons in the coarse sets of enough prompts."""
    in_enough = cells.sum(0) >= prompts_needed(len(cells), share_threshold, min_prompts)
    return NeuronSet(context.host.layout.key(layer, row) for layer, row in in_enough.nonzero().tolist())


def _stability_tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the mean Jaccard index of each variation: over draws, then facts, then relations."""
    records = context.all_records(STABILITY)
    if records.empty:
        return {}
    settings = context.settings
    by_fact = records.groupby(["relation", "key", "varied"], sort=False, as_index=False)
    facts = by_fact.agg({"jaccard": "mean"})
    table = bootstrap_table(
        facts, ["varied"], fact_share("jaccard"), n_resamples=settings.n_resamples, seed=settings.seed
    )
    return {"stability": with_control(table, "varied", OTHER_FACT)}


def _stability_passes(context: RunContext, shard: Shard) -> Passes:
    n_rows, n_layers = _n_rows(context, shard.relation), context.host.n_layers
    passes = attribution_passes(context, n_rows)
    passes += integrated(n_rows, n_layers, "left", SUM_POINTS)
    passes += integrated(n_rows, n_layers, "left", 1)
    passes += integrated(n_rows, n_layers, "right", 1)
    passes += integrated(n_rows, n_layers, "midpoint", SUM_POINTS)
    passes += integrated(n_rows, n_layers, "gauss-legendre", GAUSS_POINTS)
    return passes


# --- methods --------------------------------------------------------------------------------------


def _make_methods(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    found = context.neurons("found", shard.relation)
    facts = [fact for fact in _checked_facts(context, shard.relation) if found[fact]]
    if not facts:
        write_rows(path, [], METHODS_SCHEMA)
        return
    prompts = context.make_prompts(facts)
    own = {fact: found[fact] for fact in facts}
    sets = {"refined": found, **_neurons_by_method(context, prompts, own, progress)}
    sets["random"] = context.neurons("random", shard.relation)
    # The prompts go through the model once for each method, all together: those of some facts would not fill a pass.
    n_prompts = len(prompts)
    neurons: list[NeuronSet] = []
    for method_sets in sets.values():
        neurons += [method_sets[prompts.fact(prompt)] for prompt in range(n_prompts)]
    copies = prompts.select(torch.arange(n_prompts).repeat(len(sets)))
    effect = measure(context.host, copies, Suppress(neurons), memory_budget=context.memory_budget)
    rows: list[dict[str, Any]] = []
    for number, (method, method_sets) in enumerate(sets.items()):
        of_method = effect[["before", "after"]].iloc[number * n_prompts : (number + 1) * n_prompts]
        for fact, prompt_ids in prompts_by_fact(prompts).items():
            means = of_method.iloc[prompt_ids.tolist()].mean()
            rows.append(
                {
                    "relation": fact.relation,
                    "key": fact.key,
                    "neuron_set": method,
                    "n_neurons": len(method_sets[fact]),
                    "n_prompts": len(prompt_ids),
                    "before": means["before"],
                    "after": means["after"],
                }
            )
    write_rows(path, rows, METHODS_SCHEMA)


def _neurons_by_method(
    context: RunContext, prompts: PromptBatch, found: Mapping[Fact, NeuronSet], progress: Progress
) -> dict[str, dict[Fact, NeuronSet]]:
    """Return as many neurons as were found for each fact, of highest mean score by each other method."""
    host = context.host
    n_found = {}
    n_candidates = {}
    for fact, neurons in found.items():
        n_found[fact] = len(neurons)
        n_candidates[fact] = min(CANDIDATES * len(neurons), host.n_layers * host.d_mlp)
    neuron_by_neuron = _neuron_by_neuron(host)
    n_steps = len(LAYERWISE_METHODS) + len(neuron_by_neuron) + 1
    candidates = dict(found)
    sets: dict[str, dict[Fact, NeuronSet]] = {}
    for n_done, method in enumerate(LAYERWISE_METHODS, start=1):
        scores = attribute(host, prompts, method=method, memory_budget=context.memory_budget)
        sets[method] = highest_neurons(scores, n_found)
        for fact, neurons in highest_neurons(scores, n_candidates).items():
            candidates[fact] = candidates[fact] | neurons
        progress(n_done, n_steps)
    for n_done, method in enumerate(neuron_by_neuron, start=1 + len(LAYERWISE_METHODS)):
        scores = attribute(
            host,
            prompts,
            method=method,
            neurons=candidates,
            memory_budget=context.memory_budget,
        )
        sets[method] = highest_neurons(scores, n_found)
        progress(n_done, n_steps)
    return sets


def _neuron_by_neuron(host: Host) -> list[Method]:
    """Return the methods with a pass for each neuron: those that need a read-out only where there is one."""
    return [method for method in NEURON_BY_NEURON if host.has_readouts or method != "log_prob_gain"]


def _methods_tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the change ratio with the neurons of each method suppressed, the most harmful method first."""
    records = context.all_records(METHODS)
    if records.empty:
        return {}
    settings = context.settings
    table = bootstrap_table(
        records, ["neuron_set"], change_ratio(), n_resamples=settings.n_resamples, seed=settings.seed
    )
    table = with_control(table)
    return {"methods": table.sort_values("value", kind="stable", ignore_index=True)}


def _methods_passes(context: RunContext, shard: Shard) -> Passes:
    """Count gradients and activations, two passes for each candidate, and the answers without each method's neurons."""
    n_rows = _n_rows(context, shard.relation) * context.share_with_neurons(shard.relation)
    n_layers = context.host.n_layers
    n_candidates = CANDIDATES_PER_FOUND * _neurons_per_fact(context, shard.relation)
    n_methods = 2 + len(LAYERWISE_METHODS) + len(NEURON_BY_NEURON)
    return n_rows * (
        integrated(1, n_layers)
        + Passes(whole=4, resumed=2 * n_layers, whole_gradients=1)  # two layer by layer, one with a backward pass
        + Passes(resumed=len(NEURON_BY_NEURON) * n_candidates, whole=2 * n_methods)
    )


# --- estimates ------------------------------------------------------------------------------------


def _n_rows(context: RunContext, relation: str) -> float:
    """Return the approximate number of rows of the checked facts."""
    n_facts = max(1, len(context.queried_facts(relation)))
    return context.n_rows(relation) * min(context.settings.check_facts, n_facts) / n_facts


def _neurons_per_fact(context: RunContext, relation: str) -> float:
    """Return the mean number of neurons of the facts that have some; an estimate until the neurons are known."""
    found = context.n_neurons("found", relation)
    if found is None:
        return NEURONS_PER_FACT
    sizes = [size for size in found.values() if size]
    return sum(sizes) / max(1, len(sizes))


STABILITY = Stage(
    name="stability",
    title="Stability of the neurons",
    make=_make_stability,
    tables=_stability_tables,
    shown={"stability": TableDisplay("Stability: Jaccard index of a fact's neurons and those of other choices")},
    needs=(NEURONS,),
    settings=(
        "seed",
        "quadrature",
        "n_steps",
        "tolerance",
        "start",
        "attr_threshold",
        "share_threshold",
        "min_prompts",
        "check_facts",
        "check_draws",
    ),
    passes=_stability_passes,
)
"""Likeness of the neurons to those found with other choices; table ``stability``."""

METHODS = Stage(
    name="methods",
    title="Other attribution methods, judged by ablation",
    make=_make_methods,
    tables=_methods_tables,
    shown={"methods": TableDisplay("Other methods: relative change of P(answer), as many of their neurons suppressed")},
    needs=(NEURONS,),
    settings=("seed", "check_facts"),
    version=2,
    passes=_methods_passes,
)
"""Effect of suppressing the neurons of each attribution method; table ``methods``."""
