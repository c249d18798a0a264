"""Effects of edits, compared with plain loops over prompts and with suppression; the model stays unchanged."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.edits import scored_questions
from kn_lens.edits.questions import OTHER_FACTS
from kn_lens.interventions import AnswerScores
from tests.edits.update_cases import ABOUT_IRELAND, ACTIVE, FOUND, FRANCE, GERMANY, HELD_OUT, IRELAND, NEW, others_of
from tests.effects import CAPITAL, FACTS, INVERSE, MODELS, naive_reading
from tests.reliability.state import differences, state_of
from tests.tiny import loaded, memory_for


@pytest.fixture(params=MODELS)
def model(request):
    """Return a model; check after the test that it is unchanged."""
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


class NaiveScores(NamedTuple):
    """The answer's log-probability and worst rank and the top tokens of each prompt."""

    log_prob: np.ndarray
    rank: np.ndarray
    top: list[str]


def naive_scores(model, fact_or_facts):
    """Return the scores of the answers, running every prompt alone."""
    prompts = kn.make_prompts(model, fact_or_facts)
    log_probs, ranks, tops = [], [], []
    for prompt in range(len(prompts)):
        prob, rank, top = naive_reading(model, prompts, prompt, lambda part: [])
        log_probs.append(np.log(prob))
        ranks.append(rank)
        tops.append(top)
    return NaiveScores(np.array(log_probs), np.array(ranks), tops)


def current_answer_columns(before, after):
    return {
        "n_prompts": len(before.rank),
        "right_before": np.mean(before.rank == 0),
        "right_after": np.mean(after.rank == 0),
        "lost": np.mean((before.rank == 0) & (after.rank != 0)),
        "nll_before": -np.mean(before.log_prob),
        "nll_after": -np.mean(after.log_prob),
    }


def new_answer_columns(when, scores):
    return {
        f"new_right_{when}": np.mean(scores.rank == 0),
        f"new_top5_{when}": np.mean(scores.rank < 5),
        f"new_rank_{when}": np.mean(scores.rank),
        f"new_mrr_{when}": np.mean(1 / (1 + scores.rank)),
        f"new_nll_{when}": -np.mean(scores.log_prob),
    }


def test_update_effects_equal_a_loop_over_facts_and_prompts(model):
    """The table has one row for each question of a fact, scored with the edit of these neurons applied."""
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
    n_done = [done for done, _ in ticks]
    assert n_done == sorted(set(n_done)) and n_done[-1] == ticks[-1][1]
    rows = table.set_index(["key", "neuron_set", "dose", "question"])
    assert rows.index.is_unique
    questions_of = {fact: {"own wording": kn.Question(fact, new)} for fact, new in NEW.items()}
    for name, group in all_questions().items():
        for fact, question in group.items():
            questions_of[fact][name] = question
    assert set(questions_of[IRELAND]) == {"own wording", "held out", "inverse", "synonym"}
    assert set(questions_of[GERMANY]) == {"own wording", "held out"}  # Paris and Rome is the capital of nothing
    n_rows = 0
    for fact, new in NEW.items():
        before, new_before, answered = {}, {}, {}
        for name, question in questions_of[fact].items():
            answered[name] = replace(question.query, object=question.answer)
            before[name] = naive_scores(model, question.query)
            new_before[name] = naive_scores(model, answered[name])
        for kind, dose in [("found", 1.0), ("found", 0.25), ("activation", 1.0)]:
            sets = FOUND if kind == "found" else ACTIVE
            edit = kn.update_fact(model, fact, new, sets[fact], lambdas=(dose, 2 * dose), allow_unknown=True)
            for name, question in questions_of[fact].items():
                with edit.applied(model):
                    after = naive_scores(model, question.query)
                    new_after = naive_scores(model, answered[name])
                row = rows.loc[(fact.key, kind, dose, name)]
                expected = current_answer_columns(before[name], after)
                expected |= new_answer_columns("before", new_before[name])
                expected |= new_answer_columns("after", new_after)
                for column, value in expected.items():
                    assert row[column] == pytest.approx(value, rel=1e-6, abs=1e-9), column
                assert after.top.count(row["says"]) == max(map(after.top.count, after.top))
                assert (row["new_object"], row["n_neurons"]) == (new, len(edit.neurons))
                n_rows += 1
    assert n_rows == 3 * (4 + 3 + 2)
    assert (table.nll_before != table.nll_after).all()


def test_the_fifth_answer_is_among_five_and_the_first_of_equally_frequent_answers_is_said():
    """Ranks and answers that few models give side by side."""
    scores = []
    for ranks in ([5, 5, 5, 5], [0, 4, 5, 9]):
        scores.append(AnswerScores(log_prob=np.zeros(4), rank=np.array(ranks), top=[[0]] * 4))
    columns = scored_questions.new_answer_columns(*scores)
    assert (columns["new_top5_before"], columns["new_top5_after"], columns["new_right_after"]) == (0, 0.5, 0.25)
    assert scored_questions.most_frequent(["Oslo", "Rome", "Paris", "Paris", "Rome"]) == "Rome"


