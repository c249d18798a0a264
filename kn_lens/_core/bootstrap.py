"""Bootstrap over facts: statistics of each relation, and of all relations together, with their intervals.

The facts of each relation are drawn anew, with replacement, and the statistic is computed again. The interval states
how much the statistic depends on the sample of facts, the relations being given. ``kn_lens._core.intervals`` holds the
rule by which draws become an interval.

The statistic of several relations is the mean of theirs, each relation with equal weight. Perplexities are pooled over
all prompts instead: their mean would be dominated by the relation that the model knows least.

The interval of a ratio can be asymmetric about its value where few facts make up most of the denominator, since a draw
without these facts has another ratio. A draw whose denominator is 0 has no value (NaN).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from kn_lens._core import defaults
from kn_lens._core.intervals import LEVEL, SHARE, interval

if TYPE_CHECKING:
    import pandas as pd

Draws = Float[np.ndarray, " draw"]
"""A statistic of the sample itself, and then of each bootstrap draw."""


# --- draws ------------------------------------------------------------------------------------------------


def bootstrap_counts(n_facts: int, n_resamples: int, generator: np.random.Generator) -> Float[np.ndarray, "draw fact"]:
    """Return how often each draw contains each fact; the first row has each fact once, which is the sample itself.

    A draw has n - 1 facts, or one fact where n is 1.

    >>> bootstrap_counts(3, 2, np.random.default_rng(0)).sum(1).tolist()
    [3.0, 2.0, 2.0]
    """
    chosen = generator.integers(n_facts, size=(n_resamples, max(n_facts - 1, 1)))
    chosen += n_facts * np.arange(n_resamples)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=n_resamples * n_facts).reshape(n_resamples, n_facts)
    return np.concatenate([np.ones((1, n_facts)), counts])


def ratio(numerator: Draws, denominator: Draws) -> Draws:
    """Return ``numerator / denominator``, NaN where the denominator is not above 0.

    >>> ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0])).tolist()
    [0.5, nan]
    """
    missing = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=missing, where=denominator > 0)


def nan_mean(values: Float[np.ndarray, "relation draw"]) -> Draws:
    """Return the mean over the relations that have a value, NaN where none has.

    >>> nan_mean(np.array([[1.0, 1.0, np.nan], [3.0, np.nan, np.nan]])).tolist()
    [2.0, 1.0, nan]
    """
    known = ~np.isnan(values)
    counts = known.sum(0)
    sums = np.where(known, values, 0.0).sum(0)
    return np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def mean_intervals(
    values: Float[np.ndarray, "row column"], n_resamples: int, generator: np.random.Generator
) -> list[dict[str, float]]:
    """Return the interval of the mean of each column; the rows are drawn anew, as facts of one relation.

    >>> ends = mean_intervals(np.arange(10.0)[:, None], 4000, np.random.default_rng(0))
    >>> [(round(one["low"]), round(one["high"])) for one in ends]
    [(2, 7)]
    """
    counts = bootstrap_counts(len(values), n_resamples, generator)
    weights = counts / counts.sum(1, keepdims=True)
    size = np.array([len(values)])
    return [interval(weights @ column, size) for column in values.T]


# --- statistics -------------------------------------------------------------------------------------------


class WeightedMean(NamedTuple):
    """Mean of a column over facts, with equal weights or with the weights in another column."""

    column: str
    weight: str | None = None


@dataclass(frozen=True)
class Statistic:
    """Function of one or more means over facts.

    Attributes:
        means: the means.
        function: the statistic as a function of the means, on the scale on which the interval is computed; NaN where
            it is undefined.
        pooled: whether the statistic of several relations is that of their facts together, instead of the mean over
            relations.
        bounds: range of the statistic on that scale, whatever the facts are; ``SHARE`` for shares.
        transform: increasing function from that scale to the one in tables, for example exp for a perplexity, whose
            interval is computed on the logarithm.
    """

    means: tuple[WeightedMean, ...]
    function: Callable[..., Draws] = np.asarray
    pooled: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    transform: Callable[..., np.ndarray] = np.asarray

    def __sub__(self, other: "Statistic") -> "Statistic":
        """Return the difference from a statistic of the same kind; every draw has the same facts for both."""
        n = len(self.means)

        def difference(*means: Draws) -> Draws:
            left = self.transform(self.function(*means[:n]))
            right = other.transform(other.function(*means[n:]))
            return left - right

        return Statistic((*self.means, *other.means), difference, self.pooled)


def fact_mean(column: str, weight: str | None = None) -> Statistic:
    """Return the mean of a column over facts as a statistic.

    >>> import pandas as pd
    >>> group = pd.DataFrame({"relation": "a", "kind": "found", "x": [1.0, 4.0], "n": [2, 1]})
    >>> bootstrap_table(group, ["kind"], fact_mean("x", "n"))["value"].tolist()
    [2.0]
    """
    return Statistic((WeightedMean(column, weight),))


def fact_share(column: str, weight: str | None = None) -> Statistic:
    """Return ``fact_mean`` of a column of shares, whose interval lies between 0 and 1.

    >>> import pandas as pd
    >>> group = pd.DataFrame({"relation": "a", "kind": "found", "right": [1.0] * 10})
    >>> bootstrap_table(group, ["kind"], fact_share("right"))[["value", "low", "high"]].round(3).values.tolist()
    [[1.0, 0.722, 1.0]]
    """
    return Statistic((WeightedMean(column, weight),), bounds=SHARE)


def change_ratio(before: str = "before", after: str = "after", weight: str = "n_prompts") -> Statistic:
    """Return the relative change ``(mean(after) - mean(before)) / mean(before)`` as a statistic.

    The columns hold means over ``weight`` prompts.

    >>> import pandas as pd
    >>> group = pd.DataFrame({"relation": "a", "kind": "found", "before": [0.5, 0.1], "after": [0.4, 0.1]})
    >>> bootstrap_table(group.assign(n_prompts=5), ["kind"], change_ratio())["value"].round(3).tolist()
    [-0.167]
    """

    def relative_change(mean_before: Draws, mean_after: Draws) -> Draws:
        return ratio(mean_after - mean_before, mean_before)

    return Statistic((WeightedMean(before, weight), WeightedMean(after, weight)), relative_change)


def perplexity(nll: str = "nll", weight: str = "n_prompts") -> Statistic:
    """Return the perplexity ``exp(mean(-log P))`` over all prompts as a statistic.

    The column holds means of -log P, in nats, over ``weight`` prompts.

    >>> import pandas as pd
    >>> facts = pd.DataFrame({"relation": ["a", "b"], "kind": "found", "nll": np.log([2.0, 32.0]), "n_prompts": [3, 1]})
    >>> bootstrap_table(facts, ["kind"], perplexity())["value"].round(3).tolist()
    [4.0]
    """
    return Statistic((WeightedMean(nll, weight),), pooled=True, bounds=(0.0, math.inf), transform=np.exp)


# --- tables -----------------------------------------------------------------------------------------------


def bootstrap_table(
    records: "pd.DataFrame",
    labels: Sequence[str],
    statistic: Statistic,
    *,
    by_relation: bool = False,
    n_resamples: int = defaults.N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> "pd.DataFrame":
    """Return one statistic of all relations, or of each relation, in each cell; see ``bootstrap_tables``.

    >>> import pandas as pd
    >>> records = pd.DataFrame({"relation": ["a", "a", "b"], "kind": "found", "x": [0.0, 2.0, 4.0]})
    >>> bootstrap_table(records, ["kind"], fact_mean("x"))[["kind", "value", "n"]].values.tolist()
    [['found', 2.5, 3]]
    """
    table = bootstrap_tables(
        records,
        labels,
        {"": statistic},
        by_relation=by_relation,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
        name="",
    )
    return table.drop(columns="")


def bootstrap_tables(
    records: "pd.DataFrame",
    labels: Sequence[str],
    statistics: Mapping[str, Statistic],
    *,
    by_relation: bool = False,
    n_resamples: int = defaults.N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    name: str = "measure",
) -> "pd.DataFrame":
    """Return statistics of all relations, or of each relation, in each cell.

    Args:
        records: rows with a ``relation``; each row of a relation counts as a fact.
        labels: columns whose values define the cells.
        statistics: statistics by name.
        by_relation: one row for each relation, instead of one for all.
        n_resamples: number of bootstrap draws.
        level: level of the intervals.
        seed: seed of the draws, which are the same for all statistics, and for all cells with the same facts.
        name: column for the name of the statistic.

    Returns:
        One row for each cell and statistic, the cells in order of the records: the labels, (``relation``,) the name of
        the statistic, ``value``, ``low`` and ``high`` (see ``kn_lens._core.intervals``), and ``n``, the number of
        records behind the row. A relation whose statistic is NaN is left out of the row of all relations; a draw in
        which it becomes NaN leaves the relation out likewise. There is no row where no relation has the columns of the
        statistic without NaN.
    """
    import pandas as pd

    means: dict[WeightedMean, None] = {}
    for statistic in statistics.values():
        means.update(dict.fromkeys(statistic.means))
    rows = []
    for _, cell in records.groupby(list(labels), sort=False):
        generator = np.random.default_rng(seed)
        relations = {}
        for relation, group in cell.groupby("relation"):
            relations[str(relation)] = draw_relation(group, means, n_resamples, generator)
        cell_labels = cell.iloc[0][list(labels)].to_dict()
        if not by_relation:
            for row in _statistic_rows(relations, statistics, level, name):
                rows.append({**cell_labels, **row})
            continue
        for relation, drawn in relations.items():
            for row in _statistic_rows({relation: drawn}, statistics, level, name):
                rows.append({**cell_labels, "relation": relation, **row})
    relation_label = ["relation"] if by_relation else []
    columns = [*labels, *relation_label, name, "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def with_control(table: "pd.DataFrame", column: str = "neuron_set", control: str = "random") -> "pd.DataFrame":
    """Return a table with a column ``control``: the ``value`` of the control row with the same labels, NaN without one.

    Args:
        table: labels to the left of ``value``.
        column: the label that tells controls from other rows.
        control: its value in control rows.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"neuron_set": ["found", "random"], "value": [0.5, 0.1], "low": 0.0, "high": 1.0, "n": 3})
    >>> with_control(table)["control"].tolist()
    [0.1, 0.1]
    """
    names = list(table.columns)
    labels = [name for name in names[: names.index("value")] if name != column]
    rows = table.to_dict("records")
    keys = [tuple(row[label] for label in labels) for row in rows]
    controls = {}
    for key, row in zip(keys, rows, strict=True):
        if row[column] == control:
            controls[key] = row["value"]
    return table.assign(control=[controls.get(key, np.nan) for key in keys])


@dataclass(frozen=True)
class DrawnRelation:
    """Draws of the facts of one relation.

    Attributes:
        n_facts: number of facts.
        sums: numerator and denominator of each mean, for the means for which every fact has a value.
    """

    n_facts: int
    sums: Mapping[WeightedMean, Float[np.ndarray, "2 draw"]]

    def statistic(self, statistic: Statistic) -> Draws:
        means = [ratio(*self.sums[mean]) for mean in statistic.means]
        return statistic.function(*means)


def draw_relation(
    group: "pd.DataFrame",
    means: Iterable[WeightedMean],
    n_resamples: int,
    generator: np.random.Generator,
) -> DrawnRelation:
    n_facts = len(group)
    counts = bootstrap_counts(n_facts, n_resamples, generator)
    weights: dict[str | None, np.ndarray] = {}
    denominators: dict[str | None, np.ndarray] = {}
    sums = {}
    for mean in means:
        if mean.column not in group or group[mean.column].isna().to_numpy().any():
            continue
        if mean.weight not in weights:
            weight = np.ones(n_facts) if mean.weight is None else group[mean.weight].to_numpy(dtype=float)
            weights[mean.weight] = weight
            denominators[mean.weight] = counts @ weight
        values = group[mean.column].to_numpy(dtype=float)
        numerator = counts @ (weights[mean.weight] * values)
        sums[mean] = np.stack([numerator, denominators[mean.weight]])
    return DrawnRelation(n_facts, sums)


def _statistic_rows(
    relations: Mapping[str, DrawnRelation],
    statistics: Mapping[str, Statistic],
    level: float,
    name: str,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each statistic of some relations."""
    for statistic_name, statistic in statistics.items():
        complete = []
        for relation in relations.values():
            if all(mean in relation.sums for mean in statistic.means):
                complete.append(relation)
        if not complete:
            continue
        drawn, known = drawn_statistic(statistic, complete)
        sizes = np.array([relation.n_facts for relation in known])
        ends = interval(drawn, sizes, level, statistic.bounds)
        yield {
            name: statistic_name,
            "value": float(statistic.transform(float(drawn[0]))),
            "low": float(statistic.transform(ends["low"])),
            "high": float(statistic.transform(ends["high"])),
            "n": int(sizes.sum()),
        }


