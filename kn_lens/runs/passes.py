"""Model passes of a run, counted from prompts and settings before it runs.

A row is one prompt at one token of its answer. Passes differ in the part of the model that a row goes through. Where a
count depends on results (how many neurons a fact has, which facts the model knows), a stage assumes that every fact has
some, until the records with these results exist.
"""

from dataclasses import asdict, astuple, dataclass

from kn_lens.attribution import fixed_rule

POINTS = 5
"""Approximate number of points that the adaptive quadrature takes for a (row, layer)."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Numbers of rows by the part of the model that they go through.

    Attributes:
        whole: through all layers.
        resumed: from some layer up; half of the layers on average.
        gradients: as ``resumed``, with a backward pass.
        whole_gradients: through all layers, with a backward pass.
        integrals: (row, layer) pairs that the adaptive quadrature integrates. It chooses the number of ``gradients`` of
            each; the point at the end of the path serves all layers and counts among ``whole_gradients``.
        heads: through the unembedding alone.
    """

    whole: float = 0.0
    resumed: float = 0.0
    gradients: float = 0.0
    whole_gradients: float = 0.0
    integrals: float = 0.0
    heads: float = 0.0

    def __add__(self, other: "Passes") -> "Passes":
        counts = {}
        for name, count in asdict(self).items():
            counts[name] = count + getattr(other, name)
        return Passes(**counts)

    def __mul__(self, times: float) -> "Passes":
        counts = {}
        for name, count in asdict(self).items():
            counts[name] = times * count
        return Passes(**counts)

    __rmul__ = __mul__

    def rows(self, points: float = POINTS) -> float:
        """Return the number of rows, with ``points`` for each adaptive integral."""
        return sum(astuple(self)) + (points - 2) * self.integrals  # one point counts elsewhere, one is in the sum

    def forwards(self) -> float:
        """Return the approximate duration in forward passes of one row through all layers, for progress bars."""
        gradients = self.gradients + 2 * self.whole_gradients + (POINTS - 1) * self.integrals
        return self.whole + self.resumed / 2 + 3 / 2 * gradients + self.heads / 10


def integrated(rows: float, n_layers: int, quadrature: str = "adaptive", n_steps: int | None = None) -> Passes:
    """Return the passes of integrated gradients of ``rows`` rows in ``n_layers`` layers.

    >>> integrated(2, 3, "left", 4)
    Passes(whole=2, resumed=0, gradients=24, whole_gradients=0, integrals=0.0, heads=0.0)
    >>> integrated(2, 3, "midpoint", 4).resumed  # this rule has no point at the start of the path
    6
    """
    if quadrature == "adaptive":
        return Passes(whole=rows, whole_gradients=rows, integrals=rows * n_layers)
    nodes = fixed_rule(quadrature, n_steps or 20).nodes
    at_end = 1.0 in nodes  # at the end of the path one backward pass serves all layers
    return Passes(
        whole=rows,
        resumed=0 if nodes[0] == 0 else rows * n_layers,
        gradients=rows * n_layers * (len(nodes) - at_end),
        whole_gradients=rows if at_end else 0,
    )
