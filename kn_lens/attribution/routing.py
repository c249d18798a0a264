"""The routing term: what routing that responds adds to the effect of silencing a layer.

With ``P_held`` the output where routers above the layer keep their clean choice, and ``P_free`` where they choose anew,

    P(w) - P_free(w0) = (P(w) - P_held(w0)) + (P_held(w0) - P_free(w0))
                      =  held part          +  routing term

The held part is what the scores of the layer's neurons sum to. The routing term belongs to no neuron: as the layer's
activation goes to its start ``w0``, an output with free routing jumps wherever a router above changes its choice, and
no gradient sees that.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.attribution.layer_context import LayerContext


def routing_term_of(context: LayerContext, held_part: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return the routing term of a layer under each prompt. Cost: a forward pass per row, from this layer up.

    Args:
        context: the layer under some prompts.
        held_part: ``P(w) - P_held(w0)``.
    """
    if not context.has_experts_above:
        return torch.zeros_like(held_part)
    silent = context.outputs(context.all_prompts, context.post_at_start, holds_routing=False)
    return context.clean - silent - held_part
