"""Statistics of relations, and of all together, with bootstrap intervals, from records that have a row for each fact.

Each relation's facts are drawn anew, with replacement, and the statistic computed again: the interval says how much
depends on which facts were taken, the relations being given. ``_draws`` has the rule, and when there is none.

Of all relations together it is the mean of theirs, each counting alike, but for perplexities, which are of all prompts
together: the mean would be that of the relation that the model knows least.

The interval of a ratio may lie lopsided about its value, where few facts make up most of what is divided by: without
them the ratio is another. Draws in which nothing is left to divide by have no value.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from kn_lens._draws import LEVEL, SHARE, interval, mean_of_known, resampled

if TYPE_CHECKING:
    import pandas as pd


class Mean(NamedTuple):
    """The mean of a column over facts, which count alike or by another column."""

    column: str
    weight: str | None = None


@dataclass(frozen=True)
class Statistic:
    """What is made of means over facts.

    Attributes:
        means: these means.
        of: the statistic, from them, on the scale on which its interval is taken; NaN where there is none.
        pooled: whether that of several relations is of their facts together, instead of the mean of theirs.
        within: where it lies on that scale, whatever the facts are: ``SHARE`` for shares.
        shown: what value and ends are shown as, an increasing function: exp of the logarithm of a perplexity.
    """

    means: tuple[Mean, ...]
    of: Callable[..., Float[np.ndarray, " draw"]] = np.asarray
    pooled: bool = False
    within: tuple[float, float] = (-math.inf, math.inf)
    shown: Callable[..., np.ndarray] = np.asarray

    def __sub__(self, other: "Statistic") -> "Statistic":
        """Return the difference, as shown, from a statistic of the same kind, of the same facts in every draw."""
        n = len(self.means)

        def difference(*means: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
            return self.shown(self.of(*means[:n])) - other.shown(other.of(*means[n:]))

        return Statistic((*self.means, *other.means), difference, self.pooled)


def mean_of(column: str, weight: str | None = None) -> Statistic:
    """Return the statistic that is the mean of a column, facts counting alike or by another column.

    >>> import pandas as pd
    >>> group = pd.DataFrame({"relation": "a", "kind": "found", "x": [1.0, 4.0], "n": [2, 1]})
    >>> summed_up(group, ["kind"], mean_of("x", "n"))["value"].tolist()
    [2.0]
    """
    return Statistic((Mean(column, weight),))


def share_of(column: str, weight: str | None = None) -> Statistic:
    """Return ``mean_of`` a column of shares, whose interval stays between 0 and 1.

    >>> import pandas as pd
    >>> group = pd.DataFrame({"relation": "a", "kind": "found", "right": [1.0] * 10})
    >>> summed_up(group, ["kind"], share_of("right"))[["value", "low", "high"]].round(3).values.tolist()
    [[1.0, 0.722, 1.0]]
    """
    return Statistic((Mean(column, weight),), within=SHARE)


def change_ratio(before: str = "before", after: str = "after", weight: str = "n_prompts") -> Statistic:
    """Return the statistic that is the relative change between two columns of means, of as many as ``weight`` says.

    >>> import pandas as pd
    >>> group = pd.DataFrame({"relation": "a", "kind": "found", "before": [0.5, 0.1], "after": [0.4, 0.1]})
    >>> summed_up(group.assign(n_prompts=5), ["kind"], change_ratio())["value"].round(3).tolist()
    [-0.167]
    """
    return Statistic((Mean(before, weight), Mean(after, weight)), lambda one, other: share(other - one, one))


def perplexity(nll: str = "nll", weight: str = "n_prompts") -> Statistic:
    """Return the statistic exp(mean of -log P) over all prompts, from means over as many as ``weight`` says.

    >>> import pandas as pd
    >>> facts = pd.DataFrame({"relation": ["a", "b"], "kind": "found", "nll": np.log([2.0, 32.0]), "n_prompts": [3, 1]})
    >>> summed_up(facts, ["kind"], perplexity())["value"].round(3).tolist()
    [4.0]
    """
    return Statistic((Mean(nll, weight),), pooled=True, within=(0.0, math.inf), shown=np.exp)


def share(part: Float[np.ndarray, " draw"], whole: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
    """Return a part as a share of what is more than nothing, else NaN.

    >>> share(np.array([1.0, 0.0]), np.array([2.0, 0.0])).tolist()
    [0.5, nan]
    """
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def summed_up(
    records: "pd.DataFrame",
    labels: Sequence[str],
    statistic: Statistic,
    *,
    by_relation: bool = False,
    n_resamples: int = 1000,
    seed: int = 0,
) -> "pd.DataFrame":
    """Return a statistic of all relations, or of each, in each cell of the labels; see ``all_summed_up``.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"relation": ["a", "a", "b"], "kind": "found", "x": [0.0, 2.0, 4.0]})
    >>> summed_up(records, ["kind"], mean_of("x"))[["kind", "value", "n"]].values.tolist()
    [['found', 2.5, 3]]
    """
    how = {"by_relation": by_relation, "n_resamples": n_resamples, "seed": seed}
    return all_summed_up(records, labels, {"": statistic}, name="", **how).drop(columns="")


def all_summed_up(
    records: "pd.DataFrame",
    labels: Sequence[str],
    statistics: Mapping[str, Statistic],
    *,
    by_relation: bool = False,
    n_resamples: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
    name: str = "measure",
) -> "pd.DataFrame":
    """Return statistics of all relations, or of each, in each cell of the labels.

    Args:
        records: rows with a ``relation``; each row of a relation counts as a fact.
        labels: columns that tell the cells apart.
        statistics: by name.
        by_relation: rows for each relation, instead of those for all.
        n_resamples: bootstrap samples.
        level: of the intervals.
        seed: of the bootstrap; all statistics, and cells with the same facts, are drawn alike.
        name: the column with the name of the statistic.

    Returns:
        One row a cell and statistic, the cells in the order of the records: the labels, (``relation``,) the
        statistic's name, ``value``, ``low`` and ``high`` (see ``_draws``), and ``n``, rows of the records behind it.
        A relation for which the statistic is NaN is left out of that of all; a draw in which it becomes NaN
        leaves it out too. There is no row where no relation has the columns, without a NaN, that a statistic is of.
    """
    import pandas as pd

    means = dict.fromkeys(mean for statistic in statistics.values() for mean in statistic.means)
    rows = []
    for _, cell in records.groupby(list(labels), sort=False):
        generator = np.random.default_rng(seed)
        groups = cell.groupby("relation")
        sums = {str(one): _drawn(group, means, n_resamples, generator) for one, group in groups}
        sizes = cell["relation"].astype(str).value_counts()
        about = cell.iloc[0][list(labels)].to_dict()
        parts = [({"relation": one}, [one]) for one in sums] if by_relation else [({}, list(sums))]
        for part, names in parts:
            for measure, statistic in statistics.items():
                those = {one: sums[one] for one in names if all(mean in sums[one] for mean in statistic.means)}
                if those:
                    values, known = _values(statistic, those)
                    n = sizes[known].to_numpy()
                    ends = {"value": float(values[0]), **interval(values, n, level, statistic.within)}
                    shown = {column: float(statistic.shown(end)) for column, end in ends.items()}
                    rows.append({**about, **part, name: measure, **shown, "n": int(n.sum())})
    columns = [*labels, *(["relation"] if by_relation else []), name, "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


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


_Sums = dict[Mean, Float[np.ndarray, "2 draw"]]
"""Of the facts of a relation as they are, and then of those drawn: what is divided, and what it is divided by."""


def _drawn(group: "pd.DataFrame", means: Iterable[Mean], n_resamples: int, generator: np.random.Generator) -> _Sums:
    """Return the sums of the means that the facts of a relation have."""
    n = len(group)
    counts = resampled(n, n_resamples, generator)
    sums = {}
    for mean in means:
        if mean.column in group and group[mean.column].notna().all():
            weights = np.ones(n) if mean.weight is None else group[mean.weight].to_numpy(dtype=float)
            sums[mean] = np.stack([counts @ (weights * group[mean.column].to_numpy(dtype=float)), counts @ weights])
    return sums


def _values(statistic: Statistic, sums: Mapping[str, _Sums]) -> tuple[Float[np.ndarray, " draw"], list[str]]:
    """Return a statistic of relations, of their facts as they are and then of those drawn; and which have a value."""
    alone = {name: statistic.of(*(share(*one[mean]) for mean in statistic.means)) for name, one in sums.items()}
    known = [name for name, values in alone.items() if not np.isnan(values[0])] or list(alone)
    if not statistic.pooled:
        return mean_of_known(np.stack([alone[name] for name in known])), known
    together = [np.sum([sums[name][mean] for name in known], axis=0) for mean in statistic.means]
    return statistic.of(*(share(*one) for one in together)), known
