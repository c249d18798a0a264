"""``kn-lens edit``: files and output equal the library's results; invalid input changes no file."""

import csv
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoModelForMaskedLM

import kn_lens as kn
from tests.tiny import COUNTRIES, tiny_checkpoint

CAPITAL = ("The capital of [X] is [Y].", "[Y] is the capital of [X].", "In fact, [X] has its seat in [Y]", "[X], [Y].")
CAPITAL_OF = ("[X] is the capital of [Y].", "The capital of [Y] is [X].", "[X] lies in [Y].")
NEURONS = kn.NeuronSet([(0, 3), (1, 7), (2, 23)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("edit")


@pytest.fixture(scope="module")
def checkpoint(folder):
    return str(tiny_checkpoint("BertForMaskedLM", folder / "bert", torch.float32))


@pytest.fixture(scope="module")
def facts(folder):
    found = [kn.Fact(country, "P36", capital, CAPITAL) for country, capital in COUNTRIES.items()]
    found += [kn.Fact(capital, "P1376", country, CAPITAL_OF) for country, capital in COUNTRIES.items()]
    kn.FactSet(found).to_jsonl(folder / "facts.jsonl")
    return kn.FactSet(found)


@pytest.fixture(scope="module")
def neurons(folder, facts):
    """Return two neurons that all capitals have, and one for each capital."""
    sets = {fact: kn.NeuronSet([(0, 1), (1, 1), (2, i)]) for i, fact in enumerate(facts.of("P36"))}
    kn.NeuronSet.write_many(folder / "neurons.json", sets)
    return sets


@pytest.fixture
def cli(cli):
    """Run ``kn-lens edit``."""
    return partial(cli, "edit")


@pytest.fixture
def source(folder, checkpoint, facts, neurons):
    return ("-n", folder / "neurons.json", "-f", folder / "facts.jsonl", "-m", checkpoint)


@pytest.fixture
def written(folder, checkpoint, facts, tmp_path):
    """An edit file, and the edit in it."""
    model = kn.load_model(checkpoint, device="cpu")
    fact = facts.find("Ireland", relation="P36")
    edit = kn.update_fact(model, fact, "Tokyo", NEURONS, allow_unknown=True)
    edit.save(tmp_path / "tokyo.safetensors")
    return tmp_path / "tokyo.safetensors", edit


def test_update_takes_named_neurons_and_the_label_of_a_relation(cli, checkpoint, facts, tmp_path):
    kn.FactSet(replace(fact, relation_label=f"label of {fact.relation}") for fact in facts).to_jsonl(
        tmp_path / "f.jsonl"
    )
    source = ("-n", "L0N1, L2N3", "-f", tmp_path / "f.jsonl", "-m", checkpoint)
    chosen = ("-s", "Ireland", "-r", "label of P36", "--object", "Tokyo", "--allow-unknown")
    assert cli("update", *source, *chosen, "-o", tmp_path / "edit.safetensors", "--json")[0] == 0
    model = kn.load_model(checkpoint, device="cpu")
    fact = facts.find("Ireland", relation="P36")
    expected = kn.update_fact(model, fact, "Tokyo", ["L0N1", "L2N3"], allow_unknown=True)
    assert kn.WeightEdit.load(tmp_path / "edit.safetensors").neurons == expected.neurons


def test_update_writes_the_edit_of_the_library(cli, source, checkpoint, facts, neurons, tmp_path):
    path = tmp_path / "edit.safetensors"
    chosen = ("-s", "Ireland", "-r", "P36", "--object", "Tokyo", "--allow-unknown", "--lambda-new", 2)
    code, out, err = cli("update", *source, *chosen, "-o", path, "--json")
    assert code == 0 and "on top in none of" in err and "choose_lambdas" in err
    model = kn.load_model(checkpoint, device="cpu")
    fact = facts.find("Ireland", relation="P36")
    expected = kn.update_fact(
        model, fact, "Tokyo", neurons[fact], lambdas=(1, 2), neurons_by_fact=neurons, allow_unknown=True
    )
    assert kn.WeightEdit.load(path).digest == expected.digest == json.loads(out)["digest"]
    tried = json.loads(out)["tried"]
    prompts = kn.make_prompts(model, replace(fact, object="Tokyo"), unknown_answers="leave_out")
    reached = kn.measure(model, prompts, expected)
    assert (tried["n_prompts"], tried["success"]) == (len(prompts), (reached.rank_after == 0).mean())
    assert expected.neurons == kn.NeuronSet([(2, 0)]) and json.loads(out)["why"][0]["n_shared"] == 2
    code, out, err = cli("update", *source, *chosen, "-o", path, "--max-share", 1)
    assert code == 0 and "P36/Ireland/Dublin -> Tokyo" in out and f"kn-lens edit apply {path}" in out
    assert kn.WeightEdit.load(path).neurons == neurons[fact]


@pytest.mark.parametrize(
    "options, how", [((), {}), (("--min-facts", 2), {"min_facts": 2}), (("--value", "unk"), {"value": "unk"})]
)
def test_erase_writes_the_edit_of_the_library(cli, source, checkpoint, neurons, tmp_path, options, how):
    path = tmp_path / "edit.safetensors"
    code, out, err = cli("erase", *source, "-r", "P36", *options, "-o", path, "--json")
    assert (code, err) == (0, "")
    expected = kn.erase_relation(kn.load_model(checkpoint, device="cpu"), neurons, **how)
    assert kn.WeightEdit.load(path).digest == expected.digest == json.loads(out)["digest"]


def test_erase_of_several_relations_is_one_edit_also_of_neurons_that_they_share(
    cli, facts, folder, checkpoint, tmp_path
):
    shared = kn.Neuron(1, 7)
    sets = {
        "P36": kn.NeuronSet([shared, kn.Neuron(0, 1)]),
        "P1376": kn.NeuronSet([shared, kn.Neuron(2, 3)]),
    }
    kn.NeuronSet.write_many(tmp_path / "neurons.json", {fact: sets[fact.relation] for fact in facts})
    path = tmp_path / "edit.safetensors"
    options = ("-f", folder / "facts.jsonl", "-n", tmp_path / "neurons.json", "-m", checkpoint)
    code, _, err = cli("erase", *options, "-r", "P36", "-r", "P1376", "--value", "unk", "-o", path, "--json")
    assert (code, err) == (0, "")
    edit = kn.WeightEdit.load(path)
    model = kn.load_model(checkpoint, device="cpu")
    expected = kn.erase_neurons(model, sets["P36"] | sets["P1376"], value="unk")
    assert edit.neurons == expected.neurons and edit.new.equal(expected.new) and edit.old.equal(expected.old)
    assert [step["relation"] for step in edit.why] == ["P36", "P1376"]


def test_show_prints_the_contents_of_a_file(cli, written):
    path, edit = written
    code, out, err = cli("show", path)
    assert (code, err) == (0, "")
    for part in (
        "P36/Ireland/Dublin -> Tokyo",
        "BertForMaskedLM, float32",
        "lambdas [1.0, 2.0]",
        "L1N7",
        edit.digest[:16],
    ):
        assert part in out
    code, out, err = cli("show", path, path, "--json")
    (document, again) = json.loads(out)["edits"]
    assert document == again and document["why"] == list(edit.why) and document["row_hash"] == edit.row_hash
    assert [row["length_new"] for row in document["rows"]] == pytest.approx(edit.new.norm(dim=-1).tolist())


def test_apply_measures_edits_on_the_facts_that_they_name(cli, folder, facts, written, checkpoint, tmp_path):
    path, edit = written
    files = {file.name: file.read_bytes() for file in (folder / "bert").iterdir()}
    answers = tmp_path / "answers.csv"
    code, out, err = cli("apply", path, "-f", folder / "facts.jsonl", "--json", "-o", answers)
    assert (code, err) == (0, "")
    result = json.loads(out)
    model = kn.load_model(checkpoint, device="cpu")
    prompts = kn.make_prompts(model, facts.find("Ireland", relation="P36"))
    with edit.applied(model):
        after = kn.measure(model, prompts, []).before
    assert [row["after"] for row in result["prompts"]] == pytest.approx(after.tolist(), rel=1e-4, abs=1e-9)
    assert [row["text"] for row in result["prompts"]] == list(prompts.text)
    assert {file.name: file.read_bytes() for file in (folder / "bert").iterdir()} == files
    with answers.open(encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file)] == list(prompts.text)

    code, out, err = cli("apply", path, "-f", folder / "facts.jsonl", "-r", "P1376")
    assert code == 0 and "24 prompts of 8 facts" in out


def test_several_edits_are_applied_in_order(cli, folder, checkpoint, written, facts, tmp_path):
    path, first = written
    model = kn.load_model(checkpoint, device="cpu")
    with first.applied(model):
        second = kn.erase_neurons(model, kn.NeuronSet([(1, 7), (2, 1)]))
    second.save(tmp_path / "second.safetensors")
    both, facts_file = (path, tmp_path / "second.safetensors"), folder / "facts.jsonl"
    code, out, err = cli("apply", *both, "-f", facts_file, "--json")
    assert (code, err) == (0, "")
    prompts = kn.make_prompts(model, facts.find("Ireland", relation="P36"))
    expected = kn.measure(model, prompts, first + second).after
    assert [row["after"] for row in json.loads(out)["prompts"]] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-9)
    code, out, err = cli("apply", *reversed(both), "-f", facts_file)
    assert code == 2 and "Both edits change the row L1N7" in err and err.count("\n") == 1


