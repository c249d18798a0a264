"""From the scores of a fact's prompts to its neurons, and control neurons beside them (Dai et al. 2022, section 3.2).

A single prompt's scores also pick out neurons of its wording, so a fact's set keeps those that its prompts share:

    coarse set of a prompt     score >= t * (the prompt's largest score),  t = 0.2
    refined set of a fact      in the coarse set of at least max(p * n, 3) of its n prompts,  p = 0.7

A score of NaN says "not computed", and such a neuron is in no set. Where no score is positive no neuron speaks for the
answer, and the coarse set is empty.

``random_neurons`` and ``activation_neurons`` say how much of an effect belongs to these neurons and not to any as many
others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from kn_lens._refining import (
    check_enough,
    check_kept,
    check_share,
    check_thresholds,
    coarse_cells,
    coarse_of,
    count_shares,
    prompts_by_fact,
    prompts_needed,
)
from kn_lens.attribution import Attribution
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import Host, host_of
from kn_lens.neuron_files import read_scores
from kn_lens.neuron_sets import Neuron, NeuronSet, match_facts

__all__ = [
    "Negatives",
    "Neuron",
    "NeuronSet",
    "Refined",
    "RelationRefinement",
    "activation_neurons",
    "coarse",
    "match_facts",
    "matched_neurons",
    "random_neurons",
    "refine",
    "refine_by_relation",
    "refine_released",
]

Negatives = Attribution | Mapping[Fact, NeuronSet]
"""Negative examples: see ``refine``."""


class Refined(dict[Fact, NeuronSet]):
    """The refined set of each fact, and what there is none of.

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


@dataclass(frozen=True, kw_only=True)
class RelationRefinement:
    """Refined sets whose share threshold was moved for each relation.

    Attributes:
        neurons: the refined set of each fact, with what was left out; see ``Refined``.
        share_threshold: where each relation's ``p`` came to rest.
        mean_neurons: the mean number of neurons per fact there, before negatives are dropped. Outside the target where
            ``max_moves`` did not get it in.
    """

    neurons: Refined
    share_threshold: dict[str, float]
    mean_neurons: dict[str, float]


def coarse(attr: Attribution, threshold: float = 0.2) -> Bool[Tensor, "batch n_layers d_mlp"]:
    """Return each prompt's coarse set: the neurons that score at least ``threshold`` times the prompt's largest score.

    The largest score is taken over all layers. A prompt without a positive score has none. The result is dense, also
    where the scores are not.

    Raises:
        ArgumentError: threshold outside [0, 1], or below the share from which scores were kept.
    """
    check_share("threshold", threshold)
    check_kept("threshold", threshold, attr.keep)
    if not attr.scores.is_sparse:
        return coarse_of(attr.scores, threshold)
    everyone = torch.arange(len(attr.scores), device=attr.scores.device)
    found = torch.zeros(attr.scores.shape, dtype=torch.bool, device=attr.scores.device)
    found.flatten(1)[coarse_cells(attr.scores, everyone, threshold)] = True
    return found


