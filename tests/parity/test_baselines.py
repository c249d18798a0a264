"""Methods other than the joint path, compared with loops over prompts and with measured interventions."""

from copy import deepcopy

import pytest
import torch

import kn_lens as kn
from tests import oracle
from tests.parity.cases import D_MLP, N_LAYERS, unpadded


def test_ablation_equals_a_measured_intervention(pair, prompts):
    hf, model = pair
    attr = kn.attribute(model, prompts, method="ablation")
    for i in range(len(prompts)):
        for layer, index in [(0, 3), (1, 11), (2, 19)]:
            loop = oracle.ablation(hf, *unpadded(prompts, i), layer, index)
            assert float(attr.scores[i, layer, index]) == pytest.approx(loop, rel=1e-9, abs=1e-15)
            neuron = kn.NeuronSet([kn.Neuron(layer=layer, index=index)])
            measured = kn.measure(model, prompts, kn.Suppress(neuron))
            assert -float(measured["change"].iloc[i]) == pytest.approx(loop, rel=1e-6, abs=1e-12)


def test_single_path_equals_ablation_of_the_chosen_neurons(pair, prompts):
    model = pair[1]
    neurons = kn.NeuronSet([kn.Neuron(0, 1), kn.Neuron(0, 7), kn.Neuron(2, 5)])
    single = kn.attribute(model, prompts, method="single_path", neurons=neurons, tolerance=1e-5)
    truth = kn.attribute(model, prompts, method="ablation", neurons=neurons)
    assert single.converged.all()
    assert torch.equal(single.scores.isnan(), truth.scores.isnan())
    assert int((~truth.scores.isnan()).sum()) == 3 * len(prompts)
    torch.testing.assert_close(
        single.scores, truth.scores, rtol=0, atol=1e-5 * float(truth.clean.max()), equal_nan=True
    )


def test_gradient_x_activation_equals_the_gradient_at_alpha_1_times_the_activation(pair, prompts):
    hf, model = pair
    attr = kn.attribute(model, prompts, method="gradient_x_activation")
    silent = torch.zeros(D_MLP, dtype=torch.float64)
    for layer in range(N_LAYERS):
        reference = kn.reference_attribution(model, prompts, layer, rule="right", n_steps=1)
        torch.testing.assert_close(attr.scores[:, layer], reference, rtol=1e-9, atol=1e-14)
        for i in range(len(prompts)):
            with torch.no_grad():
                clean, at_zero = (oracle.probability(hf, *unpadded(prompts, i), layer, post) for post in (None, silent))
            assert float(attr.expected[i, layer]) == pytest.approx(float(clean - at_zero), rel=1e-9, abs=1e-14)


def test_activation_is_the_clean_activation(pair, prompts):
    hf, model = pair
    attr = kn.attribute(model, prompts, method="activation")
    for i in range(len(prompts)):
        for layer in range(N_LAYERS):
            clean = oracle.clean_post(hf, *unpadded(prompts, i)[:2], layer)
            torch.testing.assert_close(attr.scores[i, layer], clean, rtol=1e-12, atol=1e-14)
    assert attr.completeness_gap.isnan().all() and attr.unconverged == []


