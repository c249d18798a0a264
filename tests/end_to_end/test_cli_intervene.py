"""``kn-lens intervene``: effects equal the library's."""

import json
import re
import shutil

import pandas as pd
import pytest

import kn_lens as kn
from kn_lens._core.advice import ONE_RELATION
from kn_lens._core.intervals import WHY_NONE
from kn_lens.neurons import match_facts
from tests.tiny import tiny_checkpoint


def intervene(cli, checkpoints, facts_file, path, *more):
    code, out, err = cli("intervene", "-m", checkpoints["bert"], "-f", facts_file, "-n", path, "--json", *more)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_intervene_equals_the_library(cli, found, checkpoints, facts_file, tmp_path):
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


def test_neurons_are_named_in_the_place_of_a_file(cli, checkpoints, facts_file):
    chosen = ("-r", "P36", "-s", "Peru", "--no-controls")
    (row,) = intervene(cli, checkpoints, facts_file, "L0N1,L1N2", *chosen)["facts"]
    model, facts = kn.load_model(checkpoints["bert"]), kn.FactSet.from_jsonl(facts_file)
    prompts = kn.make_prompts(model, facts.find("Peru", relation="P36"))
    effect = kn.measure(model, prompts, kn.Suppress(["L0N1", "L1N2"]))
    assert (row["n_neurons"], row["after"]) == (2, pytest.approx(effect["after"].mean()))
    for same in (["L0N1 L1N2"], ["L0N1", "-n", "L1N2"], ["L1N2, L0N1,", "-n", "L0N1"]):
        assert intervene(cli, checkpoints, facts_file, *same, *chosen)["facts"] == [row]
    code, _, err = cli("intervene", "-f", facts_file, "-n", "L0N1", *chosen)
    assert code == 2 and "--neurons L0N1 names neurons of no model. Name their model with --model." in err


def test_what_names_no_neuron_is_told_with_what_does(cli, found, checkpoints, facts_file):
    path, _ = found
    run = ("intervene", "-m", checkpoints["bert"], "-f", facts_file, "-n")
    for wrong in ("l0n1", "0:1", "L0", "L0N1,0.1"):
        code, _, err = cli(*run, wrong)
        assert code == 2 and "expected names such as L2N7, for layer 2 and index 7" in err
    for values in ([path, "-n", "L0N1"], ["L0N1", "-n", path], [path, "-n", path]):
        code, _, err = cli(*run, *values)
        assert code == 2 and f"{path} is not the name of a neuron; expected one neuron file, or names" in err
    code, _, err = cli(*run, "absent.json")
    assert code == 2 and "There is no file absent.json" in err


def test_equivalent_interventions_have_equal_effects(cli, found, checkpoints, facts_file):
    path, _ = found
    off = intervene(cli, checkpoints, facts_file, path, "--suppress")
    assert intervene(cli, checkpoints, facts_file, path)["facts"] == off["facts"]
    assert intervene(cli, checkpoints, facts_file, path, "--set-to", 0)["facts"] == off["facts"]
    everywhere = intervene(cli, checkpoints, facts_file, path, "--all-positions")["facts"]
    assert everywhere != off["facts"]
    own = [row for row in off["facts"] if row["neuron_set"] == "found" and row["scope"] == "own"]
    alone = intervene(cli, checkpoints, facts_file, path, "--no-controls")["facts"]
    pd.testing.assert_frame_equal(pd.DataFrame(alone), pd.DataFrame(own))
    unchanged = intervene(cli, checkpoints, facts_file, path, "--amplify", 1, "--no-controls")
    assert all(row["before"] == pytest.approx(row["after"]) for row in unchanged["facts"])


def test_selected_facts_are_compared_with_facts_outside_the_selection(cli, found, checkpoints, facts_file):
    path, _ = found
    document = intervene(cli, checkpoints, facts_file, path, "-r", "P36", "--limit", 4)
    assert document["n_facts"] == 4
    others = {row["measured"] for row in document["facts"] if row["scope"] == "other"}
    assert others and all(key.startswith("P1376/") for key in others)


