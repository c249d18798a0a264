"""Files whole or not at all, nothing left by the dead, nothing taken from the living, and nothing read but files."""

import os
import signal
import subprocess
import sys

import pytest

import kn_lens as kn
from kn_lens._core.atomic import opened, part_folder, read_whole, write_whole, writing_whole
from kn_lens.errors import ArgumentError, DataError
from kn_lens.runs.directory import RunDirectory, Shard, open_run

SETTINGS = {}, {"made_from": {}}


def left_in(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_what_a_killed_process_left_goes_and_what_another_writes_stays(tmp_path):
    program = (
        "import sys; from pathlib import Path; from kn_lens._core.atomic import part_folder, writing_whole\n"
        "with writing_whole(Path(sys.argv[1], 'figure')) as file, part_folder(sys.argv[1]) as folder:\n"
        "    file.write(b'half'); file.flush(); (folder / 'drawn').touch()\n"
        "    print('writing', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "writing\n"
        write_whole(tmp_path / "mine", "whole")
        assert len(left_in(tmp_path)) == 2  # the other's
        os.kill(other.pid, signal.SIGKILL)
    assert len(left_in(tmp_path)) == 2
    with part_folder(tmp_path) as mine:
        assert left_in(tmp_path) == [mine.name]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_error_leaves_what_was_there(tmp_path):
    write_whole(tmp_path / "file", "before")
    with pytest.raises(ZeroDivisionError), writing_whole(tmp_path / "file") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert read_whole(tmp_path / "file") == b"before" and len(list(tmp_path.iterdir())) == 1


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out").symlink_to("victim")
    write_whole(tmp_path / "out", "new")
    assert (tmp_path / "victim").read_text() == "mine" and not (tmp_path / "out").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_only_regular_files_are_read(kind, tmp_path):
    path = {"pipe": tmp_path / "pipe", "device": "/dev/zero", "directory": tmp_path}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(OSError, match=r"no regular file|Is a directory"):
        opened(path)
    for read in (kn.NeuronSet.read_many, kn.FactSet.from_jsonl, kn.WeightEdit.load, kn.read_study):
        with pytest.raises(DataError):
            read(path)


@pytest.fixture
def run(tmp_path):
    with open_run(tmp_path / "run", *SETTINGS) as run:
        with run.writing("stage", Shard("P36"), "inputs", 1) as scratch:
            scratch.write_text("rows")
        run.write_text("tables/one.csv", "a\n1\n")
    return tmp_path / "run"


@pytest.mark.parametrize("made", ["link", "second name", "pipe", "directory"])
def test_a_lock_that_is_something_else_is_left_as_it_is(made, run, tmp_path):
    victim, lock = tmp_path / "victim", run / "lock"
    victim.write_text("mine")
    lock.unlink()
    {
        "link": lambda: lock.symlink_to(victim),
        "second name": lambda: lock.hardlink_to(victim),
        "pipe": lambda: os.mkfifo(lock),
        "directory": lock.mkdir,
    }[made]()
    with pytest.raises(DataError, match="lock cannot be written"), open_run(run, *SETTINGS, force=True):
        pass
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["config.toml", "provenance.json", "records/stage/P36.parquet",
                                  "records/stage/_P36.json", "tables/one.csv"])  # fmt: skip
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name, run):
    (run / name).unlink()
    os.mkfifo(run / name)
    if name in ("config.toml", "provenance.json"):
        with pytest.raises(DataError, match="damaged"), open_run(run, *SETTINGS):
            pass
    assert (RunDirectory(run).manifest("stage", Shard("P36")) is None) == name.startswith("records")
    with open_run(run, *SETTINGS, force=True) as opened_again:
        opened_again.write_text("tables/one.csv", "a\n1\n")
    assert (run / "tables/one.csv").is_file()


@pytest.mark.parametrize("name", ["records", "tables", "scratch"])
def test_no_link_leads_out_of_a_run(name, run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "one.csv").write_text("mine")
    (run / name).exists() and (run / name).rename(run / "away")
    (run / name).symlink_to(elsewhere)
    with open_run(run, *SETTINGS, force=True) as again:
        if name == "scratch":
            again.write_text("tables/two.csv", "a\n2\n")
        else:
            with pytest.raises(DataError, match="a link takes the place"):
                again.write_text(f"{name}/one.csv", "a\n2\n")
    assert [path.name for path in elsewhere.iterdir()] == ["one.csv"]
    assert (elsewhere / "one.csv").read_text() == "mine"


def test_a_directory_of_others_is_no_run(tmp_path):
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises((ArgumentError, DataError)), open_run(tmp_path, *SETTINGS):
        pass
    assert not (tmp_path / "elsewhere").exists()
