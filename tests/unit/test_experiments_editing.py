"""The stages of editing: their records are what the library computes, their tables the means over relations."""

import dataclasses
import math

import numpy as np
import pytest

import kn_lens as kn
from kn_lens.errors import ArgumentError, DataError
from kn_lens.experiments import answers, editing
from kn_lens.experiments.reproduction import hold_out, open_study
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.running import run
from kn_lens.experiments.settings import Settings
from tests.intervals import hold_their_values
from tests.tiny import tiny_model
from tests.unit.test_experiments import tiny_facts

STAGES = [answers.STAGE, editing.UPDATES, editing.ERASURES]
SETTINGS = Settings.of(
    relations=("P36", "P1376", "P30"), limit=4, update_facts=2, update_others=3, erase_top=5, erase_facts=3,
    erase_others=4, max_share=1.0, synonyms=("Rome=Roma",), n_resamples=40,
)  # fmt: skip


OTHER_WORDINGS = kn.FactSet(
    dataclasses.replace(fact, templates=fact.templates[:2]) for fact in kn.FactSet.world("trained").of("P36", "P30")
)


@pytest.fixture(scope="module")
def model():
    return kn.load_model("world-gpt2")


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    with open_study(model, kn.FactSet.world("held_out"), path, SETTINGS, held_out=OTHER_WORDINGS) as study:
        yield study, run(study, STAGES, lambda state: None)


def test_known_facts_are_those_on_top_in_half_of_their_prompts(finished, model):
    study, _ = finished
    for relation in study.relations():
        known = answers.known_facts(study, relation)
        for fact in study.asked_facts(relation):
            ranks = kn.measure(model, kn.make_prompts(model, fact), kn.Suppress(kn.NeuronSet()))["rank_before"]
            assert (fact in known) == ((ranks == 0).mean() >= 0.5)
    assert len(known)


def test_updates_are_those_of_the_library(finished, model):
    study, _ = finished
    for relation in study.relations():
        records = study.records("updates", Shard(relation))
        own = records.query("asked == 'own wording' and neurons == 'found'")
        facts = {fact.key: fact for fact in study.asked_facts(relation)}
        assert 0 < len(own) <= SETTINGS.update_facts
        for row in own.to_dict("records"):
            fact = facts[row["key"]]
            assert fact in answers.known_facts(study, relation) and row["new_object"] != fact.object
            neurons = study.neurons("found", relation)[fact]
            edit = kn.update_fact(model, fact, row["new_object"], neurons, allow_unknown=True)
            assert row["n_neurons"] == len(neurons)
            effect = kn.measure(model, kn.make_prompts(model, fact), edit)
            assert row["right_after"] == (effect["rank_after"] == 0).mean()
            assert row["nll_after"] == pytest.approx(-effect["log_prob_after"].mean(), rel=1e-3)


def test_erasures_are_measured_on_as_many_facts_as_the_settings_say(finished):
    study, _ = finished
    records = study.all_records(editing.ERASURES)
    counts = records.groupby(["relation", "neurons", "asked"])["measured"].nunique().unstack()
    assert (counts["same relation"] == SETTINGS.erase_facts).all() and SETTINGS.erase_facts < SETTINGS.limit
    assert (counts["other relations"] == SETTINGS.erase_others).all()


def test_controls_have_as_many_neurons(finished):
    study, _ = finished
    for stage, fact in ((editing.UPDATES, "key"), (editing.ERASURES, "measured")):
        records = study.all_records(stage).query("neurons != ''")
        counts = records.groupby(["relation", fact, "neurons"])["n_neurons"].first().unstack()
        assert (counts["found"] > 0).all() and (counts["random"] == counts["found"]).all()
        assert (counts["activation"] <= counts["found"]).all()


def test_inverse_relations_are_asked_where_there_are_any(finished):
    study, _ = finished
    asked = study.all_records(editing.UPDATES).groupby("relation")["asked"].unique()
    assert "inverse relation" in asked["P36"] and "inverse relation" not in asked["P30"]


