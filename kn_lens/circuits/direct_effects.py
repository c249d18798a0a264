"""Direct effects: what each neuron and head adds to an input of another node, or to the logit difference.

With every norm held at the scale that it has under the prompt, an input of a node is a constant plus a sum over the
components below:

    input = constant + sum over nodes of effect,        effect = <activation, d input / d activation>

The path is the residual stream alone: other components stay at their activations. The constant is what biases give; it
is 0 in a model without biases. See ``kn_lens.hosts.linearized``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens._core.checks import check_kind
from kn_lens._core.wording import counted
from kn_lens.circuits.nodes import AnswerNode, EdgeInput, HeadNode, NeuronNode, Node
from kn_lens.circuits.scores import NodeScores
from kn_lens.errors import ArgumentError
from kn_lens.hosts import (
    HookedModel,
    Host,
    LinearizedPass,
    check_components,
    exclusive,
    host_of,
    is_gated,
    run_linearized,
)
from kn_lens.prompts import PromptBatch, check_prompts


@dataclass(frozen=True, kw_only=True, eq=False)
class DirectEffects(NodeScores):
    """What every node and the embedding add to one input, for each row of some prompts.

    Attributes:
        target: the node that reads, or the answer.
        input: what of it reads.
        total: the value of the input.
    """

    target: Node | AnswerNode
    input: EdgeInput
    total: Float[Tensor, " row"]

    def __repr__(self) -> str:
        rows = counted(len(self.values), "row")
        return f"DirectEffects({rows}, {self._text()}, on the {self.input} of {self.target})"

    @property
    def constant(self) -> Float[Tensor, " row"]:
        """The rest of the input, which biases give: ``total`` minus all effects."""
        return self.total - self.values.sum((1, 2, 3)) - self.embedding.sum(-1)


@exclusive
def direct_effects(
    model: HookedModel | Host,
    prompts: PromptBatch,
    target: Node | AnswerNode | None = None,
    input: EdgeInput | None = None,
    direction: Float[Tensor, " d_head"] | None = None,
) -> DirectEffects:
    """Return the direct effect of every neuron and head, at every position, on one input.

    Args:
        model: a TransformerLens model.
        prompts: the prompts; their rows share one pass.
        target: the node that reads, at a position; None for the logit of the answer, minus that of its contrast where
            the prompts have one.
        input: ``key`` (default) or ``gate`` of a neuron; ``q``, ``k`` or ``v`` (default) of a head.
        direction: of a head's input, the direction whose coordinate is the target; None for the direction that the
            input itself has in each row, so that ``total`` is its length.

    Returns:
        The effects, in units of the input; of the answer in logits. Exact in the model with its norms held. Of a masked
        model with a transform before its unembedding, and where logits are capped, effects on the answer are of first
        order. Cost: a forward pass per row, and the direct paths backward.

    Raises:
        ArgumentError: a target that the model or the prompts do not have.
        UnsupportedModelError: norms that cannot be held, layers with experts, an encoder-decoder.

    >>> import kn_lens as kn
    >>> model = kn.load_model("world-gpt2")
    >>> fact = kn.FactSet.world().find("Ireland", relation="P36")
    >>> effects = direct_effects(model, kn.make_prompts(model, fact)[0], NeuronNode(3, 18, 4))
    >>> effects.input, sorted({node.position for node in effects.top(k=20)})
    ('key', [4])
    """
    host = host_of(model)
    check_components(host)
    check_prompts(prompts)
    prompts.check_for(host)
    target = AnswerNode() if target is None else target
    which = check_target(host, prompts, target, input)
    _check_direction(direction, target)
    state = run_linearized(host, prompts.tokens, prompts.attention_mask, prompts.read_pos)
    with torch.enable_grad():  # the caller may have turned it off
        value = read_target(state, prompts, target, which, direction)
        derivatives = state.derivatives(value.sum())
    scores = NodeScores.of(state.values, derivatives)
    return DirectEffects(
        values=scores.values.detach(),
        embedding=scores.embedding.detach(),
        n_neurons=scores.n_neurons,
        target=target,
        input=which,
        total=value.detach(),
    )


def check_target(host: Host, prompts: PromptBatch, target: Node | AnswerNode, input: EdgeInput | None) -> EdgeInput:
    """Return the input of a target, by default its first.

    Raises:
        ArgumentError: the model or the prompts do not have it.
    """
    check_kind(target, (NeuronNode, HeadNode, AnswerNode), "a NeuronNode, a HeadNode or None", "target")
    if isinstance(target, AnswerNode):
        if input not in (None, "logits"):
            raise ArgumentError(f"The answer has no input {input!r}; expected a target beside it: a neuron or a head.")
        return "logits"
    n_pos = int(prompts.length.min())
    if target.layer >= host.n_layers:
        raise ArgumentError(f"{host.name} has no layer {target.layer}; expected 0 to {host.n_layers - 1}.")
    if target.position is None or target.position >= n_pos:
        raise ArgumentError(f"{target} has no position in every prompt; expected one from 0 to {n_pos - 1}.")
    if isinstance(target, NeuronNode):
        if target.index >= host.d_mlp:
            raise ArgumentError(f"{host.name} has no neuron {target}; a layer has {host.d_mlp}.")
        allowed: tuple[EdgeInput, ...] = ("key", "gate") if is_gated(host, target.layer) else ("key",)
    else:
        allowed = ("v", "k", "q")
    which = allowed[0] if input is None else input
    if which not in allowed:
        raise ArgumentError(f"{target} of {host.name} has no input {which!r}; expected {' or '.join(allowed)}.")
    return which


def _check_direction(direction: object, target: Node | AnswerNode) -> None:
    """Raise unless a direction is one of a head's input.

    Raises:
        ArgumentError: it is no vector, or the target is no head.
    """
    if direction is None:
        return
    check_kind(direction, Tensor, "a vector of the head's width, or None", "direction")
    if not isinstance(target, HeadNode):
        raise ArgumentError(f"Got a direction for {target}, whose input is a number; expected one for a HeadNode.")


def read_target(
    state: LinearizedPass,
    prompts: PromptBatch,
    target: Node | AnswerNode,
    input: EdgeInput,
    direction: Float[Tensor, " d_head"] | None = None,
) -> Float[Tensor, " row"]:
    """Return the input of a target in each row, with the direct paths to it.

    Raises:
        ArgumentError: the model has no such head, or the direction is of another width.
    """
    if isinstance(target, AnswerNode):
        answer = state.logits.gather(1, prompts.target_ids[:, None])[:, 0]
        if prompts.contrast_ids is None:
            return answer
        return answer - state.logits.gather(1, prompts.contrast_ids[:, None])[:, 0]
    assert input != "logits"
    value = state.inputs[target.layer, input][:, target.position]
    if isinstance(target, NeuronNode):
        return value[:, target.index]
    n_heads = state.values.heads[target.layer].shape[2]
    if target.head >= n_heads:
        raise ArgumentError(f"{state.host.name} has no head {target}; a layer has {n_heads}.")
    # Heads share keys and values where there are fewer of these.
    vector = value[:, target.head * value.shape[1] // n_heads]
    if direction is None:
        return (vector * torch.nn.functional.normalize(vector.detach(), dim=-1)).sum(-1)
    if direction.shape != vector.shape[1:]:
        raise ArgumentError(
            f"direction has shape {list(direction.shape)}; expected [{vector.shape[1]}], the width of {target}."
        )
    return (vector * direction.to(vector)).sum(-1)
