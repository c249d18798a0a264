"""The choice of lambdas, signs of updates in tables of effects, and updates that disturb other facts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.edits.effects import MAX_DISTURBED, disturbed_share
from kn_lens.edits.strength import GRID
from tests.edits.update_cases import FOUND, HELD_OUT, NEW, others_of
from tests.effects import FACTS
from tests.reliability.state import differences, state_of
from tests.tiny import D_MLP, N_LAYERS, loaded

IRELAND, FRANCE = (fact for fact in FACTS if fact.subject in ("Ireland", "France") and fact.relation == "P36")
GATED = "LlamaForCausalLM"


def measured(*rows):
    return pd.DataFrame(rows, columns=["lambda_old", "lambda_new", "success", "disturbed"])


@pytest.mark.parametrize(
    "rows, expected, within",
    [
        ([(1, 2, 0.5, 0.0), (1, 4, 0.8, 0.1), (1, 8, 0.9, 0.11)], (1, 4), True),  # at most the share, then success
        ([(1, 8, 0.9, 0.05), (1, 4, 0.9, 0.05), (1, 2, 0.8, 0.0)], (1, 4), True),  # of equals the weakest, in any order
        ([(1, 1, 0.0, 0.0), (1, 8, 0.0, 0.0)], (1, 1), True),  # nothing succeeds
        ([(1, 1, 0.0, 0.2), (1, 8, 0.0, 0.0)], (1, 8), True),  # nor is the weakest allowed
        ([(-4, 0, 0.5, 0.0), (0, 3, 0.5, 0.0)], (0, 3), True),  # strength has no sign
        ([(1, 2, 0.1, 0.4), (1, 4, 0.9, 0.3), (1, 8, 1.0, 0.7)], (1, 4), False),  # all disturb: the one that does least
        ([(1, 2, 0.1, np.nan), (1, 4, 0.9, 0.3)], (1, 4), False),  # what is not known is not allowed
    ],
)
def test_a_strength_is_chosen_by_the_rule(rows, expected, within):
    choice = kn.LambdaChoice.of(measured(*rows), max_disturbed=0.1)
    assert (choice.lambdas, choice.within) == (tuple(map(float, expected)), within)
    assert choice.success == next(success for old, new, success, _ in rows if (old, new) == choice.lambdas)
    strength = choice.table.lambda_old.abs() + choice.table.lambda_new.abs()
    assert strength.is_monotonic_increasing and len(choice.table) == len(rows)


def test_choose_lambdas_measures_the_effects_of_update_effects():
    model = loaded(GATED)
    before = state_of(model)
    others, ticks = others_of(model), []
    grid = [(1, 8), (0.5, 2)]
    choice = kn.choose_lambdas(
        model,
        NEW,
        FOUND,
        others,
        held_out=HELD_OUT,
        grid=grid,
        max_disturbed=0.5,
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert not differences(before, state_of(model)) and ticks[-1][0] == ticks[-1][1]
    assert choice.table[["lambda_old", "lambda_new"]].values.tolist() == [[0.5, 2], [1, 8]]
    for row in choice.table.to_dict("records"):
        effects = kn.update_effects(
            model,
            NEW,
            FOUND,
            questions={"held out": kn.reworded(HELD_OUT, NEW)},
            others=others,
            lambdas=(row["lambda_old"], row["lambda_new"]),
        )
        found = effects[effects.neuron_set == "found"]
        held_out = found[found.question == "held out"]
        own = found[found.question == "own wording"]
        assert row["success"] == held_out.new_right_after.mean()
        assert row["success_own"] == own.new_right_after.mean()
        assert row["disturbed"] == pytest.approx(own.disturbed.mean(), nan_ok=True)
        assert row["n_facts"] == len(NEW)
    own = kn.choose_lambdas(model, NEW, FOUND, others, grid=grid[:1]).table
    assert own.success.equals(own.success_own) and (own.success_own == choice.table.success_own[1]).all()
    assert len(kn.choose_lambdas(model, {FRANCE: "Lima"}, FOUND, others).table) == len(GRID)


def test_the_measures_of_a_strength_are_means_over_the_facts():
    model = kn.load_model("world-gpt2")
    held_out = kn.FactSet.world("held_out")
    facts = [held_out.find(name, relation="P36") for name in ("Ireland", "Japan")]
    found = {facts[0]: kn.NeuronSet([(3, 11)]), facts[1]: kn.NeuronSet((3, index) for index in range(100))}
    others = kn.make_prompts(model, held_out.of("P36", "P30").sample(20, seed=0), unknown_answers="leave_out")

    def measures(*chosen):
        table = kn.choose_lambdas(model, dict.fromkeys(chosen, "Rome"), found, others, grid=[(4, 60)]).table
        return table.loc[0, ["success", "disturbed"]].to_numpy(dtype=float)

    one, other = measures(facts[0]), measures(facts[1])
    assert (one < other).all()  # a row changes nothing, and a hundred rows change everything
    assert measures(*facts) == pytest.approx((one + other) / 2)


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"grid": []}, kn.ArgumentError, "grid is empty"),
        ({"grid": [(1,)]}, kn.ArgumentError, "two finite numbers"),
        ({"grid": [None]}, kn.ArgumentError, "two finite numbers"),
        ({"max_disturbed": 2}, kn.ArgumentError, "max_disturbed"),
        ({"new_objects": {}}, kn.ArgumentError, "no facts"),
        ({"held_out": HELD_OUT[:1]}, kn.ArgumentError, "no other wording of"),
        ({"preset": "papr"}, kn.ArgumentError, "Did you mean 'paper'"),
    ],
)
def test_a_choice_is_refused_before_the_model_runs(no_passes, given, error, message):
    given = {"new_objects": NEW, "neurons_by_fact": FOUND, "others": others_of(no_passes), **given}
    with pytest.raises(error, match=message):
        kn.choose_lambdas(no_passes, **given)


@pytest.mark.parametrize("preset", [None, "paper"])
def test_controls_are_updated_with_the_signs_of_their_own_activations(preset):
    """Each row of the table equals the effect of an edit of these neurons alone, also for control neurons."""
    model = loaded(GATED)
    active = {IRELAND: kn.NeuronSet((layer, index) for layer in range(N_LAYERS) for index in (D_MLP - 1, D_MLP - 2))}
    new = {IRELAND: "Tokyo"}
    table = kn.update_effects(model, new, FOUND, active, preset=preset).set_index("neuron_set")
    prompts = kn.make_prompts(model, replace(IRELAND, object="Tokyo"))
    negative = {}
    for kind, neurons in (("found", FOUND[IRELAND]), ("activation", active[IRELAND])):
        edit = kn.update_fact(model, IRELAND, "Tokyo", neurons, preset=preset, allow_unknown=True)
        negative[kind] = edit.why[0]["n_negative"]
        after = kn.measure(model, prompts, edit)
        assert table.new_nll_after[kind] == pytest.approx(-after.log_prob_after.mean())
    if preset is None:
        assert len(set(negative.values())) == 2  # signs of their own
        unsigned = kn.update_effects(model, new, FOUND, active, signed=False).set_index("neuron_set")
        assert (table.new_nll_after != unsigned.new_nll_after).all()


def test_updates_that_take_more_than_the_share_of_other_answers_are_flagged():
    """The flag is the same in all rows of an update, and counts the prompts of other facts once each."""
    model = kn.load_model("world-gpt2")
    held_out = kn.FactSet.world("held_out")
    fact = held_out.find("Ireland", relation="P36")
    found = {fact: kn.NeuronSet([(2, 5), (3, 11), (3, 40), (3, 41)])}
    facts = held_out.of("P36", "P30").sample(20, seed=0)
    others = kn.make_prompts(model, facts, unknown_answers="leave_out")
    options = {"others": others, "lambdas": (4.0, 60.0)}
    table = kn.update_effects(model, {fact: "Tokyo"}, found, **options)
    kept = [number for number in range(len(others)) if others.fact(number) != fact]
    part = others.select(torch.tensor(kept))
    edit = kn.update_fact(model, fact, "Tokyo", found[fact], lambdas=(4.0, 60.0), allow_unknown=True)
    effect = kn.measure(model, part, edit)
    was_right = effect.rank_before == 0
    share = float((effect.rank_after[was_right] != 0).mean())
    rows = table[table.neuron_set == "found"]
    assert 0 < share < 1 and np.allclose(rows.disturbed, share)
    assert (table.disturbs == (table.disturbed > MAX_DISTURBED)).all()
    for limit, flagged in ((share - 1e-6, True), (rows.disturbed.iloc[0], False), (1.0, False)):
        again = kn.update_effects(model, {fact: "Tokyo"}, found, **options, max_disturbed=limit)
        assert (again[again.neuron_set == "found"].disturbs == flagged).all()
    without = kn.update_effects(model, {fact: "Tokyo"}, found)
    assert without.disturbed.isna().all() and not without.disturbs.any()
    assert np.isnan(disturbed_share([]))
