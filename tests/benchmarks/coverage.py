"""Coverage of the intervals of few facts, and rejection rates of tests under a true null: tables of docs/method.md.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.coverage [--samples 1000] [--effects effects.csv]

The population of facts is made up, so that the truth is known: probabilities before and after that are skewed, as those
of models are, from relations that differ. One scenario is sparse: three facts in a hundred make up all of the effect;
where a sample has none of them, no rule can correct for it. With ``--effects``, a table of ``controlled_effects`` of
many facts, the population is that of a model, sampled with replacement.

    ours           the rule of ``kn_lens._core.intervals``
    percentiles    middle of the draws of as many facts as there are
    t              value +- t s, with sum(n - 1) degrees of freedom and the s of ``kn_lens._core.intervals``

With 1,000 samples a coverage of 95% has a standard error of 0.7 points. Widths are medians; those of perplexities and
their growth are of logarithms.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kn_lens._core import permutation
from kn_lens._core.bootstrap import (
    DrawnRelation,
    Statistic,
    bootstrap_counts,
    change_ratio,
    drawn_statistic,
    fact_mean,
    fact_share,
    perplexity,
)
from kn_lens._core.intervals import LEVEL, interval, student
from kn_lens.edits.tables import MEASURES
from kn_lens.neurons import Incidence

SHAPES = ((1, 8), (1, 10), (1, 20), (5, 5), (5, 10), (11, 5), (11, 20), (34, 5))
"""Numbers of relations, and of facts in each."""
N_FACTS, N_RELATIONS, N_RESAMPLES = 400, 34, 500
Population = dict[str, np.ndarray]
"""Columns ``[relation, fact]``."""
Ends = tuple[np.ndarray, np.ndarray]
"""Lower and upper ends of the intervals of all samples."""


def made_up() -> Population:
    """Return a population of facts of relations that differ."""
    relations = []
    for relation in range(N_RELATIONS):
        rng = np.random.default_rng([1, relation])
        easy, hurt = rng.uniform(0.5, 4), rng.uniform(0.5, 3)
        before = rng.beta(easy, 1, N_FACTS).clip(1e-3)
        after = before * rng.beta(hurt, 1, N_FACTS)
        few = rng.random(N_FACTS) < 0.03
        columns = {
            "n_prompts": rng.integers(4, 16, N_FACTS),
            "before": before,
            "after": after,
            "sparse": before * np.where(few, 0.3, 1 - rng.uniform(0, 0.01, N_FACTS)),
            "nll_before": -np.log(before),
            "nll_after": -np.log(after.clip(1e-4)),
            "right": rng.random(N_FACTS) < easy / 5,
            "size": rng.poisson(rng.uniform(1, 4), N_FACTS),
        }
        relations.append(columns)
    return {name: np.array([one[name] for one in relations], dtype=float) for name in relations[0]}


STATISTICS: dict[str, Statistic] = {
    "change ratio": change_ratio(),
    "perplexity": perplexity("nll_before"),
    "perplexity growth": MEASURES["perplexity_growth"],
    "perplexity rise": MEASURES["perplexity_rise"],
    "share of facts": fact_share("right"),
    "neurons per fact": fact_mean("size"),
    "change ratio, sparse": change_ratio("before", "sparse"),
}


def draw_counts(shape: tuple[int, int], *, one_less: bool) -> list[np.ndarray]:
    """Return how often each draw contains each fact, ``[draw, fact]`` of each relation; the first row is the sample."""
    rng = np.random.default_rng(0)
    n_relations, n = shape
    counts = []
    for _ in range(n_relations):
        if one_less:
            counts.append(bootstrap_counts(n, N_RESAMPLES, rng))
        else:
            as_many = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)
            counts.append(np.concatenate([np.ones((1, n)), as_many]))
    return counts


def values_of(statistic: Statistic, samples: Sequence[Population], counts: Sequence[np.ndarray]) -> np.ndarray:
    """Return a statistic of many samples, ``[sample, draw]``, from columns ``[sample, fact]`` of each relation."""
    relations = []
    for columns, drawn in zip(samples, counts, strict=True):
        sums = {}
        for mean in statistic.means:
            values = columns[mean.column]
            weights = np.ones_like(values) if mean.weight is None else columns[mean.weight]
            # All samples side by side, as if they were one sample with more draws.
            sums[mean] = np.stack([weights * values @ drawn.T, weights @ drawn.T]).reshape(2, -1)
        relations.append(DrawnRelation(drawn.shape[1], sums))
    drawn_values, _ = drawn_statistic(statistic, relations)
    return drawn_values.reshape(-1, len(counts[0]))


def library_ends(values: np.ndarray, shape: tuple[int, int], bounds: tuple[float, float]) -> Ends:
    """Return the ends of the library's intervals of all samples."""
    low, high = [], []
    for drawn in values:
        ends = interval(drawn, np.full(*shape), bounds=bounds)
        low.append(ends["low"])
        high.append(ends["high"])
    return np.array(low), np.array(high)


def report(name: str, shape: tuple[int, int], truth: np.ndarray, rules: dict[str, Ends]) -> None:
    """Print the coverage and the median width of the intervals of each rule."""
    cells = []
    n_intervals = 0
    for low, high in rules.values():
        exists = ~np.isnan(low)
        n_intervals = n_intervals or int(exists.sum())
        contains = ((low <= truth) & (truth <= high))[exists]
        width = np.median((high - low)[exists]) if len(contains) else np.nan
        cells.append(f"{contains.mean():.1%} ({width:.3f})" if len(contains) else "none")
    print(f"| {name} | {shape[0]} x {shape[1]} | {' | '.join(cells)} | {n_intervals} |", flush=True)


