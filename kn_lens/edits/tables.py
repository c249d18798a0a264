"""Tables of the effects of edits, with bootstrap intervals over facts.

Every measure of a relation but fluency is a ratio of sums over the prompts of its facts, or the exponential of one:

    changed            sum(right before, not after) / sum(right before)
    success, top5, rank, mrr, and accuracy_before, accuracy_after      means over prompts
    perplexity         exp(mean(-log P(answer)))
    perplexity_growth  perplexity_after / perplexity_before - 1 = exp(mean(log P_before - log P_after)) - 1
    perplexity_rise    perplexity_after - perplexity_before
    fluency            entropy of the n-grams that the model writes after the subject, where measured: mean over facts

Over several relations a measure is the mean of theirs, with equal weights. Perplexities are those of all prompts
together: their mean would be dominated by the relation that the model knows least. The intervals of exponentials are
those of the exponents.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens._core import defaults
from kn_lens._core.bootstrap import (
    Statistic,
    WeightedMean,
    bootstrap_tables,
    fact_mean,
    fact_share,
    perplexity,
    ratio,
)
from kn_lens._core.checks import check_table
from kn_lens._core.intervals import SHARE
from kn_lens.edits.questions import OTHER_FACTS, OWN
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.interventions import KINDS

if TYPE_CHECKING:
    import pandas as pd


def _means(*columns: str) -> tuple[WeightedMean, ...]:
    return tuple(WeightedMean(column, "n_prompts") for column in columns)


def _share(column: str) -> Statistic:
    return fact_share(column, "n_prompts")


MEASURES = {
    "changed": Statistic(_means("lost", "right_before"), ratio, bounds=SHARE),
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
        _means("nll_before", "nll_after"),
        lambda before, after: after - before,
        pooled=True,
        transform=np.expm1,
    ),
    "perplexity_rise": perplexity("nll_after") - perplexity("nll_before"),
    "fluency_before": fact_mean("fluency_before"),
    "fluency": fact_mean("fluency"),
}
_REQUIRED_COLUMNS = (
    "relation",
    "neuron_set",
    "question",
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
    n_resamples: int = defaults.N_RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> "pd.DataFrame":
    """Summarise ``update_effects``, ``compare_edits`` or ``erase_effects``: every measure with a bootstrap interval.

    The facts of each edited relation (for an erasure: the facts measured) are sampled with replacement, ``n_resamples``
    times. The interval shows how much depends on the sample of facts, with the relations given. It covers the value of
    all possible facts with probability ``level``. Fewer than 8 facts have no interval (NaN), because none would have
    this coverage; facts without another fact of their relation do not count. The interval of a ratio may be lopsided
    about its value, if few facts make up most of the denominator.

    Args:
        effects: the table, or several tables of one kind concatenated.
        by_relation: return rows for each edited relation, instead of one for all: the mean of the relations, or the
            perplexity of all prompts together.
        n_resamples: number of bootstrap samples.
        level: coverage of the interval.
        seed: seed of the bootstrap.

    Returns:
        One row for each ``editor`` and ``n_edits`` (of ``compare_edits``), ``neuron_set``, ``dose`` (of updates),
        ``question``, (``relation``) and ``measure``: its ``value`` and the interval ``low`` to ``high``; ``n_facts``,
        the number of rows of ``effects`` behind it. The measures of the new answer (``success``, ``top5``, ``rank``,
        ``mrr``) have rows where questions have a new answer. Where ``success`` is 0, ``choose_lambdas`` finds other
        lambdas to try. ``changed`` is NaN for a relation
        without a prompt that was right before; a mean over relations leaves such a relation out. There is also no
        interval if more than 1 - ``level`` of the draws have no value, or if all facts have the same value (except for
        a share that is 0 or 1 in all facts).

    Raises:
        ArgumentError: no table, an empty one or one without the required columns, or a number out of range.

    >>> import pandas as pd
    >>> row = {"relation": "P36", "neuron_set": "found", "question": "same relation", "n_prompts": 10}
    >>> row |= {"nll_before": 1.0, "right_before": 0.8, "right_after": 0.6, "lost": 0.2, "nll_after": 1.5}
    >>> table = edit_table(pd.DataFrame([row])).set_index("measure")
    >>> round(float(table.value["changed"]), 3), round(float(table.value["perplexity_growth"]), 3)
    (0.25, 0.649)
    """
    _check_effects(effects)
    if n_resamples < 1 or not 0 < level < 1:
        raise ArgumentError(
            f"n_resamples={n_resamples}, level={level}; expected at least 1 sample and a level between 0 and 1."
        )
    table = bootstrap_tables(
        _sorted(effects),
        _labels(effects),
        MEASURES,
        by_relation=by_relation,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )
    return table.rename(columns={"n": "n_facts"})


def _check_effects(effects: Any) -> None:
    check_table(effects, "the table of kn_lens.update_effects or kn_lens.erase_effects", "effects")
    for column in _REQUIRED_COLUMNS:
        if column not in effects:
            raise ArgumentError(f"The effects have no column {column!r}.{did_you_mean(column, map(str, effects))}")
    if not len(effects):
        raise ArgumentError("The effects are empty; expected the table of update_effects or erase_effects.")


def _labels(effects: "pd.DataFrame") -> list[str]:
    """Return the columns that label a cell of the table."""
    return [column for column in ("editor", "n_edits", "neuron_set", "dose", "question") if column in effects]


def _sorted(effects: "pd.DataFrame") -> "pd.DataFrame":
    """Sort found neurons before controls, and questions with a new answer before other facts; editors as they come."""
    questions = [name for name in effects["question"] if name not in OTHER_FACTS]
    set_order = list(dict.fromkeys([*KINDS, *effects["neuron_set"]]))
    question_order = list(dict.fromkeys([OWN, *questions, *OTHER_FACTS]))
    ranks = effects.assign(
        neuron_set=effects["neuron_set"].map(set_order.index),
        question=effects["question"].map(question_order.index),
    )
    if "editor" in effects:
        ranks["editor"] = effects["editor"].map(list(dict.fromkeys(effects["editor"])).index)
    order = ranks.reset_index(drop=True).sort_values(_labels(effects), kind="stable").index
    return effects.iloc[order]
