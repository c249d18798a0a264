"""The overlap of neuron sets, and their distribution over the layers (Dai et al. 2022, table 2 and figure 3).

A method that finds what belongs to a fact finds small sets that facts of one relation share in part and facts of
different relations hardly at all:

    neurons_per_fact   mean size of the sets
    shared_within      mean number of neurons that two facts of one relation share, over all such pairs
    shared_across      mean number of neurons that a fact shares with a random fact of a random other relation

Pairs of all relations count alike in ``shared_within``, as in the released code, so that relations with many facts
weigh most. The released code draws 100 facts for each fact in ``shared_across``; the exact mean of that draw is taken.

Statistics are of the facts as they are and of bootstrap samples: each relation's facts are drawn anew, with
replacement. A fact that is drawn several times is not compared with itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Bool, Float, Int

from kn_lens._core.bootstrap import bootstrap_counts
from kn_lens._core.checks import check_share
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact
from kn_lens.neurons.neuron_set import Neuron, NeuronSet
from kn_lens.neurons.refine import prompts_needed

SetsByRelation = Mapping[str, Sequence[NeuronSet]]
"""The set of each fact, by relation."""
OverlapStatistics = dict[str, Float[np.ndarray, "*draw relation_and_all"]]
"""Statistics by name, of each relation and, in the last column, of all relations together."""

OVERLAP_STATISTICS = ("neurons_per_fact", "shared_within", "shared_across")
RESAMPLES_AT_ONCE = 100


def jaccard(a: NeuronSet, b: NeuronSet) -> float:
    """Return the share of the union that two sets have in common: 1 for equal sets (two empty ones too).

    >>> jaccard(NeuronSet([(9, 7), (9, 8)]), NeuronSet([(9, 8)]))
    0.5
    """
    if not a and not b:
        return 1.0
    return len(a & b) / len(a | b)


def relation_neurons(
    neurons: Mapping[Fact, NeuronSet],
    *,
    min_share: float = 0.1,
    top: int | None = None,
) -> dict[str, NeuronSet]:
    """Return the neurons that stand for each relation as a whole.

    Args:
        neurons: the sets of facts.
        min_share: a neuron has to be in this share of the relation's sets.
        top: take the ``top`` most frequent ones instead (the paper erases a relation with 20), or all where there are
            fewer; of equally frequent ones the first by layer and index.

    Raises:
        ArgumentError: ``min_share`` outside [0, 1], ``top`` below 1.

    >>> facts = [Fact("Ireland", "P36", "Dublin"), Fact("France", "P36", "Paris")]
    >>> found = {facts[0]: NeuronSet([(9, 7), (9, 8)]), facts[1]: NeuronSet([(9, 8)])}
    >>> relation_neurons(found, top=1)
    {'P36': NeuronSet(['L9N8'])}
    """
    check_share("min_share", min_share)
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise ArgumentError(f"top={top!r}; expected a whole number from 1, or None.")
    counts: dict[str, Counter[Neuron]] = {}
    n_facts: Counter[str] = Counter()
    for fact, found in neurons.items():
        counts.setdefault(fact.relation, Counter()).update(found)
        n_facts[fact.relation] += 1
    chosen = {}
    for relation, n_sets in counts.items():
        if top is None:
            needed = prompts_needed(n_facts[relation], min_share, 1)
            chosen[relation] = NeuronSet(neuron for neuron, count in n_sets.items() if count >= needed)
        else:
            by_frequency = sorted(n_sets, key=lambda neuron: (-n_sets[neuron], neuron))
            chosen[relation] = NeuronSet(by_frequency[:top])
    return chosen


def overlap_statistics(
    sets: SetsByRelation,
    n_resamples: int,
    seed: int,
) -> tuple[OverlapStatistics, OverlapStatistics]:
    """Return the overlap statistics of the facts as they are, and of ``n_resamples`` bootstrap samples of them.

    The samples depend on the seed and on the number of facts of each relation alone, so that two models' sets of the
    same facts have the same samples. A statistic is NaN where there is nothing to compare.

    Args:
        sets: the set of each fact, by relation.
        n_resamples: number of bootstrap samples.
        seed: of the samples.

    Returns:
        By statistic, ``[relation]`` of the facts as they are, and ``[draw, relation]`` of the samples; the last column
        is that of all relations together.

    >>> sets = {"P36": [NeuronSet([(9, 7), (9, 8)]), NeuronSet([(9, 8)])], "P38": [NeuronSet([(9, 7)])]}
    >>> exact, resampled = overlap_statistics(sets, n_resamples=3, seed=0)
    >>> exact["shared_within"].tolist(), resampled["shared_within"].shape
    ([1.0, nan, 1.0], (3, 3))
    """
    generator = np.random.default_rng(seed)
    incidence = Incidence.of(sets)
    each_fact_once = [np.ones((1, len(group))) for group in sets.values()]
    parts = []
    for start in range(0, n_resamples, RESAMPLES_AT_ONCE):
        n = min(RESAMPLES_AT_ONCE, n_resamples - start)
        draws = [bootstrap_counts(len(group), n, generator)[1:] for group in sets.values()]
        parts.append(incidence.statistics(draws))
    exact: OverlapStatistics = {}
    for name, values in incidence.statistics(each_fact_once).items():
        exact[name] = values[0]
    resampled: OverlapStatistics = {}
    for name in OVERLAP_STATISTICS:
        resampled[name] = np.concatenate([part[name] for part in parts])
    return exact, resampled


def sampled_across(
    sets: SetsByRelation,
    n_samples: int,
    seed: int,
) -> Float[np.ndarray, " relation_and_all"]:
    """Return ``shared_across`` as the released code does, by drawing facts of other relations.

    Args:
        sets: the set of each fact, by relation.
        n_samples: number of random facts of random other relations that each fact is compared with.
        seed: of the draw.

    Returns:
        The mean over the facts of each relation, and over all facts in the last column; NaN with one relation.
    """
    generator = np.random.default_rng([seed, n_samples])
    groups = list(sets.values())
    sums = np.full((1, len(groups)), np.nan)
    sizes = np.array([len(group) for group in groups])
    if len(groups) > 1:
        for relation, group in enumerate(groups):
            others = generator.integers(len(groups) - 1, size=(len(group), n_samples))
            others += others >= relation
            facts = generator.integers(sizes[others])
            n_shared = 0
            for number, neurons in enumerate(group):
                pairs = zip(others[number].tolist(), facts[number].tolist(), strict=True)
                for other, fact in pairs:
                    n_shared += len(neurons & groups[other][fact])
            sums[0, relation] = n_shared
    return _with_all(sums / n_samples, sizes[None])[0]


def resampled_layer_counts(
    sets: SetsByRelation,
    n_layers: int,
    n_resamples: int,
    seed: int,
) -> Float[np.ndarray, "1+n_resamples n_layers"]:
    """Return the number of neurons in each layer; a neuron counts once for each fact that has it.

    Row 0 is of the facts as they are, the others of bootstrap samples of them.

    Raises:
        ArgumentError: a neuron lies above the last layer.
    """
    counts = []
    for group in sets.values():
        counts.append(np.array([neurons.layer_counts(n_layers) for neurons in group], dtype=float))
    return resampled_sums(counts, n_resamples, seed)


def resampled_sums(
    counts: Sequence[Float[np.ndarray, "fact bin"]],
    n_resamples: int,
    seed: int,
) -> Float[np.ndarray, "1+n_resamples bin"]:
    """Return the sums over facts of what is counted for each, given by relation.

    Row 0 is of the facts as they are, the others of bootstrap samples of each relation's facts.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros((1 + n_resamples, counts[0].shape[1]))
    for of_relation in counts:
        total += bootstrap_counts(len(of_relation), n_resamples, generator) @ of_relation
    return total


