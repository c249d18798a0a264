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
    expected = {}  # a random relation first, then a random fact of it
    for fact in found:
        others = [
            [len(found[fact] & found[other]) for other in found if other.relation == relation]
            for relation in relations - {fact.relation}
        ]
        expected[fact] = sum(sum(one) / len(one) for one in others) / len(others) if others else math.nan
    across = overlap.shared_across_relations(found)
    assert across == pytest.approx(sum(expected.values()) / len(expected), nan_ok=True)

    table = overlap.relation_table(found).set_index("relation")
    assert table.n_facts["all"] == len(found) == table.n_facts[:-1].sum()
    for relation in [*relations, "all"]:
        of = [fact for fact in found if relation in (fact.relation, "all")]
        row = table.loc[relation]
        assert row.n_facts == len(of) and row.neurons_per_fact == sum(len(found[fact]) for fact in of) / len(of)
        assert row.shared_across == pytest.approx(sum(expected[fact] for fact in of) / len(of), nan_ok=True)
        same = [len(found[a] & found[b]) for a, b in combinations(of, 2) if a.relation == b.relation]
        assert row.shared_within == pytest.approx(sum(same) / len(same) if same else math.nan, nan_ok=True)
    layers = overlap.layer_distribution(found, 4)
    assert layers.n_neurons.tolist() == [
        sum(n.layer == layer for one in found.values() for n in one) for layer in range(4)
    ]
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
