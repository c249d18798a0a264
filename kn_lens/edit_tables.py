"""Summing up what edits did, with bootstrap intervals over facts.

Every measure of a relation is a ratio of sums over the prompts of its facts, or its exponential:

    changed            sum(right before, not after) / sum(right before)
    success, top5, rank, mrr, and accuracy_before, accuracy_after      means over prompts
    perplexity         exp(mean(-log P(answer)))
    perplexity_growth  perplexity_after / perplexity_before - 1 = exp(mean(log P_before - log P_after)) - 1
    perplexity_rise    perplexity_after - perplexity_before

Over several relations it is the mean of theirs, each counting alike; but perplexities are of all their prompts
together: their mean would be that of the relation that the model knows least.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from kn_lens._draws import interval, mean_of_known
from kn_lens.edit_questions import OWN, SCOPES
from kn_lens.effects import KINDS
from kn_lens.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd


class _Measure(NamedTuple):
    """What is made of sums over prompts.

    Attributes:
        columns: of means over a fact's prompts.
        of_means: the measure, from the means of these over all prompts.
        pooled: whether that of several relations is of their prompts together, instead of the mean of theirs.
    """

    columns: tuple[str, ...]
    of_means: Callable[..., np.ndarray] = np.asarray
    pooled: bool = False

    def is_in(self, sums: "_Sums") -> bool:
        """Return whether a relation has what it is made from."""
        return all(column in sums for column in self.columns)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


_NLL = ("nll_before", "nll_after")
MEASURES = {
    "changed": _Measure(("lost", "right_before"), _share),
    "success_before": _Measure(("new_right_before",)),
    "success": _Measure(("new_right_after",)),
    "top5_before": _Measure(("new_top5_before",)),
    "top5": _Measure(("new_top5_after",)),
    "rank_before": _Measure(("new_rank_before",)),
    "rank": _Measure(("new_rank_after",)),
    "mrr_before": _Measure(("new_mrr_before",)),
    "mrr": _Measure(("new_mrr_after",)),
    "accuracy_before": _Measure(("right_before",)),
    "accuracy_after": _Measure(("right_after",)),
    "perplexity_before": _Measure(("nll_before",), np.exp, pooled=True),
    "perplexity_after": _Measure(("nll_after",), np.exp, pooled=True),
    "perplexity_growth": _Measure(_NLL, lambda before, after: np.expm1(after - before), pooled=True),
    "perplexity_rise": _Measure(_NLL, lambda before, after: np.exp(after) - np.exp(before), pooled=True),
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
    ``n_resamples`` times; the interval holds the middle ``level`` of what comes out. It says how much depends on which
    facts were taken, the relations being given; a relation with one fact adds nothing to it. It may lie lopsided about
    the value of a ratio, where few facts make up most of what is divided by.

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
        is no interval (NaN) where more than 1 - ``level`` of the draws have no value.

    Raises:
        ArgumentError: an empty table or one without the columns needed, or a number out of range.

    >>> import pandas as pd
    >>> row = {"relation": "P36", "neurons": "found", "asked": "same relation", "n_prompts": 10, "nll_before": 1.0}
    >>> row |= {"right_before": 0.8, "right_after": 0.6, "lost": 0.2, "nll_after": 1.5}
    >>> table = edit_table(pd.DataFrame([row])).set_index("measure")
    >>> round(float(table.value["changed"]), 3), round(float(table.value["perplexity_growth"]), 3)
    (0.25, 0.649)
    """
    import pandas as pd

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
    generator = np.random.default_rng(seed)
    rows = []
    for _, cell in _ordered(effects).groupby(keys, observed=True):
        about = cell[keys].iloc[0].to_dict()
        groups = cell.groupby("relation", sort=False)
        sums = {str(name): _summed(group, n_resamples, generator) for name, group in groups}
        n_facts = cell["relation"].value_counts()
        parts = [({"relation": name}, [name]) for name in sums] if by_relation else [({}, list(sums))]
        for part, names in parts:
            for measure in MEASURES:
                those = {name: sums[name] for name in names if MEASURES[measure].is_in(sums[name])}
                if not those:
                    continue
                values, known = _values(MEASURES[measure], those)
                rows.append(
                    {
                        **about,
                        **part,
                        "measure": measure,
                        "value": float(values[0]),
                        **interval(values[1:], level),
                        "n_facts": int(n_facts[known].sum()),
                    }
                )
    return pd.DataFrame(rows)


def _ordered(effects: "pd.DataFrame") -> "pd.DataFrame":
    """Let found neurons sort before controls, and questions that an edit should change before other facts."""
    import pandas as pd

    questions = [asked for asked in effects["asked"] if asked not in SCOPES]
    orders = {"neurons": [*KINDS, *effects["neurons"]], "asked": [OWN, *questions, *SCOPES]}
    return effects.assign(
        **{name: pd.Categorical(effects[name], list(dict.fromkeys(order))) for name, order in orders.items()}
    )


_Sums = dict[str, Float[np.ndarray, " 1+n_resamples"]]
"""Of a relation: columns summed up over prompts, and ``n_prompts``; of its facts as they are, then of those drawn."""


def _summed(group: "pd.DataFrame", n_resamples: int, generator: np.random.Generator) -> _Sums:
    n_facts = len(group)
    drawn = generator.multinomial(n_facts, np.full(n_facts, 1 / n_facts), size=n_resamples)
    counts = np.concatenate([np.ones((1, n_facts)), drawn]) * group["n_prompts"].to_numpy()
    names = dict.fromkeys(name for measure in MEASURES.values() for name in measure.columns)
    there = [name for name in names if name in group and group[name].notna().all()]
    return {"n_prompts": counts.sum(1), **{name: counts @ group[name].to_numpy(dtype=float) for name in there}}


def _values(measure: _Measure, sums: dict[str, _Sums]) -> tuple[Float[np.ndarray, " 1+n_resamples"], list[str]]:
    """Return a measure of relations, for their facts as they are and then for those drawn; and who has a value."""

    def of_sums(one: _Sums) -> Float[np.ndarray, " 1+n_resamples"]:
        return measure.of_means(*(one[column] / one["n_prompts"] for column in measure.columns))

    alone = {relation: of_sums(one) for relation, one in sums.items()}
    known = [relation for relation, values in alone.items() if not np.isnan(values[0])] or list(alone)
    if not measure.pooled:
        return mean_of_known(np.stack([alone[relation] for relation in known])), known
    columns = ("n_prompts", *measure.columns)
    return of_sums({column: np.sum([sums[one][column] for one in known], axis=0) for column in columns}), known
