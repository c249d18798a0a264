"""The overlap of neuron sets by its definition: loops over facts and pairs of facts."""

import math
from itertools import chain

import numpy as np


def mean(values):
    return math.fsum(values) / len(values) if values else math.nan


def naive_overlap(groups):
    """Return the statistics of Table 2, each by relation and then of all: a loop over facts and pairs of them.

    A fact is its position in its relation and its neurons; it may be there several times.
    """
    sizes, shared_within, shared_across = [], [], []
    for group in groups:
        sizes.append([len(found) for _, found in group])
        of_pairs = []
        for n, (i, a) in enumerate(group):
            for j, b in group[n + 1 :]:
                if i != j:
                    of_pairs.append(len(a & b))
        shared_within.append(of_pairs)
        of_facts = []
        for _, a in group:
            by_other = [mean([len(a & b) for _, b in other]) for other in groups if other is not group]
            of_facts.append(mean(by_other))
        shared_across.append(of_facts)
    statistics = {"neurons_per_fact": sizes, "shared_within": shared_within, "shared_across": shared_across}
    return {name: [*map(mean, parts), mean(list(chain(*parts)))] for name, parts in statistics.items()}


def sampled_shares(sets, n_samples, seed):
    """Return shared_across as the released code does: each fact against random facts of random other relations."""
    generator = np.random.default_rng([seed, n_samples])
    groups = list(sets.values())
    by_relation = []
    for r, group in enumerate(groups):
        relations = generator.integers(len(groups) - 1, size=(len(group), n_samples))
        relations += relations >= r
        facts = generator.integers(np.array([len(one) for one in groups])[relations])
        shared = []
        for a, others, positions in zip(group, relations, facts, strict=True):
            shared += [len(a & groups[other][i]) for other, i in zip(others, positions, strict=True)]
        by_relation.append(shared)
    return [*map(mean, by_relation), mean(list(chain(*by_relation)))]
