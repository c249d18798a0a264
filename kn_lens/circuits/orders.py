"""Orders of nodes: which a circuit of a given size keeps, and those that controls of the same shape keep.

An order gives each node of a pair a rank from 0; the circuit of size k has the nodes with the ranks below k. One order
stands for the circuits of all sizes. The controls have as many nodes of each kind in each layer and position, at every
size: their orders exchange the ranks within these groups, by chance or by activity.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.circuits.circuit import Circuit
from kn_lens.circuits.nodes import NeuronNode
from kn_lens.circuits.scores import CircuitScores, Ranking
from kn_lens.errors import ArgumentError, did_you_mean

NodeKind = Literal["neuron", "head"]
KINDS: tuple[NodeKind, ...] = get_args(NodeKind)
ALWAYS = -1
"""The rank of what is no node of the circuit's kinds: it is always computed."""

Ranks: TypeAlias = Int[Tensor, "pair n_layers pos node"]


def checked_kinds(kinds: NodeKind | Sequence[NodeKind]) -> tuple[NodeKind, ...]:
    """Return kinds of nodes as a tuple.

    Raises:
        ArgumentError: an unknown kind, or none.
    """
    found = (kinds,) if isinstance(kinds, str) else kinds
    if not isinstance(found, (list, tuple)) or not found or not all(kind in KINDS for kind in found):
        raise ArgumentError(f"kinds={kinds!r}; expected 'neuron', 'head', or both.{did_you_mean(kinds, KINDS)}")
    return tuple(dict.fromkeys(found))


def is_node(scores: CircuitScores, kinds: Sequence[NodeKind]) -> Bool[Tensor, "pair n_layers pos node"]:
    """Return which entries of scores are nodes of some kinds, at a token of the prompt."""
    of_kind = torch.zeros(scores.values.shape[-1], dtype=torch.bool, device=scores.values.device)
    if "neuron" in kinds:
        of_kind[: scores.n_neurons] = True
    if "head" in kinds:
        of_kind[scores.n_neurons :] = True
    is_token = scores.pairs.clean.attention_mask[:, : scores.values.shape[2]].bool()
    return (of_kind & is_token[:, None, :, None]).expand_as(scores.values)


def order_by(
    values: Float[Tensor, "pair n_layers pos node"],
    nodes: Bool[Tensor, "pair n_layers pos node"],
    by: Ranking = "score",
) -> Ranks:
    """Return the order of nodes by values, or by their size, largest first."""
    keys = values if by == "score" else values.abs()
    keys = keys.masked_fill(~nodes, -torch.inf).flatten(1)
    ranks = torch.empty_like(keys, dtype=torch.int32)
    places = keys.argsort(dim=1, descending=True, stable=True)
    numbers = torch.arange(keys.shape[1], dtype=torch.int32, device=keys.device).expand_as(ranks)
    ranks.scatter_(1, places, numbers)
    return ranks.view(values.shape).masked_fill(~nodes, ALWAYS)


def order_of_circuits(circuits: Sequence[Circuit], scores: CircuitScores, kinds: Sequence[NodeKind]) -> Ranks:
    """Return orders that begin with the nodes of given circuits, one for each pair.

    Raises:
        ArgumentError: a circuit with nodes that the pair does not have, or of another kind.
    """
    marks = torch.zeros_like(scores.values)
    for row, circuit in enumerate(circuits):
        for layer, position, number in circuit_places(circuit, scores, row, kinds):
            marks[row, layer, position, number] = 1.0
    return order_by(marks, is_node(scores, kinds))


def circuit_places(
    circuit: Circuit, scores: CircuitScores, row: int, kinds: Sequence[NodeKind]
) -> set[tuple[int, int, int]]:
    """Return the places of a circuit's nodes in ``scores.values[row]``; of one for all positions, that at every token.

    Raises:
        ArgumentError: a node that the pair does not have, or of another kind.
    """
    n_pos = int(scores.pairs.clean.length[row])
    places = set()
    for node in circuit:
        kind = "neuron" if isinstance(node, NeuronNode) else "head"
        if kind not in kinds:
            raise ArgumentError(f"The circuit has the {kind} {node}; expected nodes of the kind {' or '.join(kinds)}.")
        if node.position is not None and node.position >= n_pos:
            raise ArgumentError(
                f"The circuit has the node {node}, and the prompt {scores.pairs.clean.text[row]!r} has {n_pos} tokens; "
                f"expected positions from 0 to {n_pos - 1}."
            )
        for position in range(n_pos) if node.position is None else [node.position]:
            places.add(scores.place(replace(node, position=position)))
    return places


def random_order(ranks: Ranks, n_neurons: int, seeds: Sequence[int]) -> Ranks:
    """Return orders of the same shape at every size, by chance: one seed for each pair."""
    keys = []
    for pair, seed in zip(ranks, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        keys.append(torch.rand(pair.shape, generator=generator))
    return _exchanged(ranks, torch.stack(keys).to(ranks.device), n_neurons)


def active_order(ranks: Ranks, n_neurons: int, activity: Float[Tensor, "pair n_layers pos node"]) -> Ranks:
    """Return orders of the same shape at every size, by activity: the most active nodes come first."""
    return _exchanged(ranks, activity, n_neurons)


def _exchanged(ranks: Ranks, keys: Float[Tensor, "pair n_layers pos node"], n_neurons: int) -> Ranks:
    """Return ranks that are sorted by keys, largest first, within the nodes of a layer, position and kind."""
    exchanged = torch.empty_like(ranks)
    for group in (slice(0, n_neurons), slice(n_neurons, None)):
        sorted_ranks = ranks[..., group].sort(dim=-1).values
        order = keys[..., group].argsort(dim=-1, descending=True, stable=True)
        exchanged[..., group] = torch.empty_like(sorted_ranks).scatter(-1, order, sorted_ranks)
    return exchanged
