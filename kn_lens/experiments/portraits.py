"""Stages ``predictions`` and ``neuron_scores``: what can be told of each fact, prompt by prompt and neuron by neuron.

Records of ``predictions``, one a prompt of every fact that is asked, read as it is and with the fact's found neurons
switched off:

    relation, key             of the fact
    text                      as the model is shown it
    before, after             probability of the answer
    rank_before, rank_after   how many tokens are more probable (for several answer tokens: of the worst of them)
    top_before, top_after     the most probable answer

Facts without found neurons have nothing to switch off: after is before. The stage ``effects`` sums this up, beside
random neurons.

Records of ``neuron_scores``, one a fact and found neuron:

    relation, key, layer, index
    score        mean attribution over the fact's prompts
    low, high    its 95% interval, from prompts drawn anew by the rule of ``_draws``; NaN of fewer than 8 prompts
    share        of the prompts whose coarse set has it
    n_prompts    of the fact

The records of ``attributions`` lack scores below ``keep`` of a prompt's largest, which may be anything from there down:
far below 0 too. Counting them as 0 would be wrong by an unknown amount, so they are attributed again, prompt and layer
by prompt and layer. They are few: a found neuron is in the coarse sets of most prompts.

Neurons are found because they score high on these very prompts, so that intervals say how much the score varies between
wordings, and not how likely it is that a neuron was found by chance: for that, see the controls of ``effects``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens._bootstrap import mean_of, share_of, summed_up
from kn_lens._draws import interval, resampled
from kn_lens._refining import coarse_of, prompts_by_fact
from kn_lens.attribution import attribute_in_parts
from kn_lens.effects import measure
from kn_lens.experiments import refining, sweep
from kn_lens.experiments.passes import Passes
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Shown, Stage, Study, Tick, write_records
from kn_lens.facts import Fact
from kn_lens.interventions import Suppress
from kn_lens.neuron_sets import NeuronSet
from kn_lens.prompts import PromptBatch

if TYPE_CHECKING:
    import pandas as pd

PREDICTIONS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("relation", "key", "text")),
        *((name, pa.float64()) for name in ("before", "after")),
        *((name, pa.int32()) for name in ("rank_before", "rank_after")),
        *((name, pa.string()) for name in ("top_before", "top_after")),
    ]
)
SCORES_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("relation", "key")),
        *((name, pa.int32()) for name in ("layer", "index")),
        *((name, pa.float64()) for name in ("score", "low", "high", "share")),
        ("n_prompts", pa.int32()),
    ]
)


def _make_predictions(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    prompts, found = study.prompts(shard.relation), study.neurons("found", shard.relation)
    facts = [prompts.facts[number] for number in prompts.fact_index.tolist()]
    intervention = Suppress([found[fact] for fact in facts])
    effect = measure(study.host.model, prompts, intervention, memory_budget=study.memory_budget, progress=tick)
    effect = effect.assign(key=[fact.key for fact in facts])
    write_records(path, {name: effect[name] for name in PREDICTIONS_SCHEMA.names}, PREDICTIONS_SCHEMA)


Scores = dict[Fact, Float[Tensor, "prompt neuron"]]
"""Of each fact that has neurons, under its prompts."""


def _make_scores(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    settings, prompts = study.settings, study.prompts(shard.relation)
    found = study.neurons("found", shard.relation)
    attr = sweep.scores(study, sweep.ATTRIBUTIONS, shard.relation)
    scores: Scores = {}
    shares: dict[Fact, list[float]] = {}
    for fact, mine in prompts_by_fact(prompts).items():
        if found[fact]:
            layers, indices = zip(*((one.layer, one.index) for one in found[fact]), strict=True)
            of_fact = attr.scores.index_select(0, mine).to_dense()
            stored = of_fact[:, layers, indices]
            there = stored != 0  # a score of 0 that is stored is attributed again, and found to be 0
            members = coarse_of(of_fact, settings.attr_threshold)[:, layers, indices] & there
            scores[fact] = torch.where(there, stored, torch.nan).double()
            shares[fact] = members.double().mean(0).tolist()
    _complete(study, prompts, found, scores, tick)
    rows: list[dict[str, Any]] = []
    for fact, of_fact in scores.items():
        n = len(of_fact)
        counts = resampled(n, settings.n_resamples, study.generator("neuron_scores", fact.key))
        weights = counts / counts.sum(1, keepdims=True)
        for neuron, mine, share in zip(found[fact], of_fact.T.numpy(), shares[fact], strict=True):
            row = {"relation": fact.relation, "key": fact.key, "layer": neuron.layer, "index": neuron.index}
            row |= {"score": mine.mean(), **interval(weights @ mine, np.array([n]))}
            rows.append(row | {"share": share, "n_prompts": n})
    write_records(path, {name: [row[name] for row in rows] for name in SCORES_SCHEMA.names}, SCORES_SCHEMA)


def _complete(study: Study, prompts: PromptBatch, found: Mapping[Fact, NeuronSet], scores: Scores, tick: Tick) -> None:
    """Put in the scores that are NaN, attributing these prompts again in these layers."""
    prompts_of, settings = prompts_by_fact(prompts), study.settings
    lacking: dict[int, dict[int, list[tuple[Fact, int, int]]]] = {}  # by layer, by prompt: where the score goes
    for fact, of_fact in scores.items():
        neurons = list(found[fact])
        for row, column in of_fact.isnan().nonzero().tolist():
            of_layer = lacking.setdefault(neurons[column].layer, {})
            of_layer.setdefault(int(prompts_of[fact][row]), []).append((fact, row, column))
    for done, (layer, of_layer) in enumerate(lacking.items()):
        chosen = list(of_layer)
        parts = attribute_in_parts(
            study.host.model, prompts.select(chosen), layers=[layer], quadrature=settings.quadrature,
            n_steps=settings.n_steps, tolerance=settings.tolerance, memory_budget=study.memory_budget,
        )  # fmt: skip
        for numbers, part in parts:
            for place, number in enumerate(numbers.tolist()):
                for fact, row, column in of_layer[chosen[number]]:
                    index = list(found[fact])[column].index
                    scores[fact][row, column] = float(part.scores[place, layer, index])
        tick(1 + done, len(lacking))


def _score_tables(study: Study) -> "dict[str, pd.DataFrame]":
    """Return how sure the neurons are: means over a fact's neurons, then facts, then relations."""
    import pandas as pd

    records = study.all_records(NEURON_SCORES)
    if records.empty:
        return {}
    records["interval above 0"] = (records["low"] > 0).where(records["low"].notna())
    measures = {"score": "mean score", "share": "share of prompts", "interval above 0": "interval above 0"}
    long = records.rename(columns=measures).melt(
        ["relation", "key"], list(measures.values()), var_name="measure", value_name="mean"
    )
    facts = long.dropna().groupby(["relation", "key", "measure"], sort=False, as_index=False).agg({"mean": "mean"})
    how: dict[str, Any] = {"n_resamples": study.settings.n_resamples, "seed": study.settings.seed}
    tables = {}
    for name, by_relation in (("neuron_scores", False), ("neuron_scores_by_relation", True)):
        parts = [
            summed_up(
                group, ["measure"], (mean_of if measure == "mean score" else share_of)("mean"),
                by_relation=by_relation, **how,
            )
            for measure, group in facts.groupby("measure", sort=False)
        ]  # fmt: skip
        tables[name] = pd.concat(parts, ignore_index=True)
    return tables


PREDICTIONS = Stage(
    name="predictions",
    title="Answers with a fact's neurons on and off",
    make=_make_predictions,
    needs=(refining.STAGE,),
    passes=lambda study, shard: Passes(whole=2 * study.n_rows(shard.relation)),
)
NEURON_SCORES = Stage(
    name="neuron_scores",
    title="How sure each fact's neurons are",
    make=_make_scores,
    tables=_score_tables,
    shown={"neuron_scores": Shown("How sure neurons are: mean score, prompts that have them, intervals above 0")},
    needs=(sweep.ATTRIBUTIONS, refining.STAGE),
    settings=("seed", "n_resamples", "attr_threshold", "quadrature", "n_steps", "tolerance"),
    # No passes that could be counted: hardly a score is attributed again.
)
