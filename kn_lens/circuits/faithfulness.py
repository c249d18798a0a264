"""Faithfulness and completeness: what a circuit keeps of the logit difference alone, and what is lost without it.

With m the logit difference, C a circuit, and all nodes that are not computed set to their reference values:

    faithfulness = (m(C computed) - m(none)) / (m(clean) - m(none))         1: the circuit does what the model does
    completeness = (m(clean) - m(all but C)) / (m(clean) - m(none))         1: nothing of it is left without the circuit

``m(none)`` has all nodes at their references, and the clean prompt's embeddings. Both are 0 for the empty circuit and 1
for that of all nodes, and may lie outside of 0 to 1 between. Nodes of other kinds than the circuit's (heads, in a
circuit of neurons alone) are always computed, and answer to what changes below them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens._core import defaults
from kn_lens._core.bootstrap import Statistic, WeightedMean, bootstrap_tables, ratio
from kn_lens._core.checks import check_kind, check_whole
from kn_lens._core.drawing import drawing
from kn_lens._core.progress import draws_progress
from kn_lens._core.wording import counted
from kn_lens.circuits.ablation import Ablation, Reference, References, Trials, empty_and_whole
from kn_lens.circuits.circuit import Circuit
from kn_lens.circuits.orders import (
    NodeKind,
    active_order,
    checked_kinds,
    circuit_places,
    is_node,
    order_by,
    order_of_circuits,
    random_order,
)
from kn_lens.circuits.pairs import PromptPairs, map_pairs
from kn_lens.circuits.scores import CircuitScores, Progress, Ranking, check_ranking
from kn_lens.errors import ArgumentError
from kn_lens.hosts import Budget, HookedModel, Host, check_components, exclusive, host_of

if TYPE_CHECKING:
    import pandas as pd

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Sizes of circuits in a curve by default."""

SETS = ("circuit", "random", "active")
"""The circuits of a curve: the one that is tried, and two of the same shape, random nodes and the most active."""

FAITHFULNESS = Statistic((WeightedMean("gained"), WeightedMean("gap")), ratio)
COMPLETENESS = Statistic((WeightedMean("lost"), WeightedMean("gap")), ratio)
KEPT = Statistic((WeightedMean("kept"), WeightedMean("clean")), ratio)


@dataclass(frozen=True, kw_only=True, eq=False)
class Faithfulness:
    """Circuits of some sizes, and controls of the same shape, in each pair.

    Attributes:
        trials: a row for each pair, size and set: ``pair, relation, subject, size, set`` (``circuit``, ``random`` or
            ``active``), in logits ``clean`` (the model's difference), ``empty`` (with all nodes set), ``kept`` (with
            the circuit alone) and ``left`` (without it), and ``faithfulness`` and ``completeness``.
        kinds: the kinds of nodes.
        reference: what the other nodes are set to.
        by_size: whether circuits of several sizes were measured, instead of one of its own size in each pair.
    """

    trials: "pd.DataFrame"
    kinds: tuple[NodeKind, ...]
    reference: Reference
    by_size: bool = True

    def __repr__(self) -> str:
        n_pairs = counted(len(set(self.trials["pair"])), "pair")
        sizes = sorted(self.trials["size"].unique().tolist())
        nodes = f"{sizes[0]:,} to {sizes[-1]:,} nodes" if len(sizes) > 1 else counted(sizes[0], "node")
        return f"Faithfulness({n_pairs}, circuits of {nodes}, others at {self.reference})"

    def plot(self, **options: Any) -> Any:
        """Return the curve drawn, for circuits of several sizes; see ``kn_lens.figures.circuit_curve``."""
        return drawing("circuit_curve_figure")(self, **options)

    def curve(self, *, n_resamples: int = defaults.N_RESAMPLES, seed: int = 0) -> "pd.DataFrame":
        """Return faithfulness and completeness by size and set, with intervals over facts.

        The shares are those of the sums of logits over facts, each fact the mean of its pairs: a pair with hardly any
        difference does not count as much as others.

        Returns:
            A row for each size (where ``by_size``), set and measure: ``value, low, high, n``, as ``bootstrap_tables``
            makes them. The measures: ``faithfulness``, ``completeness``, and ``kept``, the logit difference of the
            circuit as a share of the model's.

        Raises:
            ArgumentError: no samples.
        """
        check_whole("n_resamples", n_resamples, 1)
        check_whole("seed", seed)
        trials = self.trials.assign(
            gained=self.trials["kept"] - self.trials["empty"],
            lost=self.trials["clean"] - self.trials["left"],
            gap=self.trials["clean"] - self.trials["empty"],
        )
        labels = ["size", "set"] if self.by_size else ["set"]
        keys = ["relation", "subject", *labels]
        columns = ["gained", "lost", "gap", "kept", "clean"]
        facts: Any = trials.groupby(keys, sort=False, as_index=False)[columns].mean()
        statistics = {"faithfulness": FAITHFULNESS, "completeness": COMPLETENESS, "kept": KEPT}
        return bootstrap_tables(facts, labels, statistics, n_resamples=n_resamples, seed=seed)