def refine(
    attr: Attribution,
    *,
    attr_threshold: float = 0.2,
    share_threshold: float = 0.7,
    min_prompts: int = 3,
    negatives: Negatives | None = None,
) -> Refined:
    """Return the refined set of each fact that the attribution has prompts of.

    Args:
        attr: scores of any method, whole or thresholded; the released code takes ``attr_threshold=0.5`` with
            ``method="activation"``.
        attr_threshold: ``t``: a neuron is in a prompt's coarse set from ``t`` times the largest score; at least
            ``attr.keep``.
        share_threshold: ``p``: it is in the refined set when at least ``p`` of the fact's prompts have it.
        min_prompts: and at least this many prompts.
        negatives: negative examples: other facts, by their refined sets, or by an attribution that is refined here with
            the same thresholds. A neuron of a fact is dropped when it is also in the refined set of a negative that is
            phrased the same way (has the fact's relation, or one of its templates) and has another answer: such a
            neuron belongs to the phrasing. Pass ``refine(attr)`` to hold the facts themselves against one another.

    Returns:
        A set for each fact with at least ``min_prompts`` prompts, in the order of ``attr.prompts.facts``; it may be
        empty. Facts with fewer are in its ``left_out``, negatives that are phrased like none of the facts or have too
        few prompts in its ``negatives_left_out``.

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
    check_thresholds(attr_threshold, share_threshold, min_prompts)
    shares = count_shares(attr, attr_threshold, min_prompts)
    neurons = shares.refined(shares.needed(share_threshold))
    if isinstance(negatives, Attribution):
        negatives = refine(
            negatives, attr_threshold=attr_threshold, share_threshold=share_threshold, min_prompts=min_prompts
        )
    return _without_negatives(neurons, negatives, shares.left_out)


def refine_by_relation(
    attr: Attribution,
    *,
    target: tuple[float, float] = (2, 5),
    step: float = 0.05,
    max_moves: int = 6,
    attr_threshold: float = 0.2,
    share_threshold: float = 0.7,
    min_prompts: int = 3,
    negatives: Negatives | None = None,
) -> RelationRefinement:
    """Refine as ``refine`` does, moving ``share_threshold`` for each relation until its facts have a few neurons each.

    ``p`` goes down by ``step`` while the mean number of neurons per fact is below ``target``, up while it is above,
    within [0, 1] and at most ``max_moves`` times. The released code makes its sixth move in vain (nothing is refined
    after it): ``max_moves=5`` gives its sets.

    Args:
        attr: scores.
        target: least and largest mean number of neurons per fact.
        step: what ``p`` moves by.
        max_moves: how often it may.
        attr_threshold: see ``refine``.
        share_threshold: where ``p`` starts.
        min_prompts: see ``refine``.
        negatives: see ``refine``; an attribution is refined in this way too. Dropped after the moves.

    Raises:
        ArgumentError: as ``refine``, or a target, step or number of moves that makes no sense.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, kn.FactSet.world().of("P36")[:2])
        >>> refinement = kn.refine_by_relation(kn.attribute(model, prompts, keep=0.1), max_moves=0)
        >>> refinement.share_threshold
        {'P36': 0.7}
    """
    check_thresholds(attr_threshold, share_threshold, min_prompts)
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

    shares = count_shares(attr, attr_threshold, min_prompts)
    members: dict[str, list[int]] = {}
    for position, fact in enumerate(shares.facts):
        members.setdefault(fact.relation, []).append(position)
    sizes_at = cache(lambda p: shares.sizes(shares.needed(p)))
    resting, means = {}, {}
    for relation, positions in members.items():
        p, moves_left = share_threshold, max_moves
        while True:
            mean = sizes_at(p)[positions].double().mean().item()
            # Rounded, lest 0.7 - 0.05 - 0.05 ask for more prompts than 0.6 does.
            moved = min(max(round(p + (step if mean > high else -step), 9), 0.0), 1.0)
            if low <= mean <= high or not moves_left or moved == p:
                break
            p, moves_left = moved, moves_left - 1
        resting[relation], means[relation] = p, mean
    needed_at = cache(lambda p: shares.needed(p).tolist())
    needed = [needed_at(resting[fact.relation])[position] for position, fact in enumerate(shares.facts)]
    neurons = _without_negatives(shares.refined(torch.tensor(needed)), negatives, shares.left_out)
    return RelationRefinement(neurons=neurons, share_threshold=resting, mean_neurons=means)


def refine_released(
    path: str | Path,
    *,
    attr_threshold: float = 0.2,
    share_threshold: float = 0.7,
    min_prompts: int = 3,
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
        DataError: the file cannot be read or holds something else.
    """
    check_thresholds(attr_threshold, share_threshold, min_prompts)
    if attr_threshold < 0.1:
        raise ArgumentError(f"attr_threshold={attr_threshold}; expected 0.1 or more: the file has no lower scores.")
    refined = {}
    for key, prompts in read_scores(Path(path), metric):
        check_enough(key, len(prompts), min_prompts)
        counts: Counter[tuple[int, int]] = Counter()
        for scores in prompts:
            peak = max(scores.values(), default=0.0)
            counts.update(pair for pair, score in scores.items() if 0 < peak and score >= attr_threshold * peak)
        needed = prompts_needed(len(prompts), share_threshold, min_prompts)
        refined[key] = NeuronSet(pair for pair, count in counts.items() if count >= needed)
    return refined


def random_neurons(neurons: NeuronSet, model: Any, seed: int | Sequence[int] = 0) -> NeuronSet:
    """Return as many other neurons of each layer, drawn at random: what any neurons of these layers would do.

    The number is what makes it a control, so it is kept also where a set has more than half of a layer: then all
    others are taken, and the rest is drawn from the set itself. What such a control shares with the set it also does,
    so it says too little of what the set does beyond it, never too much.

    Args:
        neurons: the set to match; none of it is drawn while there are enough others.
        model: whose layers they are; a ``Host`` will do.
        seed: the same seed and set give the same neurons.

    Raises:
        ArgumentError: a neuron that the model does not have.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> found = NeuronSet([(2, 5), (3, 17), (3, 40)])
        >>> control = random_neurons(found, model, seed=1)
        >>> control.layer_counts(4), control.isdisjoint(found)
        ((0, 0, 1, 2), True)
    """
    host = model if isinstance(model, Host) else host_of(model)
    neurons.check(host)
    generator = np.random.default_rng(seed)
    drawn: list[tuple[int, int]] = []
    for layer, indices in neurons.by_layer().items():
        others = np.delete(np.arange(host.d_mlp), indices)
        n_others = min(len(indices), len(others))
        chosen = generator.choice(others, n_others, replace=False).tolist()
        if n_others < len(indices):
            chosen += generator.choice(indices, len(indices) - n_others, replace=False).tolist()
        drawn += [(layer, index) for index in chosen]
    return NeuronSet(drawn)


