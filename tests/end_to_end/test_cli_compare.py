"""``kn-lens compare`` on runs of the two embedded models: output, files, refusals."""

import json
from functools import partial

import pandas as pd
import pytest

FEW = (
    "--split",
    "held_out",
    "--relation",
    "P36",
    "--relation",
    "P30",
    "--limit",
    "2",
    "--stage",
    "answers",
    "--stage",
    "effects",
    "--set",
    "n_resamples=20",
)


@pytest.fixture(scope="module")
def runs(cli, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    for model in ("world-bert", "world-gpt2"):
        code, _, err = cli("reproduce", "--model", model, "--out", folder / model, *FEW)
        assert code == 0, err
    return folder


@pytest.fixture(scope="module")
def compare(cli):
    return partial(cli, "compare", "--n-resamples", "50", "--n-permutations", "50")


def test_a_masked_and_a_causal_model_are_compared(compare, runs):
    paths = (f"masked={runs / 'world-bert'}", runs / "world-gpt2")
    code, out, err = compare(*paths, "--out", runs / "tables")
    assert code == 0, err
    for words in ("masked", "Values, facts queried in all", "Difference: world-gpt2 - masked", "different prompts"):
        assert words in out
    page = (runs / "tables" / "comparison.html").read_text(encoding="utf-8")
    assert "<title>masked beside world-gpt2 - kn_lens</title>" in page
    code, out, err = compare(*paths, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["runs"] == ["masked", "world-gpt2"]
    values = pd.DataFrame(document["tables"]["values"])
    off = values.query("statistic == 'suppress_own' and fact_set == 'known_by_all'").set_index(["run", "neuron_set"])[
        "value"
    ]
    for run in document["runs"]:
        assert off.loc[(run, "found")] < -0.1 < off.loc[(run, "random")]
    assert {row["differs_in"] for row in document["tables"]["differences"]} == {"kind"}
    for name, rows in document["tables"].items():
        there = pd.read_csv(runs / "tables" / f"{name}.csv")
        assert len(there) == len(rows) and (not rows or list(there) == list(rows[0]))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("{bert}",), "at least two"),
        (("{bert}", "{bert}"), "have the same name, world-bert"),
        (("{bert}", "again={bert}"), "is given twice"),
        (("{bert}", "={gpt2}"), "expected a run directory, or NAME=DIRECTORY"),
        (("{bert}", "{gpt2}/records"), "is no run directory"),
        (("{bert}", "{gpt2}", "--out", "{bert}"), "is a run directory"),
        (("{bert}", "{gpt2}", "--n-resamples", "0"), "greater than or equal to 1"),
    ],
)
def test_invalid_input_is_one_line(compare, runs, args, message):
    places = {"bert": runs / "world-bert", "gpt2": runs / "world-gpt2"}
    code, out, err = compare(*(arg.format(**places) for arg in args))
    assert code == 2 and out == "" and message in " ".join(err.split()) and "Traceback" not in err
