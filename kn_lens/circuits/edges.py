"""Edges of a circuit: how much of the logit difference goes from one node directly to an input of another.

With ``a - a'`` the difference of a source's activation between the two prompts, ``x`` an input of the target, ``b`` its
activation and ``g`` the gradient of the logit difference with respect to b, averaged over the path (see ``scores``):

    edge = (a - a') . dx/da . db/dx . g                                                                      logits

``dx/da`` is the direct path with norms held: exact, and for several sources their sum. ``db/dx`` is of first order, at
the clean prompt: that of the activation function, or of the attention for ``q`` and ``k``; for ``v`` it is exact, with
the pattern held. A head reads keys and values at every position that it attends to; its edges sum over them. Edges to
the answer are direct effects on the logit difference.
"""

import torch
from torch import Tensor

from kn_lens.circuits.circuit import Circuit
from kn_lens.circuits.nodes import AnswerNode, Edge, EdgeInput, NeuronNode, Node, comes_after
from kn_lens.circuits.pairs import PromptPairs
from kn_lens.circuits.scores import NodeScores, path_gradients, path_rule
from kn_lens.hosts import ComponentInput, ComponentValues, Host, LinearizedPass, is_gated, run_linearized


def circuit_edges(host: Host, pairs: PromptPairs, circuit: Circuit, *, n_steps: int = 5) -> dict[Edge, float]:
    """Return the edges between the nodes of a circuit of one pair, and from them to the answer.

    Edges without a direct path are left out. Cost: ``n_steps`` and three passes, and for each node the direct paths
    backward, once for each of its inputs.
    """
    path = path_gradients(host, pairs, *path_rule("eap_ig", n_steps))
    prompts = pairs.clean
    state = run_linearized(host, prompts.tokens, prompts.attention_mask, prompts.read_pos)
    edges: dict[Edge, float] = {}

    def add(target: Node | AnswerNode, which: EdgeInput, value: Tensor) -> None:
        scores = NodeScores.of(path.difference, state.derivatives(value))
        for source in circuit:
            weight = scores[0, source]
            if weight and comes_after(target, source):
                edges[Edge(source, target, which)] = weight

    with torch.enable_grad():
        for node in circuit:
            for which, value in _inputs(state, node, path.gradients).items():
                add(node, which, value)
        add(AnswerNode(), "logits", pairs.logit_difference(state.logits).sum())
    return edges


def _inputs(state: LinearizedPass, node: Node, gradients: ComponentValues) -> dict[ComponentInput, Tensor]:
    """Return each input of a node, times what it does to the logit difference through the node."""
    assert node.position is not None
    names: tuple[ComponentInput, ...]
    if isinstance(node, NeuronNode):
        value = state.outputs.neurons[node.layer][0, node.position, node.index]
        whole = value * gradients.neurons[node.layer][0, node.position, node.index]
        names = ("key", "gate") if is_gated(state.host, node.layer) else ("key",)
    else:
        value = state.outputs.heads[node.layer][0, node.position, node.head]
        whole = (value * gradients.heads[node.layer][0, node.position, node.head]).sum()
        names = ("q", "k", "v")
    inputs = [state.inputs[node.layer, name] for name in names]
    found = torch.autograd.grad(whole, inputs, retain_graph=True)
    return {name: (x * gradient).sum() for name, x, gradient in zip(names, inputs, found, strict=True)}
