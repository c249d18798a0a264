"""Scores of all nodes: how much of the logit difference each neuron and head carries.

With ``a`` the activation of a node under the clean prompt and ``a'`` under the counterfactual one, and ``m`` the logit
difference:

    attribution_patching   (a - a') . dm/da under the counterfactual prompt
    eap_ig                 (a - a') . mean of dm/da along the path of the embeddings, e' + alpha (e - e')

The first is activation patching to first order, in the denoising direction: positive where the clean activation raises
the logit difference. The second (Hanna et al., 2024) averages the gradient between the two prompts, where the first
misses what saturates. Summed over the positions of the embedding itself, ``eap_ig`` is complete:

    sum over positions of (e - e') . mean of dm/de  =  m(clean) - m(counterfactual)

to the error of the quadrature. The scores of other nodes are parts of this difference that overlap (a neuron's effect
goes through those above it), so that their sum has no such meaning; the scores of one layer's neurons add up to that of
its MLP, because what ``W_out`` writes is their sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.checks import check_kind, check_whole, wrong_kind
from kn_lens._core.precision import at_least_float32
from kn_lens._core.progress import Report as Progress
from kn_lens._core.progress import draws_progress
from kn_lens._core.wording import counted
from kn_lens.attribution import fixed_rule
from kn_lens.circuits.nodes import HeadNode, NeuronNode, Node, node_of, node_table
from kn_lens.circuits.pairs import PromptPairs, map_pairs
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.hosts import (
    Budget,
    ComponentValues,
    HookedModel,
    Host,
    check_components,
    exclusive,
    host_of,
    run_components,
    run_with_gradients,
)

if TYPE_CHECKING:
    import pandas as pd

Ranking = Literal["score", "magnitude"]
"""What ranks nodes: their scores, so that those that raise the logit difference come first and those that lower it
last, or the size of their scores."""
ScoreMethod = Literal["eap_ig", "attribution_patching"]


def check_ranking(by: Ranking) -> None:
    """Raise unless nodes can be ranked so.

    Raises:
        ArgumentError: an unknown ranking.
    """
    if by not in get_args(Ranking):
        hint = did_you_mean(by, get_args(Ranking))
        raise ArgumentError(f"by={by!r}; expected {' or '.join(get_args(Ranking))}.{hint}")


@dataclass(frozen=True, kw_only=True, eq=False)
class NodeScores:
    """A number for each node, neurons and heads side by side.

    Attributes:
        values: the numbers; along the last axis the neurons of the layer, then its heads.
        embedding: those of the embedding that enters the first block.
        n_neurons: neurons of a layer.
    """

    values: Float[Tensor, "row n_layers pos node"]
    embedding: Float[Tensor, "row pos"]
    n_neurons: int

    def _text(self) -> str:
        """Return what the nodes are."""
        n_layers, n_pos, n_nodes = self.values.shape[1:]
        n_heads = n_nodes - self.n_neurons
        layers, positions = counted(n_layers, "layer"), counted(n_pos, "position")
        return f"{layers} of {self.n_neurons:,} neurons and {counted(n_heads, 'head')} at {positions}"

    @classmethod
    def of(cls, values: ComponentValues, gradients: ComponentValues) -> "NodeScores":
        """Return the products of activations and derivatives, summed over each component's own axes."""
        # Products of half-precision numbers are summed in single precision.
        values, gradients = values.map(at_least_float32), gradients.map(at_least_float32)
        by_layer = []
        for post, post_gradient, z, z_gradient in zip(
            values.neurons, gradients.neurons, values.heads, gradients.heads, strict=True
        ):
            by_layer.append(torch.cat([post * post_gradient, (z * z_gradient).sum(-1)], dim=-1))
        return cls(
            values=torch.stack(by_layer, dim=1),
            embedding=(values.embedding * gradients.embedding).sum(-1),
            n_neurons=values.neurons[0].shape[-1],
        )

    @property
    def neurons(self) -> Float[Tensor, "row n_layers pos d_mlp"]:
        """The numbers of neurons."""
        return self.values[..., : self.n_neurons]

    @property
    def heads(self) -> Float[Tensor, "row n_layers pos n_heads"]:
        """The numbers of heads."""
        return self.values[..., self.n_neurons :]

    def node(self, place: int) -> Node:
        """Return the node at a place of ``values[row].flatten()``."""
        n_pos, n_nodes = self.values.shape[2:]
        layer, rest = divmod(place, n_pos * n_nodes)
        position, number = divmod(rest, n_nodes)
        if number < self.n_neurons:
            return NeuronNode(layer, number, position)
        return HeadNode(layer, number - self.n_neurons, position)

    def place(self, node: Node | str) -> tuple[int, int, int]:
        """Return the index of a node, or of that of a name, in ``values[row]``.

        Raises:
            ArgumentError: no node, one for all positions, or one that is not there.
        """
        node = node_of(node) if isinstance(node, str) else node
        check_kind(node, (NeuronNode, HeadNode), "a node or its name, such as 'L9N1234@4'", "node")
        number = node.index if isinstance(node, NeuronNode) else self.n_neurons + node.head
        n_layers, n_pos, n_nodes = self.values.shape[1:]
        limit = self.n_neurons if isinstance(node, NeuronNode) else n_nodes
        if node.position is None:
            raise ArgumentError(f"{node} is for all positions; expected one position, such as {node}@{n_pos - 1}.")
        if node.layer >= n_layers or node.position >= n_pos or number >= limit:
            raise ArgumentError(
                f"There is no {node} among {n_layers} layers, {n_pos} positions, {self.n_neurons} neurons and "
                f"{n_nodes - self.n_neurons} heads."
            )
        return node.layer, node.position, number

    def top(self, row: int = 0, k: int = 10, *, by: Ranking = "score") -> dict[Node, float]:
        """Return the ``k`` nodes with the largest numbers, largest first.

        Args:
            row: a prompt.
            k: how many.
            by: ``score``, or ``magnitude`` for the numbers without their signs.

        Raises:
            IndexError: no row of that number.
            ArgumentError: ``k`` is no number of nodes, or another ranking.
        """
        self._check_row(row)
        check_whole("k", k)
        check_ranking(by)
        flat = self.values[row].flatten()
        places = (flat if by == "score" else flat.abs()).topk(min(k, len(flat))).indices
        return {self.node(place): float(flat[place]) for place in places.tolist()}

    def __getitem__(self, key: tuple[int, Node | str]) -> float:
        """Return the number of a node: ``scores[row, node]``.

        Raises:
            IndexError: no row of that number.
            ArgumentError: no such node, or not a row and a node.
        """
        if not isinstance(key, tuple) or len(key) != 2:
            raise ArgumentError(f"Got [{key!r}]; expected a row and a node: scores[0, 'L9N1234@4'].")
        row, node = key
        self._check_row(row)
        return float(self.values[(row, *self.place(node))])

    def _check_row(self, row: int) -> None:
        n_rows = len(self.values)
        if isinstance(row, bool) or not isinstance(row, int):
            raise wrong_kind(row, f"the number of a row, 0 to {n_rows - 1}", "row")
        if not -n_rows <= row < n_rows:
            raise IndexError(f"There is no row {row}; there are 0 to {n_rows - 1}.")

    def to_frame(self, row: int = 0, k: int = 100, *, by: Ranking = "score") -> "pd.DataFrame":
        """Return the ``k`` nodes with the largest numbers as a table: node, kind, layer, number, position, score."""
        return node_table(self.top(row, k, by=by))


