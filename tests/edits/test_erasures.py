"""Erasures: the choice of neurons, the values of the rows, and the arguments that are refused."""

import pytest
import torch

import kn_lens as kn
from tests.edit_cases import FACTS, IRELAND, NEURONS, bits, mean_embedding, same
from tests.tiny import loaded


def test_a_relation_is_erased_by_its_most_frequent_neurons():
    model = loaded("BertForMaskedLM")
    found = {fact: kn.NeuronSet([(i % 3, j) for j in range(i + 1)]) for i, fact in enumerate(FACTS)}
    counts = {}
    for neurons in found.values():
        for neuron in neurons:
            counts[neuron] = counts.get(neuron, 0) + 1
    ranked = sorted(counts, key=lambda neuron: (-counts[neuron], neuron))
    assert kn.erase_relation(model, found).neurons == kn.NeuronSet(ranked[:20])
    assert kn.erase_relation(model, found, top=3).neurons == kn.NeuronSet(ranked[:3])
    often = kn.NeuronSet(neuron for neuron in ranked if counts[neuron] >= 2)
    edit = kn.erase_relation(model, found, min_facts=2)
    assert edit.neurons == often and not edit.new.any()
    rule = {"relation": "P36", "n_facts": 8, "top": None, "min_facts": 2}
    assert edit.why == ({"kind": "erase", **rule, "value": "zero", "token_id": None},)


@pytest.mark.parametrize("architecture, unknown", [("BertForMaskedLM", "[UNK]"), ("ElectraForMaskedLM", "[UNK]")])
def test_erased_rows_can_become_the_embedding_of_a_token(architecture, unknown):
    model = loaded(architecture)
    vocabulary = kn.host_of(model).tokenizer.get_vocab()
    for value, token_id in (("unk", vocabulary[unknown]), ("Dublin", vocabulary["Dublin"]), (7, 7)):
        edit = kn.erase_neurons(model, NEURONS, value=value)
        assert edit.why[0]["token_id"] == token_id
        for row in edit.new:
            torch.testing.assert_close(row, mean_embedding(model, [token_id]), atol=1e-12, rtol=0)


# --- refusals --------------------------------------------------------------------------------------------

TWO_RELATIONS = {IRELAND: NEURONS, kn.Fact("Dublin", "P1376", "Ireland"): NEURONS}


@pytest.mark.parametrize(
    "neurons_by_fact, options, error, message",
    [
        (TWO_RELATIONS, {}, kn.EditError, r"2 relations \(P1376, P36\)"),
        ({}, {}, kn.EditError, "0 relations"),
        ({IRELAND: kn.NeuronSet()}, {}, kn.EditError, "nothing to erase"),
        ({IRELAND: NEURONS}, {"min_facts": 2}, kn.EditError, "lower min_facts"),
        ({IRELAND: NEURONS}, {"min_facts": 0}, kn.ArgumentError, "whole number from 1"),
        ({IRELAND: NEURONS}, {"top": 0}, kn.ArgumentError, "whole number from 1"),
        ({IRELAND: NEURONS}, {"top": 1, "min_facts": 1}, kn.ArgumentError, "one of them"),
    ],
)
def test_a_relation_that_cannot_be_erased_is_refused(neurons_by_fact, options, error, message):
    model = loaded("BertForMaskedLM")
    before = bits(model)
    with pytest.raises(error, match=message):
        kn.erase_relation(model, neurons_by_fact, **options)
    assert same(before, bits(model))


@pytest.mark.parametrize(
    "neurons, value, error, message",
    [
        (NEURONS, "Dubln", kn.EditError, "Did you mean 'Dublin'"),
        (NEURONS, 10**6, kn.EditError, "is not a token of"),
        (NEURONS, 0.5, kn.ArgumentError, "'zero', 'unk', a token or its id"),
        (kn.NeuronSet(), "zero", kn.EditError, "set of neurons is empty"),
    ],
)
def test_neurons_that_cannot_be_erased_are_refused(neurons, value, error, message):
    model = loaded("BertForMaskedLM")
    before = bits(model)
    with pytest.raises(error, match=message):
        kn.erase_neurons(model, neurons, value=value)
    assert same(before, bits(model))
