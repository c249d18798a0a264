"""The command line on an encoder-decoder: neurons of the decoder, found, run through all stages, and reported."""

import json

import pytest

import kn_lens as kn
from kn_lens.runs.reader import RunRecords
from kn_lens.runs.stages.order import STAGES
from tests.encoder_decoders import TEMPLATES
from tests.tiny import COUNTRIES, ENCODER_DECODERS, tiny_checkpoint

FEW = (
    "--limit", "2", "--set", "min_prompts=1", "--set", "n_resamples=5", "--set", "doses=[0.5]", "--set", "dose_facts=1",
    "--set", "update_facts=1", "--set", "update_others=1", "--set", "erase_others=1", "--set", "check_facts=1",
    "--set", "text_sentences=1", "--set", "syntax_forms=1", "--set", "syntax_sentences=2", "--set", "syntax_facts=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(folder):
    architecture, settings = ENCODER_DECODERS["BART"]
    return tiny_checkpoint(architecture, folder / "bart", **settings)


@pytest.fixture(scope="module")
def facts_file(folder):
    facts = [kn.Fact(country, "P36", capital, TEMPLATES) for country, capital in list(COUNTRIES.items())[:3]]
    of_countries = ("[X] is the capital of [Y], as all know.",)
    facts += [kn.Fact(fact.object, "P1376", fact.subject, of_countries) for fact in facts]
    kn.FactSet(facts).to_jsonl(folder / "facts.jsonl")
    return folder / "facts.jsonl"


def test_find_gives_neurons_of_the_decoder(cli, checkpoint, facts_file, folder):
    arguments = ("find", "-m", checkpoint, "-f", facts_file, "--min-prompts", 1, "-o", folder / "neurons.json")
    code, out, _ = cli(*arguments, "--json")
    document = json.loads(out)
    assert code == 0 and document["left_out"] == {}
    assert (document["model"]["kind"], document["model"]["side"]) == ("encoder-decoder", "decoder")
    model, facts = kn.load_model(checkpoint), kn.FactSet.from_jsonl(facts_file)
    expected = kn.refine(kn.attribute(model, kn.make_prompts(model, facts)), min_prompts=1)
    assert [kn.NeuronSet(map(tuple, row["neurons"])) for row in document["facts"]] == list(expected.values())
    assert json.loads((folder / "neurons.json").read_text())["meta"]["model"]["side"] == "decoder"


def test_a_run_has_all_stages_and_says_whose_neurons_they_are(cli, checkpoint, facts_file, folder):
    code, _, err = cli("reproduce", "--model", checkpoint, "--facts", facts_file, "--out", folder / "run", *FEW)
    assert code == 0, err
    run = RunRecords.read(folder / "run")
    assert run.provenance["model"]["side"] == "decoder"
    done = {path.name for path in (folder / "run" / "records").iterdir()}
    assert {stage.name for stage in STAGES} <= {name.partition(".")[0] for name in done}
    assert cli("report", folder / "run")[0] == 0
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "an encoder-decoder model of" in page and "3 decoder layers of 24 MLP neurons" in page


def test_the_families_are_listed_with_their_state(cli):
    families = {family["name"]: family for family in json.loads(cli("models", "--json")[1])["families"]}
    for name in ("T5", "T5 1.1 / FLAN-T5", "mT5", "BART", "mBART", "T5Gemma"):
        assert families[name]["kind"] == "encoder-decoder" and families[name]["whole_passes"]
    assert "encoder-decoder" in cli("models")[1]


def test_the_encoder_is_a_side_of_every_command(cli, checkpoint, facts_file, folder):
    """Neurons at the subject are found, suppressed and edited; files know the side without being told."""
    neurons, edit = folder / "encoder.json", folder / "encoder.safetensors"
    arguments = ("find", "-m", checkpoint, "--side", "encoder", "--position", "subject_last", "-f", facts_file)
    code, out, err = cli(*arguments, "--min-prompts", 1, "--share-threshold", 0.3, "-o", neurons, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["model"]["side"] == "encoder"
    encoder, facts = kn.host_of(kn.load_model(checkpoint), side="encoder"), kn.FactSet.from_jsonl(facts_file)
    attr = kn.attribute(encoder, kn.make_prompts(encoder, facts).at("subject_last"))
    expected = kn.refine(attr, min_prompts=1, share_threshold=0.3)
    assert [kn.NeuronSet(map(tuple, row["neurons"])) for row in document["facts"]] == list(expected.values())
    suppress = ("intervene", "--neurons", neurons, "-f", facts_file, "--position", "subject_last", "--json")
    code, out, err = cli(*suppress)
    assert code == 0 and json.loads(out)["model"]["side"] == "encoder", err

    named = ("edit", "update", "-s", "Ireland", "-r", "P36", "--object", "Paris", "-m", checkpoint, "--side", "encoder")
    code, _, err = cli(*named, "--neurons", "L0N3", "-f", facts_file, "--allow-unknown", "-o", edit)
    assert code == 0, err
    assert kn.WeightEdit.load(edit).checkpoint.side == "encoder"
    code, out, err = cli("edit", "apply", edit, "-f", facts_file, "--json")
    assert code == 0 and json.loads(out)["model"]["side"] == "encoder", err
    code, _, err = cli("find", "-m", "world-bert", "--side", "encoder", "--limit", 1)
    assert code == 2 and "has one stack of layers" in err


def test_a_run_scores_the_encoder(cli, checkpoint, facts_file, folder):
    """Rows are not read through a head there; positions are those of the text."""
    out = folder / "encoder_run"
    stages = [part for stage in ("answer_readouts", "methods", "positions", "readouts") for part in ("--stage", stage)]
    command = ("reproduce", "--model", checkpoint, "--facts", facts_file, "--out", out, *FEW, "--set", "side=encoder")
    code, _, err = cli(*command, *stages)
    assert code == 0, err
    run = RunRecords.read(out)
    assert (run.provenance["model"]["side"], run.config["side"]) == ("encoder", "encoder")
    assert run.records("readouts").empty and set(run.records("positions")["role"]) >= {"read", "subject_last", "after"}
    assert "log_prob_gain" not in set(run.records("methods")["neuron_set"])
    assert cli("report", out)[0] == 0
    assert "3 encoder layers of 24 MLP neurons" in (out / "report.html").read_text(encoding="utf-8")
    code, _, err = cli(*command[:-2], *stages)
    assert code == 2 and "side" in err
