"""Integrated gradients on single paths: one neuron moves, the rest of its layer stays at the clean activation.

With ``w_-i`` the clean activation with entry i set to zero,

    Attr_i = w_i * integral_0^1 dP(w_-i + alpha w_i e_i)/dw_i d alpha = P(w) - P(w_-i)

so that the exact score is the neuron's ablation. The paper's formula can be read in this way too; its released code
takes the joint path.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens.attribution.integration import Integration, PathIntegral, integrate
from kn_lens.attribution.layer_context import LayerContext
from kn_lens.attribution.method import LayerScores, PathMethod


class SinglePath(PathMethod):
    """Score each chosen neuron by the integral along its own path.

    Cost: for each row and neuron ``n_points`` forward and backward passes from the layer up.
    """

    name = "single_path"
    neurons = "required"

    def integrals(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> list[Integration]:
        """Return the integral along the path of each chosen neuron."""
        assert indices is not None  # checked with the options
        integrals = []
        every_row = torch.arange(len(context.post), device=context.post.device)
        for index in indices:
            moving = context.neurons.alone(context.moving, every_row, index.expand(len(every_row), 1))
            integrals.append(integrate(context, moving, self.rule))
        return integrals

    def scores_of(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
        paths: Sequence[PathIntegral],
    ) -> LayerScores:
        """Return the scores of the chosen neurons; ``expected`` is the sum of their ablations."""
        assert indices is not None
        expected = torch.zeros_like(context.clean)
        n_points = torch.zeros_like(context.all_prompts)
        totals = [context.clean[:0]]
        for path in paths:
            totals.append(path.total)
            expected += path.expected
            n_points += path.n_points
        pairs = (context.all_prompts.repeat(len(indices)), indices.repeat_interleave(len(context.clean)))
        scores = context.neurons.at_pairs(pairs, torch.cat(totals), len(context.clean))
        return LayerScores(scores=scores, expected=expected, n_points=n_points)
