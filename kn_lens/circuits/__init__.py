"""Circuits: which neurons and heads carry an answer, and through which others they act.

``nodes`` has the nodes and edges, ``circuit`` the set of them, ``pairs`` the prompts with their counterfactuals.
``direct_effects`` are exact effects through the residual stream, with norms held; ``query_neurons`` are the neurons
that activate what writes the answer; ``scores`` of all nodes come from gradients between two prompts.
"""

from kn_lens.circuits.circuit import Circuit
from kn_lens.circuits.direct_effects import DirectEffects, direct_effects
from kn_lens.circuits.nodes import AnswerNode, Edge, EdgeInput, HeadNode, NeuronNode, Node, node_of
from kn_lens.circuits.pairs import PromptPairs, counterfactual_pairs
from kn_lens.circuits.query_neurons import HeadValue, QueryNeurons, ValueVector, query_neurons
from kn_lens.circuits.scores import CircuitScores, NodeScores, ScoreMethod, circuit_scores

__all__ = [
    "AnswerNode",
    "Circuit",
    "CircuitScores",
    "DirectEffects",
    "Edge",
    "EdgeInput",
    "HeadNode",
    "HeadValue",
    "NeuronNode",
    "Node",
    "NodeScores",
    "PromptPairs",
    "QueryNeurons",
    "ScoreMethod",
    "ValueVector",
    "circuit_scores",
    "counterfactual_pairs",
    "direct_effects",
    "node_of",
    "query_neurons",
]