def test_other_facts_are_grouped_by_what_they_share(model):
    others = others_of(model)
    table = kn.update_effects(model, {IRELAND: "Tokyo"}, FOUND, others=others)
    rows = table[table.neuron_set == "found"].set_index("question")
    rest = [fact for fact in others.facts if fact != IRELAND]
    groups = {
        "same relation": [fact for fact in rest if fact.relation == "P36"],
        "other relations": [fact for fact in rest if fact.relation != "P36"],
        "same subject": [ABOUT_IRELAND],
        "same answer": [ABOUT_IRELAND],
        "new answer": [fact for fact in rest if fact.object == "Tokyo"],
    }
    assert set(rows.index) == {"own wording", *groups} and len(groups["new answer"]) == 1
    edit = kn.update_fact(model, IRELAND, "Tokyo", FOUND[IRELAND], allow_unknown=True)
    templates = {"P36": CAPITAL[:1], "P1376": INVERSE, "P38": ABOUT_IRELAND.templates}
    for name, facts in groups.items():
        worded = [replace(fact, templates=templates[fact.relation]) for fact in facts]
        before = naive_scores(model, worded)
        with edit.applied(model):
            after = naive_scores(model, worded)
        for column, value in current_answer_columns(before, after).items():
            assert rows.loc[name, column] == pytest.approx(value, rel=1e-6, abs=1e-9), (name, column)
        assert np.isnan(rows.loc[name, "new_nll_after"])
    of_france = kn.update_effects(model, {FRANCE: "Lima"}, FOUND, others=others)
    assert "same subject" not in set(of_france.question)


def test_effects_show_an_update_that_does_not_reach_the_inverse_relation():
    """In a trained model the new capital is given in all wordings, and the new capital keeps its old country."""
    model = kn.load_model("world-gpt2")
    trained, held_out = kn.FactSet.world("trained"), kn.FactSet.world("held_out")
    fact = trained.find("Ireland", relation="P36")
    found = kn.refine(kn.attribute(model, kn.make_prompts(model, fact)))
    new = {fact: "Tokyo"}
    questions = {
        "held out": kn.reworded(held_out, new),
        "inverse": kn.inverse_questions(held_out, new, {"P36": "P1376"}),
    }
    table = kn.update_effects(model, new, found, questions=questions).set_index(["neuron_set", "question"])
    reached = table.new_right_after
    assert reached["found", "own wording"] == reached["found", "held out"] == 1
    assert reached["found", "inverse"] == 0 and table.right_after["found", "inverse"] == 1
    assert list(table.says["found"]) == ["Tokyo", "Tokyo", "Japan"]
    assert (table.lost["random"] == 0).all() and (table.new_right_after["random"] == 0).all()


def test_effects_show_an_update_of_one_wording_alone():
    """An update of neurons that are active in one trained wording alone gives the new answer in that wording alone."""
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
    found = table[table.neuron_set == "found"].set_index("question")
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


def test_effects_do_not_depend_on_the_memory_budget(model):
    others = others_of(model)
    new = {fact: NEW[fact] for fact in (IRELAND, FRANCE)}
    small, large = (
        kn.update_effects(
            model, new, FOUND, others=others, memory_budget=memory_for(rows, model, others, gradient=False)
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
    found, random = (alone.neuron_set == "found"), (alone.neuron_set == "random")
    assert alone[found].equals(other[found]) and (alone[random].nll_after != other[random].nll_after).all()
    assert (together.groupby("key").n_neurons.nunique() == 1).all()


# --- erasing ---------------------------------------------------------------------------------------------


def test_erasing_equals_suppression_at_all_positions(model):
    prompts = others_of(model)
    sets = {fact: FOUND[fact] for fact in FACTS}
    table = kn.erase_effects(model, prompts, sets, ACTIVE, top=4)
    assert set(table.relation) == {"P36", "P1376"}
    for (relation, kind), part in table.groupby(["relation", "neuron_set"]):
        found = {
            fact: own for fact, own in (ACTIVE if kind == "activation" else sets).items() if fact.relation == relation
        }
        assert len(part) == len(prompts.facts) and (part.n_neurons == 4).all()
        assert (part.question == np.where(part.measured_relation == relation, "same relation", "other relations")).all()
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


def test_erase_effects_take_min_facts_and_a_value(model):
    prompts = others_of(model)
    sets = {fact: own | kn.NeuronSet([(1, 5)]) for fact, own in FOUND.items() if fact.relation == "P36"}
    tables = [kn.erase_effects(model, prompts, sets, min_facts=len(sets), value=value) for value in ("zero", 7)]
    assert all((table.n_neurons == 1).all() and set(table.relation) == {"P36"} for table in tables)
    with kn.erase_neurons(model, kn.NeuronSet([(1, 5)]), value=7).applied(model):
        alone = kn.measure(model, prompts, [])
    found = tables[1][tables[1].neuron_set == "found"]
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
        ({"questions": {OTHER_FACTS[0]: {}}}, kn.ArgumentError, "'same relation' have a name"),
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


def test_a_fact_without_another_wording_is_refused_by_name():
    with pytest.raises(kn.ArgumentError, match="no other wording of P36/Germany/Berlin"):
        kn.reworded(HELD_OUT[:2], NEW)
