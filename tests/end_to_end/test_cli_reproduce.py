"""``kn-lens reproduce``: from a command to tables, resumed, planned, refused, and without a model."""

import json
import signal
import subprocess
import sys
import time
import warnings

import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.cli import main

FEW = ("--relations", "P36,P30", "--limit", "2", "--set", "dose_facts=1", "--set", "n_resamples=20")


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run ``kn-lens reproduce`` in this process; returns exit code, stdout and stderr."""
    monkeypatch.setattr("kn_lens.cli._prepare_process", lambda: None)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["kn-lens", "reproduce", *map(str, args)])
        capsys.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return exit_info.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduce")


@pytest.mark.parametrize("model", ["world-bert", "world-gpt2"])
def test_the_whole_command_runs_on_the_embedded_models_and_resumes(cli, folder, model):
    code, out, err = cli("--out", folder / model, "--model", model, *FEW)
    assert code == 0, err
    assert "table2" in out and "figures4 5" in out and f"All tables are in {folder / model}" in out
    before = {path: path.read_bytes() for path in (folder / model).rglob("*.*") if path.is_file()}
    code, out, err = cli("--out", folder / model, "--model", model, *FEW, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert {path: path.read_bytes() for path in (folder / model).rglob("*.*") if path.is_file()} == before
    effects = pd.DataFrame(document["tables"]["figures4_5"])
    off = effects.query("factor == 0 and facts == 'own'").set_index("neurons")["value"]
    assert off["found"] < -0.1 < off["random"]


def test_a_dry_run_says_what_would_run_and_writes_nothing(cli, folder):
    code, out, err = cli("--out", folder / "new", *FEW, "--dry-run", "--json")
    assert code == 0 and not (folder / "new").exists(), err
    planned = pd.DataFrame(json.loads(out)["plan"]).set_index("stage")
    assert (planned["done"] == 0).all() and planned.loc["attributions", "passes"] > 1000
    assert (planned.drop("facts")["seconds"] > 0).all()
    code, out, err = cli("--out", folder / "world-bert", *FEW, "--dry-run", "--json")
    planned = pd.DataFrame(json.loads(out)["plan"])
    assert code == 0 and (planned["done"] == planned["shards"]).all() and (planned["seconds"] == 0).all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--seed", "1"), "seed: 0, now 1"),
        (("--model", "world-gpt2"), "model.weights"),
        (("--stages", "neuron"), "Did you mean 'neurons'"),
        (("--set", "atr_threshold=0.3"), "Did you mean 'attr_threshold'"),
        (("--set", "seed"), "expected NAME=VALUE"),
        (("--relations", "P36,P3"), "No relation 'P3'"),
        (("--preset", "papper"), "Did you mean 'paper'"),
        (("--baseline", "some.json"), "--neurons"),
    ],
)
def test_bad_input_is_one_line(cli, folder, args, message):
    code, out, err = cli("--out", folder / "world-bert", *FEW, *args)
    assert code == 2 and out == "" and message in " ".join(err.split()) and "Traceback" not in err


def test_only_some_stages_run(cli, folder):
    code, _, err = cli("--out", folder / "some", *FEW, "--stages", "activations")
    assert code == 0, err
    assert {path.name for path in (folder / "some" / "records").iterdir()} == {"facts", "activations"}


def test_neurons_found_by_others_need_no_model(cli, folder, monkeypatch):
    def no_model(*args):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("kn_lens.cli.reproduce.load", no_model)
    for relation, sets in {"P36": [[[9, 7], [9, 8]], [[9, 8]]], "P30": [[[10, 1]], []]}.items():
        (folder / f"kn_bag-{relation}.json").write_text(json.dumps(sets))
    files = [arg for relation in ("P36", "P30") for arg in ("--neurons", folder / f"kn_bag-{relation}.json")]
    code, out, err = cli("--out", folder / "found", *files, "--n-layers", "12", "--json")
    assert code == 0, err
    tables = json.loads(out)["tables"]
    values = {row["statistic"]: row["value"] for row in tables["table2"]}
    assert values == {"neurons_per_fact": 1.0, "shared_within": 0.5, "shared_across": 0.0}
    assert [row["value"] for row in tables["figure3"]] == [0.0] * 9 + [0.75, 0.25, 0.0]
    assert (folder / "found" / "tables" / "figure3.csv").exists()


def test_own_neuron_files_and_a_baseline_stand_side_by_side(cli, folder):
    kn.NeuronSet.write_many(folder / "own.json", {"P36/Ireland/Dublin": kn.NeuronSet([(1, 2)])})
    kn.NeuronSet.write_many(folder / "uuid.json", {"a-uuid": kn.NeuronSet([(1, 2)])})
    code, out, err = cli("-o", folder / "own", "-n", folder / "own.json", "--baseline", folder / "own.json", "--json")
    assert code == 0, err
    assert {row["neurons"] for row in json.loads(out)["tables"]["table2"]} == {"found", "baseline"}
    code, out, err = cli("-o", folder / "own", "-n", folder / "uuid.json")
    assert code == 2 and "--facts" in err


def test_an_interrupted_run_says_how_to_go_on(folder):
    command = [sys.executable, "-m", "kn_lens.cli", "reproduce", "--out", str(folder / "stopped"), *FEW]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while not list((folder / "stopped").glob("records/attributions/*.json")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "takes" in err and "up again" in err and "Traceback" not in err