def drawn_statistic(statistic: Statistic, relations: Sequence[DrawnRelation]) -> tuple[Draws, Sequence[DrawnRelation]]:
    """Return a statistic of several relations, and those of them that have a value."""
    by_relation = [relation.statistic(statistic) for relation in relations]
    has_value = [not np.isnan(drawn[0]) for drawn in by_relation]
    if any(has_value):
        relations = list(compress(relations, has_value))
        by_relation = list(compress(by_relation, has_value))
    if not statistic.pooled:
        return nan_mean(np.stack(by_relation)), relations
    pooled = []
    for mean in statistic.means:
        sums = np.sum([relation.sums[mean] for relation in relations], axis=0)
        pooled.append(ratio(*sums))
    return statistic.function(*pooled), relations


# --- paired columns ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RatioBootstrap:
    """Ratios of sums over the same facts, one for each column, with the draws that all columns share.

    Attributes:
        drawn: ratio of each column; the first row is that of the sample itself.
        contributions: additive contribution of each fact; the mean of a column over facts is ``drawn[0]``.
    """

    drawn: Float[np.ndarray, "draw column"]
    contributions: Float[np.ndarray, "fact column"]


def bootstrap_ratios(
    numerators: Float[np.ndarray, "fact column"],
    denominators: Float[np.ndarray, "fact column"],
    relations: Int[np.ndarray, " fact"],
    *,
    pooled: Bool[np.ndarray, " column"] | None = None,
    n_resamples: int,
    seed: int,
) -> RatioBootstrap:
    """Return ratios of sums, whose draws are the same for all columns, so that differences of columns are paired.

    The draws of a relation depend on the seed, its position among the relations and its number of facts alone. A
    relation without a ratio leaves none over all relations, in the sample itself and in each draw: differences are of
    the same relations in both columns.

    Args:
        numerators: numerator of each fact.
        denominators: denominator of each fact.
        relations: number of the relation of each fact.
        pooled: columns whose ratio ``sum(numerators) / sum(denominators)`` is over all facts together. The others have
            the mean over relations of this ratio. NaN where a sum of denominators is 0.
        n_resamples: number of bootstrap draws.
        seed: seed of the draws.
    """
    n_facts, n_columns = numerators.shape
    if pooled is None:
        pooled = np.zeros(n_columns, dtype=bool)
    numbers = np.unique(relations)
    contributions = np.empty_like(numerators, dtype=float)
    mean = np.zeros((n_resamples + 1, n_columns))
    pooled_numerators, pooled_denominators = np.zeros_like(mean), np.zeros_like(mean)
    for position, number in enumerate(numbers):
        facts = np.flatnonzero(relations == number)
        counts = bootstrap_counts(len(facts), n_resamples, np.random.default_rng([seed, position]))
        relation_numerators = counts @ numerators[facts]
        relation_denominators = counts @ denominators[facts]
        mean += ratio(relation_numerators, relation_denominators) / len(numbers)
        pooled_numerators += relation_numerators
        pooled_denominators += relation_denominators
        total = np.broadcast_to(relation_denominators[0], (len(facts), n_columns))
        contributions[facts] = ratio(numerators[facts], total) * n_facts / len(numbers)
    total = np.broadcast_to(pooled_denominators[0], numerators.shape)
    contributions[:, pooled] = (ratio(numerators, total) * n_facts)[:, pooled]
    mean[:, pooled] = ratio(pooled_numerators, pooled_denominators)[:, pooled]
    return RatioBootstrap(drawn=mean, contributions=contributions)
