"""The first stages of a run on a tiny model: records and tables equal the library's results."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens._core.advice import one_relation_note
from kn_lens.errors import ArgumentError, DataError, PromptError
from kn_lens.reports import write_report
from kn_lens.runs.context import open_context
from kn_lens.runs.data import choose
from kn_lens.runs.directory import Shard
from kn_lens.runs.execute import run_stages, stages_named, with_needs
from kn_lens.runs.reader import RunRecords
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.attributions import ACTIVATIONS, ATTRIBUTIONS
from kn_lens.runs.stages.erasures import ERASURES
from kn_lens.runs.stages.fact_details import NEURON_SCORES
from kn_lens.runs.stages.facts import FACTS
from kn_lens.runs.stages.interventions import DOSES, EFFECTS
from kn_lens.runs.stages.neurons import NEURONS
from kn_lens.runs.stages.order import STAGES
from kn_lens.runs.stages.robustness import METHODS, STABILITY
from kn_lens.runs.stages.syntax_pairs import SYNTAX_PAIRS
from kn_lens.runs.stages.texts import TEXTS
from kn_lens.runs.stages.updates import UPDATES
from tests.intervals import hold_their_values
from tests.old_columns import write_old_columns
from tests.tiny import tiny_model
from tests.tiny_runs import CAPITAL, tiny_facts

# A quarter of a layer's neurons at most, so that random ones can be drawn beside those found.
SETTINGS = Settings.of(
    attr_threshold=0.5, n_resamples=40, dose_facts=2, doses=(0.0, 3.0), max_moves=2, syntax_forms=1, syntax_facts=1,
    check_facts=2,
)  # fmt: skip


def test_other_fact_is_found_even_if_few_can_be_queried(model, tmp_path):
    """Of forty facts of the other relation, one has an answer that the vocabulary can write."""
    others = [kn.Fact(f"subject {i}", "other", "\u03c9" if i else "Rome", CAPITAL) for i in range(40)]
    facts = kn.FactSet([*tiny_facts(2).of("P36"), *others])
    settings = Settings.of(attr_threshold=0.5, n_resamples=5, max_moves=2, relations=("P36",))
    with open_context(model, facts, tmp_path, settings) as context:
        run_stages(context, [EFFECTS], lambda state: None)
        effects = context.all_records(EFFECTS)
    assert set(effects.loc[effects["scope"] == "other", "measured"]) == {others[0].key}


def test_every_stage_writes_its_records_and_tables(finished):
    context, tables = finished
    assert {path.stem for path in (context.run.path / "tables").iterdir()} == set(tables)
    for stage in STAGES:
        assert all(context.is_current(stage, shard) for shard in stage.shards(context))
    assert not list((context.run.path / "scratch").iterdir())


def test_neurons_equal_those_of_the_library(finished, model):
    context, _ = finished
    prompts = kn.make_prompts(model, tiny_facts().of("P36"))
    attr = kn.attribute(model, prompts)
    expected = kn.refine_by_relation(attr, attr_threshold=0.5, max_moves=2)
    assert context.neurons("found", "P36") == expected.neurons
    activations = kn.attribute(model, prompts, method="activation")
    assert (
        context.neurons("baseline", "P36")
        == kn.refine_by_relation(activations, attr_threshold=0.5, max_moves=2).neurons
    )
    assert context.neurons("activation", "P36") == kn.activation_neurons(activations, expected.neurons)
    for fact, neurons in context.neurons("random", "P36").items():
        assert neurons.layer_counts(3) == expected.neurons[fact].layer_counts(3)
        assert neurons.isdisjoint(expected.neurons[fact])
    assert any(map(len, expected.neurons.values()))


def test_own_effects_equal_those_measured_alone(finished, model):
    context, _ = finished
    fact = context.queried_facts("P36")[1]
    prompts = kn.make_prompts(model, fact)
    records = context.records("effects", Shard("P36"))
    for factor, make in ((0.0, kn.Suppress), (2.0, kn.Amplify)):
        rows = records[(records["key"] == fact.key) & (records["scope"] == "own") & (records["factor"] == factor)]
        rows = rows.set_index("neuron_set")
        for kind in ("found", "activation"):
            effect = kn.measure(model, prompts, make(context.neurons(kind, "P36")[fact]))
            assert rows.loc[kind, "before"] == pytest.approx(effect["before"].mean(), rel=1e-9)
            assert rows.loc[kind, "after"] == pytest.approx(effect["after"].mean(), rel=1e-9)


def test_other_facts_are_of_other_relations(finished):
    context, _ = finished
    records = context.all_records(EFFECTS)
    others = records[records["scope"] == "other"]
    assert len(others) and not any(
        key.startswith(f"{relation.replace('/', '%2F')}/")
        for relation, key in zip(others["relation"], others["measured"], strict=True)
    )


def test_numbers_have_intervals_controls_and_the_papers_values(finished):
    _, tables = finished
    for name in ("table2", "figure3", "figures4_5", "dose_response"):
        table = tables[name].dropna(subset="value")
        assert {"value", "low", "high", "n", "control"} <= set(table.columns) and (table["n"] > 0).all()
        assert hold_their_values(table)
    table2, effects = tables["table2"], tables["figures4_5"]
    assert table2.query("statistic == 'neurons_per_fact' and neuron_set == 'found'")["paper"].tolist() == [4.13]
    assert effects.query("neuron_set == 'found' and scope == 'own'")["paper"].tolist() == [-0.2903, 0.3117]
    assert effects.query("neuron_set == 'activation'")["paper"].isna().all()  # the paper's baseline is another


def test_returned_tables_equal_the_files(finished):
    context, tables = finished
    for name, table in tables.items():
        there = pd.read_csv(context.run.path / "tables" / f"{name}.csv", keep_default_na=False, na_values=[""])
        assert list(there.columns) == list(table.columns) and len(there) == len(table)
        for column in table.select_dtypes("number"):
            assert np.allclose(there[column], table[column], rtol=1e-15, atol=0, equal_nan=True)


def test_run_with_the_columns_of_earlier_versions_is_resumed(model, finished, monkeypatch, tmp_path):
    stages = [EFFECTS, UPDATES, ERASURES, SYNTAX_PAIRS]
    with monkeypatch.context() as patch, open_context(model, tiny_facts(), tmp_path, SETTINGS) as context:
        write_old_columns(patch)
        run_stages(context, stages, lambda state: None)
    old_columns = {"facts": ["asked"], "effects": ["neurons", "facts"], "updates": ["asked"], "erasures": ["asked"]}
    for stage, columns in old_columns.items():
        assert set(columns) <= set(pd.read_parquet(context.run.record_path(stage, Shard("P36"))))
    for name, column in {"figures4_5": "facts", "coverage": "facts_asked", "updated": "asked"}.items():
        assert column in pd.read_csv(tmp_path / "tables" / f"{name}.csv")
    for name, table in RunRecords.read(tmp_path).tables().items():
        assert list(table) == list(finished[1][name])
    made = []
    with open_context(model, tiny_facts(), tmp_path, SETTINGS) as context:
        tables = run_stages(context, [*stages, DOSES], lambda state: made.append((state.stage, state.finished)))
    assert {stage for stage, is_made in made if is_made} == {DOSES}
    assert {"coverage", "table2", "figures4_5", "dose_response", "updated", "erased", "table5"} <= set(tables)
    for name in tables:
        pd.testing.assert_frame_equal(tables[name], finished[1][name])
        assert list(pd.read_csv(tmp_path / "tables" / f"{name}.csv")) == list(tables[name])


def test_presets_match_the_paper_and_its_code():
    paper, official = Settings.of("paper"), Settings.of("official")
    assert (paper.quadrature, paper.n_steps, paper.min_prompts) == ("right", 20, 1)
    assert (official.quadrature, official.n_steps, official.min_prompts, official.max_moves) == ("left", 20, 3, 5)
    forms = [(one.lambdas, one.update_scaling, one.update_signed) for one in (paper, official)]
    assert forms == [((1, 8), "plain", False), ((1, 8), "norm", False)]
    # "More than 70%" of ten prompts are eight; the code takes seven.
    from kn_lens.neurons import prompts_needed

    assert [prompts_needed(10, one.share_threshold, 1) for one in (paper, official)] == [8, 7]
    assert [prompts_needed(500, one.share_threshold, 1) for one in (paper, official)] == [351, 350]


def test_stages_include_the_stages_that_they_need():
    assert with_needs([DOSES]) == [
        FACTS, ATTRIBUTIONS, ACTIVATIONS, NEURONS, DOSES,
    ]  # fmt: skip
    with pytest.raises(ArgumentError, match=r"'efects'.*Did you mean 'effects'"):
        stages_named(STAGES, ["efects"])


def test_limit_applies_to_each_relation():
    chosen = choose(tiny_facts(), Settings.of(limit=2, relations=("P36", "seat/of")))
    assert [fact.relation for fact in chosen] == ["P36", "P36", "seat/of", "seat/of"]
    with pytest.raises(ArgumentError, match="Did you mean 'P36'"):
        choose(tiny_facts(), Settings.of(relations=("P63",)))


def test_other_facts_come_from_relations_that_were_not_chosen(model, tmp_path):
    with open_context(model, tiny_facts(2), tmp_path, Settings.of(relations=("P36",), attr_threshold=0.5)) as context:
        run_stages(context, [EFFECTS], lambda state: None)
        records = context.all_records(EFFECTS)
    assert set(records["relation"]) == {"P36"}
    of_others = {key.split("/")[0] for key in records.query("scope == 'other'")["measured"]}
    assert of_others and of_others <= {"P1376", "seat%2Fof"}


def test_a_single_relation_lacks_what_needs_two_and_nothing_else(model, finished, tmp_path):
    stages = [EFFECTS, DOSES, TEXTS, UPDATES, ERASURES, STABILITY, METHODS]
    with open_context(model, tiny_facts().of("P36"), tmp_path, SETTINGS) as context:
        tables = run_stages(context, stages, lambda state: None)
        of_one = {stage: context.records(stage.name, Shard("P36")) for stage in stages}
    of_all, tables_of_all = finished
    within = {EFFECTS: "scope != 'other'", DOSES: "scope != 'other'", ERASURES: "question != 'other relations'"}
    for stage, condition in within.items():
        expected = of_all.records(stage.name, Shard("P36")).query(condition).reset_index(drop=True)
        pd.testing.assert_frame_equal(of_one[stage], expected, rtol=1e-9)
    lacking = {name for name, table in tables.items() if one_relation_note(name, table)}
    assert {"table2", "figures4_5", "dose_response", "table5"} <= {
        name.removesuffix("_by_relation") for name in lacking
    }
    assert not any(one_relation_note(name, table) for name, table in tables_of_all.items())
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "left out: one relation" in page


def test_facts_with_too_few_prompts_are_counted_and_not_queried(model, tmp_path):
    short = [kn.Fact("Peru", "P1", "Lima", ("[X] [Y].",)), kn.Fact("Peru", "P2", "Qxz", CAPITAL)]
    with open_context(model, kn.FactSet([*tiny_facts(2), *short]), tmp_path, SETTINGS) as context:
        coverage = run_stages(context, [NEURONS], lambda state: None)["coverage"].set_index("relation")
        assert coverage["n_queried"].to_dict() == {"P36": 2, "P1376": 2, "seat/of": 2, "P1": 0, "P2": 0}
        assert "vocabulary" in coverage["why"]["P2"] and context.relations() == ["P36", "P1376", "seat/of"]


def test_facts_without_templates_are_counted_and_not_queried(model, tmp_path):
    bare = [kn.Fact("Peru", "P36", "Lima", ()), kn.Fact("Peru", "P1", "Lima", ())]
    with open_context(model, kn.FactSet([*tiny_facts(2), *bare]), tmp_path, SETTINGS) as context:
        coverage = run_stages(context, [FACTS], lambda state: None)["coverage"].set_index("relation")
        assert coverage["n_facts"]["P36"] == 3 and coverage["n_queried"]["P36"] == 2
        assert context.fact_records("P36")["n_prompts"].tolist() == [4, 4, 0]
        assert coverage["why"].to_dict() == {
            "P36": "",
            "P1376": "",
            "seat/of": "",
            "P1": "Its facts have no templates.",
        }


def test_invalid_template_stops_the_run_before_any_pass(model, tmp_path):
    bad = kn.Fact("Peru", "P1", "Lima", (f"{'on and ' * 200}[X] [Y].",) * 3)
    with open_context(model, kn.FactSet([*tiny_facts(2), bad]), tmp_path, SETTINGS) as context:
        with pytest.raises(PromptError, match="context"):
            run_stages(context, STAGES, lambda state: None)
        assert {path.name for path in (tmp_path / "records").iterdir()} == {"facts"}


def test_sets_of_more_than_half_a_layer_have_controls(model, tmp_path):
    # All neurons with a positive score under any prompt, which are most of them.
    any_prompt = {"keep": 0.0, "attr_threshold": 0.0, "share_threshold": 0.0, "max_moves": 0, "min_prompts": 1}
    few = {"n_resamples": 5, "doses": (0.0,), "relations": ("P36",), "check_facts": 1, "check_draws": 1}
    few |= {"quadrature": "midpoint", "n_steps": 2, "syntax_forms": 1, "syntax_facts": 1, "syntax_sentences": 4}
    settings = Settings.of(**any_prompt, **few)
    with open_context(model, tiny_facts(2), tmp_path, settings) as context:
        run_stages(context, STAGES, lambda state: None)
        found, random = (context.neurons(kind, "P36") for kind in ("found", "random"))
        assert any(2 * max(one.layer_counts(3)) > context.host.d_mlp for one in found.values())
        assert all(random[fact].layer_counts(3) == found[fact].layer_counts(3) for fact in found)


def test_run_without_a_queried_fact_gives_the_reason(model, tmp_path):
    facts = kn.FactSet([kn.Fact("Peru", "P1", "Qxz", CAPITAL), kn.Fact("Peru", "P2", "Qxz", CAPITAL)])
    with open_context(model, facts, tmp_path, SETTINGS) as context, pytest.raises(DataError, match="No prompt is left"):
        run_stages(context, [NEURONS], lambda state: None)


def test_runs_start_at_the_mean_where_a_norm_follows_the_mlp_and_say_so(tmp_path):
    model, facts = tiny_model("Gemma2ForCausalLM", torch.float32), tiny_facts(2).of("P36", "P1376")
    rule = {"quadrature": "midpoint", "n_steps": 4}
    starts = {}
    for name, changed in {"auto": {}, "paper": {"preset": "paper"}, "zero": {"start": "zero"}}.items():
        few = {"n_resamples": 5, "min_prompts": 1, "check_facts": 1, "check_draws": 1, "max_moves": 1}
        settings = Settings.of(**few, **rule, **changed)
        with open_context(model, facts, tmp_path / name, settings) as context:
            stages = with_needs([NEURON_SCORES, STABILITY])
            tables = run_stages(context, stages, lambda state: None)
            assert all(context.is_current(stage, shard) for stage in stages for shard in stage.shards(context))
            starts[name] = set(tables["completeness"]["start"])
        if name == "auto":
            prompts = kn.make_prompts(model, facts.of("P36"))
            attr, scores = kn.attribute(model, prompts, **rule), context.all_records(NEURON_SCORES)
            assert attr.start == "mean"
            for row in scores.loc[scores["relation"] == "P36"].to_dict("records"):
                fact = next(fact for fact in prompts.facts if fact.key == row["key"])
                mean = attr[fact].scores[:, row["layer"], row["index"]].double().mean()
                assert row["score"] == pytest.approx(float(mean), rel=1e-3, abs=1e-6)
    assert starts == {"auto": {"mean"}, "paper": {"zero"}, "zero": {"zero"}}


def test_records_from_before_starts_were_a_setting_stay_current(finished):
    context, _ = finished
    assert context.start_name("P36") == "zero"
    before = replace(ATTRIBUTIONS, settings=tuple(name for name in ATTRIBUTIONS.settings if name != "start"))
    for shard in ATTRIBUTIONS.shards(context):
        assert context.inputs(ATTRIBUTIONS, shard) == context.inputs(before, shard)
