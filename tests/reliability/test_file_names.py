"""Arbitrary names of facts, relations and models never change where files are written."""

import json
import os
from pathlib import Path

import pytest

import kn_lens as kn
from kn_lens.runs import ModelEntry
from kn_lens.runs.directory import Shard
from kn_lens.runs.reader import RunRecords
from tests.reliability.tries import TRIED
from tests.tiny import COUNTRIES, tiny_checkpoint, tiny_model

NAMES = [
    "../../x",
    "/etc/x",
    "..",
    ".",
    "a\0b",
    "CON",
    "nul.txt",
    "P36",
    "p36",
    "a+b",
    "%2e",
    "a\nb",
    "a\rb",
    "é" * 30,
    "~",
    "-rf",
]
TEMPLATES = ("The capital of [X] is [Y].", "In fact, [X] has its seat of government in [Y]", "[X] is led from [Y].")
FACTS = kn.FactSet(
    kn.Fact(country, name, capital, TEMPLATES) for name in NAMES for country, capital in list(COUNTRIES.items())[:1]
)


def everything_in(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def model():
    return tiny_model("BertForMaskedLM")


def test_a_run_stays_in_its_directory_and_tells_relations_apart(model, tmp_path):
    run = tmp_path / "deep" / "down" / "run"
    run.parent.mkdir(parents=True)
    kn.reproduce(model, FACTS, run, stages=["facts"])
    kn.write_report(run)
    kn.write_tables(run)
    kn.write_figures(run)
    assert {path.parts[:3] for path in everything_in(tmp_path) if len(path.parts) > 2} == {("deep", "down", "run")}
    assert {path.stem for path in (run / "records" / "facts").glob("*.parquet")} == {Shard(name).name for name in NAMES}
    assert RunRecords.read(run).tables()["coverage"]["relation"].sort_values().tolist() == sorted(NAMES)
    TRIED["names: in data", "kept in their place"] += len(NAMES)


def test_a_relation_name_too_long_for_a_file_is_refused_before_the_model_runs(model, tmp_path):
    facts = kn.FactSet([*FACTS, kn.Fact("Peru", "é" * 300, "Lima", TEMPLATES)])
    with pytest.raises(kn.DataError, match="too long for the name of a file"):
        kn.reproduce(model, facts, tmp_path / "run")
    assert not everything_in(tmp_path)
    TRIED["names: in data", "refused"] += 1


def test_names_of_models_and_fact_sets_of_a_study_are_not_used_as_paths(tmp_path):
    """The models do not exist, so that every run fails and leaves a report in a file with its name."""
    study = tmp_path / "deep" / "down" / "study"
    study.parent.mkdir(parents=True)
    models = [ModelEntry(name=name, model=f"./none{number}") for number, name in enumerate(NAMES)]
    rows = kn.run_study(kn.StudyConfig(models=models, stages=["facts"]), {"world": FACTS}, study)
    assert len(rows) == len(NAMES) and set(rows["state"]) == {"failed"}
    assert {path.parts[:3] for path in everything_in(tmp_path) if len(path.parts) > 2} == {("deep", "down", "study")}
    assert len(list((study / "failures").iterdir())) == len(NAMES)
    TRIED["names: in data", "kept in their place"] += len(NAMES)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "a\\b", "", "..", "a\0b"])
def test_figures_are_written_into_their_directory(name, tmp_path):
    import pandas as pd

    drawn = kn.figures.neuron_scores(
        pd.DataFrame({"layer": [3], "index": [7], "score": [0.5], "low": [0.4], "high": [1]})
    )
    with pytest.raises(kn.ArgumentError, match="file name"):
        kn.figures.save_figures({name: drawn}, tmp_path / "figures")
    assert not everything_in(tmp_path)
    TRIED["names: in data", "refused"] += 1


def test_neuron_files_read_back_any_key(tmp_path):
    sets = {kn.Fact("s", name, "o").key: kn.NeuronSet([(0, 1)]) for name in NAMES}
    kn.NeuronSet.write_many(tmp_path / "found.json", sets)
    assert kn.NeuronSet.read_many(tmp_path / "found.json") == sets and len(sets) == len(NAMES)
    with pytest.raises(kn.KNLensError, match="surrogate"):
        kn.NeuronSet.write_many(tmp_path / "other.json", {"\ud800": kn.NeuronSet()})
    assert everything_in(tmp_path) == {Path("found.json")}


def test_a_failed_write_of_facts_leaves_nothing(tmp_path):
    for path in (tmp_path / "none" / "facts.jsonl", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(kn.DataError, match="cannot be written"):
            FACTS.to_jsonl(path)
    assert not everything_in(tmp_path)
    FACTS.to_jsonl(tmp_path / "facts.jsonl")
    assert kn.FactSet.from_jsonl(tmp_path / "facts.jsonl") == FACTS


@pytest.mark.parametrize("name", ["", ".", "a\0b", "x" * 300, "none/x", "pipe", "/proc/self/mem"])
def test_directories_pipes_and_devices_are_not_overwritten(name, model, tmp_path, monkeypatch):
    """Pipes stand for devices, which a test cannot create."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    prompts = kn.make_prompts(model, FACTS[:1])
    writers = [
        FACTS.to_jsonl,
        lambda path: kn.NeuronSet.write_many(path, {"a": kn.NeuronSet()}),
        kn.erase_neurons(model, kn.NeuronSet([(0, 1)])).save,
    ]
    if "\0" not in name:
        writers.append(lambda path: kn.attribute_to_file(model, path, prompts, method="activation"))
    for write in writers:
        with pytest.raises(kn.KNLensError, match=r"cannot be written|is not overwritten"):
            write(name)
        TRIED["names: of files to write", "refused"] += 1
    assert everything_in(tmp_path) == {Path("pipe")} and Path("pipe").is_fifo()


def test_weights_outside_a_checkpoint_directory_are_not_read(tmp_path):
    """An index of shards names files; a name that leads out of the directory is refused."""
    checkpoint = tiny_checkpoint("BertForMaskedLM", tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").rename(tmp_path / "outside.txt")
    index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": "../outside.txt"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(kn.UnsupportedModelError):
        kn.load_model(checkpoint)