def test_export_writes_a_checkpoint_that_transformers_loads(cli, written, checkpoint, tmp_path):
    path, edit = written
    code, out, err = cli("export", path, "-o", tmp_path / "edited")
    assert (code, err) == (0, "") and str(tmp_path / "edited") in out.replace("\n", "")
    was, now = (AutoModelForMaskedLM.from_pretrained(where).state_dict() for where in (checkpoint, tmp_path / "edited"))
    name = "bert.encoder.layer.1.output.dense.weight"
    row = list(edit.neurons).index(kn.Neuron(1, 7))
    assert torch.equal(now[name][:, 7], edit.new[row]) and not torch.equal(was[name][:, 7], edit.new[row])


def test_invalid_input_is_one_line_and_writes_nothing(cli, source, folder, written, checkpoint, tmp_path):
    path, _ = written
    cut, facts = tmp_path / "cut.safetensors", ("-f", folder / "facts.jsonl")
    cut.write_bytes(path.read_bytes()[:-10])
    nameless = tmp_path / "nameless.safetensors"
    kn.erase_neurons(kn.load_model(checkpoint, device="cpu"), NEURONS).save(nameless)
    other = tiny_checkpoint("BertForMaskedLM", tmp_path / "other", torch.float32, seed=1)
    to = ("-o", tmp_path / "new.safetensors")
    ireland = ("-s", "Ireland", "-r", "P36")
    before = sorted(tmp_path.rglob("*"))
    for args, message in [
        (("update", *source, *to, *ireland, "--object", "Tokyo"), "does not know P36/Ireland/Dublin"),
        (("update", *source, *to, *ireland, "--object", "Dublin"), "is the old one"),
        (("update", *source, *to, *ireland, "--object", "東京"), "cannot be an answer"),
        (("update", *source, *to, "-r", "P36", "--object", "Tokyo"), "has 8 facts; expected one"),
        (("update", *source, *to, "-s", "Dublin", "--object", "Peru"), "no neurons of P1376/Dublin/Ireland"),
        (("update", *source, *to, *ireland, "--object", "Tokyo", "--scaling", "nrom"), "Did you mean 'norm'"),
        (("erase", *source, *to, "-r", "P1376"), "none of them of P1376"),
        (("erase", *source, *to, "-r", "P36", "--top", 2, "--min-facts", 2), "expected one of them"),
        (("erase", *source, *to, "-r", "P36", "--value", "Dubln"), "Did you mean 'Dublin'"),
        (("show", cut), "cannot be read as an edit"),
        (("show", tmp_path / "tokio.safetensors"), "Did you mean 'tokyo.safetensors'"),
        (("show", checkpoint + "/config.json"), "cannot be read as an edit"),
        (("show", checkpoint + "/model.safetensors"), "holds no edit"),
        (("apply", path, "-m", other, *facts), "3 of 3 rows"),
        (("apply", nameless), "name none of these facts"),
        (("apply", path, *facts, "--dtype", "float64"), "float64"),
        (("export", path, "-o", checkpoint), "exists; expected the name of a directory"),
        (("export", path, "-m", other, "-o", tmp_path / "edited"), "3 of 3 rows"),
        (("export", cut, "-o", tmp_path / "edited"), "cannot be read as an edit"),
    ]:
        code, out, err = cli(*args)
        assert (code, out) == (2, ""), (args, out, err)
        assert message in err and err.count("\n") == 1, (args, err)
    assert sorted(tmp_path.rglob("*")) == before


def test_edit_without_a_command_prints_its_help(cli):
    code, out, err = cli()
    assert (code, err) == (0, "") and all(name in out for name in ("update", "erase", "show", "apply", "export"))
