"""Neurons that are chosen fact by fact: which of them are scored under each prompt."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index as as_int
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kn_lens._core.layout import NeuronLayout
from kn_lens._core.notation import NeuronKey, NeuronLike, neuron_key
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.prompts import PromptBatch


def neuron_keys(neurons: Iterable[NeuronLike]) -> list[NeuronKey]:
    """Return the key of each neuron, given by its name or as the key itself.

    Raises:
        ArgumentError: anything else.

    >>> neuron_keys(["L9N1234", (3, 5)])
    [(9, 1234), (3, 5)]
    """
    keys = []
    for neuron in [neurons] if isinstance(neurons, str) else neurons:
        key = _key(neuron)
        if key is None:
            raise ArgumentError(f"neurons holds {neuron!r}; expected neurons: ['L9N1234'], or a NeuronSet.")
        keys.append(key)
    return keys


def _key(neuron: Any) -> NeuronKey | None:
    if isinstance(neuron, str):
        return neuron_key(neuron)
    try:
        layer, *expert, index = neuron
        key = tuple(map(as_int, (layer, *expert, index)))
    except (TypeError, ValueError):
        return None
    return key if len(expert) <= 1 else None


@dataclass(frozen=True, eq=False)
class ChosenNeurons:
    """The neurons that are scored under the prompts of each fact.

    Attributes:
        by_fact: layer and row of the neurons of each fact.
    """

    by_fact: Mapping[Fact, frozenset[tuple[int, int | None]]]

    @classmethod
    def of(cls, neurons: Mapping[Fact, Iterable[NeuronLike]], layout: NeuronLayout) -> "ChosenNeurons":
        """Return the neurons of each fact by their layer and their row in it."""
        by_fact = {}
        for fact, fact_neurons in neurons.items():
            by_fact[fact] = frozenset((key[0], layout.row(key)) for key in neuron_keys(fact_neurons))
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
