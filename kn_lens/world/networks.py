"""The embedded models as plain Hugging Face modules, and the two things that training does with them.

It reads logits at chosen places, so that the head runs only where something is predicted, and it watches or replaces
the MLP activations.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from kn_lens.world.corpus import N_CTX, padding
from kn_lens.world.recipes import Recipe

Network = BertForMaskedLM | GPT2LMHeadModel


def build(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Network:
    """A fresh network with random weights, drawn from torch's global generator."""
    if recipe.kind == "bert":
        network = BertForMaskedLM(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=recipe.d_model,
                num_hidden_layers=recipe.n_layers,
                num_attention_heads=recipe.n_heads,
                intermediate_size=recipe.d_mlp,
                max_position_embeddings=N_CTX,
                hidden_dropout_prob=recipe.dropout,
                attention_probs_dropout_prob=0.0,
                initializer_range=recipe.init_std,
                pad_token_id=padding(tokenizer),
            )
        )
        for name, weight in network.bert.encoder.named_parameters():
            if name.endswith("output.dense.weight"):  # of attention and of the MLP
                weight.data.mul_(recipe.branch_scale)
        return network
    return GPT2LMHeadModel(
        GPT2Config(
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
            bos_token_id=padding(tokenizer),
            eos_token_id=padding(tokenizer),
        )
    )


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
    """Right-pad token rows; returns tokens and attention mask."""
    tokens = torch.full((len(rows), max(map(len, rows))), pad_id)
    attention_mask = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        attention_mask[i, : len(row)] = 1
    return tokens, attention_mask


def read(
    network: Network,
    tokens: Int[Tensor, "row pos"],
    attention_mask: Int[Tensor, "row pos"],
    rows: Int[Tensor, " n"],
    positions: Int[Tensor, " n"],
) -> Float[Tensor, "n d_vocab"]:
    """Logits at ``positions`` of ``rows``."""
    if isinstance(network, BertForMaskedLM):
        hidden = network.bert(tokens, attention_mask=attention_mask).last_hidden_state
        return network.cls(hidden[rows, positions])
    hidden = network.transformer(tokens, attention_mask=attention_mask, use_cache=False).last_hidden_state
    return network.lm_head(hidden[rows, positions])


def mlp_activations(network: Network) -> list[nn.Module]:
    """The modules whose outputs are the MLP activations (``hook_post``), one a layer."""
    name = "bert.encoder.layer.{}.intermediate" if isinstance(network, BertForMaskedLM) else "transformer.h.{}.mlp.act"
    return [network.get_submodule(name.format(layer)) for layer in range(network.config.num_hidden_layers)]


@contextmanager
def watched(network: Network, function: Callable[[int, Any], Any]) -> Iterator[None]:
    """Call ``function(layer, activation)`` on every MLP activation; a tensor that it returns takes its place."""
    handles = [
        module.register_forward_hook(lambda _module, _args, post, layer=layer: function(layer, post))
        for layer, module in enumerate(mlp_activations(network))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
