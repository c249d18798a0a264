"""ALBERT: BERT whose layers share their weights.

The checkpoint has one layer, or a few, and runs it at every depth. Here each depth has modules of its own around the
same weights, so that a hook at a depth acts there alone. A neuron is a row of the shared ``W_out`` at a depth: its
activation is of that depth; the row is that of all depths, and so is an edit of it.
"""

from copy import copy
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from kn_lens.hosts.adapters.bert_layers import BertLayersArchitectureAdapter, Paths, embeddings_in
from kn_lens.hosts.adapters.boot_tables import boots_masked


class _UnrolledEncoder(nn.Module):
    """The encoder of ALBERT with a layer for each depth, beside the layers of the checkpoint."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.config = encoder.config
        self.embedding_hidden_mapping_in = encoder.embedding_hidden_mapping_in
        self.albert_layer_groups = encoder.albert_layer_groups  # for the names of the weights
        layers: list[nn.Module] = []
        for depth in range(self.config.num_hidden_layers):
            group = int(depth / (self.config.num_hidden_layers / self.config.num_hidden_groups))
            for layer in self.albert_layer_groups[group].albert_layers:
                layers.append(_with_same_weights(layer))
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        hidden_states = self.embedding_hidden_mapping_in(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


def _with_same_weights(module: nn.Module) -> nn.Module:
    """Return a copy of a module and its submodules, with the parameters and buffers of the original."""
    twin = copy(module)
    twin._modules = {}
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _with_same_weights(child)
    return twin


@boots_masked("AlbertForMaskedLM")
class AlbertArchitectureAdapter(BertLayersArchitectureAdapter):
    """Embeddings may be narrower than the residual stream; the head returns to their width."""

    paths: ClassVar[Paths] = {
        **embeddings_in("albert"),
        "blocks": "albert.encoder.layers",
        "blocks.ln1": "attention.LayerNorm",
        "blocks.ln2": "full_layer_layer_norm",
        "blocks.attn.q": "query",
        "blocks.attn.k": "key",
        "blocks.attn.v": "value",
        "blocks.attn.o": "dense",
        "blocks.mlp.in": "ffn",
        "blocks.mlp.out": "ffn_output",
        "mlm_head": "predictions.dense",
        "ln_final": "predictions.LayerNorm",
        "unembed": "predictions.decoder",
    }

    def prepare_model(self, hf_model: Any) -> None:
        """Give each depth a layer of its own, with the shared weights."""
        super().prepare_model(hf_model)
        hf_model.albert.encoder = _UnrolledEncoder(hf_model.albert.encoder).eval()
