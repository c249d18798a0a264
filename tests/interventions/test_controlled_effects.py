"""Controlled effects: equal to `measure`, with matched controls, in passes from the lowest changed layer."""

from functools import cache, partial

import numpy as np
import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.interventions import scoring
from kn_lens.interventions.scoring import Change, Ticks, score_answers_under
from kn_lens.neurons import prompts_by_fact
from tests.effects import FACTS, MODELS, sets_of
from tests.tiny import D_MLP, N_LAYERS, loaded, memory_for

SOME = FACTS[:4] + FACTS[8:12]
"""Facts of both relations, with the one whose answer has several tokens: for what runs a pass or a call for each."""


def test_controlled_effects_equal_means_of_measure(model_and_prompts):
    """Each row is a mean of `measure` over the prompts it names, with the neurons it names."""
    model = model_and_prompts[0]
    prompts = kn.make_prompts(model, SOME)
    found, activation = sets_of(SOME), sets_of(SOME, seed=1)
    effects = kn.controlled_effects(
        model, prompts, found, activation, memory_budget=memory_for(7, model, prompts, gradient=False)
    )
    assert len(effects) == 3 * 2 * len(SOME)
    by_key = {fact.key: fact for fact in SOME}
    prompts_of = {fact.key: [i for i in range(len(prompts)) if prompts.fact(i) == fact] for fact in SOME}
    for row in effects.itertuples():
        fact, measured = by_key[row.key], by_key[row.measured]
        assert (row.relation, row.subject, row.object) == (fact.relation, fact.subject, fact.object)
        assert (measured == fact) == (row.scope == "own")
        assert (measured.relation == fact.relation) == (row.scope == "own")
        assert (row.n_neurons, row.n_prompts) == (len(found[fact]), len(prompts_of[row.measured]))
        part = prompts.select(prompts_of[row.measured])
        if row.neuron_set == "random":
            continue  # drawn inside; see below
        neurons = {"found": found, "activation": activation}[row.neuron_set][fact]
        table = kn.measure(model, part, kn.Suppress(neurons))
        assert row.before == pytest.approx(table.before.mean(), rel=1e-9)
        assert row.after == pytest.approx(table.after.mean(), rel=1e-9)
    unchanged = np.isclose(effects.after, effects.before, rtol=1e-9, atol=0)
    assert (unchanged == (effects.n_neurons == 0)).all()


def test_random_controls_depend_on_the_seed_and_the_fact_alone():
    model = loaded(MODELS[0])
    prompts = kn.make_prompts(model, FACTS)
    found = sets_of(FACTS)

    def afters(neurons, seed):
        effects = kn.controlled_effects(model, prompts, neurons, seed=seed)
        chosen = effects[(effects.neuron_set == "random") & (effects.scope == "own")]
        return dict(zip(chosen.key, chosen.after, strict=True))

    every = afters(found, 0)
    few = afters({fact: found[fact] for fact in FACTS[5:7]}, 0)
    assert few == pytest.approx({fact.key: every[fact.key] for fact in FACTS[5:7]})
    assert every == afters(found, 0) and every != afters(found, 1)


