"""A study in several processes: its files equal those of one process, also if workers die."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from kn_lens.runs.studies.study import run_study
from kn_lens.runs.workers.driver import Driver
from kn_lens.runs.workers.engine import Failure, torch_threads
from kn_lens.runs.workers.pool import WorkerDied, n_processors
from kn_lens.runs.workers.processes import Processes, ProcessPool
from tests.killed_workers import check_a_killed_worker_changes_nothing, is_alive
from tests.runs.echo import Echo, result_of
from tests.tiny_runs import tiny_checkpoints, tiny_facts, tiny_study

FACTS = {"tiny": tiny_facts(2)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_checkpoints(tmp_path_factory.mktemp("models"))


@pytest.fixture
def pipes(tmp_path):
    return ProcessPool(1, 1, str(tmp_path))


def test_process_answers_requests_of_any_size_in_order(pipes):
    worker = pipes.start(Echo)
    large = os.urandom(1 << 22)  # more than a pipe holds: neither end may wait for the other
    refs = [pipes.submit(worker, "back", value) for value in (1, large, "two")]
    (pid, one), (_, same), (_, two) = (result_of(pipes, ref) for ref in refs)
    assert pid != os.getpid() and (one, same, two) == (1, large, "two")
    failure = result_of(pipes, pipes.submit(worker, "fail"))
    assert isinstance(failure, Failure) and (failure.kind, failure.reason) == ("ValueError", "a reason")
    pipes.stop(worker)
    assert not is_alive(pid)


def test_processors_are_counted_by_the_affinity_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5, 6}, raising=False)
    assert n_processors() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert n_processors() == 8


def test_request_to_a_killed_process_is_reported_as_lost(pipes):
    worker = pipes.start(Echo)
    pid, _ = result_of(pipes, pipes.submit(worker, "back", None))
    asleep, behind = pipes.submit(worker, "sleep"), pipes.submit(worker, "back", 2)
    os.kill(pid, signal.SIGKILL)
    assert result_of(pipes, asleep) == result_of(pipes, behind) == WorkerDied("killed by SIGKILL")
    assert result_of(pipes, pipes.submit(worker, "back", 3)) == WorkerDied("killed by SIGKILL")
    pipes.stop(worker)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells that a process is stopped")
def test_stopped_process_is_given_up(pipes, monkeypatch):
    monkeypatch.setattr("kn_lens.runs.workers.processes.POLL", 0.1)
    monkeypatch.setattr("kn_lens.runs.workers.processes.STOPPED_FOR", 0.5)
    monkeypatch.setattr("kn_lens.runs.workers.processes.END_WITHIN", 0.1)
    worker = pipes.start(Echo)
    pid, _ = result_of(pipes, pipes.submit(worker, "back", None))
    os.kill(pid, signal.SIGSTOP)
    assert result_of(pipes, pipes.submit(worker, "back", 1)) == WorkerDied(
        "it has been stopped for 0.5 s, as by SIGSTOP"
    )
    pipes.stop(worker)
    assert not is_alive(pid)


def test_busy_process_is_stopped_and_ignores_interrupts(pipes):
    worker = pipes.start(Echo)
    pid, _ = result_of(pipes, pipes.submit(worker, "back", None))
    os.kill(pid, signal.SIGINT)
    assert result_of(pipes, pipes.submit(worker, "back", 1)) == (pid, 1)
    pipes.submit(worker, "sleep")
    began = time.monotonic()
    pipes.stop(worker)
    assert not is_alive(pid) and time.monotonic() - began < 30


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed with signals")
def test_worker_processes_end_with_their_parent(tmp_path):
    (tmp_path / "temporary").mkdir()
    program = (
        "import sys\n"
        "from kn_lens.runs.workers.processes import ProcessPool\n"
        "from tests.runs.echo import Echo, result_of\n"
        "pipes = ProcessPool(1, 1, sys.argv[1])\n"
        "worker = pipes.start(Echo)\n"
        "pid, _ = result_of(pipes, pipes.submit(worker, 'back', None))\n"
        "pipes.submit(worker, 'sleep')\n"
        "print(pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "temporary")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (tmp_path / "temporary").exists()


def workers():
    """Return the worker processes: children of the fork server, which is a child of this process."""
    children = [one for one in psutil.Process().children(recursive=True) if "forkserver" in str(one.cmdline())]
    return [one for one in children if one.ppid() != os.getpid()]


def test_records_equal_those_of_the_default_engine_after_a_process_is_killed(models, tmp_path):
    check_a_killed_worker_changes_nothing(models, tmp_path, Processes(workers=2), workers)


class Frail:
    """Workers in this process: the first dies at its first shard, all others while they load the model."""

    n_workers, needs = 1, "1 CPU"

    def __init__(self):
        self.n_started = self.n_begun = 0
        self.results = {}

    def resources(self):
        return "1 CPU"

    def start(self, cls):
        self.n_started += 1
        assert self.n_started < 20, "it never ends"
        return cls(None)

    def submit(self, worker, method, *args):
        self.n_begun += method == "prepare_run"
        dies = method == "compute_shard" or (method == "prepare_run" and self.n_begun > 1)
        self.results[len(self.results)] = WorkerDied("out of memory") if dies else getattr(worker, method)(*args)
        return len(self.results) - 1

    def wait(self, refs):
        return list(refs)

    def get(self, ref):
        return self.results[ref]

    def stop(self, worker):
        worker.close()

    def run(self, jobs, open_run_dir, on_progress):
        return Driver(self, jobs, open_run_dir, on_progress).outcomes()


def test_run_whose_model_kills_every_worker_fails(models, tmp_path):
    with torch_threads(torch.get_num_threads()):  # a worker in this process sets its own number
        rows = run_study(tiny_study(models, "bert"), FACTS, tmp_path / "study", engine=Frail())
    assert rows["state"].tolist() == ["failed"] and rows["where"].tolist() == ["loading the model"]
    assert "3 workers died over it" in rows["reason"][0]
