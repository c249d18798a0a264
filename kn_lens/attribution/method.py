"""The interface of attribution methods: the scores of the neurons of some layers.

``attribute`` runs the unaltered model once on some prompts, makes a ``LayerContext`` of each layer, and asks the method
for the scores. A new method is a subclass of ``LayerMethod`` in a file of its own, a line in ``options.METHODS``, and
its name in ``Method`` of ``_core.names``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.attribution.integration import Integration, PathIntegral, PathRule, integrate_together
from kn_lens.attribution.layer_context import LayerContext

ShareDone = Callable[[float], None]
"""Called with the share of the work that is done."""


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """Scores of the neurons of one layer under some prompts.

    Attributes:
        scores: one for each neuron; NaN where it was not computed. Sparse in a layer with experts.
        expected: the sum of the scores according to completeness; NaN for methods without such a sum.
        n_points: evaluations of the model that each prompt's scores rest on, at least 1 where there is a score.
    """

    scores: Float[Tensor, "batch d_mlp"]
    expected: Float[Tensor, " batch"]
    n_points: Int[Tensor, " batch"] | int


class AttributionMethod(ABC):
    """A way to score the neurons of layers.

    A subclass states its properties as class attributes and implements one step, ``score_layers``; most derive from
    ``LayerMethod``. An instance holds settings alone, so that it serves all layers and prompts.

    Attributes:
        name: the value of ``attribute(..., method=)``.
        neurons: ``all`` where one computation scores every neuron and none can be chosen, ``optional`` where the cost
            grows with their number, ``required`` where it would be too high for all of them.
        is_complete: whether completeness states the sum of the scores, at least to first order.
        silences_layer: whether this sum is ``P(w) - P(w0)``, of the whole layer.
        takes_start: whether scores depend on ``w0``, where paths start.
        output: the only output that the method explains; None where the caller chooses it.
        exits_early: whether outputs are read off the residual stream after the layer, so at the read position alone.
        unit: the label of scores that are not in the unit of the output; None where they are.
    """

    name: ClassVar[str]
    neurons: ClassVar[Literal["all", "optional", "required"]] = "all"
    is_complete: ClassVar[bool] = False
    silences_layer: ClassVar[bool] = False
    takes_start: ClassVar[bool] = True
    output: ClassVar[str | None] = None
    exits_early: ClassVar[bool] = False
    unit: ClassVar[str | None] = None

    @property
    def quadrature(self) -> str:
        """The label of the quadrature; ``none`` for methods without an integral."""
        return "none"

    @abstractmethod
    def score_layers(
        self,
        contexts: Sequence[LayerContext],
        indices: Mapping[int, Int[Tensor, " chosen"]] | None,
        progress: ShareDone,
    ) -> Iterator[tuple[LayerContext, LayerScores]]:
        """Yield the scores of each layer.

        Args:
            contexts: the layers under some prompts, from which passes start.
            indices: the neurons to score, by layer; None for all.
            progress: called with the share of the work that is done.
        """


class LayerMethod(AttributionMethod):
    """A method that scores one layer after the other. A subclass implements ``score_layer``."""

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

    def score_layers(
        self,
        contexts: Sequence[LayerContext],
        indices: Mapping[int, Int[Tensor, " chosen"]] | None,
        progress: ShareDone,
    ) -> Iterator[tuple[LayerContext, LayerScores]]:
        """Score each layer by itself."""
        for n_done, context in enumerate(contexts, start=1):
            scores = self.score_layer(context, _of_layer(indices, context))
            progress(n_done / len(contexts))
            yield context, scores


class PathMethod(AttributionMethod):
    """A method that integrates gradients along paths to the clean activation. A subclass names the paths.

    Attributes:
        rule: the quadrature of the integrals.
    """

    is_complete = True

    def __init__(self, rule: PathRule) -> None:
        self.rule = rule

    @property
    def quadrature(self) -> str:
        """The label of the quadrature, with its number of points."""
        return self.rule.name

    @abstractmethod
    def integrals(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> list[Integration]:
        """Return the integrals that the scores of one layer are made of."""

    @abstractmethod
    def scores_of(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
        paths: Sequence[PathIntegral],
    ) -> LayerScores:
        """Return the scores of one layer, from its integrals."""

    def score_layers(
        self,
        contexts: Sequence[LayerContext],
        indices: Mapping[int, Int[Tensor, " chosen"]] | None,
        progress: ShareDone,
    ) -> Iterator[tuple[LayerContext, LayerScores]]:
        """Integrate along the paths of all layers together, in the order of the layers."""
        in_order = sorted(contexts, key=lambda context: context.layer)
        if self.rule.has_end:
            in_order[0].clean_gradients.of_layer(in_order[0].layer)  # once for all layers
        integrals = [self.integrals(context, _of_layer(indices, context)) for context in in_order]
        paths = iter(integrate_together(list(chain.from_iterable(integrals)), progress))
        for context, of_one in zip(in_order, integrals, strict=True):
            paths_of_one = list(islice(paths, len(of_one)))
            yield context, self.scores_of(context, _of_layer(indices, context), paths_of_one)


def _of_layer(
    indices: Mapping[int, Int[Tensor, " chosen"]] | None,
    context: LayerContext,
) -> Int[Tensor, " chosen"] | None:
    return None if indices is None else indices[context.layer]


def no_expected_sum(context: LayerContext) -> Float[Tensor, " batch"]:
    """Return ``LayerScores.expected`` of a method without completeness."""
    return torch.full_like(context.clean, float("nan"))
