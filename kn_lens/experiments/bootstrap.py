"""Statistics of relations, and of all together, with bootstrap intervals, from records that have a row for each fact.

Each relation's facts are drawn anew, with replacement, and the statistic computed again: the interval says how much
depends on which facts were taken, the relations being given. A relation with one fact adds nothing to it.

Of all relations together it is the mean of theirs, each counting alike, but for perplexities, which are of all prompts
together: the mean would be that of the relation that the model knows least.

The interval of a ratio may lie lopsided about its value, where few facts make up most of what is divided by: without
them the ratio is another. Draws in which nothing is left to divide by have no value; when more than 5% are such,
there is no interval (NaN), since the middle 95% of the draws is not known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from kn_lens._draws import interval, mean_of_known

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Statistic:
    """What is made of sums over facts.

    Attributes:
        terms: ``terms(group)``: of the rows of a relation, what is summed up over those drawn.
        of_sums: the statistic, from these sums; NaN where there is none.
        pooled: whether that of several relations is of their sums together, instead of the mean of theirs.
    """

    terms: Callable[[Any], Float[np.ndarray, "fact term ..."]]
    of_sums: Callable[[Float[np.ndarray, "draw term ..."]], Float[np.ndarray, " draw"]]
    pooled: bool = False

    def __sub__(self, other: "Statistic") -> "Statistic":
        """Return the difference from another statistic of the same kind, of the same facts in every draw."""
        return Statistic(
            lambda group: np.stack([self.terms(group), other.terms(group)], axis=-1),
            lambda sums: self.of_sums(sums[..., 0]) - other.of_sums(sums[..., 1]),
            self.pooled,
        )


def mean_of(column: str, weight: str | None = None) -> Statistic:
    """Return the statistic that is the mean of a column, facts counting alike or by another column.

    >>> import pandas as pd
    >>> group = pd.DataFrame({"relation": "a", "kind": "found", "x": [1.0, 4.0], "n": [2, 1]})
    >>> summed_up(group, ["kind"], mean_of("x", "n"))["value"].tolist()
    [2.0]
    """
    return Statistic(_weighted(weight, column), lambda sums: _over(sums[:, 1], sums[:, 0]))


def change_ratio(before: str = "before", after: str = "after", weight: str = "n_prompts") -> Statistic:
    """Return the statistic that is the relative change between two columns of means, of as many as ``weight`` says.

    >>> import pandas as pd
    >>> group = pd.DataFrame({"relation": "a", "kind": "found", "before": [0.5, 0.1], "after": [0.4, 0.1]})
    >>> summed_up(group.assign(n_prompts=5), ["kind"], change_ratio())["value"].round(3).tolist()
    [-0.167]
    """
    return Statistic(_weighted(weight, before, after), lambda sums: _over(sums[:, 2] - sums[:, 1], sums[:, 1]))


def perplexity(nll: str = "nll", weight: str = "n_prompts") -> Statistic:
    """Return the statistic exp(mean of -log P) over all prompts, from means over as many as ``weight`` says.

    >>> import pandas as pd
    >>> facts = pd.DataFrame({"relation": ["a", "b"], "kind": "found", "nll": np.log([2.0, 32.0]), "n_prompts": [3, 1]})
    >>> summed_up(facts, ["kind"], perplexity())["value"].round(3).tolist()
    [4.0]
    """
    return Statistic(_weighted(weight, nll), lambda sums: np.exp(_over(sums[:, 1], sums[:, 0])), pooled=True)


def _weighted(weight: str | None, *columns: str) -> Callable[[Any], Float[np.ndarray, "fact term"]]:
    """Return what gives the weights, and the columns times these."""

    def terms(group: "pd.DataFrame") -> Float[np.ndarray, "fact term"]:
        weights = np.ones(len(group)) if weight is None else group[weight].to_numpy(dtype=float)
        return np.stack([weights, *(weights * group[name].to_numpy(dtype=float) for name in columns)], axis=1)

    return terms


def _over(sums: Float[np.ndarray, " draw"], totals: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
    return np.divide(sums, totals, out=np.full(totals.shape, np.nan), where=totals > 0)


def summed_up(
    records: "pd.DataFrame",
    labels: Sequence[str],
    statistic: Statistic,
    *,
    by_relation: bool = False,
    n_resamples: int = 1000,
    seed: int = 0,
) -> "pd.DataFrame":
    """Return a statistic of all relations, or of each, in each cell of the labels.

    Args:
        records: rows with a ``relation``; each row of a relation counts as a fact.
        labels: columns that tell the cells apart.
        statistic: of a relation's rows.
        by_relation: a row for each relation, instead of one for all.
        n_resamples: bootstrap samples.
        seed: of the bootstrap; cells with the same facts are drawn alike.

    Returns:
        One row a cell, in the order of the records: the labels, (``relation``,) ``value``, ``low`` and ``high`` (the
        middle 95%), and ``n``, rows of the records behind it. A relation for which the statistic is NaN is left out of
        that of all; a draw in which it becomes NaN leaves it out too.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"relation": ["a", "a", "b"], "kind": "found", "x": [0.0, 2.0, 4.0]})
    >>> summed_up(records, ["kind"], mean_of("x"))[["kind", "value", "n"]].values.tolist()
    [['found', 2.5, 3]]
    """
    import pandas as pd

    rows = []
    for _, part in records.groupby(list(labels), sort=False):
        generator = np.random.default_rng(seed)
        sums = {name: _drawn(group, statistic, n_resamples, generator) for name, group in part.groupby("relation")}
        values = {name: statistic.of_sums(one) for name, one in sums.items()}
        sizes = part["relation"].value_counts()
        groups = [({"relation": name}, [name]) for name in values] if by_relation else [({}, list(values))]
        for about, names in groups:
            names = [name for name in names if not np.isnan(values[name][0])] or names
            if statistic.pooled:
                drawn = statistic.of_sums(np.sum([sums[name] for name in names], axis=0))
            else:
                drawn = mean_of_known(np.stack([values[name] for name in names]))
            row = {**part.iloc[0][list(labels)].to_dict(), **about, "value": float(drawn[0])}
            rows.append({**row, **interval(drawn[1:]), "n": int(sizes[names].sum())})
    return pd.DataFrame(rows)


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
) -> Float[np.ndarray, "draw term ..."]:
    """Return the sums over the facts as they are, and then over facts drawn anew."""
    n = len(group)
    drawn = generator.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    return np.tensordot(np.concatenate([np.ones((1, n)), drawn]), statistic.terms(group), axes=1)