@dataclass(frozen=True)
class Incidence:
    """Which facts of each relation have which neurons.

    Attributes:
        has: of each relation, ``[fact, neuron]``, over the neurons that any of its facts has.
        columns: of each relation, the numbers of these neurons among the neurons of all relations.
        n_neurons: number of neurons of all relations.
    """

    has: list[Bool[np.ndarray, "fact neuron"]]
    columns: list[Int[np.ndarray, " neuron"]]
    n_neurons: int

    @classmethod
    def of(cls, sets: SetsByRelation) -> "Incidence":
        """Number the neurons of the sets in the order in which they come up."""
        number: dict[Neuron, int] = {}
        has, columns = [], []
        for group in sets.values():
            column_of: dict[Neuron, int] = {}
            for neuron in chain.from_iterable(group):
                column_of.setdefault(neuron, len(column_of))
                number.setdefault(neuron, len(number))
            incidence = np.zeros((len(group), len(column_of)), dtype=bool)
            for fact, neurons in enumerate(group):
                for neuron in neurons:
                    incidence[fact, column_of[neuron]] = True
            has.append(incidence)
            columns.append(np.array([number[neuron] for neuron in column_of], dtype=int))
        return cls(has, columns, len(number))

    def statistics(self, draws: Sequence[Float[np.ndarray, "draw fact"]]) -> OverlapStatistics:
        """Return the overlap statistics of samples of the facts.

        With C the number of draws of a relation that have a neuron, its pairs of draws share sum(C (C - 1) / 2)
        neurons, from which those that a fact shares with itself are subtracted. The expected number of neurons that a
        draw shares with a random draw of another relation is the sum over neurons of the product of both relations'
        shares C / n.

        Args:
            draws: of each relation, how often each fact is in each sample.

        Returns:
            By statistic ``[draw, relation]``; the last column is that of all relations together.
        """
        n_draws, n_relations = len(draws[0]), len(draws)
        sizes = np.zeros((n_draws, n_relations))
        n_facts = np.zeros((n_draws, n_relations))
        shared = np.zeros((n_draws, n_relations))
        pairs = np.zeros((n_draws, n_relations))
        across = np.zeros((n_draws, n_relations))
        sum_of_shares = np.zeros((n_draws, self.n_neurons), dtype=np.float32)
        shares = []
        for relation, drawn in enumerate(draws):
            has = self.has[relation]
            count = drawn.astype(np.float32) @ has.astype(np.float32)
            size = has.sum(1)
            sizes[:, relation] = drawn @ size
            n_facts[:, relation] = drawn.sum(1)
            shared[:, relation] = ((count.astype(float) ** 2).sum(1) - drawn**2 @ size) / 2
            pairs[:, relation] = (n_facts[:, relation] ** 2 - (drawn**2).sum(1)) / 2
            share = count / drawn.sum(1, keepdims=True).astype(np.float32)
            sum_of_shares[:, self.columns[relation]] += share
            shares.append(share)
        for relation, share in enumerate(shares):
            columns = self.columns[relation]
            elsewhere = sum_of_shares[:, columns] - share
            across[:, relation] = (share * elsewhere).sum(1, dtype=float)
        with np.errstate(invalid="ignore", divide="ignore"):
            across /= n_relations - 1
            return {
                "neurons_per_fact": _with_all(sizes, n_facts),
                "shared_within": _with_all(shared, pairs),
                "shared_across": _with_all(across * n_facts, n_facts),
            }


def _with_all(
    sums: Float[np.ndarray, "draw relation"],
    counts: Float[np.ndarray, "draw relation"] | Int[np.ndarray, "1 relation"],
) -> Float[np.ndarray, "draw relation_and_all"]:
    """Return the mean of each relation, and that of all together in the last column."""
    mean_of_all = sums.sum(1, keepdims=True) / counts.sum(1, keepdims=True)
    return np.hstack([sums / counts, mean_of_all])
