r"""The integral of integrated gradients: the gradient of the output, averaged along a path of one layer's activation.

The path ends at the clean activation ``w``. Its part ``m`` moves (``w`` itself on the joint path, one entry of it on a
single path), and the rest stays:

    v(alpha) = w + (alpha - 1) m,   alpha from 0 to 1
    integral_0^1 m . grad P(v(alpha)) d alpha = P(w) - P(w - m)

The right-hand side takes two evaluations of ``P`` and no quadrature. What the quadrature misses of it is the
completeness gap.

An integral is a generator. It yields the points at which it needs outputs and gradients, receives these, and returns
the ``PathIntegral`` in the end. So the integrals of all layers can be computed together.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.attribution.layer_context import AnswerRows, LayerContext
from kn_lens.attribution.panels import Panels, joined_panels
from kn_lens.attribution.quadrature import Quadrature, nested_levels, weights_up_to_nodes
from kn_lens.attribution.sweep import PathPoints, PointValues, sweep

OUTPUT_FLOOR = 1e-2
"""Outputs smaller than this count as this size when the tolerance is made absolute: 1e-3 then means 1e-5."""

LEAST_BEFORE_CUT = 9
"""Points of the first Clenshaw-Curtis rule after which a path can be cut into panels."""

GAP_AT_NODES = 10.0
"""Bound on the gap of the integral from 0 to any point of a whole path, in tolerances; that to the end has one.

The output is known at every point. Spikes of opposite signs that fall between the points would not show at the end.
"""

SUM_OF_GAPS = 4.0
"""Bound on the sum of the sizes of a path's gaps over its panels, in tolerances. Their sum is bounded by one tolerance.

