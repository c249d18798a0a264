"""The bootstrap and the interval rule restated as plain Python loops: the oracle for the intervals of every table."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
import pandas as pd
import pytest

SHARE = (0.0, 1.0)
AT_LEAST_0 = (0.0, math.inf)
ANY_NUMBER = (-math.inf, math.inf)
NONE = (math.nan, math.nan)


def drawn_facts(sizes: Sequence[int], n_resamples: int, seed: int = 0) -> Iterator[list[list[int]]]:
    """Yield each bootstrap draw: for each relation the positions of n - 1 of its n facts, with repetitions."""
    generator = np.random.default_rng(seed)
    by_relation = [generator.integers(n, size=(n_resamples, max(1, n - 1))).tolist() for n in sizes]
    for draw in range(n_resamples):
        yield [positions[draw] for positions in by_relation]


def naive_interval(
    value: float,
    draws: Sequence[float],
    sizes: Sequence[int],
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = ANY_NUMBER,
) -> tuple[float, float]:
    """Return the ends of the interval of a statistic with these draws, from relations of these sizes; NaN for none."""
    defined = [draw for draw in draws if not math.isnan(draw)]
    with_others = [n for n in sizes if n > 1]
    if math.isnan(value) or sum(with_others) < 8 or len(defined) < level * len(draws):
        return NONE
    if max(defined) - min(defined) <= 1e-12 * abs(value):
        if bounds == SHARE and defined[0] == value and value in SHARE:
            return wilson(value, len(sizes) ** 2 / sum(1 / n for n in sizes), level)
        return NONE

    freedom = sum(n - 1 for n in with_others)
    if bounds != SHARE:
        freedom /= 2 if len(sizes) == 1 else 4
    q = t_quantile(level, max(2.0, freedom))
    mean = math.fsum(defined) / len(defined)
    spread = math.sqrt(math.fsum((draw - mean) ** 2 for draw in defined) / len(defined))
    skewness = math.fsum(((draw - mean) / spread) ** 3 for draw in defined) / len(defined)
    of_singles = math.sqrt(sum(1 / n for n in sizes) / sum(1 / n for n in with_others))
    lower = upper = spread * of_singles * q
    longer = spread * of_singles * abs(skewness) * (1 + 2 * q * q) / 6
    if skewness > 0:
        upper += longer
    else:
        lower += longer
    return max(bounds[0], value - lower), min(bounds[1], value + upper)


def wilson(share: float, n: float, level: float) -> tuple[float, float]:
    """Return the shares p for which ``|share - p|`` is at most z standard errors sqrt(p (1 - p) / n)."""
    z = t_quantile(level, 1e7)
    # The quadratic equation (share - p)^2 = z^2 p (1 - p) / n.
    a, b, c = 1 + z * z / n, -2 * share - z * z / n, share * share
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@cache
def t_quantile(level: float, freedom: float) -> float:
    """Return q with a probability of ``level`` between -q and q: the density by Simpson's rule, q by bisection."""
    log_constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2

    def probability(q: float) -> float:
        t = np.linspace(0, q, 4001)
        density = np.exp(log_constant - (freedom + 1) / 2 * np.log1p(t * t / freedom))
        weights = np.tile([2.0, 4.0], 2001)[:4001]
        weights[[0, -1]] = 1
        return 2 * float(weights @ density) * q / 4000 / 3

    low, high = 0.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < level else (low, middle)
    return low


def is_close(found: Iterable[float], expected: Sequence[float]) -> bool:
    """Return whether two ends are as expected, to a millionth of the width (the library's quantile is a quadrature)."""
    width = expected[1] - expected[0]
    tolerance = 0.0 if math.isnan(width) else 1e-6 * width
    return list(found) == pytest.approx(list(expected), rel=1e-9, abs=tolerance, nan_ok=True)


def hold_their_values(table: pd.DataFrame) -> bool:
    """Return whether every interval of a table has two ends and its value between them, to rounding."""
    given = table.dropna(subset=["low", "high"], how="all")
    room = 1e-9 * (1 + given["value"].abs())
    return bool((given["low"] <= given["value"] + room).all() and (given["value"] <= given["high"] + room).all())
