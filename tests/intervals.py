"""The rule of intervals, restated: a skewness-corrected t interval about the value of the facts as they are."""

from collections.abc import Iterator, Sequence

import numpy as np

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
