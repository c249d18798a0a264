"""Counting in how many prompts of a fact a neuron stands out: what ``neurons.py`` refines from."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.attribution import Attribution
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact
from kn_lens.neuron_sets import NeuronSet
from kn_lens.prompts import PromptBatch

CELLS_AT_ONCE = 2**24
"""About as many scores are looked at together, whatever the number of prompts."""


@dataclass(frozen=True)
class Shares:
    """How many prompts of each fact have a neuron in their coarse set; neurons of too few prompts are left out.

    ``owner`` is the fact's position in ``facts``. Sparse, so that any threshold from here on costs little.
    """

    facts: list[Fact]
    n_prompts: list[int]
    min_prompts: int
    owner: Int[Tensor, " found"]
    neuron: Int[Tensor, "found 2"]
    count: Int[Tensor, " found"]

    def needed(self, share_threshold: float) -> Int[Tensor, " fact"]:
        """Return how many of its prompts each fact asks for."""
        return torch.tensor([prompts_needed(n, share_threshold, self.min_prompts) for n in self.n_prompts])

    def sizes(self, needed: Int[Tensor, " fact"]) -> Int[Tensor, " fact"]:
        """Return the number of neurons that each fact's refined set will have."""
        return torch.bincount(self.owner[self.count >= needed[self.owner]], minlength=len(self.facts))

    def refined(self, needed: Int[Tensor, " fact"]) -> dict[Fact, NeuronSet]:
        """Return the refined sets."""
        keep = self.count >= needed[self.owner]
        pairs: list[list[tuple[int, int]]] = [[] for _ in self.facts]
        for owner, (layer, index) in zip(self.owner[keep].tolist(), self.neuron[keep].tolist(), strict=True):
            pairs[owner].append((layer, index))
        return {fact: NeuronSet(found) for fact, found in zip(self.facts, pairs, strict=True)}


def count_shares(attr: Attribution, attr_threshold: float, min_prompts: int) -> Shares:
    """Count the coarse sets of each fact's prompts.

    Raises:
        ArgumentError: a fact has fewer than ``min_prompts`` prompts.
    """
    prompts_of = prompts_by_fact(attr.prompts)
    for fact, prompt_ids in prompts_of.items():
        check_enough(fact.key, len(prompt_ids), min_prompts)
    facts, by_fact = list(prompts_of), list(prompts_of.values())
    scores = attr.scores
    at_once = max(1, CELLS_AT_ONCE // math.prod(scores.shape[1:]))  # facts, and prompts of them
    found, counts = [], []
    for start in range(0, len(facts), at_once):
        group = by_fact[start : start + at_once]
        count = torch.zeros(len(group), *scores.shape[1:], dtype=torch.int32, device=scores.device)
        owners = torch.repeat_interleave(torch.tensor([len(prompt_ids) for prompt_ids in group]))
        for prompt_ids, owner in zip(torch.cat(group).split(at_once), owners.split(at_once), strict=True):
            in_coarse = coarse_of(scores[prompt_ids.to(scores.device)], attr_threshold)
            count.index_add_(0, owner.to(scores.device), in_coarse.to(count.dtype))
        cells = (count >= min_prompts).nonzero()
        counts.append(count[tuple(cells.unbind(1))].cpu())
        found.append(cells.cpu() + torch.tensor([start, 0, 0]))
    cells = torch.cat(found)
    return Shares(
        facts=facts,
        n_prompts=[len(prompt_ids) for prompt_ids in by_fact],
        min_prompts=min_prompts,
        owner=cells[:, 0],
        neuron=cells[:, 1:],
        count=torch.cat(counts),
    )


def prompts_by_fact(prompts: PromptBatch) -> dict[Fact, Int[Tensor, " some"]]:
    """Return the prompts of each fact that has any, in the order of the facts."""
    found: dict[Fact, list[int]] = {fact: [] for fact in prompts.facts}
    for prompt, fact in enumerate(prompts.fact_index.tolist()):
        found[prompts.facts[fact]].append(prompt)
    return {fact: torch.tensor(prompt_ids) for fact, prompt_ids in found.items() if prompt_ids}


def coarse_of(scores: Float[Tensor, "batch n_layers d_mlp"], threshold: float) -> Bool[Tensor, "batch n_layers d_mlp"]:
    """Return each prompt's coarse set; see ``kn_lens.coarse``."""
    peak = torch.where(scores.isnan(), -torch.inf, scores).amax((1, 2), keepdim=True)
    return scores >= torch.where(peak > 0, threshold * peak, torch.inf)  # NaN is not: false


def prompts_needed(n_prompts: int, share_threshold: float, min_prompts: int) -> int:
    """Return ``ceil(max(p * n, min_prompts))``; rounded first, since 0.55 * 20 is a little more than 11 in binary."""
    return max(math.ceil(round(share_threshold * n_prompts, 6)), min_prompts)


def check_enough(key: str, n_prompts: int, min_prompts: int) -> None:
    """Raise unless the fact can have a neuron at all."""
    if n_prompts < min_prompts:
        raise ArgumentError(
            f"The fact {key} has {n_prompts} prompt{'s' * (n_prompts != 1)}, and a neuron must be shared by "
            f"{min_prompts}: it can never have one. Give it more templates, or lower min_prompts."
        )


def check_thresholds(attr_threshold: float, share_threshold: float, min_prompts: int) -> None:
    """Raise unless the thresholds of refining are in their ranges."""
    check_share("attr_threshold", attr_threshold)
    check_share("share_threshold", share_threshold)
    if isinstance(min_prompts, bool) or not isinstance(min_prompts, int) or min_prompts < 1:
        raise ArgumentError(f"min_prompts={min_prompts!r}; expected a whole number from 1.")


def check_share(name: str, value: float) -> None:
    """Raise unless the argument is a share."""
    if not 0 <= value <= 1:
        raise ArgumentError(f"{name}={value}; expected a share from 0 to 1.")
