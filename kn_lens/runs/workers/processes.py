"""The engine of several processes on this machine.

A process waits at a pipe. When the other end is closed, however its parent ended, it ends too and leaves no file.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch

from kn_lens.errors import DataError
from kn_lens.hosts import SHARE_OF_FREE, free_memory
from kn_lens.runs.context import RunContext
from kn_lens.runs.data import RunData
from kn_lens.runs.execute import RunState
from kn_lens.runs.stage import Stage
from kn_lens.runs.studies.config import ModelEntry
from kn_lens.runs.workers.driver import Driver
from kn_lens.runs.workers.engine import Failure, Job, OnProgress, OpenRunDirectory, Outcome
from kn_lens.runs.workers.pool import WorkerDied, n_processors

if TYPE_CHECKING:
    import pandas as pd

POLL = 1.0
"""Seconds to wait for a result at a time."""
STOPPED_FOR = 60.0
"""Seconds after which a process stopped by a signal is given up, so that others can take over its work."""
END_WITHIN = 5.0
"""Seconds that a process has to end."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Computes runs in processes of this machine, which share their shards; each process holds one model.

    Attributes:
        workers: number of processes; None starts as many as there are processors for, at most one a run.
    """

    workers: int | None = None

    def run(self, jobs: Sequence[Job], open_run_dir: OpenRunDirectory, on_progress: OnProgress) -> Iterator[Outcome]:
        """See ``Engine``."""
        if not jobs:
            return
        threads = jobs[0].threads
        room = max(1, n_processors() // threads)
        with TemporaryDirectory(prefix="kn-lens-", ignore_cleanup_errors=True) as folder:
            pool = ProcessPool(self.workers or min(room, len(jobs)), threads, folder)
            yield from Driver(pool, jobs, open_run_dir, on_progress).outcomes()


def run_shared(
    context: RunContext,
    stages: Sequence[Stage],
    model: ModelEntry,
    workers: int,
    on_state: Callable[[RunState], None],
) -> "dict[str, pd.DataFrame]":
    """Run stages as ``run_stages`` does, in several processes, each of which loads the model.

    Args:
        context: opened by this process, which keeps its directory.
        stages: see ``run_stages``.
        model: how to load the model of the run.
        workers: number of processes; each computes with as many threads as torch has here.
        on_state: see ``run_stages``.

    Raises:
        DataError: the step that failed, and its reason.
    """
    memory = context.memory_budget or SHARE_OF_FREE * free_memory(context.host.device) / workers
    job = Job(
        name=model.name,
        model=model,
        fact_set="",
        data=RunData(source=context.source, facts=context.facts, held_out=context.held_out),
        settings=context.settings,
        stages=[stage.name for stage in stages],
        names={},
        threads=torch.get_num_threads(),
        memory_budget=memory,
    )

    def open_run_dir(job: Job, config: object, provenance: Any) -> Any:
        if provenance["made_from"]["model"] != context.made_from["model"]:
            raise DataError(f"{model.model} is another model now than when this run was opened.")
        return nullcontext(context.run)

    def on_progress(job: Job, state: RunState | None) -> None:
        if state is not None:
            on_state(state)

    (outcome,) = Processes(workers=workers).run([job], open_run_dir, on_progress)
    if outcome.failure is not None:
        raise DataError(f"{outcome.failure.where}: {outcome.failure.reason}")
    return dict(outcome.tables)


@dataclass(eq=False)
class _Process:
    """A worker process.

    Attributes:
        process: the process.
        pipe: this end of its pipe.
        n_calls: calls sent to it.
        results: results that have arrived, by the number of their call.
        is_dead: whether it has ended or was given up.
        seconds_stopped: how long it has been seen stopped by a signal.
    """

    process: Any
    pipe: Connection
    n_calls: int = 0
    results: dict[int, Any] = field(default_factory=dict)
    is_dead: bool = False
    seconds_stopped: float = 0.0

    def has_result(self, number: int) -> bool:
        return self.is_dead or number in self.results


_Ref = tuple[_Process, int]
"""A process, and the number of a call."""


class ProcessPool:
    """Processes that receive calls through pipes; see ``WorkerPool``."""

    def __init__(self, n_workers: int, threads: int, folder: str) -> None:
        self.n_workers, self._folder = n_workers, folder
        self.needs = f"{threads} CPUs"
        # A server that has imported everything and computed nothing: its copies start at once and share that memory.
        self._context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
        if sys.platform != "win32":
            self._context.set_forkserver_preload(["kn_lens.runs.workers.worker", "kn_lens.runs.workers.preloaded"])

    def resources(self) -> str:
        """Return the number of processors."""
        return f"{n_processors()} CPUs"

    def start(self, cls: Callable[[str | None], Any]) -> _Process:
        """Start a process."""
        parent_end, child_end = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(child_end, cls, self._folder), daemon=True)
        process.start()
        child_end.close()  # or the end of the process would not be seen here
        return _Process(process, parent_end)

    def submit(self, worker: _Process, method: str, *args: Any) -> _Ref:
        """Send a call."""
        worker.n_calls += 1
        with suppress(OSError):  # it is dead: ``wait`` sees that
            worker.pipe.send((worker.n_calls, method, args))
        return worker, worker.n_calls

    def wait(self, refs: Sequence[_Ref]) -> list[_Ref]:
        """Return the references whose results have arrived, after ``POLL`` seconds at most."""
        pipes = {}
        for worker, _ in refs:
            if not worker.is_dead:
                pipes[worker] = worker.pipe
        has_results = any(worker.has_result(number) for worker, number in refs)
        ready = wait(list(pipes.values()), 0 if has_results else POLL)
        if not ready and not has_results:
            for worker in pipes:
                # Counted in waits of this process: where all were stopped together, as by Ctrl-Z, none has passed.
                is_stopped = _is_stopped(worker.process.pid)
                worker.seconds_stopped = worker.seconds_stopped + POLL if is_stopped else 0.0
                worker.is_dead = worker.seconds_stopped >= STOPPED_FOR
        for worker, pipe in pipes.items():
            if pipe in ready:
                try:
                    number, result = pipe.recv()
                except (EOFError, OSError):
                    worker.is_dead = True
                else:
                    worker.results[number] = result
        return [(worker, number) for worker, number in refs if worker.has_result(number)]

    def get(self, ref: _Ref) -> Any:
        """Return a result that has arrived, or ``WorkerDied``."""
        worker, number = ref
        if number in worker.results:
            return worker.results.pop(number)
        if worker.seconds_stopped:
            return WorkerDied(f"it has been stopped for {STOPPED_FOR:g} s, as by SIGSTOP")
        worker.process.join(END_WITHIN)
        code = worker.process.exitcode
        if code is not None and code < 0:
            return WorkerDied(f"killed by {signal.Signals(-code).name}")
        return WorkerDied(f"exit code {code}")

    def stop(self, worker: _Process) -> None:
        """End a process, idle or busy."""
        worker.pipe.close()
        worker.is_dead = True
        worker.process.join(END_WITHIN)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal; False where the system does not say (only Linux does)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            after_name = file.read().rpartition(b")")[2]  # the name may hold anything
    except OSError:
        return False
    return after_name.split()[0] == b"T"


def _serve(pipe: Connection, cls: Callable[[str | None], Any], folder: str) -> None:
    """Execute the calls that arrive through a pipe, until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the parent, which then closes the pipe
    worker = cls(folder)
    calls: SimpleQueue[tuple[int, str, tuple[Any, ...]]] = SimpleQueue()
    # In a thread, so that neither end waits for the other, and that the end of the parent is noticed at once.
    Thread(target=_listen, args=(pipe, calls, worker, folder), daemon=True).start()
    while True:
        number, method, args = calls.get()
        try:
            result = getattr(worker, method)(*args)
        except Exception as error:
            result = Failure.of(error, "a worker")
        with suppress(OSError):  # the parent has ended: the listener ends this process
            pipe.send((number, result))


def _listen(pipe: Connection, calls: "SimpleQueue[Any]", worker: Any, folder: str) -> None:
    """Queue the calls that arrive; end the process when the pipe is closed."""
    try:
        while True:
            calls.put(pipe.recv())
    except (EOFError, OSError):
        worker.close()
        with suppress(OSError):  # other processes still use it, or the parent has removed it
            os.rmdir(folder)
        os._exit(0)
