"""What edits do: against plain loops over prompts, and suppression; and that nothing of them is left behind."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.edit_questions import SCOPES
from tests.effects import CAPITAL, FACTS, INVERSE, MODELS, naive_reading
from tests.reliability.state import differences, state_of
from tests.tiny import D_MLP, N_LAYERS, loaded, memory_for

IRELAND, FRANCE, GERMANY = (fact for fact in FACTS if fact.subject in ("Ireland", "France", "Germany"))
NEW = {IRELAND: "Tokyo", FRANCE: "Lima", GERMANY: "Paris and Rome"}  # several tokens now, and several then
HELD_OUT = [replace(fact, templates=("The seat of government of [X] is [Y]", "[X] is led from [Y].")) for fact in NEW]
ABOUT_IRELAND = kn.Fact("Ireland", "P38", "Dublin", ("The people of [X] pay with [Y]",))  # its subject, its answer


def sets_of(facts, seed=0, n=2):
    """A few neurons of each layer for each fact."""
    draw = np.random.default_rng(seed)
    return {
        fact: kn.NeuronSet(
            (layer, index) for layer in range(N_LAYERS) for index in draw.permutation(D_MLP)[:n].tolist()
        )
        for fact in facts
    }


FOUND, ACTIVE = sets_of(FACTS), sets_of(FACTS, seed=1)


@pytest.fixture(params=MODELS)
def model(request):
    """A model that has to come back as it was."""
    model = loaded(request.param)
    before = state_of(model)
    yield model
    assert not differences(before, state_of(model))


def all_questions():
    return {
        "held out": kn.reworded(HELD_OUT, NEW),
        "inverse": kn.inverse_questions(FACTS, NEW, {"P36": "P1376"}),
        "synonym": {IRELAND: kn.Question(IRELAND, "Nairobi")},
    }


def others_of(model):
    return kn.make_prompts(
        model, [*FACTS, ABOUT_IRELAND], templates={"P36": CAPITAL[:1], "P1376": INVERSE, "P38": ABOUT_IRELAND.templates}
    )


def readings(model, facts):
    """(answer's log-probability, worst rank, top tokens) of every prompt of the facts, each run alone."""
    prompts = kn.make_prompts(model, facts)
    read = [naive_reading(model, prompts, i, lambda part: []) for i in range(len(prompts))]
    return np.log([one[0] for one in read]), np.array([one[1] for one in read]), [one[2] for one in read]


def of_old(before, after):
    return {
        "n_prompts": len(before[1]),
        "right_before": np.mean(before[1] == 0),
        "right_after": np.mean(after[1] == 0),
        "lost": np.mean((before[1] == 0) & (after[1] != 0)),
        "nll_before": -np.mean(before[0]),
        "nll_after": -np.mean(after[0]),
    }


def of_new(when, reading):
    log_prob, rank, _ = reading
    return {
        f"new_right_{when}": np.mean(rank == 0),
        f"new_top5_{when}": np.mean(rank < 5),
        f"new_rank_{when}": np.mean(rank),
        f"new_mrr_{when}": np.mean(1 / (1 + rank)),
        f"new_nll_{when}": -np.mean(log_prob),
    }


def test_updates_are_what_a_loop_over_facts_and_prompts_gives(model):
    """One row for each question that there is, read with the edit of these neurons in force."""
    ticks = []
    table = kn.update_effects(
        model,
        NEW,
        FOUND,
        ACTIVE,
        questions=all_questions(),
        others=others_of(model),
        doses=(1.0, 0.25),
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert ticks[-1][0] == ticks[-1][1] and [done for done, _ in ticks] == sorted({done for done, _ in ticks})
    rows = table.set_index(["key", "neurons", "dose", "asked"])
    assert rows.index.is_unique
    asked_of = {fact: {"own wording": kn.Question(fact, new)} for fact, new in NEW.items()}
    for name, group in all_questions().items():
        for fact, question in group.items():
            asked_of[fact][name] = question
    assert set(asked_of[IRELAND]) == {"own wording", "held out", "inverse", "synonym"}
    assert set(asked_of[GERMANY]) == {"own wording", "held out"}  # Paris and Rome is the capital of nothing
    n_rows = 0
    for fact, new in NEW.items():
        for kind, dose in [("found", 1.0), ("found", 0.25), ("activation", 1.0)]:
            sets = FOUND if kind == "found" else ACTIVE
            edit = kn.update_fact(model, fact, new, sets[fact], lambdas=(dose, 2 * dose), allow_unknown=True)
            for name, question in asked_of[fact].items():
                answered = replace(question.asked, object=question.answer)
                before, new_before = readings(model, [question.asked]), readings(model, [answered])
                with edit.applied(model):
                    after, new_after = readings(model, [question.asked]), readings(model, [answered])
                row = rows.loc[(fact.key, kind, dose, name)]
                expected = of_old(before, after) | of_new("before", new_before) | of_new("after", new_after)
                for column, value in expected.items():
                    assert row[column] == pytest.approx(value, rel=1e-6, abs=1e-9), column
                assert after[2].count(row["says"]) == max(map(after[2].count, after[2]))
                assert (row["new_object"], row["n_neurons"]) == (new, len(edit.neurons))
                n_rows += 1
    assert n_rows == 3 * (4 + 3 + 2)
    assert (table.nll_before != table.nll_after).all()


def test_other_facts_are_told_apart_by_what_they_share(model):
    others = others_of(model)
    table = kn.update_effects(model, {IRELAND: "Tokyo"}, FOUND, others=others)
    rows = table[table.neurons == "found"].set_index("asked")
    rest = [fact for fact in others.facts if fact != IRELAND]
    shares = {
        "same relation": [fact for fact in rest if fact.relation == "P36"],
        "other relations": [fact for fact in rest if fact.relation != "P36"],
        "same subject": [ABOUT_IRELAND],
        "same answer": [ABOUT_IRELAND],
        "new answer": [fact for fact in rest if fact.object == "Tokyo"],
    }
    assert set(rows.index) == {"own wording", *shares} and len(shares["new answer"]) == 1
    edit = kn.update_fact(model, IRELAND, "Tokyo", FOUND[IRELAND], allow_unknown=True)
    templates = {"P36": CAPITAL[:1], "P1376": INVERSE, "P38": ABOUT_IRELAND.templates}
    for scope, facts in shares.items():
        asked = [replace(fact, templates=templates[fact.relation]) for fact in facts]
        before = readings(model, asked)
        with edit.applied(model):
            after = readings(model, asked)
        for column, value in of_old(before, after).items():
            assert rows.loc[scope, column] == pytest.approx(value, rel=1e-6, abs=1e-9), (scope, column)
        assert np.isnan(rows.loc[scope, "new_nll_after"])
    assert "same subject" not in set(kn.update_effects(model, {FRANCE: "Lima"}, FOUND, others=others).asked)


def test_an_update_that_does_not_reach_the_inverse_is_seen():
    """On a trained model: the new capital in all wordings, the old country of the new capital as before."""
    model = kn.load_model("world-gpt2")
    trained, held_out = kn.FactSet.world("trained"), kn.FactSet.world("held_out")
    fact = trained.find("Ireland", relation="P36")
    found = kn.refine(kn.attribute(model, kn.make_prompts(model, fact)))
    new = {fact: "Tokyo"}
    questions = {
        "held out": kn.reworded(held_out, new),
        "inverse": kn.inverse_questions(held_out, new, {"P36": "P1376"}),
    }
    table = kn.update_effects(model, new, found, questions=questions).set_index(["neurons", "asked"])
    reached = table.new_right_after
    assert reached["found", "own wording"] == reached["found", "held out"] == 1
    assert reached["found", "inverse"] == 0 and table.right_after["found", "inverse"] == 1
    assert list(table.says["found"]) == ["Tokyo", "Tokyo", "Japan"]
    assert (table.lost["random"] == 0).all() and (table.new_right_after["random"] == 0).all()


def test_an_update_of_one_wording_alone_is_seen():
    """Rewrite neurons that fire in one trained wording and no held-out one: only that wording gets the new answer."""
    model = kn.load_model("world-gpt2-plain")
    trained, held_out = (kn.FactSet.world(split).find("Ireland", relation="P36") for split in ("trained", "held_out"))
    one = replace(trained, templates=trained.templates[:1])
    firing, elsewhere = (
        kn.attribute(model, kn.make_prompts(model, fact), method="activation").scores.abs().amax(0)
        for fact in (one, held_out)
    )
    places = (firing - 5 * elsewhere).flatten().topk(3).indices.tolist()
    neurons = kn.NeuronSet(divmod(place, firing.shape[-1]) for place in places)
    questions = {"held out": kn.reworded([held_out], {one: "Tokyo"})}
    table = kn.update_effects(model, {one: "Tokyo"}, {one: neurons}, questions=questions, lambdas=(1.0, 30.0))
    found = table[table.neurons == "found"].set_index("asked")
    assert found.right_before.tolist() == [1, 1]
    assert (found.lost["own wording"], found.new_right_after["own wording"]) == (1, 1)
    assert (found.lost["held out"], found.new_right_after["held out"], found.says["held out"]) == (0, 0, "Dublin")


def test_doses_scale_both_lambdas(model):
    table = kn.update_effects(model, NEW, FOUND, ACTIVE, doses=(0.0, 2.0), others=others_of(model))
    none = table[table.dose == 0]
    for column in ("right", "nll", "new_rank", "new_nll"):
        assert np.allclose(none[f"{column}_before"], none[f"{column}_after"], rtol=1e-9, equal_nan=True)
    assert (none.lost == 0).all()
    doubled = kn.update_effects(model, NEW, FOUND, ACTIVE, lambdas=(2.0, 4.0), others=others_of(model))
    assert np.allclose(table[table.dose == 2].nll_after, doubled.nll_after)


def test_passes_of_any_size_give_the_same(model):
    others = others_of(model)
    small, large = (
        kn.update_effects(
            model, NEW, FOUND, others=others, memory_budget=memory_for(rows, model, others, gradient=False)
        )
        for rows in (3, 256)
    )
    pd.testing.assert_frame_equal(small, large)


def test_random_neurons_are_matched_and_do_not_depend_on_other_facts(model):
    together = kn.update_effects(model, NEW, FOUND)
    alone = kn.update_effects(model, {FRANCE: NEW[FRANCE]}, FOUND)
    of_france = together[together.key == FRANCE.key].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, of_france)
    other = kn.update_effects(model, {FRANCE: NEW[FRANCE]}, FOUND, seed=1)
    found, random = (alone.neurons == "found"), (alone.neurons == "random")
    assert alone[found].equals(other[found]) and (alone[random].nll_after != other[random].nll_after).all()
    assert (together.groupby("key").n_neurons.nunique() == 1).all()


# --- erasing ---------------------------------------------------------------------------------------------


def test_erasing_is_suppression_at_all_positions(model):
    prompts = others_of(model)
    sets = {fact: FOUND[fact] for fact in FACTS}
    table = kn.erase_effects(model, prompts, sets, ACTIVE, top=4)
    assert set(table.relation) == {"P36", "P1376"}
    for (relation, kind), part in table.groupby(["relation", "neurons"]):
        found = {
            fact: own for fact, own in (ACTIVE if kind == "activation" else sets).items() if fact.relation == relation
        }
        assert len(part) == len(prompts.facts) and (part.n_neurons == 4).all()
        assert (part.asked == np.where(part.measured_relation == relation, "same relation", "other relations")).all()
        if kind == "random":
            continue
        erased = kn.erase_relation(model, found, top=4).neurons
        effect = kn.measure(model, prompts, kn.Suppress(erased, position="all"))
        effect = effect.assign(measured=[prompts.fact(i).key for i in range(len(prompts))]).groupby("measured")
        rows = part.set_index("measured")
        assert np.allclose(rows.nll_before, -effect.log_prob_before.mean()[rows.index])
        assert np.allclose(rows.nll_after, -effect.log_prob_after.mean()[rows.index])
        right = effect.rank_after.agg(lambda rank: (rank == 0).mean())
        assert np.allclose(rows.right_after, right[rows.index])
    assert (table.nll_before != table.nll_after).all()


def test_what_erased_rows_become_and_which_can_be_chosen(model):
    prompts = others_of(model)
    sets = {fact: own | kn.NeuronSet([(1, 5)]) for fact, own in FOUND.items() if fact.relation == "P36"}
    tables = [kn.erase_effects(model, prompts, sets, min_facts=len(sets), value=value) for value in ("zero", 7)]
    assert all((table.n_neurons == 1).all() and set(table.relation) == {"P36"} for table in tables)
    with kn.erase_neurons(model, kn.NeuronSet([(1, 5)]), value=7).applied(model):
        alone = kn.measure(model, prompts, [])
    found = tables[1][tables[1].neurons == "found"]
    assert (found.nll_after * found.n_prompts).sum() == pytest.approx(-alone.log_prob_after.sum())
    assert not np.allclose(tables[0].nll_after, tables[1].nll_after)


# --- nothing is left behind, nothing runs for nothing ----------------------------------------------------


@pytest.mark.parametrize("at", [0.2, 0.5, 0.9])
def test_an_interruption_leaves_the_model_as_it_was(model, at):
    def interrupt(done, total):
        if done > at * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kn.update_effects(model, NEW, FOUND, others=others_of(model), progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        kn.erase_effects(model, others_of(model), FOUND, top=4, progress=interrupt)


FAR = kn.Fact("Atlantis", "P36", "Poseidonis", CAPITAL)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"new_objects": {}}, kn.ArgumentError, "no facts to edit"),
        ({"new_objects": {FAR: "Tokyo"}}, kn.ArgumentError, "P36/Atlantis/Poseidonis has no neurons"),
        ({"activation_neurons": {IRELAND: FOUND[IRELAND]}}, kn.ArgumentError, "no activation neurons"),
        ({"new_objects": {IRELAND: "Dublin"}}, kn.EditError, "expected another"),
        ({"neurons_by_fact": dict.fromkeys(FACTS, kn.NeuronSet())}, kn.EditError, "neuron"),
        ({"lambdas": (1,)}, kn.ArgumentError, "lambdas"),
        ({"doses": (1.0, float("nan"))}, kn.ArgumentError, "factor=nan"),
        ({"doses": ()}, kn.ArgumentError, "doses"),
        ({"questions": {"far": {FAR: kn.Question(FAR, "Tokyo")}}}, kn.ArgumentError, "not updated"),
        (
            {"questions": {"same": {IRELAND: kn.Question(IRELAND, "Dublin")}}},
            kn.ArgumentError,
            "the answer that it has",
        ),
        ({"questions": {SCOPES[0]: {}}}, kn.ArgumentError, "'same relation' have a name"),
        (
            {"questions": {"odd": {IRELAND: kn.Question(replace(IRELAND, templates=("[Y] of [X]",)), "Tokyo")}}},
            kn.PromptError,
            "No prompt is left",
        ),
        ({"memory_budget": -1}, kn.ArgumentError, "memory_budget"),
    ],
)
def test_updates_are_refused_before_the_model_runs(no_passes, change, error, message):
    given = {"new_objects": NEW, "neurons_by_fact": FOUND, "others": others_of(no_passes), **change}
    with pytest.raises(error, match=message):
        kn.update_effects(no_passes, **given)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"neurons_by_fact": {}}, kn.ArgumentError, "no neurons of any relation"),
        ({"neurons_by_fact": {FAR: FOUND[IRELAND], ABOUT_IRELAND: kn.NeuronSet()}}, kn.EditError, "nothing to erase"),
        ({"neurons_by_fact": {replace(FAR, relation="P37"): FOUND[IRELAND]}}, kn.ArgumentError, "expected some of P37"),
        ({"activation_neurons": {IRELAND: FOUND[IRELAND]}}, kn.ArgumentError, "no activation neurons"),
        ({"top": 0}, kn.ArgumentError, "top"),
        ({"top": 3, "min_facts": 2}, kn.ArgumentError, "expected one of them"),
        ({"value": "zzz"}, kn.EditError, "no token"),
        ({"memory_budget": 0}, kn.ArgumentError, "memory_budget"),
    ],
)
def test_erasing_is_refused_before_the_model_runs(no_passes, change, error, message):
    given = {"prompts": others_of(no_passes), "neurons_by_fact": FOUND, **change}
    with pytest.raises(error, match=message):
        kn.erase_effects(no_passes, **given)


def test_an_answer_that_the_model_cannot_write_is_refused():
    model = loaded("BertForMaskedLM")
    with pytest.raises(kn.EditError, match="cannot be an answer"):
        kn.update_effects(model, {IRELAND: "東京"}, FOUND)


def test_prompts_of_the_erased_relation_alone_have_no_others(no_passes):
    prompts = kn.make_prompts(no_passes, [IRELAND, FRANCE])
    with pytest.raises(kn.ArgumentError, match="some of other relations"):
        kn.erase_effects(no_passes, prompts, {IRELAND: FOUND[IRELAND]})


def test_a_fact_without_other_wording_is_named():
    with pytest.raises(kn.ArgumentError, match="no other wording of P36/Germany/Berlin"):
        kn.reworded(HELD_OUT[:2], NEW)
