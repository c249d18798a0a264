"""What the draws of a bootstrap say: means over relations, and intervals; a draw that has no value is NaN."""

import numpy as np
from jaxtyping import Float

LEVEL = 0.95


def resampled(n_facts: int, n_resamples: int, generator: np.random.Generator) -> Float[np.ndarray, "draw fact"]:
    """Return how often each fact is drawn; in the first row once each: the facts as they are.

    >>> resampled(3, 2, np.random.default_rng(0)).sum(1).tolist()
    [3.0, 3.0, 3.0]
    """
    chosen = generator.integers(n_facts, size=(n_resamples, n_facts)) + n_facts * np.arange(n_resamples)[:, None]
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


def interval(values: Float[np.ndarray, " draw"], level: float = LEVEL) -> dict[str, float]:
    """Return the middle of the draws, as ``low`` and ``high``; NaN when a smaller share than ``level`` has a value.

    >>> interval(np.arange(101.0), level=0.5)
    {'low': 25.0, 'high': 75.0}
    """
    known = values[~np.isnan(values)]
    if len(known) < level * len(values) or not len(known):
        return {"low": float("nan"), "high": float("nan")}
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high)}
