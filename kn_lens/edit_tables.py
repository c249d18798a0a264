"""Summing up what edits did, with bootstrap intervals over facts.

Every measure of a relation is a ratio of sums over the prompts of its facts, or its exponential:

    changed            sum(right before, not after) / sum(right before)
    success, top5, rank, mrr, and accuracy_before, accuracy_after      means over prompts
    perplexity         exp(mean(-log P(answer)))
    perplexity_growth  perplexity_after / perplexity_before - 1 = exp(mean(log P_before - log P_after)) - 1
    perplexity_rise    perplexity_after - perplexity_before

Over several relations it is the mean of theirs, each counting alike; but perplexities are of all their prompts
together: their mean would be that of the relation that the model knows least. The intervals of exponentials are taken
of the exponents.
"""

from typing import TYPE_CHECKING

import numpy as np

from kn_lens._bootstrap import Mean, Statistic, all_summed_up, perplexity, share, share_of
from kn_lens._draws import SHARE
from kn_lens.edit_questions import OWN, SCOPES
from kn_lens.effects import KINDS
from kn_lens.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd


def _means(*columns: str) -> tuple[Mean, ...]:
    return tuple(Mean(column, "n_prompts") for column in columns)


def _share(column: str) -> Statistic:
    return share_of(column, "n_prompts")


MEASURES = {
    "changed": Statistic(_means("lost", "right_before"), share, within=SHARE),
    "success_before": _share("new_right_before"),
    "success": _share("new_right_after"),
    "top5_before": _share("new_top5_before"),
    "top5": _share("new_top5_after"),
    "rank_before": Statistic(_means("new_rank_before")),
    "rank": Statistic(_means("new_rank_after")),
    "mrr_before": Statistic(_means("new_mrr_before")),
    "mrr": Statistic(_means("new_mrr_after")),
    "accuracy_before": _share("right_before"),
    "accuracy_after": _share("right_after"),
    "perplexity_before": perplexity("nll_before"),
    "perplexity_after": perplexity("nll_after"),
    "perplexity_growth": Statistic(
        _means("nll_before", "nll_after"), lambda before, after: after - before, pooled=True, shown=np.expm1
    ),
    "perplexity_rise": perplexity("nll_after") - perplexity("nll_before"),
}
_NEEDED = (
    "relation",
    "neurons",
    "asked",
    "n_prompts",
    "right_before",
    "right_after",
    "lost",
    "nll_before",
    "nll_after",
)


def edit_table(
    effects: "pd.DataFrame",
    *,
    by_relation: bool = False,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> "pd.DataFrame":
    """Sum up ``update_effects`` or ``erase_effects``: every measure with a bootstrap interval.

    The facts of each edited relation (of an erased one: the facts measured) are drawn anew, with replacement,
    ``n_resamples`` times. The interval says how much depends on which facts were taken, the relations being given: it
    is to hold the value of all facts that could have been taken so often as ``level`` says. There is none (NaN) of
    fewer than 8 facts, where none would do so; facts without another of their relation do not count. It may lie
    lopsided about the value of a ratio, where few facts make up most of what is divided by.

    Args:
        effects: the table, or several of one kind concatenated.
        by_relation: rows for each edited relation, instead of one for all: the mean of the relations, but perplexities
            of all prompts together.
        n_resamples: bootstrap samples.
        level: of the interval.
        seed: of the bootstrap.

    Returns:
        One row for each ``neurons``, ``dose`` (of updates), ``asked``, (``relation``) and ``measure``: its ``value``
        and the interval ``low`` to ``high``; ``n_facts``, the rows of ``effects`` behind it. The measures of the new
        answer (``success``, ``top5``, ``rank``, ``mrr``) are there where a question should get one. ``changed`` is NaN
        for a relation without a prompt that was right before; a mean over relations leaves such a relation out. There
        is no interval either where more than 1 - ``level`` of the draws have no value, or where all facts are alike
        (but of a share that is 0 or 1 of all).

    Raises:
        ArgumentError: an empty table or one without the columns needed, or a number out of range.

    >>> import pandas as pd
    >>> row = {"relation": "P36", "neurons": "found", "asked": "same relation", "n_prompts": 10, "nll_before": 1.0}
    >>> row |= {"right_before": 0.8, "right_after": 0.6, "lost": 0.2, "nll_after": 1.5}
    >>> table = edit_table(pd.DataFrame([row])).set_index("measure")
    >>> round(float(table.value["changed"]), 3), round(float(table.value["perplexity_growth"]), 3)
    (0.25, 0.649)
    """
    for column in _NEEDED:
        if column not in effects:
            raise ArgumentError(f"The effects have no column {column!r}.{did_you_mean(column, map(str, effects))}")
    if not len(effects):
        raise ArgumentError("The effects are empty; expected the table of update_effects or erase_effects.")
    if n_resamples < 1 or not 0 < level < 1:
        raise ArgumentError(
            f"n_resamples={n_resamples}, level={level}; expected at least 1 sample and a level between 0 and 1."
        )
    keys = [key for key in ("neurons", "dose", "asked") if key in effects]
    return all_summed_up(
        _ordered(effects), keys, MEASURES, by_relation=by_relation, n_resamples=n_resamples, level=level, seed=seed
    ).rename(columns={"n": "n_facts"})


def _ordered(effects: "pd.DataFrame") -> "pd.DataFrame":
    """Put found neurons before controls, then questions that an edit should change before other facts."""
    questions = [asked for asked in effects["asked"] if asked not in SCOPES]
    neurons = list(dict.fromkeys([*KINDS, *effects["neurons"]]))
    asked = list(dict.fromkeys([OWN, *questions, *SCOPES]))
    places = {"neurons": effects["neurons"].map(neurons.index), "asked": effects["asked"].map(asked.index)}
    by = [key for key in ("neurons", "dose", "asked") if key in effects]
    return effects.iloc[effects.assign(**places).reset_index(drop=True).sort_values(by, kind="stable").index]
