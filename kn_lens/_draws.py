"""Intervals from facts drawn anew: one rule for every table, figure and comparison.

Of each relation's n facts n - 1 are drawn, with replacement, the relations being given. Statistics of n - 1 draws
spread as much as those of new facts of these relations do (Rao and Wu 1988); of n draws they spread too little, the
more the fewer facts there are. With v the value of the facts as they are, s the spread of the draws and g their
skewness, the interval is

    v - s (q + max(0, -a))  to  v + s (q + max(0, a))        a = g (1 + 2 q^2) / 6

with q the quantile of Student's t. What a adds is what skewed facts need on the side of their tail (Johnson 1978; Hall
1992); on the other side they would allow for less, which is not taken away.

The degrees of freedom of q were chosen by simulation, so that in ``tests/benchmarks/coverage.py`` intervals of 95% hold
the truth at least 93% of the time: sum(n - 1), as of facts of normal distribution, for shares, which cannot lie far
out; half of that for other statistics, and a quarter where there are several relations. ``FEWEST`` facts are what
this takes. It is not reached where few facts make up most, as of effects on other facts in a single relation (90%): a
sample without these few does not tell of them, whatever the rule, and looks no worse than others.

There is no interval (NaN)

    of fewer than ``FEWEST`` facts that stand beside others of their relation: none would hold what it says;
    where all draws are alike: their spread is not known. Of a share that is 0 or 1 of all, it is Wilson's;
    where more draws lack a value than may lie outside, as where nothing is left to divide by.

The spread of a relation with one fact is not known: it is taken to be that of the others.
"""

import math
from functools import cache
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
FEWEST = 8
"""Facts below which there is no interval."""
WHY_NONE = f"A dash for an interval: fewer than {FEWEST} facts, or facts that are all alike."
"""What is said under a table some of whose values have none."""
SHARE = (0.0, 1.0)
"""Where a share lies."""
LEAST_FREEDOM = 2.0
"""Degrees of freedom, with the fewest facts."""
SAME = 1e-12
"""Relative to the value: draws that spread less are the same but for rounding."""


def resampled(n_facts: int, n_resamples: int, generator: np.random.Generator) -> Float[np.ndarray, "draw fact"]:
    """Return how often each fact is drawn; in the first row once each: the facts as they are.

    One fewer is drawn than there are facts; a single fact is drawn always.

    >>> resampled(3, 2, np.random.default_rng(0)).sum(1).tolist()
    [3.0, 2.0, 2.0]
    """
    chosen = generator.integers(n_facts, size=(n_resamples, max(n_facts - 1, 1)))
    chosen += n_facts * np.arange(n_resamples)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=n_resamples * n_facts).reshape(n_resamples, n_facts)
    return np.concatenate([np.ones((1, n_facts)), counts])


def mean_of_known(values: Float[np.ndarray, "relation draw"]) -> Float[np.ndarray, " draw"]:
    """Return the mean over the relations that have a value, NaN where none has.

    >>> mean_of_known(np.array([[1.0, 1.0, np.nan], [3.0, np.nan, np.nan]])).tolist()
    [2.0, 1.0, nan]
    """
    known = ~np.isnan(values)
    counts = known.sum(0)
    return np.divide(np.where(known, values, 0.0).sum(0), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def interval(
    drawn: Float[np.ndarray, " draw"],
    sizes: Int[np.ndarray, " relation"],
    level: float = LEVEL,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> dict[str, float]:
    """Return the interval of a statistic, as ``low`` and ``high``; NaN where there is none.

    Args:
        drawn: the statistic, of the facts as they are and then of those drawn; see ``resampled``.
        sizes: how many facts each relation has.
        level: how often it should hold the truth.
        within: where the truth lies, whatever the facts are: ``SHARE`` of a share.

    >>> facts = np.arange(10.0)
    >>> means = resampled(10, 4000, np.random.default_rng(0)) @ facts
    >>> means[1:] /= 9
    >>> means[0] /= 10
    >>> {name: round(end) for name, end in interval(means, np.array([10])).items()}
    {'low': 2, 'high': 7}
    """
    none = {"low": math.nan, "high": math.nan}
    value, draws = float(drawn[0]), drawn[1:][~np.isnan(drawn[1:])]
    beside = sizes[sizes > 1]
    if math.isnan(value) or beside.sum() < FEWEST or len(draws) < max(1.0, level * (len(drawn) - 1)):
        return none
    if np.ptp(draws) <= SAME * abs(value):
        at_an_end = within == SHARE and value in within and draws[0] == value
        return wilson(value, len(sizes) ** 2 / float((1 / sizes).sum()), level) if at_an_end else none
    per_freedom = 1 if within == SHARE else 2 if len(sizes) == 1 else 4
    q = student(level, max(LEAST_FREEDOM, float((beside - 1).sum()) / per_freedom))
    centred = draws - draws.mean()
    spread = math.sqrt(np.mean(centred**2))
    tail = float(np.mean(centred**3)) / spread**3 * (1 + 2 * q**2) / 6
    spread *= math.sqrt(float((1 / sizes).sum() / (1 / beside).sum()))
    return {
        "low": max(within[0], value - spread * (q + max(0.0, -tail))),
        "high": min(within[1], value + spread * (q + max(0.0, tail))),
    }


def wilson(share: float, n: float, level: float = LEVEL) -> dict[str, float]:
    """Return Wilson's interval of a share of n, which has a width also where all are alike.

    >>> {name: round(end, 3) for name, end in wilson(1.0, 10).items()}
    {'low': 0.722, 'high': 1.0}
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return {"low": max(0.0, low), "high": min(1.0, high)}


@cache
def student(level: float, freedom: float) -> float:
    """Return how far from 0 the middle ``level`` of Student's t reaches.

    With t = sqrt(freedom) tan(a), the density of a is that of cos(a)^(freedom - 1), here summed up in steps.

    >>> round(student(0.95, 7), 3), round(student(0.95, 3.5), 3)
    (2.365, 2.94)
    """
    # Closer to the end where t is large.
    angles = np.pi / 2 * (1 - np.linspace(1, 0, 20_001) ** 2)
    density = np.cos(angles) ** (freedom - 1)
    shares = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(angles))])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, shares / shares[-1], angles)))