def test_other_facts_are_drawn_by_the_seed():
    model = loaded(MODELS[0])
    prompts = kn.make_prompts(model, FACTS)
    drawn = [
        kn.controlled_effects(model, prompts, sets_of(FACTS), seed=seed).query("scope == 'other'").measured.tolist()
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_control_neurons_match_the_found_neurons_in_number():
    model = loaded(MODELS[0])
    prompts = kn.make_prompts(model, FACTS)
    found = sets_of(FACTS)
    tried = []

    def intervene(sets):
        tried.append(list(sets))
        return kn.Suppress(sets)

    kn.controlled_effects(model, prompts, found, intervene=intervene)
    own = [found[prompts.fact(i)] for i in range(len(prompts))]
    assert tried[0] == own and len(tried) == 4
    random = tried[1]
    assert len(random) == len(own) and len(set(random)) == len(set(own)) == len(FACTS)
    for control, neurons in zip(random, own, strict=True):
        assert control.isdisjoint(neurons) and control.layer_counts(N_LAYERS) == neurons.layer_counts(N_LAYERS)
    # On the prompts of other facts the sets are the same, fact by fact.
    assert set(tried[2]) == set(own) and set(tried[3]) == set(random)


def test_an_intervention_without_effect_changes_no_probability():
    model = loaded(MODELS[0])
    prompts = kn.make_prompts(model, FACTS)
    found = sets_of(FACTS)
    ticks = []
    same = kn.controlled_effects(
        model,
        prompts,
        found,
        intervene=lambda sets: kn.Amplify(sets, 1.0),
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert np.allclose(same.before, same.after, rtol=1e-9) and ticks[-1][0] == ticks[-1][1]
    assert set(same.neuron_set) == {"found", "random"}
    double = kn.controlled_effects(model, prompts, found, intervene=kn.Amplify)
    assert not np.allclose(double.before, double.after, rtol=1e-3)


class AsGiven:
    """An intervention of which only the hooks are known, so that it is measured in full passes."""

    def __init__(self, inner):
        self.inner = inner

    def hooks(self, model, prompts):
        return self.inner.hooks(model, prompts)

    def select(self, prompts, chosen):
        return AsGiven(self.inner.select(prompts, chosen))


@pytest.mark.parametrize("position", ["read", "subject_last"])
def test_controls_at_a_position_are_those_of_full_passes_there(model_and_prompts, position):
    """Found, random and most active neurons act at the position of each prompt, and so on facts of other relations."""
    model, prompts = model_and_prompts
    moved = prompts.at(position)
    found = sets_of(FACTS)
    active = kn.activation_neurons(kn.attribute(model, moved, method="activation"), found)
    full = kn.controlled_effects(
        model, prompts, found, active, intervene=lambda sets: AsGiven(kn.Suppress(sets, position=position))
    )
    resumed = kn.controlled_effects(model, moved, found, active)
    assert resumed.drop(columns=["before", "after"]).equals(full.drop(columns=["before", "after"]))
    np.testing.assert_allclose(resumed.after, full.after, rtol=1e-9)
    assert set(resumed.neuron_set) == {"found", "activation", "random"} and (resumed.before != resumed.after).any()


MAKERS = {
    "suppress": kn.Suppress,
    "amplify": lambda sets: kn.Amplify(sets, -3.0),
    "set": lambda sets: kn.SetTo(sets, 0.7),
    "everywhere": lambda sets: kn.Amplify(sets, 3.0, position="all"),
}


@cache
def in_any_layers():
    """Neurons of each fact in any layers, or none."""
    draw = np.random.default_rng(0)
    return {
        fact: kn.NeuronSet((int(layer), int(draw.integers(D_MLP))) for layer in draw.integers(N_LAYERS, size=i % 4))
        for i, fact in enumerate(SOME)
    }


@cache
def in_full_passes(model):
    """The effects of each kind of intervention in full passes, and of one kind alone in passes of the usual size."""
    found = in_any_layers()
    as_given = {name: lambda sets, make=make: AsGiven(make(sets)) for name, make in MAKERS.items()}
    prompts = kn.make_prompts(model, SOME)
    whole = kn.controlled_effects(model, prompts, found, found, intervene=as_given)
    return whole, kn.controlled_effects(model, prompts, found, found, intervene=MAKERS["amplify"])


@pytest.mark.parametrize("rows", [1, 5, 256])
def test_passes_from_the_lowest_changed_layer_equal_full_passes(model_and_prompts, rows):
    """With each kind of intervention, neurons in any layers or none, and one intervention on all positions."""
    model = model_and_prompts[0]
    prompts, found = kn.make_prompts(model, SOME), in_any_layers()
    assert {min(neurons.by_layer(), default=None) for neurons in found.values()} == {*range(N_LAYERS), None}
    memory = memory_for(rows, model, prompts, gradient=False)
    ticks = []
    fast = kn.controlled_effects(
        model, prompts, found, found, intervene=MAKERS, memory_budget=memory, progress=lambda *now: ticks.append(now)
    )
    whole, alone = in_full_passes(model)
    pd.testing.assert_frame_equal(fast, whole, rtol=1e-9, atol=0)
    assert [name for name, _ in fast.groupby("intervention", sort=False)] == list(MAKERS)
    assert ticks[-1][0] == ticks[-1][1] == max(done for done, _ in ticks)
    pd.testing.assert_frame_equal(
        alone, fast.query("intervention == 'amplify'").drop(columns="intervention").reset_index(drop=True), rtol=1e-9
    )
    assert (np.isclose(fast.before, fast.after, rtol=1e-9, atol=0) == (fast.n_neurons == 0)).all()


def test_score_answers_under_equals_measure(model_and_prompts):
    """With prompts in any order, repeated prompts, and values for each row of an answer of several tokens."""
    model, prompts = model_and_prompts
    host = kn.host_of(model)
    draw = np.random.default_rng(1)
    chosen = torch.tensor(draw.choice(len(prompts), 30))
    part = prompts.select(chosen)
    neurons = [
        kn.NeuronSet((int(layer), int(draw.integers(D_MLP))) for layer in draw.integers(N_LAYERS, size=i % 3))
        for i in range(30)
    ]
    values = torch.randn(part.n_rows, N_LAYERS, D_MLP, dtype=torch.float64, generator=torch.manual_seed(0))
    intervention = kn.SetTo(neurons, values)
    memory = memory_for(5, model, prompts, gradient=False)
    change = Change.of(host, chosen, part, intervention)
    before, (after,) = score_answers_under(host, prompts, [change], memory, Ticks(None, 0))
    expected = kn.measure(model, part, intervention)
    assert np.allclose(before.log_prob[chosen], expected.log_prob_before, rtol=1e-9, atol=0)
    assert np.allclose(after.log_prob, expected.log_prob_after, rtol=1e-9, atol=0)
    assert (before.rank[chosen] == expected.rank_before).all() and (after.rank == expected.rank_after).all()
    assert set(np.flatnonzero(~np.isnan(before.log_prob))) == set(chosen.tolist())
    assert (expected.change[[not one for one in neurons]] == 0).all() and (expected.change != 0).any()


def test_blocks_below_the_lowest_changed_layer_run_once(model_and_prompts):
    model, prompts = model_and_prompts
    top = {fact: kn.NeuronSet([(N_LAYERS - 1, 3)]) for fact in FACTS}
    seen = [0] * N_LAYERS
    # Passes that start at a layer run the checkpoint's own modules.
    layer_of = {block.mlp.out.original_component: layer for layer, block in enumerate(model.blocks)}

    def count(module, args, output):
        if module in layer_of:
            seen[layer_of[module]] += len(output)

    # On all modules there are: hooks on the model itself would be a user's, under which every pass is a whole one.
    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        effects = kn.controlled_effects(model, prompts, top)
    finally:
        handle.remove()
    n_rows = {fact.key: prompts.select(chosen).n_rows for fact, chosen in prompts_by_fact(prompts).items()}
    assert set(seen[:-1]) == {seen[0]}
    assert seen[-1] - seen[0] == sum(n_rows[key] for key in effects.measured)


@pytest.mark.parametrize(
    "facts, neurons, activation, message",
    [
        (FACTS, {}, None, "no facts with neurons"),
        (FACTS[1:], {FACTS[0]: kn.NeuronSet()}, None, r"P36/Ireland/Dublin has neurons and no prompts"),
        (FACTS, {FACTS[0]: kn.NeuronSet()}, {}, "no activation neurons"),
        (FACTS[:8], {FACTS[0]: kn.NeuronSet()}, None, "across_relations=False"),
        (FACTS, {FACTS[0]: kn.NeuronSet([(0, D_MLP)])}, None, f"indices 0 to {D_MLP - 1}"),
    ],
)
def test_controlled_effects_refuse_before_the_model_runs(no_passes, facts, neurons, activation, message):
    prompts = kn.make_prompts(no_passes, facts)
    with pytest.raises(kn.ArgumentError, match=message):
        kn.controlled_effects(no_passes, prompts, neurons, activation)


def test_an_empty_mapping_of_interventions_is_refused_before_the_model_runs(no_passes):
    prompts = kn.make_prompts(no_passes, FACTS)
    with pytest.raises(kn.ArgumentError, match="intervene is empty"):
        kn.controlled_effects(no_passes, prompts, {FACTS[0]: kn.NeuronSet()}, intervene={})


def test_passes_that_rows_of_several_start_layers_share_give_the_same_answers(model_and_prompts, monkeypatch):
    """Rows join passes that start below where the blocks between cost less than blocks of their own."""
    model, prompts = model_and_prompts
    passes, answers = {}, {}
    run = scoring._Chunk._changed

    def counted(self, layer, parts):
        passes[rate] = passes.get(rate, 0) + 1
        return run(self, layer, parts)

    monkeypatch.setattr(scoring._Chunk, "_changed", counted)
    interventions = {factor: partial(kn.Amplify, factor=factor) for factor in (0.0, 2.0)}
    neurons = {fact: kn.NeuronSet([(number % N_LAYERS, number)]) for number, fact in enumerate(FACTS)}
    for rate in (1e-3, 1e20):
        monkeypatch.setitem(scoring.PRODUCTS_PER_SECOND, "cpu", rate)
        effects = kn.controlled_effects(model, prompts, neurons, sets_of(FACTS), intervene=interventions)
        answers[rate] = effects.after.to_numpy()
    assert passes[1e20] < passes[1e-3]
    np.testing.assert_allclose(answers[1e20], answers[1e-3], rtol=1e-12)