def report_all_rules(
    name: str,
    shape: tuple[int, int],
    truth: np.ndarray,
    drawn: Callable[[list[np.ndarray]], np.ndarray],
    bounds: tuple[float, float],
) -> None:
    """Print the coverage of all rules for a statistic, which ``drawn`` computes from counts."""
    fewer = drawn(draw_counts(shape, one_less=True))
    as_many = drawn(draw_counts(shape, one_less=False))
    low, high = np.quantile(as_many[:, 1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    half = student(LEVEL, shape[0] * (shape[1] - 1)) * fewer[:, 1:].std(1)
    rules = {
        "ours": library_ends(fewer, shape, bounds),
        "percentiles": (low, high),
        "t": (fewer[:, 0] - half, fewer[:, 0] + half),
    }
    report(name, shape, truth, rules)


def coverage(name: str, statistic: Statistic, population: Population, shape: tuple[int, int], n_samples: int) -> None:
    """Print the coverage of all rules in samples of a population."""
    rng = np.random.default_rng(shape)
    n_relations, n = shape
    n_all_relations, n_all_facts = next(iter(population.values())).shape
    relations = np.stack([rng.choice(n_all_relations, n_relations, replace=False) for _ in range(n_samples)])
    facts = rng.integers(n_all_facts, size=(n_samples, n_relations, n))
    all_facts = np.arange(n_all_facts)[None]
    samples, everything = [], []
    for position in range(n_relations):
        relation = relations[:, [position]]
        samples.append({name: column[relation, facts[:, position]] for name, column in population.items()})
        everything.append({name: column[relation, all_facts] for name, column in population.items()})
    truth = values_of(statistic, everything, [np.ones((1, n_all_facts))] * n_relations)[:, 0]
    report_all_rules(name, shape, truth, lambda counts: values_of(statistic, samples, counts), statistic.bounds)


def coverage_of_sharing(shape: tuple[int, int], n_samples: int) -> None:
    """Print the coverage for pairs of facts in Table 2: a set has each of ten neurons with a chance of its relation."""
    rng = np.random.default_rng([2, *shape])
    n_relations, n = shape
    chances = rng.uniform(0.1, 0.5, (n_samples, n_relations))
    sets = rng.random((n_samples, n_relations, n, 10)) < chances[..., None, None]

    def drawn(counts: list[np.ndarray]) -> np.ndarray:
        columns = [np.arange(10)] * n_relations
        values = []
        for sample in sets:
            statistics = Incidence(list(sample), columns, 10).statistics(counts)
            values.append(statistics["shared_within"][:, -1])
        return np.stack(values)

    report_all_rules("Table 2, shared within", shape, 10 * (chances**2).mean(1), drawn, (0.0, np.inf))


def measured(path: Path) -> dict[str, Population]:
    """Return the effects in a CSV file by neuron set and scope, the facts of each relation repeated to one number."""
    populations = {}
    for (neuron_set, scope), cell in pd.read_csv(path).groupby(["neuron_set", "scope"]):
        columns = {}
        for column in ("n_prompts", "before", "after"):
            relations = []
            for _, group in cell.groupby("relation"):
                relations.append(np.resize(group[column].to_numpy(float), N_FACTS))
            columns[column] = np.stack(relations)
        populations[f"{neuron_set}, {scope}"] = columns
    return populations


def rejections(n_relations: int, n_draws: int) -> tuple[float, float]:
    """Return how often each test rejects at 0.05 that two models are alike, which differ by relation at random."""
    rng = np.random.default_rng(n_relations)
    columns = []
    for _ in range(n_draws):
        of_relations = np.repeat(rng.normal(size=n_relations), 20)
        columns.append(of_relations + rng.normal(size=20 * n_relations))
    facts = np.stack(columns, axis=1)
    relations = facts.reshape(n_relations, 20, n_draws).mean(1)
    by_fact = permutation.sign_flip_p(facts, n_permutations=1000, seed=0)
    by_relation = permutation.sign_flip_p(relations, n_permutations=1000, seed=0)
    return float((by_fact <= 0.05).mean()), float((by_relation <= 0.05).mean())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000, help="samples of facts in each scenario")
    parser.add_argument("--effects", type=Path, help="CSV file of controlled_effects, in place of made-up facts")
    options = parser.parse_args()
    print("| statistic | relations x facts | ours (width) | percentiles | t | n |\n|---|---|---|---|---|---|")
    if options.effects:
        for name, population in measured(options.effects).items():
            for shape in SHAPES:
                if shape[0] <= len(population["before"]):
                    coverage(name, change_ratio(), population, shape, options.samples)
        return
    population = made_up()
    for name, statistic in STATISTICS.items():
        for shape in SHAPES:
            coverage(name, statistic, population, shape, options.samples)
    for shape in SHAPES[:-1]:
        coverage_of_sharing(shape, options.samples)
    print("\n| relations | p of facts <= 0.05 | p of relations <= 0.05 |\n|---|---|---|")
    for n_relations in (6, 8, 11, 34):
        by_fact, by_relation = rejections(n_relations, 1000)
        print(f"| {n_relations} | {by_fact:.1%} | {by_relation:.1%} |", flush=True)


if __name__ == "__main__":
    main()