def activation_neurons(activations: Attribution, neurons_by_fact: Mapping[Fact, NeuronSet]) -> dict[Fact, NeuronSet]:
    """Return for each fact as many neurons, those of highest mean activation over its prompts.

    It asks of a method what it adds to reading the activations off. (The paper's baseline refines activations with
    thresholds of their own, and so ends up with another number of neurons.)

    Args:
        activations: from ``attribute(..., method="activation")``, whole, with prompts of all the facts.
        neurons_by_fact: the sets to match in number.

    Raises:
        ArgumentError: scores of another method, thresholded scores, or a fact without prompts.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> fact = kn.FactSet.world().find("Ireland", relation="P36")
        >>> activations = kn.attribute(model, kn.make_prompts(model, fact), method="activation")
        >>> len(kn.activation_neurons(activations, {fact: kn.NeuronSet([(2, 5), (3, 17)])})[fact])
        2
    """
    if activations.method != "activation":
        raise ArgumentError(
            f"Got scores by {activations.method!r}; expected attribute(..., method='activation'). For the highest "
            "scores of another method use matched_neurons."
        )
    return matched_neurons(activations, neurons_by_fact)


def matched_neurons(attr: Attribution, neurons_by_fact: Mapping[Fact, NeuronSet]) -> dict[Fact, NeuronSet]:
    """Return for each fact as many neurons, those of highest mean score over its prompts: two methods at equal count.

    Args:
        attr: scores of any method, whole, with prompts of all the facts.
        neurons_by_fact: the sets to match in number.

    Raises:
        ArgumentError: thresholded scores, a fact without prompts, or one with fewer scores than neurons.
    """
    return highest_neurons(attr, {fact: len(neurons) for fact, neurons in neurons_by_fact.items()})


def highest_neurons(attr: Attribution, n_by_fact: Mapping[Fact, int]) -> dict[Fact, NeuronSet]:
    """Return for each fact so many neurons, those of highest mean score over its prompts.

    Raises:
        ArgumentError: a fact without prompts, or with fewer scores than neurons; or thresholded scores, whose missing
            ones would be missing from the means.
    """
    if attr.keep is not None:
        raise ArgumentError(
            f"Means over prompts need all scores, and these were kept from {attr.keep} times the prompt's largest on: "
            "expected an attribution with keep=None."
        )
    prompts_of = prompts_by_fact(attr.prompts)
    highest = {}
    for fact, n in n_by_fact.items():
        if fact not in prompts_of:
            raise ArgumentError(
                f"The attribution has no prompts of {fact.key}."
                + did_you_mean(fact.key, (other.key for other in prompts_of))
            )
        means = rearrange(attr.scores[prompts_of[fact]].mean(0), "n_layers d_mlp -> (n_layers d_mlp)")
        n_scores = int((~means.isnan()).sum())
        if n > n_scores:
            raise ArgumentError(
                f"{fact.key} is to have {n} neurons, and the attribution has fewer scores for it, {n_scores}; expected "
                "one of all layers and neurons."
            )
        places = torch.where(means.isnan(), -torch.inf, means).topk(n).indices
        highest[fact] = NeuronSet(divmod(place, attr.scores.shape[-1]) for place in places.tolist())
    return highest


def _without_negatives(
    neurons: dict[Fact, NeuronSet], negatives: Mapping[Fact, NeuronSet] | None, left_out: Mapping[Fact, int]
) -> Refined:
    """Drop what negatives that are phrased like a fact, be it one that was left out, have too."""
    if negatives is None:
        return Refined(neurons, left_out, {})
    facts = [*neurons, *left_out]
    relations = {fact.relation for fact in facts}
    templates = {template for fact in facts for template in fact.templates}
    too_few = negatives.left_out if isinstance(negatives, Refined) else {}
    unused = {fact: f"it has {n} prompts, fewer than min_prompts" for fact, n in too_few.items()}
    carriers: dict[Neuron, list[Fact]] = {}
    for negative, found in negatives.items():
        if negative.relation not in relations and templates.isdisjoint(negative.templates):
            unused[negative] = "it is phrased like none of the facts"
        for neuron in found:
            carriers.setdefault(neuron, []).append(negative)
    if negatives and all(negative in unused for negative in negatives):
        negative = next(iter(negatives))
        raise ArgumentError(
            f"The negative example {negative.key} is phrased like none of the facts, as all of them are: expected some "
            f"with the relation of a fact, or one of its templates.{did_you_mean(negative.relation, relations)}"
        )

    def belongs_to_phrasing(neuron: Neuron, fact: Fact) -> bool:
        return any(
            negative.object != fact.object
            and (negative.relation == fact.relation or not set(negative.templates).isdisjoint(fact.templates))
            for negative in carriers.get(neuron, ())
        )

    own = {
        fact: NeuronSet(neuron for neuron in found if not belongs_to_phrasing(neuron, fact))
        for fact, found in neurons.items()
    }
    return Refined(own, left_out, unused)