@pytest.mark.parametrize("seed", range(3))
def test_the_one_fact_of_another_relation_is_found(cli, checkpoints, facts_file, tmp_path, monkeypatch, seed):
    facts = kn.FactSet.from_jsonl(facts_file)
    nearly_all_of_one = kn.FactSet([*facts.of("P36"), facts.of("P1376")[0]])
    nearly_all_of_one.to_jsonl(tmp_path / "facts.jsonl")
    kn.NeuronSet.write_many(tmp_path / "found.json", {facts[0]: kn.NeuronSet([(1, 2)])})
    monkeypatch.setattr("kn_lens.cli.intervene.MIN_OTHERS", 1)
    document = intervene(cli, checkpoints, tmp_path / "facts.jsonl", tmp_path / "found.json", "--seed", seed)
    measured = {row["measured"] for row in document["facts"] if row["scope"] == "other"}
    assert measured == {facts.of("P1376")[0].key}


def test_intervene_prints_a_table(cli, found, checkpoints, facts_file, terminal):
    command = ("intervene", "-m", checkpoints["bert"], "-f", facts_file, "-n", found[0])
    code, piped, _ = cli(*command)
    assert code == 0 and re.search(r"^ knowledge neurons +off +\d.*%.*%", piped, re.MULTILINE)
    assert all(words in piped for words in ("most active", "random", "own facts", "other facts"))
    for columns in (60, 80):
        terminal(columns)
        code, out, _ = cli(*command)
        assert code == 0 and max(map(len, out.splitlines())) <= columns
        assert all(value in out for value in re.findall(r"[+-][\d.]+%", piped))


def test_an_interval_of_one_fact_is_a_dash(cli, found, checkpoints, facts_file):
    code, out, _ = cli("intervene", "-m", checkpoints["bert"], "-f", facts_file, "-n", found[0], "-s", "Ireland")
    assert code == 0 and WHY_NONE in out
    rows = re.findall(r"^.* off .*$", out, re.MULTILINE)
    assert len(rows) == 3 and all(len(re.findall(r"% \[-\]", row)) == 2 for row in rows)


def test_a_single_relation_is_measured_without_facts_of_another(cli, found, checkpoints, facts_file, tmp_path):
    single = tmp_path / "single.jsonl"
    kn.FactSet.from_jsonl(facts_file).of("P36").to_jsonl(single)
    path = tmp_path / "own.json"
    cli("find", "-m", checkpoints["bert"], "-f", single, "-o", path)
    effects = intervene(cli, checkpoints, single, path)["facts"]
    assert {(row["neuron_set"], row["scope"]) for row in effects} == {
        ("found", "own"),
        ("activation", "own"),
        ("random", "own"),
    }
    code, out, _ = cli("intervene", "-m", checkpoints["bert"], "-f", single, "-n", path)
    assert code == 0 and f"{ONE_RELATION}: effects on a fact of another relation." in out
    assert ONE_RELATION not in cli("intervene", "-m", checkpoints["bert"], "-f", single, "-n", path, "--no-controls")[1]
    assert len(intervene(cli, checkpoints, single, path, "--no-controls")["facts"]) == 8


@pytest.fixture(scope="module")
def others(folder):
    """Another checkpoint of the same class and size, and a copy of the first."""
    other = tiny_checkpoint("BertForMaskedLM", folder / "other", seed=1)
    return {"other": str(other), "copy": str(shutil.copytree(folder / "bert", folder / "copy"))}


def commands(path, facts_file, to):
    """Every command that takes a neuron file, without a model."""
    ireland = ("-s", "Ireland", "-r", "P36", "-f", facts_file, "-n", path)
    return [
        ("intervene", *ireland, "--no-controls"),
        ("edit", "update", *ireland, "--object", "Tokyo", "--allow-unknown", "--max-share", "1", "-o", to),
        ("edit", "erase", "-r", "P36", "-f", facts_file, "-n", path, "-o", to),
    ]


