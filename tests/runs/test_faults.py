"""Runs that are killed, damaged or short of disk space end like an uninterrupted run.

Runs are killed in a process of their own: this file as a script, which loads the model once and forks. KN_LENS_KILLS
sets the number of kills.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kn_lens.errors import DataError
from kn_lens.runs.context import open_context
from kn_lens.runs.execute import run_stages
from kn_lens.runs.minimal_pairs import read_pairs
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.order import STAGES
from tests.tiny import tiny_model
from tests.tiny_runs import contents, tiny_facts

FACTS = tiny_facts(2).of("P36", "P1376")
PHENOMENA = ("indefinite_article", "preposition")
SETTINGS = {
    "attr_threshold": 0.5, "n_resamples": 5, "dose_facts": 1, "doses": (3.0,), "max_moves": 1, "syntax_forms": 1,
    "syntax_facts": 1, "syntax_sentences": 4, "check_facts": 1, "quadrature": "midpoint", "n_steps": 2,
}  # fmt: skip
KILLS = int(os.environ.get("KN_LENS_KILLS", "30"))
AT_MOST = 0.6
"""Seconds until a kill; a run takes about four."""


def settings_in(folder):
    """Return settings that make every stage short, with two of the embedded phenomena in a file of their own."""
    rows = []
    for pair in read_pairs(None):
        if pair.phenomenon in PHENOMENA:
            rows.append({"sentence_good": pair.good, "sentence_bad": pair.bad, "UID": pair.phenomenon})
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return Settings.of(**SETTINGS, syntax=str(path))


def reproduce(model, path, settings):
    """Run to the end; return the computed shards."""
    states = []
    with open_context(model, FACTS, path, settings) as context:
        run_stages(context, STAGES, states.append)
    return [(state.stage.name, state.shard) for state in states if state.finished]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return settings_in(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def finished(model, settings, tmp_path_factory):
    """Return an uninterrupted run."""
    path = tmp_path_factory.mktemp("faults") / "finished"
    reproduce(model, path, settings)
    return path


@pytest.fixture
def path(finished, tmp_path):
    """Return a copy of the uninterrupted run."""
    return shutil.copytree(finished, tmp_path / "run")


def test_finished_records_are_not_computed_again(model, settings, finished, path):
    assert reproduce(model, path, settings) == [] and contents(path) == contents(finished)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "removed"])
def test_only_damaged_records_are_computed_again(model, settings, finished, path, damage):
    chance = random.Random(damage)
    records = sorted((path / "records").rglob("*.parquet"))
    hit = chance.sample(records, 4)
    for file in hit:
        whole = bytearray(file.read_bytes())
        whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        {
            "flipped": lambda file, whole=whole: file.write_bytes(whole),
            "truncated": lambda file, whole=whole: file.write_bytes(whole[: chance.randrange(1, len(whole))]),
            "emptied": lambda file: file.write_bytes(b""),
            "removed": lambda file: file.unlink(),
        }[damage](file)
    made = {(stage, f"{shard.name}.parquet") for stage, shard in reproduce(model, path, settings)}
    # What comes out is what was there, so nothing that was made from it is stale.
    assert made == {(file.parent.name, file.name) for file in hit} and contents(path) == contents(finished)


def test_changed_setting_recomputes_what_depends_on_it(model, settings, path):
    settings = replace(settings, doses=(2.0,))
    with (
        pytest.raises(DataError, match=r"doses: \[3.0\], now \[2.0\]"),
        open_context(model, FACTS, path, settings),
    ):
        pass
    made = set()
    with open_context(model, FACTS, path, settings, force=True) as context:
        run_stages(context, STAGES, lambda state: made.add(state.stage.name) if state.finished else None)
    assert made == {"doses"}


@contextmanager
def small_disk(path, n_bytes):
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(path)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_loses_nothing(model, settings, finished, tmp_path):
    with small_disk(tmp_path, 64 << 10):
        with pytest.raises(DataError, match="No space left on device"):
            reproduce(model, tmp_path / "run", settings)
        kept = contents(tmp_path / "run")
        whole = contents(finished)
        assert kept and all(whole[name] == text for name, text in kept.items())
        subprocess.run(["mount", "-o", "remount,size=4m", str(tmp_path)], check=True)
        made = reproduce(model, tmp_path / "run", settings)
        n_kept = sum(name.endswith(".json") and "records" in name for name in kept)
        assert n_kept and len(made) == sum(name.endswith(".parquet") for name in whole) - n_kept
        assert contents(tmp_path / "run") == whole


def test_file_size_limit_loses_nothing(model, settings, finished, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(len(text) for text in contents(finished).values())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            reproduce(model, tmp_path / "run", settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    reproduce(model, tmp_path / "run", settings)
    assert contents(tmp_path / "run") == contents(finished)


def test_run_killed_at_any_time_equals_an_uninterrupted_one(finished, tmp_path):
    command = [sys.executable, "-m", "tests.runs.test_faults", str(tmp_path), str(KILLS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["kills"] == KILLS and outcome["ends"] >= 1 and outcome["wrong"] == []


class _Dying:
    """Kill the process at one of the calls, before or after it."""

    def __init__(self, function, count, before):
        self.function, self.count, self.before = function, count, before

    def __call__(self, *args, **kwargs):
        self.count -= 1
        if self.before and not self.count:
            os.kill(os.getpid(), signal.SIGKILL)
        result = self.function(*args, **kwargs)
        if not self.count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def _kill_many(folder, n_kills):
    """Kill runs at random times and steps of writing, the given number of times, and resume each to its end."""
    torch.set_num_threads(1)
    chance = random.Random(0)
    model = tiny_model()
    settings = settings_in(folder)
    reproduce(model, folder / "whole", settings)
    whole = contents(folder / "whole")
    kills = ends = 0
    wrong = []
    path = folder / "run"
    while kills < n_kills or path.exists():
        timed, count, before = chance.random() < 0.5, chance.randrange(1, 16), chance.random() < 0.5
        child = os.fork()
        if not child:
            if not timed and kills < n_kills:
                os.replace = os.rename = _Dying(os.replace, count, before)
                os.fsync = _Dying(os.fsync, 2 * count, before)
            try:
                reproduce(model, path, settings)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        if timed and kills < n_kills:
            time.sleep(chance.uniform(0, AT_MOST))
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGKILL:
            kills += 1
            continue
        ends += 1
        there = contents(path) if status == 0 else {}
        wrong += [name for name in {*there, *whole} if there.get(name) != whole.get(name)]
        shutil.rmtree(path, ignore_errors=True)
    print(json.dumps({"kills": kills, "ends": ends, "wrong": wrong}))


if __name__ == "__main__":
    _kill_many(Path(sys.argv[1]), int(sys.argv[2]))
