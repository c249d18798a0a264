"""Control neurons: equal in number, drawn uniformly or of the highest mean score."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.neurons import matched_neurons
from tests.refining import MANY_EXAMPLES, as_pairs, attribution, attributions, facts_of
from tests.tiny import D_MLP, N_LAYERS, loaded


@MANY_EXAMPLES
@given(st.sets(st.tuples(st.integers(0, N_LAYERS - 1), st.integers(0, D_MLP - 1)), max_size=12), st.integers(0, 99))
def test_random_neurons_match_the_layer_counts_and_avoid_the_set(pairs, seed):
    model, neurons = loaded(), kn.NeuronSet(pairs)
    control = kn.random_neurons(neurons, model, seed)
    assert control.layer_counts(N_LAYERS) == neurons.layer_counts(N_LAYERS)
    assert control.isdisjoint(neurons)
    assert control == kn.random_neurons(neurons, model, seed)


def test_random_neurons_are_drawn_uniformly():
    model, neurons = loaded(), kn.NeuronSet([(1, 0), (1, 5)])
    drawn = [neuron.index for seed in range(600) for neuron in kn.random_neurons(neurons, model, seed)]
    counts = torch.bincount(torch.tensor(drawn), minlength=D_MLP)
    assert counts[[0, 5]].sum() == 0
    expected = 2 * 600 / (D_MLP - 2)
    chi_squared = ((counts - expected) ** 2 / expected).sum() - 2 * expected  # less the two that cannot be drawn
    assert chi_squared < 50  # 21 degrees of freedom: p < 0.001


@pytest.mark.parametrize("n", [D_MLP // 2, D_MLP // 2 + 1, D_MLP - 1, D_MLP])
def test_random_neurons_of_a_full_layer_share_as_few_neurons_as_possible(n):
    model, neurons = loaded(), kn.NeuronSet([(0, 3), *((1, i) for i in range(n))])
    control = kn.random_neurons(neurons, model)
    assert control.layer_counts(N_LAYERS) == neurons.layer_counts(N_LAYERS)
    assert len(control & neurons) == max(0, 2 * n - D_MLP)


@MANY_EXAMPLES
@given(attributions(min_prompts=2), st.randoms(use_true_random=False))
def test_activation_neurons_have_the_highest_mean_activation_and_match_in_number(attr, shuffler):
    facts, fact_of = attr.prompts.facts, attr.prompts.fact_index.tolist()
    activations = attribution(torch.randn(attr.scores.shape), fact_of, facts, method="activation")
    cells = [(layer, i) for layer in range(attr.scores.shape[1]) for i in range(attr.scores.shape[2])]
    found = {fact: kn.NeuronSet(shuffler.sample(cells, shuffler.randint(0, len(cells)))) for fact in facts}
    control = kn.activation_neurons(activations, found)
    assert list(control) == list(found)
    for i, fact in enumerate(facts):
        means = activations.scores[[j == i for j in fact_of]].mean(0)
        ranked = sorted(cells, key=lambda cell: -means[cell])
        assert as_pairs(control[fact]) == set(ranked[: len(found[fact])])


def test_activation_neurons_need_activations_of_every_fact():
    facts = facts_of("P36")
    found = {fact: kn.NeuronSet([(0, 0)]) for fact in facts}
    scores = torch.tensor([[[1.0, math.nan]]] * 2)
    with pytest.raises(kn.ArgumentError, match=r"integrated_gradients.*matched_neurons"):
        kn.activation_neurons(attribution(scores, [0, 1], facts), found)
    with pytest.raises(kn.ArgumentError, match=r"no prompts of P36/s1/P36-o1"):
        kn.activation_neurons(attribution(scores, [0, 0], facts, "activation"), found)
    assert matched_neurons(attribution(scores, [0, 1], facts), found) == found  # what has no score is not the highest
    both = {facts[0]: kn.NeuronSet([(0, 0), (0, 1)])}
    with pytest.raises(kn.ArgumentError, match="fewer scores"):
        matched_neurons(attribution(scores, [0, 1], facts), both)
