"""The stages of editing: records equal the library's results, tables their means over relations."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.errors import ArgumentError, DataError
from kn_lens.runs.context import open_context
from kn_lens.runs.data import hold_out
from kn_lens.runs.directory import Shard
from kn_lens.runs.execute import run_stages
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.answers import ANSWERS, known_facts
from kn_lens.runs.stages.erasures import ERASE_SCHEMA, ERASURES
from kn_lens.runs.stages.updates import UPDATE_SCHEMA, UPDATES
from tests.intervals import (
    ANY_NUMBER,
    AT_LEAST_0,
    SHARE,
    drawn_facts,
    hold_their_values,
    is_close,
    naive_interval,
)
from tests.stage_tables import tables_of
from tests.tiny import tiny_model
from tests.tiny_runs import tiny_facts

STAGES = [ANSWERS, UPDATES, ERASURES]
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
    with open_context(model, kn.FactSet.world("held_out"), path, SETTINGS, held_out=OTHER_WORDINGS) as context:
        yield context, run_stages(context, STAGES, lambda state: None)


def test_known_facts_are_those_on_top_in_half_of_their_prompts(finished, model):
    context, _ = finished
    for relation in context.relations():
        known = known_facts(context, relation)
        for fact in context.queried_facts(relation):
            ranks = kn.measure(model, kn.make_prompts(model, fact), kn.Suppress(kn.NeuronSet()))["rank_before"]
            assert (fact in known) == ((ranks == 0).mean() >= 0.5)
    assert len(known)


def test_updates_equal_those_of_the_library(finished, model):
    context, _ = finished
    for relation in context.relations():
        records = context.records("updates", Shard(relation))
        own = records.query("question == 'own wording' and neuron_set == 'found'")
        facts = {fact.key: fact for fact in context.queried_facts(relation)}
        assert 0 < len(own) <= SETTINGS.update_facts
        for row in own.to_dict("records"):
            fact = facts[row["key"]]
            assert fact in known_facts(context, relation) and row["new_object"] != fact.object
            neurons = context.neurons("found", relation)[fact]
            edit = kn.update_fact(model, fact, row["new_object"], neurons, allow_unknown=True)
            assert row["n_neurons"] == len(neurons)
            effect = kn.measure(model, kn.make_prompts(model, fact), edit)
            assert row["right_after"] == (effect["rank_after"] == 0).mean()
            assert row["nll_after"] == pytest.approx(-effect["log_prob_after"].mean(), rel=1e-3)


def test_erasures_are_measured_on_as_many_facts_as_the_settings_say(finished):
    context, _ = finished
    records = context.all_records(ERASURES)
    counts = records.groupby(["relation", "neuron_set", "question"])["measured"].nunique().unstack()
    assert (counts["same relation"] == SETTINGS.erase_facts).all() and SETTINGS.erase_facts < SETTINGS.limit
    assert (counts["other relations"] == SETTINGS.erase_others).all()


def test_controls_have_as_many_neurons(finished):
    context, _ = finished
    for stage, fact in ((UPDATES, "key"), (ERASURES, "measured")):
        records = context.all_records(stage).query("neuron_set != ''")
        counts = records.groupby(["relation", fact, "neuron_set"])["n_neurons"].first().unstack()
        assert (counts["found"] > 0).all() and (counts["random"] == counts["found"]).all()
        assert (counts["activation"] <= counts["found"]).all()


def test_inverse_relations_are_queried_if_they_exist(finished):
    context, _ = finished
    questions = context.all_records(UPDATES).groupby("relation")["question"].unique()
    assert "inverse relation" in questions["P36"] and "inverse relation" not in questions["P30"]


def test_updates_are_queried_in_held_out_wordings(finished, model):
    context, tables = finished
    records = context.all_records(UPDATES).query("question == 'held-out wording' and neuron_set == 'found'")
    assert set(records["relation"]) == {"P36", "P30"} == set(OTHER_WORDINGS.relations)
    for row in records.to_dict("records"):
        fact = next(fact for fact in OTHER_WORDINGS if fact.key == row["key"])
        neurons = context.neurons("found", fact.relation)[fact]
        own = next(own for own in context.facts if own == fact)  # signs are those of the wordings it was found with
        edit = kn.update_fact(model, own, row["new_object"], neurons, allow_unknown=True)
        now = dataclasses.replace(fact, object=row["new_object"])
        effect = kn.measure(model, kn.make_prompts(model, now), edit)
        assert row["n_prompts"] == len(effect) == 2
        assert row["new_right_after"] == (effect["rank_after"] == 0).mean()
    assert "held-out wording" in set(tables["table6"]["question"])


def test_held_out_templates_are_taken_from_the_facts_own():
    facts = kn.FactSet.world("trained").of("P36", "P30")
    kept, taken = hold_out(facts, n=2, min_templates=3, seed=1)
    assert list(kept) == list(taken) == list(facts)
    for fact, one, other in zip(facts, kept, taken, strict=True):
        assert len(other.templates) == 2 and not set(one.templates) & set(other.templates)
        assert set(one.templates) | set(other.templates) == set(fact.templates)
        assert [template for template in fact.templates if template in one.templates] == list(one.templates)
    of_relation = {(fact.relation, fact.templates) for fact in taken}
    assert len(of_relation) == 2
    by_another_seed = hold_out(facts, n=2, min_templates=3, seed=2)[1]
    assert len({fact.templates for fact in by_another_seed} - {one for _, one in of_relation})
    short = kn.FactSet(dataclasses.replace(fact, templates=fact.templates[:4]) for fact in facts)
    assert {len(fact.templates) for fact in hold_out(short, n=2, min_templates=3, seed=1)[0]} == {3}
    assert not len(hold_out(short, n=2, min_templates=4, seed=1)[1])


def test_wordings_are_held_out_in_one_way(model, tmp_path):
    settings = Settings.of(held_out=2)
    facts = kn.FactSet.world("trained")
    with (
        pytest.raises(ArgumentError, match="held_out=2, but the data have held-out wordings"),
        open_context(model, facts, tmp_path / "run", settings, held_out=OTHER_WORDINGS),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_numbers_have_intervals_controls_and_the_papers_values(finished):
    _, tables = finished
    for name in ("answers", "table5", "table5_by_relation", "table6", "table6_by_relation"):
        table = tables[name]
        assert {"value", "low", "high", "n", "control"} <= set(table.columns) and (table["n"] > 0).all()
        assert hold_their_values(table)
    success = tables["table6"].query("question == 'own wording' and measure == 'success'").set_index("neuron_set")
    assert success.loc["found", "paper"] == 0.344 and success.loc["random", "paper"] == 0.0
    assert (success["control"] == success.loc["random", "value"]).all()
    assert success.loc["found", "value"] > success.loc["random", "value"]


def test_perplexities_are_of_all_prompts_together(finished):
    context, tables = finished
    records = context.all_records(UPDATES).query("question == 'same relation' and neuron_set == 'found'")
    n = records["n_prompts"] / records["n_prompts"].sum()
    before, after = (math.exp((n * records[f"nll_{when}"]).sum()) for when in ("before", "after"))
    row = tables["table6"].query(
        "measure == 'perplexity_rise' and question == 'same relation' and neuron_set == 'found'"
    )
    assert row["value"].item() == pytest.approx(after - before) and row["n"].item() == len(records)
    known = context.all_records(ANSWERS)
    row = tables["answers"].query("measure == 'perplexity'")
    assert row["value"].item() == pytest.approx(math.exp(np.average(known["nll"], weights=known["n_prompts"])))
    assert row["n"].item() == len(known)


def test_facts_without_neurons_of_their_own_are_listed_with_the_reason(model, tmp_path):
    settings = Settings.of(relations=("P30",), limit=8, update_others=2, max_share=0.0, n_resamples=5)
    facts = kn.FactSet.world("held_out")  # countries of a continent share neurons
    with open_context(model, facts, tmp_path, settings) as context:
        tables = run_stages(context, [UPDATES], lambda state: None)
        shared = context.neurons("found", "P30")
        left_out = context.records("updates", Shard("P30")).query("question == ''")
        assert len(left_out)
        for row in left_out.to_dict("records"):
            mine = shared[next(fact for fact in shared if fact.key == row["key"])]
            others = [found for fact, found in shared.items() if fact.key != row["key"]]
            assert row["why"] and all(any(neuron in other for other in others) for neuron in mine)
    summary = tables["updated"].iloc[0]
    assert summary["n_updated"] + summary["n_left_out"] == summary["n_known"]


def test_facts_are_updated_in_the_templates_that_fit_their_answers(tmp_path):
    """The vocabulary lacks a capital followed by a Greek letter, so this template is left out."""
    settings = Settings.of(relations=("P36",), limit=3, update_facts=1, update_others=2, max_share=1.0, n_resamples=5)
    facts = kn.FactSet.world("held_out")
    more = kn.FactSet(
        dataclasses.replace(fact, templates=(*fact.templates, "The capital of [X] is [Y]\u03c9.")) for fact in facts
    )
    with open_context(kn.load_model("world-bert"), more, tmp_path, settings) as context:
        run_stages(context, [UPDATES], lambda state: None)
        own = context.records("updates", Shard("P36")).query("question == 'own wording'")
    assert len(own) and set(own["n_prompts"]) == {len(facts[0].templates)}


def test_updates_that_disturb_other_facts_are_counted(finished):
    context, tables = finished
    records = context.all_records(UPDATES).query("neuron_set == 'found'")
    others = records[records["question"].isin(["same relation", "other relations"])]
    lost, right = (others["n_prompts"] * others[name] for name in ("lost", "right_before"))
    share = lost.groupby(others["key"]).sum() / right.groupby(others["key"]).sum()
    counted = tables["updated"].set_index("relation")["n_disturbing"]
    relation_of = others.groupby("key")["relation"].first()
    for relation in context.relations():
        assert counted[relation] == (share[relation_of == relation] > 0.1).sum()
    assert counted.sum() > 0


def test_signs_are_a_setting_and_records_without_them_stay(model, tmp_path):
    """Runs from before the setting existed have the paper's form; they can be resumed and keep their records."""
    settings = Settings.of(
        relations=("P36",), limit=3, update_facts=1, update_others=2, max_share=1.0, n_resamples=5, update_signed=False,
        lambdas=(1.0, 8.0),
    )  # fmt: skip
    facts = kn.FactSet.world("held_out")
    with open_context(model, facts, tmp_path, settings) as context:
        run_stages(context, [UPDATES], lambda state: None)
        row = (
            context.records("updates", Shard("P36"))
            .query("question == 'own wording' and neuron_set == 'found'")
            .iloc[0]
        )
        fact = next(fact for fact in context.facts if fact.key == row["key"])
        neurons = context.neurons("found", "P36")[fact]
        edit = kn.update_fact(model, fact, row["new_object"], neurons, preset="official", allow_unknown=True)
        after = kn.measure(model, kn.make_prompts(model, fact), edit)
        assert row["nll_after"] == pytest.approx(-after["log_prob_after"].mean(), rel=1e-3)
    config = (tmp_path / "config.toml").read_text()
    assert "update_signed = false\n" in config and "lambdas = [1.0, 8.0]\n" in config
    (tmp_path / "config.toml").write_text(config.replace("update_signed = false\n", ""))
    with open_context(model, facts, tmp_path, settings) as context:
        assert context.is_current(UPDATES, Shard("P36"))
    with (
        pytest.raises(DataError, match="update_signed: false, now true"),
        open_context(model, facts, tmp_path, dataclasses.replace(settings, update_signed=True)),
    ):
        pass
    with (
        pytest.raises(DataError, match=r"lambdas: \[1.0, 8.0\], now \[1.0, 2.0\]"),
        open_context(model, facts, tmp_path, dataclasses.replace(settings, lambdas=Settings.of().lambdas)),
    ):
        pass
    with open_context(model, facts, tmp_path, dataclasses.replace(settings, update_signed=True), force=True) as context:
        assert not context.is_current(UPDATES, Shard("P36"))
        assert context.is_current(ANSWERS, Shard("P36"))


