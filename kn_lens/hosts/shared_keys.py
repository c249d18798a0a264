"""Attention of many rows, one token each, on the keys and values of the prompts that they belong to.

A pass that starts after a prefix has many rows of one prompt, one for each layer and point of its paths. They attend to
the same keys and values of earlier tokens, and each to those of its own token. So the rows are sorted into a table with
a line for each prompt,

    scores[prompt, slot, pos] = query[prompt, slot] . key[prompt, pos]

which is one product for each prompt and head, and nothing is copied for each row. The attention modules of transformers
look up by name how they attend: `shared_attention` gives them one of the functions here for the time of a pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

IMPLEMENTATIONS = ("kn_lens_shared_keys", "kn_lens_shared_keys_softmax_in_float32")
"""The names of these functions for transformers: its models take the softmax in their own type, or in float32."""

_TAG = "kn_lens_shared_prefix"
"""The attribute by which the keys of new tokens lead to those of the prefix. `_SharedLayer` puts it there."""

_WASTE = 2
"""Slots a row, of a table of prompts, beyond which rows get copies of their keys: prompts differ in their number."""


@dataclass(frozen=True)
class RowTable:
    """Rows sorted into lines of one prompt each.

    Attributes:
        prompts: the prompt of each line.
        rows: the row in each slot; row 0 in a slot that is left over.
        slot: the slot of each row, counted through all lines.
    """

    prompts: Int[Tensor, " line"]
    rows: Int[Tensor, "line slot"]
    slot: Int[Tensor, " row"]

    @classmethod
    def of(cls, prompt_of_row: Int[Tensor, " row"]) -> "RowTable":
        """Sort rows by their prompts."""
        prompts, line, counts = prompt_of_row.unique(return_inverse=True, return_counts=True)
        order = line.argsort(stable=True)
        n_slots = int(counts.max())
        first = counts.cumsum(0) - counts
        row = torch.arange(len(line), device=line.device)
        slot = torch.empty_like(line)
        slot[order] = line[order] * n_slots + row - first[line[order]]
        rows = torch.zeros(len(prompts) * n_slots, dtype=torch.long, device=line.device)
        rows[slot] = row
        return cls(prompts=prompts, rows=rows.view(-1, n_slots), slot=slot)

    @property
    def is_dense(self) -> bool:
        """Whether few slots are left over."""
        return self.rows.numel() <= _WASTE * len(self.slot)

    def spread(self, value: Float[Tensor, "row ..."]) -> Float[Tensor, "line slot ..."]:
        """Return a value of each row in the slots."""
        return value.index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape)

    def gather(self, value: Float[Tensor, "line slot ..."]) -> Float[Tensor, "row ..."]:
        """Return the value of each row from the slots."""
        return value.flatten(0, 1).index_select(0, self.slot)


@dataclass(frozen=True)
class _Prefix:
    """What the rows of a pass attend to in one layer, beside their own token."""

    keys: Float[Tensor, "line kv_head pos d_head"]
    values: Float[Tensor, "line kv_head pos d_head"]
    table: RowTable


def share_layers(layers: Sequence[Any], rows_of_layers: Sequence[Int[Tensor, " selected"] | None]) -> list[Any]:
    """Return the layers of a cache for the rows that run in each of them, whose keys and values stay those of prompts.

    Args:
        layers: of a cache of transformers, which keep all keys and values.
        rows_of_layers: the prompt of each row, by layer; None where a pass does not run the layer's attention.
    """
    shared: list[Any] = []
    for layer, prompt_of_row in zip(layers, rows_of_layers, strict=True):
        if prompt_of_row is None:
            shared.append(layer)
            continue
        table = RowTable.of(prompt_of_row)
        if table.is_dense:
            shared.append(_shared_layer()(layer, table))
        else:
            shared.append(_shared_layer()(layer, None, prompt_of_row))
    return shared


@cache
def _shared_layer() -> type:
    """Return the class of a cache's layer that adds nothing to its keys, and leads the attention to them."""
    from transformers.cache_utils import DynamicLayer

    class SharedLayer(DynamicLayer):
        def __init__(self, layer: Any, table: RowTable | None, rows: Tensor | None = None) -> None:
            super().__init__()
            self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
            self.table = table
            chosen = rows if table is None else table.prompts
            assert chosen is not None
            every = table is not None and len(chosen) == len(layer.keys)
            self.keys = layer.keys if every else layer.keys[chosen]
            self.values = layer.values if every else layer.values[chosen]

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if self.table is None:
                return super().update(key_states, value_states, *args, **kwargs)
            assert self.keys is not None and self.values is not None
            setattr(key_states, _TAG, _Prefix(self.keys, self.values, self.table))
            return key_states, value_states

    return SharedLayer


def register_implementations() -> None:
    """Give transformers the functions of this module by their names, which no model has unless it is told."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    for name, softmax_type in zip(IMPLEMENTATIONS, (None, torch.float32), strict=True):
        AttentionInterface.register(name, partial(_attend, softmax_type))
        AttentionMaskInterface.register(name, eager_mask)


def _attend(
    softmax_type: torch.dtype | None,
    module: nn.Module,
    query: Float[Tensor, "row head 1 d_head"],
    key: Float[Tensor, "row kv_head pos d_head"],
    value: Float[Tensor, "row kv_head pos d_head"],
    attention_mask: Float[Tensor, "row 1 1 prefix_and_pos"] | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "row 1 head d_head"], None]:
    """Return what each row attends to; see the module's description. In evaluation mode, so without dropout.

    Raises:
        ValueError: an option that changes scores or weights, which the functions here leave out.
    """
    if not (softcap is None and s_aux is None and position_bias is None):
        raise ValueError("Attention on shared keys has no softcap, sinks or position bias.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    prefix: _Prefix | None = getattr(key, _TAG, None)
    n_kv_heads = key.shape[1]
    if prefix is None:
        grouped = rearrange(query, "row (kv group) 1 d -> row kv group d", kv=n_kv_heads)
        scores = grouped @ key.transpose(-1, -2) * scale
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = nn.functional.softmax(scores, dim=-1, dtype=softmax_type).to(value.dtype)
        return rearrange(weights @ value, "row kv group d -> row 1 (kv group) d"), None

    table = prefix.table
    n_pos = prefix.keys.shape[-2]
    slots = rearrange(table.spread(query.squeeze(2)), "line slot (kv group) d -> line kv slot group d", kv=n_kv_heads)
    own_key = rearrange(table.spread(key.squeeze(2)), "line slot kv d -> line kv slot 1 d")
    own_value = rearrange(table.spread(value.squeeze(2)), "line slot kv d -> line kv slot 1 d")
    of_prefix = slots.flatten(2, 3) @ prefix.keys.transpose(-1, -2)
    of_own = (slots * own_key).sum(-1, keepdim=True)
    scores = torch.cat([of_prefix.unflatten(2, slots.shape[2:4]), of_own], dim=-1) * scale
    if attention_mask is not None:  # the same in all rows of a prompt
        scores = scores + attention_mask[table.rows[:, 0], :, None]
    weights = nn.functional.softmax(scores, dim=-1, dtype=softmax_type).to(value.dtype)
    attended = (weights[..., :n_pos].flatten(2, 3) @ prefix.values).unflatten(2, slots.shape[2:4])
    attended = attended + weights[..., n_pos:] * own_value
    rows = table.gather(rearrange(attended, "line kv slot group d -> line slot (kv group) d"))
    return rows[:, None], None
