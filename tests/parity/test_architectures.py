"""Every class that TransformerLens has an adapter for gives the right numbers, or is refused with the reason.

The families of the table that ``tests/tiny.py`` has no tokenizer for work; of all other classes, those of a newer
TransformerLens too, one that is neither refused nor right fails here.
"""

import copy
from importlib.metadata import version

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

import kn_lens as kn
from kn_lens.errors import UnsupportedModelError
from kn_lens.hosts.families import BY_ARCHITECTURE, adapters, check_config, text_config
from tests.parity.full_passes import assert_scores_of_full_passes, prompts_for
from tests.tiny import CAUSAL, ENCODER_DECODERS, MASKED, equal, tiny_tokenizer

NAMES = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()}
WITH_EXPERTS = {family.architecture for family in BY_ARCHITECTURE.values() if family.experts}
"""These are in ``test_experts.py``."""
ELSEWHERE = {*MASKED, *CAUSAL, *(name for name, _ in ENCODER_DECODERS.values()), *WITH_EXPERTS}
LISTED = sorted({*BY_ARCHITECTURE} & {*adapters()} - ELSEWHERE)
OTHERS = sorted(NAMES & {*adapters()} - {*BY_ARCHITECTURE})
ROUGH = {"CodeGenForCausalLM", "XGLMForCausalLM"}
"""These compute in float32, whatever the weights are in."""
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
_GEMMA_4 = {
    **_SLIDING,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "hidden_size_per_layer_input": 0,
    "global_head_dim": 8,
    "vocab_size_per_layer_input": 50,
}
_QWEN_3_5 = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 0],
    },
}
_LLAMA_4 = {
    "moe_layers": [],
    "intermediate_size_mlp": 24,
    "attention_chunk_size": 5,
    "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
    "no_rope_layers": [1, 0, 1],
}
MORE = {
    "AlbertForMaskedLM": {"embedding_size": 12},
    "BambaForCausalLM": {"mamba_n_heads": 4, "mamba_d_state": 4, "mamba_chunk_size": 4, "attn_layer_indices": [1]},
    "CodeGenForCausalLM": {"rotary_dim": 4, "num_attention_heads": 4},
    "Cohere2ForCausalLM": _MIXED,
    "DebertaV2ForMaskedLM": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    "ErnieForMaskedLM": {"use_task_id": True},
    "EsmForMaskedLM": {"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 20},
    "EuroBertForMaskedLM": {"mask_token_id": 4},
    "Exaone4ForCausalLM": _MIXED,
    "FalconH1ForCausalLM": {
        "mamba_d_ssm": 16,
        "mamba_n_heads": 2,
        "mamba_d_head": 8,
        "mamba_d_state": 4,
        "mamba_chunk_size": 4,
    },
    "Gemma4ForCausalLM": _GEMMA_4,
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "Llama4ForCausalLM": _LLAMA_4,
    "Mamba2ForCausalLM": {"num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1},
    "Ministral3ForCausalLM": _SLIDING,
    "ModernBertDecoderForCausalLM": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "ModernBertForMaskedLM": {
        "local_attention": 16,
        "global_attn_every_n_layers": 2,
        "cls_token_id": 3,
        "sep_token_id": 4,
    },
    "Olmo3ForCausalLM": _MIXED,
    "Qwen3_5ForCausalLM": _QWEN_3_5,
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
    "Zamba2ForCausalLM": {
        "layer_types": ["linear_attention", "hybrid", "linear_attention"],
        "hybrid_layer_ids": [1],
        "mamba_d_state": 4,
        "mamba_ngroups": 1,
        "chunk_size": 4,
    },
}
_VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TOWERS = {  # the class of the language model inside, and the other settings
    "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", {"vision_config": _VISION, "image_token_index": 49}),
    "Gemma4ForConditionalGeneration": (
        "Gemma4ForCausalLM",
        {"vision_config": {**_VISION, "num_key_value_heads": 2, "head_dim": 8}, "image_token_id": 49},
    ),
    "Llama4ForConditionalGeneration": (
        "Llama4ForCausalLM",
        {"vision_config": {**_VISION, "vision_output_dim": 16}, "image_token_index": 49},
    ),
    "Mistral3ForConditionalGeneration": (
        "MistralForCausalLM",
        {"vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 8}, "image_token_index": 49},
    ),
    "Qwen3_5ForConditionalGeneration": (
        "Qwen3_5ForCausalLM",
        {
            "vision_config": {
                "hidden_size": 16,
                "num_heads": 2,
                "depth": 1,
                "intermediate_size": 24,
                "out_hidden_size": 16,
            },
            "image_token_id": 49,
        },
    ),
}
TEXT_ALONE = {"Llama4ForConditionalGeneration", "Qwen3_5ForConditionalGeneration"}
"""Of checkpoints of these, transformers reads the language model alone."""


def refused(architecture):
    """Return whether the configuration alone is refused; many classes are too large to build in their default size."""
    try:
        check_config(getattr(transformers, architecture).config_class(), architecture, architecture)
    except UnsupportedModelError:
        return True
    return False


def tiny_config(architecture):
    if architecture in TOWERS:
        text, settings = TOWERS[architecture]
        text_settings = tiny_config(text).to_dict()
        return getattr(transformers, architecture).config_class(text_config=text_settings, **settings)
    config = getattr(transformers, architecture).config_class
    known = {*config().to_dict(), *config.attribute_map}
    settings = {key: size for key, size in SIZES.items() if key in known}
    return config(**settings | MORE.get(architecture, {}))


def tiny(architecture, **settings):
    config = tiny_config(architecture)
    for key, value in settings.items():
        setattr(text_config(config), key, value)
    dtype = torch.float32 if architecture == "XGLMForCausalLM" else torch.float64
    hf_model = getattr(transformers, architecture)(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in hf_model.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight.data = 0.3 * noise if weight.ndim > 1 else weight.data + 0.1 * noise
    return hf_model


def from_disk(hf_model, directory):
    """The model that went to disk, as kn_lens and as transformers read it."""
    hf_model.save_pretrained(directory)
    tokenizer = tiny_tokenizer("GPT2LMHeadModel")  # for its texts alone
    tokenizer.save_pretrained(directory)
    model = kn.load_model(directory, tokenizer=tokenizer, dtype=hf_model.dtype, device="cpu")
    return model, type(hf_model).from_pretrained(directory, dtype=hf_model.dtype).eval()


@pytest.mark.filterwarnings("ignore:Casting complex")  # the rotations of Llama 4's image tower, made float64 here
@pytest.mark.parametrize("architecture", LISTED)
def test_a_listed_class_gives_the_right_numbers(architecture, tmp_path, float64_throughout):
    """On TransformerLens 3 some classes are refused, whose adapters compute other logits or miss a function there."""
    try:
        model, reference = from_disk(tiny(architecture), tmp_path)
    except UnsupportedModelError:
        if version("transformer-lens").startswith("3."):
            return
        raise
    host, family = kn.host_of(model), BY_ARCHITECTURE[architecture]
    read = TOWERS[architecture][0] if architecture in TEXT_ALONE else architecture
    assert (host.architecture, host.kind) == (read, family.kind)
    assert (family.whole_passes, family.norm_after_mlp) == (host.whole_passes, host.norm_after_mlp)
    if not architecture.startswith("ModernBert"):  # have their gate and their values in one matrix
        assert family.gated == ("gate" in model.blocks[0].mlp.submodules)
    assert_right(model, reference, 1e-4 if architecture in ROUGH else 1e-10)


@pytest.mark.parametrize("architecture", OTHERS)
def test_every_other_class_is_right_or_refused(architecture):
    if refused(architecture):
        return
    reference = tiny(architecture)
    try:
        model = kn.load_model(copy.deepcopy(reference))
    except UnsupportedModelError:
        return
    assert_right(model, reference, 1e-4)


def test_layers_that_share_keys_are_run_in_whole_passes(tmp_path, float64_throughout):
    hf_model = tiny("Gemma4ForCausalLM", num_kv_shared_layers=1, hidden_size_per_layer_input=8)
    model, reference = from_disk(hf_model, tmp_path)
    assert kn.host_of(model).whole_passes
    assert_right(model, reference, 1e-10)


def assert_right(model, reference, share):
    """Logits, scores, effects and edits are those of Hugging Face and of full passes."""
    host = kn.host_of(model)
    prompts = prompts_for(model, [12, 4], [11, 2])  # the first is longer than the windows, and so is padding
    with torch.no_grad():
        logits = host.logits(prompts.tokens, prompts.attention_mask)
        for row, n in enumerate((12, 4)):
            equal(logits[row, :n], reference(prompts.tokens[[row], :n]).logits[0], share)
    assert_scores_of_full_passes(model, prompts, share)
    assert_scores_of_full_passes(model, prompts_for(model, [7], [6]), share)
    if host.kind == "causal":  # in some masked models a norm follows the sum of both, which is not linear either
        assert host.norm_after_mlp == any(nonlinearity(host, layer) > 1e-3 for layer in range(host.n_layers))

    neurons = kn.NeuronSet([(0, 1), (2, 3)])
    erased = [(layer, neuron.index) for neuron in neurons for layer in host.layers_with_rows_of(neuron.layer)]
    expected = kn.measure(model, prompts, kn.Suppress(kn.NeuronSet(erased), position="all"))["after"]
    with kn.erase_neurons(model, neurons).applied(model):
        found = kn.measure(model, prompts, kn.Suppress(kn.NeuronSet()))["after"]
    assert found.to_numpy() == pytest.approx(expected.to_numpy(), rel=share)


@torch.no_grad()
def nonlinearity(host, layer):
    """How far what leaves a block is from linear in what its W_out writes."""
    tokens, leaving = torch.arange(8, 13)[None], []
    for factor in (0.0, 1.0, 2.0):
        hooks = [
            (host.hook_mlp_out(layer), lambda value, hook, factor=factor: factor * value),
            (host.resid_post(layer), lambda value, hook: leaving.append(value.clone())),
        ]
        host.logits(tokens, torch.ones_like(tokens), fwd_hooks=hooks)
    nothing, once, twice = leaving
    return float((twice - 2 * once + nothing).abs().max() / (once - nothing).abs().max())
