"""Statistics of facts that several models were asked: means over relations, intervals, and tests of differences.

Everything is drawn alike for all columns, so that differences between columns are paired fact by fact. Drawing starts
from a seed and the place of a relation, whatever the columns are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int

from kn_lens._draws import interval, resampled

FEWEST_SIGNS = 6
"""Signs below which no test is made: of 5 relations that all differ alike, p is 2 / 2^5 = 0.0625."""
EXACT_UP_TO = 12
"""So many signs or fewer are gone through in all their patterns."""
AT_ONCE = 256
"""Patterns of signs at a time."""
TIE = 1e-12
"""Relative to the mean size of what is summed: below this two sums are the same but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """Means over relations, of facts as they are and drawn anew.

    Attributes:
        drawn: the mean of each column, ``[draw, column]``; in the first row of the facts as they are.
        parts: what each fact adds to it, ``[fact, column]``: the mean of a column of ``parts`` is ``drawn[0]``.
    """

    drawn: Float[np.ndarray, "draw column"]
    parts: Float[np.ndarray, "fact column"]


def means(
    top: Float[np.ndarray, "fact column"],
    bottom: Float[np.ndarray, "fact column"],
    relations: Int[np.ndarray, " fact"],
    *,
    pooled: Bool[np.ndarray, " column"] | None = None,
    n_resamples: int,
    seed: int,
) -> Means:
    """Return ratios of sums, with each relation's facts drawn anew, with replacement.

    Args:
        top: numerators.
        bottom: denominators.
        relations: a number for the relation of each fact.
        pooled: columns of which ``sum(top) / sum(bottom)`` is taken over all facts together; of the others it is taken
            for each relation, and then the mean over relations. NaN where a sum of ``bottom`` is 0.
        n_resamples: bootstrap samples.
        seed: of the draws.
    """
    n_facts, n_columns = top.shape
    together = np.zeros(n_columns, dtype=bool) if pooled is None else pooled
    numbers = np.unique(relations)
    parts = np.empty_like(top, dtype=float)
    mean = np.zeros((n_resamples + 1, n_columns))
    tops, bottoms = np.zeros_like(mean), np.zeros_like(mean)
    for place, number in enumerate(numbers):
        mine = np.flatnonzero(relations == number)
        draws = resampled(len(mine), n_resamples, np.random.default_rng([seed, place]))
        above, below = draws @ top[mine], draws @ bottom[mine]
        mean += _ratio(above, below) / len(numbers)
        tops, bottoms = tops + above, bottoms + below
        parts[mine] = _ratio(top[mine], np.broadcast_to(below[0], (len(mine), n_columns))) * n_facts / len(numbers)
    parts[:, together] = (_ratio(top, np.broadcast_to(bottoms[0], top.shape)) * n_facts)[:, together]
    return Means(drawn=np.where(together, _ratio(tops, bottoms), mean), parts=parts)


def sign_flip_p(
    differences: Float[np.ndarray, "fact column"], *, n_permutations: int, seed: int
) -> Float[np.ndarray, " column"]:
    """Return the p-value of each column's mean, in a paired permutation test, two-sided.

    The null hypothesis: each fact's difference is as likely as its opposite, whatever the others are; as it would be if
    it were chance which of two models a fact's value came from. With ``EXACT_UP_TO`` facts or fewer all patterns of
    signs are gone through, else ``n_permutations`` are drawn, and p = (as large + 1) / (n_permutations + 1). Facts that
    are alike within a relation are not independent: the rows can be sums over relations instead. NaN of fewer than
    ``FEWEST_SIGNS``, which could not give 0.05.

    This is the test of TransformerLens' ``utilities.statistics`` (from 4.2; kn_lens runs with earlier ones), for many
    columns at once, except that sums are ties when they are the same but for rounding.
    """
    n = len(differences)
    if n < FEWEST_SIGNS:
        return np.full(differences.shape[1], np.nan)
    observed = np.abs(differences.mean(0))
    tie = TIE * np.abs(differences).mean(0)
    hits, n_patterns = np.zeros(differences.shape[1]), 0
    for signs in _patterns(n, n_permutations, np.random.default_rng([seed, n])):
        hits += (np.abs(signs @ differences / n) >= observed - tie).sum(0)
        n_patterns += len(signs)
    exact = n <= EXACT_UP_TO
    p = hits / n_patterns if exact else (hits + 1) / (n_patterns + 1)
    return np.where(np.isnan(observed), np.nan, p)


def distance(
    difference: Float[np.ndarray, "draw depth"], depths: Float[np.ndarray, " depth"]
) -> Float[np.ndarray, " draw"]:
    """Return the Wasserstein distance of two distributions on [0, 1]: the area between their cumulative shares.

    Args:
        difference: of the cumulative shares at the depths; between these it is a straight line.
        depths: in ascending order.

    >>> distance(np.array([[0.0, 0.5, 0.0], [0.0, 0.5, -0.5]]), np.array([0.0, 0.5, 1.0])).tolist()
    [0.25, 0.25]
    """
    left, right = np.abs(difference[:, :-1]), np.abs(difference[:, 1:])
    crosses = difference[:, :-1] * difference[:, 1:] < 0
    heights = (left + right) / 2
    # Two triangles, whose bases share the step as their heights do.
    heights[crosses] = ((left**2 + right**2)[crosses]) / (2 * (left + right)[crosses])
    return heights @ np.diff(depths)


