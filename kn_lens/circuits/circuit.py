"""``Circuit``: a set of nodes, with their scores and the edges between them; and its file.

The file is JSON: ``{"format": "kn_lens.circuit", "version": 1, "meta": {...}, "nodes": {"L2N7@4": 0.81, ...},
"edges": [["L0H1@3", "L2N7@4", "key", 0.2], ...]}``.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens._core.atomic import read_whole, write_whole
from kn_lens._core.checks import check_kind, check_path, wrong_kind
from kn_lens._core.drawing import drawing
from kn_lens.circuits.nodes import AnswerNode, Edge, HeadNode, NeuronNode, Node, node_of, node_table
from kn_lens.errors import ArgumentError, DataError
from kn_lens.hosts import analysis_node, is_analysis_node
from kn_lens.neurons import Neuron, NeuronSet

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "kn_lens.circuit"
VERSION = 1


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(AbstractSet[Node]):
    """An immutable set of nodes. ``|``, ``&``, ``-`` and comparisons are those of sets, of the nodes alone.

    Attributes:
        nodes: the nodes; given as nodes, as their names, or as neurons (a ``NeuronSet``), which are nodes at all
            positions.
        scores: the score of each node; a node without one has 0.
        edges: the edges between nodes of the circuit, and to the answer, with their weights.
        meta: what the circuit is of, such as its prompt and model: texts and numbers.

    Raises:
        ArgumentError: a node that is none, or an edge from or to a node outside the circuit.

    >>> circuit = Circuit([NeuronNode(2, 7, 4), HeadNode(0, 1, 4)])
    >>> circuit
    Circuit(L0H1@4, L2N7@4)
    >>> circuit - Circuit(["L0H1@4"]), NeuronNode(2, 7, 4) in circuit
    (Circuit(L2N7@4), True)
    """

    nodes: frozenset[Node] = frozenset()
    scores: Mapping[Node, float] = field(default_factory=dict)
    edges: Mapping[Edge, float] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        nodes: Iterable[Node | Neuron | str] = (),
        scores: Mapping[Node, float] | None = None,
        edges: Mapping[Edge, float] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        expected = "nodes or their names: Circuit(['L2N7@4', 'L0H1@4'])"
        if isinstance(nodes, str) or not isinstance(nodes, Iterable):
            raise wrong_kind(nodes, expected, "nodes")
        found = []
        for node in nodes:
            node = node_of(str(node)) if isinstance(node, (str, Neuron)) else node
            check_kind(node, (NeuronNode, HeadNode), expected, "one of the nodes")
            found.append(node)
        object.__setattr__(self, "nodes", frozenset(found))
        scores = {} if scores is None else scores
        object.__setattr__(self, "scores", {node: float(scores.get(node, 0.0)) for node in self})
        object.__setattr__(self, "edges", dict(edges or {}))
        object.__setattr__(self, "meta", dict(meta or {}))
        for edge in self.edges:
            ends = [edge.source] if isinstance(edge.target, AnswerNode) else [edge.source, edge.target]
            outside = [str(end) for end in ends if end not in self.nodes]
            if outside:
                raise ArgumentError(f"The edge {edge} has an end outside the circuit ({', '.join(outside)}).")

    def __contains__(self, node: object) -> bool:
        return (node_of(node) if isinstance(node, str) else node) in self.nodes

    def __iter__(self) -> Iterator[Node]:
        return iter(sorted(self.nodes, key=_sort_key))

    def __len__(self) -> int:
        return len(self.nodes)

    def __hash__(self) -> int:
        return hash(self.nodes)

    def __repr__(self) -> str:
        names = [str(node) for node in self]
        if len(names) > 6:
            names = [*names[:5], f"... {len(names) - 5} more"]
        return f"Circuit({', '.join(names)})"

    @classmethod
    def _from_iterable(cls, nodes: Iterable[Any]) -> "Circuit":
        """Return a circuit of some nodes, for the operators of sets."""
        return cls(nodes)

    @property
    def neurons(self) -> NeuronSet:
        """The neurons of the circuit, whatever their positions."""
        return NeuronSet([(node.layer, node.index) for node in self if isinstance(node, NeuronNode)])

    @property
    def n_neurons(self) -> int:
        """The number of neuron nodes; a neuron at two positions is two."""
        return sum(isinstance(node, NeuronNode) for node in self.nodes)

    @property
    def n_heads(self) -> int:
        """The number of head nodes."""
        return len(self) - self.n_neurons

    @property
    def sizes(self) -> dict[tuple[str, int, int | None], int]:
        """The number of nodes by kind, layer and position: the circuit's shape."""
        counts: Counter[tuple[str, int, int | None]] = Counter()
        for node in self:
            counts["neuron" if isinstance(node, NeuronNode) else "head", node.layer, node.position] += 1
        return dict(counts)

    def with_edges(self, edges: Mapping[Edge, float]) -> "Circuit":
        """Return the circuit with other edges."""
        return Circuit(self.nodes, self.scores, edges, self.meta)

    def to_frame(self) -> "pd.DataFrame":
        """Return the nodes as a table, largest scores first: node, kind, layer, number, position, score."""
        in_order = sorted(self, key=lambda node: (-abs(self.scores[node]), _sort_key(node)))
        return node_table({node: self.scores[node] for node in in_order})

    def edges_frame(self) -> "pd.DataFrame":
        """Return the edges as a table, largest weights first: source, target, input, weight."""
        import pandas as pd

        rows = []
        for edge, weight in sorted(self.edges.items(), key=lambda item: -abs(item[1])):
            rows.append({"source": str(edge.source), "target": str(edge.target), "input": edge.input, "weight": weight})
        return pd.DataFrame(rows, columns=["source", "target", "input", "weight"])

    def to_json(self) -> str:
        """Return the circuit as the text of its file; see the module.

        Raises:
            ArgumentError: ``meta`` has something else than texts, numbers, and lists and mappings of them.
        """
        document = {
            "format": FORMAT,
            "version": VERSION,
            "meta": dict(self.meta),
            "nodes": {str(node): self.scores[node] for node in self},
            "edges": [[str(e.source), str(e.target), e.input, weight] for e, weight in self.edges.items()],
        }
        try:
            return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"The circuit's meta cannot be written: {error}; expected texts and numbers."
            ) from error

    @classmethod
    def from_json(cls, text: str) -> "Circuit":
        """Return the circuit of a text that ``to_json`` made.

        Raises:
            DataError: another text.
        """
        try:
            document = json.loads(text)
            if document["format"] != FORMAT or document["version"] != VERSION:
                raise ValueError(f"format {document['format']!r}, version {document['version']!r}")
            scores = {node_of(name): float(score) for name, score in document["nodes"].items()}
            edges = {}
            for source, target, input, weight in document["edges"]:
                end = AnswerNode() if target == str(AnswerNode()) else node_of(target)
                edges[Edge(node_of(source), end, input)] = float(weight)
            return cls(scores, scores, edges, document["meta"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"This is no circuit of kn_lens ({type(error).__name__}: {error}).") from error

    def save(self, path: str | Path) -> None:
        """Write the circuit to a JSON file, whole or not at all.

        Raises:
            ArgumentError: as ``to_json``.
        """
        check_path(path)
        write_whole(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read a circuit that `save` wrote.

        Raises:
            DataError: no such file, or another format.
        """
        check_path(path)
        try:
            return cls.from_json(read_whole(path).decode("utf-8"))
        except (OSError, UnicodeDecodeError, DataError) as error:
            raise DataError(
                f"{path} is no circuit of kn_lens ({type(error).__name__}: {error}); expected a file that Circuit.save "
                "wrote."
            ) from error

    def to_transformer_lens(self, *, read_pos: int | None = None, n_layers: int | None = None) -> list[Any]:
        """Return the circuit as nodes and edges of TransformerLens, those that ``faithfulness`` there takes.

        Args:
            read_pos: the position of the logits, which TransformerLens' edges to the answer name; not needed without
                such edges.
            n_layers: the number of layers of the model, likewise.

        Returns:
            ``attn_head_out`` nodes for the heads, or where the circuit has edges, pairs of nodes for these.

        Raises:
            ArgumentError: neurons, which TransformerLens has no nodes for; a node for all positions; edges to the
                answer without ``read_pos`` and ``n_layers``.

        >>> node, = Circuit(["L0H1@4"]).to_transformer_lens()
        >>> node.kind, node.layer, node.head, node.position
        ('attn_head_out', 0, 1, 4)
        """
        for node in self:
            if isinstance(node, NeuronNode):
                raise ArgumentError(
                    f"{node} is a neuron, and the nodes of TransformerLens are heads and whole MLPs; expected a "
                    "circuit of heads: Circuit(node for node in circuit if isinstance(node, HeadNode))."
                )
            if node.position is None:
                raise ArgumentError(f"{node} is for all positions, and a node of TransformerLens for one.")
        if not self.edges:
            return [_to_analysis(node) for node in self]
        edges = []
        for edge in self.edges:
            source = _to_analysis(edge.source)
            if isinstance(edge.target, HeadNode):
                target = _to_analysis(edge.target, f"{edge.input}_input")
            elif read_pos is None or n_layers is None:
                raise ArgumentError("The circuit has edges to the answer; expected read_pos= and n_layers= of them.")
            else:
                target = analysis_node("logits", n_layers - 1, read_pos)
            edges.append((source, target))
        return edges

    @classmethod
    def from_transformer_lens(cls, items: Iterable[Any], d_mlp: int | None = None) -> "Circuit":
        """Return the circuit of nodes, or of edges, of TransformerLens.

        Args:
            items: nodes of the kinds ``attn_head_out`` and ``mlp_out``, edges as pairs of nodes, or a mapping from
                either to scores, such as ``attribution_patch(...).node_scores``.
            d_mlp: neurons of a layer: an ``mlp_out`` node becomes all of them. None refuses such nodes.

        Raises:
            ArgumentError: an embedding, which no circuit of neurons and heads has; an ``mlp_out`` node without
                ``d_mlp``, or in an edge or with a score, which its neurons would have to share.

        >>> heads = Circuit(["L0H1@4", "L2H0@4"])
        >>> Circuit.from_transformer_lens(heads.to_transformer_lens()) == heads
        True
        """
        weights = items if isinstance(items, Mapping) else None
        nodes: dict[Node, float] = {}
        edges: dict[Edge, float] = {}
        for item in items:
            weight = 0.0 if weights is None else float(weights[item])
            if isinstance(item, tuple):
                edge = _from_analysis_edge(*item)
                edges[edge] = weight
                nodes.setdefault(edge.source, 0.0)
                if isinstance(edge.target, HeadNode):
                    nodes.setdefault(edge.target, 0.0)
                continue
            if not is_analysis_node(item):
                check_kind(item, tuple, "nodes of transformer_lens.tools.analysis, or pairs of them", "items")
            if item.kind == "mlp_out" and d_mlp is not None and weights is None:
                nodes |= {NeuronNode(item.layer, index, item.position): 0.0 for index in range(d_mlp)}
                continue
            nodes[_head_of(item)] = weight
        return cls(nodes, nodes, edges)

    def plot(self, **options: Any) -> Any:
        """Return the circuit drawn as a graph, its largest edges as lines; see ``kn_lens.figures.circuit``."""
        return drawing("circuit_figure")(self, **options)

    def _repr_html_(self) -> str:
        return drawing("circuit_html")(self)


def _sort_key(node: Node) -> tuple[int, int, int, int]:
    position = -1 if node.position is None else node.position
    if isinstance(node, HeadNode):
        return node.layer, 0, node.head, position
    return node.layer, 1, node.index, position


def _to_analysis(node: Node, kind: str = "attn_head_out") -> Any:
    assert isinstance(node, HeadNode) and node.position is not None
    return analysis_node(kind, node.layer, node.position, node.head)


def _head_of(item: Any) -> HeadNode:
    """Return the head that a node of TransformerLens is, or reads into.

    Raises:
        ArgumentError: it is no head.
    """
    if item.head is None:
        cure = "Leave it out."
        if item.kind == "mlp_out":
            cure = "Give d_mlp= for the neurons of the MLP, without scores or edges, which its neurons would share."
        raise ArgumentError(f"The node {item.kind} of TransformerLens is no neuron and no head. {cure}")
    return HeadNode(item.layer, item.head, item.position)


def _from_analysis_edge(source: Any, target: Any) -> Edge:
    if target.kind == "logits":
        return Edge(_head_of(source), AnswerNode(), "logits")
    return Edge(_head_of(source), _head_of(target), target.kind.removesuffix("_input"))