@pytest.fixture
def sets(checkpoints, facts_file, tmp_path):
    """A neuron file that was written with the masked checkpoint."""
    facts = kn.FactSet.from_jsonl(facts_file).of("P36")
    path = tmp_path / "sets.json"
    kn.NeuronSet.write_many(
        path, {fact: kn.NeuronSet([(1, i)]) for i, fact in enumerate(facts)}, model=kn.load_model(checkpoints["bert"])
    )
    return path


def test_neuron_file_determines_the_default_model(cli, checkpoints, others, facts_file, sets, tmp_path):
    edit = tmp_path / "edit.safetensors"
    for command in commands(sets, facts_file, edit):
        code, out, err = cli(*command, "--json")
        assert code == 0 and "contains neurons of" not in err
        document = json.loads(out)
        made_of = document.get("model") or document["checkpoint"]
        assert made_of["name"] == checkpoints["bert"]
        # The same weights elsewhere are the same model, and give the same.
        code, out, err = cli(*command, "--json", "-m", others["copy"])
        assert code == 0 and "contains neurons of" not in err
        for name in ("facts", "row_hash"):
            assert json.loads(out).get(name) == document.get(name)


def test_another_model_is_refused_unless_forced(cli, checkpoints, others, facts_file, sets, tmp_path):
    edit = tmp_path / "edit.safetensors"
    for command in commands(sets, facts_file, edit):
        for model, why in ((others["other"], "their weights differ"), (checkpoints["gpt2"], "architecture is Bert")):
            code, out, err = cli(*command, "-m", model)
            assert (code, out) == (2, "") and why in err and "--force" in err and err.count("\n") == 1
            assert not edit.exists()
        code, out, err = cli(*command, "-m", others["other"], "--force")
        assert code == 0 and "their weights differ" in err  # it is done, and said
        edit.unlink(missing_ok=True)


def test_neuron_file_without_a_model_requires_the_option(cli, checkpoints, facts_file, sets, tmp_path):
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(json.loads(sets.read_text())["neurons"]))
    edit = tmp_path / "edit.safetensors"
    for command in commands(bare, facts_file, edit):
        code, out, err = cli(*command)
        assert (code, out) == (2, "") and "does not record the model" in err and "--model" in err
        assert cli(*command, "-m", checkpoints["bert"])[0] == 0


def test_missing_model_of_a_neuron_file_is_reported(cli, facts_file, sets, tmp_path):
    text = sets.read_text()
    sets.write_text(text.replace(json.loads(text)["meta"]["model"]["name"], str(tmp_path / "gone")))
    code, out, err = cli(*commands(sets, facts_file, tmp_path / "edit.safetensors")[0])
    assert (code, out) == (2, "") and f"{sets} names this model" in err and "--model" in err


def test_files_of_an_earlier_version_are_checked_by_the_name_of_the_model(
    cli, checkpoints, others, facts_file, sets, tmp_path
):
    document = json.loads(sets.read_text())
    del document["meta"]["model"]["digest"]
    sets.write_text(json.dumps(document))
    command = commands(sets, facts_file, tmp_path / "edit.safetensors")[0]
    assert cli(*command)[0] == cli(*command, "-m", checkpoints["bert"])[0] == 0
    code, out, err = cli(*command, "-m", others["copy"])
    assert (code, out) == (2, "") and "no digest" in err


def test_facts_of_another_relation_that_cannot_be_queried_are_left_out(cli, checkpoints, facts_file, tmp_path):
    """A causal model can be queried with none of the facts of the other relation."""
    facts = [fact for fact in kn.FactSet.from_jsonl(facts_file) if fact.relation == "P36"]
    facts += [kn.Fact(fact.object, "P1376", fact.subject, ("[Y] has the capital [X].",)) for fact in facts]
    kn.FactSet(facts).to_jsonl(tmp_path / "facts.jsonl")
    model = kn.load_model(checkpoints["gpt2"])
    kn.NeuronSet.write_many(tmp_path / "n.json", {facts[0]: kn.NeuronSet([(1, 2)])}, model=model)
    code, out, _ = cli("intervene", "-f", tmp_path / "facts.jsonl", "-n", tmp_path / "n.json")
    assert code == 0 and "own facts" in out and "other facts" not in out and ONE_RELATION in out
