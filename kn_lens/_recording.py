"""Keeping activations of chosen neurons from a pass that is made for something else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.hosts import HookFn, host_of
from kn_lens.neuron_sets import NeuronSet
from kn_lens.prompts import PromptBatch


@dataclass(frozen=True, eq=False)
class Recording:
    """An intervention that changes nothing, and keeps what the neurons' activations at the read position are.

    Attributes:
        neurons: which.
        values: their activations under each prompt of the whole batch, averaged over the rows of its answer; NaN until
            the prompt has been run. In the order in which the set iterates.
        numbers: of the prompts that this part of it is for.
    """

    neurons: NeuronSet
    values: Float[Tensor, "batch neuron"]
    numbers: Int[Tensor, " some"]

    @classmethod
    def of(cls, neurons: NeuronSet, prompts: PromptBatch) -> "Recording":
        """Make an empty one."""
        values = torch.full((len(prompts), len(neurons)), torch.nan, dtype=torch.float64)
        return cls(neurons, values, torch.arange(len(prompts)))

    def select(self, prompts: PromptBatch, chosen: Int[Tensor, " some"]) -> "Recording":
        """Return the recording of ``prompts.select(chosen)``, which writes to the same values."""
        return replace(self, numbers=self.numbers[chosen.cpu()])

    def hooks(self, model: Any, prompts: PromptBatch) -> list[tuple[str, HookFn]]:
        """Return one hook for each layer with neurons."""
        host, hooks, first = host_of(model), [], 0
        for layer, indices in self.neurons.by_layer().items():
            columns = slice(first, first + len(indices))
            hooks.append((host.hook_post(layer), self._hook(prompts, indices, columns)))
            first = columns.stop
        return hooks

    def mean(self, neurons: NeuronSet) -> Float[Tensor, " neuron"]:
        """Return the mean over prompts of the activations of some of the neurons, in the order of their set."""
        place = {neuron: number for number, neuron in enumerate(self.neurons)}
        return self.values[:, [place[neuron] for neuron in neurons]].mean(0)

    def _hook(self, prompts: PromptBatch, indices: Sequence[int], columns: slice) -> HookFn:
        def hook_fn(post: Float[Tensor, "row pos d_mlp"], hook: object = None) -> None:
            at_read = post.detach()[torch.arange(prompts.n_rows, device=post.device), prompts.read_pos]
            of_rows = at_read[:, list(indices)].double()
            sums = of_rows.new_zeros(len(prompts), len(indices)).index_add(0, prompts.prompt_index, of_rows)
            n_rows = rearrange(prompts.rows_per_prompt, "prompt -> prompt 1")
            self.values[self.numbers, columns] = (sums / n_rows).cpu()

        return hook_fn
