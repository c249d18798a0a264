r"""Knowledge attribution: how much of the answer's probability each neuron of a layer carries.

Let ``w`` be the activation (``hook_post``) of one layer at the read position and ``P(v)`` the output when that
activation is replaced by ``v`` and everything above is recomputed. Integrated gradients (Sundararajan et al. 2017)
from ``0`` to ``w``, as Dai et al. (2022), equation 2, apply them to neurons:

    Attr_i = w_i * integral_0^1 dP(alpha * w) / dw_i  d alpha                      (joint path: the whole layer moves)
    sum_i Attr_i = P(w) - P(0)                                                     (completeness)

The paper's formula can also be read as moving neuron ``i`` alone (``method="single_path"``); then ``Attr_i`` is
exactly ``P(w) - P(w with w_i = 0)``. A positive score means that the neuron's activation speaks for the answer.
Scores have the output's unit. What the quadrature misses of the completeness sum is ``Attribution.completeness_gap``,
the error bar of every (prompt, layer).

An answer of several tokens is read in several rows (see ``PromptBatch``); its rows move together, and a neuron's
score is the sum over them, so that completeness holds for the probability of the whole answer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens._exclusive import exclusive, exclusively
from kn_lens._plots import AttributionPlot
from kn_lens._request import PRESETS, Method, NeuronLike, Preset, Request, check_share
from kn_lens.baselines import BASELINES, Indices, LayerScores
from kn_lens.engine import Site, budget_for, sites
from kn_lens.errors import ArgumentError
from kn_lens.outputs import Output
from kn_lens.prompts import PromptBatch
from kn_lens.quadrature import Quadrature

__all__ = ["PRESETS", "Attribution", "Method", "NeuronLike", "Preset", "attribute", "attribute_in_parts"]

Progress = Callable[[int, int], None]

SUMMING = ("integrated_gradients", "single_path", "gradient_x_activation")
"""The methods of whose scores completeness says what they sum to, or would if they were exact."""

OUTPUT_FLOOR = 1e-2
"""Outputs smaller than this count as this size when the tolerance is made absolute: 1e-3 then means 1e-5."""


@dataclass(frozen=True, kw_only=True)
class Attribution(AttributionPlot):
    """Scores of every neuron for every prompt, with their error bars; ``plot()`` draws the highest.

    Attributes:
        scores: in the output's unit (probability by default); NaN where only chosen neurons or layers were computed.
            With ``keep``, a sparse tensor of the same shape.
        total: what the scores of each layer sum to; NaN where a layer was not computed.
        clean: the output of the unaltered model.
        expected: what completeness says that a layer's scores sum to: ``P(w) - P(0)``, for the methods on chosen
            neurons the sum of their ``P(w) - P(w with w_i = 0)``; NaN for methods that promise no sum.
        n_points: gradient (for ``ablation`` and ``log_prob_gain``: forward) evaluations spent on each pair.
        tolerance: the largest absolute gap that counts as converged.
        prompts: what was asked.
        method: as given to ``attribute``.
        output: name of the output.
        quadrature: the rule, with its number of points; ``none`` for methods without an integral.
        keep: the share of each prompt's largest score below which scores were dropped; None where all are kept.
    """

    scores: Float[Tensor, "batch n_layers d_mlp"]
    total: Float[Tensor, "batch n_layers"]
    clean: Float[Tensor, " batch"]
    expected: Float[Tensor, "batch n_layers"]
    n_points: Int[Tensor, "batch n_layers"]
    tolerance: Float[Tensor, " batch"]
    prompts: PromptBatch
    method: str
    output: str
    quadrature: str
    keep: float | None = None

    @property
    def completeness_gap(self) -> Float[Tensor, "batch n_layers"]:
        """The error bar of each (prompt, layer), ``sum_i score_i - expected``, signed, in the output's unit."""
        return self.total - self.expected

    @property
    def converged(self) -> Bool[Tensor, "batch n_layers"]:
        """Whether the gap is within the tolerance; a gap that is not a number never is.

        Of methods that promise no sum: whether their scores are numbers. True of layers that were not computed.
        """
        if self.method in SUMMING:
            found = self.completeness_gap.abs() <= self.tolerance[:, None]
        else:
            found = self.total.isfinite()
        return found | (self.n_points == 0)

    @property
    def unconverged(self) -> list[tuple[int, int]]:
        """The (prompt, layer) pairs whose gap is above the tolerance, or not a number."""
        return [(prompt, layer) for prompt, layer in (~self.converged).nonzero().tolist()]

    def thresholded(self, share: float = 0.1) -> "Attribution":
        """Return the attribution with only the scores of at least ``share`` times the prompt's largest, sparse.

        That is what the released code stores, and all that a coarse set with a threshold from ``share`` on needs; a
        prompt without a positive score keeps none. Of 36,864 scores of a prompt usually a few dozen are kept.

        Raises:
            ArgumentError: not a share, or the scores have been thresholded already.
        """
        check_share("share", share)
        if self.keep is not None:
            raise ArgumentError(f"The scores below {self.keep} of each prompt's largest have been dropped already.")
        peak = torch.where(self.scores.isnan(), -torch.inf, self.scores).amax((1, 2), keepdim=True)
        cells = (self.scores >= torch.where(peak > 0, share * peak, torch.inf)).nonzero().T
        scores = torch.sparse_coo_tensor(
            cells, self.scores[tuple(cells)], self.scores.shape, is_coalesced=True, check_invariants=False
        )
        return replace(self, scores=scores, keep=share)