Where panels are off in both directions, the sum of the scores hides it, and single scores do not."""

POINTS_AT_ONCE = 8
"""Points of a fixed rule whose gradients are in memory together."""


@dataclass(frozen=True, kw_only=True)
class PathRule:
    """The quadrature of a path.

    Attributes:
        name: label of the quadrature, with its number of points.
        fixed: the points and weights of a fixed rule; None for the adaptive one.
        max_points: where the adaptive rule gives up.
        tolerance: largest completeness gap that needs no more points, relative to the clean output.
    """

    name: str
    fixed: Quadrature | None
    max_points: int
    tolerance: float

    @property
    def has_end(self) -> bool:
        """Whether the end of the path, alpha = 1, is a point of the rule."""
        return self.fixed is None or 1.0 in self.fixed.nodes


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


Integration = Generator[PathPoints, PointValues, PathIntegral]
"""An integral on its way."""


def integrate(
    context: LayerContext,
    moving: Float[Tensor, "row d_mlp"],
    rule: PathRule,
) -> Integration:
    r"""Integrate the gradient of the output along ``w + (alpha - 1) * moving``, alpha from 0 to 1.

    The gradient at alpha = 1 comes from one backward pass for all layers.

    Args:
        context: the layer under some prompts.
        moving: the part of the activation that moves, ``m``: ``w`` itself on the joint path.
        rule: the quadrature.

    Returns:
        The integral of each prompt, on its way. Cost: a forward and a backward pass per row and point, from this
        layer up.
    """
    if rule.fixed is None:
        return _integrate_adaptive(context, moving, rule)
    return _integrate_fixed(context, moving, rule.fixed)


def integrate_together(
    integrations: Sequence[Integration],
    progress: Callable[[float], None] | None = None,
) -> list[PathIntegral]:
    """Run integrals of one clean state together: each sweep computes what all of them wait for.

    Args:
        integrations: in the order of their layers.
        progress: called after each pass with an estimate of the share of the work that is done. It never falls.
    """
    integrals: dict[int, PathIntegral] = {}
    requests: dict[int, PathPoints] = {}
    share_before = 0.0

    def advance(number: int, values: PointValues | None) -> None:
        try:
            integration = integrations[number]
            requests[number] = next(integration) if values is None else integration.send(values)
        except StopIteration as finished:
            integrals[number] = finished.value

    def pass_done(n_done: int, n_all: int) -> None:
        # How many more sweeps follow is not known: each counts as half of what is left.
        if progress is not None:
            progress(share_before + (1 - share_before) / 2 * n_done / n_all)

    for number in range(len(integrations)):
        advance(number, None)
    while requests:
        values = dict(zip(requests, sweep(list(requests.values()), pass_done), strict=True))
        share_before += (1 - share_before) / 2
        requests.clear()
        for number in list(values):
            advance(number, values.pop(number))
    return [integrals[number] for number in range(len(integrations))]


def _integrate_fixed(
    context: LayerContext,
    moving: Float[Tensor, "row d_mlp"],
    rule: Quadrature,
) -> Integration:
    """Integrate with the points of a fixed rule."""
    written = context.written(moving)
    gradient = torch.zeros_like(written)
    if 1.0 in rule.nodes:
        weight = rule.weights[rule.nodes.index(1.0)]
        gradient += weight * context.clean_gradients.of_layer(context.layer)
    silent = None  # P(w - m)
    inner = [number for number, node in enumerate(rule.nodes) if node != 1]
    for first in range(0, len(inner), POINTS_AT_ONCE):
        numbers = inner[first : first + POINTS_AT_ONCE]
        alpha = moving.new_tensor([rule.nodes[number] for number in numbers])
        weights = moving.new_tensor([rule.weights[number] for number in numbers])
        values = yield PathPoints(
            context=context,
            moving=moving,
            prompts=repeat(context.all_prompts, "prompt -> (step prompt)", step=len(numbers)),
            alpha=repeat(alpha, "step -> (step prompt)", prompt=len(context.clean)),
        )
        gradients = rearrange(values.gradients, "(step row) d_gradient -> step row d_gradient", step=len(numbers))
        gradient += einsum(weights, gradients, "step, step row d_gradient -> row d_gradient")
        if rule.nodes[numbers[0]] == 0:
            silent = values.outputs[: len(context.clean)]
    if silent is None:
        silent = context.outputs(context.all_prompts, context.post - moving)
    return PathIntegral(
        gradient=gradient,
        total=context.sum_rows(written * gradient).sum(-1),
        expected=context.clean - silent,
        n_points=torch.full_like(context.all_prompts, len(rule)),
    )


@dataclass(frozen=True, kw_only=True)
class _Paths:
    """The paths of a layer, one for each prompt, with the rows of an answer on an axis of their own.

    Attributes:
        context: the layer under some prompts.
        moving: the part of the activation that moves, ``m``.
        answers: the rows of each prompt.
        written: what ``m`` adds to the context's ``gradient_activation``: the derivative of it by alpha.
    """

    context: LayerContext
    moving: Float[Tensor, "row d_mlp"]
    answers: AnswerRows
    written: Float[Tensor, "path answer_row d_gradient"]

    @classmethod
    def of(cls, context: LayerContext, moving: Float[Tensor, "row d_mlp"]) -> "_Paths":
        """Return the paths along which a part of the layer's activation moves."""
        answers = AnswerRows.of(context.prompts)
        written = answers.padded(context.written(moving))
        return cls(context=context, moving=moving, answers=answers, written=written)

    def points(self, paths: Int[Tensor, " chosen"], alpha: Float[Tensor, "chosen point"]) -> PathPoints:
        """Return points on some paths, repeats allowed; as many on each."""
        return PathPoints(
            context=self.context,
            moving=self.moving,
            prompts=repeat(paths, "chosen -> (point chosen)", point=alpha.shape[1]),
            alpha=rearrange(alpha, "chosen point -> (point chosen)"),
        )

    def values(
        self,
        paths: Int[Tensor, " chosen"],
        values: PointValues,
    ) -> tuple[Float[Tensor, "chosen point"], Float[Tensor, "chosen answer_row point d_gradient"]]:
        """Return outputs and gradients at ``points(paths, ...)``."""
        n_points = len(values.outputs) // len(paths)
        outputs = rearrange(values.outputs, "(point chosen) -> chosen point", point=n_points)
        gradients = self.answers.padded(values.gradients, repeat(paths, "chosen -> (point chosen)", point=n_points))
        by_path = "(point chosen) answer_row d_gradient -> chosen answer_row point d_gradient"
        return outputs, rearrange(gradients, by_path, point=n_points)

    def slopes(
        self,
        paths: Int[Tensor, " chosen"],
        gradients: Float[Tensor, "chosen answer_row point d_gradient"],
    ) -> Float[Tensor, "chosen point"]:
        """Return the derivative of the output by alpha."""
        return einsum(
            self.written[paths],
            gradients,
            "chosen answer_row d_gradient, chosen answer_row point d_gradient -> chosen point",
        )


