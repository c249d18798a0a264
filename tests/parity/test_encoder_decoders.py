"""Encoder-decoders: scores, gaps and interventions against plain loops over Hugging Face's own models."""

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.attribution.quadrature import fixed_rule
from tests.encoder_decoders import (
    FACTS,
    NAMES,
    changed_post,
    integrated_gradients,
    loaded,
    log_probs_in_own_pass,
    logits_of,
    plain,
    prompts_of,
    row_post,
    rows_of,
)
from tests.reliability.state import differences, state_of
from tests.tiny import D_MLP, N_LAYERS, equal, memory_for

NEURONS = kn.NeuronSet([(layer, index) for layer in range(N_LAYERS) for index in (1, 5, 20)])
SOME = [0, 1, 5]
"""Prompts with answers of one token and of several, of different lengths."""


def probability(hf_model, rows, layer=None, change=None):
    """The probability of the answer of a prompt, with the activations of a layer changed, or as they are."""
    result = torch.ones((), dtype=torch.float64)
    for row in rows:
        if layer is None:
            logits = logits_of(hf_model, row)
        else:
            with changed_post(hf_model, layer, change):
                logits = logits_of(hf_model, row)
        result = result * logits.softmax(-1)[row.target]
    return result


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_a_plain_loop_over_hugging_faces_model(name, float64_throughout):
    """In batches, with padding, on the output of one pass of the encoder; there, each prompt alone in full passes."""
    model, hf_model, prompts = loaded(name), plain(name), prompts_of(name)
    before = state_of(model)
    attr = kn.attribute(model, prompts, quadrature="gauss-legendre", n_steps=2, start="zero")
    assert not differences(before, state_of(model))
    rule = fixed_rule("gauss-legendre", 2)
    for number in SOME:
        rows = rows_of(prompts[number])
        with torch.no_grad():
            equal(attr.clean[number], probability(hf_model, rows))
        for layer in range(N_LAYERS):
            scores = integrated_gradients(hf_model, rows, layer, rule.nodes, rule.weights)
            equal(attr.scores[number, layer], scores)
            assert scores.abs().max() > 1e-6
    for layer in range(N_LAYERS):
        part = prompts[SOME]
        reference = kn.reference_attribution(model, part, layer, rule="gauss-legendre", n_steps=2)
        equal(attr.scores[SOME, layer], reference)


@pytest.mark.parametrize("name", NAMES)
def test_scores_add_up_to_what_the_layer_contributes(name, float64_throughout):
    """To P with the layer's activation at the answer's place less P without it, which the gap is the distance from."""
    model, hf_model, prompts = loaded(name), plain(name), prompts_of(name)[SOME]
    attr = kn.attribute(model, prompts, quadrature="gauss-legendre", n_steps=24, start="zero")
    coarse = kn.attribute(model, prompts, quadrature="right", n_steps=5, start="zero")
    for position in range(len(prompts)):
        rows = rows_of(prompts[position])
        with torch.no_grad():
            clean = probability(hf_model, rows)
        for layer in range(N_LAYERS):
            with torch.no_grad():
                without = probability(hf_model, rows, layer, torch.zeros_like)
            for scores in (attr, coarse):
                gap = scores.scores[position, layer].sum() - (clean - without)
                equal(scores.completeness_gap[position, layer], gap, 1e-9)
    assert attr.completeness_gap.abs().max() < coarse.completeness_gap.abs().max()
    if name != "T5Gemma":  # the norm behind its MLP turns sharply where all activations are almost zero
        assert attr.completeness_gap.abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_scores_depend_neither_on_the_batch_nor_on_its_order(name, float64_throughout):
    model, prompts = loaded(name), prompts_of(name)
    options = {"quadrature": "gauss-legendre", "n_steps": 2, "start": "zero"}
    whole = kn.attribute(model, prompts, **options)
    order = torch.arange(len(prompts)).flip(0)
    equal(kn.attribute(model, prompts.select(order), **options).scores, whole.scores[order])
    few = memory_for(2, model, prompts)
    equal(kn.attribute(model, prompts, memory_budget=few, **options).scores, whole.scores)
    alone = kn.attribute(model, prompts[5], **options)
    equal(alone.scores[0], whole.scores[5])


