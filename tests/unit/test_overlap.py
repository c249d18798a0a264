"""Overlap of neuron sets, against loops over all pairs of facts."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens import overlap
from tests.refining import MANY_EXAMPLES, PAIRS, facts_of


@MANY_EXAMPLES
@given(st.dictionaries(st.tuples(st.sampled_from("ABC"), st.integers(0, 3)), PAIRS, min_size=1))
def test_overlap_is_that_of_all_pairs(sets):
    found = {kn.Fact(f"s{i}", relation, "o", uid=str(i)): kn.NeuronSet(pairs) for (relation, i), pairs in sets.items()}
    pairs = [len(found[a] & found[b]) for a, b in combinations(found, 2) if a.relation == b.relation]
    within = overlap.shared_within_relation(found)
    assert within == pytest.approx(sum(pairs) / len(pairs)) if pairs else math.isnan(within)

    relations = {fact.relation for fact in found}
    expected = []  # a random relation first, then a random fact of it
    for fact in found:
        others = [
            [len(found[fact] & found[other]) for other in found if other.relation == relation]
            for relation in relations - {fact.relation}
        ]
        expected += [sum(sum(one) / len(one) for one in others) / len(others)] if others else []
    across = overlap.shared_across_relations(found)
    assert across == pytest.approx(sum(expected) / len(expected)) if expected else math.isnan(across)

    table = overlap.relation_table(found).set_index("relation")
    assert table.n_facts["all"] == len(found) == table.n_facts[:-1].sum()
    assert table.neurons_per_fact["all"] == sum(map(len, found.values())) / len(found)
    layers = overlap.layer_distribution(found, 4)
    assert layers.n_neurons.sum() == sum(map(len, found.values()))
    assert layers.share.sum() == pytest.approx(1 if layers.n_neurons.sum() else 0)


def test_jaccard_and_overlap():
    a, b = kn.NeuronSet([(0, 1), (0, 2), (0, 3)]), kn.NeuronSet([(0, 3), (1, 3)])
    assert (overlap.overlap(a, b), overlap.jaccard(a, b)) == (1, 0.25)
    assert overlap.jaccard(kn.NeuronSet(), kn.NeuronSet()) == 1 and overlap.jaccard(a, kn.NeuronSet()) == 0


def test_relation_neurons():
    facts = facts_of("P", n=20)
    found = {fact: kn.NeuronSet([(0, 0)] + [(1, 1)] * (i < 2) + [(2, 2)] * (i < 1)) for i, fact in enumerate(facts)}
    assert overlap.relation_neurons(found) == {"P": kn.NeuronSet([(0, 0), (1, 1)])}  # in 20 and 2 of 20 sets
    assert overlap.relation_neurons(found, top=1) == {"P": kn.NeuronSet([(0, 0)])}
    assert overlap.relation_neurons(found, top=20) == {"P": kn.NeuronSet([(0, 0), (1, 1), (2, 2)])}
    for bad in ({"min_share": 2}, {"top": 0}):
        with pytest.raises(kn.ArgumentError, match=next(iter(bad))):
            overlap.relation_neurons(found, **bad)
