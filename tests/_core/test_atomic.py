"""Files whole or not at all, nothing left by the dead, nothing taken from the living, and nothing read but files."""

import os
import signal
import subprocess
import sys

import pytest

import kn_lens as kn
from kn_lens._core import atomic
from kn_lens._core.atomic import opened, part_folder, read_whole, write_whole, writing_folder, writing_whole
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


def fill(folder):
    (folder / "inner").mkdir()
    (folder / "inner" / "weights").write_text("w")
    (folder / "config").write_text("c")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such numbers of files")
def test_a_folder_appears_after_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    """The system's flushes and the rename, in their order."""
    steps, flush, rename = [], os.fsync, type(tmp_path).rename

    def noted_flush(number):
        steps.append(os.fstat(number).st_ino)
        flush(number)

    def noted_rename(part, path):
        steps.append("rename")
        return rename(part, path)

    monkeypatch.setattr(atomic.os, "fsync", noted_flush)
    monkeypatch.setattr(type(tmp_path), "rename", noted_rename)
    with writing_folder(tmp_path / "made") as part:
        fill(part)
        assert left_in(tmp_path) == [part.name] and not (tmp_path / "made").exists()
    written = [tmp_path / "made", *(tmp_path / "made").rglob("*")]
    assert len(written) == 4 and [path.name for path in tmp_path.iterdir()] == ["made"]
    assert set(steps[:-2]) == {path.stat().st_ino for path in written}
    assert steps[-2:] == ["rename", tmp_path.stat().st_ino]


def test_a_folder_that_fails_or_is_in_the_way_leaves_what_was_there(tmp_path):
    with pytest.raises(ZeroDivisionError), writing_folder(tmp_path / "made") as part:
        fill(part)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "made").mkdir()
    write_whole(tmp_path / "made" / "mine", "before")
    with pytest.raises(OSError), writing_folder(tmp_path / "made") as part:
        fill(part)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["made", "made/mine"]


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