def _integrate_adaptive(
    context: LayerContext,
    moving: Float[Tensor, "row d_mlp"],
    rule: PathRule,
) -> Integration:
    """Integrate with Clenshaw-Curtis rules of 3, 5, 9, ... points while these converge, and with panels where not."""
    paths = _Paths.of(context, moving)
    allowed = absolute_tolerance(rule.tolerance, context.clean)
    mean_gradient = torch.zeros_like(paths.written)
    expected = torch.zeros_like(context.clean)
    n_points = torch.zeros_like(context.all_prompts)

    levels = nested_levels(rule.max_points)
    unconverged = context.all_prompts
    outputs = context.clean.new_zeros(len(unconverged), 0)
    gradients = paths.written[:, :, None][:, :, :0]
    gap = torch.full_like(context.clean, torch.inf)  # of the unconverged paths, in the unit of the bound at the end
    to_cut: list[Panels] = []
    for number, level in enumerate(levels):
        # The first level has both ends of the path. The gradient at alpha = 1 costs no point of this layer.
        new_nodes = [node for node in level.nodes[outputs.shape[1] :] if node != 1]
        alpha = repeat(moving.new_tensor(new_nodes), "point -> path point", path=len(unconverged))
        values = yield paths.points(unconverged, alpha)
        new_outputs, new_gradients = paths.values(unconverged, values)
        outputs = torch.cat([outputs, new_outputs], dim=1)
        gradients = torch.cat([gradients, new_gradients], dim=2)
        if number == 0:
            expected = context.clean - outputs[:, 0]
            at_end = paths.answers.padded(context.clean_gradients.of_layer(context.layer))
            outputs = torch.cat([outputs, context.clean[:, None]], dim=1)
            gradients = torch.cat([gradients, at_end[:, :, None]], dim=2)
        weights = moving.new_tensor(level.weights)
        of_level = einsum(weights, gradients, "point, path answer_row point d_gradient -> path answer_row d_gradient")
        mean_gradient[unconverged] = of_level
        n_points[unconverged] = len(level)
        slopes = paths.slopes(unconverged, gradients)
        weights_to_nodes = moving.new_tensor(weights_up_to_nodes(level))
        up_to_nodes = einsum(slopes, weights_to_nodes, "path point, node point -> path node")
        gap_at_nodes = (up_to_nodes - (outputs - outputs[:, :1])).abs()
        gap_at_end = gap_at_nodes[:, level.nodes.index(1.0)]
        gap_before, gap = gap, torch.maximum(gap_at_end, gap_at_nodes.amax(-1) / GAP_AT_NODES)
        bound = allowed[unconverged]
        is_open = gap > bound
        if len(level) >= LEAST_BEFORE_CUT and level is not levels[-1]:
            # If each of the next two levels divides the gap by as much as this one did, will it be small enough?
            is_slow = is_open & (gap * (gap / gap_before).square() > bound)
            if is_slow.any():
                ascending = torch.tensor(level.nodes, device=outputs.device).argsort()
                panels = Panels.of_whole_paths(
                    path=unconverged[is_slow],
                    outputs=outputs[is_slow][:, ascending],
                    slopes=slopes[is_slow][:, ascending],
                    gradients=gradients[is_slow][:, :, ascending],
                )
                to_cut.append(panels)
                mean_gradient[panels.path] = 0
                is_open &= ~is_slow
        unconverged, gap = unconverged[is_open], gap[is_open]
        outputs, gradients = outputs[is_open], gradients[is_open]
        if not len(unconverged):
            break
    if to_cut:
        panels = joined_panels(to_cut)
        mean_of_panels, n_points = yield from _refine_panels(paths, panels, allowed, n_points, rule.max_points)
        mean_gradient += mean_of_panels
    gradient = paths.answers.rows(mean_gradient)
    return PathIntegral(
        gradient=gradient,
        total=(paths.written * mean_gradient).sum((-1, -2)),
        expected=expected,
        n_points=n_points,
    )


def _refine_panels(
    paths: _Paths,
    panels: Panels,
    allowed: Float[Tensor, " path"],
    n_points: Int[Tensor, " path"],
    max_points: int,
) -> Generator[PathPoints, PointValues, tuple[Float[Tensor, "path answer_row d_gradient"], Int[Tensor, " path"]]]:
    """Refine the panels of some paths until their gaps are within bounds.

    Args:
        paths: all paths of the layer.
        panels: those of the paths to integrate.
        allowed: bound on the completeness gap of each path.
        n_points: points of each path until now.
        max_points: points that a path may take.

    Returns:
        The integral of the gradient along each path, zero for paths without panels; and the points of each path.
    """
    n_paths = len(allowed)
    mean_gradient = torch.zeros_like(paths.written)
    while True:
        finished = panels.within(allowed, SUM_OF_GAPS * allowed)
        mean_gradient += panels.of_paths(finished).mean_gradients(n_paths)
        panels = panels.of_paths(~finished)
        cut, chosen = panels.cut(n_paths)
        n_new = torch.zeros_like(n_points).index_add(0, cut.path, 2 * chosen.long())
        given_up = n_points + n_new > max_points
        mean_gradient += panels.of_paths(given_up).mean_gradients(n_paths)
        chosen = chosen[~given_up[cut.path]]
        panels = cut.of_paths(~given_up)
        if not len(panels):
            return mean_gradient, n_points
        refined = panels.select(chosen)
        values = yield paths.points(refined.path, refined.new_points())
        outputs, gradients = paths.values(refined.path, values)
        panels = panels.refined(chosen, outputs, paths.slopes(refined.path, gradients), gradients)
        n_points = n_points + torch.where(given_up, 0, n_new)


def absolute_tolerance(
    tolerance: float,
    clean: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Return the largest gap of each prompt that counts as converged, in the unit of the output."""
    return tolerance * clean.abs().clamp(min=OUTPUT_FLOOR)