def test_updates_are_asked_in_wordings_that_nothing_was_found_with(finished, model):
    study, tables = finished
    records = study.all_records(editing.UPDATES).query("asked == 'held-out wording' and neurons == 'found'")
    assert set(records["relation"]) == {"P36", "P30"} == set(OTHER_WORDINGS.relations)
    for row in records.to_dict("records"):
        fact = next(fact for fact in OTHER_WORDINGS if fact.key == row["key"])
        neurons = study.neurons("found", fact.relation)[fact]
        own = next(own for own in study.facts if own == fact)  # signs are those of the wordings it was found with
        edit = kn.update_fact(model, own, row["new_object"], neurons, allow_unknown=True)
        now = dataclasses.replace(fact, object=row["new_object"])
        effect = kn.measure(model, kn.make_prompts(model, now), edit)
        assert row["n_prompts"] == len(effect) == 2
        assert row["new_right_after"] == (effect["rank_after"] == 0).mean()
    assert "held-out wording" in set(tables["table6"]["asked"])


def test_held_out_templates_are_taken_from_the_facts_own():
    facts = kn.FactSet.world("trained").of("P36", "P30")
    kept, taken = hold_out(facts, n=2, least=3, seed=1)
    assert list(kept) == list(taken) == list(facts)
    for fact, one, other in zip(facts, kept, taken, strict=True):
        assert len(other.templates) == 2 and not set(one.templates) & set(other.templates)
        assert set(one.templates) | set(other.templates) == set(fact.templates)
        assert [template for template in fact.templates if template in one.templates] == list(one.templates)
    of_relation = {(fact.relation, fact.templates) for fact in taken}
    assert len(of_relation) == 2
    assert len({fact.templates for fact in hold_out(facts, n=2, least=3, seed=2)[1]} - {one for _, one in of_relation})
    short = kn.FactSet(dataclasses.replace(fact, templates=fact.templates[:4]) for fact in facts)
    assert {len(fact.templates) for fact in hold_out(short, n=2, least=3, seed=1)[0]} == {3}
    assert not len(hold_out(short, n=2, least=4, seed=1)[1])


