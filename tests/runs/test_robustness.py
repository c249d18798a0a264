"""Robustness: varied refinements equal those of the library, and so do the effects of the neurons of other methods."""

from functools import cache

import pytest

import kn_lens as kn
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.robustness import (
    CANDIDATES,
    LAYERWISE_METHODS,
    METHODS,
    NEURON_BY_NEURON,
    OTHER_FACT,
    STABILITY,
)
from tests.intervals import hold_their_values
from tests.tiny import D_MLP
from tests.tiny_runs import tiny_facts

STAGES = (STABILITY, METHODS)
SETTINGS = Settings.of(check_facts=3, check_draws=2, min_prompts=2, max_moves=0, n_resamples=20)


@pytest.fixture(scope="module")
def attribute(model):
    """Return ``kn.attribute`` of one fact, computed once for each way."""

    @cache
    def attributed(fact, **options):
        return kn.attribute(model, kn.make_prompts(model, fact), **options)

    return attributed


@pytest.mark.parametrize(
    ("varied", "attributed", "refined"),
    [
        ("attr_threshold 0.3", {}, {"attr_threshold": 0.3}),
        ("share_threshold 0.9", {}, {"share_threshold": 0.9}),
        ("left 20", {"quadrature": "left", "n_steps": 20}, {}),
        ("right 20", {"quadrature": "right", "n_steps": 20}, {}),
    ],
)
def test_varied_sets_equal_those_of_the_library(finished, attribute, varied, attributed, refined):
    context, _ = finished
    records = context.all_records(STABILITY).query("varied == @varied").set_index("key")
    assert len(records)
    for fact in tiny_facts():
        if fact.key in records.index:
            standard = kn.refine(attribute(fact), min_prompts=2)[fact]
            other = kn.refine(attribute(fact, **attributed), **{"min_prompts": 2, **refined})[fact]
            assert records.loc[fact.key, "n_neurons"] == len(other)
            assert records.loc[fact.key, "jaccard"] == len(standard & other) / len(standard | other)


def test_every_variation_is_compared(finished):
    context, tables = finished
    records = context.all_records(STABILITY)
    table = tables["stability"].set_index("varied")
    # Of four prompts a quarter is too few to refine from, with at least two needed.
    drawn = records[records["varied"].str.contains("prompts")]
    assert set(drawn["varied"]) == {"50% of the prompts", "75% of the prompts"}
    assert (drawn.groupby(["key", "varied"]).size() == 2).all()
    assert set(table.index) == set(records["varied"])
    assert (table["control"] == table.loc[OTHER_FACT, "value"]).all()
    assert hold_their_values(table)


def test_methods_are_judged_by_suppressing_their_neurons(finished, model):
    context, tables = finished
    records = context.all_records(METHODS)
    for fact in tiny_facts():
        rows = records.query("key == @fact.key").set_index("neuron_set")
        if len(rows):
            found = context.neurons("found", fact.relation)[fact]
            prompts = kn.make_prompts(model, fact)
            attr = kn.attribute(model, prompts, method="gradient_x_activation")
            matched = kn.matched_neurons(attr, {fact: found})[fact]
            for kind, neurons in (("refined", found), ("gradient_x_activation", matched)):
                effect = kn.measure(model, prompts, kn.Suppress(neurons))
                assert rows.loc[kind, "after"] == pytest.approx(effect["after"].mean(), rel=1e-9)
            assert (rows["n_neurons"] == len(found)).all()
    table = tables["methods"]
    assert set(table["neuron_set"]) == {"refined", "random", *LAYERWISE_METHODS, *NEURON_BY_NEURON}
    assert table["value"].is_monotonic_increasing
    assert (table["control"] == table.set_index("neuron_set").loc["random", "value"]).all()


@pytest.mark.parametrize("method", NEURON_BY_NEURON)
def test_neuron_by_neuron_methods_choose_the_best_candidates(finished, model, attribute, method):
    context, _ = finished
    records = context.all_records(METHODS).query("neuron_set == @method").set_index("key")
    n_left_out = 0
    for fact in tiny_facts():
        if fact.key in records.index:
            found = context.neurons("found", fact.relation)[fact]
            prompts = kn.make_prompts(model, fact)
            candidates = set(found)
            for other in LAYERWISE_METHODS:
                means = attribute(fact, method=other).scores.mean(0).flatten()
                candidates |= neurons_at(means.argsort(descending=True)[: CANDIDATES * len(found)])
            means = attribute(fact, method=method).scores.mean(0)
            chosen = sorted(candidates, key=lambda one: -means[one.layer, one.index])[: len(found)]
            effect = kn.measure(model, prompts, kn.Suppress(kn.NeuronSet(chosen)))
            assert records.loc[fact.key, "after"] == pytest.approx(effect["after"].mean(), rel=1e-9)
            n_left_out += means.numel() - len(candidates)
    assert n_left_out


def neurons_at(places):
    return set(kn.NeuronSet(divmod(place, D_MLP) for place in places.tolist()))
