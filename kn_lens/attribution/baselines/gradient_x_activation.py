"""Gradient times activation: ablation to first order."""

from jaxtyping import Int
from torch import Tensor

from kn_lens.attribution.layer_context import LayerContext
from kn_lens.attribution.method import LayerMethod, LayerScores


class GradientXActivation(LayerMethod):
    """Score by the gradient at the clean activation, times the activation: ``(w_i - w0_i) dP(w)/dw_i``.

    Cost: a forward pass per row and layer, and for all layers together one with its backward pass.
    """

    name = "gradient_x_activation"
    is_complete = True
    silences_layer = True

    def score_layer(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> LayerScores:
        """Return the scores of all neurons; ``indices`` is None. ``expected`` is ``P(w) - P(w0)``."""
        silent = context.outputs(context.all_prompts, context.post_at_start)
        gradient = context.gradient_at_post(context.clean_gradients.of_layer(context.layer))
        scores = context.neuron_scores(context.moving * gradient)
        return LayerScores(scores=scores, expected=context.clean - silent, n_points=1)
