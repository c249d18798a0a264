"""``kn-lens intervene``: what it measures is what the library measures."""

import json

import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.neurons import match_facts


def intervene(cli, checkpoints, facts_file, path, *more):
    code, out, err = cli("intervene", "-m", checkpoints["bert"], "-f", facts_file, "-n", path, "--json", *more)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_intervene_is_the_library(cli, found, checkpoints, facts_file, tmp_path):
    path, _ = found
    document = intervene(cli, checkpoints, facts_file, path, "--amplify", 3, "--seed", 5, "-o", tmp_path / "e.csv")
    model, facts = kn.load_model(checkpoints["bert"]), kn.FactSet.from_jsonl(facts_file)
    prompts = kn.make_prompts(model, facts)
    neurons = match_facts(kn.NeuronSet.read_many(path), facts)
    active = kn.activation_neurons(kn.attribute(model, prompts, method="activation"), neurons)
    expected = kn.controlled_effects(
        model, prompts, neurons, active, intervene=lambda sets: kn.Amplify(sets, factor=3.0), seed=5
    )
    assert document["intervention"] == "x3" and document["n_facts"] == 16
    pd.testing.assert_frame_equal(pd.DataFrame(document["facts"]), expected, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "e.csv"), expected, check_dtype=False)
    table = kn.effect_table(expected, seed=5)
    pd.testing.assert_frame_equal(pd.DataFrame(document["effects"]), table, check_dtype=False)


def test_the_same_change_by_other_names(cli, found, checkpoints, facts_file):
    path, _ = found
    off = intervene(cli, checkpoints, facts_file, path, "--suppress")
    assert intervene(cli, checkpoints, facts_file, path)["facts"] == off["facts"]
    assert intervene(cli, checkpoints, facts_file, path, "--set-to", 0)["facts"] == off["facts"]
    everywhere = intervene(cli, checkpoints, facts_file, path, "--all-positions")["facts"]
    assert everywhere != off["facts"]
    own = [row for row in off["facts"] if row["neurons"] == "found" and row["facts"] == "own"]
    alone = intervene(cli, checkpoints, facts_file, path, "--no-controls")["facts"]
    pd.testing.assert_frame_equal(pd.DataFrame(alone), pd.DataFrame(own))
    unchanged = intervene(cli, checkpoints, facts_file, path, "--amplify", 1, "--no-controls")
    assert all(row["before"] == pytest.approx(row["after"]) for row in unchanged["facts"])


def test_a_choice_of_facts_is_compared_with_facts_beyond_it(cli, found, checkpoints, facts_file):
    path, _ = found
    document = intervene(cli, checkpoints, facts_file, path, "-r", "P36", "--limit", 4)
    assert document["n_facts"] == 4
    others = {row["measured"] for row in document["facts"] if row["facts"] == "other"}
    assert others and all(key.startswith("P1376/") for key in others)


@pytest.mark.parametrize("seed", range(3))
def test_the_one_fact_of_another_relation_is_found(cli, checkpoints, facts_file, tmp_path, monkeypatch, seed):
    facts = kn.FactSet.from_jsonl(facts_file)
    nearly_all_of_one = kn.FactSet([*facts.of("P36"), facts.of("P1376")[0]])
    nearly_all_of_one.to_jsonl(tmp_path / "facts.jsonl")
    kn.NeuronSet.write_many(tmp_path / "found.json", {facts[0]: kn.NeuronSet([(1, 2)])})
    monkeypatch.setattr("kn_lens.cli.intervene.OTHERS_AT_LEAST", 1)
    document = intervene(cli, checkpoints, tmp_path / "facts.jsonl", tmp_path / "found.json", "--seed", seed)
    measured = {row["measured"] for row in document["facts"] if row["facts"] == "other"}
    assert measured == {facts.of("P1376")[0].key}


def test_intervene_prints_a_table(cli, found, checkpoints, facts_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli("intervene", "-m", checkpoints["bert"], "-f", facts_file, "-n", found[0])
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert all(words in out for words in ("knowledge neurons", "most active", "random", "own facts", "other facts"))


def test_one_relation_alone_has_no_controls(cli, found, checkpoints, facts_file, tmp_path):
    single = tmp_path / "single.jsonl"
    kn.FactSet.from_jsonl(facts_file).of("P36").to_jsonl(single)
    path = tmp_path / "own.json"
    cli("find", "-m", checkpoints["bert"], "-f", single, "-o", path)
    code, _, err = cli("intervene", "-m", checkpoints["bert"], "-f", single, "-n", path)
    assert code == 2 and "--no-controls" in err
    assert len(intervene(cli, checkpoints, single, path, "--no-controls")["facts"]) == 8
