"""Query neurons: the neurons that act by what they activate (Yu & Ananiadou, EMNLP 2024).

*Value vectors* write the answer: rows of ``W_out`` with the activations of neurons as their coefficients, and rows of
``W_O`` with the coefficients ``pattern[read position, p] * v[p]``, one for each position p that a head attends to. What
a value vector adds by itself is its gain,

    gain_v = log p(answer | r + coefficient_v * row_v) - log p(answer | r)                              nats

with r the residual stream that its layer adds to, read through the final norm at the scale that it has under the
prompt.

*Query neurons* make value vectors active. The key of a value vector is what its coefficient reads of the residual
stream: the neuron's pre-activation (of a gated MLP that which the activated gate multiplies), or the entry of ``v`` of
the head at position p. The score of neuron i, over the value vectors v with the largest gains, is

    weighting="gain"          sum_v gain_v * <key_v, contribution_i> / <key_v, residual stream>         nats
    weighting="coefficient"   sum_v coefficient_v * <key_v, contribution_i>

with every product taken through the norm of the layer of v as it stands. The first is the ranking of the authors'
published code; the share of ``contribution_i`` in the key's input does not depend on the norm's scale. The code does
not centre what goes through a layer norm: ``hold_means=True`` has its numbers on a GPT-2. Its neurons sum over
positions: ``QueryNeurons.by_neuron``.

By the concavity of log p in what is added, ``coefficient_v * <row_v, gradient of log p at r>`` is no smaller than the
gain. So the value vectors are sorted by this bound, and their gains computed until no bound is above the least of the
largest gains: these are exact, and most vectors never meet the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.checks import check_whole
from kn_lens._core.precision import at_least_float32
from kn_lens._core.progress import Report as Progress
from kn_lens._core.progress import draws_progress
from kn_lens._core.wording import counted
from kn_lens.circuits.direct_effects import read_target
from kn_lens.circuits.nodes import NeuronNode
from kn_lens.errors import ArgumentError, UnsupportedModelError, did_you_mean
from kn_lens.hosts import (
    Budget,
    HookedModel,
    Host,
    LinearizedPass,
    check_components,
    exclusive,
    host_of,
    run_linearized,
)
from kn_lens.prompts import PromptBatch, check_prompts

if TYPE_CHECKING:
    import pandas as pd

ValueKind = Literal["attention", "mlp"]
Weighting = Literal["gain", "coefficient"]


@dataclass(frozen=True, order=True)
class HeadValue:
    """A value vector of an attention head: a row of ``W_O``, with what the head reads of one position.

    Attributes:
        layer: zero-based block.
        head: zero-based head.
        index: row of the head's ``W_O``, from 0 to ``d_head - 1``.
        position: the position that is attended to.

    >>> str(HeadValue(15, 15, 112, 3))
    'L15H15D112@3'
    """

    layer: int
    head: int
    index: int
    position: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}D{self.index}@{self.position}"


ValueVector = NeuronNode | HeadValue


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryNeurons:
    """Query scores of all neurons of one prompt, and the value vectors that they are for.

    Attributes:
        scores: in nats with ``weighting="gain"``.
        values: the value vectors and their gains in nats, largest first.
        weighting: ``gain`` or ``coefficient``.
        prompt: its text.
    """

    scores: Float[Tensor, "n_layers pos d_mlp"]
    values: dict[ValueVector, float]
    weighting: Weighting
    prompt: str

    def __repr__(self) -> str:
        names = ", ".join(f"{node} {score:.2g}" for node, score in self.top(3).items())
        return f"QueryNeurons({self.prompt!r}, {counted(len(self.values), 'value vector')}; highest: {names})"

    @property
    def by_neuron(self) -> Float[Tensor, "n_layers d_mlp"]:
        """The scores summed over positions, which the authors' code ranks."""
        return self.scores.sum(1)

    def top(self, k: int = 10) -> dict[NeuronNode, float]:
        """Return the ``k`` neurons with the largest scores, each at its position.

        Raises:
            ArgumentError: ``k`` is no number of neurons.
        """
        check_whole("k", k)
        flat = self.scores.flatten()
        n_pos, d_mlp = self.scores.shape[1:]
        best: dict[NeuronNode, float] = {}
        for place in flat.topk(min(k, len(flat))).indices.tolist():
            layer, rest = divmod(place, n_pos * d_mlp)
            position, index = divmod(rest, d_mlp)
            best[NeuronNode(layer, index, position)] = float(flat[place])
        return best

    def to_frame(self, k: int = 100) -> "pd.DataFrame":
        """Return the ``k`` neurons with the largest scores as a table: node, layer, index, position, score."""
        import pandas as pd

        rows = []
        for node, score in self.top(k).items():
            rows.append(
                {
                    "node": str(node),
                    "layer": node.layer,
                    "index": node.index,
                    "position": node.position,
                    "score": score,
                }
            )
        return pd.DataFrame(rows, columns=["node", "layer", "index", "position", "score"])


