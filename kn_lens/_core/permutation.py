"""Permutation tests of differences between models on the same facts, and rank correlations of their facts.

Draws and permutations depend on the seed and on the position of a relation, whatever the columns are, so that
differences between columns are paired fact by fact.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from jaxtyping import Float, Int

from kn_lens._core.bootstrap import bootstrap_counts, ratio
from kn_lens._core.intervals import interval

FEWEST_SIGNS = 6
"""Fewest signs that are tested: with 5 relations that all differ in the same direction, p is 2 / 2^5 = 0.0625."""
EXACT_UP_TO = 12
"""Largest number of signs whose patterns are enumerated."""
AT_ONCE = 256
"""Patterns of signs in one batch."""
TIE = 1e-12
"""Difference of two sums that are equal up to rounding, relative to the mean size of their terms."""


def sign_flip_p(
    differences: Float[np.ndarray, "fact column"], *, n_permutations: int, seed: int
) -> Float[np.ndarray, " column"]:
    """Return the two-sided p-value of the mean of each column in a paired sign-flip permutation test.

    The null hypothesis: the sign of each fact's difference is random, independently of the other facts. It holds where
    it is random which of two models a fact's value came from. Up to ``EXACT_UP_TO`` facts all patterns of signs are
    enumerated; with more, ``n_permutations`` patterns are sampled and p = (hits + 1) / (n_permutations + 1). Facts that
    are alike within a relation are not independent: rows can be sums over relations instead. NaN for fewer than
    ``FEWEST_SIGNS`` rows, which cannot reach p = 0.05.

    This is the test of TransformerLens' ``utilities.statistics`` (from 4.2; kn_lens also runs with earlier versions),
    for many columns at once. One difference: sums that are equal up to rounding are ties.
    """
    n = len(differences)
    n_columns = differences.shape[1]
    if n < FEWEST_SIGNS:
        return np.full(n_columns, np.nan)
    observed = np.abs(differences.mean(0))
    tie = TIE * np.abs(differences).mean(0)
    hits = np.zeros(n_columns)
    n_patterns = 0
    for signs in _sign_patterns(n, n_permutations, np.random.default_rng([seed, n])):
        hits += (np.abs(signs @ differences / n) >= observed - tie).sum(0)
        n_patterns += len(signs)
    p = hits / n_patterns if n <= EXACT_UP_TO else (hits + 1) / (n_patterns + 1)
    return np.where(np.isnan(observed), np.nan, p)


def distance(
    difference: Float[np.ndarray, "draw depth"], depths: Float[np.ndarray, " depth"]
) -> Float[np.ndarray, " draw"]:
    """Return the Wasserstein distance of two distributions on [0, 1]: the area between their cumulative shares.

    Args:
        difference: difference of the cumulative shares at each depth, linear in between.
        depths: depths in ascending order.

    >>> distance(np.array([[0.0, 0.5, 0.0], [0.0, 0.5, -0.5]]), np.array([0.0, 0.5, 1.0])).tolist()
    [0.25, 0.25]
    """
    left, right = np.abs(difference[:, :-1]), np.abs(difference[:, 1:])
    heights = (left + right) / 2
    # Where the sign changes, the area is that of two triangles, whose bases are in the ratio of their heights.
    crosses = difference[:, :-1] * difference[:, 1:] < 0
    heights[crosses] = ((left**2 + right**2)[crosses]) / (2 * (left + right)[crosses])
    return heights @ np.diff(depths)


def distance_under_exchange(
    contributions: Float[np.ndarray, "fact depth"],
    depths: Float[np.ndarray, " depth"],
    *,
    n_permutations: int,
    seed: int,
) -> tuple[float, float]:
    """Return the mean and the p-value of the distance under random exchange of the two models' neurons, fact by fact.

    Args:
        contributions: contribution of each fact to the difference of cumulative shares, which is their mean. Rows can
            be sums over relations instead.
        depths: depths in ascending order; see ``distance``.
        n_permutations: number of random exchanges.
        seed: seed of the exchanges.

    Returns:
        The mean distance under exchange, and p, which is NaN for fewer than ``FEWEST_SIGNS`` rows.
    """
    n = len(contributions)
    observed = distance(contributions.mean(0, keepdims=True), depths)
    exchanged = []
    for signs in _sign_patterns(n, n_permutations, np.random.default_rng([seed, n])):
        exchanged.append(distance(signs @ contributions / n, depths))
    distances = np.concatenate(exchanged)
    hits = (distances >= observed - TIE).sum()
    p = hits / len(distances) if n <= EXACT_UP_TO else (hits + 1) / (len(distances) + 1)
    return float(distances.mean()), float(p) if n >= FEWEST_SIGNS else np.nan


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

    Ranks are those among the facts of a relation, as centred shares of their number. Facts of large and small relations
    thus have equal weight, and differences between relations have none; with one relation this is Spearman's
    coefficient. In a bootstrap draw the facts of each relation are drawn anew and ranked again. The null hypothesis of
    the test: within a relation, the pairing of ``x`` and ``y`` is random; p = (hits + 1) / (n_permutations + 1).

    Args:
        x: first value of each fact.
        y: second value of each fact.
        relations: number of the relation of each fact.
        n_resamples: number of bootstrap draws.
        n_permutations: number of random pairings.
        seed: seed of the draws and the pairings.

    Returns:
        ``value``, ``low``, ``high``, ``p``; NaN where all ``x`` or all ``y`` of each relation are equal.
    """
    covariance, variance_x, variance_y = (np.zeros(n_resamples + 1) for _ in range(3))
    permuted = np.zeros(n_permutations)
    numbers, sizes = np.unique(relations, return_counts=True)
    for position, number in enumerate(numbers):
        facts = np.flatnonzero(relations == number)
        generator = np.random.default_rng([seed, position])
        counts = bootstrap_counts(len(facts), n_resamples, generator)
        ranks_x, ranks_y = _ranks(x[facts], counts), _ranks(y[facts], counts)
        covariance += (counts * ranks_x * ranks_y).sum(1)
        variance_x += (counts * ranks_x * ranks_x).sum(1)
        variance_y += (counts * ranks_y * ranks_y).sum(1)
        repeated = np.broadcast_to(ranks_y[0], (n_permutations, len(facts)))
        permuted += generator.permuted(repeated, axis=1) @ ranks_x[0]
    scale = np.sqrt(variance_x * variance_y)
    drawn = ratio(covariance, scale)
    hits = (np.abs(permuted) >= np.abs(covariance[0]) - TIE * scale[0]).sum()
    p = (hits + 1) / (n_permutations + 1) if scale[0] > 0 else np.nan
    return {"value": float(drawn[0]), **interval(drawn, sizes, bounds=(-1.0, 1.0)), "p": float(p)}


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple tests (Holm 1979); NaN stands for no test.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted = np.array(p_values, dtype=float)
    order = [i for i in np.argsort(adjusted) if not np.isnan(adjusted[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted.tolist()


def _sign_patterns(
    n: int, n_permutations: int, generator: np.random.Generator
) -> Iterator[Float[np.ndarray, "pattern n"]]:
    """Yield batches of sign patterns, ``[pattern, n]``: all patterns for small n, else random ones."""
    if n <= EXACT_UP_TO:
        yield np.array(list(product((1.0, -1.0), repeat=n))).reshape(-1, n)
        return
    for start in range(0, n_permutations, AT_ONCE):
        size = (min(AT_ONCE, n_permutations - start), n)
        yield generator.integers(0, 2, size=size, dtype=np.int8) * 2.0 - 1.0


def _ranks(
    values: Float[np.ndarray, " fact"], counts: Float[np.ndarray, "draw fact"]
) -> Float[np.ndarray, "draw fact"]:
    """Return the rank of each fact's value in each draw, from -1/2 to 1/2; ties share their mean rank."""
    order = np.argsort(values, kind="stable")
    _, group = np.unique(values, return_inverse=True)
    _, starts = np.unique(values[order], return_index=True)
    group_counts = np.add.reduceat(counts[:, order], starts, axis=1)
    upper = np.cumsum(group_counts, axis=1)
    return ((upper - group_counts / 2) / counts.sum(1, keepdims=True) - 0.5)[:, group]