@pytest.mark.parametrize("name", NAMES)
def test_baselines_are_those_of_the_plain_model(name, float64_throughout):
    model, hf_model, prompts = loaded(name), plain(name), prompts_of(name)[[0, 1]]
    ablation = kn.attribute(model, prompts, method="ablation", layers=[1]).scores[:, 1]
    activation = kn.attribute(model, prompts, method="activation", layers=[1]).scores[:, 1]
    for number in range(len(prompts)):
        rows = rows_of(prompts[number])
        posts = [row_post(hf_model, row, 1) for row in rows]
        with torch.no_grad():
            clean = probability(hf_model, rows)
            for index in (0, 7):
                without = torch.arange(D_MLP) != index
                ablated = probability(hf_model, rows, 1, lambda post, without=without: post * without)
                equal(ablation[number, index], clean - ablated)
        equal(activation[number], torch.stack(posts).mean(0))


@pytest.mark.parametrize("name", NAMES)
def test_switched_off_neurons_are_zeros_in_the_plain_model(name, float64_throughout):
    model, hf_model, prompts = loaded(name), plain(name), prompts_of(name)
    one_layer = kn.NeuronSet([(1, 1), (1, 5)])
    kept = torch.ones(D_MLP)
    kept[[1, 5]] = 0
    suppressed = kn.measure(model, prompts, kn.Suppress(one_layer))
    amplified = kn.measure(model, prompts, kn.Amplify(one_layer, factor=3.0))
    for number in SOME:
        rows = rows_of(prompts[number])
        with torch.no_grad():
            before = probability(hf_model, rows)
            off = probability(hf_model, rows, 1, lambda post: post * kept)
            up = probability(hf_model, rows, 1, lambda post: post * torch.where(kept.bool(), 1.0, 3.0))
        assert suppressed["before"][number] == pytest.approx(float(before), rel=1e-9)
        assert suppressed["after"][number] == pytest.approx(float(off), rel=1e-9)
        assert amplified["after"][number] == pytest.approx(float(up), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_hooks_work_in_the_users_own_pass(name, float64_throughout):
    model, prompts = loaded(name), prompts_of(name)
    effect = kn.measure(model, prompts, kn.Suppress(NEURONS))
    hooks = kn.Suppress(NEURONS).hooks(model, prompts)
    assert {hook_name for hook_name, _ in hooks} == {kn.host_of(model).hook_post(layer) for layer in range(N_LAYERS)}
    np.testing.assert_allclose(effect["after"], log_probs_in_own_pass(model, prompts, hooks).exp(), rtol=1e-9)


@pytest.mark.parametrize("name", ["BART", "T5Gemma"])
def test_facts_are_found_and_their_neurons_compared_with_controls(name):
    model = loaded(name)
    found = kn.find(model, FACTS, share_threshold=0.3)
    assert list(found.neurons_by_fact) == FACTS
    assert found.neurons_by_fact == kn.refine(kn.attribute(model, prompts_of(name)), share_threshold=0.3)
    neurons = {fact: kn.NeuronSet([(0, number), (2, 4)]) for number, fact in enumerate(FACTS)}
    effects = kn.controlled_effects(model, prompts_of(name), neurons, across_relations=False)
    for fact in FACTS:
        part = prompts_of(name)[fact]
        alone = kn.measure(model, part, kn.Suppress(neurons[fact]))
        found_row = effects.query("key == @fact.key and neuron_set == 'found'").iloc[0]
        assert found_row["before"] == pytest.approx(alone["before"].mean(), rel=1e-6)
        assert found_row["after"] == pytest.approx(alone["after"].mean(), rel=1e-6)