def distance_under_exchange(
    parts: Float[np.ndarray, "fact depth"], depths: Float[np.ndarray, " depth"], *, n_permutations: int, seed: int
) -> tuple[float, float]:
    """Return the mean distance, and the p-value of the distance, if it were chance which model a fact's neurons are of.

    Args:
        parts: what each fact adds to the difference of cumulative shares, which is their mean.
        depths: see ``distance``.
        n_permutations: so often each fact's neurons are exchanged, or not, at random.
        seed: of that.

    The rows of ``parts`` can be sums over relations instead. There is no p (NaN) of fewer than ``FEWEST_SIGNS``.
    """
    n = len(parts)
    observed = distance(parts.mean(0, keepdims=True), depths)
    patterns = _patterns(n, n_permutations, np.random.default_rng([seed, n]))
    found = np.concatenate([distance(signs @ parts / n, depths) for signs in patterns])
    hits = (found >= observed - TIE).sum()
    p = hits / len(found) if n <= EXACT_UP_TO else (hits + 1) / (len(found) + 1)
    return float(found.mean()), float(p) if n >= FEWEST_SIGNS else np.nan


def rank_correlation(
    x: Float[np.ndarray, " fact"],
    y: Float[np.ndarray, " fact"],
    relations: Int[np.ndarray, " fact"],
    *,
    n_resamples: int,
    n_permutations: int,
    seed: int,
) -> dict[str, float]:
    """Return Spearman's rank correlation within relations, with its bootstrap interval and permutation test.

    Ranks are those among the facts of a relation, as shares of their number about the middle, so that facts of large
    and small relations count alike and differences between relations do not count; with one relation this is
    Spearman's coefficient. In a bootstrap sample facts are drawn anew within relations and ranked again. The null
    hypothesis of the test: within a relation it is chance which ``y`` goes with which ``x``;
    p = (as large + 1) / (n_permutations + 1).

    Returns:
        ``value``, ``low``, ``high``, ``p``; NaN where all ``x`` or all ``y`` of each relation are the same.
    """
    products = np.zeros((3, n_resamples + 1))
    shuffled = np.zeros(n_permutations)
    for place, number in enumerate(np.unique(relations)):
        mine = np.flatnonzero(relations == number)
        generator = np.random.default_rng([seed, place])
        draws = resampled(len(mine), n_resamples, generator)
        ranks_x, ranks_y = (_ranks(values[mine], draws) for values in (x, y))
        pairs = ((ranks_x, ranks_y), (ranks_x, ranks_x), (ranks_y, ranks_y))
        products += [(draws * one * other).sum(1) for one, other in pairs]
        many = np.broadcast_to(ranks_y[0], (n_permutations, len(mine)))
        shuffled += generator.permuted(many, axis=1) @ ranks_x[0]
    scale = np.sqrt(products[1] * products[2])
    found = _ratio(products[0], scale)
    hits = (np.abs(shuffled) >= np.abs(products[0, 0]) - TIE * scale[0]).sum()
    p = (hits + 1) / (n_permutations + 1) if scale[0] > 0 else np.nan
    sizes = np.unique(relations, return_counts=True)[1]
    return {"value": float(found[0]), **interval(found, sizes, within=(-1.0, 1.0)), "p": float(p)}


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values that hold for all tests together (Holm 1979); NaN is no test.

    >>> [round(one, 3) for one in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    values = np.array(p, dtype=float)
    adjusted = values.copy()
    order = [i for i in np.argsort(values) if not np.isnan(values[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted.tolist()


def _patterns(n: int, n_permutations: int, generator: np.random.Generator) -> Iterator[Float[np.ndarray, "pattern n"]]:
    """Yield patterns of signs, ``[pattern, n]``, some at a time: all where they are few."""
    if n <= EXACT_UP_TO:
        yield np.array(list(product((1.0, -1.0), repeat=n))).reshape(-1, n)
        return
    for start in range(0, n_permutations, AT_ONCE):
        yield generator.integers(0, 2, size=(min(AT_ONCE, n_permutations - start), n), dtype=np.int8) * 2.0 - 1.0


def _ranks(values: Float[np.ndarray, " fact"], draws: Float[np.ndarray, "draw fact"]) -> Float[np.ndarray, "draw fact"]:
    """Return where each fact's value lies among those drawn, from -1/2 to 1/2; equal values share the middle."""
    order = np.argsort(values, kind="stable")
    _, group = np.unique(values, return_inverse=True)
    _, starts = np.unique(values[order], return_index=True)
    counts = np.add.reduceat(draws[:, order], starts, axis=1)
    upto = np.cumsum(counts, axis=1)
    return ((upto - counts / 2) / draws.sum(1, keepdims=True) - 0.5)[:, group]


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)
