"""Ablation of single neurons: the ground truth that other scores approximate."""

from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from kn_lens.attribution.baselines._one_by_one import n_scored, outputs_by_neuron
from kn_lens.attribution.layer_context import LayerContext
from kn_lens.attribution.method import LayerMethod, LayerScores, no_expected_sum


class Ablation(LayerMethod):
    """Score by what the output loses without the neuron: ``P(w) - P(w with w_i = 0)``.

    Cost: a forward pass per row and neuron.
    """

    name = "ablation"
    neurons = "optional"

    def score_layer(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> LayerScores:
        """Return the scores of the chosen neurons, or of all."""
        without = outputs_by_neuron(context, indices, lambda neuron_alone: context.post - neuron_alone)
        scores = rearrange(context.clean, "batch -> batch 1") - without
        return LayerScores(
            scores=scores,
            expected=no_expected_sum(context),
            n_points=n_scored(context, indices),
        )
