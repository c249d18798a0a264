"""Every class that TransformerLens has an adapter for is refused with the reason, or gives the right numbers.

The families of the table are tested elsewhere; these are all others, those of a newer TransformerLens too: one that is
neither refused nor right fails here.
"""

import copy

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

import kn_lens as kn
from kn_lens.errors import UnsupportedModelError
from kn_lens.hosts.families import BY_ARCHITECTURE, _adapters, check_config
from tests.parity.full_passes import assert_scores_of_full_passes, prompts_for
from tests.tiny import equal

NAMES = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()}
OTHERS = sorted(NAMES & {*_adapters()} - {*BY_ARCHITECTURE})
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "n_inner": 24,
    "ffn_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SLIDING = {"sliding_window": 5}
_MIXED = {**_SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MORE = {
    "CodeGenForCausalLM": {"rotary_dim": 4, "num_attention_heads": 4},
    "Cohere2ForCausalLM": _MIXED,
    "Exaone4ForCausalLM": _MIXED,
    "Gemma4ForCausalLM": {
        **_SLIDING,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "hidden_size_per_layer_input": 0,
        "global_head_dim": 8,
        "vocab_size_per_layer_input": 50,
    },
    "Ministral3ForCausalLM": _SLIDING,
    "ModernBertDecoderForCausalLM": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "Olmo3ForCausalLM": _MIXED,
    "Starcoder2ForCausalLM": _SLIDING,
    "VaultGemmaForCausalLM": _SLIDING,
    "YoutuForCausalLM": {
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "head_dim": 4,
    },
}


def refused(architecture):
    """Return whether the configuration alone is refused; many classes are too large to build in their default size."""
    try:
        check_config(getattr(transformers, architecture).config_class(), architecture, architecture)
    except UnsupportedModelError:
        return True
    return False


def tiny(architecture):
    cls = getattr(transformers, architecture)
    config = cls.config_class
    known = {*config().to_dict(), *config.attribute_map}
    settings = {key: size for key, size in SIZES.items() if key in known} | MORE.get(architecture, {})
    generator = torch.Generator().manual_seed(0)
    hf_model = cls(config(**settings)).to(torch.float32 if architecture == "XGLMForCausalLM" else torch.float64).eval()
    for weight in hf_model.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight.data = 0.3 * noise if weight.ndim > 1 else weight.data + 0.1 * noise
    return hf_model


@pytest.mark.parametrize("architecture", [name for name in OTHERS if not refused(name)])
def test_every_other_class_is_right_or_refused(architecture):
    reference = tiny(architecture)
    try:
        model = kn.load_model(copy.deepcopy(reference))
    except UnsupportedModelError:
        return
    host = kn.host_of(model)
    prompts = prompts_for(model, [12, 4], [11, 2])  # the first is longer than the windows, and so is padding
    with torch.no_grad():
        logits = host.logits(prompts.tokens, prompts.attention_mask)
        for row, n in enumerate((12, 4)):
            equal(logits[row, :n], reference(prompts.tokens[[row], :n]).logits[0], 1e-4)
    assert_scores_of_full_passes(model, prompts, 1e-5)
    assert_scores_of_full_passes(model, prompts_for(model, [7], [6]), 1e-5)
    assert host.norm_after_mlp == (nonlinearity(host) > 1e-3)

    neurons = kn.NeuronSet([(0, 1), (2, 3)])
    expected = kn.measure(model, prompts, kn.Suppress(neurons, position="all"))["after"]
    with kn.erase_neurons(model, neurons).applied(model):
        found = kn.measure(model, prompts, kn.Suppress(kn.NeuronSet()))["after"]
    assert found.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-5)


@torch.no_grad()
def nonlinearity(host):
    """Return how far the output of block 0 is from linear in what its ``W_out`` writes."""
    tokens, leaving = torch.arange(8, 13)[None], []
    for factor in (0.0, 1.0, 2.0):
        hooks = [
            (host.hook_mlp_out(0), lambda value, hook, factor=factor: factor * value),
            (host.resid_post(0), lambda value, hook: leaving.append(value.clone())),
        ]
        host.logits(tokens, torch.ones_like(tokens), fwd_hooks=hooks)
    nothing, once, twice = leaving
    return float((twice - 2 * once + nothing).abs().max() / (once - nothing).abs().max())
