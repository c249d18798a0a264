"""Neurons that are chosen fact by fact: which of them are scored under each prompt."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index as as_int
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kn_lens._core.notation import NeuronLike, layer_and_index
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.prompts import PromptBatch


def layers_and_indices(neurons: Iterable[NeuronLike]) -> list[tuple[int, int]]:
    """Return the layer and the index of each neuron, given by its name or as a pair.

    Raises:
        ArgumentError: anything else.

    >>> layers_and_indices(["L9N1234", (3, 5)])
    [(9, 1234), (3, 5)]
    """
    pairs = []
    for neuron in [neurons] if isinstance(neurons, str) else neurons:
        pair = _layer_and_index(neuron)
        if pair is None:
            raise ArgumentError(f"neurons holds {neuron!r}; expected neurons: ['L9N1234'], or a NeuronSet.")
        pairs.append(pair)
    return pairs


def _layer_and_index(neuron: Any) -> tuple[int, int] | None:
    if isinstance(neuron, str):
        return layer_and_index(neuron)
    try:
        layer, index = neuron
        return as_int(layer), as_int(index)
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True, eq=False)
class ChosenNeurons:
    """The neurons that are scored under the prompts of each fact.

    Attributes:
        by_fact: layer and index of the neurons of each fact.
    """

    by_fact: Mapping[Fact, frozenset[tuple[int, int]]]

    @classmethod
    def of(cls, neurons: Mapping[Fact, Iterable[NeuronLike]]) -> "ChosenNeurons":
        """Return the neurons of each fact by their layer and index."""
        by_fact = {}
        for fact, fact_neurons in neurons.items():
            by_fact[fact] = frozenset(layers_and_indices(fact_neurons))
        return cls(by_fact)

    def check_prompts(self, prompts: PromptBatch) -> None:
        """Raise if the fact of a prompt has no neurons, not even none of them.

        Raises:
            ArgumentError: with the fact and the nearest other.
        """
        for fact_index in prompts.fact_index.unique().tolist():
            fact = prompts.facts[fact_index]
            if fact not in self.by_fact:
                near = did_you_mean(fact.key, (other.key for other in self.by_fact))
                raise ArgumentError(
                    f"neurons has no neurons of {fact.key}, which some of the prompts ask for; "
                    f"give it some, if need be an empty NeuronSet().{near}"
                )

    def of_prompts(
        self,
        prompts: PromptBatch,
        layer: int,
        indices: Int[Tensor, " chosen"],
    ) -> Bool[Tensor, "batch chosen"]:
        """Return whether each of some neurons of a layer is scored under each prompt."""
        fact_indices, position = prompts.fact_index.unique(return_inverse=True)
        numbers = indices.tolist()
        is_chosen = []
        for fact_index in fact_indices.tolist():
            neurons = self.by_fact[prompts.facts[fact_index]]
            is_chosen.append([(layer, number) in neurons for number in numbers])
        table = torch.tensor(is_chosen, device=indices.device, dtype=torch.bool)
        return table.reshape(len(fact_indices), len(numbers))[position]
