"""``kn-lens find``: results equal the library's; a file is written completely or not at all."""

import json
from dataclasses import replace

import pytest

import kn_lens as kn
from kn_lens._core import names
from kn_lens.attribution import options, outputs
from kn_lens.cli import _options
from kn_lens.neurons import match_facts


def test_find_equals_the_library(found, checkpoints, facts_file):
    path, document = found
    model, facts = kn.load_model(checkpoints["bert"]), kn.FactSet.from_jsonl(facts_file)
    attr = kn.attribute(model, kn.make_prompts(model, facts))
    expected = kn.refine(attr)
    assert any(expected.values())
    rows = {row["key"]: row for row in document["facts"]}
    for number, fact in enumerate(facts):
        row, mine = rows[fact.key], attr.prompts.fact_index == number
        assert kn.NeuronSet(map(tuple, row["neurons"])) == expected[fact]
        assert row["n_prompts"] == len(fact.templates) == int(mine.sum())
        assert row["largest_gap"] == pytest.approx(float(attr.completeness_gap[mine].abs().max()), abs=1e-7)
        assert row["n_unconverged"] == int((~attr.converged[mine]).sum())
    assert match_facts(kn.NeuronSet.read_many(path), facts) == expected
    meta = json.loads(path.read_text())["meta"]
    assert meta["model"]["name"] == checkpoints["bert"] and meta["settings"]["share_threshold"] == 0.7


def test_find_and_intervene_at_the_subject_equal_the_library(cli, checkpoints, facts_file, tmp_path):
    model, facts = kn.load_model(checkpoints["bert"]), kn.FactSet.from_jsonl(facts_file)
    path = tmp_path / "subject.json"
    arguments = ("-m", checkpoints["bert"], "-f", facts_file, "--position", "subject_last", "--json")
    cli("find", *arguments, "--out", path)
    prompts = kn.make_prompts(model, facts).at("subject_last")
    expected = kn.refine(kn.attribute(model, prompts))
    assert (
        match_facts(kn.NeuronSet.read_many(path), facts)
        == expected
        != kn.refine(kn.attribute(model, prompts.at("read")))
    )
    assert json.loads(path.read_text())["meta"]["settings"]["position"] == "subject_last"
    document = json.loads(cli("intervene", "--neurons", path, *arguments, "--no-controls")[1])
    effect = kn.measure(model, prompts, kn.Suppress(expected))
    assert document["positions"] == "subject_last"
    rows = {row["key"]: row for row in document["facts"]}
    for fact in facts:
        own = effect[[prompts.fact(number) == fact for number in range(len(prompts))]]
        assert rows[fact.key]["after"] == pytest.approx(own.after.mean(), rel=1e-5)


@pytest.mark.parametrize("by_relation", [False, True])
def test_parts_of_any_size_give_the_same_neurons(cli, checkpoints, facts_file, tmp_path, monkeypatch, by_relation):
    facts = kn.FactSet.from_jsonl(facts_file)
    few = [fact for relation in facts.relations for fact in facts.of(relation)[:3]]
    kn.FactSet(few).to_jsonl(tmp_path / "few.jsonl")
    arguments = ("find", "-m", checkpoints["bert"], "-f", tmp_path / "few.jsonl", "--json")
    arguments += ("--by-relation",) * by_relation
    whole = json.loads(cli(*arguments)[1])
    sizes, attribute_in_parts = [], kn.attribute_in_parts

    def counted(*args, **options):
        for numbers, part in attribute_in_parts(*args, **options):
            sizes.append(len(numbers))
            yield numbers, part

    monkeypatch.setattr("kn_lens.attribution.attribute_in_parts", counted)
    monkeypatch.setattr("kn_lens.attribution.parts.SCORES_PER_PART", 1)
    parts = json.loads(cli(*arguments)[1])
    assert sizes == ([12, 12] if by_relation else [4] * 6)
    assert [row["neurons"] for row in parts["facts"]] == [row["neurons"] for row in whole["facts"]]
    assert parts["share_threshold_by_relation"] == whole["share_threshold_by_relation"]


def test_by_relation_equals_the_library(cli, checkpoints, facts_file):
    code, out, _ = cli("find", "-m", checkpoints["bert"], "-f", facts_file, "--by-relation", "--json")
    document = json.loads(out)
    model = kn.load_model(checkpoints["bert"])
    prompts = kn.make_prompts(model, kn.FactSet.from_jsonl(facts_file))
    expected = kn.refine_by_relation(kn.attribute(model, prompts))
    assert code == 0 and document["share_threshold_by_relation"] == expected.share_threshold
    assert [kn.NeuronSet(map(tuple, row["neurons"])) for row in document["facts"]] == list(expected.neurons.values())