def test_wordings_are_held_out_in_one_way(model, tmp_path):
    settings = Settings.of(held_out=2)
    facts = kn.FactSet.world("trained")
    with (
        pytest.raises(ArgumentError, match="held_out=2, but the data have held-out wordings"),
        open_study(model, facts, tmp_path / "run", settings, held_out=OTHER_WORDINGS),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_numbers_have_intervals_controls_and_the_papers_values(finished):
    _, tables = finished
    for name in ("answers", "table5", "table5_by_relation", "table6", "table6_by_relation"):
        table = tables[name]
        assert {"value", "low", "high", "n", "control"} <= set(table.columns) and (table["n"] > 0).all()
        assert hold_their_values(table)
    success = tables["table6"].query("asked == 'own wording' and measure == 'success'").set_index("neurons")
    assert success.loc["found", "paper"] == 0.344 and success.loc["random", "paper"] == 0.0
    assert (success["control"] == success.loc["random", "value"]).all()
    assert success.loc["found", "value"] > success.loc["random", "value"]


def test_perplexities_are_of_all_prompts_together(finished):
    study, tables = finished
    records = study.all_records(editing.UPDATES).query("asked == 'same relation' and neurons == 'found'")
    n = records["n_prompts"] / records["n_prompts"].sum()
    before, after = (math.exp((n * records[f"nll_{when}"]).sum()) for when in ("before", "after"))
    row = tables["table6"].query("measure == 'perplexity_rise' and asked == 'same relation' and neurons == 'found'")
    assert row["value"].item() == pytest.approx(after - before) and row["n"].item() == len(records)
    known = study.all_records(answers.STAGE)
    row = tables["answers"].query("measure == 'perplexity'")
    assert row["value"].item() == pytest.approx(math.exp(np.average(known["nll"], weights=known["n_prompts"])))
    assert row["n"].item() == len(known)


def test_facts_without_neurons_of_their_own_are_listed_with_the_reason(model, tmp_path):
    settings = Settings.of(relations=("P30",), limit=8, update_others=2, max_share=0.0, n_resamples=5)
    facts = kn.FactSet.world("held_out")  # countries of a continent share neurons
    with open_study(model, facts, tmp_path, settings) as study:
        tables = run(study, [editing.UPDATES], lambda state: None)
        shared = study.neurons("found", "P30")
        left_out = study.records("updates", Shard("P30")).query("asked == ''")
        assert len(left_out)
        for row in left_out.to_dict("records"):
            mine = shared[next(fact for fact in shared if fact.key == row["key"])]
            others = [found for fact, found in shared.items() if fact.key != row["key"]]
            assert row["why"] and all(any(neuron in other for other in others) for neuron in mine)
    summary = tables["updated"].iloc[0]
    assert summary["updated"] + summary["left_out"] == summary["known"]


def test_facts_are_updated_in_the_templates_that_take_their_answers(tmp_path):
    """The vocabulary has no word in which a Greek letter follows a capital: that template is left out, as elsewhere."""
    settings = Settings.of(relations=("P36",), limit=3, update_facts=1, update_others=2, max_share=1.0, n_resamples=5)
    facts = kn.FactSet.world("held_out")
    more = kn.FactSet(
        dataclasses.replace(fact, templates=(*fact.templates, "The capital of [X] is [Y]\u03c9.")) for fact in facts
    )
    with open_study(kn.load_model("world-bert"), more, tmp_path, settings) as study:
        run(study, [editing.UPDATES], lambda state: None)
        own = study.records("updates", Shard("P36")).query("asked == 'own wording'")
    assert len(own) and set(own["n_prompts"]) == {len(facts[0].templates)}


def test_updates_that_disturb_other_facts_are_counted(finished):
    study, tables = finished
    records = study.all_records(editing.UPDATES).query("neurons == 'found'")
    others = records[records["asked"].isin(["same relation", "other relations"])]
    lost, right = (others["n_prompts"] * others[name] for name in ("lost", "right_before"))
    share = lost.groupby(others["key"]).sum() / right.groupby(others["key"]).sum()
    counted = tables["updated"].set_index("relation")["disturbing"]
    relation_of = others.groupby("key")["relation"].first()
    for relation in study.relations():
        assert counted[relation] == (share[relation_of == relation] > 0.1).sum()
    assert counted.sum() > 0


def test_signs_are_a_setting_and_records_without_them_stay(model, tmp_path):
    """The paper's form is that of runs before there was a choice: they can be taken up, and keep their records."""
    settings = Settings.of(
        relations=("P36",), limit=3, update_facts=1, update_others=2, max_share=1.0, n_resamples=5, update_signed=False,
        lambdas=(1.0, 8.0),
    )  # fmt: skip
    facts = kn.FactSet.world("held_out")
    with open_study(model, facts, tmp_path, settings) as study:
        run(study, [editing.UPDATES], lambda state: None)
        row = study.records("updates", Shard("P36")).query("asked == 'own wording' and neurons == 'found'").iloc[0]
        fact = next(fact for fact in study.facts if fact.key == row["key"])
        neurons = study.neurons("found", "P36")[fact]
        edit = kn.update_fact(model, fact, row["new_object"], neurons, preset="official", allow_unknown=True)
        after = kn.measure(model, kn.make_prompts(model, fact), edit)
        assert row["nll_after"] == pytest.approx(-after["log_prob_after"].mean(), rel=1e-3)
    config = (tmp_path / "config.toml").read_text()
    assert "update_signed = false\n" in config and "lambdas = [1.0, 8.0]\n" in config
    (tmp_path / "config.toml").write_text(config.replace("update_signed = false\n", ""))
    with open_study(model, facts, tmp_path, settings) as study:
        assert study.is_current(editing.UPDATES, Shard("P36"))
    with (
        pytest.raises(DataError, match="update_signed: false, now true"),
        open_study(model, facts, tmp_path, dataclasses.replace(settings, update_signed=True)),
    ):
        pass
    with (
        pytest.raises(DataError, match=r"lambdas: \[1.0, 8.0\], now \[1.0, 2.0\]"),
        open_study(model, facts, tmp_path, dataclasses.replace(settings, lambdas=Settings.of().lambdas)),
    ):
        pass
    with open_study(model, facts, tmp_path, dataclasses.replace(settings, update_signed=True), force=True) as study:
        assert not study.is_current(editing.UPDATES, Shard("P36"))
        assert study.is_current(answers.STAGE, Shard("P36"))


def test_a_model_that_knows_nothing_is_not_updated(tmp_path):
    settings = Settings.of(attr_threshold=0.5, max_moves=2, n_resamples=5)
    with open_study(tiny_model(), tiny_facts(), tmp_path, settings) as study:
        tables = run(study, STAGES, lambda state: None)
        assert not any(answers.known_facts(study, relation) for relation in study.relations())
    assert "table6" not in tables and (tables["updated"][["known", "updated"]] == 0).all(axis=None)
    assert (tables["erased"]["neurons"] <= 12).all() and len(tables["table5"])  # half of a layer
