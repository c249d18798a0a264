"""Outputs under changes of one neuron at a time."""

from collections.abc import Callable

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from kn_lens.attribution.layer_context import LayerContext


def n_scored(context: LayerContext, indices: Int[Tensor, " chosen"] | None) -> int:
    """Return how many neurons of the layer are scored."""
    return context.post.shape[-1] if indices is None else len(indices)


def outputs_by_neuron(
    context: LayerContext,
    indices: Int[Tensor, " chosen"] | None,
    change: Callable[[Float[Tensor, "neuron row d_mlp"]], Float[Tensor, "neuron row d_mlp"]],
    *,
    early_exit: bool = False,
) -> Float[Tensor, "batch d_mlp"]:
    """Return the outputs with ``change(w_i e_i)`` as the activation, for each chosen neuron i; NaN for the others.

    Args:
        context: the layer under some prompts.
        indices: the neurons; None for all.
        change: from the activations of single neurons, each alone in its layer, to what replaces the layer's.
        early_exit: see ``LayerContext.outputs``.

    Cost: a forward pass per row and neuron. A pass holds as many neurons as its number of rows allows.
    """
    n_prompts, d_mlp = len(context.clean), context.post.shape[-1]
    chosen = torch.arange(d_mlp, device=context.post.device) if indices is None else indices
    outputs = context.clean.new_full((n_prompts, d_mlp), float("nan"))
    neurons_per_pass = max(1, context.rows_per_pass // len(context.post))
    if not len(chosen):
        return outputs
    for neurons in chosen.split(neurons_per_pass):
        neuron_alone = context.post * one_hot(neurons, d_mlp)[:, None]
        values = context.outputs(
            repeat(context.all_prompts, "batch -> (neuron batch)", neuron=len(neurons)),
            rearrange(change(neuron_alone), "neuron row d_mlp -> (neuron row) d_mlp"),
            early_exit=early_exit,
        )
        outputs[:, neurons] = rearrange(values, "(neuron batch) -> batch neuron", neuron=len(neurons))
    return outputs
