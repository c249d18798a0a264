"""Nodes and edges of circuits.

A node is an activation that a circuit may keep: one MLP neuron or one attention head, at one token position. An edge is
the direct path from a node to one input of another, through the residual stream alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from kn_lens._core.checks import wrong_kind
from kn_lens.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd

EdgeInput = Literal["key", "gate", "q", "k", "v", "logits"]
"""What a target reads of the residual stream.

``key``: the pre-activation of a neuron, which a gated MLP multiplies by its activated gate; ``gate``: what that gate
reads; ``q``, ``k``, ``v``: the queries, keys and values of a head; ``logits``: the logit difference of the answer.
"""

_NODE_NAME = re.compile(r"L(?P<layer>\d+)(?P<kind>[NH])(?P<number>\d+)(?:@(?P<position>\d+))?")


def _check_numbers(node: object, **numbers: object) -> None:
    """Raise unless every number is whole and not negative."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ArgumentError(f"{type(node).__name__}: {name}={number!r}; expected a whole number from 0.")


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
        _check_numbers(self, layer=self.layer, index=self.index, position=self.position or 0)

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
        _check_numbers(self, layer=self.layer, head=self.head, position=self.position or 0)

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
        ArgumentError: an input that the target does not have, or a target that does not come after the source.

    >>> str(Edge(NeuronNode(2, 7, 4), HeadNode(5, 1, 4), "v"))
    'L2N7@4 -> L5H1@4 (v)'
    """

    source: Node
    target: Node | AnswerNode
    input: EdgeInput

    def __post_init__(self) -> None:
        allowed = _INPUTS[type(self.target)]
        if self.input not in allowed:
            raise ArgumentError(f"{self.target} has no input {self.input!r}; expected one of {', '.join(allowed)}.")
        if not isinstance(self.target, AnswerNode) and self.target.layer < self.source.layer:
            raise ArgumentError(f"{self.target} lies below {self.source}; expected a target in its layer or above.")

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} ({self.input})"


_INPUTS: dict[type, tuple[EdgeInput, ...]] = {
    NeuronNode: ("key", "gate"),
    HeadNode: ("q", "k", "v"),
    AnswerNode: ("logits",),
}


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