@exclusive
def attribute(
    model: Any,
    prompts: PromptBatch,
    *,
    method: Method = "integrated_gradients",
    output: str | Output = "prob",
    preset: Preset | None = None,
    quadrature: str = "adaptive",
    n_steps: int | None = None,
    tolerance: float = 1e-3,
    max_points: int = 129,
    layers: Sequence[int] | None = None,
    neurons: Iterable[NeuronLike] | None = None,
    keep: float | None = None,
    memory_budget: float | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """Attribute each prompt's answer to the neurons of each layer, at the read position.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        prompts: what to ask it, from ``make_prompts`` or ``PromptBatch.from_tokens``.
        method: ``integrated_gradients`` (joint path); ``single_path`` (one chosen neuron moves at a time);
            ``gradient_x_activation`` (``w_i dP(w)/dw_i``); ``ablation`` (``P(w) - P(w with w_i = 0)``, the truth that
            the others approximate); ``activation`` (``w_i``, averaged over the answer's rows: the paper's baseline);
            ``log_prob_gain`` (Yu & Ananiadou 2024: what ``w_i W_out[i]`` alone adds to the log-probability of the
            answer read off the residual stream after this layer, over the layer's ``b_out`` alone; nats).
        output: ``prob``, ``log_prob``, ``logit``, ``logit_diff``, or an ``Output``. ``activation`` and
            ``log_prob_gain`` have units of their own and ignore it.
        preset: ``paper`` (right sum, 20 points) or ``official`` (left sum, 20 points), instead of ``quadrature``.
        quadrature: ``adaptive``, or a fixed rule of ``kn_lens.quadrature``. ``adaptive`` starts with 3 points and
            doubles the intervals for just those (prompt, layer) pairs whose completeness gap is above the tolerance,
            reusing all points.
        n_steps: number of points of a fixed rule (default 20).
        tolerance: for the gap, relative to the size of the clean output (taken as at least ``OUTPUT_FLOOR``). Taken as
            at least twice the rounding of the weights' type, 1.6e-2 in bfloat16: below it the gap is rounding.
        max_points: where ``adaptive`` gives up; ``Attribution.unconverged`` lists the pairs that got there.
        layers: only these; the others' scores are NaN.
        neurons: the chosen ones, required by ``single_path``, optional for ``ablation`` and ``log_prob_gain``, whose
            cost grows with their number.
        keep: keep only the scores of at least this share of the prompt's largest (the released code: 0.1), sparse;
            see ``Attribution.thresholded``. None keeps all.
        memory_budget: bytes that passes may take, on the model's device; default: half of what is free. It sets how
            many rows go through the model at a time, and the results do not depend on it. Where it was too much and
            memory runs out, passes are halved and run again, down to single prompts. The result comes on top.
        progress: called with (done, total), counted in (prompt, layer) pairs.

    Returns:
        An ``Attribution``. Cost: one forward pass per row; for each (prompt, layer) ``n_points`` from there up, each
        with a backward pass (one for all layers at alpha = 1); for ``ablation`` and ``log_prob_gain`` one per neuron.

    Raises:
        ArgumentError: an argument out of range, or two that exclude each other.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights or answers.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, [kn.FactSet.world().find("Ireland", relation="P36")])
        >>> attr = kn.attribute(model, prompts)
        >>> bool(attr.converged.all())
        True
    """
    request = Request.of(
        model,
        prompts,
        method=method,
        output=output,
        preset=preset,
        quadrature=quadrature,
        n_steps=n_steps,
        tolerance=tolerance,
        max_points=max_points,
        layers=layers,
        neurons=neurons,
    )
    return _together(prompts, _in_parts(request, prompts, keep, memory_budget, progress))


def attribute_in_parts(
    model: Any,
    prompts: PromptBatch,
    *,
    keep: float | None = None,
    memory_budget: float | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> Iterator[tuple[Int[Tensor, " some"], Attribution]]:
    """Attribute as ``attribute`` does, and hand out finished prompts as they come: memory then does not grow with them.

    Args:
        model: as for ``attribute``.
        prompts: what to ask it.
        keep: as for ``attribute``.
        memory_budget: as for ``attribute``.
        progress: as for ``attribute``.
        **how: the other arguments of ``attribute``.

    Returns:
        An iterator over the numbers of some prompts, long ones first, and their ``Attribution``. Arguments are checked
        now, the model runs when it is asked for the next part.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, [kn.FactSet.world().find("Ireland", relation="P36")])
        >>> sum(len(numbers) for numbers, part in attribute_in_parts(model, prompts, keep=0.1)) == len(prompts)
        True
    """
    return _in_parts(Request.of(model, prompts, **how), prompts, keep, memory_budget, progress)


def _in_parts(
    request: Request,
    prompts: PromptBatch,
    keep: float | None,
    memory_budget: float | None,
    progress: Progress | None,
) -> Iterator[tuple[Int[Tensor, " some"], Attribution]]:
    if keep is not None:
        check_share("keep", keep)
    budget = budget_for(request.host, prompts, memory_budget)
    request.host.check_finite()
    n_done, n_layers = 0, len(request.layers)

    def run(numbers: Int[Tensor, " some"]) -> Attribution:
        part = prompts.select(numbers)
        rows_per_pass = budget.rows_per_pass(int(part.length.max()))

        def tick(layers_done: int) -> None:
            if progress is not None:
                progress(n_done * n_layers + layers_done * len(part), len(prompts) * n_layers)

        with exclusively(request.host):
            attr = _attributed(request, part, rows_per_pass, tick)
        return attr if keep is None else attr.thresholded(keep)

    def parts() -> Iterator[tuple[Int[Tensor, " some"], Attribution]]:
        nonlocal n_done
        for numbers, part in budget.work_through(prompts.rows_per_prompt, prompts.length, budget.rows_per_stretch, run):
            n_done += len(numbers)
            yield numbers, part

    return parts()


def _attributed(request: Request, prompts: PromptBatch, rows_per_pass: int, tick: Callable[[int], None]) -> Attribution:
    """Attribute prompts that fit into memory together, with all their scores; ``tick`` is told how many layers."""
    host, method = request.host, request.method
    shape = (len(prompts), host.n_layers)
    dtype = torch.promote_types(host.dtype, torch.float32)
    scores = torch.full((*shape, host.d_mlp), float("nan"), device=host.device, dtype=dtype)
    total, expected = (torch.full(shape, float("nan"), device=host.device, dtype=dtype) for _ in range(2))
    n_points = torch.zeros(shape, device=host.device, dtype=torch.long)
    at_sites = sites(host, prompts, request.output, request.layers, rows_per_pass)
    for done, site in enumerate(at_sites, start=1):
        indices = None if request.neurons is None else request.neurons[site.layer]
        if method == "integrated_gradients":
            found = _joint_path(site, request.levels, request.tolerance)
        elif method == "single_path":
            found = _single_path(site, indices, request.levels, request.tolerance)
        else:
            found = BASELINES[method](site, indices)
        scores[:, site.layer] = found.scores.to(dtype)
        if indices is None or len(indices):
            computed = found.scores if indices is None else found.scores[:, indices]
            total[:, site.layer] = computed.sum(-1).to(dtype)
        expected[:, site.layer] = found.expected.to(dtype)
        n_points[:, site.layer] = torch.as_tensor(found.n_points, device=host.device)
        tick(done)
    clean = at_sites[0].clean.to(dtype)
    return Attribution(
        scores=scores,
        total=total,
        clean=clean,
        expected=expected,
        n_points=n_points,
        tolerance=_absolute(request.tolerance, clean),
        prompts=prompts,
        method=method,
        output="activation" if method == "activation" else request.output.name,
        quadrature="none" if method in BASELINES else request.rule,
    )


def _together(prompts: PromptBatch, parts: Iterable[tuple[Int[Tensor, " some"], Attribution]]) -> Attribution:
    """Put the parts of an attribution in the order of the prompts."""
    whole: dict[str, Tensor] = {}
    cells, values, part = [], [], None
    for numbers, part in parts:
        names = ["total", "clean", "expected", "n_points", "tolerance"]
        if part.scores.is_sparse:
            prompt, layer, index = part.scores.indices()
            cells.append(torch.stack([numbers[prompt], layer, index]))
            values.append(part.scores.values())
        else:
            names.append("scores")
        for name in names:
            value = getattr(part, name)
            whole.setdefault(name, value.new_empty(len(prompts), *value.shape[1:]))[numbers] = value
    assert part is not None  # a batch has at least one prompt
    if part.scores.is_sparse:
        shape = (len(prompts), *part.scores.shape[1:])
        whole["scores"] = torch.sparse_coo_tensor(
            torch.cat(cells, 1), torch.cat(values), shape, check_invariants=False
        ).coalesce()
    return replace(part, prompts=prompts, **whole)


@dataclass(frozen=True, kw_only=True)
class _Path:
    """The integral along a path; ``total`` is what the scores along it sum to."""

    gradient: Float[Tensor, "row d_place"]
    total: Float[Tensor, " batch"]
    expected: Float[Tensor, " batch"]
    n_points: Int[Tensor, " batch"]


def _joint_path(site: Site, levels: Sequence[Quadrature], tolerance: float) -> LayerScores:
    """Integrate along ``alpha * w``; one product with ``W_out`` then gives the scores of all neurons."""
    path = _integrate(site, site.post, levels, tolerance)
    scores = site.per_prompt(site.post * site.to_post(path.gradient))
    return LayerScores(scores=scores, expected=path.expected, n_points=path.n_points)


def _single_path(site: Site, indices: Indices, levels: Sequence[Quadrature], tolerance: float) -> LayerScores:
    """Integrate each chosen neuron's own path, with the rest of the layer at its clean activation."""
    assert indices is not None  # checked by `_check_neurons`
    scores = site.per_prompt(torch.full_like(site.post, float("nan")))
    expected, n_points = torch.zeros_like(site.clean), torch.zeros_like(site.everyone)
    for index in indices.tolist():
        alone = torch.zeros_like(site.post)
        alone[:, index] = site.post[:, index]
        path = _integrate(site, alone, levels, tolerance)
        scores[:, index] = path.total
        expected += path.expected
        n_points += path.n_points
    return LayerScores(scores=scores, expected=expected, n_points=n_points)


def _integrate(site: Site, moving: Float[Tensor, "row d_mlp"], levels: Sequence[Quadrature], tolerance: float) -> _Path:
    r"""Average the gradient of the output along ``w + (alpha - 1) * moving``, alpha from 0 to 1.

    ``moving`` is the part of the activation that moves: ``w`` itself on the joint path. Ever finer levels are tried
    until ``moving . gradient``, the sum of the moving neurons' scores, is within the tolerance of a prompt. A level's
    nodes begin with those of the level before; a gradient is added, with its weights, to the sums of all levels that
    have its node, so that none need be kept. The one at alpha = 1 is found for all layers at once.
    """
    allowed = _absolute(tolerance, site.clean)
    left = site.everyone  # prompts still above the tolerance
    n_levels, finest = len(levels), levels[-1]
    weights = site.post.new_zeros(n_levels, len(finest))
    for number, level in enumerate(levels):
        weights[number, : len(level)] = weights.new_tensor(level.weights)
    written = site.written(moving)
    sums = written.new_zeros(len(written), n_levels, written.shape[-1])
    if 1.0 in finest.nodes:  # levels without it give it no weight
        at_one = weights[:, finest.nodes.index(1.0)]
        sums += einsum(site.clean_gradient, at_one, "row d_place, level -> row level d_place")
    gradient, total, expected = torch.zeros_like(written), torch.zeros_like(site.clean), torch.zeros_like(site.clean)
    n_points = torch.zeros_like(left)
    for number, level in enumerate(levels):
        first = len(levels[number - 1]) if number else 0
        inner = [place for place in range(first, len(level)) if level.nodes[place] != 1]
        rows, owner = site.prompts.rows_and_owners(left)
        outputs = None
        if inner:
            alpha = rearrange(weights.new_tensor(level.nodes)[inner], "step -> step 1 1")
            points = site.post[rows] + (alpha - 1) * moving[rows]
            outputs, at_nodes = site.gradients(
                repeat(left, "prompt -> (step prompt)", step=len(inner)),
                rearrange(points, "step row d_mlp -> (step row) d_mlp"),
            )
            at_nodes = rearrange(at_nodes, "(step row) d_place -> row step d_place", step=len(inner))
            here = weights[number:, inner]
            sums[rows, number:] += einsum(at_nodes, here, "row step d_place, level step -> row level d_place")
        if number == 0:  # everyone is left: find P at alpha = 0
            if outputs is None or level.nodes[inner[0]] != 0:
                outputs = site.outputs(left, site.post - moving)
            expected = site.clean - outputs[: len(left)]
        gradient[rows] = sums[rows, number]
        total[left] = torch.zeros_like(total[left]).index_add(0, owner, (written * gradient)[rows].sum(-1))
        n_points[left] = len(level)
        left = left[(total[left] - expected[left]).abs() > allowed[left]]
        if not len(left):
            break
    return _Path(gradient=gradient, total=total, expected=expected, n_points=n_points)


def _absolute(tolerance: float, clean: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    return tolerance * clean.abs().clamp(min=OUTPUT_FLOOR)
