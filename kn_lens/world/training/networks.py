"""The embedded models as plain Hugging Face modules, with the two operations that training needs.

``logits_at`` computes logits at chosen positions, so that the head runs only where a token is predicted. ``mlp_hooks``
observes or replaces the MLP activations.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from kn_lens.world.training.corpus import N_CTX, pad_id
from kn_lens.world.training.recipes import Recipe

Network = BertForMaskedLM | GPT2LMHeadModel


def build(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Network:
    """Return a network with random weights, drawn from the global generator of torch."""
    if recipe.kind == "bert":
        return _build_bert(recipe, tokenizer)
    return _build_gpt2(recipe, tokenizer)


def _build_bert(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        intermediate_size=recipe.d_mlp,
        max_position_embeddings=N_CTX,
        hidden_dropout_prob=recipe.dropout,
        attention_probs_dropout_prob=0.0,
        initializer_range=recipe.init_std,
        pad_token_id=pad_id(tokenizer),
    )
    network = BertForMaskedLM(config)
    for name, weight in network.bert.encoder.named_parameters():
        if name.endswith("output.dense.weight"):  # of attention and of the MLP
            weight.data.mul_(recipe.branch_scale)
    return network


def _build_gpt2(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=recipe.d_model,
        n_layer=recipe.n_layers,
        n_head=recipe.n_heads,
        n_inner=recipe.d_mlp,
        n_positions=N_CTX,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=recipe.dropout,
        embd_pdrop=recipe.dropout,
        attn_pdrop=0.0,
        initializer_range=recipe.init_std,
        bos_token_id=pad_id(tokenizer),
        eos_token_id=pad_id(tokenizer),
    )
    return GPT2LMHeadModel(config)


def pad_rows(
    rows: Sequence[Sequence[int]],
    pad_id: int,
) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
    """Return token rows padded on the right, and their attention mask."""
    length = max(map(len, rows))
    tokens = torch.full((len(rows), length), pad_id)
    attention_mask = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        attention_mask[i, : len(row)] = 1
    return tokens, attention_mask


def logits_at(
    network: Network,
    tokens: Int[Tensor, "row pos"],
    attention_mask: Int[Tensor, "row pos"],
    rows: Int[Tensor, " n"],
    positions: Int[Tensor, " n"],
) -> Float[Tensor, "n d_vocab"]:
    """Compute the logits at ``positions`` of ``rows``: one forward pass."""
    if isinstance(network, BertForMaskedLM):
        hidden = network.bert(tokens, attention_mask=attention_mask).last_hidden_state
        return network.cls(hidden[rows, positions])
    output = network.transformer(tokens, attention_mask=attention_mask, use_cache=False)
    return network.lm_head(output.last_hidden_state[rows, positions])


def activation_modules(network: Network) -> list[nn.Module]:
    """Return the module of each layer whose output is the MLP activation (``hook_post``)."""
    pattern = "transformer.h.{}.mlp.act"
    if isinstance(network, BertForMaskedLM):
        pattern = "bert.encoder.layer.{}.intermediate"
    n_layers = network.config.num_hidden_layers
    return [network.get_submodule(pattern.format(layer)) for layer in range(n_layers)]


@contextmanager
def mlp_hooks(network: Network, function: Callable[[int, Any], Any]) -> Iterator[None]:
    """Call ``function(layer, activation)`` on each MLP activation; a returned tensor replaces the activation."""

    def hook(layer: int, module: nn.Module, args: Any, activation: Tensor) -> Any:
        return function(layer, activation)

    handles = []
    try:
        for layer, module in enumerate(activation_modules(network)):
            handles.append(module.register_forward_hook(partial(hook, layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()
