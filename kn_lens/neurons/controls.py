"""Control neurons: as many neurons as a set has, drawn at random or chosen by another score.

They tell how much of an effect belongs to the neurons of the set, and how much any set of this size would have.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from kn_lens._core.notation import NeuronKey, NeuronLike
from kn_lens.attribution import Attribution, Progress, attribute_in_parts, check_attribution
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import HookedModel, Host, host_of
from kn_lens.neurons.neuron_set import NeuronSet, SetsByFact, check_neurons_by_fact, neuron_set_of
from kn_lens.neurons.refine import prompts_by_fact
from kn_lens.prompts import PromptBatch


def random_neurons(
    neurons: Iterable[NeuronLike],
    model: HookedModel | Host,
    seed: int | Sequence[int] = 0,
) -> NeuronSet:
    """Return as many other neurons of each layer, drawn at random: the effect of any neurons of these layers.

    In a layer with experts they are drawn of each expert: a neuron of another expert would mostly be off.

    A set may have more than half of a layer, so that too few others are left. The number is kept: all others are taken,
    and the rest is drawn from the set itself. Such a control has part of the set's own effect. What the set does beyond
    it is then understated, never overstated.

    Args:
        neurons: the set to match; none of it is drawn while there are enough others.
        model: the model of the layers; a ``Host`` will do.
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
    neurons = neuron_set_of(neurons)
    host = host_of(model)
    generator = np.random.default_rng(seed)
    drawn: list[NeuronKey] = []
    for layer, candidates, indices in _candidates(neurons, host):
        others = np.setdiff1d(candidates, indices)
        n_others = min(len(indices), len(others))
        chosen = generator.choice(others, n_others, replace=False).tolist()
        if n_others < len(indices):
            chosen += generator.choice(indices, len(indices) - n_others, replace=False).tolist()
        for index in chosen:
            drawn.append(host.layout.key(layer, index))
    return NeuronSet(drawn)


def _candidates(neurons: NeuronSet, host: Host) -> Iterator[tuple[int, np.ndarray, list[int]]]:
    """Yield for each layer, and each expert of it, the rows to draw from, and the rows of the set among them."""
    layout = host.layout
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for layer, rows in neurons.rows_by_layer(host).items():
        for row in rows:
            rows_of.setdefault(layout.key(layer, row)[:-1], []).append(row)
    for (layer, *expert), rows in rows_of.items():
        candidates = range(host.d_mlp)
        if layout.layers:
            candidates = layout.layers[layer].rows_of_expert(expert[0] if expert else None)
        yield layer, np.array(candidates), rows


def activation_neurons(
    activations: Attribution,
    neurons_by_fact: Mapping[Fact, NeuronSet],
) -> SetsByFact:
    """Return for each fact as many neurons, those of highest mean activation over its prompts.

    The control tells what a method adds to reading off the activations. The paper's baseline is another one: it refines
    activations with thresholds of their own, which give another number of neurons.

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
    check_attribution(activations)
    if activations.method != "activation":
        raise ArgumentError(
            f"Got scores by {activations.method!r}; expected attribute(..., method='activation'). "
            "For the highest scores of another method use matched_neurons."
        )
    return matched_neurons(activations, neurons_by_fact)


def most_active_neurons(
    model: HookedModel | Host,
    prompts: PromptBatch,
    neurons_by_fact: Mapping[Fact, NeuronSet],
    *,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> SetsByFact:
    """Return for each fact as many neurons, those of highest mean activation over its prompts.

    The same as ``activation_neurons`` of an attribution of all prompts, in memory that does not grow with them.

    Args:
        model: a TransformerLens model.
        prompts: prompts of all the facts, and of no others.
        neurons_by_fact: the sets to match in number.
        memory_budget: see ``attribute``.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with (done, total), counted in
            (prompt, layer) pairs.

    Returns:
        The most active neurons, in the order of the prompts' facts. Cost: one forward pass per row.

    Raises:
        ArgumentError: as ``attribute``.
    """
    parts = attribute_in_parts(
        model,
        prompts,
        together="fact",
        method="activation",
        memory_budget=memory_budget,
        progress=progress,
    )
    active = SetsByFact()
    for _, activations in parts:
        sets = {}
        for number in activations.prompts.fact_index.unique().tolist():
            fact = prompts.facts[number]
            sets[fact] = neurons_by_fact[fact]
        active |= activation_neurons(activations, sets)
    return active


def matched_neurons(
    attr: Attribution,
    neurons_by_fact: Mapping[Fact, NeuronSet],
) -> SetsByFact:
    """Return for each fact as many neurons, those of highest mean score over its prompts: two methods at equal count.

    Args:
        attr: scores of any method, whole, with prompts of all the facts.
        neurons_by_fact: the sets to match in number.

    Raises:
        ArgumentError: thresholded scores, a fact without prompts, or one with fewer scores than neurons.
    """
    check_attribution(attr)
    check_neurons_by_fact(neurons_by_fact)
    n_by_fact = {fact: len(neurons) for fact, neurons in neurons_by_fact.items()}
    return highest_neurons(attr, n_by_fact)


def highest_neurons(
    attr: Attribution,
    n_by_fact: Mapping[Fact, int],
) -> SetsByFact:
    """Return for each fact the given number of neurons of highest mean score over its prompts.

    Raises:
        ArgumentError: a fact without prompts, or with fewer scores than neurons; or thresholded scores, since the means
            need all of them.
    """
    if attr.keep is not None:
        raise ArgumentError(
            f"Means over prompts need all scores, and these were kept from {attr.keep} times "
            "the prompt's largest on: expected an attribution with keep=None."
        )
    n_rows = attr.scores.shape[-1]
    prompts_of = prompts_by_fact(attr.prompts)
    highest = SetsByFact()
    for fact, n in n_by_fact.items():
        if fact not in prompts_of:
            near = did_you_mean(fact.key, (other.key for other in prompts_of))
            raise ArgumentError(f"The attribution has no prompts of {fact.key}.{near}")
        if attr.layout.has_experts:
            stored, by_prompt = attr[prompts_of[fact].tolist()].stored_cells()
            means = torch.from_numpy(by_prompt.mean(0))
        else:
            means = attr.scores[prompts_of[fact]].mean(0).flatten()
            stored = np.arange(len(means))
        n_scores = int((~means.isnan()).sum())
        if n > n_scores:
            raise ArgumentError(
                f"{fact.key} is to have {n} neurons, and the attribution has fewer scores for it, "
                f"{n_scores}; expected one of all layers and neurons."
            )
        cells = stored[torch.where(means.isnan(), -torch.inf, means).topk(n).indices.tolist()]
        highest[fact] = NeuronSet(attr.layout.key(*divmod(cell, n_rows)) for cell in cells.tolist())
    return highest
