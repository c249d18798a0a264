"""The activation itself as a score: the baseline of the paper."""

import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens.attribution.layer_context import LayerContext
from kn_lens.attribution.method import LayerMethod, LayerScores, no_expected_sum


class Activation(LayerMethod):
    """Score by the activation, ``w_i``, averaged over the answer's rows. Cost: no pass beyond the clean one."""

    name = "activation"
    takes_start = False
    unit = "activation"

    def score_layer(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> LayerScores:
        """Return the clean activations; ``indices`` is None."""
        n_rows = context.sum_rows(torch.ones_like(context.post[:, :1]))
        scores = context.neuron_scores(context.post)
        if scores.is_sparse:
            prompts, _ = scores.indices()
            means = scores.values() / n_rows[prompts, 0]
            scores = torch.sparse_coo_tensor(
                scores.indices(), means, scores.shape, is_coalesced=True, check_invariants=False
            )
        else:
            scores = scores / n_rows
        return LayerScores(scores=scores, expected=no_expected_sum(context), n_points=1)
