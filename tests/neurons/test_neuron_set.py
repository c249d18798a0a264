"""``Neuron`` and ``NeuronSet``: the operators of Python's sets, and the values that are refused."""

import json
import pickle

import pytest
import torch
from hypothesis import given

import kn_lens as kn
from tests.refining import MANY_EXAMPLES, PAIRS, as_pairs
from tests.tiny import D_MLP, N_LAYERS, loaded, tiny_model


@MANY_EXAMPLES
@given(PAIRS, PAIRS)
def test_operators_equal_those_of_python_sets(a, b):
    left, right = kn.NeuronSet(a), kn.NeuronSet(b)
    for ours, theirs in (
        (left | right, a | b),
        (left & right, a & b),
        (left - right, a - b),
        (left ^ right, a ^ b),
        (left | b, a | b),
        (left - list(b), a - b),
        ({kn.Neuron(*pair) for pair in a} - right, a - b),
        ({kn.Neuron(*pair) for pair in a} | right, a | b),
    ):
        assert isinstance(ours, kn.NeuronSet)
        assert as_pairs(ours) == theirs
        assert len(ours) == len(theirs)
    assert (left == right, left <= right, left < right, left.isdisjoint(right)) == (
        a == b,
        a <= b,
        a < b,
        a.isdisjoint(b),
    )
    assert [(neuron.layer, neuron.index) for neuron in left] == sorted(a)
    assert all((kn.Neuron(*pair) in left) == (pair in a) for pair in a | b)


@MANY_EXAMPLES
@given(PAIRS)
def test_equal_sets_have_equal_hashes_and_reprs(pairs):
    neurons = kn.NeuronSet(pairs)
    frozen = frozenset(kn.Neuron(*pair) for pair in pairs)
    assert neurons == frozen and frozen == neurons and hash(neurons) == hash(frozen)
    assert pickle.loads(pickle.dumps(neurons)) == neurons
    assert eval(repr(neurons[:10]), {"NeuronSet": kn.NeuronSet}) == neurons[:10]
    assert eval(repr([str(neuron) for neuron in neurons])) == [repr(neuron)[8:-2] for neuron in neurons]
    assert sum(neurons.layer_counts(4)) == len(neurons)
    assert {(layer, i) for layer, indices in neurons.by_layer().items() for i in indices} == pairs


@MANY_EXAMPLES
@given(PAIRS)
def test_mask_and_set_are_one_another(pairs):
    """The mask is true at the pairs alone, and gives the set back, as a tensor and as an array of NumPy."""
    model = loaded("GPT2LMHeadModel")
    pairs = {(layer % N_LAYERS, index % D_MLP) for layer, index in pairs}
    mask = kn.NeuronSet(pairs).mask(model)
    assert mask.shape == (N_LAYERS, D_MLP) and set(map(tuple, mask.nonzero().tolist())) == pairs
    assert kn.NeuronSet.from_mask(mask) == kn.NeuronSet.from_mask(mask.numpy()) == pairs


def test_a_mask_of_scores_or_of_one_layer_is_refused_with_the_call():
    for wrong in (torch.rand(2, 3), torch.ones(3, dtype=torch.bool), [[0, 1]]):
        with pytest.raises(kn.ArgumentError, match=r"NeuronSet\.from_mask\(scores >= threshold\)"):
            kn.NeuronSet.from_mask(wrong)
    with pytest.raises(kn.ArgumentError, match="has no neuron L9N0"):
        kn.NeuronSet(["L9N0"]).mask(loaded("GPT2LMHeadModel"))


def test_a_neuron_is_a_named_tuple_with_python_integers():
    neuron = kn.Neuron(torch.tensor(9), index=7)
    layer, index = neuron
    assert (type(layer), type(index)) == (int, int) and (layer, index) == (neuron.layer, neuron.index) == (9, 7)
    assert (repr(neuron), str(neuron)) == ("Neuron('L9N7')", "L9N7")
    assert pickle.loads(pickle.dumps(neuron)) == neuron and type(pickle.loads(pickle.dumps(neuron))) is kn.Neuron
    assert sorted([kn.Neuron(9, 7), kn.Neuron(2, 8)]) == [kn.Neuron(2, 8), kn.Neuron(9, 7)]


@pytest.mark.parametrize("layer, index", [(-1, 0), (0, -3), (1.0, 2), ("1", 2), (True, 0), (None, 0)])
def test_a_neuron_needs_two_whole_numbers(layer, index):
    with pytest.raises(kn.ArgumentError, match="expected a whole number from 0"):
        kn.Neuron(layer, index)
    with pytest.raises(kn.ArgumentError):
        kn.NeuronSet([(layer, index)])


@MANY_EXAMPLES
@given(PAIRS)
def test_a_name_stands_for_the_neuron_and_indices_follow_the_order(pairs):
    neurons = kn.NeuronSet(pairs)
    names = [str(neuron) for neuron in neurons]
    assert kn.NeuronSet(names) == kn.NeuronSet([*names, *pairs]) == neurons
    assert all(name in neurons and kn.Neuron(name) in neurons for name in names)
    assert "L99N0" not in neurons and "Ireland" not in neurons
    assert [neurons[number] for number in range(len(neurons))] == list(neurons)
    assert neurons[1:3] == kn.NeuronSet(list(neurons)[1:3])
    assert neurons - names == kn.NeuronSet()


@pytest.mark.parametrize("name", ["L9", "9N7", "l9n7", "L9N7 ", "L-1N7", "L1N²", "", "L9N7L2N3"])
def test_another_text_is_not_the_name_of_a_neuron(name):
    for make in (kn.Neuron, lambda name: kn.NeuronSet([name])):
        with pytest.raises(kn.ArgumentError, match="not the name of a neuron; expected one such as 'L9N1234'"):
            make(name)


def test_a_long_set_is_shown_by_its_first_neurons():
    neurons = kn.NeuronSet((layer, index) for layer in range(40) for index in range(100))
    assert repr(neurons).startswith("NeuronSet(['L0N0', 'L0N1', ") and repr(neurons).endswith("... 3,990 more])")
    html = neurons._repr_html_()
    assert "4,000 neurons in 40 layers" in html and "L9N0" in html and "L10N0" not in html and "30 more" in html
    assert html.count("\n") < 30 and len(html) < 3000


@pytest.mark.parametrize("item", [3, (1, 2, 3, 4), "ab", None])
def test_a_set_takes_neurons_and_pairs_only(item):
    with pytest.raises(kn.ArgumentError):
        kn.NeuronSet([item])


def test_numpy_integers_become_python_integers():
    neuron = kn.Neuron(*torch.tensor([1, 2]).numpy())
    assert type(neuron.layer) is int and json.dumps(neuron.layer) == "1"


@pytest.mark.parametrize("pair", [(N_LAYERS, 0), (0, D_MLP)])
def test_neurons_that_the_model_lacks_are_refused(pair):
    model = tiny_model()
    neurons = kn.NeuronSet([(0, 0), pair])
    for check in (neurons.check, lambda model: kn.random_neurons(neurons, model)):
        with pytest.raises(kn.ArgumentError, match=rf"layers 0 to {N_LAYERS - 1} and indices 0 to {D_MLP - 1}"):
            check(model)
    if pair[0]:
        with pytest.raises(kn.ArgumentError, match="L3N0"):
            neurons.layer_counts(N_LAYERS)