@exclusive
@draws_progress("Scoring query neurons", "prompts")
def query_neurons(
    model: HookedModel | Host,
    prompts: PromptBatch,
    *,
    values: ValueKind | Sequence[ValueKind] = "attention",
    n_values: int = 30,
    weighting: Weighting = "gain",
    hold_means: bool = False,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> list[QueryNeurons]:
    """Score the neurons of each prompt by what they give to the keys of its value vectors.

    Args:
        model: a causal TransformerLens model.
        prompts: prompts with answers of one token.
        values: the kinds of value vectors that are targets: ``attention`` (as published), ``mlp``, or both.
        n_values: how many of them, those with the largest gains; 30 in the authors' code.
        weighting: see the module.
        hold_means: do not centre what goes through layer norms, as the authors' code does not.
        memory_budget: bytes for the logits of value vectors; half of the free memory by default.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with the number of prompts
            done and their total.

    Returns:
        One result for each prompt. Cost: for each prompt a forward pass, a few hundred rows of the unembedding, and
        ``n_values`` backward passes of direct paths.

    Raises:
        ArgumentError: answers of several tokens; an unknown kind or weighting; no values.
        UnsupportedModelError: a model that is not causal, that normalises what components write (Gemma 2, OLMo 2) or
            caps its logits, or whose norms cannot be held.

    >>> import kn_lens as kn
    >>> model = kn.load_model("world-gpt2")
    >>> fact = kn.FactSet.world().find("Ireland", relation="P36")
    >>> found, = query_neurons(model, kn.make_prompts(model, fact)[0], values="mlp", n_values=5)
    >>> len(found.values), found.scores.shape
    (5, torch.Size([4, 6, 512]))
    """
    host = host_of(model)
    kinds = _checked(host, prompts, values, n_values, weighting)
    budget = Budget.of(host, memory_budget)
    rows_at_a_time = max(1, int(budget.memory / (8 * host.d_vocab * host.dtype.itemsize)))
    found = []
    for number in range(len(prompts)):
        prompt = prompts[number]
        n_pos = int(prompt.length)
        state = run_linearized(
            host,
            prompt.tokens[:, :n_pos],
            prompt.attention_mask[:, :n_pos],
            prompt.read_pos,
            hold_means=hold_means,
        )
        gains = _ValueSearch(state, prompt, kinds, min(512, rows_at_a_time)).largest(n_values)
        found.append(
            QueryNeurons(
                scores=_query_scores(state, prompt, gains, weighting),
                values={vector: gain for vector, (gain, _) in gains.items()},
                weighting=weighting,
                prompt=prompt.text[0],
            )
        )
        if callable(progress):
            progress(number + 1, len(prompts))
    return found


def _checked(
    host: Host,
    prompts: PromptBatch,
    values: ValueKind | Sequence[ValueKind],
    n_values: int,
    weighting: Weighting,
) -> tuple[ValueKind, ...]:
    """Return the kinds of values, as a tuple."""
    check_components(host)
    check_prompts(prompts)
    prompts.check_for(host)
    kinds = (values,) if isinstance(values, str) else values
    known = get_args(ValueKind)
    if not isinstance(kinds, (list, tuple)) or not kinds or not all(kind in known for kind in kinds):
        raise ArgumentError(f"values={values!r}; expected 'attention', 'mlp', or both.{did_you_mean(values, known)}")
    if weighting not in get_args(Weighting):
        hint = did_you_mean(weighting, get_args(Weighting))
        raise ArgumentError(f"weighting={weighting!r}; expected 'gain' or 'coefficient'.{hint}")
    check_whole("n_values", n_values, 1)
    if prompts.n_rows != len(prompts):
        raise ArgumentError("A prompt has several rows; query neurons are for answers of one token.")
    caps_logits = bool(getattr(host.checkpoint.config, "final_logit_softcapping", None))
    if host.kind != "causal" or host.norm_after_mlp or caps_logits:
        raise UnsupportedModelError(
            f"{host.name} ({host.kind}) does not add what its components write to a residual stream that the final "
            "norm and the unembedding read: value vectors have no gain of their own there. direct_effects works on it."
        )
    return tuple(dict.fromkeys(kinds))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Candidates:
    """The value vectors of one layer and kind, and an upper bound of the gain of each.

    Attributes:
        layer: the layer.
        kind: their kind.
        base: the residual stream that the layer adds to, at the read position.
        rows: the rows of ``W_out`` or ``W_O``.
        coefficients: by position, of a head's rows; one position, of neurons.
        bounds: likewise.
    """

    layer: int
    kind: ValueKind
    base: Float[Tensor, " d_model"]
    rows: Float[Tensor, "value d_model"]
    coefficients: Float[Tensor, "pos value"]
    bounds: Float[Tensor, "pos value"]


class _ValueSearch:
    """The search for the value vectors with the largest gains; see the module."""

    def __init__(
        self, state: LinearizedPass, prompt: PromptBatch, kinds: Sequence[ValueKind], rows_at_a_time: int
    ) -> None:
        self.state = state
        self.target_id = int(prompt.target_ids)
        self.read_pos = int(prompt.read_pos)
        self.rows_at_a_time = rows_at_a_time
        self.candidates: list[_Candidates] = []
        for layer in range(state.host.n_layers):
            for kind in kinds:
                self.candidates.append(self._candidates(layer, kind))

    def largest(self, n_values: int) -> dict[ValueVector, tuple[float, float]]:
        """Return the value vectors with the largest gains: gain and coefficient of each, largest first."""
        bounds = torch.cat([part.bounds.flatten() for part in self.candidates])
        sizes = torch.tensor([part.bounds.numel() for part in self.candidates])
        starts = sizes.cumsum(0) - sizes
        owner = torch.arange(len(sizes)).repeat_interleave(sizes)
        order = bounds.argsort(descending=True).cpu()
        owner, places = owner[order], order - starts[owner[order]]
        gains = bounds.new_zeros(0)
        while len(gains) < len(order):
            if len(gains) >= n_values and bounds[order[len(gains)]] <= gains.topk(n_values).values[-1]:
                break
            following = slice(len(gains), len(gains) + max(4 * n_values, self.rows_at_a_time))
            gains = torch.cat([gains, self._gains(owner[following], places[following])])
        best: dict[ValueVector, tuple[float, float]] = {}
        for rank in gains.topk(min(n_values, len(gains))).indices.tolist():
            vector, coefficient = self._vector(self.candidates[int(owner[rank])], int(places[rank]))
            best[vector] = (float(gains[rank]), coefficient)
        return best

    def _candidates(self, layer: int, kind: ValueKind) -> _Candidates:
        state, read_pos = self.state, self.read_pos
        base = state.resid_pre[layer][0, read_pos].detach()
        if kind == "mlp":
            base = base + state.attn_out[layer][0, read_pos].detach()
            rows = state.host.W_out(layer).detach()
            coefficients = state.values.neurons[layer][0, read_pos].detach()[None]
        else:
            W_O = state.host.blocks[layer].attn.W_O.detach()
            rows = W_O.flatten(0, 1)
            pattern = state.patterns[layer][0, :, read_pos]
            v = state.inputs[layer, "v"][0].detach()
            v = repeat(v, "pos kv d_head -> pos (kv group) d_head", group=len(pattern) // v.shape[1])
            coefficients = (pattern.T[..., None] * v).flatten(1)
            self._check_heads(layer, coefficients)
        gradient = self._gradient(base)
        return _Candidates(
            layer=layer,
            kind=kind,
            base=base,
            rows=rows,
            coefficients=coefficients,
            bounds=coefficients * (rows @ gradient),
        )

    def _check_heads(self, layer: int, coefficients: Float[Tensor, "pos value"]) -> None:
        """Raise unless heads write the values of positions, weighted by the pattern."""
        written = self.state.values.heads[layer][0, self.read_pos].detach().flatten()
        distance = (coefficients.sum(0) - written).norm()
        limit = max(1e-3, 8 * torch.finfo(written.dtype).eps)
        if not bool(distance <= limit * written.norm()):
            raise UnsupportedModelError(
                f"{self.state.host.name}: heads of layer {layer} do more than weigh values by their pattern; value "
                "vectors of attention are not defined there. Use values='mlp'."
            )

    def _gradient(self, base: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        """Return the gradient of the answer's log-probability at a residual stream."""
        with torch.enable_grad():
            point = base.clone().requires_grad_()
            return torch.autograd.grad(self._log_prob(point[None])[0], point)[0]

    def _log_prob(self, vectors: Float[Tensor, "vector d_model"]) -> Float[Tensor, " vector"]:
        rows = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
        return self.state.read_logits(vectors, rows).log_softmax(-1)[:, self.target_id]

    def _gains(self, owner: Int[Tensor, " chosen"], places: Int[Tensor, " chosen"]) -> Float[Tensor, " chosen"]:
        """Return the gains of value vectors."""
        vectors, bases = [], []
        for part_number, place in zip(owner.tolist(), places.tolist(), strict=True):
            part = self.candidates[part_number]
            position, row = divmod(place, len(part.rows))
            vectors.append(part.base + part.coefficients[position, row] * part.rows[row])
            bases.append(part_number)
        with torch.no_grad():
            after = torch.cat([self._log_prob(chunk) for chunk in torch.stack(vectors).split(self.rows_at_a_time)])
            silent = {}
            for part_number in set(bases):
                silent[part_number] = self._log_prob(self.candidates[part_number].base[None])[0]
        return after - torch.stack([silent[part_number] for part_number in bases])

    def _vector(self, part: _Candidates, place: int) -> tuple[ValueVector, float]:
        """Return the value vector at a place among the candidates of a layer, and its coefficient."""
        position, row = divmod(place, len(part.rows))
        coefficient = float(part.coefficients[position, row])
        if part.kind == "mlp":
            return NeuronNode(part.layer, row, self.read_pos), coefficient
        d_head = self.state.values.heads[part.layer].shape[-1]
        return HeadValue(part.layer, row // d_head, row % d_head, position), coefficient


def _query_scores(
    state: LinearizedPass,
    prompt: PromptBatch,
    gains: dict[ValueVector, tuple[float, float]],
    weighting: Weighting,
) -> Float[Tensor, "n_layers pos d_mlp"]:
    """Return the query scores of all neurons."""
    activations = at_least_float32(torch.stack([values[0].detach() for values in state.values.neurons]))
    total = torch.zeros_like(activations)
    for vector, (gain, coefficient) in gains.items():
        with torch.enable_grad():  # the caller may have turned it off
            key = _key(state, prompt, vector)
            derivatives = torch.stack([values[0] for values in state.derivatives(key).neurons])
            weight = coefficient
            if weighting == "gain":
                weight = gain / float(state.stream_part(key, vector.layer))
        total += weight * derivatives * activations
    return total


def _key(state: LinearizedPass, prompt: PromptBatch, vector: ValueVector) -> Float[Tensor, ""]:
    """Return what makes a value vector active."""
    if isinstance(vector, NeuronNode):
        return read_target(state, prompt, vector, "key")[0]
    v = state.inputs[vector.layer, "v"][0, vector.position]
    n_heads = state.values.heads[vector.layer].shape[2]
    return v[vector.head * len(v) // n_heads, vector.index]
