"""Stages ``predictions`` and ``neuron_scores``: details of each fact, prompt by prompt and neuron by neuron.

Records of ``predictions``, one row for each prompt of every queried fact, without intervention (``before``) and with
the found neurons of the fact suppressed (``after``):

    relation, key             of the fact
    text                      as the model reads it
    before, after             probability of the answer
    rank_before, rank_after   number of tokens that are more probable; for several answer tokens, the largest of these
    top_before, top_after     the most probable answer

A fact without found neurons has nothing to suppress: after equals before. The stage ``effects`` summarises the same
intervention, with random neurons as the control.

Records of ``neuron_scores``, one row for each fact and found neuron:

    relation, key
    layer, expert, index   of the neuron; no expert where the layer has one MLP
    score        mean attribution over the prompts of the fact
    low, high    its 95% interval, from prompts drawn anew (``kn_lens._core.intervals``); NaN below 8 prompts
    share        share of the prompts whose coarse set has the neuron
    n_prompts    number of prompts of the fact

The records of ``attributions`` lack the scores below ``keep`` of the prompt's largest. Such a score can be any number
below this threshold, also far below 0, so that counting it as 0 would be wrong by an unknown amount. These scores are
attributed again, layer by layer, for the prompts that lack them. They are few: a found neuron is in the coarse sets of
most prompts.

Neurons are found because they score high on these very prompts. The intervals therefore state how much a score varies
between wordings, and not how likely it is that a neuron was found by chance: for that, see the controls of ``effects``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens._core.bootstrap import bootstrap_table, fact_mean, fact_share, mean_intervals
from kn_lens._core.notation import key_columns
from kn_lens.attribution import attribute_in_parts
from kn_lens.facts import Fact
from kn_lens.interventions import Suppress, measure
from kn_lens.neurons import NeuronSet, coarse_thresholds, prompts_by_fact
from kn_lens.prompts import PromptBatch
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_records, write_rows
from kn_lens.runs.stages.attributions import ATTRIBUTIONS, read_scores
from kn_lens.runs.stages.neurons import NEURONS

if TYPE_CHECKING:
    import pandas as pd

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("text", pa.string()),
        ("before", pa.float64()),
        ("after", pa.float64()),
        ("rank_before", pa.int32()),
        ("rank_after", pa.int32()),
        ("top_before", pa.string()),
        ("top_after", pa.string()),
    ]
)
SCORES_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("layer", pa.int32()),
        ("expert", pa.int32()),
        ("index", pa.int32()),
        ("score", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("share", pa.float64()),
        ("n_prompts", pa.int32()),
    ]
)


# --- predictions ----------------------------------------------------------------------------------


def _make_predictions(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    prompts = context.prompts(shard.relation)
    found = context.neurons("found", shard.relation)
    facts = [prompts.facts[index] for index in prompts.fact_index.tolist()]
    effect = measure(
        context.host,
        prompts,
        Suppress([found[fact] for fact in facts]),
        memory_budget=context.memory_budget,
        progress=progress,
    )
    effect = effect.assign(key=[fact.key for fact in facts])
    write_records(path, effect, PREDICTIONS_SCHEMA)


def _prediction_passes(context: RunContext, shard: Shard) -> Passes:
    return Passes(whole=2 * context.n_rows(shard.relation))


# --- scores ---------------------------------------------------------------------------------------

Scores = dict[Fact, Float[Tensor, "prompt neuron"]]
"""Scores of each fact's found neurons under its prompts, for the facts that have some; NaN where not stored."""


