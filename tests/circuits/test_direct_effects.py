import pytest
import torch

import kn_lens as kn
from kn_lens.circuits import HeadNode, NeuronNode
from tests import tiny
from tests.circuits.hf_components import PATHS, HFComponents
from tests.prompts_of_tokens import batch_of

ARCHITECTURES = ("GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM", "Gemma2ForCausalLM", "BertForMaskedLM")
TOKENS = torch.tensor([[5, 16, 27, 38, 9], [41, 12, 33, 24, 15]])
POSITION = 4
N_HEADS, D_HEAD = 2, 8


def oracle(architecture):
    return HFComponents(model=tiny.tiny_hf_model(architecture), architecture=architecture, n_layers=tiny.N_LAYERS)


def without(node):
    """Return the change that sets one node to 0."""

    def change(layer, name, value):
        if layer == node.layer and name == "mlp_out" and isinstance(node, NeuronNode):
            value[:, node.position, node.index] = 0
        if layer == node.layer and name == "attn_out" and isinstance(node, HeadNode):
            value[:, node.position, node.head * D_HEAD : (node.head + 1) * D_HEAD] = 0
        return value

    return change


def unchanged(layer, name, value):
    return value


SOURCES = [NeuronNode(0, 3, POSITION), NeuronNode(1, 20, POSITION), HeadNode(0, 1, POSITION), HeadNode(2, 0, POSITION)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("input", ["key", "gate", "v", "k", "q", "logits"])
def test_effect_is_what_an_intervention_with_norms_held_measures(architecture, input):
    if input != "logits" and input not in PATHS[architecture]:
        pytest.skip("the family has no such map of its own")
    if input == "logits" and architecture in ("BertForMaskedLM", "Gemma2ForCausalLM"):
        pytest.skip("what follows the last block is not linear")
    model, reference = tiny.loaded(architecture), oracle(architecture)
    prompts = batch_of(TOKENS, contrast_ids=torch.tensor([7, 8]))
    target = None
    if input in ("key", "gate"):
        target = NeuronNode(2, 11, POSITION)
    elif input != "logits":
        target = HeadNode(2, 1, POSITION)
    direction = torch.randn(D_HEAD, dtype=torch.float64) if isinstance(target, HeadNode) else None
    effects = kn.direct_effects(model, prompts, target, None if target is None else input, direction)

    def read(change):
        found, logits = reference.held(TOKENS, change)
        if target is None:
            rows = torch.arange(2)
            return logits[rows, POSITION, prompts.target_ids] - logits[rows, POSITION, prompts.contrast_ids]
        value = found[reference.module(2, input), "out"][:, POSITION]
        if isinstance(target, NeuronNode):
            return value[:, target.index]
        heads = value.unflatten(-1, (-1, D_HEAD))
        return heads[:, target.head * heads.shape[1] // N_HEADS] @ direction

    clean = read(unchanged)
    tolerance = 1e-9 if "RMSNorm" not in str(reference.model) else 2e-6  # computed in float32
    tiny.equal(effects.total, clean, tolerance)
    n_nonzero = 0
    for node in SOURCES:
        measured = clean - read(without(node))
        scored = torch.stack([torch.tensor(effects[row, node], dtype=torch.float64) for row in range(2)])
        tiny.equal(scored, measured, tolerance)
        n_nonzero += bool(measured.abs().max() > 1e-3)
    assert n_nonzero >= 2  # nodes of the target's own layer may have no path to it


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM"])
def test_effects_and_the_constant_of_biases_make_up_the_input(architecture):
    model, reference = tiny.loaded(architecture), oracle(architecture)
    target = NeuronNode(2, 11, POSITION)
    effects = kn.direct_effects(model, batch_of(TOKENS), target)
    if architecture == "LlamaForCausalLM":  # no biases
        tiny.equal(effects.constant, torch.zeros(2, dtype=torch.float64), 1e-6)
        return
    found, _ = reference.held(TOKENS, lambda layer, name, value: 0 * value, embedding=lambda value: 0 * value)
    silent = found[reference.module(2, "key"), "out"][:, POSITION, target.index]
    assert silent.abs().max() > 1e-3
    tiny.equal(effects.constant, silent, 1e-9)


WITHOUT_BIASES = tuple(
    f"{name}ForCausalLM" for name in "Mpt Phi3 Llama Mistral Qwen3 Gemma Gemma2 Gemma3 Olmo Olmo2 Granite".split()
)


@pytest.mark.parametrize("architecture", [*tiny.MASKED, *tiny.CAUSAL])
def test_every_family_has_direct_effects_that_add_up(architecture):
    """In a model without biases the effects alone make up the input; elsewhere something is left for the biases."""
    for target in (NeuronNode(2, 3, POSITION), HeadNode(2, 1, POSITION)):
        effects = kn.direct_effects(tiny.loaded(architecture), batch_of(TOKENS), target)
        assert effects.total.abs().max() > 1e-2
        if architecture in WITHOUT_BIASES:
            tiny.equal(effects.constant, torch.zeros(2, dtype=torch.float64), 2e-6)
        elif isinstance(target, HeadNode):
            assert effects.constant.abs().max() > 1e-3


def test_other_positions_and_layers_above_have_no_direct_path():
    effects = kn.direct_effects(tiny.loaded("LlamaForCausalLM"), batch_of(TOKENS), NeuronNode(1, 3, POSITION))
    assert effects.values[:, :, :POSITION].abs().max() == 0
    assert effects.neurons[:, 1:].abs().max() == 0
    assert effects.heads[:, 2:].abs().max() == 0
    assert effects.heads[:, 1, POSITION].abs().min() > 0  # the heads of the layer write before its neurons read


def test_answer_without_contrast_is_its_logit():
    model = tiny.loaded("GPT2LMHeadModel")
    prompts = batch_of(TOKENS)
    with torch.no_grad():
        logits = model(TOKENS)[:, POSITION]
    tiny.equal(kn.direct_effects(model, prompts).total, logits.gather(1, prompts.target_ids[:, None])[:, 0])


@pytest.mark.parametrize(
    ("target", "input", "message"),
    [
        (NeuronNode(9, 0, 1), None, "no layer 9"),
        (NeuronNode(1, 99, 1), None, "no neuron"),
        (HeadNode(1, 7, 1), None, "no head"),
        (NeuronNode(1, 0), None, "no position"),
        (NeuronNode(1, 0, 1), "gate", "no input 'gate'"),
        ("L1N0@1", None, "expected a NeuronNode"),
    ],
)
def test_targets_that_are_not_there_are_refused(target, input, message):
    with pytest.raises(kn.ArgumentError, match=message):
        kn.direct_effects(tiny.loaded("GPT2LMHeadModel"), batch_of(TOKENS), target, input)
