"""The log-probability that a neuron's value vector adds by itself (Yu & Ananiadou, EMNLP 2024)."""

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from kn_lens.attribution.baselines._one_by_one import NeuronwiseMethod, outputs_by_neuron
from kn_lens.attribution.layer_context import LayerContext
from kn_lens.attribution.method import LayerScores, no_expected_sum


class LogProbGain(NeuronwiseMethod):
    """Score by what ``w_i W_out[i]`` alone adds to the answer's log-probability, read off after the layer; in nats.

    Cost: a forward pass per row and neuron, of the layer and the head.
    """

    name = "log_prob_gain"
    output = "log_prob"

    def score_layer(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> LayerScores:
        """Return the scores of the chosen neurons, or of all."""
        no_activation = torch.zeros_like(context.post)
        silent = context.outputs(context.all_prompts, no_activation, early_exit=True)
        is_scored = self.scored_neurons(context, indices)
        alone = outputs_by_neuron(
            context,
            is_scored,
            lambda post, neuron_alone: neuron_alone,
            early_exit=True,
        )
        scores = alone - rearrange(silent, "batch -> batch 1")
        n_points = is_scored.sum(-1) + 1
        return LayerScores(scores=scores, expected=no_expected_sum(context), n_points=n_points)
