"""Tiny checkpoints whose layers have experts, and what plain transformers computes of them."""

from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

import kn_lens as kn
from tests.tiny import tiny_tokenizer

N_LAYERS, D_MODEL = 3, 16
_SIZES = {
    "vocab_size": len(tiny_tokenizer("GPT2LMHeadModel")),
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
_NARROW = {"moe_intermediate_size": 10}
_LATENT = {
    "num_key_value_heads": 2,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
_DENSE_FIRST = {**_NARROW, "n_routed_experts": 4, "first_k_dense_replace": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {**_GROUPED, "num_local_experts": 4},
    "OlmoeForCausalLM": {"num_experts": 4},
    "Qwen2MoeForCausalLM": {
        "num_key_value_heads": 1,
        **_NARROW,
        "num_experts": 4,
        "shared_expert_intermediate_size": 14,
        "mlp_only_layers": [0],
    },
    "Qwen3MoeForCausalLM": {**_GROUPED, **_NARROW, "num_experts": 4},
    "GptOssForCausalLM": {**_GROUPED, "num_local_experts": 4, "sliding_window": 4},
    "DeepseekV2ForCausalLM": {**_LATENT, **_DENSE_FIRST, "n_shared_experts": 2, "topk_method": "greedy"},
    "DeepseekV3ForCausalLM": {**_LATENT, **_DENSE_FIRST, "n_shared_experts": 1, "n_group": 2, "topk_group": 1},
    "Glm4MoeForCausalLM": {**_GROUPED, **_DENSE_FIRST, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
}
"""The families, with layers of one MLP and shared experts where they have them."""

BIASED = ("GptOssForCausalLM",)
"""Families whose experts have biases."""

ROUGH_ROUTERS = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeForCausalLM")
"""Families whose routers compute in float32, whatever the weights are in."""


def tiny_experts(architecture: str, dtype: torch.dtype = torch.float64) -> Any:
    """Return a random model of transformers, in evaluation mode."""
    cls = getattr(transformers, architecture)
    hf_model = cls(cls.config_class(**_SIZES | FAMILIES[architecture])).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in hf_model.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight.data = 0.5 * noise if weight.ndim > 1 else weight.data + 0.1 * noise
    return hf_model


def plain(path: Path | str, architecture: str) -> Any:
    """Return a checkpoint as transformers alone reads it, in float64."""
    hf_model = getattr(transformers, architecture).from_pretrained(path, dtype=torch.float64).eval()
    hf_model.set_attn_implementation("eager")
    hf_model.set_experts_implementation("eager")
    return hf_model


@cache
def both(architecture: str) -> tuple[Any, Any]:
    """Return a checkpoint that went to disk, as kn_lens and as transformers read it."""
    with TemporaryDirectory() as directory:
        tiny_experts(architecture).save_pretrained(directory)
        tokenizer = tiny_tokenizer("GPT2LMHeadModel")  # for its texts alone
        model = kn.load_model(directory, tokenizer=tokenizer, dtype=torch.float64, device="cpu")
        return model, plain(directory, architecture)


def expert_prompts(n_tokens: int = 6, n_prompts: int = 3) -> kn.PromptBatch:
    """Return prompts of random tokens, read at the last."""
    generator = torch.Generator().manual_seed(n_tokens)
    tokens = torch.randint(3, 60, (n_prompts, n_tokens + 1), generator=generator)
    return kn.PromptBatch.from_tokens(
        tokens[:, :-1], read_pos=torch.full((n_prompts,), n_tokens - 1), target_ids=tokens[:, -1]
    )


def answer_probability(hf_model: Any, prompts: kn.PromptBatch) -> torch.Tensor:
    """Return the probability of each prompt's answer in a model of transformers."""
    logits = hf_model(prompts.tokens).logits
    rows = torch.arange(len(prompts))
    return logits[rows, prompts.read_pos].softmax(-1)[rows, prompts.target_ids]


@contextmanager
def routing_held(hf_model: Any, prompts: kn.PromptBatch, above: int):
    """Hold the experts of the layers above one as they are without a change, by PyTorch's hooks."""
    choices: dict[Any, tuple] = {}
    experts = [layer.mlp.experts for layer in hf_model.model.layers[above + 1 :] if hasattr(layer.mlp, "experts")]

    def record(module, args):
        choices[module] = tuple(value.detach() for value in args[1:])

    def hold(module, args):
        return (args[0], *choices[module])

    handles = [module.register_forward_pre_hook(record) for module in experts]
    try:
        with torch.no_grad():
            hf_model(prompts.tokens)
        for handle in handles:
            handle.remove()
        handles = [module.register_forward_pre_hook(hold) for module in experts]
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def silenced(hf_model: Any, layer: int, read_pos: int):
    """Let the MLP of a layer write at one position what it writes without activations: nothing but its biases."""
    mlp = hf_model.model.layers[layer].mlp
    biases = {}

    def record(module, args):
        _, experts, weights = args
        bias = (module.down_proj_bias[experts] * weights[..., None]).sum(1)
        biases["of tokens"] = bias

    def silence(module, args, output):
        out = (output[0] if isinstance(output, tuple) else output).clone()
        out[:, read_pos] = biases["of tokens"].view_as(out)[:, read_pos] if biases else 0
        return (out, *output[1:]) if isinstance(output, tuple) else out

    handles = [mlp.register_forward_hook(silence)]
    if hasattr(getattr(mlp, "experts", None), "down_proj_bias"):
        handles.append(mlp.experts.register_forward_pre_hook(record))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def value_weights(hf_model: Any, layer: int) -> list[tuple[str, torch.nn.Parameter, bool]]:
    """Return the weights that hold the value rows of a layer: whose they are, and whether rows are its last axis."""
    mlp = hf_model.model.layers[layer].mlp
    if not hasattr(mlp, "experts"):
        return [("one", mlp.down_proj.weight, True)]
    weights = [("experts", mlp.experts.down_proj, not isinstance(mlp.experts, GPT_OSS_EXPERTS))]
    for name in ("shared_expert", "shared_experts"):
        if hasattr(mlp, name):
            weights.append(("shared", getattr(mlp, name).down_proj.weight, True))
    return weights


GPT_OSS_EXPERTS = transformers.models.gpt_oss.modeling_gpt_oss.GptOssExperts