def test_prompts_that_a_causal_model_cannot_use_are_counted(cli, checkpoints, facts_file):
    arguments = ("find", "-m", checkpoints["gpt2"], "-f", facts_file, "--min-prompts", 1)
    code, out, err = cli(*arguments, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["left_out"] == {"object not last": 16} and document["n_prompts"] == 48
    assert "Left out: 16 prompts (object not last)" in cli(*arguments)[1]


@pytest.mark.parametrize("columns", [60, 80])
def test_table_fits_the_terminal_and_counts_hidden_rows(cli, checkpoints, facts_file, terminal, monkeypatch, columns):
    terminal(columns)
    monkeypatch.setattr("kn_lens.cli.find.ROWS_SHOWN", 5)
    code, out, _ = cli("find", "-m", checkpoints["bert"], "-f", facts_file, "--preset", "paper", "--tolerance", 1e-9)
    assert code == 0 and max(map(len, out.splitlines())) <= columns and "…" not in out
    text = " ".join(out.split())  # where lines break depends on the length of the checkpoint's path
    assert "Ireland" in text and "right, 20 points" in text and "unconverged" in text
    assert "16 facts, 64 prompts" in text and "11 more facts are not shown" in text


@pytest.mark.parametrize("method", _options.METHODS)
def test_every_method_runs(cli, checkpoints, facts_file, method):
    arguments = ("-f", facts_file, "-r", "P36", "-s", "Peru", "-s", "Kenya", "--method", method)
    code, out, err = cli("find", "-m", checkpoints["bert"], *arguments, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "") and [row["subject"] for row in document["facts"]] == ["Kenya", "Peru"]
    promises_a_sum = method in ("integrated_gradients", "gradient_x_activation")
    assert all((row["largest_gap"] is not None) == promises_a_sum for row in document["facts"])
    code, out, _ = cli("find", "-m", checkpoints["bert"], *arguments)
    text = " ".join(out.split())
    assert code == 0 and ("Completeness gap at most" in text) == promises_a_sum
    assert ("have no completeness gap" in text) != promises_a_sum


def test_options_reach_the_library():
    assert {*_options.METHODS, "single_path"} == set(options.METHODS)
    assert tuple(outputs.OUTPUTS) == names.OUTPUTS
    assert tuple(options.PRESETS) == names.PRESETS


def test_failed_command_keeps_the_old_file(cli, found, checkpoints, facts_file, monkeypatch):
    path, _ = found
    before = path.read_bytes()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("kn_lens.attribution.attribute_in_parts", interrupted)
    code, out, err = cli("find", "-m", checkpoints["bert"], "-f", facts_file, "-o", path)
    assert (code, out, err) == (130, "", "kn-lens: interrupted; nothing was written.\n")
    assert path.read_bytes() == before and [item.name for item in path.parent.iterdir()] == [path.name]


def test_fact_with_too_few_prompts_is_left_out_and_named(cli, checkpoints, facts_file, tmp_path):
    facts = kn.FactSet.from_jsonl(facts_file).of("P36")
    few = replace(facts[2], templates=facts[2].templates[:2])
    kn.FactSet([*facts[:2], few, *facts[3:]]).to_jsonl(tmp_path / "facts.jsonl")
    arguments = ("find", "-m", checkpoints["bert"], "-f", tmp_path / "facts.jsonl", "-o", tmp_path / "n.json")
    code, out, err = cli(*arguments, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["facts_without_prompts"] == [few.key] and len(document["facts"]) == len(facts) - 1
    assert document["left_out"] == {"fact with fewer than 3 prompts": 2}
    assert few.key not in kn.NeuronSet.read_many(tmp_path / "n.json")
    said = " ".join(cli(*arguments)[1].split())
    assert "Left out: 2 prompts (fact with fewer than 3 prompts)" in said and f"left: 1 ({few.key})" in said


def test_the_cure_for_an_unknown_answer_is_an_option(cli, checkpoints, facts_file, tmp_path):
    fact = replace(kn.FactSet.from_jsonl(facts_file)[0], object="Łódź")
    kn.FactSet([fact]).to_jsonl(tmp_path / "facts.jsonl")
    code, _, err = cli("find", "-m", checkpoints["bert"], "-f", tmp_path / "facts.jsonl")
    assert code == 2 and "leave such prompts out and counted with --leave-out-unknown." in " ".join(err.split())


def test_versions_of_a_fact_are_told_apart_by_their_language(cli, checkpoints, tmp_path):
    templates = ("The capital of [X] is [Y].", "[Y] is the capital of [X].", "[X] has its seat in [Y].")
    versions = [kn.Fact("Peru", "P36", "Lima", templates, "PE", language=language) for language in ("en", "de")]
    kn.FactSet(versions).to_jsonl(tmp_path / "facts.jsonl")
    code, out, _ = cli("find", "-m", checkpoints["bert"], "-f", tmp_path / "facts.jsonl")
    assert code == 0 and "Peru: Lima (en)" in out and "Peru: Lima (de)" in out
