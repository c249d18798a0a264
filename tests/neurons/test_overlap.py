"""Overlap of neuron sets, against loops over all pairs of facts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.neurons import OVERLAP_STATISTICS, jaccard, overlap_statistics, relation_neurons, resampled_layer_counts
from tests.naive_overlap import naive_overlap
from tests.refining import MANY_EXAMPLES, PAIRS, facts_of


@MANY_EXAMPLES
@given(st.dictionaries(st.sampled_from("ABC"), st.lists(PAIRS, min_size=1, max_size=4), min_size=1))
def test_overlap_is_that_of_all_pairs(pairs):
    sets = {relation: [kn.NeuronSet(one) for one in group] for relation, group in pairs.items()}
    exact, resampled = overlap_statistics(sets, n_resamples=2, seed=0)
    expected = naive_overlap([list(enumerate(group)) for group in sets.values()])
    assert tuple(exact) == tuple(resampled) == OVERLAP_STATISTICS
    for statistic in OVERLAP_STATISTICS:
        assert exact[statistic] == pytest.approx(expected[statistic], rel=1e-6, nan_ok=True)
        assert resampled[statistic].shape == (2, len(sets) + 1)


@MANY_EXAMPLES
@given(st.dictionaries(st.sampled_from("ABC"), st.lists(PAIRS, min_size=1, max_size=4), min_size=1))
def test_layer_counts_are_those_of_all_neurons(pairs):
    sets = {relation: [kn.NeuronSet(one) for one in group] for relation, group in pairs.items()}
    counts = resampled_layer_counts(sets, 4, n_resamples=3, seed=0)
    layers = [neuron.layer for group in sets.values() for neurons in group for neuron in neurons]
    assert counts.shape == (4, 4)
    assert counts[0].tolist() == np.bincount(layers, minlength=4).tolist()


def test_jaccard():
    a, b = kn.NeuronSet([(0, 1), (0, 2), (0, 3)]), kn.NeuronSet([(0, 3), (1, 3)])
    assert jaccard(a, b) == 0.25
    assert jaccard(kn.NeuronSet(), kn.NeuronSet()) == 1 and jaccard(a, kn.NeuronSet()) == 0


def test_relation_neurons():
    facts = facts_of("P", n=20)
    found = {fact: kn.NeuronSet([(0, 0)] + [(1, 1)] * (i < 2) + [(2, 2)] * (i < 1)) for i, fact in enumerate(facts)}
    assert relation_neurons(found) == {"P": kn.NeuronSet([(0, 0), (1, 1)])}  # in 20 and 2 of 20 sets
    assert relation_neurons(found, top=1) == {"P": kn.NeuronSet([(0, 0)])}
    assert relation_neurons(found, top=20) == {"P": kn.NeuronSet([(0, 0), (1, 1), (2, 2)])}
    for bad in ({"min_share": 2}, {"top": 0}):
        with pytest.raises(kn.ArgumentError, match=next(iter(bad))):
            relation_neurons(found, **bad)