def test_a_model_that_knows_nothing_is_not_updated(tmp_path):
    settings = Settings.of(attr_threshold=0.5, max_moves=2, n_resamples=5)
    with open_context(tiny_model(), tiny_facts(), tmp_path, settings) as context:
        tables = run_stages(context, STAGES, lambda state: None)
        assert not any(known_facts(context, relation) for relation in context.relations())
    assert "table6" not in tables and (tables["updated"][["n_known", "n_updated"]] == 0).all(axis=None)
    assert (tables["erased"]["n_neurons"] <= 12).all() and len(tables["table5"])  # half of a layer


# --- Tables 5 and 6 against plain loops ---------------------------------------------------------------------

N_RESAMPLES, SEED = 90, 4


def made_up_facts(question, n_right, relations, draw):
    """Return rows of a question for two neuron sets; ``n_right`` answers to facts of P36 are correct."""
    rows = []
    for kind in ("found", "random"):
        for relation, n_facts in relations.items():
            for i in range(n_facts):
                right = draw.uniform(0.5, 1) if relation != "P9" and (relation != "P36" or i < n_right) else 0.0
                row = {"relation": relation, "subject": f"s{i}", "object": "o", "key": f"{relation}/{i}"}
                row |= {"neuron_set": kind, "question": question, "n_neurons": 3, "n_prompts": int(draw.integers(2, 9))}
                row |= {"right_before": right, "right_after": draw.uniform(), "lost": right * draw.uniform()}
                row |= {"nll_before": draw.uniform(0, 2), "nll_after": draw.uniform(0, 4)}
                rows.append(row)
    return rows


