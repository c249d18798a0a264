"""From the scores of a fact's prompts to its neurons (Dai et al. 2022, section 3.2).

A single prompt's scores also pick out neurons of its wording. A fact's set keeps the neurons that its prompts share:

    coarse set of a prompt     score >= t * (the prompt's largest score),  t = 0.2
    refined set of a fact      in the coarse set of at least max(p * n, 3) of its n prompts,  p = 0.7

A score of NaN means "not computed", and such a neuron is in no set. Where no score is positive, no neuron speaks for
the answer, and the coarse set is empty.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens._core import defaults
from kn_lens._core.checks import check_path, check_share, wrong_kind
from kn_lens._core.layout import NeuronLayout
from kn_lens._core.notation import NeuronKey
from kn_lens._core.wording import counted
from kn_lens.attribution import Attribution, check_attribution
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.neurons.files import read_scores
from kn_lens.neurons.neuron_set import Neuron, NeuronSet, SetsByFact
from kn_lens.prompts import PromptBatch

CELLS_AT_ONCE = 2**20
"""Scores that are compared at once, roughly, for any number of prompts; few enough to stay in a cache."""

Negatives = Attribution | Mapping[Fact, NeuronSet]
"""Negative examples: see ``refine``."""


class MissingFactError(ArgumentError, KeyError):
    """A fact has no refined set; a ``KeyError``, as of every mapping."""


class Refined(SetsByFact):
    """The refined set of each fact, and the facts and negative examples that were left out.

    Attributes:
        left_out: the facts with fewer than ``min_prompts`` prompts, which can never have a neuron, and how many they
            have. ``make_prompts(..., min_prompts=)`` leaves them out before the model runs.
        negatives_left_out: the negative examples that were not held against any fact, and why.
    """

    def __init__(
        self,
        neurons: Mapping[Fact, NeuronSet],
        left_out: Mapping[Fact, int],
        negatives_left_out: Mapping[Fact, str],
    ) -> None:
        super().__init__(neurons)
        self.left_out = dict(left_out)
        self.negatives_left_out = dict(negatives_left_out)

    def _summary(self) -> str:
        summary = super()._summary()
        if self.left_out:
            summary += f", {len(self.left_out):,} left out"
        return summary

    def __missing__(self, fact: object) -> NeuronSet:
        """Raise a ``MissingFactError`` that says why there is no set."""
        if not isinstance(fact, Fact):
            raise wrong_kind(fact, "a Fact, since each fact has its own set: neurons[fact]", error=MissingFactError)
        if fact in self.left_out:
            n_prompts = counted(self.left_out[fact], "prompt")
            raise MissingFactError(f"{fact.key} has no set: its {n_prompts} are fewer than min_prompts.")
        near = did_you_mean(fact.key, (other.key for other in self))
        raise MissingFactError(f"{fact.key} has no set: the attribution has no prompts of it.{near}")


@dataclass(frozen=True, kw_only=True)
class RelationRefinement:
    """Refined sets whose share threshold was moved for each relation.

    Attributes:
        neurons: the refined set of each fact, with the facts that were left out; see ``Refined``.
        share_threshold: the final ``p`` of each relation.
        mean_neurons: the mean number of neurons per fact at that ``p``, before negatives are dropped. It is outside the
            target where ``max_moves`` moves did not reach it.
    """

    neurons: Refined
    share_threshold: dict[str, float]
    mean_neurons: dict[str, float]


def coarse(
    attr: Attribution,
    threshold: float = defaults.ATTR_THRESHOLD,
) -> Bool[Tensor, "batch n_layers d_mlp"]:
    """Return each prompt's coarse set: the neurons that score at least ``threshold`` times the prompt's largest score.

    The largest score is taken over all layers. A prompt without a positive score has an empty set. The result is dense
    even if the scores are sparse.

    Raises:
        ArgumentError: threshold outside [0, 1], or below the share from which scores were kept.
    """
    check_attribution(attr)
    check_share("threshold", threshold)
    check_kept("threshold", threshold, attr.keep)
    if not attr.scores.is_sparse:
        return coarse_of(attr.scores, threshold)
    every_prompt = torch.arange(len(attr.scores), device=attr.scores.device)
    members = torch.zeros(attr.scores.shape, dtype=torch.bool, device=attr.scores.device)
    members.flatten(1)[coarse_cells(attr.scores, every_prompt, threshold)] = True
    return members


def refine(
    attr: Attribution,
    *,
    attr_threshold: float = defaults.ATTR_THRESHOLD,
    share_threshold: float = defaults.SHARE_THRESHOLD,
    min_prompts: int = defaults.MIN_PROMPTS,
    negatives: Negatives | None = None,
) -> Refined:
    """Return the refined set of each fact that the attribution has prompts of.

    Args:
        attr: scores of any method, whole or thresholded; the released code takes ``attr_threshold=0.5`` with
            ``method="activation"``.
        attr_threshold: ``t``: a neuron is in a prompt's coarse set from ``t`` times the largest score; at least
            ``attr.keep``.
        share_threshold: ``p``: a neuron is in the refined set if at least ``p`` of the fact's prompts have it.
        min_prompts: the least number of prompts that must have it.
        negatives: negative examples: other facts, given as their refined sets or as an attribution that is refined here
            with the same thresholds. A neuron of a fact is dropped if it is also in the refined set of a negative that
            is phrased the same way (has the fact's relation, or one of its templates) and has another answer: such a
            neuron belongs to the phrasing. Pass ``refine(attr)`` to hold the facts themselves against one another.

    Returns:
        A set for each fact with at least ``min_prompts`` prompts, in the order of ``attr.prompts.facts``; it may be
        empty. Facts with fewer prompts are in ``left_out``. Negatives that are phrased like none of the facts or have
        too few prompts are in ``negatives_left_out``.

    Raises:
        ArgumentError: a threshold outside [0, 1] or below ``attr.keep``, or no fact, or no negative, is left.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> fact = kn.FactSet.world().find("Ireland", relation="P36")
        >>> neurons = kn.refine(kn.attribute(model, kn.make_prompts(model, [fact])))
        >>> 0 < len(neurons[fact]) < 100
        True
    """
    check_attribution(attr)
    _check_thresholds(attr_threshold, share_threshold, min_prompts)
    counts = _PromptCounts.of(attr, attr_threshold, min_prompts)
    neurons = counts.refined(counts.needed(share_threshold))
    if isinstance(negatives, Attribution):
        negatives = refine(
            negatives,
            attr_threshold=attr_threshold,
            share_threshold=share_threshold,
            min_prompts=min_prompts,
        )
    return _without_negatives(neurons, negatives, counts.left_out)


def refine_by_relation(
    attr: Attribution,
    *,
    target: tuple[float, float] = (2, 5),
    step: float = 0.05,
    max_moves: int = 6,
    attr_threshold: float = defaults.ATTR_THRESHOLD,
    share_threshold: float = defaults.SHARE_THRESHOLD,
    min_prompts: int = defaults.MIN_PROMPTS,
    negatives: Negatives | None = None,
) -> RelationRefinement:
    """Refine as ``refine`` does, moving ``share_threshold`` for each relation until its facts have a few neurons each.

    ``p`` goes down by ``step`` while the mean number of neurons per fact is below ``target``, up while it is above,
    within [0, 1] and at most ``max_moves`` times. The released code makes its sixth move in vain (nothing is refined
    after it): ``max_moves=5`` gives its sets.

    Args:
        attr: scores.
        target: least and largest mean number of neurons per fact.
        step: change of ``p`` in one move.
        max_moves: largest number of moves.
        attr_threshold: see ``refine``.
        share_threshold: the first ``p``.
        min_prompts: see ``refine``.
        negatives: see ``refine``; an attribution is refined in this way too. They are dropped after the moves.

    Raises:
        ArgumentError: as ``refine``, or a target, step or number of moves out of range.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, kn.FactSet.world().of("P36")[:2])
        >>> refinement = kn.refine_by_relation(kn.attribute(model, prompts, keep=0.1), max_moves=0)
        >>> refinement.share_threshold
        {'P36': 0.7}
    """
    check_attribution(attr)
    _check_thresholds(attr_threshold, share_threshold, min_prompts)
    low, high = target
    if not 0 <= low <= high:
        raise ArgumentError(f"target={target}; expected the least and the largest mean number of neurons per fact.")
    if not 0 < step <= 1 or max_moves < 0:
        raise ArgumentError(f"step={step}, max_moves={max_moves}; expected a step in (0, 1] and 0 moves or more.")
    if isinstance(negatives, Attribution):
        negatives = refine_by_relation(
            negatives,
            target=target,
            step=step,
            max_moves=max_moves,
            attr_threshold=attr_threshold,
            share_threshold=share_threshold,
            min_prompts=min_prompts,
        ).neurons

    counts = _PromptCounts.of(attr, attr_threshold, min_prompts)
    positions_of: dict[str, list[int]] = {}
    for position, fact in enumerate(counts.facts):
        positions_of.setdefault(fact.relation, []).append(position)
    sizes_at: dict[float, Int[Tensor, " fact"]] = {}
    final: dict[str, float] = {}
    means: dict[str, float] = {}
    needed = torch.zeros(len(counts.facts), dtype=torch.long)
    for relation, positions in positions_of.items():
        p = share_threshold
        moves_left = max_moves
        while True:
            if p not in sizes_at:
                sizes_at[p] = counts.sizes(counts.needed(p))
            mean = sizes_at[p][positions].double().mean().item()
            change = step if mean > high else -step
            # Rounded, lest 0.7 - 0.05 - 0.05 ask for more prompts than 0.6 does.
            moved_p = min(max(round(p + change, 9), 0.0), 1.0)
            if low <= mean <= high or not moves_left or moved_p == p:
                break
            p = moved_p
            moves_left -= 1
        final[relation] = p
        means[relation] = mean
        needed[positions] = counts.needed(p)[positions]
    neurons = _without_negatives(counts.refined(needed), negatives, counts.left_out)
    return RelationRefinement(neurons=neurons, share_threshold=final, mean_neurons=means)


def refine_released(
    path: str | Path,
    *,
    attr_threshold: float = defaults.ATTR_THRESHOLD,
    share_threshold: float = defaults.SHARE_THRESHOLD,
    min_prompts: int = defaults.MIN_PROMPTS,
    metric: str = "ig_gold",
) -> dict[str, NeuronSet]:
    """Refine attributions stored by the released code (``*.rlt.jsonl``), with the meaning and defaults of ``refine``.

    Args:
        path: a relation's file.
        attr_threshold: at least 0.1: the file holds the scores from 0.1 times the prompt's largest.
        share_threshold: see ``refine``.
        min_prompts: see ``refine``.
        metric: ``ig_gold``, ``ig_pred`` or ``base`` (the activations).

    Returns:
        Sets keyed ``P36[0]``, ``P36[1]``, ...: see ``match_facts``.

    Raises:
        ArgumentError: a threshold out of range, or a fact with fewer than ``min_prompts`` prompts.
        DataError: the file cannot be read or has another format.
    """
    check_path(path)
    _check_thresholds(attr_threshold, share_threshold, min_prompts)
    if attr_threshold < 0.1:
        raise ArgumentError(f"attr_threshold={attr_threshold}; expected 0.1 or more: the file has no lower scores.")
    refined = {}
    for key, prompts in read_scores(Path(path), metric):
        _check_enough(key, len(prompts), min_prompts)
        counts: Counter[NeuronKey] = Counter()
        for scores in prompts:
            peak = max(scores.values(), default=0.0)
            for pair, score in scores.items():
                if 0 < peak and score >= attr_threshold * peak:
                    counts[pair] += 1
        needed = prompts_needed(len(prompts), share_threshold, min_prompts)
        refined[key] = NeuronSet(pair for pair, count in counts.items() if count >= needed)
    return refined


# --- coarse sets and how many prompts share a neuron -----------------------------------------------------


def coarse_of(
    scores: Float[Tensor, "batch n_layers d_mlp"],
    threshold: float,
) -> Bool[Tensor, "batch n_layers d_mlp"]:
    """Return the coarse set of each prompt of dense scores; see ``coarse``."""
    peak = scores.nan_to_num(-torch.inf).amax((1, 2), keepdim=True)
    return scores >= _least_score(peak, threshold)  # false for NaN


def coarse_thresholds(attr: Attribution, threshold: float) -> Float[Tensor, " batch"]:
    """Return the least score of a member of each prompt's coarse set; see ``coarse``."""
    if not attr.scores.is_sparse:
        return _least_score(attr.scores.nan_to_num(-torch.inf).amax((1, 2)), threshold)
    scores = attr.scores.coalesce()
    values = scores.values()
    peak = values.new_zeros(len(attr)).scatter_reduce(0, scores.indices()[0], values, "amax")
    return _least_score(peak, threshold)


