"""Processes of this machine that share the work of a study: an engine between this process alone and Ray.

A process waits at a pipe. When the other end is closed, however this process ended, it ends too and leaves no file.
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

from kn_lens._budget import SHARE_OF_FREE, free_memory
from kn_lens._cluster import Died, n_processors
from kn_lens._driver import Driver
from kn_lens.engines import Failure, Home, Job, Outcome, Watch
from kn_lens.errors import DataError
from kn_lens.experiments.reproduction import Data
from kn_lens.experiments.running import State
from kn_lens.experiments.study import Stage, Study
from kn_lens.study_config import ModelEntry

if TYPE_CHECKING:
    import pandas as pd

POLL = 1.0
"""Seconds to wait for a result at a time."""
STOPPED_FOR = 60.0
"""Seconds after which a process that somebody has stopped is given up, so that others can go on with its work."""
END_WITHIN = 5.0
"""Seconds that a process has to end."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Computes runs in processes of this machine, a shard of records at a time; each holds one model.

    Attributes:
        workers: how many; as many as there are processors for, one a run at most, unless given.
    """

    workers: int | None = None

    def run(self, jobs: Sequence[Job], home: Home, watch: Watch) -> Iterator[Outcome]:
        """See ``Engine``."""
        if not jobs:
            return
        threads = jobs[0].threads
        room = max(1, n_processors() // threads)
        with TemporaryDirectory(prefix="kn-lens-", ignore_cleanup_errors=True) as folder:
            cluster = Pipes(self.workers or min(room, len(jobs)), threads, folder)
            yield from Driver(cluster, jobs, home, watch).outcomes()


def run_shared(
    study: Study, stages: Sequence[Stage], model: ModelEntry, workers: int, watch: Callable[[State], None]
) -> "dict[str, pd.DataFrame]":
    """Do what ``run`` does in several processes, each of which loads the model.

    Args:
        study: open in this process, which goes on to hold its directory.
        stages: see ``run``.
        model: how to load the model of the study.
        workers: processes; each computes on as many threads as torch does here.
        watch: see ``run``.

    Raises:
        DataError: what went wrong, and where.
    """
    memory = study.memory_budget or SHARE_OF_FREE * free_memory(study.host.device) / workers
    job = Job(
        name=model.name,
        model=model,
        fact_set="",
        data=Data(source=study.source, facts=study.facts, held_out=study.held_out),
        settings=study.settings,
        stages=[stage.name for stage in stages],
        names={},
        threads=torch.get_num_threads(),
        memory_budget=memory,
    )

    def home(job: Job, config: object, provenance: Any) -> Any:
        if provenance["made_from"]["model"] != study.made_from["model"]:
            raise DataError(f"{model.model} is another model now than when this run was opened.")
        return nullcontext(study.run)

    def tell(job: Job, state: State | None) -> None:
        if state is not None:
            watch(state)

    (outcome,) = Processes(workers=workers).run([job], home, tell)
    if outcome.failure is not None:
        raise DataError(f"{outcome.failure.where}: {outcome.failure.reason}")
    return dict(outcome.tables)


@dataclass(eq=False)
class _Process:
    """A process, and what is known of it here."""

    process: Any
    pipe: Connection
    n_asked: int = 0
    results: dict[int, Any] = field(default_factory=dict)
    dead: bool = False
    stopped: float = 0.0
    """Seconds that it has been seen stopped."""


_Ref = tuple[_Process, int]


class Pipes:
    """Processes that are asked through pipes; see ``Cluster``."""

    def __init__(self, n_workers: int, threads: int, folder: str) -> None:
        self.n_workers, self._folder = n_workers, folder
        self.needs = f"{threads} CPUs"
        # A server that has imported everything and computed nothing: its copies start at once and share that memory.
        self._context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
        if sys.platform != "win32":
            self._context.set_forkserver_preload(["kn_lens._shard_maker", "kn_lens._preloaded"])

    def resources(self) -> str:
        """Return what the machine has."""
        return f"{n_processors()} CPUs"

    def start(self, cls: Callable[[str | None], Any]) -> _Process:
        """Start a process."""
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, cls, self._folder), daemon=True)
        process.start()
        there.close()  # or the end of the process would not be seen here
        return _Process(process, here)

    def ask(self, worker: _Process, method: str, *args: Any) -> _Ref:
        """Send what is to be done."""
        worker.n_asked += 1
        with suppress(OSError):  # it is dead: ``wait`` sees that
            worker.pipe.send((worker.n_asked, method, args))
        return worker, worker.n_asked

    def wait(self, refs: Sequence[_Ref]) -> list[_Ref]:
        """Return those of some results that are there, after ``POLL`` seconds at most."""
        asked = {worker: worker.pipe for worker, _ in refs if not worker.dead}
        known = any(_is_there(ref) for ref in refs)
        ready = wait(list(asked.values()), 0 if known else POLL)
        if not ready and not known:
            for worker in asked:
                # By what passed here: where all were stopped together, as by Ctrl-Z, no time has.
                worker.stopped = worker.stopped + POLL if _is_stopped(worker.process.pid) else 0.0
                worker.dead = worker.stopped >= STOPPED_FOR
        for worker in [worker for worker, pipe in asked.items() if pipe in ready]:
            try:
                number, result = worker.pipe.recv()
            except (EOFError, OSError):
                worker.dead = True
            else:
                worker.results[number] = result
        return [ref for ref in refs if _is_there(ref)]

    def get(self, ref: _Ref) -> Any:
        """Return a result that is there, or that its process died."""
        worker, number = ref
        if number in worker.results:
            return worker.results.pop(number)
        if worker.stopped:
            return Died(f"it has been stopped for {STOPPED_FOR:g} s, as by SIGSTOP")
        worker.process.join(END_WITHIN)
        code = worker.process.exitcode
        return Died(f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}")

    def stop(self, worker: _Process) -> None:
        """End a process, whatever it does."""
        worker.pipe.close()
        worker.dead = True
        worker.process.join(END_WITHIN)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _is_stopped(pid: int) -> bool:
    """Return whether a process has been stopped by a signal, as far as the system tells (Linux does)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"  # the name before may hold anything
    except OSError:
        return False


def _is_there(ref: _Ref) -> bool:
    worker, number = ref
    return worker.dead or number in worker.results


def _serve(pipe: Connection, cls: Callable[[str | None], Any], folder: str) -> None:
    """Do what is asked through a pipe, until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for who asks, and told by closing the pipe
    worker = cls(folder)
    asked: SimpleQueue[tuple[int, str, tuple[Any, ...]]] = SimpleQueue()
    # Beside the work, so that neither end waits for the other, and that its closing is noticed at once.
    Thread(target=_listen, args=(pipe, asked, worker, folder), daemon=True).start()
    while True:
        number, method, args = asked.get()
        try:
            result = getattr(worker, method)(*args)
        except Exception as error:
            result = Failure.of(error, "a worker")
        with suppress(OSError):  # nobody is there any more: the listener ends this process
            pipe.send((number, result))


def _listen(pipe: Connection, asked: "SimpleQueue[Any]", worker: Any, folder: str) -> None:
    try:
        while True:
            asked.put(pipe.recv())
    except (EOFError, OSError):
        worker.close()
        with suppress(OSError):  # others are still in it, or who made it has removed it
            os.rmdir(folder)
        os._exit(0)