def made_up_updates():
    """Return rows of three questions: one with several relations, one with few known facts, one with almost none."""
    draw = np.random.default_rng(2)
    rows = made_up_facts("own wording", 9, {"P9": 2, "P36": 9, "P1": 1, "P30": 5}, draw)
    for row in rows:
        for name in ("right", "top5", "rank", "mrr", "nll"):
            row |= {f"new_{name}_before": draw.uniform(), f"new_{name}_after": draw.uniform()}
        row["new_right_before"] = 0.0  # no fact has its new answer before
    rows += made_up_facts("same relation", 3, {"P36": 10}, draw)
    rows += made_up_facts("other relations", 2, {"P36": 10}, draw)
    left_out = {
        "relation": "P36",
        "key": "P36/99",
        "neuron_set": "",
        "question": "",
        "n_prompts": 0,
        "why": "no neurons",
    }
    return pd.DataFrame([*rows, left_out]).reindex(columns=UPDATE_SCHEMA.names)


def made_up_erasures():
    """Facts of the erased relations and of others; the paper has values for two of the relations."""
    draw = np.random.default_rng(3)
    rows = []
    for question in ("same relation", "other relations"):
        rows += made_up_facts(question, 9, {"P9": 2, "P36": 9, "P19": 1, "P27": 8}, draw)
    return pd.DataFrame(rows).assign(measured="", measured_relation="").reindex(columns=ERASE_SCHEMA.names)