def _make_scores(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    settings, prompts = context.settings, context.prompts(shard.relation)
    found = context.neurons("found", shard.relation)
    attribution = read_scores(context, ATTRIBUTIONS, shard.relation)
    scores: Scores = {}
    shares: dict[Fact, list[float]] = {}
    for fact, prompt_ids in prompts_by_fact(prompts).items():
        if not found[fact]:
            continue
        of_fact = attribution[prompt_ids.tolist()]
        stored_scores = of_fact.scores_of(found[fact])
        is_stored = stored_scores != 0  # a stored score of 0 is attributed again, and found to be 0
        least_scores = coarse_thresholds(of_fact, settings.attr_threshold)
        in_coarse_set = (stored_scores >= least_scores[:, None]) & is_stored
        scores[fact] = torch.where(is_stored, stored_scores, torch.nan).double()
        shares[fact] = in_coarse_set.double().mean(0).tolist()
    _attribute_missing(context, prompts, found, scores, progress)
    rows: list[dict[str, Any]] = []
    for fact, fact_scores in scores.items():
        generator = context.generator("neuron_scores", fact.key)
        intervals = mean_intervals(fact_scores.numpy(), settings.n_resamples, generator)
        columns = zip(found[fact], fact_scores.T.numpy(), intervals, shares[fact], strict=True)
        for neuron, neuron_scores, interval, share in columns:
            rows.append(
                {
                    "relation": fact.relation,
                    "key": fact.key,
                    **{name: values[0] for name, values in key_columns([neuron]).items()},
                    "score": neuron_scores.mean(),
                    **interval,
                    "share": share,
                    "n_prompts": len(fact_scores),
                }
            )
    write_rows(path, rows, SCORES_SCHEMA)


def _attribute_missing(
    context: RunContext,
    prompts: PromptBatch,
    found: Mapping[Fact, NeuronSet],
    scores: Scores,
    progress: Progress,
) -> None:
    """Replace the scores that are NaN: attribute their prompts again, in their layers."""
    settings = context.settings
    missing = _missing_cells(prompts, found, scores)
    for n_done, (layer, cells_of_prompt) in enumerate(missing.items(), start=1):
        prompt_ids = list(cells_of_prompt)
        parts = attribute_in_parts(
            context.host,
            prompts.select(prompt_ids),
            layers=[layer],
            quadrature=settings.quadrature,
            n_steps=settings.n_steps,
            tolerance=settings.tolerance,
            start=context.start(prompts.fact(0).relation),
            memory_budget=context.memory_budget,
        )
        for numbers, attribution in parts:
            for position, number in enumerate(numbers.tolist()):
                for fact, row, column in cells_of_prompt[prompt_ids[number]]:
                    neuron = list(found[fact])[column]
                    score = attribution[position : position + 1].scores_of([neuron])
                    scores[fact][row, column] = float(score)
        progress(n_done, len(missing))


def _missing_cells(
    prompts: PromptBatch, found: Mapping[Fact, NeuronSet], scores: Scores
) -> dict[int, dict[int, list[tuple[Fact, int, int]]]]:
    """Return the cells (fact, row, column) of the scores that are NaN, by layer and prompt."""
    prompt_ids = prompts_by_fact(prompts)
    missing: dict[int, dict[int, list[tuple[Fact, int, int]]]] = {}
    for fact, fact_scores in scores.items():
        neurons = list(found[fact])
        for row, column in fact_scores.isnan().nonzero().tolist():
            cells_of_prompt = missing.setdefault(neurons[column].layer, {})
            prompt = int(prompt_ids[fact][row])
            cells_of_prompt.setdefault(prompt, []).append((fact, row, column))
    return missing


def _score_tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the certainty of the neurons: means over a fact's neurons, then facts, then relations."""
    records = context.all_records(NEURON_SCORES)
    if records.empty:
        return {}
    is_positive = records["low"] > 0
    records["interval above 0"] = is_positive.where(records["low"].notna())
    records = records.rename(columns={"score": "mean score", "share": "share of prompts"})
    measures = ["mean score", "share of prompts", "interval above 0"]
    long = records.melt(["relation", "key"], measures, var_name="measure", value_name="mean")
    by_fact = long.dropna().groupby(["relation", "key", "measure"], sort=False, as_index=False)
    facts = by_fact.agg({"mean": "mean"})
    return {
        "neuron_scores": _score_table(context, facts, by_relation=False),
        "neuron_scores_by_relation": _score_table(context, facts, by_relation=True),
    }


def _score_table(context: RunContext, facts: "pd.DataFrame", by_relation: bool) -> "pd.DataFrame":
    import pandas as pd

    settings = context.settings
    parts = []
    for name, group in facts.groupby("measure", sort=False):
        statistic = fact_mean("mean") if name == "mean score" else fact_share("mean")
        table = bootstrap_table(
            group,
            ["measure"],
            statistic,
            by_relation=by_relation,
            n_resamples=settings.n_resamples,
            seed=settings.seed,
        )
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


PREDICTIONS = Stage(
    name="predictions",
    title="Answers with a fact's neurons on and suppressed",
    make=_make_predictions,
    needs=(NEURONS,),
    passes=_prediction_passes,
)
"""The answer in each prompt with the fact's neurons on and suppressed; no table."""

NEURON_SCORES = Stage(
    name="neuron_scores",
    title="Scores of each fact's neurons",
    make=_make_scores,
    tables=_score_tables,
    shown={
        "neuron_scores": TableDisplay("Certainty of neurons: mean score, share of prompts, share of intervals above 0")
    },
    needs=(ATTRIBUTIONS, NEURONS),
    settings=("seed", "n_resamples", "attr_threshold", "quadrature", "n_steps", "tolerance", "start"),
    # No passes are counted: few scores are attributed again, and their number is not known before.
)
"""The score of each found neuron, with its interval; tables ``neuron_scores`` and by relation."""
