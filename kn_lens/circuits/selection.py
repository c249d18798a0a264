"""Selection: the smallest circuits that keep a stated share of the logit difference.

``threshold``: the nodes with the largest scores; the number is found by doubling it until the share is reached, and by
bisection between the last two. ``greedy``: from the empty circuit, in rounds. Each scores the nodes outside anew, to
first order in the pass of the circuit, and adds those that bring most: while they are few, by measuring the nodes with
the largest scores one by one beside the circuit, later by the scores. Scores of the whole model miss what nodes do once
others are off; the rounds do not, at several times the cost.

What is found keeps the share, and was the smallest that was tried; faithfulness need not grow with the size, so that a
smaller circuit may exist.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kn_lens._core.checks import check_kind, check_share, check_whole
from kn_lens._core.progress import draws_progress
from kn_lens.circuits.ablation import Ablation, Reference, References, Trials, empty_and_whole
from kn_lens.circuits.circuit import Circuit
from kn_lens.circuits.edges import circuit_edges
from kn_lens.circuits.faithfulness import score_chunks
from kn_lens.circuits.orders import ALWAYS, NodeKind, Ranks, checked_kinds, is_node, order_by
from kn_lens.circuits.pairs import PromptPairs, map_pairs
from kn_lens.circuits.scores import (
    CircuitScores,
    Progress,
    Ranking,
    ScoreMethod,
    check_method,
    check_ranking,
    circuit_scores,
    path_rule,
)
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.hosts import Budget, HookedModel, Host, check_components, exclusive, host_of

Selection = Literal["threshold", "greedy"]

MEASURED = 16
"""Nodes that a greedy round measures beside the circuit, where it adds at most half as many."""

GROWTH = 4
"""A greedy round adds one node for so many that the circuit has."""


@exclusive
@draws_progress("Searching circuits", "pairs")
def find_circuits(
    model: HookedModel | Host,
    pairs: PromptPairs,
    *,
    share: float = 0.8,
    selection: Selection = "threshold",
    kinds: NodeKind | Sequence[NodeKind] = ("neuron", "head"),
    by: Ranking = "score",
    method: ScoreMethod | None = None,
    n_steps: int = 5,
    reference: Reference = "counterfactual",
    edges: bool = False,
    scores: CircuitScores | None = None,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> list[Circuit]:
    """Find for each pair the smallest circuit that keeps a share of its logit difference.

    Args:
        model: a TransformerLens model.
        pairs: see ``counterfactual_pairs``.
        share: the least ``faithfulness`` of a circuit; see there.
        selection: ``threshold`` or ``greedy``; see the module.
        kinds: which kinds of nodes circuits are made of; nodes of the other kind are computed.
        by: of the threshold: ``score``, the smaller circuits, of nodes that raise the logit difference; or
            ``magnitude``, with those that lower it as they come, so that the circuit is more like the model.
        method: of the scores, see ``circuit_scores``; None for its default, or where ``scores`` are given.
        n_steps: of the scores, and of the edges.
        reference: what the other nodes are set to, see ``faithfulness``.
        edges: whether to add the edges between the nodes of each circuit.
        scores: the scores of the pairs, where they are at hand.
        memory_budget: bytes that passes may use; half of the free memory by default. Scores are held for the pairs of
            one pass at a time.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with the number of pairs
            done and their total.

    Returns:
        A circuit for each pair, with scores. Its ``meta`` has the ``prompt`` and its ``tokens``, ``relation``,
        ``subject``, ``object``, the ``counterfactual`` prompt, and in numbers ``n_nodes`` (of the pair), ``clean`` and
        ``empty`` (logit differences) and ``faithfulness``. Cost: that of the scores, and some thirty forward passes for
        each pair; greedy, up to 20 passes for each round.

    Raises:
        ArgumentError: an unknown selection, kind, method or reference; a share outside of 0 to 1; scores of other
            pairs.

    >>> import kn_lens as kn
    >>> model = kn.load_model("world-gpt2")
    >>> facts = [fact for fact in kn.FactSet.world() if fact.relation == "P36"][:20]
    >>> circuit, = find_circuits(model, kn.counterfactual_pairs(model, facts).select([0]), share=0.8)
    >>> circuit.meta["faithfulness"] >= 0.8, len(circuit) < circuit.meta["n_nodes"]
    (True, True)
    """
    host = host_of(model)
    check_components(host)
    check_kind(pairs, PromptPairs, "PromptPairs: kn_lens.counterfactual_pairs(model, facts)", "pairs")
    pairs.clean.check_for(host)
    check_share("share", share)
    kinds = checked_kinds(kinds)
    check_ranking(by)
    if selection not in get_args(Selection):
        hint = did_you_mean(selection, get_args(Selection))
        raise ArgumentError(f"selection={selection!r}; expected {' or '.join(get_args(Selection))}.{hint}")
    check_whole("n_steps", n_steps, 1)
    if scores is not None:
        check_kind(scores, CircuitScores, "CircuitScores: kn_lens.circuit_scores(model, pairs)", "scores")
        if scores.pairs is not pairs:
            raise ArgumentError("scores= are of other pairs; expected circuit_scores(model, pairs) of the same object.")
        if method is not None:
            raise ArgumentError(f"Got method={method!r} beside scores=, which were computed by {scores.method!r}.")
    method = "eap_ig" if method is None else method
    check_method(method)
    budget = Budget.of(host, memory_budget, gradient=True)
    references = References(host, pairs, reference, budget)
    found: dict[int, Circuit] = {}

    def chunks() -> Iterator[tuple[list[int], CircuitScores]]:
        if scores is not None:
            yield from score_chunks(budget, scores)
            return
        n_points = len(path_rule(method, n_steps)[0])
        options: Any = {"method": method, "n_steps": n_steps, "memory_budget": memory_budget}
        for chosen, chunk in map_pairs(budget, pairs, n_points, lambda chunk: chunk):
            yield chosen.tolist(), circuit_scores(host, chunk, **options)

    for numbers, chunk in chunks():
        search = _Search.of(host, chunk, references, kinds, by, budget)
        circuits = search.threshold(share) if selection == "threshold" else search.greedy(share)
        for row, (number, circuit) in enumerate(zip(numbers, circuits, strict=True)):
            if edges:
                pair = chunk.pairs.select([row]).cropped()
                circuit = circuit.with_edges(circuit_edges(host, pair, circuit, n_steps=n_steps))
            found[number] = circuit
        if callable(progress):
            progress(len(found), len(pairs))
    return [found[number] for number in range(len(pairs))]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Search:
    """The search for the circuits of some pairs.

    Attributes:
        scores: of the pairs.
        nodes: which entries of the scores are nodes.
        n_nodes: their number in each pair.
        order: of the nodes, by their scores.
        ablation: passes under that order.
        empty: the logit difference of each pair with all nodes set.
        clean: with none.
    """

    scores: CircuitScores
    nodes: Bool[Tensor, "pair n_layers pos node"]
    n_nodes: list[int]
    order: Ranks
    ablation: Ablation
    empty: Float[Tensor, " pair"]
    clean: Float[Tensor, " pair"]

    @classmethod
    def of(
        cls,
        host: Host,
        scores: CircuitScores,
        references: References,
        kinds: Sequence[NodeKind],
        by: Ranking,
        budget: Budget,
    ) -> "_Search":
        """Return the search among the nodes of some kinds."""
        nodes = is_node(scores, kinds)
        order = order_by(scores.values, nodes, by)
        ablation = Ablation(
            host=host,
            pairs=scores.pairs,
            references=references.of(scores.pairs),
            orders=[order],
            rows_per_pass=budget.rows_per_pass(scores.pairs.clean.tokens.shape[1]),
        )
        empty, clean = empty_and_whole(ablation)
        return cls(
            scores=scores,
            nodes=nodes,
            n_nodes=nodes.flatten(1).sum(1).tolist(),
            order=order,
            ablation=ablation,
            empty=empty,
            clean=clean,
        )

    def threshold(self, share: float) -> list[Circuit]:
        """Return the circuits of the nodes with the largest scores."""
        n_pairs = len(self.n_nodes)
        too_small, size = [0] * n_pairs, [1] * n_pairs
        reached: dict[int, float] = {}
        growing = set(range(n_pairs))
        while growing:
            tried = sorted(growing)
            values = self._shares(self.ablation, [(0, pair, size[pair]) for pair in tried])
            for pair, value in zip(tried, values, strict=True):
                if value >= share or size[pair] == self.n_nodes[pair]:
                    growing.remove(pair)
                    reached[pair] = value
                else:
                    too_small[pair] = size[pair]
                    size[pair] = min(2 * size[pair], self.n_nodes[pair])
        between = [pair for pair in range(n_pairs) if size[pair] - too_small[pair] > 1]
        while between:
            middle = {pair: (too_small[pair] + size[pair]) // 2 for pair in between}
            values = self._shares(self.ablation, [(0, pair, middle[pair]) for pair in between])
            for pair, value in zip(between, values, strict=True):
                if value >= share:
                    size[pair], reached[pair] = middle[pair], value
                else:
                    too_small[pair] = middle[pair]
            between = [pair for pair in between if size[pair] - too_small[pair] > 1]
        return [self._circuit(self.order, pair, size[pair], reached[pair]) for pair in range(n_pairs)]

    def greedy(self, share: float) -> list[Circuit]:
        """Return the circuits that grow in rounds."""
        return [self._grown(pair, share) for pair in range(len(self.n_nodes))]

    def _grown(self, pair: int, share: float) -> Circuit:
        """Return the circuit of one pair."""
        n_nodes = self.n_nodes[pair]
        places: list[int] = []
        value = 0.0
        while value < share and len(places) < n_nodes:
            order = self._beginning_with(places, pair)
            size = torch.tensor([len(places)], device=order.device)
            gains = self._alone([order], pair).gains(0, size)
            outside = gains.masked_fill(order < len(places), -torch.inf).flatten()  # the circuit, and what is no node
            n_added = min(max(1, len(places) // GROWTH), n_nodes - len(places))
            n_measured = MEASURED if n_added <= MEASURED // 2 else n_added
            candidates = outside.topk(min(n_measured, n_nodes - len(places))).indices.tolist()
            if n_added < len(candidates):
                orders, trials = [], []
                for number, candidate in enumerate(candidates):
                    orders.append(_with_next(order, candidate, len(places)))
                    trials.append((number, 0, len(places) + 1))
                values = self._shares(self._alone(orders, pair), trials, pair)
                best = sorted(range(len(candidates)), key=lambda number: -values[number])[:n_added]
                candidates = [candidates[number] for number in best]
            places += candidates
            grown = self._alone([self._beginning_with(places, pair)], pair)
            (value,) = self._shares(grown, [(0, 0, len(places))], pair)
        order = self.order.clone()
        order[pair] = self._beginning_with(places, pair)[0]
        return self._circuit(order, pair, len(places), value)

    def _beginning_with(self, places: Sequence[int], pair: int) -> Ranks:
        """Return the order of one pair that begins with the nodes at some places of its flat scores."""
        marks = torch.zeros_like(self.scores.values[pair]).flatten()
        marks[list(places)] = torch.arange(len(places), 0, -1, dtype=marks.dtype, device=marks.device)
        return order_by(marks.view_as(self.scores.values[pair])[None], self.nodes[pair][None])

    def _alone(self, orders: Sequence[Ranks], pair: int) -> Ablation:
        """Return passes of one pair under some orders."""
        row = torch.tensor([pair], device=self.order.device)
        return replace(
            self.ablation,
            pairs=self.ablation.pairs.select(row),
            references=self.ablation.references.select(row),
            orders=orders,
        )

    def _shares(self, ablation: Ablation, trials: Sequence[tuple[int, int, int]], first_pair: int = 0) -> list[float]:
        """Return the faithfulness under trials of (order, pair, size), where pair 0 of the passes is ``first_pair``."""
        wanted = Trials.of([(*trial, False) for trial in trials], self.order.device)
        values = ablation.logit_differences(wanted)
        rows = wanted.pair + first_pair
        gap = self.clean[rows] - self.empty[rows]
        return torch.where(gap == 0, torch.ones_like(gap), (values - self.empty[rows]) / gap).tolist()

    def _tokens(self, pair: int) -> list[str]:
        """Return the text of each token of a clean prompt; their ids, where there is no tokenizer."""
        prompts, tokenizer = self.scores.pairs.clean, self.ablation.host.tokenizer
        ids = prompts.tokens[pair, : int(prompts.length[pair])].tolist()
        return [str(token) if tokenizer is None else tokenizer.decode([token]) for token in ids]

    def _circuit(self, order: Ranks, pair: int, size: int, faithfulness: float) -> Circuit:
        """Return the circuit of the first nodes of an order."""
        inside = (order[pair] != ALWAYS) & (order[pair] < size)
        flat = self.scores.values[pair].flatten()
        scores = {}
        for place in inside.flatten().nonzero().flatten().tolist():
            scores[self.scores.node(place)] = float(flat[place])
        pairs = self.scores.pairs
        fact = pairs.fact(pair)
        meta: dict[str, Any] = {
            "prompt": pairs.clean.text[pair],
            "relation": fact.relation,
            "subject": fact.subject,
            "object": fact.object,
            "counterfactual": pairs.counterfactual.text[pair],
            "tokens": self._tokens(pair),
            "n_nodes": self.n_nodes[pair],
            "clean": float(self.clean[pair]),
            "empty": float(self.empty[pair]),
            "faithfulness": faithfulness,
        }
        return Circuit(scores, scores, meta=meta)


def _with_next(order: Ranks, place: int, size: int) -> Ranks:
    """Return an order in which the node at a flat place has exchanged its rank with the first outside a circuit."""
    exchanged = order.flatten().clone()
    first_outside = int((exchanged == size).nonzero())
    exchanged[first_outside] = exchanged[place]
    exchanged[place] = size
    return exchanged.view_as(order)
