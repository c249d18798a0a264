"""``kn-lens reproduce``: from a command to tables, resumed, planned, refused, and without a model."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import pytest

import kn_lens as kn
from kn_lens._core.intervals import WHY_NONE
from kn_lens.reports.html.panels import PANELS
from kn_lens.reports.html.wording import COLUMNS, TITLES
from kn_lens.runs.reader import RunRecords
from kn_lens.runs.stages import robustness
from kn_lens.runs.stages.order import STAGES
from tests.intervals import hold_their_values

FEW = (
    "--relation", "P36", "--relation", "P30", "--limit", "2", "--set", "n_resamples=50", "--set", "doses=[0.5]",
    "--set", "dose_facts=1", "--set", "update_facts=1", "--set", "update_others=2", "--set", "erase_others=2",
    "--set", "check_facts=1", "--set", "check_draws=1", "--set", "text_sentences=3", "--set", "syntax_forms=1",
    "--set", "syntax_sentences=6", "--set", "syntax_facts=1",
)  # fmt: skip
OF_PRESETS = ("--split", "held_out", *FEW, "--set", "n_steps=4")
STAGES_OF_OFFICIAL = (
    "--stage", "effects", "--stage", "doses", "--stage", "texts", "--stage", "updates", "--stage", "erasures",
)  # fmt: skip
COMPLETE = ("world-bert", "world-gpt2", "paper")
"""Names of runs of all stages."""
RUNS = {
    "world-bert": ("--model", "world-bert", *FEW),
    "world-gpt2": ("--model", "world-gpt2", "--split", "trained", *FEW),
    "paper": ("--preset", "paper", *OF_PRESETS),
    "official": ("--preset", "official", *OF_PRESETS, *STAGES_OF_OFFICIAL),
}
PAPER = {
    "table2": ("statistic == 'neurons_per_fact'", 4.13),
    "figures4_5": ("factor == 0 and scope == 'own'", -0.2903),
    "table6": ("question == 'own wording' and measure == 'changed'", 0.485),
    "activation_on_texts": ("texts == 'head and tail'", 0.485),
}
"""A row of found neurons, and what Dai et al. (2022) have there."""


@pytest.fixture(scope="module")
def cli(cli):
    """Run ``kn-lens reproduce``."""
    return partial(cli, "reproduce")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture(scope="module")
def ran(cli, folder):
    """Run the command under one of the names of ``RUNS``, once; returns what was printed.

    The quadratures that ``stability`` compares have few points: most of a run's passes would be theirs.
    """
    printed = {}

    def run(name):
        if name not in printed:
            code, printed[name], err = cli("--out", folder / name, *RUNS[name])
            assert code == 0, err
        return printed[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustness, "SUM_POINTS", 3)
        patch.setattr(robustness, "GAUSS_POINTS", 2)
        yield run


def tables_of(path):
    return {file.stem: pd.read_csv(file) for file in (path / "tables").iterdir()}


def test_all_tables_and_columns_have_titles_for_readers(ran, folder):
    ran("world-bert")
    for name, table in tables_of(folder / "world-bert").items():
        assert name in TITLES, name
        for column in set(table) - {"relation", "low", "high"}:
            assert column in COLUMNS, f"{name}: {column}"


def contents(path):
    return {file: file.read_bytes() for file in path.rglob("*.*") if file.is_file()}


@pytest.mark.parametrize("name", RUNS)
def test_all_tables_are_plausible(ran, folder, name):
    ran(name)
    tables = tables_of(folder / name)
    for title, table in tables.items():
        assert len(table), title
        if "value" not in table:
            continue
        known = table.dropna(subset="value")
        assert len(known) and (known["n"] > 0).all(), title
        assert hold_their_values(known), title
        if "neuron_set" in table:
            kinds = table.groupby("neuron_set")["n"].max()
            assert "random" in kinds and "control" in table and table["control"].notna().any(), title
    for title, (row, value) in PAPER.items():
        assert tables[title].query(f"{row} and neuron_set == 'found'")["paper"].tolist() == [value], title
    beside = "baseline" if name in ("paper", "official") else "activation"
    assert set(tables["figures4_5"]["neuron_set"]) == {"found", beside, "random"}
    coverage = tables["coverage"].set_index("relation")
    assert coverage["n_queried"].to_dict() == {"P36": 2, "P30": 2}


@pytest.mark.parametrize("name", ["world-bert", "world-gpt2"])
def test_found_neurons_have_larger_effects_than_random_ones(ran, folder, name):
    ran(name)
    tables = tables_of(folder / name)
    off = tables["figures4_5"].query("factor == 0 and scope == 'own'").set_index("neuron_set")["value"]
    assert off["found"] < -0.1 < off["random"]
    own = tables["table6"].query("question == 'own wording' and measure == 'perplexity_growth'").set_index("neuron_set")
    assert own.loc["found", "value"] > own.loc["random", "value"]


@pytest.mark.parametrize("name", COMPLETE)
def test_report_of_a_finished_run_is_complete(ran, folder, tmp_path, name):
    ran(name)
    page = kn.write_report(folder / name, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not measured yet" not in page
    missing = [panel.name for panel in PANELS if f'id="figure-{panel.name}"' not in page]
    on_request = ["positions", "circuits", "circuit_graph", "degenerate", "consistency", "editors"]
    assert missing == on_request


@pytest.mark.parametrize("name", ["world-bert", "world-gpt2"])
def test_a_finished_run_is_only_read(cli, ran, folder, name):
    ran(name)
    before = contents(folder / name)
    code, out, err = cli("--out", folder / name, *RUNS[name], "--json")
    assert code == 0 and contents(folder / name) == before
    assert all("update" in line for line in err.splitlines()), err  # what a strength does is said again
    document = json.loads(out)
    assert set(document["tables"]) == {file.stem for file in before if file.suffix == ".csv"}


def test_config_records_how_the_facts_were_read(ran, folder):
    ran("world-gpt2")
    assert RunRecords.read(folder / "world-gpt2").config["split"] == "trained"
    words = shlex.split(RunRecords.read(folder / "world-gpt2").command())
    assert words[words.index("--split") + 1] == "trained" and "--format" not in words


def test_output_shows_every_main_table_completely(ran, folder):
    out = ran("world-bert")
    assert "…" not in out
    captions = {name: how.caption for stage in STAGES for name, how in stage.shown.items()}
    plain = " ".join(out.split())
    for title, table in tables_of(folder / "world-bert").items():
        if "value" in table and "_by_" not in title:
            assert captions[title] in plain, f"{title} is not among the tables that its stage shows"
    assert (
        re.search(r"0 own -0\.\d{3} \[-\] -0\.290", plain) and WHY_NONE in plain
    )  # of four facts there is no interval
    assert "Queried: 4 of 4 facts, in 120 prompts." in out


@pytest.mark.parametrize("columns", [60, 100])
def test_tables_are_readable_on_a_terminal(cli, ran, folder, terminal, columns):
    piped = ran("world-bert")
    terminal(columns)
    out = cli("--out", folder / "world-bert", *RUNS["world-bert"])[1]
    longer = [line for line in out.splitlines() if len(line) > columns]
    assert all(line.startswith(("n: facts", "Queried: ")) for line in longer) and "…" not in out
    tables = pd.read_csv(folder / "world-bert" / "tables" / "figures4_5.csv")
    found = tables.query("neuron_set == 'found'")
    assert len(found) and all(f"{value:.3f}" in out and f"{value:.3f}" in piped for value in found["value"])


def test_dry_run_prints_the_plan_and_writes_nothing(cli, ran, folder):
    stages = ("--stage", "effects", "--stage", "methods")
    code, out, err = cli("--out", folder / "new", *RUNS["world-bert"], *stages, "--dry-run", "--json")
    assert code == 0 and not (folder / "new").exists(), err
    planned = pd.DataFrame(json.loads(out)["plan"]).set_index("stage")
    assert (planned["done"] == 0).all() and planned.loc["attributions", "passes"] > 1000
    assert (planned.query("passes > 0")["seconds"] > 0).all()
    ran("world-bert")
    code, out, err = cli("--out", folder / "world-bert", *RUNS["world-bert"], "--dry-run", "--json")
    planned = pd.DataFrame(json.loads(out)["plan"])
    assert code == 0 and (planned["done"] == planned["shards"]).all() and (planned["seconds"] == 0).all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--seed", "1"), "seed: 0, now 1"),
        (("--model", "world-gpt2"), "model.weights"),
        (("--stage", "neuron"), "Did you mean 'neurons'"),
        (("--set", "atr_threshold=0.3"), "Did you mean 'attr_threshold'"),
        (("--set", "seed"), "expected NAME=VALUE"),
        (("--relation", "P36", "--relation", "P3"), "No relation 'P3'"),
        (("--preset", "papper"), "Did you mean 'paper'"),
        (("--baseline", "some.json"), "--neurons"),
    ],
)
def test_invalid_input_is_one_line(cli, ran, folder, args, message):
    ran("world-bert")
    code, out, err = cli("--out", folder / "world-bert", *FEW, *args)
    assert code == 2 and out == "" and message in " ".join(err.split()) and "Traceback" not in err


def test_selected_stages_run_alone(cli, folder):
    code, _, err = cli("--out", folder / "some", *FEW, "--stage", "activations")
    assert code == 0, err
    assert {path.name for path in (folder / "some" / "records").iterdir()} == {"facts", "activations"}


def test_neuron_files_are_summarised_without_a_model(cli, folder, monkeypatch):
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


def test_neuron_files_and_a_baseline_become_columns(cli, folder):
    kn.NeuronSet.write_many(folder / "own.json", {"P36/Ireland/Dublin": kn.NeuronSet([(1, 2)])})
    kn.NeuronSet.write_many(folder / "uuid.json", {"a-uuid": kn.NeuronSet([(1, 2)])})
    code, out, err = cli("-o", folder / "own", "-n", folder / "own.json", "--baseline", folder / "own.json", "--json")
    assert code == 0, err
    assert {row["neuron_set"] for row in json.loads(out)["tables"]["table2"]} == {"found", "baseline"}
    code, out, err = cli("-o", folder / "own", "-n", folder / "uuid.json")
    assert code == 2 and "--facts" in err


def test_run_on_a_model_is_not_replaced_by_a_summary_of_neuron_files(cli, folder):
    assert cli("--out", folder / "on a model", *FEW, "--stage", "facts")[0] == 0
    kn.NeuronSet.write_many(folder / "sets.json", {"P36/Ireland/Dublin": kn.NeuronSet([(1, 2)])})
    before = contents(folder / "on a model")
    code, out, err = cli("-o", folder / "on a model", "-n", folder / "sets.json")
    assert (code, out) == (2, "") and "is a run on a model" in err
    assert contents(folder / "on a model") == before


def test_interrupted_run_says_how_to_resume(folder):
    command = [sys.executable, "-m", "kn_lens.cli", "reproduce", "--out", str(folder / "stopped"), *FEW]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while not list((folder / "stopped").glob("records/attributions/*.json")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "are kept" in err and "Traceback" not in err


def test_tf32_is_a_type_of_its_own_to_the_records(cli, folder):
    few = ("--relation", "P36", "--limit", "1", "--stage", "facts", "--out", folder / "tf32")
    code, _, err = cli(*few, "--dtype", "tf32")
    assert code == 0, err
    provenance = json.loads((folder / "tf32" / "provenance.json").read_text())
    assert provenance["made_from"]["model"]["dtype"] == "tf32"
    code, _, err = cli(*few, "--dtype", "float32")
    assert code == 2 and "dtype" in err, err