def mean_over_prompts(facts, column):
    total = math.fsum(fact["n_prompts"] * fact[column] for fact in facts)
    return total / sum(fact["n_prompts"] for fact in facts)


def naive_measures(facts):
    """Return the measures of some facts on the scale of their intervals; perplexities as logarithms."""
    right = mean_over_prompts(facts, "right_before")
    before, after = mean_over_prompts(facts, "nll_before"), mean_over_prompts(facts, "nll_after")
    measures = {"changed": mean_over_prompts(facts, "lost") / right if right > 0 else math.nan}
    if not math.isnan(facts[0].get("new_right_after", math.nan)):
        for measure, column in (("success", "right"), ("top5", "top5"), ("rank", "rank"), ("mrr", "mrr")):
            measures[f"{measure}_before"] = mean_over_prompts(facts, f"new_{column}_before")
            measures[measure] = mean_over_prompts(facts, f"new_{column}_after")
    return measures | {
        "accuracy_before": right,
        "accuracy_after": mean_over_prompts(facts, "right_after"),
        "perplexity_before": before,
        "perplexity_after": after,
        "perplexity_growth": after - before,
        "perplexity_rise": math.exp(after) - math.exp(before),
    }


def of_relations(groups, measure):
    """Return a measure of several relations: the mean of those that have it, but perplexities of all prompts."""
    if measure.startswith("perplexity"):
        return naive_measures([fact for facts in groups for fact in facts])[measure]
    values = [naive_measures(facts)[measure] for facts in groups]
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def naive_row(cell, relations, measure):
    """Return the row of a measure of some relations in a cell, and how many draws are undefined."""
    values = {name: naive_measures(cell[name])[measure] for name in relations}
    names = [name for name in relations if not math.isnan(values[name])] or relations
    groups = [cell[name] for name in names]
    in_order = sorted(cell)
    draws = []
    for positions in drawn_facts([len(cell[name]) for name in in_order], N_RESAMPLES, SEED):
        chosen = dict(zip(in_order, positions, strict=True))
        draws.append(of_relations([[cell[name][i] for i in chosen[name]] for name in names], measure))
    bounds, transform = ANY_NUMBER, float
    if measure in ("perplexity_before", "perplexity_after"):
        bounds, transform = AT_LEAST_0, math.exp
    elif measure == "perplexity_growth":
        transform = math.expm1
    elif measure.startswith(("changed", "success", "top5", "accuracy")):
        bounds = SHARE
    value = of_relations(groups, measure)
    low, high = naive_interval(value, draws, [len(facts) for facts in groups], bounds=bounds)
    row = {"value": transform(value), "low": transform(low), "high": transform(high), "n": sum(map(len, groups))}
    return row, sum(map(math.isnan, draws))


def naive_table(records, by_relation):
    """Return the rows of a table by neuron set, question, (relation) and measure, and the undefined draws of each."""
    cells = {}
    for fact in records.to_dict("records"):
        if fact["question"]:
            cell = cells.setdefault((fact["neuron_set"], fact["question"]), {})
            cell.setdefault(fact["relation"], []).append(fact)
    rows, undefined = {}, {}
    for (kind, question), cell in cells.items():
        for relations in [[name] for name in cell] if by_relation else [list(cell)]:
            for measure in naive_measures(cell[relations[0]]):
                labels = (kind, question, *(relations if by_relation else []), measure)
                rows[labels], undefined[labels] = naive_row(cell, relations, measure)
    for labels, row in rows.items():
        row["control"] = rows["random", *labels[1:]]["value"]
    return rows, undefined