def prompts_by_fact(prompts: PromptBatch) -> dict[Fact, Int[Tensor, " prompt"]]:
    """Return the indices of the prompts of each fact that has any, in the order of the facts."""
    indices: dict[Fact, list[int]] = {fact: [] for fact in prompts.facts}
    for prompt, fact in enumerate(prompts.fact_index.tolist()):
        indices[prompts.facts[fact]].append(prompt)
    tensors = {}
    for fact, prompt_ids in indices.items():
        if prompt_ids:
            tensors[fact] = torch.tensor(prompt_ids)
    return tensors


def prompts_needed(n_prompts: int, share_threshold: float, min_prompts: int) -> int:
    """Return ``ceil(max(p * n, min_prompts))``; rounded first, since 0.55 * 20 is a little more than 11 in binary."""
    return max(math.ceil(round(share_threshold * n_prompts, 6)), min_prompts)


@dataclass(frozen=True)
class _PromptCounts:
    """The number of prompts of each fact that have a neuron in their coarse set, as a sparse table.

    Neurons with fewer than ``min_prompts`` prompts are left out, so that any share threshold costs little.

    Attributes:
        facts: the facts with enough prompts.
        left_out: the facts with too few prompts, and how many they have.
        n_prompts: the number of prompts of each of ``facts``.
        min_prompts: the least number of prompts that must share a neuron.
        owner: the position in ``facts`` of each entry's fact.
        neuron: layer and row of each entry's neuron.
        count: the number of prompts of the fact that have the neuron.
        layout: which neurons the rows of a layer are.
    """

    facts: list[Fact]
    left_out: dict[Fact, int]
    n_prompts: list[int]
    min_prompts: int
    owner: Int[Tensor, " entry"]
    neuron: Int[Tensor, "entry 2"]
    count: Int[Tensor, " entry"]
    layout: NeuronLayout

    @classmethod
    def of(
        cls,
        attr: Attribution,
        attr_threshold: float,
        min_prompts: int,
    ) -> "_PromptCounts":
        """Count the coarse sets of each fact's prompts.

        Raises:
            ArgumentError: all facts have fewer than ``min_prompts`` prompts, or scores this low were not kept.
        """
        check_kept("attr_threshold", attr_threshold, attr.keep)
        facts: list[Fact] = []
        ids_by_fact: list[Int[Tensor, " prompt"]] = []
        left_out: dict[Fact, int] = {}
        for fact, prompt_ids in prompts_by_fact(attr.prompts).items():
            if len(prompt_ids) < min_prompts:
                left_out[fact] = len(prompt_ids)
            else:
                facts.append(fact)
                ids_by_fact.append(prompt_ids)
        if not facts:  # a mistake of the caller rather than a few facts with few prompts
            fact, n = next(iter(left_out.items()))
            _check_enough(fact.key, n, min_prompts)
        scores = attr.scores
        n_prompts = [len(prompt_ids) for prompt_ids in ids_by_fact]
        n_cells = math.prod(scores.shape[1:])
        prompts_at_once = max(1, CELLS_AT_ONCE // n_cells)
        facts_at_once = max(1, prompts_at_once // max(n_prompts))
        entries, counts = [], []
        for start in range(0, len(facts), facts_at_once):
            group = ids_by_fact[start : start + facts_at_once]
            sizes = torch.tensor(n_prompts[start : start + facts_at_once])
            owners = torch.repeat_interleave(sizes)
            members: list[Int[Tensor, " member"]] = []
            parts = zip(
                torch.cat(group).split(prompts_at_once),
                owners.split(prompts_at_once),
                strict=True,
            )
            for prompt_ids, owner in parts:
                position, cell = coarse_cells(scores, prompt_ids.to(scores.device), attr_threshold)
                fact_number = owner.to(scores.device)[position]
                members.append(fact_number * n_cells + cell)
            # A member is a prompt and a neuron: there are few, of however many neurons.
            entry, count = torch.cat(members).unique(return_counts=True)
            is_shared = count >= min_prompts
            counts.append(count[is_shared].cpu())
            entries.append(entry[is_shared].cpu() + start * n_cells)
        shape = (len(facts), *scores.shape[1:])
        owner, layer, index = torch.unravel_index(torch.cat(entries), shape)
        return cls(
            facts=facts,
            left_out=left_out,
            n_prompts=n_prompts,
            min_prompts=min_prompts,
            owner=owner,
            neuron=torch.stack([layer, index], dim=1),
            count=torch.cat(counts),
            layout=attr.layout,
        )

    def needed(self, share_threshold: float) -> Int[Tensor, " fact"]:
        """Return the number of prompts of each fact that must share a neuron."""
        needed = [prompts_needed(n, share_threshold, self.min_prompts) for n in self.n_prompts]
        return torch.tensor(needed)

    def sizes(self, needed: Int[Tensor, " fact"]) -> Int[Tensor, " fact"]:
        """Return the number of neurons in the refined set of each fact."""
        is_kept = self.count >= needed[self.owner]
        return torch.bincount(self.owner[is_kept], minlength=len(self.facts))

    def refined(self, needed: Int[Tensor, " fact"]) -> dict[Fact, NeuronSet]:
        """Return the refined sets."""
        is_kept = self.count >= needed[self.owner]
        owners = self.owner[is_kept].tolist()
        neurons = self.neuron[is_kept].tolist()
        keys: list[list[NeuronKey]] = [[] for _ in self.facts]
        for owner, (layer, row) in zip(owners, neurons, strict=True):
            keys[owner].append(self.layout.key(layer, row))
        refined = {}
        for fact, fact_keys in zip(self.facts, keys, strict=True):
            refined[fact] = NeuronSet(fact_keys)
        return refined


def coarse_cells(
    scores: Float[Tensor, "batch n_layers d_mlp"],
    prompt_ids: Int[Tensor, " prompt"],
    threshold: float,
) -> tuple[Int[Tensor, " member"], Int[Tensor, " member"]]:
    """Return the members of the prompts' coarse sets: the position in ``prompt_ids``, and ``layer * d_mlp + index``.

    Scores may be dense or sparse; a score that a sparse tensor lacks is in no set.
    """
    if not scores.is_sparse:
        position, cell = coarse_of(scores[prompt_ids], threshold).flatten(1).nonzero().unbind(1)
        return position, cell
    prompt, layer, index = scores.indices().contiguous()  # sorted by prompt: the entries of each are contiguous
    first = torch.searchsorted(prompt, prompt_ids)
    length = torch.searchsorted(prompt, prompt_ids, right=True) - first
    position = torch.repeat_interleave(length)
    offset = first - length.cumsum(0) + length
    entry = torch.arange(len(position), device=position.device) + offset[position]
    values = scores.values()[entry]
    peak = values.new_zeros(len(prompt_ids)).scatter_reduce(0, position, values, "amax")
    is_member = values >= _least_score(peak, threshold)[position]
    entry = entry[is_member]
    return position[is_member], layer[entry] * scores.shape[2] + index[entry]


def _least_score(
    peak: Float[Tensor, "*batch"],
    threshold: float,
) -> Float[Tensor, "*batch"]:
    """Return the least score of a member of the prompt's coarse set."""
    return torch.where(peak > 0, threshold * peak, torch.inf)


# --- negative examples ------------------------------------------------------------------------------------


def _without_negatives(
    neurons: dict[Fact, NeuronSet],
    negatives: Mapping[Fact, NeuronSet] | None,
    left_out: Mapping[Fact, int],
) -> Refined:
    """Drop from each fact the neurons of negatives that are phrased like it.

    A negative is used if it is phrased like any of the facts, also one that was left out.
    """
    if negatives is None:
        return Refined(neurons, left_out, {})
    facts = [*neurons, *left_out]
    relations = {fact.relation for fact in facts}
    templates: set[str] = set()
    for fact in facts:
        templates.update(fact.templates)
    unused: dict[Fact, str] = {}
    if isinstance(negatives, Refined):
        for negative, n in negatives.left_out.items():
            unused[negative] = f"it has {n} prompts, fewer than min_prompts"
    carriers: dict[Neuron, list[Fact]] = {}
    for negative, negative_neurons in negatives.items():
        if negative.relation not in relations and templates.isdisjoint(negative.templates):
            unused[negative] = "it is phrased like none of the facts"
        for neuron in negative_neurons:
            carriers.setdefault(neuron, []).append(negative)
    if negatives and negatives.keys() <= unused.keys():
        negative = next(iter(negatives))
        raise ArgumentError(
            f"The negative example {negative.key} is phrased like none of the facts, as all of them are: "
            "expected some with the relation of a fact, or one of its templates."
            f"{did_you_mean(negative.relation, relations)}"
        )
    own: dict[Fact, NeuronSet] = {}
    for fact, fact_neurons in neurons.items():
        kept = []
        for neuron in fact_neurons:
            if not any(_has_phrasing_of(negative, fact) for negative in carriers.get(neuron, ())):
                kept.append(neuron)
        own[fact] = NeuronSet(kept)
    return Refined(own, left_out, unused)


def _has_phrasing_of(negative: Fact, fact: Fact) -> bool:
    """Return whether a negative is phrased like a fact and has another answer."""
    if negative.object == fact.object:
        return False
    if negative.relation == fact.relation:
        return True
    return not set(negative.templates).isdisjoint(fact.templates)


# --- checks -----------------------------------------------------------------------------------------------


def _check_enough(key: str, n_prompts: int, min_prompts: int) -> None:
    """Raise unless the fact can have a neuron at all."""
    if n_prompts < min_prompts:
        raise ArgumentError(
            f"The fact {key} has {n_prompts} prompt{'s' * (n_prompts != 1)}, "
            f"and a neuron must be shared by {min_prompts}: it can never have one. "
            "Give it more templates, or lower min_prompts."
        )


def _check_thresholds(
    attr_threshold: float,
    share_threshold: float,
    min_prompts: int,
) -> None:
    """Raise unless the thresholds of refining are in their ranges."""
    check_share("attr_threshold", attr_threshold)
    check_share("share_threshold", share_threshold)
    if isinstance(min_prompts, bool) or not isinstance(min_prompts, int) or min_prompts < 1:
        raise ArgumentError(f"min_prompts={min_prompts!r}; expected a whole number from 1.")


def check_kept(name: str, threshold: float, keep: float | None) -> None:
    """Raise where scores from this threshold on have not been kept."""
    if keep is not None and threshold < keep:
        raise ArgumentError(
            f"{name}={threshold}, but only the scores from {keep} times the prompt's largest were kept: "
            f"expected {keep} or more, or scores attributed with keep={threshold} or less."
        )