@exclusive
@draws_progress("Measuring circuits", "pairs")
def faithfulness(
    model: HookedModel | Host,
    scores: CircuitScores,
    circuits: Circuit | Sequence[Circuit] | None = None,
    *,
    sizes: Sequence[int] | None = None,
    kinds: NodeKind | Sequence[NodeKind] = ("neuron", "head"),
    by: Ranking = "score",
    reference: Reference = "counterfactual",
    controls: bool = True,
    seed: int = 0,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> Faithfulness:
    """Measure circuits of several sizes, or given ones, beside random and most active ones of the same shape.

    Args:
        model: the model of the scores.
        scores: see ``circuit_scores``; the circuit of size k has the k nodes with the largest scores.
        circuits: circuits instead of those of the scores: one for all pairs, or one for each. Each is measured at its
            own size.
        sizes: the sizes; ``SIZES`` by default. Those above the number of nodes of a pair are left out there.
        kinds: which kinds of nodes circuits are made of.
        by: ``score``: nodes that raise the logit difference first, and those that lower it last, so that circuits
            overshoot before they are whole; or ``magnitude``: nodes of large effect first, whatever its sign.
        reference: ``counterfactual`` (activations under the counterfactual prompt), ``mean`` (over the counterfactual
            prompts of the same template and length) or ``zero``.
        controls: whether to measure circuits of the same shape: as many nodes of each kind in each layer and position.
        seed: of the random circuits.
        memory_budget: bytes that passes may use; half of the free memory by default.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with the number of pairs
            done and their total.

    Returns:
        The measurements. Cost: two forward passes for each pair, size and set, and four for each pair.

    Raises:
        ArgumentError: an unknown kind or reference, sizes that are none, or circuits that do not fit the pairs.

    >>> import kn_lens as kn
    >>> model = kn.load_model("world-gpt2")
    >>> facts = [fact for fact in kn.FactSet.world() if fact.relation == "P36"][:20]
    >>> scores = kn.circuit_scores(model, kn.counterfactual_pairs(model, facts).select([0, 1]))
    >>> measured = faithfulness(model, scores, sizes=[1, 100])
    >>> own = measured.trials[measured.trials["set"] == "circuit"].set_index(["pair", "size"])["faithfulness"]
    >>> bool(own[0, 100] > own[0, 1])
    True
    """
    host = host_of(model)
    check_components(host)
    check_kind(scores, CircuitScores, "CircuitScores: kn_lens.circuit_scores(model, pairs)", "scores")
    scores.pairs.clean.check_for(host)
    kinds = checked_kinds(kinds)
    check_ranking(by)
    check_whole("seed", seed)
    sizes_by_pair = _sizes(scores, circuits, sizes, kinds)
    budget = Budget.of(host, memory_budget)
    references = References(host, scores.pairs, reference, budget)
    of_pair = None if circuits is None else _one_each(circuits, len(scores.pairs))
    rows: dict[int, list[dict[str, Any]]] = {}
    for numbers, chunk in score_chunks(budget, scores):
        own = order_by(chunk.values, is_node(chunk, kinds), by)
        if of_pair is not None:
            own = order_of_circuits([of_pair[number] for number in numbers], chunk, kinds)
        orders = [own]
        if controls:
            orders.append(random_order(own, chunk.n_neurons, [seed * 1_000_003 + number for number in numbers]))
            orders.append(active_order(own, chunk.n_neurons, chunk.activity))
        ablation = Ablation(
            host=host,
            pairs=chunk.pairs,
            references=references.of(chunk.pairs),
            orders=orders,
            rows_per_pass=budget.rows_per_pass(chunk.pairs.clean.tokens.shape[1]),
        )
        for row, table in zip(numbers, _measured(ablation, [sizes_by_pair[n] for n in numbers]), strict=True):
            rows[row] = table
        if callable(progress):
            progress(len(rows), len(scores.pairs))
    return Faithfulness(
        trials=_table(rows, scores.pairs),
        kinds=kinds,
        reference=reference,
        by_size=circuits is None,
    )


def score_chunks(budget: Budget, scores: CircuitScores) -> "Sequence[tuple[list[int], CircuitScores]]":
    """Return the scores in chunks of pairs of similar length, whose references fit the budget, cut to their length."""
    chunks: list[tuple[list[int], CircuitScores]] = []
    for chosen, chunk in map_pairs(budget, scores.pairs, 1, lambda pairs: pairs):
        n_pos = chunk.clean.tokens.shape[1]
        part = CircuitScores(
            values=scores.values[chosen][:, :, :n_pos],
            embedding=scores.embedding[chosen][:, :n_pos],
            activity=scores.activity[chosen][:, :, :n_pos],
            n_neurons=scores.n_neurons,
            pairs=chunk,
            method=scores.method,
            clean=scores.clean[chosen],
            counterfactual=scores.counterfactual[chosen],
        )
        chunks.append((chosen.tolist(), part))
    return chunks


def _one_each(circuits: Circuit | Sequence[Circuit], n_pairs: int) -> list[Circuit]:
    """Return a circuit for each pair.

    Raises:
        ArgumentError: another number of circuits.
    """
    if isinstance(circuits, Circuit):
        return [circuits] * n_pairs
    found = list(circuits) if isinstance(circuits, (list, tuple)) else []
    if len(found) != n_pairs or not all(isinstance(circuit, Circuit) for circuit in found):
        raise ArgumentError(
            f"Got {len(found)} circuits for {n_pairs} pairs; expected one Circuit for each, or for all."
        )
    return found


def _sizes(
    scores: CircuitScores,
    circuits: Circuit | Sequence[Circuit] | None,
    sizes: Sequence[int] | None,
    kinds: Sequence[NodeKind],
) -> list[list[int]]:
    """Return the sizes that are measured in each pair."""
    n_nodes = is_node(scores, kinds).flatten(1).sum(1).tolist()
    if circuits is not None:
        if sizes is not None:
            raise ArgumentError("Got circuits and sizes; circuits are measured at their own sizes.")
        own = enumerate(_one_each(circuits, len(scores.pairs)))
        return [[len(circuit_places(circuit, scores, row, kinds))] for row, circuit in own]
    if sizes is None:
        sizes = SIZES
    if isinstance(sizes, str) or not isinstance(sizes, Sequence) or not sizes:
        raise ArgumentError(f"sizes={sizes!r}; expected numbers of nodes, such as [10, 100].")
    for size in sizes:
        check_whole("sizes", size)
    if min(sizes) > max(n_nodes):
        raise ArgumentError(f"sizes={list(sizes)}; expected numbers of nodes, of which the pairs have {max(n_nodes)}.")
    wanted = list(dict.fromkeys(sizes))
    return [[size for size in wanted if size <= most] for most in n_nodes]


def _measured(ablation: Ablation, sizes: Sequence[Sequence[int]]) -> list[list[dict[str, Any]]]:
    """Return the rows of each pair of a chunk."""
    empty, clean = empty_and_whole(ablation)
    keys: list[tuple[int, int, int]] = []
    for pair, pair_sizes in enumerate(sizes):
        for size in pair_sizes:
            keys += [(order, pair, size) for order in range(len(ablation.orders))]
    if not keys:
        return [[] for _ in sizes]
    both = [(*key, without) for without in (False, True) for key in keys]
    values = ablation.logit_differences(Trials.of(both, ablation.host.device)).tolist()
    rows: list[list[dict[str, Any]]] = [[] for _ in sizes]
    for (order, pair, size), kept, left in zip(keys, values[: len(keys)], values[len(keys) :], strict=True):
        whole, none = float(clean[pair]), float(empty[pair])
        gap = whole - none if whole != none else np.nan
        rows[pair].append(
            {
                "size": size,
                "set": SETS[order],
                "clean": whole,
                "empty": none,
                "kept": kept,
                "left": left,
                "faithfulness": (kept - none) / gap,
                "completeness": (whole - left) / gap,
            }
        )
    return rows


def _table(rows: dict[int, list[dict[str, Any]]], pairs: PromptPairs) -> "pd.DataFrame":
    import pandas as pd

    listed = []
    for number in range(len(pairs)):
        fact = pairs.fact(number)
        labels = {"pair": number, "relation": fact.relation, "subject": fact.subject}
        listed += [{**labels, **row} for row in rows[number]]
    return pd.DataFrame(listed)
