"""How often intervals of few facts hold the truth, and tests of models reject a true null: a table of docs/method.md.

    python -m tests.benchmarks.coverage [--draws 300]

The facts that all is drawn from are made up, so that the truth is known: probabilities before and after as those of
models are, skewed, from relations that differ. One scenario is sparse: a few facts in a hundred make up all of the
effect, as of neurons switched off on prompts of other facts; where none of these is drawn, no rule can know of them.

    ours           the rule of ``kn_lens._draws``
    percentiles    the middle of draws of as many facts as there are
    t              value +- t s, with sum(n - 1) degrees of freedom and the s of ``kn_lens._draws``
"""

import argparse
import math

import numpy as np
import pandas as pd

from kn_lens import NeuronSet
from kn_lens import _paired as paired
from kn_lens._bootstrap import Statistic, change_ratio, mean_of, perplexity, share_of, summed_up
from kn_lens._draws import LEVEL, resampled, student
from kn_lens.edit_tables import MEASURES
from kn_lens.experiments.overlap_tables import overlap_table

SHAPES = ((1, 5), (1, 8), (1, 10), (1, 20), (5, 5), (5, 10), (11, 5), (11, 20), (34, 5))
"""Relations, and facts of each."""
N_FACTS, N_RELATIONS, N_PROMPTS = 400, 34, 8


def population(relation: int) -> pd.DataFrame:
    """Return all facts of a relation."""
    rng = np.random.default_rng([1, relation])
    easy, hurt = rng.uniform(0.5, 4), rng.uniform(0.5, 3)
    before = rng.beta(easy, 1, N_FACTS).clip(1e-3)
    after = before * rng.beta(hurt, 1, N_FACTS)
    sparse = before * np.where(rng.random(N_FACTS) < 0.03, 0.3, 1 - rng.uniform(0, 0.01, N_FACTS))
    return pd.DataFrame(
        {
            "relation": f"P{relation}", "n_prompts": rng.integers(4, 2 * N_PROMPTS, N_FACTS), "before": before,
            "after": after, "sparse": sparse, "nll_before": -np.log(before), "nll_after": -np.log(after.clip(1e-4)),
            "right": (rng.random(N_FACTS) < easy / 5).astype(float), "size": rng.poisson(rng.uniform(1, 4), N_FACTS),
        }
    )  # fmt: skip


STATISTICS: dict[str, Statistic] = {
    "change ratio": change_ratio(),
    "change ratio, sparse": change_ratio("before", "sparse"),
    "perplexity": perplexity("nll_before"),
    "perplexity growth": MEASURES["perplexity_growth"],
    "share of facts": share_of("right"),
    "neurons per fact": mean_of("size"),
}


def drawn_values(facts: pd.DataFrame, statistic: Statistic, n_less: int, n_draws: int, seed: int) -> np.ndarray:
    """Return a statistic of facts as they are and drawn anew, plainly: for rules other than ours."""
    rng = np.random.default_rng(seed)
    sums = []
    for _, group in facts.groupby("relation"):
        n = len(group)
        counts = resampled(n, n_draws, rng) if n_less else rng.multinomial(n, np.full(n, 1 / n), size=n_draws)
        counts = counts if n_less else np.concatenate([np.ones((1, n)), counts])
        weights = [np.ones(n) if one.weight is None else group[one.weight].to_numpy(float) for one in statistic.means]
        columns = [group[one.column].to_numpy(float) for one in statistic.means]
        sums.append([(counts @ (w * x), counts @ w) for w, x in zip(weights, columns, strict=True)])
    if statistic.pooled:
        parts = [sum(one[i][0] for one in sums) / sum(one[i][1] for one in sums) for i in range(len(statistic.means))]
        return statistic.of(*parts)
    return np.mean([statistic.of(*(top / bottom for top, bottom in one)) for one in sums], axis=0)


