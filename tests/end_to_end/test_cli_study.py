"""``kn-lens study``: from a file to runs and tables; resumed and refused studies."""

import json

import pandas as pd
import pytest

import kn_lens as kn
from tests.tiny import tiny_checkpoint
from tests.tiny_runs import contents, tiny_facts

STUDY = """
stages = ["neurons"]
[settings]
attr_threshold = 0.5
n_resamples = 5
[[models]]
model = "bert"
dtype = "float64"
tags = { size = "tiny" }
[[models]]
model = "late"
dtype = "float64"
[[facts]]
source = "facts.jsonl"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    tiny_checkpoint("BertForMaskedLM", folder / "bert")
    (folder / "late").mkdir()
    rows = [
        {"subject": fact.subject, "relation": fact.relation, "object": fact.object, "templates": fact.templates}
        for fact in tiny_facts(2).of("P36", "P1376")
    ]
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "study.toml").write_text(STUDY)
    return folder


@pytest.fixture(scope="module")
def first_output(cli, folder):
    """Return the output of the command when one of the models did not exist yet."""
    return cli("study", folder / "study.toml", "--out", folder / "out")


def test_study_runs_prints_its_runs_and_resumes(cli, folder, first_output):
    code, out, err = first_output
    assert code == 1 and "1 of 2 runs failed" in err, err
    words = " ".join(out.split())
    assert "bert+facts+0 done" in words and "holds no configuration" in words
    tiny_checkpoint("BertForMaskedLM", folder / "late", seed=1)
    code, out, err = cli("study", folder / "out/study.toml", "--out", folder / "out", "--json")  # which is resolved
    assert code == 0, err
    assert [row["state"] for row in json.loads(out)["runs"]] == ["done", "done"]
    assert set(pd.read_csv(folder / "out/tables/table2.csv")["run"]) == {"bert+facts+0", "late+facts+0"}
    assert pd.read_csv(folder / "out/tables/runs.csv")["tag_size"].tolist()[0] == "tiny"


def test_dry_run_prints_the_cost_of_each_run_and_writes_nothing(cli, folder, first_output):
    """The first study has run as far as possible, the second is new."""
    (folder / "planned.toml").write_text(STUDY.replace('"late"', '"never"'))
    there = {path: path.read_bytes() for path in (folder / "out").rglob("*.*")}
    code, out, err = cli("study", folder / "study.toml", "--out", folder / "out", "--dry-run", "--json")
    assert code == 0, err
    done = json.loads(out)["plan"][0]
    assert done["run"] == "bert+facts+0" and done["done"] == done["shards"] > 0 and done["seconds"] == 0
    assert {path: path.read_bytes() for path in (folder / "out").rglob("*.*")} == there
    code, out, err = cli("study", folder / "planned.toml", "--out", folder / "new", "--dry-run", "--json")
    assert code == 0, err
    first, second = json.loads(out)["plan"]
    assert first["done"] == 0 and first["shards"] == done["shards"] and first["passes"] > 0 and first["seconds"] > 0
    assert second["run"] == "never+facts+0" and "never" in second["reason"] and second["passes"] == 0
    assert not (folder / "new").exists()
    code, out, err = cli("study", folder / "planned.toml", "--out", folder / "new", "--dry-run")
    assert code == 0 and "Total: " in out and "error" in out and not (folder / "new").exists()


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        (("dtype", "dtpye"), (), "unknown key 'dtpye' in [[models]] number 1. Did you mean 'dtype'?"),
        (('"late"', '"bert"'), (), "a model twice: bert"),
        (('"neurons"', '"neuron"'), (), "Did you mean 'neurons'"),
        (("facts.jsonl", "fact.jsonl"), (), "fact.jsonl"),
        (("[[facts]]", '[[facts]]\nformat = "jsno"'), (), "expected one of"),
        (("0.5", "0.6"), (), "holds another study (attr_threshold: 0.5, now 0.6)"),
        (("", ""), ("--workers", "2"), "is for --engine processes and ray"),
        (("", ""), ("--engine", "processes", "--gpus", "1"), "are for --engine ray"),
        (("", ""), ("--engine", "rya"), "Did you mean 'ray'"),
        (("", ""), ("--engine", "ray", "--address", "127.0.0.1:1"), "No cluster of Ray answers at 127.0.0.1:1"),
    ],
)
def test_invalid_input_is_one_line(cli, folder, first_output, change, args, message):
    (folder / "bad.toml").write_text(STUDY.replace(*change))
    there = {path: path.read_bytes() for path in (folder / "out").rglob("*.*")}
    code, out, err = cli("study", folder / "bad.toml", "--out", folder / "out", *args)
    assert code == 2 and out == "" and message in " ".join(err.split()) and "Traceback" not in err
    assert {path: path.read_bytes() for path in (folder / "out").rglob("*.*")} == there


def test_reproduce_divides_its_work_among_processes(cli, folder):
    for workers in (1, 2):
        code, out, err = cli(
            "reproduce", "--model", folder / "bert", "--facts", folder / "facts.jsonl", "--dtype", "float64",
            "--set", "attr_threshold=0.5", "--set", "n_resamples=5", "--stage", "neurons", "--stage", "effects",
            "--workers", workers, "--out", folder / f"run-{workers}",
        )  # fmt: skip
        assert code == 0, err
        assert "Table 2" in out and "Figures 4 and 5" in out
    one, two = (contents(folder / f"run-{workers}") for workers in (1, 2))
    assert one == two and sum(name.endswith(".parquet") for name in one) == 10


def test_a_model_that_a_process_cannot_load_ends_reproduce_with_the_reason(cli, folder, monkeypatch):
    monkeypatch.setattr("kn_lens.cli.reproduce.load", lambda name, device, dtype: kn.load_model("world-bert"))
    code, _, err = cli(
        "reproduce", "--model", "nowhere/to-be-found", "--facts", folder / "facts.jsonl", "--stage", "facts",
        "--workers", 2, "--out", folder / "other",
    )  # fmt: skip
    assert code == 2 and "loading the model: " in " ".join(err.split()) and "Traceback" not in err
