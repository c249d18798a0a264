"""A run directory: complete files only, damage detected, one process at a time, and one set of settings."""

import json
import os
import subprocess
import sys
import tomllib

import pytest

from kn_lens.errors import ArgumentError, DataError
from kn_lens.runs.directory import RunDirectory, Shard, open_run

CONFIG = {"model": "a-model", "seed": 0, "relations": ["P36", 'with "quotes"'], "limit": None, "tolerance": 1e-3}
PROVENANCE = {"made_from": {"model": {"weights": "abc"}}, "machine": "this one"}
SHARD = Shard("P36")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def write(run, text="rows", inputs="made from this", shard=SHARD):
    with run.writing("stage", shard, inputs, 1) as scratch:
        scratch.write_text(text)
    return run.record_path("stage", shard)


def test_a_record_is_current_while_its_inputs_are(path):
    with open_run(path, CONFIG, PROVENANCE) as run:
        assert not run.is_current("stage", SHARD, "made from this", 1)
        assert write(run).read_text() == "rows"
        assert run.is_current("stage", SHARD, "made from this", 1)
    with open_run(path, CONFIG, PROVENANCE) as run:
        assert run.is_current("stage", SHARD, "made from this", 1)
        assert not run.is_current("stage", SHARD, "made from that", 1) and not run.is_damaged("stage", SHARD)


def test_relative_path_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_run("run", CONFIG, PROVENANCE) as run:
        write(run)
    with open_run("run", CONFIG, PROVENANCE) as run:
        assert run.is_current("stage", SHARD, "made from this", 1)
    assert not (tmp_path / "run" / "run").exists()


def test_an_error_while_writing_leaves_what_was_there(path):
    with open_run(path, CONFIG, PROVENANCE) as run:
        write(run)
        with pytest.raises(RuntimeError), run.writing("stage", SHARD, "new", 1) as scratch:
            scratch.write_text("half")
            raise RuntimeError
        assert run.record_path("stage", SHARD).read_text() == "rows"
        assert run.is_current("stage", SHARD, "made from this", 1) and not list((path / "scratch").iterdir())


@pytest.mark.parametrize("which", ["record", "note"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "removed"])
def test_every_damage_is_detected(path, which, damage):
    with open_run(path, CONFIG, PROVENANCE) as run:
        file = write(run)
    file = file if which == "record" else file.with_name("_P36.json")
    whole = bytearray(file.read_bytes())
    if damage == "removed":
        file.unlink()
    else:
        for bit in range(8 * len(whole)) if damage == "flipped" else [0]:
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << bit % 8
            file.write_bytes({"flipped": broken, "truncated": whole[:-3], "emptied": b""}[damage])
            assert not RunDirectory(path).is_current("stage", SHARD, "made from this", 1), bit
            # A note with another bit may name other inputs, and just that.
            assert RunDirectory(path).is_damaged("stage", SHARD) or (which, damage) == ("note", "flipped"), bit
    with open_run(path, CONFIG, PROVENANCE) as run:
        assert not run.is_current("stage", SHARD, "made from this", 1)
        write(run)
    assert RunDirectory(path).is_current("stage", SHARD, "made from this", 1)


def test_names_of_shards_are_file_names_and_all_different(path):
    shards = [Shard("a/b"), Shard("a", "b"), Shard("a+b"), Shard("a%2Fb"), Shard(".."), Shard("é x")]
    with open_run(path, CONFIG, PROVENANCE) as run:
        records = [write(run, shard=shard) for shard in shards]
    assert len(set(records)) == len(shards)
    assert {file.parent for file in records} == {path / "records" / "stage"}


def test_the_config_is_toml(path):
    with open_run(path, CONFIG, PROVENANCE):
        pass
    given = {key: value for key, value in CONFIG.items() if value is not None}
    assert tomllib.loads((path / "config.toml").read_text()) == given
    assert json.loads((path / "provenance.json").read_text()) == PROVENANCE


@pytest.mark.parametrize(
    ("config", "provenance", "named"),
    [
        ({**CONFIG, "seed": 1}, PROVENANCE, "seed: 0, now 1"),
        ({**CONFIG, "limit": 3}, PROVENANCE, "limit: none, now 3"),
        (CONFIG, {"made_from": {"model": {"weights": "xyz"}}}, 'model.weights: "abc", now "xyz"'),
    ],
)
def test_other_settings_are_refused_and_named(path, config, provenance, named):
    with open_run(path, CONFIG, PROVENANCE) as run:
        write(run)
    with pytest.raises(DataError) as info, open_run(path, config, provenance):
        pass
    assert named in str(info.value) and "--force" in str(info.value)
    with open_run(path, config, provenance, force=True) as run:
        assert run.is_current("stage", SHARD, "made from this", 1)  # whether it is stale, its inputs say
    with open_run(path, config, provenance):  # from now on these are the settings
        pass


def test_name_of_the_model_and_machine_do_not_matter(path):
    with open_run(path, CONFIG, PROVENANCE):
        pass
    with open_run(path, {**CONFIG, "model": "./a-model"}, {**PROVENANCE, "machine": "another"}):
        assert 'model = "a-model"' in (path / "config.toml").read_text()


@pytest.mark.parametrize("name", ["config.toml", "provenance.json"])
def test_damaged_settings_are_refused_until_forced(path, name):
    with open_run(path, CONFIG, PROVENANCE) as run:
        write(run)
    whole = (path / name).read_text()
    (path / name).write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{name} is damaged|other settings"), open_run(path, CONFIG, PROVENANCE):
        pass
    with open_run(path, CONFIG, PROVENANCE, force=True) as run:
        assert (path / name).read_text() == whole and run.is_current("stage", SHARD, "made from this", 1)


def test_without_file_locks_runs_can_be_read_but_not_written(path, monkeypatch):
    with open_run(path, CONFIG, PROVENANCE) as run:
        write(run)
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    for place in (path, path.with_name("new")):
        with pytest.raises(DataError, match="lock"), open_run(place, CONFIG, PROVENANCE):
            pass
    assert RunDirectory(path).manifest("stage", SHARD) is not None and not path.with_name("new").exists()
    command = "import sys; sys.modules['fcntl'] = None; import kn_lens.runs.directory"
    subprocess.run([sys.executable, "-c", command], check=True, timeout=60)


def test_second_process_is_refused_and_a_dead_one_leaves_no_lock(path):
    code = "import sys, time; from kn_lens.runs.directory import open_run\n"
    code += "with open_run(sys.argv[1], {}, {'made_from': {}}): print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        (path / "scratch" / "left over").touch()
        with pytest.raises(DataError, match=f"number {other.pid}"), open_run(path, {}, {"made_from": {}}):
            pass
        assert (path / "scratch" / "left over").exists()  # nothing of the other's was touched
        other.kill()
    with open_run(path, {}, {"made_from": {}}):
        assert (path / "lock").read_text().strip() == str(os.getpid())
        assert not (path / "scratch" / "left over").exists()


def test_directories_with_other_files_are_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ArgumentError, match="expected a"), open_run(path, CONFIG, PROVENANCE, force=True):
            pass
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
