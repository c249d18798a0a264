"""Outputs under changes of one neuron at a time."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.attribution.chosen_neurons import ChosenNeurons
from kn_lens.attribution.layer_context import LayerContext, chunk_by_rows
from kn_lens.attribution.layer_neurons import Pairs
from kn_lens.attribution.method import LayerMethod

Change = Callable[[Float[Tensor, "row d_mlp"], Float[Tensor, "row d_mlp"]], Float[Tensor, "row d_mlp"]]
"""From the activations of a layer, and what moves of one neuron alone, to what replaces them."""


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
    ) -> Pairs:
        """Return the neurons of the layer that are scored under each prompt, in the order of the prompts."""
        prompts, neurons = context.neurons.active_pairs(context.prompts.prompt_index, len(context.clean))
        if indices is None:
            return prompts, neurons
        is_scored = torch.isin(neurons, indices)
        if self.chosen is not None:
            prompts, neurons = prompts[is_scored], neurons[is_scored]
            is_chosen = self.chosen.of_prompts(context.prompts, context.layer, indices)
            is_scored = is_chosen[prompts, torch.searchsorted(indices, neurons)]
        return prompts[is_scored], neurons[is_scored]


def outputs_by_neuron(
    context: LayerContext,
    pairs: Pairs,
    change: Change,
    *,
    early_exit: bool = False,
) -> Float[Tensor, " pair"]:
    """Return the outputs of prompts with the activation changed for one neuron.

    Args:
        context: the layer under some prompts.
        pairs: prompts, and the neuron of each.
        change: from the layer's activations, and what moves of one neuron alone, to what replaces the layer's.
        early_exit: see ``LayerContext.outputs``.

    Cost: a forward pass per row and neuron. A pass holds as many neurons and prompts as its number of rows allows.
    """
    prompt_ids, neurons = pairs
    outputs = [context.clean[:0]]
    n_rows = context.prompts.rows_per_prompt[prompt_ids]
    moving = context.moving
    for chunk in chunk_by_rows(n_rows, context.rows_per_pass) if len(prompt_ids) else ():
        rows, owner = context.prompts.rows_and_owners(prompt_ids[chunk])
        post = context.post[rows]
        neuron_alone = context.neurons.alone(moving[rows], rows, neurons[chunk][owner, None])
        outputs.append(context.outputs(prompt_ids[chunk], change(post, neuron_alone), early_exit=early_exit))
    return torch.cat(outputs)


def n_by_prompt(context: LayerContext, pairs: Pairs) -> Int[Tensor, " batch"]:
    """Return the number of neurons that are scored under each prompt."""
    return torch.bincount(pairs[0], minlength=len(context.clean))