@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitScores(NodeScores):
    """Scores of all nodes for pairs of prompts: shares of a logit difference, in logits.

    Attributes:
        pairs: the pairs, one for each row.
        method: how they were computed.
        clean: the logit difference under each clean prompt.
        counterfactual: the same under its counterfactual.
        activity: the size of each node's activation under the clean prompt; of a head, the norm of its output.
    """

    pairs: PromptPairs
    method: ScoreMethod
    clean: Float[Tensor, " row"]
    counterfactual: Float[Tensor, " row"]
    activity: Float[Tensor, "row n_layers pos node"]

    def __repr__(self) -> str:
        gap = float(self.completeness_gap.abs().max())
        n_pairs = counted(len(self.pairs), "pair")
        return f"CircuitScores({n_pairs}, {self._text()}: {self.method}; completeness gap at most {gap:.2g})"

    @property
    def completeness_gap(self) -> Float[Tensor, " row"]:
        """The sum over the embedding's positions minus the difference that it should be; see the module."""
        return self.embedding.sum(-1) - (self.clean - self.counterfactual)


def check_method(method: ScoreMethod) -> None:
    """Raise unless scores can be computed so.

    Raises:
        ArgumentError: an unknown method.
    """
    if method not in get_args(ScoreMethod):
        hint = did_you_mean(method, get_args(ScoreMethod))
        raise ArgumentError(f"Unknown method {method!r}; expected {' or '.join(get_args(ScoreMethod))}.{hint}")


