"""Integrated gradients on the joint path: all neurons of a layer are scaled together (Dai et al. 2022, equation 2).

    Attr_i = (w_i - w0_i) * integral_0^1 dP(w0 + alpha (w - w0))/dw_i d alpha
    sum_i Attr_i = P(w) - P(w0)

In the paper the start of the path, ``w0``, is zero; see ``starts`` for others.

``reference`` has the same as a plain sum over a plain model.
"""

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from kn_lens.attribution.integration import Integration, PathIntegral, integrate
from kn_lens.attribution.layer_context import LayerContext
from kn_lens.attribution.method import LayerScores, PathMethod


class IntegratedGradients(PathMethod):
    """Score by the mean gradient on the way from the start to the clean activation, times their difference.

    Cost: for each row ``n_points`` forward and backward passes from the layer up. One product with ``W_out`` gives the
    scores of all neurons.
    """

    name = "integrated_gradients"
    silences_layer = True

    def integrals(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> list[Integration]:
        """Return the integral along the path of the whole layer; ``indices`` is None."""
        return [integrate(context, context.moving, self.rule)]

    def scores_of(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
        paths: Sequence[PathIntegral],
    ) -> LayerScores:
        """Return the scores of all neurons."""
        (path,) = paths
        scores = context.neuron_scores(context.moving * context.gradient_at_post(path.gradient))
        return LayerScores(scores=scores, expected=path.expected, n_points=path.n_points)
