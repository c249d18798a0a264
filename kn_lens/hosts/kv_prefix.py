"""The keys and values of the tokens before the read position, which passes through a causal model start from."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from kn_lens.hosts.shared_keys import share_layers


@dataclass(frozen=True)
class KVPrefix:
    """The keys and values of a prefix of tokens: no later token changes them.

    Attributes:
        cache: in the model's own form. A pass appends to it, so each pass takes its own `select` or `share`.
        attention: the attention, by the name that transformers has for it, that passes need; None for any.
    """

    cache: Any
    attention: str | None = None

    @classmethod
    def of(cls, model: nn.Module, config: Any, tokens: Int[Tensor, "row pos"]) -> "KVPrefix | None":
        """Run a model on tokens and keep the keys and values of all of them; None where it returns none.

        Args:
            model: a TransformerLens model, or the part of a Hugging Face model below its head.
            config: the configuration of the Hugging Face model.
            tokens: the prefixes.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=config)
        with torch.no_grad():
            model(
                tokens,
                attention_mask=torch.ones_like(tokens),
                past_key_values=cache,
                use_cache=True,
            )
        # TransformerLens 3.9 runs MPT without filling the cache.
        return cls(cache) if cache.get_seq_length() == tokens.shape[1] else None

    @classmethod
    def joined(cls, prefixes: Sequence["KVPrefix | None"], order: Int[Tensor, " row"]) -> "KVPrefix | None":
        """Join prefixes of different lengths, the shorter ones with zeros before their first token.

        Args:
            prefixes: each of rows of one length.
            order: the number of each row of the result among the rows of all prefixes, one after the other.

        Returns:
            None where a prefix is empty, or where layers keep other states than all keys and values.
        """
        caches: list[Any] = []
        for prefix in prefixes:
            if prefix is None or not prefix.is_plain:
                return None
            caches.append(prefix.cache)
        result = copy(caches[0])
        result.layers = []
        for layers in zip(*(cache.layers for cache in caches), strict=True):
            longest = max(layer.keys.shape[-2] for layer in layers)
            joined = copy(layers[0])
            for name in ("keys", "values"):
                states = [getattr(layer, name) for layer in layers]
                padded = [nn.functional.pad(state, (0, 0, longest - state.shape[-2], 0)) for state in states]
                setattr(joined, name, torch.cat(padded)[order])
            result.layers.append(joined)
        return cls(result)

    def select(self, rows_of_layers: Sequence[Int[Tensor, " selected"] | None]) -> "KVPrefix":
        """Return the prefix of the rows that run in each layer; this one stays as it is.

        Args:
            rows_of_layers: the rows of each layer; None where a pass does not run the layer's attention.
        """
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in cache.layers]
        for layer, rows in zip(cache.layers, rows_of_layers, strict=True):
            if rows is not None:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        return KVPrefix(cache)

    def first(self, rows: Int[Tensor, " selected"], n_tokens: int) -> "KVPrefix":
        """Return the prefix of rows that ends after some tokens, of one that `is_plain`.

        Args:
            rows: indices of rows; repeats allowed.
            n_tokens: the length of the new prefix; 0 for an empty one, which `joined` fills.
        """
        result = self.select([rows] * len(self.cache.layers))
        for layer in result.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :n_tokens], layer.values[:, :, :n_tokens]
        return result

    @property
    def is_plain(self) -> bool:
        """Whether every layer keeps all keys and values, and nothing else."""
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def share(self, rows_of_layers: Sequence[Int[Tensor, " selected"] | None], attention: str) -> "KVPrefix":
        """Return the same as `select`, in which several rows share the keys and values of one.

        Args:
            rows_of_layers: see `select`.
            attention: one of ``shared_keys.IMPLEMENTATIONS``.
        """
        cache = copy(self.cache)
        cache.layers = share_layers(self.cache.layers, rows_of_layers)
        return KVPrefix(cache, attention)
