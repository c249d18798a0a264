"""A study on a real Ray: its files equal those of one process, also if workers die."""

import os
import signal
import sys
import time

import psutil
import pytest

import kn_lens as kn
from kn_lens.errors import ArgumentError, DataError
from kn_lens.runs.studies.study import run_study
from kn_lens.runs.workers.ray_workers import RayEngine, ray_pool
from tests.killed_workers import check_a_killed_worker_changes_nothing
from tests.tiny_runs import contents, tiny_checkpoints, tiny_facts, tiny_study

FACTS = {"tiny": tiny_facts(2)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_checkpoints(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def ray():
    """Ray on this machine, for all tests of the module.

    Its workers have the priority of other processes here: with that of Ray, they would wait for all other tests.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_worker_niceness", "0")
        with ray_pool(None, 2, threads=1, gpus=0.0, n_runs=2) as cluster:
            yield cluster


def workers():
    """Return the processes of the actors."""
    processes = psutil.Process().children(recursive=True)
    return [one for one in processes if "ray::Worker" in " ".join(one.cmdline()[:1])]


def test_records_equal_those_of_the_default_engine_after_a_worker_is_killed(models, ray, tmp_path):
    check_a_killed_worker_changes_nothing(models, tmp_path, RayEngine(workers=2), workers)


def test_workers_help_each_other_and_a_study_resumes(models, ray, tmp_path):
    config = tiny_study(models, "bert", stages=("neurons",))
    stopped = []

    def stop(job, state):
        if state is not None and state.finished and state.stage.name == "activations":
            stopped.append(state.shard)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(config, FACTS, tmp_path / "there", engine=RayEngine(workers=1), watch=stop)
    made = []
    run_study(
        config, FACTS, tmp_path / "there", engine=RayEngine(workers=2),
        watch=lambda job, state: made.append(state.shard) if state is not None and state.finished else None,
    )  # fmt: skip
    run_study(config, FACTS, tmp_path / "here")
    assert stopped and made and contents(tmp_path / "there") == contents(tmp_path / "here")


def test_run_that_kills_every_worker_fails_alone(models, ray, tmp_path):
    begun = []

    def kill(job, state):
        if state is None and job.model.name == "bert":
            begun.append(job.name)
            for process in workers():
                os.kill(process.pid, signal.SIGKILL)

    config = tiny_study(models, "gpt2", "bert", stages=("facts",))
    rows = run_study(config, FACTS, tmp_path / "out", engine=RayEngine(workers=1), watch=kill)
    assert begun == ["bert+tiny+0"] * 3
    assert list(rows["state"]) == ["done", "failed"] and "3 workers died" in rows["reason"][1]


def test_unreachable_cluster_is_reported_at_once(models, tmp_path):
    began = time.monotonic()
    for address, error in (("127.0.0.1:1", DataError), ("nowhere.invalid", DataError), ("a:b", ArgumentError)):
        with pytest.raises(error, match=address.partition(":")[0]):
            run_study(
                tiny_study(models, "bert", stages=("effects",)),
                FACTS,
                tmp_path / "out",
                engine=RayEngine(address=address),
            )
    assert time.monotonic() - began < 30
    assert not (tmp_path / "out/runs").exists()


def test_cluster_without_room_is_reported(models, ray, tmp_path):
    with pytest.raises(DataError, match=r"Each worker needs 1 CPUs and 3 GPUs; Ray has 2 CPUs and 0 GPUs"):
        run_study(tiny_study(models, "bert", stages=("effects",)), FACTS, tmp_path / "out", engine=RayEngine(gpus=3))


def test_missing_ray_is_reported_with_the_install_command(models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install 'kn-lens\[ray\]'"):
        run_study(tiny_study(models, "bert", stages=("effects",)), FACTS, tmp_path / "out", engine=RayEngine())
    assert kn.run_study is run_study
