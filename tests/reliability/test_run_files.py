"""A run directory with a damaged file is read, or refused with a clear error, by every reader."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.reports.compare.comparison import compare_runs
from kn_lens.reports.html.panels import READ
from kn_lens.runs.directory import check_same
from kn_lens.runs.reader import RunRecords
from tests.made_run import made_facts, of_objects
from tests.made_run import write_run as write_compared
from tests.reliability.tries import NASTY, changed, changed_table, damaged, fuzz, taken_or_refused
from tests.synthetic_run import ON_REQUEST, STAGES, write_run

FILES = ("config.toml", "provenance.json")
NO_RUN = {
    "config.toml": [
        b"a",
        b"a = ",
        b"a = " + b"[" * 5000,
        b"\xff",
        b"neurons = 3",
        b'relations = [["a"]]',
        b"model = 1",
    ],
    "provenance.json": [
        *(b"", b"[]", b"3", b"[" * 5000, b'{"made_from": 3}', b'{"made_from": {}, "model": []}', b"\xff"),
        *(
            b'{"model": {"kind": ""}}',
            b'{"model": {"n_layers": 2147483648}}',
            b'{"model": {"n_params": "many"}}',
            b'{"tags": [1]}',
        ),
        *(b'{"tags": {"size": null}}', b'{"made_from": {"versions": {"kn_lens": []}}}', b'{"n_relations": 0}'),
        b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
    ],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    stages = (*STAGES, *ON_REQUEST)
    return write_run(tmp_path_factory.mktemp("run") / "run", n_relations=2, n_facts=2, n_prompts=3, stages=stages)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Return a run with one more fact and relation."""
    stages = (*STAGES, *ON_REQUEST)
    return write_run(
        tmp_path_factory.mktemp("other") / "run", n_relations=3, n_facts=3, n_prompts=3, seed=1, stages=stages
    )


@pytest.fixture
def copy(run, tmp_path):
    """Return a copy of the run without its tables."""
    return shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("*.csv"))


@pytest.fixture(autouse=True)
def no_library(monkeypatch):
    """Write reports without the 5 MB of the drawing library."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")


def read(path: Path) -> None:
    records = RunRecords.read(path)
    records.command("answers")
    kn.write_tables(path, path / "beside")
    kn.write_report(path)
    check_same(path, records.config, records.provenance)


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in FILES for content in NO_RUN[name]])
def test_damaged_files_of_a_run_are_refused(copy, name, content):
    (copy / name).write_bytes(content)
    with pytest.raises(kn.DataError, match="is damaged"):
        kn.write_tables(copy)


def test_another_run_in_a_damaged_directory_is_refused(copy):
    (copy / "provenance.json").write_text("{}")
    with pytest.raises(kn.DataError, match="is damaged"):
        check_same(copy, {}, {"made_from": {}})


@pytest.mark.parametrize("name", FILES)
@fuzz(usually=20, share=0.1)
@given(data=st.data())
def test_damaged_settings_and_provenance_are_read_or_refused(run, copy, name, data):
    content = data.draw(damaged((run / name).read_bytes()) | st.sampled_from(NASTY))
    (copy / name).write_bytes(content)
    taken_or_refused("run directories: reports", lambda: read(copy), copy.name)


@fuzz(usually=20, share=0.1)
@given(data=st.data())
def test_provenance_with_one_changed_value_is_read_or_refused(run, copy, data):
    provenance = {**json.loads((run / "provenance.json").read_bytes()), "tags": {"size": "small", "seed": 0}}
    (copy / "provenance.json").write_text(json.dumps(data.draw(changed(provenance))))
    taken_or_refused("run directories: reports", lambda: read(copy), copy.name)


@fuzz(usually=20, share=0.1)
@given(data=st.data())
def test_damaged_missing_and_foreign_records_are_read_or_refused(run, other, copy, data):
    shutil.rmtree(copy / "records")
    shutil.copytree(run / "records", copy / "records")
    have_accidents(data, copy, other)
    taken_or_refused("run directories: reports", lambda: read(copy), copy.name)


def have_accidents(data, run: Path, other: Path) -> None:
    """Damage or remove records or their digests, or replace them with those of another relation, stage or run."""
    mine, others = (sorted(one.glob("records/*/*.parquet")) for one in (run, other))
    for _ in range(data.draw(st.integers(1, 2))):
        record = data.draw(st.sampled_from(mine))
        accident = data.draw(st.sampled_from(["record", "note", "lost", "both lost", "exchanged", "added"]))
        if accident in ("record", "note"):
            path = record if accident == "record" else note_of(record)
            path.write_bytes(data.draw(damaged(path.read_bytes() if path.exists() else b"")))
        elif accident in ("lost", "both lost"):
            record.unlink(missing_ok=True)
            note_of(record).unlink(missing_ok=True) if accident == "both lost" else None
        else:
            same = [one for one in others if one.parent.name == record.parent.name]
            from_other = data.draw(st.sampled_from(same) | st.sampled_from(others))
            added = data.draw(st.sampled_from(["P9", "P0+x", "P1+x", "a+b+c"]))
            to = record if accident == "exchanged" else record.with_name(f"{added}.parquet")
            shutil.copyfile(from_other, to)
            shutil.copyfile(note_of(from_other), note_of(to))


def note_of(record: Path) -> Path:
    return record.with_name(f"_{record.stem}.json")


@pytest.mark.parametrize("name", ["", ".", "missing", "a\0b", "x" * 5000, "~nobody/x", "/dev/null", "/proc/self/mem"])
def test_names_that_are_no_regular_files_are_refused(run, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (kn.write_report, kn.write_tables, kn.write_figures, lambda path: compare_runs([path, run])):
        assert taken_or_refused("run directories: names", lambda call=call: call(name)) is None


@pytest.mark.parametrize("name", ["", ".", "a\0b", "x" * 5000, "~nobody/x", "/proc/self/mem", "pipe"])
def test_reports_are_not_written_to_invalid_names(run, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")  # as good as a device; which a file must not take the place of
    assert taken_or_refused("run directories: names", lambda: kn.write_report(run, name)) is None
    assert Path("pipe").is_fifo()


# --- tables, of which figures and findings are made -------------------------------------------------------------------


@pytest.fixture
def only(run, tmp_path):
    """Return the run with only one of its tables."""
    (tmp_path / "only" / "tables").mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(run / name, tmp_path / "only" / name)
    return tmp_path / "only"


def reported(only: Path, name: str, content: bytes) -> Path | None:
    table = only / "tables" / f"{name}.csv"
    table.write_bytes(content)
    return taken_or_refused("run directories: tables of reports", lambda: kn.write_report(only), table.name)


TABLES = sorted(READ)
BY_RELATION = b"factor,neurons,facts,relation,value,low,high\n"
FOUND = [
    ("figures4_5", b"factor,neurons,facts\n"),
    ("figures4_5", b"factor,neurons,facts,value,low,high,n,control\nx,found,own,0,0,0,1,0\n"),
    ("figures4_5_by_relation", BY_RELATION + b"0,found,other,P1,0,0,0\n"),
    ("answers_by_relation", b"measure,relation,value,low,high\nperplexity,P1,1,1,1\n"),
    ("answers", b"measure,value,low,high,n,control\naccuracy,many,0,1,3,0\n"),
    ("completeness", b"n_pairs,largest_gap,above_tolerance\n1,small,0\n"),
    ("table2", b"statistic\n"),
    ("syntax", b"value,low,high\n0,a,b\n"),
    ("syntax", b"a,b\n1,2,3\n"),
]
"""Tables of which reports were made, or ended in a trace, before it was found here."""


@pytest.mark.parametrize(("name", "content"), FOUND)
def test_malformed_tables_are_refused(only, name, content):
    assert reported(only, name, content) is None


def test_relations_of_the_effects_need_not_have_found_neurons(only):
    rows = b"0,found,own,P1,0,0,0\n0,random,own,P2,0,0,0\n"
    assert reported(only, "figures4_5_by_relation", BY_RELATION + rows)


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_a_run_are_reported(run, only, name):
    """The control of the tests below."""
    assert reported(only, name, (run / "tables" / f"{name}.csv").read_bytes())


@pytest.mark.parametrize("name", TABLES)
@fuzz(usually=8, share=0.05)
@given(data=st.data())
def test_damaged_tables_are_read_or_refused(run, only, name, data):
    valid = (run / "tables" / f"{name}.csv").read_bytes()
    reported(only, name, data.draw(damaged(valid) | changed_table(valid)))


# --- runs that are compared -------------------------------------------------------------------------------------------

HOW = {"n_resamples": 3, "n_permutations": 3}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return two runs, the second with one fact less and one relation more."""
    folder = tmp_path_factory.mktemp("compared")
    first = made_facts(0, sizes=(2, 2))
    second = [*of_objects(made_facts(1, sizes=(2, 2)), first)[:3], *made_facts(2, sizes=(0, 0, 2))]
    return [write_compared(folder / name, made, tags={"seed": 0}) for name, made in (("a", first), ("b", second))]


