r"""The integral of integrated gradients: the gradient of the output, averaged along a path of one layer's activation.

The path ends at the clean activation ``w``. Its part ``m`` moves (``w`` itself on the joint path, one entry of it on a
single path), and the rest stays:

    v(alpha) = w + (alpha - 1) m,   alpha from 0 to 1
    integral_0^1 m . grad P(v(alpha)) d alpha = P(w) - P(w - m)

The right-hand side takes two evaluations of ``P`` and no quadrature. What the quadrature misses of it is the
completeness gap, by which refinement stops.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.attribution.layer_context import LayerContext
from kn_lens.attribution.quadrature import Quadrature

OUTPUT_FLOOR = 1e-2
"""Outputs smaller than this count as this size when the tolerance is made absolute: 1e-3 then means 1e-5."""


@dataclass(frozen=True, kw_only=True)
class PathRule:
    """The quadrature of a path.

    Attributes:
        name: label of the quadrature, with its number of points.
        levels: nested rules, coarsest first; a fixed rule is one level.
        tolerance: largest completeness gap that needs no finer level, relative to the clean output.
    """

    name: str
    levels: tuple[Quadrature, ...]
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class PathIntegral:
    """The integral along a path.

    Attributes:
        gradient: mean gradient along the path, with respect to the context's ``gradient_activation``.
        total: the integral itself, ``m`` times the mean gradient, which the scores of the moving neurons sum to.
        expected: ``P(w) - P(w - m)``, what completeness says that the integral is.
        n_points: number of gradients in the mean.
    """

    gradient: Float[Tensor, "row d_gradient"]
    total: Float[Tensor, " batch"]
    expected: Float[Tensor, " batch"]
    n_points: Int[Tensor, " batch"]


def integrate(
    context: LayerContext,
    moving: Float[Tensor, "row d_mlp"],
    rule: PathRule,
) -> PathIntegral:
    r"""Integrate the gradient of the output along ``w + (alpha - 1) * moving``, alpha from 0 to 1.

    Finer levels follow until the completeness gap of a prompt is within the tolerance. The nodes of a level begin with
    those of the level before. A gradient is added at once, with its weights, to the sums of all levels that have its
    node, so that no gradient is kept. The gradient at alpha = 1 comes from one backward pass for all layers.

    Args:
        context: the layer under some prompts.
        moving: the part of the activation that moves, ``m``: ``w`` itself on the joint path.
        rule: the quadrature.

    Returns:
        The integral of each prompt. Cost: a forward and a backward pass per row and node, from this layer up.
    """
    levels = rule.levels
    allowed_gap = absolute_tolerance(rule.tolerance, context.clean)
    weights = _weights_by_level(levels, context.post)
    written = context.written(moving)
    sums = written.new_zeros(len(written), len(levels), written.shape[-1])
    finest = levels[-1]
    if 1.0 in finest.nodes:  # levels without it give it no weight
        weights_at_end = weights[:, finest.nodes.index(1.0)]
        clean_gradient = context.clean_gradients.of_layer(context.layer)
        sums += einsum(clean_gradient, weights_at_end, "row d_gradient, level -> row level d_gradient")

    gradient = torch.zeros_like(written)
    total = torch.zeros_like(context.clean)
    expected = torch.zeros_like(context.clean)
    unconverged = context.all_prompts  # prompts whose gap is above the tolerance
    n_points = torch.zeros_like(unconverged)
    n_before = 0
    for number, level in enumerate(levels):
        new_nodes = [node for node in range(n_before, len(level)) if level.nodes[node] != 1]
        rows, owner = context.prompts.rows_and_owners(unconverged)
        outputs = None
        if new_nodes:
            alpha = rearrange(weights.new_tensor(level.nodes)[new_nodes], "step -> step 1 1")
            points = context.post[rows] + (alpha - 1) * moving[rows]
            outputs, gradients = context.gradients(
                repeat(unconverged, "prompt -> (step prompt)", step=len(new_nodes)),
                rearrange(points, "step row d_mlp -> (step row) d_mlp"),
            )
            gradients = rearrange(
                gradients,
                "(step row) d_gradient -> row step d_gradient",
                step=len(new_nodes),
            )
            new_weights = weights[number:, new_nodes]
            sums[rows, number:] += einsum(
                gradients,
                new_weights,
                "row step d_gradient, level step -> row level d_gradient",
            )
        if number == 0:  # every prompt is unconverged; P(w - m) is the output at alpha = 0
            if outputs is None or level.nodes[new_nodes[0]] != 0:
                outputs = context.outputs(unconverged, context.post - moving)
            expected = context.clean - outputs[: len(unconverged)]
        gradient[rows] = sums[rows, number]
        row_terms = (written * gradient)[rows].sum(-1)
        total[unconverged] = torch.zeros_like(total[unconverged]).index_add(0, owner, row_terms)
        n_points[unconverged] = len(level)
        gap = (total - expected).abs()[unconverged]
        unconverged = unconverged[gap > allowed_gap[unconverged]]
        n_before = len(level)
        if not len(unconverged):
            break
    return PathIntegral(gradient=gradient, total=total, expected=expected, n_points=n_points)


def absolute_tolerance(
    tolerance: float,
    clean: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Return the largest gap of each prompt that counts as converged, in the unit of the output."""
    return tolerance * clean.abs().clamp(min=OUTPUT_FLOOR)


def _weights_by_level(
    levels: Sequence[Quadrature],
    like: Tensor,
) -> Float[Tensor, "level step"]:
    """Return the weight of every node of the finest level in each level; zero where a level lacks the node."""
    weights = like.new_zeros(len(levels), len(levels[-1]))
    for number, level in enumerate(levels):
        weights[number, : len(level)] = weights.new_tensor(level.weights)
    return weights
