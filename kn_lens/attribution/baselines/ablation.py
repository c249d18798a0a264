"""Ablation of single neurons: the ground truth that other scores approximate."""

from jaxtyping import Int
from torch import Tensor

from kn_lens.attribution.baselines._one_by_one import NeuronwiseMethod, n_by_prompt, outputs_by_neuron
from kn_lens.attribution.layer_context import LayerContext
from kn_lens.attribution.method import LayerScores, no_expected_sum


class Ablation(NeuronwiseMethod):
    """Score by what the output loses without the neuron: ``P(w) - P(w with w_i = w0_i)``, ``w0`` zero or another start.

    Cost: a forward pass per row and neuron.
    """

    name = "ablation"

    def score_layer(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> LayerScores:
        """Return the scores of the chosen neurons, or of all."""
        pairs = self.scored_neurons(context, indices)
        without = outputs_by_neuron(context, pairs, lambda post, neuron_alone: post - neuron_alone)
        lost = context.clean[pairs[0]] - without
        return LayerScores(
            scores=context.neurons.at_pairs(pairs, lost, len(context.clean)),
            expected=no_expected_sum(context),
            n_points=n_by_prompt(context, pairs),
        )
