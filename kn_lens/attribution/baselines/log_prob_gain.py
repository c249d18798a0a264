"""The log-probability that a neuron's value vector adds by itself (Yu & Ananiadou, EMNLP 2024)."""

import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens.attribution.baselines._one_by_one import NeuronwiseMethod, n_by_prompt, outputs_by_neuron
from kn_lens.attribution.layer_context import LayerContext
from kn_lens.attribution.method import LayerScores, no_expected_sum


class LogProbGain(NeuronwiseMethod):
    """Score by what ``w_i W_out[i]`` alone adds to the answer's log-probability, read off after the layer; in nats.

    Cost: a forward pass per row and neuron, of the layer and the head.
    """

    name = "log_prob_gain"
    takes_start = False
    output = "log_prob"
    exits_early = True

    def score_layer(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> LayerScores:
        """Return the scores of the chosen neurons, or of all."""
        no_activation = torch.zeros_like(context.post)
        silent = context.outputs(context.all_prompts, no_activation, early_exit=True)
        pairs = self.scored_neurons(context, indices)
        alone = outputs_by_neuron(
            context,
            pairs,
            lambda post, neuron_alone: neuron_alone,
            early_exit=True,
        )
        gains = alone - silent[pairs[0]]
        return LayerScores(
            scores=context.neurons.at_pairs(pairs, gains, len(context.clean)),
            expected=no_expected_sum(context),
            n_points=n_by_prompt(context, pairs) + 1,
        )
