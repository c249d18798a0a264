"""The interface of attribution methods: the scores of one layer's neurons.

``attribute`` runs the unaltered model once on some prompts, makes a ``LayerContext`` of each layer, and asks the method
for that layer's scores. A new method is a subclass in a file of its own, a line in
``options.METHODS``, and its name in ``Method`` of ``_core.names``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.attribution.integration import PathRule
from kn_lens.attribution.layer_context import LayerContext


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """Scores of the neurons of one layer under some prompts.

    Attributes:
        scores: one for each neuron; NaN where it was not computed.
        expected: the sum of the scores according to completeness; NaN for methods without such a sum.
        n_points: evaluations of the model that each prompt's scores rest on, at least 1 where there is a score.
    """

    scores: Float[Tensor, "batch d_mlp"]
    expected: Float[Tensor, " batch"]
    n_points: Int[Tensor, " batch"] | int


class AttributionMethod(ABC):
    """A way to score the neurons of one layer.

    A subclass states its properties as class attributes and implements one step, ``score_layer``. An instance holds
    settings alone, so that it serves all layers and prompts.

    Attributes:
        name: the value of ``attribute(..., method=)``.
        neurons: ``all`` where one computation scores every neuron and none can be chosen, ``optional`` where the cost
            grows with their number, ``required`` where it would be too high for all of them.
        is_complete: whether completeness states the sum of the scores, at least to first order.
        output: the only output that the method explains; None where the caller chooses it.
        unit: the label of scores that are not in the unit of the output; None where they are.
    """

    name: ClassVar[str]
    neurons: ClassVar[Literal["all", "optional", "required"]] = "all"
    is_complete: ClassVar[bool] = False
    output: ClassVar[str | None] = None
    unit: ClassVar[str | None] = None

    @property
    def quadrature(self) -> str:
        """The label of the quadrature; ``none`` for methods without an integral."""
        return "none"

    @abstractmethod
    def score_layer(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> LayerScores:
        """Return the scores of one layer.

        Args:
            context: the layer under some prompts, from which passes start.
            indices: the neurons to score; None for all.
        """


class PathMethod(AttributionMethod):
    """A method that integrates gradients along a path to the clean activation.

    Attributes:
        rule: the quadrature of the integral.
    """

    is_complete = True

    def __init__(self, rule: PathRule) -> None:
        self.rule = rule

    @property
    def quadrature(self) -> str:
        """The label of the quadrature, with its number of points."""
        return self.rule.name


def no_expected_sum(context: LayerContext) -> Float[Tensor, " batch"]:
    """Return ``LayerScores.expected`` of a method without completeness."""
    return torch.full_like(context.clean, float("nan"))
