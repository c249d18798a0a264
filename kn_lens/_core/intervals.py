"""The interval rule of every table, figure and comparison: a t interval with a correction for skewness.

The bootstrap (``kn_lens._core.bootstrap``) draws n - 1 of each relation's n facts, with replacement; the relations are
given. Statistics of n - 1 draws spread as much as statistics of new facts of these relations (Rao and Wu 1988).
Statistics of n draws spread too little, the more so the fewer facts there are. Let v be the value of the facts as they
are, s the standard deviation of the draws, g their skewness and q the quantile of Student's t. The interval is

    v - s (q + max(0, -a))  to  v + s (q + max(0, a))        a = g (1 + 2 q^2) / 6

The term a lengthens the interval on the side of the longer tail (Johnson 1978; Hall 1992). The same correction would
shorten the other side; this part is left out.

The degrees of freedom were chosen by simulation, so that 95% intervals contain the truth at least 93% of the time in
``tests/benchmarks/coverage.py``: sum(n - 1), as for normal facts, for shares, which have no outliers; half of that for
other statistics; a quarter where there are several relations. ``FEWEST`` facts are needed for this. One case reaches
90% only: effects on other facts in a single relation, where few facts make up most of the effect. A sample without
these facts looks like any other, so that no rule can correct for them.

There is no interval (NaN)

    of fewer than ``FEWEST`` facts, counting only facts that have another fact of their relation beside them;
    where all draws are equal, since their spread is unknown; a share of 0 or 1 then has Wilson's interval;
    where more draws are undefined than may lie outside the interval, for example where the denominator is 0.

The spread of a relation with one fact is unknown: it is taken to be that of the other relations.
"""

import math
from functools import cache
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
"""Default level of the intervals."""
FEWEST = 8
"""Fewest facts that have an interval."""
WHY_NONE = f"A dash for an interval: fewer than {FEWEST} facts, or facts that are all alike."
"""Note below a table with a value that has no interval."""
SHARE = (0.0, 1.0)
"""Range of a share."""
LEAST_FREEDOM = 2.0
"""Lower limit of the degrees of freedom."""
SAME = 1e-12
"""Largest range of draws that are equal up to rounding, relative to the value."""


def interval(
    drawn: Float[np.ndarray, " draw"],
    sizes: Int[np.ndarray, " relation"],
    level: float = LEVEL,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> dict[str, float]:
    """Return the interval of a statistic as ``low`` and ``high``; NaN where there is none.

    Args:
        drawn: the statistic of the facts as they are, then of each bootstrap draw; see ``bootstrap_counts``.
        sizes: number of facts of each relation.
        level: share of intervals that should contain the truth.
        bounds: range of the statistic, whatever the facts are; ``SHARE`` for a share.

    >>> from kn_lens._core.bootstrap import bootstrap_counts
    >>> facts = np.arange(10.0)
    >>> counts = bootstrap_counts(10, 4000, np.random.default_rng(0))
    >>> means = counts @ facts / counts.sum(1)
    >>> {name: round(end) for name, end in interval(means, np.array([10])).items()}
    {'low': 2, 'high': 7}
    """
    none = {"low": math.nan, "high": math.nan}
    value = float(drawn[0])
    draws = drawn[1:][~np.isnan(drawn[1:])]
    beside_others = sizes[sizes > 1]
    if math.isnan(value) or beside_others.sum() < FEWEST or len(draws) < max(1.0, level * (len(drawn) - 1)):
        return none
    if np.ptp(draws) <= SAME * abs(value):
        if bounds != SHARE or value not in bounds or draws[0] != value:
            return none
        n_effective = len(sizes) ** 2 / float((1 / sizes).sum())
        return wilson(value, n_effective, level)

    if bounds == SHARE:
        divisor = 1
    elif len(sizes) == 1:
        divisor = 2
    else:
        divisor = 4
    freedom = float((beside_others - 1).sum()) / divisor
    q = student(level, max(LEAST_FREEDOM, freedom))
    centred = draws - draws.mean()
    spread = math.sqrt(np.mean(centred**2))
    skewness = float(np.mean(centred**3)) / spread**3
    tail = skewness * (1 + 2 * q**2) / 6
    # A relation with one fact adds no spread; the others stand for it.
    spread *= math.sqrt(float((1 / sizes).sum() / (1 / beside_others).sum()))
    return {
        "low": max(bounds[0], value - spread * (q + max(0.0, -tail))),
        "high": min(bounds[1], value + spread * (q + max(0.0, tail))),
    }


def wilson(share: float, n: float, level: float = LEVEL) -> dict[str, float]:
    """Return Wilson's interval of a share of n, which has a width also where the share is 0 or 1.

    >>> {name: round(end, 3) for name, end in wilson(1.0, 10).items()}
    {'low': 0.722, 'high': 1.0}
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return {"low": max(0.0, (middle - half) / scale), "high": min(1.0, (middle + half) / scale)}


@cache
def student(level: float, freedom: float) -> float:
    """Return the quantile of Student's t below which ``(1 + level) / 2`` of the distribution lies.

    With t = sqrt(freedom) tan(a), the density of a is proportional to cos(a)^(freedom - 1), which is integrated by the
    trapezoidal rule.

    >>> round(student(0.95, 7), 3), round(student(0.95, 3.5), 3)
    (2.365, 2.94)
    """
    # The grid is finer towards the end, where t is large.
    angles = np.pi / 2 * (1 - np.linspace(1, 0, 20_001) ** 2)
    density = np.cos(angles) ** (freedom - 1)
    areas = (density[1:] + density[:-1]) / 2 * np.diff(angles)
    cumulative = np.concatenate([[0.0], np.cumsum(areas)])
    angle = float(np.interp(level, cumulative / cumulative[-1], angles))
    return math.sqrt(freedom) * math.tan(angle)
