"""The rule of intervals, restated: a skewness-corrected t interval about the value of the facts as they are."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from kn_lens._draws import resampled


def skewed_t(value: float, samples: Sequence[float], q: float) -> list[float]:
    """Return the ends of the interval of a statistic, from its values in draws and the quantile of t."""
    n = len(samples)
    mean = sum(samples) / n
    spread = (sum((one - mean) ** 2 for one in samples) / n) ** 0.5
    skewness = sum(((one - mean) / spread) ** 3 for one in samples) / n
    more = spread * abs(skewness) * (1 + 2 * q * q) / 6
    return [value - spread * q - more * (skewness < 0), value + spread * q + more * (skewness > 0)]


def facts_drawn(sizes: Sequence[int], n_resamples: int) -> Iterator[list[np.ndarray]]:
    """Go through the draws of seed 0: for each relation the places of the facts drawn, as often as they were."""
    generator = np.random.default_rng(0)
    counts = [resampled(n, n_resamples, generator)[1:].astype(int) for n in sizes]
    for draw in zip(*counts, strict=True):
        yield [np.repeat(np.arange(len(one)), one) for one in draw]


def hold_their_values(table: pd.DataFrame) -> bool:
    """Return whether every interval of a table has two ends and its value between them, to rounding."""
    given = table.dropna(subset=["low", "high"], how="all")
    room = 1e-9 * (1 + given["value"].abs())
    return bool((given["low"] <= given["value"] + room).all() and (given["value"] <= given["high"] + room).all())
