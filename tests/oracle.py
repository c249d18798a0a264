"""The definitions of the method as plain loops over a Hugging Face model, sharing no code with the library.

One prompt, one neuron layer, one step at a time, full forward passes, PyTorch's own module hooks.
"""

from collections.abc import Callable
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor, nn

W_OUT: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "AlbertForMaskedLM": lambda hf, layer: hf.albert.encoder.albert_layer_groups[0].albert_layers[0].ffn_output,
    "BertForMaskedLM": lambda hf, layer: hf.bert.encoder.layer[layer].output.dense,
    "DebertaV2ForMaskedLM": lambda hf, layer: hf.deberta.encoder.layer[layer].output.dense,
    "ErnieForMaskedLM": lambda hf, layer: hf.ernie.encoder.layer[layer].output.dense,
    "EsmForMaskedLM": lambda hf, layer: hf.esm.encoder.layer[layer].output.dense,
    "EuroBertForMaskedLM": lambda hf, layer: hf.model.layers[layer].mlp.down_proj,
    "GPT2LMHeadModel": lambda hf, layer: hf.transformer.h[layer].mlp.c_proj,
    "LlamaForCausalLM": lambda hf, layer: hf.model.layers[layer].mlp.down_proj,
    "Gemma2ForCausalLM": lambda hf, layer: hf.model.layers[layer].mlp.down_proj,
    "MPNetForMaskedLM": lambda hf, layer: hf.mpnet.encoder.layer[layer].output.dense,
    "MegatronBertForMaskedLM": lambda hf, layer: hf.bert.encoder.layer[layer].output.dense,
    "ModernBertForMaskedLM": lambda hf, layer: hf.model.layers[layer].mlp.Wo,
    "NomicBertForMaskedLM": lambda hf, layer: hf.nomic_bert.layers[layer].mlp.down_proj,
    "XLMRobertaXLForMaskedLM": lambda hf, layer: hf.roberta.encoder.layer[layer].output.dense,
}


@contextmanager
def at_w_out(hf: nn.Module, layer: int, change: Callable[[Tensor], Tensor | None]):
    """Let ``change`` see, and replace unless it returns None, what enters the layer's W_out."""
    name = type(hf).__name__
    calls = count()

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        # ALBERT runs one module at every depth.
        if name == "AlbertForMaskedLM" and next(calls) % hf.config.num_hidden_layers != layer:
            return None
        new = change(args[0])
        return None if new is None else (new,)

    handle = W_OUT[name](hf, layer).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def probability(hf: nn.Module, tokens: Tensor, read_pos: int, target: int, layer: int, post: Tensor | None) -> Tensor:
    """P(target) at read_pos for one unpadded prompt, with the layer's activation there replaced by ``post``."""

    def change(activation: Tensor) -> Tensor | None:
        if post is None:
            return None
        rest = torch.arange(activation.shape[1]) != read_pos
        return torch.where(rest[None, :, None], activation, post)

    with at_w_out(hf, layer, change):
        return hf(tokens[None]).logits[0, read_pos].softmax(-1)[target]


def clean_post(hf: nn.Module, tokens: Tensor, read_pos: int, layer: int) -> Tensor:
    """The layer's activation at read_pos."""
    seen = []
    with at_w_out(hf, layer, lambda activation: seen.append(activation[0, read_pos].detach())), torch.no_grad():
        hf(tokens[None])
    return seen[0]


def integrated_gradients(
    hf: nn.Module, tokens: Tensor, read_pos: int, target: int, layer: int, nodes: list[float], weights: list[float]
) -> Tensor:
    """sum_k weights[k] * w * dP(nodes[k] * w)/dw."""
    w = clean_post(hf, tokens, read_pos, layer)
    total = torch.zeros_like(w)
    for node, weight in zip(nodes, weights, strict=True):
        point = (node * w).requires_grad_()
        total += weight * torch.autograd.grad(probability(hf, tokens, read_pos, target, layer, point), point)[0]
    return w * total


def ablation(hf: nn.Module, tokens: Tensor, read_pos: int, target: int, layer: int, index: int) -> float:
    """P(w) - P(w with w[index] = 0)."""
    w = clean_post(hf, tokens, read_pos, layer)
    without = w.clone()
    without[index] = 0
    with torch.no_grad():
        clean, off = (probability(hf, tokens, read_pos, target, layer, post) for post in (None, without))
    return float(clean - off)
