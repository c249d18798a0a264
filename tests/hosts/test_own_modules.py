"""Passes through the checkpoint's own modules: those of TransformerLens' wrappers, without the wrappers."""

import pytest
import torch
from torch import nn

import kn_lens as kn
from kn_lens.hosts import Replacement, host_of, run_clean
from kn_lens.hosts.kv_prefix import KVPrefix
from tests.tiny import CAUSAL, COUNTRIES, MASKED, N_LAYERS, equal, loaded, tiny_model

TEMPLATES = ("The capital of [X] is [Y].", "In fact, [X] has its seat of government in [Y]")
FACTS = [kn.Fact(country, "P36", capital, TEMPLATES) for country, capital in list(COUNTRIES.items())[:3]]
# Whose blocks prepare hooks in a forward of their own, or whose attention TransformerLens computes in float64 where
# transformers takes float32.
WRAPPED = {"OPTForCausalLM", "BloomForCausalLM", "GPTNeoXForCausalLM", "Phi3ForCausalLM"}
# Whose attention is one class, or whose separate products take a softmax in float32.
FUSED = {*MASKED, "GPT2LMHeadModel", "FalconForCausalLM"}

# Some of whose layers keep a window of keys alone, or which take no positions.
BY_LENGTH = {"MistralForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "MptForCausalLM"}


def resumed(model, **settings):
    """Return the logits of a pass that rows enter at every layer, and the gradients at what ``W_out`` writes."""
    host = host_of(model)
    host.__dict__.update(settings)
    prompts = kn.make_prompts(model, FACTS)
    state = run_clean(host, prompts.tokens, prompts.attention_mask, prompts.read_pos, range(N_LAYERS))
    replacements = []
    for layer in range(N_LAYERS):
        rows = torch.tensor([layer, 0, layer])
        added = torch.zeros(3, host.d_model, dtype=torch.float64, requires_grad=True)
        post = 0.5 * state.post[layer][rows]
        replacements.append(Replacement(layer=layer, rows=rows, post=post, added=added))
    logits = state.logits_with_post(replacements)
    gradients = torch.autograd.grad(logits.square().sum(), [replacement.added for replacement in replacements])
    return logits, torch.cat(gradients)


@pytest.mark.parametrize("architecture", [*MASKED, *CAUSAL])
def test_passes_of_own_modules_are_those_of_wrapped_ones(architecture, request):
    if architecture == "MptForCausalLM":  # it casts before the softmax, and TransformerLens in it
        request.getfixturevalue("softmax_of_torch")
    model = loaded(architecture)
    own = host_of(model).has_own_modules
    assert own == (architecture not in WRAPPED)
    if own:
        for value, expected in zip(resumed(model), resumed(model, has_own_modules=False), strict=True):
            equal(value, expected, 1e-12)


@pytest.mark.parametrize("architecture", sorted(FUSED))
def test_fused_attention_gives_the_same_numbers(architecture, monkeypatch):
    model = loaded(architecture)
    calls = []
    fused = nn.functional.scaled_dot_product_attention

    def watched(*args, **kwargs):
        calls.append(args)
        return fused(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    expected = resumed(model, fuses_attention=False)
    assert not calls
    values = resumed(model, fuses_attention=True)
    assert calls and model.original_model.config._attn_implementation == "eager"
    for value, separate in zip(values, expected, strict=True):
        equal(value, separate, 1e-12)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_prompts_of_different_lengths_go_through_a_causal_model_together(architecture):
    model = loaded(architecture)
    host = host_of(model)
    assert host.takes_padded_prefix == (architecture not in WRAPPED | BY_LENGTH)
    if not host.takes_padded_prefix:
        return
    prompts = kn.make_prompts(model, FACTS)
    assert len(prompts.length.unique()) > 1
    state = run_clean(host, prompts.tokens, prompts.attention_mask, prompts.read_pos, range(N_LAYERS))
    assert len(state.pass_group.unique()) == 1
    for value, expected in zip(resumed(model), resumed(model, takes_padded_prefix=False), strict=True):
        equal(value, expected, 1e-11)


def test_prefixes_with_other_states_than_keys_are_not_joined():
    prompts = kn.make_prompts(loaded("Gemma3ForCausalLM"), FACTS)
    host = host_of(loaded("Gemma3ForCausalLM"))
    prefix = host.kv_prefix(prompts.tokens[:, :3])
    assert KVPrefix.joined([prefix, prefix], torch.arange(2 * len(prompts))) is None
    assert KVPrefix.joined([prefix, None], torch.arange(len(prompts))) is None


def test_weights_that_a_user_gives_to_a_wrapper_are_not_passed_over():
    """TransformerLens computes GPT-2's queries by a module of its own, on a part of the checkpoint's weight."""
    model = tiny_model("GPT2LMHeadModel")
    assert host_of(model).has_own_modules
    query = model.blocks[1].attn.q.original_component
    query.weight = nn.Parameter(1.5 * query.weight.detach())
    assert not host_of(model).has_own_modules


def test_wrappers_are_back_after_an_error():
    model = tiny_model("BertForMaskedLM")
    host = host_of(model)
    before = [type(module) for module in host.checkpoint.modules()]

    def fail(value):
        raise ZeroDivisionError

    tokens = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ZeroDivisionError):
        host.logits(tokens, torch.ones_like(tokens), functions={1: fail}, own=True)
    assert [type(module) for module in host.checkpoint.modules()] == before
    assert not any("forward" in module.__dict__ for module in host.checkpoint.modules())


def test_a_hook_of_the_user_sees_wrapped_passes():
    model = tiny_model("BertForMaskedLM")
    prompts = kn.make_prompts(model, FACTS)
    seen = []
    model.blocks[2].hook_in.add_hook(lambda value, hook: seen.append(value.shape))
    kn.attribute(model, prompts, preset="official")
    n_rows = sum(shape[0] for shape in seen)
    assert n_rows >= 20 * len(prompts) and all(shape[1] > 1 for shape in seen)