def test_the_points_of_a_layer_are_its_gradients_or_passes(pair, prompts):
    chosen = {"neurons": kn.NeuronSet([kn.Neuron(0, 1), kn.Neuron(0, 7), kn.Neuron(2, 5)])}
    expected = {
        "ablation": [2, 0, 1],
        "log_prob_gain": [3, 1, 2],  # one more with no neuron on
        "single_path": [2 * 5, 0, 5],
    }
    for method, n_points in expected.items():
        rule = {"quadrature": "gauss-legendre", "n_steps": 5} if method == "single_path" else {}
        attr = kn.attribute(pair[1], prompts, method=method, **chosen, **rule)
        assert attr.n_points.tolist() == [n_points] * len(prompts), method
    assert (kn.attribute(pair[1], prompts, method="gradient_x_activation").n_points == 1).all()


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_log_prob_gain_is_a_difference_measured_in_the_model_cut_off_above_the_layer(pair, prompts, layer):
    """Read off the residual stream: with one neuron of the layer on against none, in a model of so many layers."""
    hf, model = pair
    attr = kn.attribute(model, prompts, method="log_prob_gain", layers=[layer])
    cut_off = without_layers_above(hf, layer)
    for i in range(len(prompts)):
        tokens, read_pos, target = unpadded(prompts, i)
        w = oracle.clean_post(hf, tokens, read_pos, layer)
        with torch.no_grad():
            none = oracle.probability(cut_off, tokens, read_pos, target, layer, torch.zeros_like(w)).log()
            for index in (0, 8, 19):
                alone = torch.zeros_like(w)
                alone[index] = w[index]
                gain = oracle.probability(cut_off, tokens, read_pos, target, layer, alone).log() - none
                assert float(attr.scores[i, layer, index]) == pytest.approx(float(gain), rel=1e-8, abs=1e-12)
    assert not attr.scores[:, layer].isnan().any()


def without_layers_above(hf, layer):
    """A copy of the Hugging Face model whose last layer is this one."""
    copy = deepcopy(hf)
    for owner, name in (("bert.encoder", "layer"), ("transformer", "h"), ("model", "layers")):
        modules = dict(copy.named_modules())
        if f"{owner}.{name}" in modules:
            setattr(modules[owner], name, modules[f"{owner}.{name}"][: layer + 1])
    copy.config.num_hidden_layers = layer + 1
    return copy


def test_a_neuron_named_twice_counts_once(pair, prompts):
    once, twice = (kn.attribute(pair[1], prompts, method="single_path", neurons=[kn.Neuron(1, 4)] * n) for n in (1, 2))
    assert torch.equal(once.scores[:, 1, 4], twice.scores[:, 1, 4]) and torch.equal(once.n_points, twice.n_points)
    assert torch.equal(once.completeness_gap[:, 1], twice.completeness_gap[:, 1]) and twice.converged.all()


@pytest.mark.parametrize("method", ["ablation", "log_prob_gain"])
def test_neurons_of_each_fact_are_scored_under_its_prompts_alone(pair, prompts, method):
    model = pair[1]
    neurons = {}
    for number, fact in enumerate(prompts.prompts_per_fact()):
        layers = range(number % 2, N_LAYERS)
        neurons[fact] = kn.NeuronSet((layer, (3 * number + layer) % D_MLP) for layer in layers)
    neurons[next(iter(neurons))] = kn.NeuronSet()
    together = kn.attribute(model, prompts, method=method, neurons=neurons)
    for prompt in range(len(prompts)):
        chosen = neurons[prompts.fact(prompt)]
        alone = kn.attribute(model, prompts.select([prompt]), method=method, neurons=chosen)
        torch.testing.assert_close(together.scores[prompt], alone.scores[0], rtol=1e-10, atol=1e-12, equal_nan=True)
        assert int((~together.scores[prompt].isnan()).sum()) == len(chosen)
        expected = alone.total[0].nan_to_num()
        torch.testing.assert_close(together.total[prompt].nan_to_num(), expected, rtol=1e-10, atol=1e-12)
    assert together.unconverged == []


def test_neurons_of_each_fact_are_refused_where_they_cannot_be_scored(pair, prompts):
    model = pair[1]
    facts = list(prompts.prompts_per_fact())
    neurons = {fact: kn.NeuronSet([(0, 1)]) for fact in facts}
    with pytest.raises(kn.errors.ArgumentError, match="single_path takes the same neurons for all prompts"):
        kn.attribute(model, prompts, method="single_path", neurons=neurons)
    del neurons[facts[-1]]
    with pytest.raises(kn.errors.ArgumentError, match=f"no neurons of {facts[-1].key}"):
        kn.attribute(model, prompts, method="ablation", neurons=neurons)
