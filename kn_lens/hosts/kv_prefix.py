"""The keys and values of the tokens before the read position, which passes through a causal model start from."""

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class KVPrefix:
    """The keys and values of a prefix of tokens: no later token changes them.

    Attributes:
        cache: in the model's own form. A pass appends to it, so each pass takes its own `select`.
    """

    cache: Any

    @classmethod
    def of(cls, model: Any, tokens: Int[Tensor, "row pos"]) -> "KVPrefix | None":
        """Run the model on tokens without padding and keep its keys and values; None where it returns none."""
        from transformers import DynamicCache

        cache = DynamicCache(config=model.original_model.config)
        with torch.no_grad():
            model(
                tokens,
                attention_mask=torch.ones_like(tokens),
                past_key_values=cache,
                use_cache=True,
            )
        # TransformerLens 3.9 runs MPT without filling the cache.
        return cls(cache) if cache.get_seq_length() == tokens.shape[1] else None

    def select(self, rows: Int[Tensor, " selected"], first_layer: int = 0) -> "KVPrefix":
        """Return the prefix of these rows, for a pass that starts at ``first_layer``; this one stays as it is."""
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in cache.layers]
        for layer in cache.layers[first_layer:]:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        return KVPrefix(cache)
