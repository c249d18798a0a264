"""What a run costs: how many rows go through the model, counted from prompts and settings before it runs.

A row is one prompt in one place of its answer. Passes differ in how much of the model a row goes through. Where a
count depends on what will be found (how many neurons a fact has, which facts the model knows), a stage assumes that
every fact has some, until the records that say so are there.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from kn_lens.quadrature import quadrature as fixed_rule

POINTS = 5
"""Points that the adaptive quadrature takes for a (row, layer), more or less."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Rows that go through a model.

    Attributes:
        whole: from the first layer up.
        resumed: from some layer up: through half of the layers on average.
        gradients: as ``resumed``, with a backward pass.
        whole_gradients: with a backward pass, from the first layer up.
        integrals: (row, layer) pairs integrated by the adaptive quadrature, which chooses how many ``gradients`` each
            takes; that at the end, all layers in one, is among ``whole_gradients``.
        heads: through the head alone.
    """

    whole: float = 0.0
    resumed: float = 0.0
    gradients: float = 0.0
    whole_gradients: float = 0.0
    integrals: float = 0.0
    heads: float = 0.0

    def __add__(self, other: "Passes") -> "Passes":
        return self._made(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True))

    def __mul__(self, times: float) -> "Passes":
        return self._made(times * mine for mine in astuple(self))

    __rmul__ = __mul__

    @classmethod
    def _made(cls, counts: Iterable[float]) -> "Passes":
        return cls(**dict(zip(cls.__dataclass_fields__, counts, strict=True)))

    def rows(self, points: float = POINTS) -> float:
        """Return how many rows go through the model, with so many points for each adaptive integral."""
        return sum(astuple(self)) + (points - 2) * self.integrals  # one point is not its own, and one is counted

    def forwards(self) -> float:
        """Return about how many forward passes of a row through the whole model take as long: for progress bars."""
        gradients = self.gradients + 2 * self.whole_gradients + (POINTS - 1) * self.integrals
        return self.whole + self.resumed / 2 + 3 / 2 * gradients + self.heads / 10


def integrated(rows: float, n_layers: int, quadrature: str = "adaptive", n_steps: int | None = None) -> Passes:
    """Return the passes of integrated gradients of so many rows in so many layers.

    >>> integrated(2, 3, "left", 4)
    Passes(whole=2, resumed=0, gradients=24, whole_gradients=0, integrals=0.0, heads=0.0)
    >>> integrated(2, 3, "midpoint", 4).resumed  # which does not look at the path's beginning
    6
    """
    if quadrature == "adaptive":
        return Passes(whole=rows, whole_gradients=rows, integrals=rows * n_layers)
    nodes = fixed_rule(quadrature, n_steps or 20).nodes
    at_end = 1.0 in nodes  # where one backward pass serves all layers
    return Passes(
        whole=rows,
        resumed=0 if nodes[0] == 0 else rows * n_layers,
        gradients=rows * n_layers * (len(nodes) - at_end),
        whole_gradients=rows if at_end else 0,
    )
