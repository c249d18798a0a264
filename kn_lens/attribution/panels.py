r"""Panels of a path: a quadrature that puts its points where the integrand needs them.

Clenshaw-Curtis rules have their points at equal steps of an angle,

    alpha = (1 - cos theta) / 2,   integral_0^1 f d alpha = integral_0^pi f (sin theta) / 2 d theta.

A path on which they converge too slowly is cut into panels: intervals of theta with three or five points at equal
steps. On a panel, f is integrated as the polynomial in theta through its points. A panel of three points is refined by
two more between them; one of five is cut into two halves of three. So every point is used until the end.

A pass at a point computes the output P there, not only its gradient. What a panel should integrate to is therefore
known without any quadrature,

    integral_a^b dP/d alpha d alpha = P(b) - P(a),

and its gap, the difference from what its points give, is its error. The panels with the largest gaps are refined. This
is adaptive quadrature (W. M. McKeeman, "Algorithm 145", Communications of the ACM 5, 1962) with an exact error in the
place of an estimate. It is the error of the sum of the scores; errors of single scores can be larger, if they cancel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from einops import einsum, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

REFINED_SHARE = 0.5
"""Panels whose gap is at least this share of the largest of their path are refined."""

N_MOMENTS = 16
"""Points of the Gauss-Legendre rule for the weights; polynomials of degree 4 times a sine need fewer in float64."""


@dataclass(frozen=True, kw_only=True)
class Panels:
    """The panels of some paths, in any order. Values at points that a panel does not have are zero.

    Attributes:
        path: the number of the path.
        start: where the panel begins, theta.
        width: its length.
        has_five: whether it has five points, or only the first, third and fifth of them.
        outputs: P at the points.
        slopes: dP/d alpha at the points.
        gradients: gradient of P at the points, for each row of the answer.
    """

    path: Int[Tensor, " panel"]
    start: Float[Tensor, " panel"]
    width: Float[Tensor, " panel"]
    has_five: Bool[Tensor, " panel"]
    outputs: Float[Tensor, "panel 5"]
    slopes: Float[Tensor, "panel 5"]
    gradients: Float[Tensor, "panel answer_row 5 d_gradient"]

    @classmethod
    def of_whole_paths(
        cls,
        path: Int[Tensor, " path"],
        outputs: Float[Tensor, "path point"],
        slopes: Float[Tensor, "path point"],
        gradients: Float[Tensor, "path answer_row point d_gradient"],
    ) -> "Panels":
        """Return the panels of some paths, from values at the 9, 17, ... points of Clenshaw-Curtis, alpha ascending.

        Each panel has five of the points.
        """
        n_panels = outputs.shape[1] // 4
        width = math.pi / n_panels
        parts = []
        for number in range(n_panels):
            points = slice(4 * number, 4 * number + 5)
            part = cls(
                path=path,
                start=torch.full_like(outputs[:, 0], number * width),
                width=torch.full_like(outputs[:, 0], width),
                has_five=torch.ones_like(path, dtype=torch.bool),
                outputs=outputs[:, points],
                slopes=slopes[:, points],
                gradients=gradients[:, :, points],
            )
            parts.append(part)
        return joined_panels(parts)

    def __len__(self) -> int:
        """Return the number of panels."""
        return len(self.path)

    def select(self, chosen: Bool[Tensor, " panel"]) -> "Panels":
        """Return some of the panels."""
        return Panels(
            path=self.path[chosen],
            start=self.start[chosen],
            width=self.width[chosen],
            has_five=self.has_five[chosen],
            outputs=self.outputs[chosen],
            slopes=self.slopes[chosen],
            gradients=self.gradients[chosen],
        )

    def of_paths(self, chosen: Bool[Tensor, " path"]) -> "Panels":
        """Return the panels of some paths."""
        return self.select(chosen[self.path])

    def weights(self) -> Float[Tensor, "panel 5"]:
        """Return the weight of each point in the integral: of its Lagrange polynomial, times (sin theta) / 2."""
        nodes, bases = _moment_rule()
        bases = self.width.new_tensor(bases)
        theta = self.start[:, None] + self.width[:, None] * self.width.new_tensor(nodes)
        density = self.width[:, None] * theta.sin() / 2
        of_three, of_five = density @ bases[0], density @ bases[1]
        return torch.where(self.has_five[:, None], of_five, of_three)

    def gaps(self) -> Float[Tensor, " panel"]:
        """Return what the points of each panel give, minus the difference of the outputs at its ends."""
        return (self.weights() * self.slopes).sum(-1) - (self.outputs[:, 4] - self.outputs[:, 0])

    def within(
        self,
        gap: Float[Tensor, " path"],
        sum_of_gaps: Float[Tensor, " path"],
    ) -> Bool[Tensor, " path"]:
        """Return which paths are done.

        Args:
            gap: bound on the sum of the gaps of each path.
            sum_of_gaps: bound on the sum of their sizes.
        """
        gaps = self.gaps()
        zeros = torch.zeros_like(gap)
        total = zeros.index_add(0, self.path, gaps).abs()
        total_size = zeros.index_add(0, self.path, gaps.abs())
        return (total <= gap) & (total_size <= sum_of_gaps)

    def mean_gradients(self, n_paths: int) -> Float[Tensor, "path answer_row d_gradient"]:
        """Return the integral of the gradient along each path; zero for paths without panels."""
        of_panels = einsum(
            self.weights(),
            self.gradients,
            "panel point, panel answer_row point d_gradient -> panel answer_row d_gradient",
        )
        return of_panels.new_zeros(n_paths, *of_panels.shape[1:]).index_add(0, self.path, of_panels)

    def cut(self, n_paths: int) -> tuple["Panels", Bool[Tensor, " panel"]]:
        """Cut panels of five points whose gap is large, and return all panels with the choice of those to refine.

        The panels to refine have three points and at least ``REFINED_SHARE`` of the largest gap of their path.
        """
        panels = self
        while True:
            gaps = panels.gaps().abs()
            largest = gaps.new_zeros(n_paths).scatter_reduce(0, panels.path, gaps, "amax")
            is_large = gaps >= REFINED_SHARE * largest[panels.path]
            to_cut = is_large & panels.has_five
            if not to_cut.any():
                return panels, is_large
            panels = joined_panels([panels.select(~to_cut), panels.select(to_cut)._halves()])

    def new_points(self) -> Float[Tensor, "panel 2"]:
        """Return where the second and the fourth point of each panel lie, alpha."""
        theta = self.start[:, None] + self.width[:, None] * self.width.new_tensor([0.25, 0.75])
        return (theta / 2).sin().square()

    def refined(
        self,
        chosen: Bool[Tensor, " panel"],
        outputs: Float[Tensor, "chosen 2"],
        slopes: Float[Tensor, "chosen 2"],
        gradients: Float[Tensor, "chosen answer_row 2 d_gradient"],
    ) -> "Panels":
        """Return all panels, with values at the new points of the chosen ones."""
        old = self.select(chosen)
        new_points = torch.tensor([1, 3], device=outputs.device)
        new = Panels(
            path=old.path,
            start=old.start,
            width=old.width,
            has_five=torch.ones_like(old.has_five),
            outputs=old.outputs.index_copy(1, new_points, outputs),
            slopes=old.slopes.index_copy(1, new_points, slopes),
            gradients=old.gradients.index_copy(2, new_points, gradients),
        )
        return joined_panels([self.select(~chosen), new])

    def _halves(self) -> "Panels":
        """Return the two halves of each panel of five points: panels of three."""
        half_width = self.width / 2
        return Panels(
            path=repeat(self.path, "panel -> (half panel)", half=2),
            start=torch.cat([self.start, self.start + half_width]),
            width=repeat(half_width, "panel -> (half panel)", half=2),
            has_five=torch.zeros_like(repeat(self.has_five, "panel -> (half panel)", half=2)),
            outputs=torch.cat([_spread(self.outputs[:, :3], 1), _spread(self.outputs[:, 2:], 1)]),
            slopes=torch.cat([_spread(self.slopes[:, :3], 1), _spread(self.slopes[:, 2:], 1)]),
            gradients=torch.cat([_spread(self.gradients[:, :, :3], 2), _spread(self.gradients[:, :, 2:], 2)]),
        )


def _moment_rule() -> tuple[np.ndarray, np.ndarray]:
    """Return points in [0, 1], and by the number of points of a panel its weighted Lagrange polynomials there."""
    nodes, weights = np.polynomial.legendre.leggauss(N_MOMENTS)
    nodes, weights = (nodes + 1) / 2, weights / 2
    bases = np.zeros((2, N_MOMENTS, 5))
    for number, places in enumerate(([0, 2, 4], [0, 1, 2, 3, 4])):
        for place in places:
            others = [other / 4 for other in places if other != place]
            polynomial = np.prod([(nodes - other) / (place / 4 - other) for other in others], axis=0)
            bases[number, :, place] = weights * polynomial
    return nodes, bases


def _spread(values: Float[Tensor, "..."], axis: int) -> Float[Tensor, "..."]:
    """Return values at three points as the first, third and fifth of five."""
    shape = list(values.shape)
    shape[axis] = 5
    places = torch.tensor([0, 2, 4], device=values.device)
    return values.new_zeros(shape).index_copy(axis, places, values)


def joined_panels(parts: Sequence[Panels]) -> Panels:
    """Return all panels of several."""
    joined = {}
    for field in fields(Panels):
        joined[field.name] = torch.cat([getattr(part, field.name) for part in parts])
    return Panels(**joined)