@pytest.fixture
def compared(tmp_path):
    return tmp_path / "compared"


def as_before(pair: list[Path], compared: Path) -> None:
    shutil.rmtree(compared, ignore_errors=True)
    shutil.copytree(pair[0], compared)


def compare(pair: list[Path], compared: Path) -> None:
    taken_or_refused("run directories: compared", lambda: compare_runs([compared, pair[1]], **HOW), "compared")


def test_the_runs_can_be_compared(pair):
    """The control of the tests below."""
    assert compare_runs(pair, **HOW).runs["equal"].tolist() == [3, 3]


@pytest.mark.parametrize("name", FILES)
@fuzz(usually=12, share=0.05)
@given(data=st.data())
def test_damaged_settings_of_compared_runs_are_read_or_refused(pair, compared, name, data):
    as_before(pair, compared)
    content = (pair[0] / name).read_bytes()
    if name == "provenance.json" and data.draw(st.booleans()):
        (compared / name).write_text(json.dumps(data.draw(changed(json.loads(content)))))
    else:
        (compared / name).write_bytes(data.draw(damaged(content)))
    compare(pair, compared)


@fuzz(usually=30, share=0.05)
@given(data=st.data())
def test_damaged_records_of_compared_runs_are_read_or_refused(pair, compared, data):
    as_before(pair, compared)
    have_accidents(data, compared, pair[1])
    compare(pair, compared)


@pytest.mark.parametrize("stage", ["facts", "answers", "neurons", "effects"])
def test_records_of_another_run_are_refused(pair, compared, stage):
    """Their digests are valid."""
    as_before(pair, compared)
    for name in ("P1.parquet", "_P1.json"):
        shutil.copyfile(pair[1] / "records" / stage / name, compared / "records" / stage / name)
    with pytest.raises(kn.DataError, match="some belong to another run"):
        compare_runs([compared, pair[1]], **HOW)


def test_neurons_beyond_the_last_layer_are_refused(pair, compared):
    as_before(pair, compared)
    provenance = json.loads((compared / "provenance.json").read_bytes())
    provenance["model"]["n_layers"] = 1
    (compared / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(kn.DataError, match=r"has neurons in layer [123] of a model with 1 layers"):
        compare_runs([compared, pair[1]], **HOW)
