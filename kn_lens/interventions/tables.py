"""The table of effects: change ratios of relations, and their mean over relations, with bootstrap intervals.

This is the summary of Dai et al. (2022, section 4.3). With P the probability of the right answer,

    change ratio of a relation = mean(P_after - P_before) / mean(P_before)         means over all prompts of its facts
    change ratio               = mean over relations
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kn_lens._core import defaults
from kn_lens._core.bootstrap import bootstrap_table, change_ratio
from kn_lens._core.checks import check_table
from kn_lens.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("found", "activation", "random")
"""Neuron sets in the order of tables."""
SCOPES = ("own", "other")
"""Facts whose prompts are read, in the order of tables: the fact itself, and one of another relation."""
COLUMNS = ("relation", "neuron_set", "scope", "n_neurons", "n_prompts", "before", "after")
"""Columns of ``controlled_effects`` that the table is computed from."""


def effect_table(
    effects: "pd.DataFrame",
    *,
    by_relation: bool = False,
    n_resamples: int = defaults.N_RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> "pd.DataFrame":
    """Return the change ratios of ``controlled_effects`` with bootstrap intervals.

    The facts of each relation are drawn anew, with replacement, ``n_resamples`` times. The interval states how much the
    ratio depends on the sample of facts, the relations being given: a share ``level`` of such intervals should contain
    the change ratio of all facts that could have been measured. There is none (NaN) of fewer than 8 facts, for which no
    interval would do so; facts without another fact of their relation do not count. Effects on other facts come from
    few of them: in a single relation their 95% intervals contain the truth 90% of the time (docs/method.md).

    A relation whose ``before`` are all 0 has no ratio and is left out of the row of all relations; a draw in which they
    are all 0 leaves the relation out likewise.

    Args:
        effects: the table of ``controlled_effects``, or several of them concatenated.
        by_relation: one row for each relation, instead of their mean.
        n_resamples: number of bootstrap draws.
        level: level of the interval.
        seed: seed of the draws, which are the same for all cells with the same facts.

    Returns:
        One row for each ``neuron_set`` and ``scope`` (and ``relation``): ``change_ratio`` with its interval ``low`` to
        ``high``; ``change`` and ``before``, the mean change and the mean probability before (means over prompts, then
        over relations); ``n_neurons``, the mean per fact; ``n_facts``, the number of facts behind the row. A ratio is
        NaN where all ``before`` are 0. There is no interval either where more than 1 - ``level`` of the draws have no
        ratio, or where all facts are alike.

    Raises:
        ArgumentError: an empty table or one without the columns needed, or a number out of range.

    >>> import pandas as pd
    >>> row = {"relation": "P36", "neuron_set": "found", "scope": "own", "n_neurons": 4, "n_prompts": 10}
    >>> effects = pd.DataFrame([{**row, "before": 0.5, "after": 0.4}, {**row, "before": 0.3, "after": 0.2}])
    >>> float(effect_table(effects).change_ratio[0])
    -0.25
    """
    import pandas as pd

    _check_effects(effects, n_resamples, level)
    intervals = bootstrap_table(
        effects,
        ["neuron_set", "scope"],
        change_ratio(),
        by_relation=by_relation,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )
    ends = {}
    for row in intervals.to_dict("records"):
        ends[row["neuron_set"], row["scope"], row.get("relation")] = row

    rows = []
    cells = dict.fromkeys(zip(effects["neuron_set"], effects["scope"], strict=True))
    for kind, scope in sorted(cells, key=_position):
        cell = effects.loc[(effects["neuron_set"] == kind) & (effects["scope"] == scope)]
        relations = []
        for relation, group in cell.groupby("relation", sort=False):
            means = _relation_means(group)
            relations.append(means)
            if by_relation:
                labels = {"neuron_set": kind, "scope": scope, "relation": relation}
                row = _row([means], ends.get((kind, scope, str(relation)), {}))
                rows.append({**labels, **row})
        if not by_relation:
            row = _row(relations, ends.get((kind, scope, None), {}))
            rows.append({"neuron_set": kind, "scope": scope, **row})
    return pd.DataFrame(rows)


def _check_effects(effects: "pd.DataFrame", n_resamples: int, level: float) -> None:
    check_table(effects, "the table of kn_lens.controlled_effects", "effects")
    for column in COLUMNS:
        if column not in effects:
            near = did_you_mean(column, map(str, effects))
            raise ArgumentError(f"The effects have no column {column!r}.{near}")
    if not len(effects):
        raise ArgumentError("The effects are empty; expected the table of controlled_effects.")
    if n_resamples < 1 or not 0 < level < 1:
        raise ArgumentError(
            f"n_resamples={n_resamples}, level={level}; expected at least 1 sample and a level between 0 and 1."
        )


def _position(cell: tuple[str, str]) -> tuple[int, int]:
    """Return the position of a cell in the table; labels of the caller's own come last."""
    kind, scope = cell
    kind_position = KINDS.index(kind) if kind in KINDS else len(KINDS)
    scope_position = SCOPES.index(scope) if scope in SCOPES else len(SCOPES)
    return kind_position, scope_position


class _RelationMeans(NamedTuple):
    """Means over the prompts of a relation."""

    n_facts: int
    n_neurons: float
    before: float
    change: float

    @property
    def change_ratio(self) -> float:
        if self.before == 0:
            return np.nan
        return self.change / self.before


def _relation_means(group: "pd.DataFrame") -> _RelationMeans:
    n_prompts = group["n_prompts"].to_numpy()
    before = group["before"].to_numpy() * n_prompts
    change = group["after"].to_numpy() * n_prompts - before
    return _RelationMeans(
        n_facts=len(group),
        n_neurons=float(group["n_neurons"].to_numpy().mean()),
        before=before.sum() / n_prompts.sum(),
        change=change.sum() / n_prompts.sum(),
    )


def _row(
    relations: Sequence[_RelationMeans],
    ends: Mapping[str, float],
) -> dict[str, float]:
    """Return the means over the relations that have a ratio, or over all of them where none has."""
    counted = [means for means in relations if means.before != 0] or relations
    n_facts = 0
    n_neurons = 0.0
    for means in counted:
        n_facts += means.n_facts
        n_neurons += means.n_neurons * means.n_facts
    ratio = float(np.mean([means.change_ratio for means in counted]))
    # A relation with a NaN has no draws; the draws of the others are no draws of all relations.
    has_ends = not np.isnan(ratio)
    return {
        "change_ratio": ratio,
        "low": ends["low"] if has_ends else np.nan,
        "high": ends["high"] if has_ends else np.nan,
        "change": float(np.mean([means.change for means in counted])),
        "before": float(np.mean([means.before for means in counted])),
        "n_neurons": n_neurons / n_facts,
        "n_facts": n_facts,
    }