def coverage(name: str, n_relations: int, n_facts: int, n_draws: int) -> None:
    """Print how often each rule's intervals hold the truth, and how wide they are in the middle."""
    statistic = STATISTICS[name]
    rng = np.random.default_rng([n_relations, n_facts])
    held: dict[str, list[bool]] = {"ours": [], "percentiles": [], "t": []}
    widths: dict[str, list[float]] = {rule: [] for rule in held}
    for trial in range(n_draws):
        of_trial = [POPULATIONS[i] for i in rng.choice(N_RELATIONS, n_relations, replace=False)]
        truth = float(drawn_values(pd.concat(of_trial), statistic, 1, 1, trial)[0])
        facts = pd.concat([one.iloc[rng.integers(N_FACTS, size=n_facts)] for one in of_trial]).assign(kind="")
        ours = summed_up(facts, ["kind"], statistic, seed=trial).iloc[0]
        values = drawn_values(facts, statistic, 0, 1000, trial)[1:]
        middle = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        fewer = drawn_values(facts, statistic, 1, 1000, trial)
        half = student(LEVEL, n_relations * (n_facts - 1)) * fewer[1:].std()
        ends = {
            "ours": (ours["low"], ours["high"]),
            "percentiles": tuple(middle),
            "t": (fewer[0] - half, fewer[0] + half),
        }
        for rule, (low, high) in ends.items():
            if not math.isnan(low):
                held[rule].append(bool(low <= truth <= high))
                widths[rule].append(high - low)
    cells = [f"{np.mean(held[r]):.1%} ({np.median(widths[r]):.3f})" if held[r] else "none" for r in held]
    print(f"| {name} | {n_relations} x {n_facts} | {' | '.join(cells)} | {len(held['ours'])} |", flush=True)


def sharing(n_relations: int, n_facts: int, n_draws: int) -> None:
    """Print the same for pairs of facts, of Table 2: ten neurons, each in a set with a chance of its relation."""
    rng = np.random.default_rng([2, n_relations, n_facts])
    held: dict[str, list[bool]] = {"neurons_per_fact": [], "shared_within": []}
    for trial in range(n_draws):
        chances = rng.uniform(0.1, 0.5, n_relations)
        sets = {
            f"P{r}": [NeuronSet((0, int(i)) for i in np.flatnonzero(rng.random(10) < p)) for _ in range(n_facts)]
            for r, p in enumerate(chances)
        }
        truth = {"neurons_per_fact": 10 * chances.mean(), "shared_within": 10 * (chances**2).mean()}
        table = overlap_table({"found": sets}, n_resamples=1000, seed=trial).query("relation == 'all'")
        for row in table.to_dict("records"):
            if row["statistic"] in held and not math.isnan(row["low"]):
                held[row["statistic"]].append(row["low"] <= truth[row["statistic"]] <= row["high"])
    for name, of_name in held.items():
        said = f"{np.mean(of_name):.1%}" if of_name else "none"
        print(f"| Table 2, {name} | {n_relations} x {n_facts} | {said} | | | {len(of_name)} |", flush=True)


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


POPULATIONS = [population(relation) for relation in range(N_RELATIONS)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=300, help="times that facts are drawn, in each scenario")
    n_draws = parser.parse_args().draws
    print("| statistic | relations x facts | ours (width) | percentiles | t | n |\n|---|---|---|---|---|---|")
    for name in STATISTICS:
        for n_relations, n_facts in SHAPES:
            coverage(name, n_relations, n_facts, n_draws)
    for n_relations, n_facts in SHAPES[1:-1]:
        sharing(n_relations, n_facts, n_draws)
    print("\n| relations | p of facts <= 0.05 | p of relations <= 0.05 |\n|---|---|---|")
    for n_relations in (5, 6, 8, 11, 34):
        by_fact, by_relation = rejections(n_relations, 1000)
        print(f"| {n_relations} | {by_fact:.1%} | {by_relation:.1%} |", flush=True)


if __name__ == "__main__":
    main()
