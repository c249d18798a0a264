"""Counting in how many prompts of a fact a neuron stands out: what ``neurons.py`` refines from."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens._request import check_share
from kn_lens.attribution import Attribution
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact
from kn_lens.neuron_sets import NeuronSet
from kn_lens.prompts import PromptBatch

CELLS_AT_ONCE = 2**20
"""About as many scores are looked at together, whatever the number of prompts; few enough to stay in a cache."""


@dataclass(frozen=True)
class Shares:
    """How many prompts of each fact have a neuron in their coarse set; neurons of too few prompts are left out.

    ``owner`` is the fact's position in ``facts``; ``left_out`` has the facts with too few prompts, and how many they
    have. Sparse, so that any threshold from here on costs little.
    """

    facts: list[Fact]
    left_out: dict[Fact, int]
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
        ArgumentError: all facts have fewer than ``min_prompts`` prompts, or scores this low were not kept.
    """
    check_kept("attr_threshold", attr_threshold, attr.keep)
    every = prompts_by_fact(attr.prompts)
    left_out = {fact: len(prompt_ids) for fact, prompt_ids in every.items() if len(prompt_ids) < min_prompts}
    prompts_of = {fact: prompt_ids for fact, prompt_ids in every.items() if fact not in left_out}
    if not prompts_of:  # then a slip, not the lot of a few
        fact, prompt_ids = next(iter(every.items()))
        check_enough(fact.key, len(prompt_ids), min_prompts)
    facts, by_fact = list(prompts_of), list(prompts_of.values())
    scores = attr.scores
    n_prompts = [len(prompt_ids) for prompt_ids in by_fact]
    n_cells = math.prod(scores.shape[1:])
    at_once = max(1, CELLS_AT_ONCE // n_cells)  # prompts
    facts_at_once = max(1, at_once // max(n_prompts))
    found, counts = [], []
    for start in range(0, len(facts), facts_at_once):
        group = by_fact[start : start + facts_at_once]
        owners = torch.repeat_interleave(torch.tensor([len(prompt_ids) for prompt_ids in group]))
        count = torch.zeros(len(group) * n_cells, dtype=torch.long, device=scores.device)
        for prompt_ids, owner in zip(torch.cat(group).split(at_once), owners.split(at_once), strict=True):
            place, cell = coarse_cells(scores, prompt_ids.to(scores.device), attr_threshold)
            count += torch.bincount(owner.to(scores.device)[place] * n_cells + cell, minlength=len(count))
        shared = (count >= min_prompts).nonzero().squeeze(1)
        counts.append(count[shared].cpu())
        found.append(shared.cpu() + start * n_cells)
    owner, layer, index = torch.unravel_index(torch.cat(found), (len(facts), *scores.shape[1:]))
    return Shares(
        facts=facts,
        left_out=left_out,
        n_prompts=n_prompts,
        min_prompts=min_prompts,
        owner=owner,
        neuron=torch.stack([layer, index], dim=1),
        count=torch.cat(counts),
    )


def coarse_cells(
    scores: Float[Tensor, "batch n_layers d_mlp"], prompt_ids: Int[Tensor, " some"], threshold: float
) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
    """Return the members of some prompts' coarse sets: the place in ``prompt_ids``, and ``layer * d_mlp + index``.

    Scores may be dense or sparse; what a sparse tensor lacks is in no set.
    """
    if not scores.is_sparse:
        place, cell = coarse_of(scores[prompt_ids], threshold).flatten(1).nonzero().unbind(1)
        return place, cell
    prompt, layer, index = scores.indices().contiguous()  # sorted by prompt: each has a stretch of them
    first = torch.searchsorted(prompt, prompt_ids)
    length = torch.searchsorted(prompt, prompt_ids, right=True) - first
    place = torch.repeat_interleave(length)
    at = torch.arange(len(place), device=place.device) + (first - length.cumsum(0) + length)[place]
    values = scores.values()[at]
    peak = values.new_zeros(len(prompt_ids)).scatter_reduce(0, place, values, "amax")
    high = values >= _least(peak, threshold)[place]
    at = at[high]
    return place[high], layer[at] * scores.shape[2] + index[at]


def prompts_by_fact(prompts: PromptBatch) -> dict[Fact, Int[Tensor, " some"]]:
    """Return the prompts of each fact that has any, in the order of the facts."""
    found: dict[Fact, list[int]] = {fact: [] for fact in prompts.facts}
    for prompt, fact in enumerate(prompts.fact_index.tolist()):
        found[prompts.facts[fact]].append(prompt)
    return {fact: torch.tensor(prompt_ids) for fact, prompt_ids in found.items() if prompt_ids}


def coarse_of(scores: Float[Tensor, "batch n_layers d_mlp"], threshold: float) -> Bool[Tensor, "batch n_layers d_mlp"]:
    """Return each prompt's coarse set, of dense scores; see ``kn_lens.coarse``."""
    peak = scores.nan_to_num(-torch.inf).amax((1, 2), keepdim=True)
    return scores >= _least(peak, threshold)  # NaN is not: false


def _least(peak: Float[Tensor, "*batch"], threshold: float) -> Float[Tensor, "*batch"]:
    """Return the score from which on a neuron is in its prompt's coarse set."""
    return torch.where(peak > 0, threshold * peak, torch.inf)


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


def check_kept(name: str, threshold: float, keep: float | None) -> None:
    """Raise where scores from this threshold on have not been kept."""
    if keep is not None and threshold < keep:
        raise ArgumentError(
            f"{name}={threshold}, but only the scores from {keep} times the prompt's largest were kept: expected "
            f"{keep} or more, or scores attributed with keep={threshold} or less."
        )
