"""How often intervals of few facts hold the truth, and tests of models reject a true null: a table of docs/method.md.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.coverage [--samples 1000] [--effects effects.csv]

The facts that all is drawn from are made up, so that the truth is known: probabilities before and after as those of
models are, skewed, from relations that differ. One scenario is sparse: three facts in a hundred make up all of the
effect; where none of these is drawn, no rule can know of them. With ``--effects``, a table of ``controlled_effects`` of
many facts, they are those of a model: 400 samples of such a table, drawn with replacement.

    ours           the rule of ``kn_lens._draws``
    percentiles    the middle of draws of as many facts as there are
    t              value +- t s, with sum(n - 1) degrees of freedom and the s of ``kn_lens._draws``

With 1,000 samples a coverage of 95% is known to 0.7 points (standard error). Widths are medians; those of
perplexities and their growth are of logarithms.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kn_lens import _paired as paired
from kn_lens._bootstrap import Statistic, _values, change_ratio, mean_of, perplexity, share_of
from kn_lens._draws import LEVEL, interval, resampled, student
from kn_lens.edit_tables import MEASURES
from kn_lens.experiments.overlap_tables import _Incidence

SHAPES = ((1, 8), (1, 10), (1, 20), (5, 5), (5, 10), (11, 5), (11, 20), (34, 5))
"""Relations, and facts of each."""
N_FACTS, N_RELATIONS, N_RESAMPLES = 400, 34, 500
Population = dict[str, np.ndarray]
"""Columns ``[relation, fact]``."""
Ends = tuple[np.ndarray, np.ndarray]


def made_up() -> Population:
    """Return facts of relations that differ."""
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
    "share of facts": share_of("right"),
    "neurons per fact": mean_of("size"),
    "change ratio, sparse": change_ratio("before", "sparse"),
}


def counted(shape: tuple[int, int], *, one_less: bool) -> list[np.ndarray]:
    """Return how often each fact is drawn, ``[draw, fact]`` of each relation; in the first row once each."""
    rng = np.random.default_rng(0)
    n_relations, n = shape
    if one_less:
        return [resampled(n, N_RESAMPLES, rng) for _ in range(n_relations)]
    as_many = [rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES) for _ in range(n_relations)]
    return [np.concatenate([np.ones((1, n)), counts]) for counts in as_many]


def values_of(statistic: Statistic, facts: Sequence[Population], counts: Sequence[np.ndarray]) -> np.ndarray:
    """Return a statistic of many samples at once, ``[sample, draw]``, from columns ``[sample, fact]`` by relation."""
    sums = {}
    for place, (columns, drawn) in enumerate(zip(facts, counts, strict=True)):
        sums[str(place)] = {
            mean: np.stack([weights * columns[mean.column] @ drawn.T, weights @ drawn.T]).reshape(2, -1)
            for mean in statistic.means
            for weights in [columns.get(mean.weight or "", np.ones_like(columns[mean.column]))]
        }
    return _values(statistic, sums)[0].reshape(-1, len(counts[0]))


def by_ours(values: np.ndarray, shape: tuple[int, int], within: tuple[float, float]) -> Ends:
    """Return the ends of the library's intervals, a sample each."""
    ends = [interval(one, np.full(*shape), within=within) for one in values]
    return np.array([one["low"] for one in ends]), np.array([one["high"] for one in ends])


def report(name: str, shape: tuple[int, int], truth: np.ndarray, rules: dict[str, Ends]) -> None:
    """Print how often each rule's intervals hold the truth, and how wide they are in the middle."""
    cells, given = [], 0
    for low, high in rules.values():
        there = ~np.isnan(low)
        given = given or int(there.sum())
        held = ((low <= truth) & (truth <= high))[there]
        cells.append(f"{held.mean():.1%} ({np.median((high - low)[there]):.3f})" if len(held) else "none")
    print(f"| {name} | {shape[0]} x {shape[1]} | {' | '.join(cells)} | {given} |", flush=True)