def assert_equal(table, expected, labels):
    assert len(table) == len(expected)
    for row in table.to_dict("records"):
        key = tuple(row[label] for label in labels)
        for column in ("value", "n", "control", "paper"):
            assert row[column] == pytest.approx(expected[key][column], rel=1e-9, nan_ok=True), (key, column)
        assert is_close([row["low"], row["high"]], [expected[key]["low"], expected[key]["high"]]), key


@pytest.mark.parametrize("by_relation", [False, True])
def test_table_6_equals_loops_over_facts_and_draws(by_relation):
    records = made_up_updates()
    table = tables_of(UPDATES, records, n_resamples=N_RESAMPLES, seed=SEED)[
        "table6_by_relation" if by_relation else "table6"
    ]
    expected, undefined = naive_table(records, by_relation)
    paper = {
        ("found", "own wording", "changed"): 0.485,
        ("random", "own wording", "changed"): 0.047,
        ("found", "own wording", "success"): 0.344,
        ("random", "own wording", "success"): 0.0,
        ("found", "same relation", "perplexity_rise"): 8.4,
        ("random", "same relation", "perplexity_rise"): 10.1,
        ("found", "other relations", "perplexity_rise"): 7.2,
        ("random", "other relations", "perplexity_rise"): 4.3,
    }
    for key, row in expected.items():
        row["paper"] = math.nan if by_relation else paper.get(key, math.nan)
    assert_equal(table, expected, ["neuron_set", "question", *(["relation"] if by_relation else []), "measure"])

    # A few draws without a known fact are left out; with many there is no interval. A share of 0 has Wilson's.
    where = ["P36"] if by_relation else []
    few, many = (("found", question, *where, "changed") for question in ("same relation", "other relations"))
    assert 0 < undefined[few] <= 0.05 * N_RESAMPLES < undefined[many]
    assert not math.isnan(expected[few]["low"]) and math.isnan(expected[many]["low"])
    nothing_before = expected["found", "own wording", *where, "success_before"]
    assert (nothing_before["value"], nothing_before["low"]) == (0, 0) and nothing_before["high"] > 0


@pytest.mark.parametrize("by_relation", [False, True])
def test_table_5_equals_loops_over_facts_and_draws(by_relation):
    records = made_up_erasures()
    table = tables_of(ERASURES, records, n_resamples=N_RESAMPLES, seed=SEED)[
        "table5_by_relation" if by_relation else "table5"
    ]
    expected, _ = naive_table(records, by_relation)
    paper = {
        ("P19", "same relation"): (1450.0, 2996.0, 1.066),
        ("P19", "other relations"): (120.3, 121.6, 0.011),
        ("P27", "same relation"): (28.0, 38.3, 0.367),
        ("P27", "other relations"): (143.6, 149.5, 0.042),
    }
    for (kind, question, *relation, measure), row in expected.items():
        row["paper"] = math.nan
        of_relation = paper.get((*relation, question))
        measures = ("perplexity_before", "perplexity_after", "perplexity_growth")
        if kind == "found" and of_relation is not None and measure in measures:
            row["paper"] = of_relation[measures.index(measure)]
    assert_equal(table, expected, ["neuron_set", "question", *(["relation"] if by_relation else []), "measure"])


def test_new_objects_are_in_the_language_of_their_fact(model, tmp_path):
    """Half of the facts are said to be in another language, so that each language has objects of its own."""
    facts, objects = [], {}
    for number, fact in enumerate(list(kn.FactSet.world("held_out").of("P36"))[:6]):
        language = ("en", "xx")[number % 2]
        facts.append(dataclasses.replace(fact, templates=fact.templates[:3], language=language))
        objects.setdefault(language, set()).add(fact.object)
    settings = Settings.of(update_facts=6, update_others=6, max_share=1.0, n_resamples=20, min_prompts=1)
    with open_context(model, kn.FactSet(facts), tmp_path / "run", settings) as context:
        run_stages(context, [ANSWERS, UPDATES], lambda state: None)
        records = context.records("updates", Shard("P36"))
    updated = records.loc[records["new_object"] != ""].drop_duplicates("key")
    assert len(updated) >= 4
    for key, new_object in zip(updated["key"], updated["new_object"], strict=True):
        assert new_object in objects[key.rpartition("#")[2]]
