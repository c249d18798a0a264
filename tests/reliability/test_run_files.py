"""A run directory with a damaged file is refused in words by whatever reads it, or read."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens._run_records import RunRecords
from kn_lens.experiments.run_directory import check_same
from tests.reliability.tries import NASTY, damaged, fuzz, taken_or_refused
from tests.synthetic_run import write_run

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
    "provenance.json": [b"", b"[]", b"3", b"[" * 5000, b'{"made_from": 3}', b'{"made_from": {}, "model": []}', b"\xff"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run", n_relations=2, n_facts=2, n_prompts=3)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def read(path: Path) -> None:
    records = RunRecords.read(path)
    records.command("answers")
    kn.write_tables(path)
    check_same(path, records.config, records.provenance)


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in FILES for content in NO_RUN[name]])
def test_what_no_run_has_written_is_refused(copy, name, content):
    (copy / name).write_bytes(content)
    with pytest.raises(kn.DataError, match="is damaged"):
        kn.write_tables(copy)


def test_another_run_in_a_damaged_directory_is_refused(copy):
    (copy / "provenance.json").write_text("{}")
    with pytest.raises(kn.DataError, match="is damaged"):
        check_same(copy, {}, {"made_from": {}})


@pytest.mark.parametrize("name", FILES)
@fuzz(usually=40, share=0.1)
@given(data=st.data())
def test_settings_and_provenance_after_accidents(run, copy, name, data):
    content = data.draw(damaged((run / name).read_bytes()) | st.sampled_from(NASTY))
    (copy / name).write_bytes(content)
    taken_or_refused("run directories", lambda: read(copy))


@fuzz(usually=25, share=0.1)
@given(data=st.data())
def test_records_and_their_digests_after_accidents(run, copy, data):
    names = sorted(path.relative_to(run) for path in (run / "records").rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(names))
    (copy / name).write_bytes(data.draw(damaged((run / name).read_bytes())))
    taken_or_refused("run directories", lambda: read(copy))
    shutil.copyfile(run / name, copy / name)
