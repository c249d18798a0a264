"""Outputs under changes of one neuron at a time."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.attribution.chosen_neurons import ChosenNeurons
from kn_lens.attribution.layer_context import LayerContext, chunk_by_rows
from kn_lens.attribution.method import LayerMethod

Change = Callable[[Float[Tensor, "row d_mlp"], Float[Tensor, "row d_mlp"]], Float[Tensor, "row d_mlp"]]
"""From the activations of a layer, and those of one neuron alone, to what replaces them."""


class NeuronwiseMethod(LayerMethod):
    """A method that scores neurons one by one.

    Attributes:
        chosen: the neurons of each fact, for its prompts; None where all prompts have the same.
    """

    neurons = "optional"

    def __init__(self, chosen: ChosenNeurons | None = None) -> None:
        self.chosen = chosen

    def scored_neurons(
        self,
        context: LayerContext,
        indices: Int[Tensor, " chosen"] | None,
    ) -> Bool[Tensor, "batch d_mlp"]:
        """Return whether each neuron of the layer is scored under each prompt."""
        shape = len(context.clean), context.post.shape[-1]
        is_scored = torch.full(shape, indices is None, device=context.post.device)
        if indices is None:
            return is_scored
        if self.chosen is None:
            is_scored[:, indices] = True
        else:
            is_scored[:, indices] = self.chosen.of_prompts(context.prompts, context.layer, indices)
        return is_scored


def outputs_by_neuron(
    context: LayerContext,
    is_scored: Bool[Tensor, "batch d_mlp"],
    change: Change,
    *,
    early_exit: bool = False,
) -> Float[Tensor, "batch d_mlp"]:
    """Return the outputs with the activation changed for one neuron at a time; NaN where it is not scored.

    Args:
        context: the layer under some prompts.
        is_scored: the neurons that are scored under each prompt.
        change: from the layer's activations, and those of one neuron alone, to what replaces the layer's.
        early_exit: see ``LayerContext.outputs``.

    Cost: a forward pass per row and neuron. A pass holds as many neurons and prompts as its number of rows allows.
    """
    outputs = torch.full_like(is_scored, float("nan"), dtype=context.clean.dtype)
    prompt_ids, neurons = is_scored.nonzero(as_tuple=True)
    if not len(prompt_ids):
        return outputs
    n_rows = context.prompts.rows_per_prompt[prompt_ids]
    for pairs in chunk_by_rows(n_rows, context.rows_per_pass):
        rows, owner = context.prompts.rows_and_owners(prompt_ids[pairs])
        post = context.post[rows]
        index = neurons[pairs][owner, None]
        neuron_alone = torch.zeros_like(post).scatter(1, index, post.gather(1, index))
        values = context.outputs(
            prompt_ids[pairs],
            change(post, neuron_alone),
            early_exit=early_exit,
        )
        outputs[prompt_ids[pairs], neurons[pairs]] = values
    return outputs