@exclusive
@draws_progress("Scoring nodes", "pairs")
def circuit_scores(
    model: HookedModel | Host,
    pairs: PromptPairs,
    *,
    method: ScoreMethod = "eap_ig",
    n_steps: int = 5,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> CircuitScores:
    """Score every neuron and head at every position of every pair.

    Args:
        model: a TransformerLens model.
        pairs: see ``counterfactual_pairs``.
        method: ``eap_ig`` or ``attribution_patching``; see the module.
        n_steps: points of the path of ``eap_ig``, of the Gauss-Legendre rule.
        memory_budget: bytes that passes may use; half of the free memory by default. The scores themselves, a number
            for each node and pair, come on top.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with the number of pairs
            done and their total.

    Returns:
        The scores. Cost: for each pair two forward passes, and ``n_steps`` forward and backward passes.

    Raises:
        ArgumentError: an unknown method, or no steps.
        UnsupportedModelError: layers with experts, an encoder-decoder, or heads without hooks.

    >>> import kn_lens as kn
    >>> model = kn.load_model("world-gpt2")
    >>> facts = [fact for fact in kn.FactSet.world() if fact.relation == "P36"][:20]
    >>> scores = circuit_scores(model, kn.counterfactual_pairs(model, facts).select([0]))
    >>> bool(scores.completeness_gap.abs() < 0.05 * (scores.clean - scores.counterfactual))
    True
    """
    check_method(method)
    check_whole("n_steps", n_steps, 1)
    host = host_of(model)
    check_components(host)
    check_kind(pairs, PromptPairs, "PromptPairs: kn_lens.counterfactual_pairs(model, facts)", "pairs")
    pairs.clean.check_for(host)
    budget = Budget.of(host, memory_budget, gradient=True)
    n_points = len(path_rule(method, n_steps)[0])
    parts: list[tuple[Tensor, CircuitScores]] = []
    n_done = 0
    for chosen, scores in map_pairs(budget, pairs, n_points, partial(_scored, host, method, n_steps)):
        parts.append((chosen, scores))
        n_done += len(chosen)
        if callable(progress):
            progress(n_done, len(pairs))
    return _joined(parts, pairs)


@dataclass(frozen=True, kw_only=True, eq=False)
class PathGradients:
    """What the scores of some pairs are made of.

    Attributes:
        clean: the activations under the clean prompts.
        difference: minus those under the counterfactual prompts.
        gradients: of the logit difference, averaged over the path.
        clean_output: the logit difference under each clean prompt.
        counterfactual_output: under each counterfactual prompt.
    """

    clean: ComponentValues
    difference: ComponentValues
    gradients: ComponentValues
    clean_output: Float[Tensor, " pair"]
    counterfactual_output: Float[Tensor, " pair"]


def path_rule(method: ScoreMethod, n_steps: int) -> tuple[list[float], list[float]]:
    """Return the points of the path, from 0 (counterfactual) to 1 (clean), and their weights."""
    if method == "attribution_patching":
        return [0.0], [1.0]
    rule = fixed_rule("gauss-legendre", n_steps)
    return list(rule.nodes), list(rule.weights)


def path_gradients(host: Host, pairs: PromptPairs, points: Sequence[float], weights: Sequence[float]) -> PathGradients:
    """Return activations of both prompts, and gradients averaged over the path between their embeddings.

    All points of all pairs go in one pass.
    """
    sides = []
    for prompts in (pairs.clean, pairs.counterfactual):
        sides.append(run_components(host, prompts.tokens, prompts.attention_mask, prompts.read_pos))
    (clean, clean_logits), (counterfactual, counterfactual_logits) = sides
    difference = clean.map(at_least_float32).minus(counterfactual.map(at_least_float32))
    rows = torch.arange(len(pairs), device=host.device).repeat(len(points))
    alpha = torch.tensor(points, dtype=difference.embedding.dtype, device=host.device)
    alpha = alpha.repeat_interleave(len(pairs))[:, None, None]
    embedding = counterfactual.embedding[rows] + alpha * difference.embedding[rows]
    on_path = pairs.select(rows)
    gradients = run_with_gradients(
        host,
        on_path.clean.tokens,
        on_path.clean.attention_mask,
        on_path.clean.read_pos,
        on_path.logit_difference,
        embedding=embedding.to(clean.embedding.dtype),
    )
    return PathGradients(
        clean=clean,
        difference=difference,
        gradients=gradients.map(lambda value: _averaged(value, weights)),
        clean_output=pairs.logit_difference(clean_logits),
        counterfactual_output=pairs.logit_difference(counterfactual_logits),
    )


def _scored(host: Host, method: ScoreMethod, n_steps: int, pairs: PromptPairs) -> CircuitScores:
    """Return the scores of the pairs of one pass."""
    points, weights = path_rule(method, n_steps)
    path = path_gradients(host, pairs, points, weights)
    scores = NodeScores.of(path.difference, path.gradients)
    activity = []
    for post, z in zip(path.clean.neurons, path.clean.heads, strict=True):
        activity.append(torch.cat([post.abs(), z.norm(dim=-1)], dim=-1))
    return CircuitScores(
        values=scores.values,
        embedding=scores.embedding,
        n_neurons=scores.n_neurons,
        pairs=pairs,
        method=method,
        clean=path.clean_output,
        counterfactual=path.counterfactual_output,
        activity=torch.stack(activity, dim=1),
    )


def _averaged(gradients: Float[Tensor, "... d"], weights: Sequence[float]) -> Float[Tensor, "... d"]:
    """Return the weighted sum over the points, which come one after another for all pairs."""
    by_point = at_least_float32(gradients).unflatten(0, (len(weights), -1))
    return torch.einsum("s,s...->...", by_point.new_tensor(weights), by_point)


def _joined(parts: Sequence[tuple[Int[Tensor, " chunk"], CircuitScores]], pairs: PromptPairs) -> CircuitScores:
    """Return the scores of all pairs in their order, with 0 at padding."""
    n_pos = pairs.clean.tokens.shape[1]
    first = parts[0][1]
    order = torch.cat([chosen for chosen, _ in parts]).argsort()
    columns: dict[str, Tensor] = {}
    for name in ("values", "activity", "embedding", "clean", "counterfactual"):
        pieces = []
        for _, scores in parts:
            piece = getattr(scores, name)
            missing = n_pos - scores.embedding.shape[1]
            if name in ("values", "activity"):
                piece = torch.nn.functional.pad(piece, (0, 0, 0, missing))
            elif name == "embedding":
                piece = torch.nn.functional.pad(piece, (0, missing))
            pieces.append(piece)
        columns[name] = torch.cat(pieces)[order]
    # Nothing after the last token of a prompt, and of a causal model nothing after the position that is read.
    is_token = pairs.clean.attention_mask.bool()
    columns["values"] = columns["values"].masked_fill(~is_token[:, None, :, None], 0.0)
    columns["activity"] = columns["activity"].masked_fill(~is_token[:, None, :, None], 0.0)
    columns["embedding"] = columns["embedding"].masked_fill(~is_token, 0.0)
    return CircuitScores(**columns, n_neurons=first.n_neurons, pairs=pairs, method=first.method)
