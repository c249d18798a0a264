"""Nodes and edges of circuits.

A node is an activation that a circuit may keep: one MLP neuron or one attention head, at one token position. An edge is
the direct path from a node to one input of another, through the residual stream alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from kn_lens._core.checks import check_kind, check_whole, wrong_kind
from kn_lens.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd

EdgeInput = Literal["key", "gate", "q", "k", "v", "logits"]
"""What a target reads of the residual stream.

``key``: the pre-activation of a neuron, which a gated MLP multiplies by its activated gate; ``gate``: what that gate
reads; ``q``, ``k``, ``v``: the queries, keys and values of a head; ``logits``: the logit difference of the answer.
"""

_NODE_NAME = re.compile(r"L(?P<layer>\d+)(?P<kind>[NH])(?P<number>\d+)(?:@(?P<position>\d+))?")


def _check_numbers(node: object, position: int | None, **numbers: object) -> None:
    """Raise unless every number is whole and not negative; the position may be None."""
    if position is not None:
        numbers["position"] = position
    for name, number in numbers.items():
        check_whole(f"{type(node).__name__}: {name}", number)


@dataclass(frozen=True, order=True)
class NeuronNode:
    """One MLP neuron at one token position, or at all.

    Attributes:
        layer: zero-based block.
        index: row of the block's ``W_out``.
        position: zero-based token position of the prompt; None for all positions.

    Raises:
        ArgumentError: a number that is not whole, or negative.

    >>> str(NeuronNode(9, 1234, 4)), str(NeuronNode(9, 1234))
    ('L9N1234@4', 'L9N1234')
    """

    layer: int
    index: int
    position: int | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, self.position, layer=self.layer, index=self.index)

    def __str__(self) -> str:
        return _named(f"L{self.layer}N{self.index}", self.position)


@dataclass(frozen=True, order=True)
class HeadNode:
    """The output of one attention head at one token position, or at all: ``hook_z``, before ``W_O``.

    Attributes:
        layer: zero-based block.
        head: zero-based head.
        position: zero-based token position of the prompt; None for all positions.

    Raises:
        ArgumentError: a number that is not whole, or negative.

    >>> str(HeadNode(9, 3, 4))
    'L9H3@4'
    """

    layer: int
    head: int
    position: int | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, self.position, layer=self.layer, head=self.head)

    def __str__(self) -> str:
        return _named(f"L{self.layer}H{self.head}", self.position)


@dataclass(frozen=True, order=True)
class AnswerNode:
    """The logit difference of the answer: the target of last edges.

    >>> str(AnswerNode())
    'answer'
    """

    def __str__(self) -> str:
        return "answer"


Node: TypeAlias = NeuronNode | HeadNode


@dataclass(frozen=True)
class Edge:
    """The direct path from a node to one input of another node, or to the answer.

    Attributes:
        source: the node that writes.
        target: the node that reads, or the answer.
        input: what of the target reads.

    Raises:
        ArgumentError: ends that are no nodes, an input that the target does not have, or a target that does not come
            after the source: in its layer only neurons do, after a head.

    >>> str(Edge(NeuronNode(2, 7, 4), HeadNode(5, 1, 4), "v"))
    'L2N7@4 -> L5H1@4 (v)'
    """

    source: Node
    target: Node | AnswerNode
    input: EdgeInput

    def __post_init__(self) -> None:
        check_kind(self.source, (NeuronNode, HeadNode), "a NeuronNode or a HeadNode: node_of('L9N1234@4')", "source")
        check_kind(
            self.target, (NeuronNode, HeadNode, AnswerNode), "a NeuronNode, a HeadNode or AnswerNode()", "target"
        )
        allowed = _INPUTS[type(self.target)]
        if self.input not in allowed:
            raise ArgumentError(f"{self.target} has no input {self.input!r}; expected {' or '.join(allowed)}.")
        if not comes_after(self.target, self.source):
            raise ArgumentError(
                f"{self.target} does not read what {self.source} writes; expected a target in a later layer, or a "
                "neuron that reads a head of its layer."
            )

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} ({self.input})"


_INPUTS: dict[type, tuple[EdgeInput, ...]] = {
    NeuronNode: ("key", "gate"),
    HeadNode: ("q", "k", "v"),
    AnswerNode: ("logits",),
}


def comes_after(target: Node | AnswerNode, source: Node) -> bool:
    """Return whether a node stands where it can read what another writes: above it, or a neuron in a head's layer."""
    if isinstance(target, AnswerNode) or target.layer > source.layer:
        return True
    return target.layer == source.layer and isinstance(source, HeadNode) and isinstance(target, NeuronNode)


def node_of(name: str) -> Node:
    """Return the node of a name, as ``str`` gives it.

    Raises:
        ArgumentError: not the name of a node.

    >>> node_of("L9N1234@4")
    NeuronNode(layer=9, index=1234, position=4)
    >>> node_of("L9H3")
    HeadNode(layer=9, head=3, position=None)
    """
    if not isinstance(name, str):
        raise wrong_kind(name, "the name of a node: 'L9N1234@4' or 'L9H3@4'", "name")
    match = _NODE_NAME.fullmatch(name)
    if match is None:
        raise ArgumentError(
            f"{name!r} is not the name of a node; expected a neuron such as 'L9N1234@4' or a head such as 'L9H3@4', "
            "without the position for all positions."
        )
    layer, number = int(match["layer"]), int(match["number"])
    position = None if match["position"] is None else int(match["position"])
    return NeuronNode(layer, number, position) if match["kind"] == "N" else HeadNode(layer, number, position)


def node_table(scores: Mapping[Node, float]) -> "pd.DataFrame":
    """Return a table of nodes in their order: node (its name), kind, layer, number, position, score."""
    import pandas as pd

    rows = []
    for node, score in scores.items():
        is_neuron = isinstance(node, NeuronNode)
        rows.append(
            {
                "node": str(node),
                "kind": "neuron" if is_neuron else "head",
                "layer": node.layer,
                "number": node.index if is_neuron else node.head,
                "position": node.position,
                "score": score,
            }
        )
    return pd.DataFrame(rows, columns=["node", "kind", "layer", "number", "position", "score"])


def _named(name: str, position: int | None) -> str:
    return name if position is None else f"{name}@{position}"
