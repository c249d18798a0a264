r"""Knowledge attribution: how much of the answer's probability each neuron of a layer carries.

Let ``w`` be the activation (``hook_post``) of one layer at the read position and ``P(v)`` the output when that
activation is replaced by ``v`` and everything above is recomputed. Integrated gradients (Sundararajan et al. 2017)
from
``0`` to ``w``, as Dai et al. (2022), equation 2, apply them to neurons:

    Attr_i = w_i * integral_0^1 dP(alpha * w) / dw_i  d alpha                      (joint path: the whole layer moves)
    sum_i Attr_i = P(w) - P(0)                                                     (completeness)

The paper's formula can also be read as moving neuron ``i`` alone (``method="single_path"``); then ``Attr_i`` is
exactly ``P(w) - P(w with w_i = 0)``. A positive score means that the neuron's activation speaks for the answer.
Scores have the output's unit. What the quadrature misses of the completeness sum is ``Attribution.completeness_gap``,
the error bar of every (prompt, layer).

An answer of several tokens is read in several rows (see ``PromptBatch``); its rows move together, and a neuron's
score is the sum over them, so that completeness holds for the probability of the whole answer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.baselines import BASELINES, Indices, LayerScores
from kn_lens.engine import Site, sites, stretches
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.hosts import Host, host_of
from kn_lens.outputs import Output, resolve_output
from kn_lens.prompts import PromptBatch
from kn_lens.quadrature import RULES, Quadrature, nested_levels
from kn_lens.quadrature import quadrature as fixed_rule

Method = Literal[
    "integrated_gradients", "single_path", "activation", "gradient_x_activation", "log_prob_gain", "ablation"
]
Preset = Literal["paper", "official"]

PRESETS = {"paper": ("right", 20), "official": ("left", 20)}
"""The quadratures of the paper's equation 3 and of its released code."""

OUTPUT_FLOOR = 1e-2
"""Outputs smaller than this count as this size when the tolerance is made absolute: 1e-3 then means 1e-5."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Scores of every neuron for every prompt, with their error bars.

    Attributes:
        scores: in the output's unit (probability by default); NaN where only chosen neurons or layers were computed.
        clean: the output of the unaltered model.
        expected: what completeness says that a layer's scores sum to: ``P(w) - P(0)``, for the methods on chosen
            neurons the sum of their ``P(w) - P(w with w_i = 0)``; NaN for methods that promise no sum.
        n_points: gradient (for ``ablation`` and ``log_prob_gain``: forward) evaluations spent on each pair.
        tolerance: the largest absolute gap that counts as converged.
        prompts: what was asked.
        method: as given to ``attribute``.
        output: name of the output.
        quadrature: the rule, with its number of points; ``none`` for methods without an integral.
    """

    scores: Float[Tensor, "batch n_layers d_mlp"]
    clean: Float[Tensor, " batch"]
    expected: Float[Tensor, "batch n_layers"]
    n_points: Int[Tensor, "batch n_layers"]
    tolerance: Float[Tensor, " batch"]
    prompts: PromptBatch
    method: str
    output: str
    quadrature: str

    @property
    def completeness_gap(self) -> Float[Tensor, "batch n_layers"]:
        """``sum_i score_i - expected``: the error bar of each (prompt, layer), signed, in the output's unit."""
        return self.scores.nansum(-1) - self.expected

    @property
    def converged(self) -> Bool[Tensor, "batch n_layers"]:
        """Whether the gap is within the tolerance; true where the method promises no sum."""
        return ~(self.completeness_gap.abs() > self.tolerance[:, None])

    @property
    def unconverged(self) -> list[tuple[int, int]]:
        """The (prompt, layer) pairs whose gap is above the tolerance."""
        return [(prompt, layer) for prompt, layer in (~self.converged).nonzero().tolist()]


