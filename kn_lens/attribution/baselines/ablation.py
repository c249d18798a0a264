"""Ablation of single neurons: the ground truth that other scores approximate."""

from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from kn_lens.attribution.baselines._one_by_one import NeuronwiseMethod, outputs_by_neuron
from kn_lens.attribution.layer_context import LayerContext
from kn_lens.attribution.method import LayerScores, no_expected_sum


class Ablation(NeuronwiseMethod):
    """Score by what the output loses without the neuron: ``P(w) - P(w with w_i = 0)``.

    Cost: a forward pass per row and neuron.
    """

    name = "ablation"

    def score_layer(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> LayerScores:
        """Return the scores of the chosen neurons, or of all."""
        is_scored = self.scored_neurons(context, indices)
        without = outputs_by_neuron(context, is_scored, lambda post, neuron_alone: post - neuron_alone)
        scores = rearrange(context.clean, "batch -> batch 1") - without
        return LayerScores(
            scores=scores,
            expected=no_expected_sum(context),
            n_points=is_scored.sum(-1),
        )
