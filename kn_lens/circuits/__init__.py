"""Circuits: which neurons and heads carry an answer, and through which others they act.

``nodes`` has the nodes and edges, ``circuit`` the set of them, ``pairs`` the prompts with their counterfactuals.
``direct_effects`` are exact effects through the residual stream, with norms held; ``query_neurons`` are the neurons
that activate what writes the answer; ``scores`` of all nodes come from gradients between two prompts. ``selection``
finds the circuits that keep an answer, ``faithfulness`` measures circuits beside controls of the same shape, ``orders``
has the circuits of all sizes, and ``ablation`` the passes in which the other nodes are set; ``edges`` lead from node to
node.
"""

from kn_lens.circuits.circuit import Circuit
from kn_lens.circuits.direct_effects import DirectEffects, direct_effects
from kn_lens.circuits.edges import circuit_edges
from kn_lens.circuits.faithfulness import Faithfulness, faithfulness
from kn_lens.circuits.nodes import AnswerNode, Edge, EdgeInput, HeadNode, NeuronNode, Node, node_of
from kn_lens.circuits.pairs import PromptPairs, counterfactual_pairs
from kn_lens.circuits.query_neurons import HeadValue, QueryNeurons, ValueVector, query_neurons
from kn_lens.circuits.scores import CircuitScores, NodeScores, ScoreMethod, circuit_scores
from kn_lens.circuits.selection import Selection, find_circuits

__all__ = [
    "AnswerNode",
    "Circuit",
    "CircuitScores",
    "DirectEffects",
    "Edge",
    "EdgeInput",
    "Faithfulness",
    "HeadNode",
    "HeadValue",
    "NeuronNode",
    "Node",
    "NodeScores",
    "PromptPairs",
    "QueryNeurons",
    "ScoreMethod",
    "Selection",
    "ValueVector",
    "circuit_edges",
    "circuit_scores",
    "counterfactual_pairs",
    "direct_effects",
    "faithfulness",
    "find_circuits",
    "node_of",
    "query_neurons",
]