@runtime_checkable
class NeuronLike(Protocol):
    """Anything that names a neuron."""

    @property
    def layer(self) -> int:
        """Zero-based layer."""
        ...

    @property
    def index(self) -> int:
        """Row of the layer's ``W_out``."""
        ...


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
    rows_per_pass: int = 256,
    progress: Callable[[int, int], None] | None = None,
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
        tolerance: for the gap, relative to the size of the clean output (taken as at least ``OUTPUT_FLOOR``).
        max_points: where ``adaptive`` gives up; ``Attribution.unconverged`` lists the pairs that got there.
        layers: only these; the others' scores are NaN.
        neurons: the chosen ones, required by ``single_path``, optional for ``ablation`` and ``log_prob_gain``, whose
            cost grows with their number.
        rows_per_pass: upper bound on the rows of one forward pass.
        progress: called with (done, total), counted in (prompt, layer) pairs.

    Returns:
        An ``Attribution``. Cost: one forward pass per row, then for each (prompt, layer) ``n_points`` forward passes
        with a backward pass through the layers above; ``ablation`` and ``log_prob_gain`` one forward pass per neuron.

    Raises:
        ArgumentError: an argument out of range, or two that exclude each other.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, [kn.FactSet.world().find("Ireland", relation="P36")])
        >>> attr = kn.attribute(model, prompts)
        >>> bool(attr.converged.all())
        True
    """
    host = host_of(model)
    if method not in get_args(Method):
        known = get_args(Method)
        raise ArgumentError(
            f"Unknown method {method!r}; expected one of {', '.join(known)}.{did_you_mean(method, known)}"
        )
    levels, rule_name = _resolve_rule(preset, quadrature, n_steps, max_points)
    chosen_layers = _check_layers(host, layers)
    chosen = _check_neurons(host, method, neurons, chosen_layers)
    readout = resolve_output(
        "log_prob" if method == "log_prob_gain" else output, has_contrast=prompts.contrast_ids is not None
    )
    if not 0 < tolerance < float("inf"):
        raise ArgumentError(f"tolerance={tolerance}; expected a positive number, such as 1e-3.")
    prompts.check_for(host)
    in_turn = stretches(prompts, rows_per_pass)
    host.check_finite()

    def score(site: Site, indices: Indices) -> LayerScores:
        if method == "integrated_gradients":
            return _integrate(site, site.post, levels, tolerance)
        if method == "single_path":
            return _single_path(site, indices, levels, tolerance)
        return BASELINES[method](site, indices)

    shape = (len(prompts), host.n_layers)
    dtype = torch.promote_types(host.dtype, torch.float32)
    scores = torch.full((*shape, host.d_mlp), float("nan"), device=host.device, dtype=dtype)
    expected = torch.full(shape, float("nan"), device=host.device, dtype=dtype)
    n_points = torch.zeros(shape, device=host.device, dtype=torch.long)
    clean = torch.zeros(len(prompts), device=host.device, dtype=dtype)
    done = 0
    for prompt_ids in in_turn:
        for site in sites(host, prompts.select(prompt_ids), readout, chosen_layers, rows_per_pass):
            result = score(site, None if chosen is None else chosen[site.layer])
            scores[prompt_ids, site.layer] = result.scores.to(dtype)
            expected[prompt_ids, site.layer] = result.expected.to(dtype)
            n_points[prompt_ids, site.layer] = torch.as_tensor(result.n_points, device=host.device)
            clean[prompt_ids] = site.clean.to(dtype)
            done += len(prompt_ids)
            if progress is not None:
                progress(done, len(prompts) * len(chosen_layers))
    return Attribution(
        scores=scores,
        clean=clean,
        expected=expected,
        n_points=n_points,
        tolerance=_absolute(tolerance, clean),
        prompts=prompts,
        method=method,
        output="activation" if method == "activation" else readout.name,
        quadrature="none" if method in BASELINES else rule_name,
    )


def _integrate(
    site: Site, direction: Float[Tensor, "row d_mlp"], levels: Sequence[Quadrature], tolerance: float
) -> LayerScores:
    r"""Integrate along ``w + (alpha - 1) * direction``, alpha from 0 to 1; the joint path has ``direction = w``.

    ``score_i = direction_i * sum_k weight_k * dP/dw_i`` at node k, on ever finer levels until the completeness gap of a
    prompt is within its tolerance. A level's nodes begin with those of the level before.
    """
    post = site.post
    allowed = _absolute(tolerance, site.clean)
    left = site.everyone  # prompts still above the tolerance
    scores = site.per_prompt(torch.zeros_like(post))
    expected = torch.zeros_like(site.clean)
    n_points = torch.zeros_like(left)
    gradients = post.new_zeros(len(post), 0, post.shape[-1])  # of the rows left, at every node so far
    for level in levels:
        new = torch.tensor(level.nodes[gradients.shape[1] :], device=post.device, dtype=post.dtype)
        rows, owner = site.prompts.rows_and_owners(left)
        alpha = rearrange(new, "step -> step 1 1")
        points = rearrange(post[rows] + (alpha - 1) * direction[rows], "step row d_mlp -> (step row) d_mlp")
        outputs, at_new = site.gradients(repeat(left, "prompt -> (step prompt)", step=len(new)), points)
        at_new = rearrange(at_new, "(step row) d_mlp -> row step d_mlp", step=len(new))
        gradients = torch.cat([gradients, at_new], dim=1)
        if level is levels[0]:  # everyone is left: find P at alpha = 0
            at_zero = outputs[: len(left)] if new[0] == 0 else site.outputs(left, post - direction)
            expected = site.clean - at_zero

        weights = torch.tensor(level.weights, device=post.device, dtype=post.dtype)
        mean_gradient = einsum(gradients, weights, "row step d_mlp, step -> row d_mlp")
        scores[left] = torch.zeros_like(scores[left]).index_add(0, owner, direction[rows] * mean_gradient)
        n_points[left] = len(level)
        unfinished = (scores[left].sum(-1) - expected[left]).abs() > allowed[left]
        left, gradients = left[unfinished], gradients[unfinished[owner]]
        if not len(left):
            break
    return LayerScores(scores=scores, expected=expected, n_points=n_points)


def _single_path(site: Site, indices: Indices, levels: Sequence[Quadrature], tolerance: float) -> LayerScores:
    """Integrate each chosen neuron's own path, with the rest of the layer at its clean activation."""
    assert indices is not None  # checked by `_check_neurons`
    scores = site.per_prompt(torch.full_like(site.post, float("nan")))
    expected, n_points = torch.zeros_like(site.clean), torch.zeros_like(site.everyone)
    for index in indices.tolist():
        direction = torch.zeros_like(site.post)
        direction[:, index] = site.post[:, index]
        path = _integrate(site, direction, levels, tolerance)
        scores[:, index] = path.scores[:, index]
        expected += path.expected
        n_points += path.n_points
    return LayerScores(scores=scores, expected=expected, n_points=n_points)


