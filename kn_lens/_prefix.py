"""Keys and values of the tokens that come before the ones of interest, for causal models."""

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """What a causal model keeps of the tokens before: nothing after them changes it.

    Attributes:
        cache: in the model's own form. A pass appends to it, so each takes its own ``select``.
    """

    cache: Any

    @classmethod
    def of(cls, model: Any, tokens: Int[Tensor, "row pos"]) -> "Prefix | None":
        """Run the model on tokens without padding and keep its keys and values; None where it hands out none."""
        from transformers import DynamicCache

        cache = DynamicCache(config=model.original_model.config)
        with torch.no_grad():
            model(tokens, attention_mask=torch.ones_like(tokens), past_key_values=cache, use_cache=True)
        # TransformerLens 3.9 runs MPT without touching the cache.
        return cls(cache) if cache.get_seq_length() == tokens.shape[1] else None

    def select(self, rows: Int[Tensor, " some"], first_layer: int = 0) -> "Prefix":
        """Return the prefix of these rows, for a pass that starts at ``first_layer``; the original stays as it is."""
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in cache.layers]
        for layer in cache.layers[first_layer:]:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        return Prefix(cache)
