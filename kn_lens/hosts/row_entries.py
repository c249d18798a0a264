"""Rows that enter a pass at different layers: one pass, and one backward pass, serve them all.

The rows of a pass are sorted by the layer where they enter. Block l then runs twice: in whole on the rows that entered
below, and without its attention on the rows that enter here, whose attention is known. Their results are joined, and
block l + 1 takes both:

    block 0     block 1         block 2
    [enter 0]   [run 0]         [run 0, 1]
                [enter 1]       [enter 2]

These are the rows and the operations of one pass for each layer, in twice as many calls of blocks as there are layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.hosts.model_protocol import HookFn, PostFn

LeafPath = tuple[int | str, ...]
"""The place of a tensor among the arguments of a call."""


@dataclass(frozen=True, kw_only=True)
class RowEntry:
    """Rows that enter a pass at a layer.

    Attributes:
        resid_pre: the residual stream that enters the layer, at the read position.
        attn_out: the output of the layer's attention, at the read position.
        complete: makes of what leaves the block at the read position what leaves it at all positions of the pass.
    """

    resid_pre: Float[Tensor, "row 1 d_model"]
    attn_out: Float[Tensor, "row 1 d_model"]
    complete: Callable[[Float[Tensor, "row 1 d_model"]], Float[Tensor, "row pos d_model"]]


@dataclass(kw_only=True, eq=False)
class EntryPhase:
    """Whether the block that runs now runs on the rows that enter at it, or on those that entered below.

    Hooks and functions that are meant for one of the two ask it when they are called.
    """

    entering: bool = False

    def for_entering(self, function: PostFn) -> PostFn:
        """Return the function for the rows that enter, which leaves others as they are."""
        return lambda value: function(value) if self.entering else value

    def for_entered(self, hook_fn: HookFn) -> HookFn:
        """Return the hook for the rows that entered below, which leaves others as they are."""
        return lambda value, hook: None if self.entering else hook_fn(value, hook)


def row_leaves(of_two: Any, of_three: Any) -> set[LeafPath]:
    """Return the places of the tensors that have entries for each row, among the arguments of one call.

    Args:
        of_two: the arguments of a call with two rows.
        of_three: those of the same call with three rows.
    """
    sizes = {path: leaf.shape[0] for path, leaf in tensor_leaves(of_two)}
    return {path for path, leaf in tensor_leaves(of_three) if 2 * leaf.shape[0] == 3 * sizes.get(path, 0)}


def tensor_leaves(value: Any, path: LeafPath = ()) -> Iterator[tuple[LeafPath, Tensor]]:
    """Yield the tensors with an axis in nested tuples, lists and dictionaries, each with its place."""
    if isinstance(value, Tensor) and value.ndim:
        yield path, value
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from tensor_leaves(item, (*path, index))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensor_leaves(item, (*path, key))


def select_row_leaves(
    value: Any,
    leaves: set[LeafPath],
    start: int,
    stop: int,
    n_rows: int,
    path: LeafPath = (),
) -> Any:
    """Return the arguments of a call on some of its rows.

    Args:
        value: the arguments of a call on all rows.
        leaves: the places of the tensors that have entries for each row; they may have several (one for each head).
        start: the first row.
        stop: the row after the last.
        n_rows: the number of all rows.
        path: the place of ``value`` among the arguments.
    """
    if isinstance(value, Tensor):
        if path not in leaves or (start == 0 and stop == n_rows):
            return value
        n_entries = value.shape[0] // n_rows
        return value[start * n_entries : stop * n_entries]
    if type(value) in (tuple, list):
        items = [
            select_row_leaves(item, leaves, start, stop, n_rows, (*path, index)) for index, item in enumerate(value)
        ]
        return type(value)(items)
    if type(value) is dict:
        return {key: select_row_leaves(item, leaves, start, stop, n_rows, (*path, key)) for key, item in value.items()}
    return value


def join_rows(parts: Sequence[Float[Tensor, "_ pos d_model"]]) -> Float[Tensor, "row pos d_model"]:
    """Return all rows of several tensors, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
