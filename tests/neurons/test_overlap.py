"""Overlap of neuron sets, against loops over all pairs of facts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.neurons import (
    OVERLAP_STATISTICS,
    jaccard,
    overlap_statistics,
    relation_neurons,
    resampled_layer_counts,
    sampled_across,
)
from tests.naive_overlap import naive_overlap, sampled_shares
from tests.refining import MANY_EXAMPLES, PAIRS, facts_of


@MANY_EXAMPLES
@given(st.dictionaries(st.sampled_from("ABC"), st.lists(PAIRS, min_size=1, max_size=4), min_size=1))
def test_overlap_statistics_equal_loops_over_all_pairs(pairs):
    sets = {relation: [kn.NeuronSet(fact) for fact in group] for relation, group in pairs.items()}
    exact, resampled = overlap_statistics(sets, n_resamples=2, seed=0)
    expected = naive_overlap([list(enumerate(group)) for group in sets.values()])
    assert tuple(exact) == tuple(resampled) == OVERLAP_STATISTICS
    for statistic in OVERLAP_STATISTICS:
        assert exact[statistic] == pytest.approx(expected[statistic], rel=1e-6, nan_ok=True)
        assert resampled[statistic].shape == (2, len(sets) + 1)


def test_many_draws_begin_as_few_do_and_go_on_with_others():
    sets = {"A": [kn.NeuronSet([(0, i), (1, 1)]) for i in range(5)], "B": [kn.NeuronSet([(0, i)]) for i in range(30)]}
    few, many = (overlap_statistics(sets, n_resamples=n, seed=0)[1]["shared_across"] for n in (100, 250))
    assert many.shape == (250, 3) and (many[:100] == few).all()
    assert not (many[100:200] == few).all() and not (many[200:] == few[:50]).all()


@pytest.mark.parametrize("sizes", [(1,), (3,), (2, 1), (4, 3), (1, 2, 3)])
def test_sampled_overlap_is_that_of_random_facts_of_random_other_relations(sizes):
    rng = np.random.default_rng(0)
    sets = {}
    for relation, size in enumerate(sizes):
        pairs = [[(0, int(index)) for index in rng.integers(6, size=4)] for _ in range(size)]
        sets[f"P{relation}"] = [kn.NeuronSet(fact) for fact in pairs]
    found = sampled_across(sets, n_samples=5, seed=2)
    if len(sizes) == 1:
        assert found.shape == (2,) and np.isnan(found).all()
    else:
        assert found.tolist() == pytest.approx(sampled_shares(sets, 5, 2)) and (found > 0).all()


@MANY_EXAMPLES
@given(st.dictionaries(st.sampled_from("ABC"), st.lists(PAIRS, min_size=1, max_size=4), min_size=1))
def test_layer_counts_equal_a_loop_over_all_neurons(pairs):
    sets = {relation: [kn.NeuronSet(fact) for fact in group] for relation, group in pairs.items()}
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
    few = {facts[0]: kn.NeuronSet([(1, 1), (0, 5)]), facts[1]: kn.NeuronSet([(1, 1), (0, 2)])}
    assert relation_neurons(few) == {"P": kn.NeuronSet([(0, 2), (0, 5), (1, 1)])}  # one of two sets is enough
    assert relation_neurons(few, min_share=0.6) == relation_neurons(few, top=1) == {"P": kn.NeuronSet([(1, 1)])}
    assert relation_neurons(few, top=2) == {"P": kn.NeuronSet([(0, 2), (1, 1)])}  # of equals the first
    for bad in ({"min_share": 2}, {"top": 0}, {"top": 2.5}, {"top": True}):
        with pytest.raises(kn.ArgumentError, match=next(iter(bad))):
            relation_neurons(found, **bad)
