"""Means over relations with bootstrap intervals, of records that have a row for each fact.

Each relation's facts are drawn anew, with replacement, and its statistic computed again: the interval says how much
depends on which facts were taken, the relations being given. A relation with one fact adds nothing to it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import pandas as pd

Draws = Float[np.ndarray, "draw fact"]
"""How often each fact is drawn; in the first row once each: the facts as they are."""
Statistic = Callable[[Any, Draws], Float[np.ndarray, " draw"]]
"""``statistic(group, draws)``: of the rows of one relation, for each draw."""

LEVEL = 0.95


def mean_of(column: str, weight: str | None = None) -> Statistic:
    """Return the statistic that is the mean of a column, facts counting alike or by another column.

    >>> import pandas as pd
    >>> mean_of("x", "n")(pd.DataFrame({"x": [1.0, 4.0], "n": [2, 1]}), np.ones((1, 2)))
    array([2.])
    """

    def mean(group: "pd.DataFrame", draws: Draws) -> Float[np.ndarray, " draw"]:
        weights = draws if weight is None else draws * group[weight].to_numpy()
        total = weights.sum(1)
        ratio = np.full(total.shape, np.nan)
        return np.divide(weights @ group[column].to_numpy(dtype=float), total, out=ratio, where=total > 0)

    return mean


def change_ratio(before: str = "before", after: str = "after", weight: str = "n_prompts") -> Statistic:
    """Return the statistic that is the relative change between two columns of means, of as many as ``weight`` says.

    >>> import pandas as pd
    >>> group = pd.DataFrame({"before": [0.5, 0.1], "after": [0.4, 0.1], "n_prompts": 5})
    >>> change_ratio()(group, np.ones((1, 2))).round(3)
    array([-0.167])
    """

    def ratio(group: "pd.DataFrame", draws: Draws) -> Float[np.ndarray, " draw"]:
        old, new = (mean_of(name, weight)(group, draws) for name in (before, after))
        return np.divide(new - old, old, out=np.full(old.shape, np.nan), where=old > 0)

    return ratio


def summed_up(
    records: "pd.DataFrame",
    labels: Sequence[str],
    statistic: Statistic,
    *,
    by_relation: bool = False,
    n_resamples: int = 1000,
    seed: int = 0,
) -> "pd.DataFrame":
    """Return the mean over relations of a statistic, in each cell of the labels.

    Args:
        records: rows with a ``relation``; each row of a relation counts as a fact.
        labels: columns that tell the cells apart.
        statistic: of a relation's rows.
        by_relation: a row for each relation, instead of their mean.
        n_resamples: bootstrap samples.
        seed: of the bootstrap; cells with the same facts are drawn alike.

    Returns:
        One row a cell, in the order of the records: the labels, (``relation``,) ``value``, ``low`` and ``high`` (the
        middle 95%), and ``n``, rows of the records behind it. A relation for which the statistic is NaN is left out of
        a mean over relations.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"relation": ["a", "a", "b"], "kind": "found", "x": [0.0, 2.0, 4.0]})
    >>> summed_up(records, ["kind"], mean_of("x"))[["kind", "value", "n"]].values.tolist()
    [['found', 2.5, 3]]
    """
    import pandas as pd

    rows = []
    for _, part in records.groupby(list(labels), sort=False):
        generator = np.random.default_rng(seed)
        values = {name: _drawn(group, statistic, n_resamples, generator) for name, group in part.groupby("relation")}
        sizes = part["relation"].value_counts()
        groups = [({"relation": name}, [name]) for name in values] if by_relation else [({}, list(values))]
        for about, names in groups:
            names = [name for name in names if not np.isnan(values[name][0])] or names
            mean = np.mean([values[name] for name in names], axis=0)
            row = {**part.iloc[0][list(labels)].to_dict(), **about, "value": float(mean[0])}
            rows.append({**row, **interval(mean[1:]), "n": int(sizes[names].sum())})
    return pd.DataFrame(rows)


def interval(values: Float[np.ndarray, " draw"]) -> dict[str, float]:
    """Return the middle 95% of the draws for which there is a value, as ``low`` and ``high``; NaN without any."""
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(known) else (np.nan, np.nan)
    return {"low": float(low), "high": float(high)}


def with_control(table: "pd.DataFrame", column: str = "neurons", control: str = "random") -> "pd.DataFrame":
    """Return a table with the ``value`` of random neurons, or of another row, beside every one like it.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"neurons": ["found", "random"], "value": [0.5, 0.1], "low": 0.0, "high": 1.0, "n": 3})
    >>> with_control(table)["control"].tolist()
    [0.1, 0.1]
    """
    same = [name for name in table if name not in (column, "value", "low", "high", "n")]
    value = {
        tuple(row[name] for name in same): row["value"] for row in table.to_dict("records") if row[column] == control
    }
    keys = [tuple(row[name] for name in same) for row in table.to_dict("records")]
    return table.assign(control=[value.get(key, np.nan) for key in keys])


def _drawn(
    group: "pd.DataFrame", statistic: Statistic, n_resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, " draw"]:
    n = len(group)
    drawn = generator.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    return statistic(group, np.concatenate([np.ones((1, n)), drawn]))
