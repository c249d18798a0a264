"""Summing up what edits did, with bootstrap intervals over facts.

Every measure of a relation is a ratio of sums over the prompts of its facts, or its exponential:

    changed            sum(right before, not after) / sum(right before)
    success, top5, rank, mrr, and accuracy_before, accuracy_after      means over prompts
    perplexity         exp(mean(-log P(answer)))
    perplexity_growth  perplexity_after / perplexity_before - 1 = exp(mean(log P_before - log P_after)) - 1

and over several relations the mean of theirs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from kn_lens.edit_questions import OWN, SCOPES
from kn_lens.effects import KINDS
from kn_lens.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd


class _Ratio(NamedTuple):
    """A measure: the mean of one column over prompts, over that of another, and what is made of it."""

    numerator: str
    denominator: str | None = None
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray


MEASURES = {
    "changed": _Ratio("lost", "right_before"),
    "success_before": _Ratio("new_right_before"),
    "success": _Ratio("new_right_after"),
    "top5_before": _Ratio("new_top5_before"),
    "top5": _Ratio("new_top5_after"),
    "rank_before": _Ratio("new_rank_before"),
    "rank": _Ratio("new_rank_after"),
    "mrr_before": _Ratio("new_mrr_before"),
    "mrr": _Ratio("new_mrr_after"),
    "accuracy_before": _Ratio("right_before"),
    "accuracy_after": _Ratio("right_after"),
    "perplexity_before": _Ratio("nll_before", transform=np.exp),
    "perplexity_after": _Ratio("nll_after", transform=np.exp),
    "perplexity_growth": _Ratio("nll_growth", transform=np.expm1),
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
    facts were taken, the relations being given; a relation with one fact adds nothing to it.

    Args:
        effects: the table, or several of one kind concatenated.
        by_relation: rows for each edited relation, instead of their mean.
        n_resamples: bootstrap samples.
        level: of the interval.
        seed: of the bootstrap.

    Returns:
        One row for each ``neurons``, ``dose`` (of updates), ``asked``, (``relation``) and ``measure``: its ``value``
        and the interval ``low`` to ``high``; ``n_facts``, the rows of ``effects`` behind it. The measures of the new
        answer (``success``, ``top5``, ``rank``, ``mrr``) are there where a question should get one. ``changed`` is NaN
        for a relation without a prompt that was right before; a mean over relations leaves such a relation out.

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
    effects = effects.assign(nll_growth=effects["nll_after"] - effects["nll_before"])
    keys = [key for key in ("neurons", "dose", "asked") if key in effects]
    generator = np.random.default_rng(seed)
    rows = []
    for _, cell in _ordered(effects).groupby(keys, observed=True):
        about = cell[keys].iloc[0].to_dict()
        groups = {name: _values(group, n_resamples, generator) for name, group in cell.groupby("relation", sort=False)}
        n_facts = cell["relation"].value_counts()
        parts = [({"relation": name}, [name]) for name in groups] if by_relation else [({}, list(groups))]
        for part, names in parts:
            for measure in groups[names[0]]:
                # The first value is that of the facts as they are, the others are of those drawn anew.
                known = [name for name in names if not np.isnan(groups[name][measure][0])] or names
                values = np.mean([groups[name][measure] for name in known], axis=0)
                rows.append(
                    {
                        **about,
                        **part,
                        "measure": measure,
                        "value": float(values[0]),
                        **_interval(values[1:], level),
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


def _values(
    group: "pd.DataFrame", n_resamples: int, generator: np.random.Generator
) -> dict[str, Float[np.ndarray, " 1+n_resamples"]]:
    """Return each measure of a relation, for its facts and then for resampled ones."""
    n_facts = len(group)
    drawn = generator.multinomial(n_facts, np.full(n_facts, 1 / n_facts), size=n_resamples)
    counts = np.concatenate([np.ones((1, n_facts)), drawn]) * group["n_prompts"].to_numpy()
    values = {}
    for name, (numerator, denominator, transform) in MEASURES.items():
        if numerator in group and group[numerator].notna().all():
            over = 1.0 if denominator is None else group[denominator].to_numpy()
            total = counts @ np.broadcast_to(over, n_facts)
            ratio = np.full(total.shape, np.nan)
            np.divide(counts @ group[numerator].to_numpy(), total, out=ratio, where=total > 0)
            values[name] = transform(ratio)
    return values


def _interval(values: Float[np.ndarray, " n_resamples"], level: float) -> dict[str, float]:
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) if len(known) else (np.nan, np.nan)
    return {"low": float(low), "high": float(high)}