def _absolute(tolerance: float, clean: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    return tolerance * clean.abs().clamp(min=OUTPUT_FLOOR)


def _resolve_rule(
    preset: str | None, rule: str, n_steps: int | None, max_points: int
) -> tuple[tuple[Quadrature, ...], str]:
    """Return the levels of the quadrature that is asked for, coarsest first, and its name."""
    if preset is not None:
        if preset not in PRESETS:
            raise ArgumentError(
                f"Unknown preset {preset!r}; expected one of {', '.join(PRESETS)}.{did_you_mean(preset, PRESETS)}"
            )
        if rule != "adaptive" or n_steps is not None:
            raise ArgumentError(
                f"preset={preset!r} fixes the quadrature: leave quadrature and n_steps out, or the preset."
            )
        rule, n_steps = PRESETS[preset]
    if rule == "adaptive":
        if n_steps is not None:
            raise ArgumentError(
                f"n_steps={n_steps} with quadrature='adaptive', which chooses the number itself: "
                "bound it with max_points, or name a fixed rule such as 'gauss-legendre'."
            )
        levels = nested_levels(max_points)
        return levels, f"adaptive clenshaw-curtis, 3 to {len(levels[-1])} points"
    if rule not in RULES:
        known = ("adaptive", *RULES)
        raise ArgumentError(
            f"Unknown quadrature {rule!r}; expected one of {', '.join(known)}.{did_you_mean(rule, known)}"
        )
    n_steps = 20 if n_steps is None else n_steps
    return (fixed_rule(rule, n_steps),), f"{rule}, {n_steps} points"


def _check_layers(host: Host, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        return list(range(host.n_layers))
    for layer in layers:
        host.hook_post(layer)  # raises on a layer that is not there
    if not layers or len(set(layers)) != len(layers):
        raise ArgumentError(f"layers={list(layers)}; expected at least one layer, and none twice.")
    return list(layers)


def _check_neurons(
    host: Host, method: str, neurons: Iterable[NeuronLike] | None, layers: list[int]
) -> dict[int, Indices] | None:
    """Return the chosen indices of every layer, or None for all neurons."""
    if neurons is None:
        if method == "single_path":
            raise ArgumentError("single_path integrates one neuron at a time: name them with neurons=NeuronSet(...).")
        return None
    if method not in ("single_path", "ablation", "log_prob_gain"):
        raise ArgumentError(f"{method} scores every neuron at once: leave neurons out, and select from the scores.")
    chosen: dict[int, list[int]] = {layer: [] for layer in layers}
    for neuron in neurons:
        if neuron.layer not in chosen:
            raise ArgumentError(f"{neuron} is not in the layers to attribute, {layers}.")
        if not 0 <= neuron.index < host.d_mlp:
            raise ArgumentError(f"{neuron}: index must be between 0 and {host.d_mlp - 1} (d_mlp={host.d_mlp}).")
        chosen[neuron.layer].append(neuron.index)
    return {
        layer: torch.tensor(sorted(indices), device=host.device, dtype=torch.long) for layer, indices in chosen.items()
    }