def all_rules(
    name: str,
    shape: tuple[int, int],
    truth: np.ndarray,
    drawn: Callable[[list[np.ndarray]], np.ndarray],
    within: tuple[float, float],
) -> None:
    """Print how the rules do on a statistic, which ``drawn`` gives of facts drawn so often."""
    fewer, as_many = (drawn(counted(shape, one_less=one_less)) for one_less in (True, False))
    low, high = np.quantile(as_many[:, 1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    half = student(LEVEL, shape[0] * (shape[1] - 1)) * fewer[:, 1:].std(1)
    rules = {
        "ours": by_ours(fewer, shape, within),
        "percentiles": (low, high),
        "t": (fewer[:, 0] - half, fewer[:, 0] + half),
    }
    report(name, shape, truth, rules)


def coverage(name: str, statistic: Statistic, population: Population, shape: tuple[int, int], n_samples: int) -> None:
    """Print how the rules do on samples of a population."""
    rng = np.random.default_rng(shape)
    n_relations, n = shape
    of_all, of_each = next(iter(population.values())).shape
    relations = np.stack([rng.choice(of_all, n_relations, replace=False) for _ in range(n_samples)])
    chosen = rng.integers(of_each, size=(n_samples, n_relations, n))
    samples, everything = (
        [{column: values[relations[:, [place]], facts] for column, values in population.items()} for place, facts in of]
        for of in (
            [(place, chosen[:, place]) for place in range(n_relations)],
            [(place, np.arange(of_each)[None]) for place in range(n_relations)],
        )
    )
    truth = values_of(statistic, everything, [np.ones((1, of_each))] * n_relations)[:, 0]
    all_rules(name, shape, truth, lambda counts: values_of(statistic, samples, counts), statistic.within)


def sharing(shape: tuple[int, int], n_samples: int) -> None:
    """Print the same for pairs of facts, of Table 2: ten neurons, each in a set with a chance of its relation."""
    rng = np.random.default_rng([2, *shape])
    n_relations, n = shape
    chances = rng.uniform(0.1, 0.5, (n_samples, n_relations))
    sets = rng.random((n_samples, n_relations, n, 10)) < chances[..., None, None]

    def drawn(counts: list[np.ndarray]) -> np.ndarray:
        columns = [np.arange(10)] * n_relations
        return np.stack([_Incidence(list(one), columns, 10).statistics(counts)["shared_within"][:, -1] for one in sets])

    all_rules("Table 2, shared within", shape, 10 * (chances**2).mean(1), drawn, (0.0, np.inf))


def measured(path: Path) -> dict[str, Population]:
    """Return the effects of a table of ``controlled_effects``, by neurons and facts; relations repeated to one size."""
    table = pd.read_csv(path)
    return {
        f"{neurons}, {facts}": {
            column: np.stack(
                [np.resize(group[column].to_numpy(float), N_FACTS) for _, group in cell.groupby("relation")]
            )
            for column in ("n_prompts", "before", "after")
        }
        for (neurons, facts), cell in table.groupby(["neurons", "facts"])
    }


def rejections(n_relations: int, n_draws: int) -> tuple[float, float]:
    """Return how often each test rejects at 0.05 that models are alike, which differ by relation, by chance."""
    rng = np.random.default_rng(n_relations)
    facts = np.stack(
        [np.repeat(rng.normal(size=n_relations), 20) + rng.normal(size=20 * n_relations) for _ in range(n_draws)],
        axis=1,
    )
    how = {"n_permutations": 1000, "seed": 0}
    by_relation = paired.sign_flip_p(facts.reshape(n_relations, 20, n_draws).mean(1), **how)
    by_fact = paired.sign_flip_p(facts, **how)
    return float((by_fact <= 0.05).mean()), float((by_relation <= 0.05).mean())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000, help="times that facts are drawn, in each scenario")
    parser.add_argument("--effects", type=Path, help="a CSV file of controlled_effects, in place of facts made up")
    given = parser.parse_args()
    print("| statistic | relations x facts | ours (width) | percentiles | t | n |\n|---|---|---|---|---|---|")
    if given.effects:
        for name, population in measured(given.effects).items():
            for shape in SHAPES:
                if shape[0] <= len(population["before"]):
                    coverage(name, change_ratio(), population, shape, given.samples)
        return
    population = made_up()
    for name, statistic in STATISTICS.items():
        for shape in SHAPES:
            coverage(name, statistic, population, shape, given.samples)
    for shape in SHAPES[:-1]:
        sharing(shape, given.samples)
    print("\n| relations | p of facts <= 0.05 | p of relations <= 0.05 |\n|---|---|---|")
    for n_relations in (6, 8, 11, 34):
        by_fact, by_relation = rejections(n_relations, 1000)
        print(f"| {n_relations} | {by_fact:.1%} | {by_relation:.1%} |", flush=True)


if __name__ == "__main__":
    main()
