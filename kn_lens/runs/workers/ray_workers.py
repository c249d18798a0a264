"""The engine of Ray's actors: on a cluster, or on Ray started on this machine. The only module that imports Ray."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kn_lens._core.atomic import abandoned, part_folder
from kn_lens.errors import ArgumentError, DataError
from kn_lens.runs.workers.driver import Driver
from kn_lens.runs.workers.engine import Failure, Job, OnProgress, OpenRunDirectory, Outcome
from kn_lens.runs.workers.pool import WorkerDied, n_processors

ANSWER_WITHIN = 5.0
"""Seconds that a cluster has to answer."""
CLOSE_WITHIN = 5.0
"""Seconds that an actor on a cluster has to end."""
OBJECT_STORE = 512 << 20
"""Bytes for results on their way, where Ray is started on this machine; beyond, Ray uses the disk."""
PORTS = {"": 6379, "ray://": 10001}
"""Ray's own defaults."""
STARTS = 3
"""Attempts to start Ray: it gives its processes half a minute each time, which is short on a busy machine."""
POLL = 1.0
"""Seconds to wait for a result at a time."""


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Computes runs in actors of Ray, which share their shards; each actor holds one model.

    Attributes:
        address: of a cluster: ``auto``, ``HOST[:PORT]`` or ``ray://HOST[:PORT]``; None starts Ray on this machine.
        workers: number of actors; None starts as many as the cluster has room for, at most one a run.
        gpus: share of GPUs of each actor.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float = 0.0

    def run(self, jobs: Sequence[Job], open_run_dir: OpenRunDirectory, on_progress: OnProgress) -> Iterator[Outcome]:
        """See ``Engine``.

        Raises:
            DataError: Ray is not installed, no cluster answers at the address, or no actor can be started there.
        """
        if not jobs:
            return
        threads = jobs[0].threads
        with ray_pool(self.address, self.workers, threads=threads, gpus=self.gpus, n_runs=len(jobs)) as pool:
            yield from Driver(pool, jobs, open_run_dir, on_progress).outcomes()


class RayPool:
    """Actors of Ray; see ``WorkerPool``."""

    def __init__(self, ray: Any, n_workers: int, threads: int, gpus: float, folder: str | None) -> None:
        self.n_workers, self._ray, self._folder = n_workers, ray, folder
        self._resources_of_worker = {"num_cpus": threads, "num_gpus": gpus}
        self.needs = f"{threads} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")

    def resources(self) -> str:
        """Return the CPUs and GPUs of the cluster."""
        resources = self._ray.cluster_resources()
        return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"

    def start(self, cls: Callable[[str | None], Any]) -> Any:
        """Start an actor."""
        return self._ray.remote(cls).options(max_restarts=0, **self._resources_of_worker).remote(self._folder)

    def submit(self, worker: Any, method: str, *args: Any) -> Any:
        """Queue a call of an actor's method."""
        return getattr(worker, method).remote(*args)

    def wait(self, refs: Sequence[Any]) -> list[Any]:
        """Return the references whose results have arrived, after ``POLL`` seconds at most."""
        ready = self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        return ready or self._ray.wait(refs, timeout=POLL)[0]

    def get(self, ref: Any) -> Any:
        """Return a result that has arrived, or ``WorkerDied``.

        Raises:
            DataError: Ray itself died.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            return Failure.of(error, "a worker")
        except (errors.LocalRayletDiedError, errors.RaySystemError) as error:
            raise DataError(
                f"Ray failed: {error}. Everything that is written is kept: give the same command again."
            ) from error
        except errors.RayError as error:
            return WorkerDied(_first_line(error))

    def stop(self, worker: Any) -> None:
        """Stop an actor, alive or dead; on a cluster it first has a moment to remove its temporary files."""
        if self._folder is None:  # else they go with the folder
            with suppress(self._ray.exceptions.RayError):  # dead, or busy for longer
                self._ray.get(worker.close.remote(), timeout=CLOSE_WITHIN)
        self._ray.kill(worker, no_restart=True)


@contextmanager
def ray_pool(address: str | None, workers: int | None, *, threads: int, gpus: float, n_runs: int) -> Iterator[RayPool]:
    """Connect to a cluster, or start Ray on this machine until the block ends.

    Without an address, a connection that this process has already is used.

    Args:
        address: see ``RayEngine``.
        workers: number of actors; None starts as many as there is room for, up to ``n_runs``.
        threads: CPUs of each actor.
        gpus: GPUs of each actor.
        n_runs: number of runs.

    Raises:
        DataError: Ray is not installed, nothing answers, or there is no room for one actor.
        ArgumentError: not an address.
    """
    try:
        import ray
    except ImportError as error:
        raise DataError("--engine ray needs Ray: pip install 'kn-lens[ray]'.") from error
    with ExitStack() as stack:
        folder = None
        if address is not None:
            _connect(ray, stack, address)
        elif not ray.is_initialized():
            n_cpus = (workers or max(1, min(n_processors() // threads, n_runs))) * threads
            folder = _start_ray(ray, stack, n_cpus)
        resources = ray.cluster_resources()
        room = int(resources.get("CPU", 0) // threads)
        if gpus:
            room = min(room, int(resources.get("GPU", 0) / gpus))
        pool = RayPool(ray, workers or min(room, n_runs), threads, gpus, folder)
        if room < 1:
            raise DataError(f"Each worker needs {pool.needs}; Ray has {pool.resources()}.")
        yield pool


QUIET: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
"""Options of ``ray.init`` that keep its log from the terminal."""


def _connect(ray: Any, stack: ExitStack, address: str) -> None:
    """Connect to a cluster until the stack is closed."""
    full_address = _check_address(address)
    try:
        with _silent():
            ray.init(address=full_address, **QUIET)
    except Exception as error:  # every way of not being reached has its own
        raise DataError(f"No cluster of Ray can be used at {address}: {_first_line(error)}.") from error
    stack.callback(ray.shutdown)


def _start_ray(ray: Any, stack: ExitStack, n_cpus: int) -> str:
    """Start Ray on this machine until the stack is closed; return its temporary folder, which actors share."""
    # A short path: it holds sockets, whose names may have 107 characters.
    for left_folder in abandoned(Path("/tmp")):
        _kill_processes_of(left_folder)
    folder = str(stack.enter_context(part_folder("/tmp", 0o700)))
    stack.enter_context(_environment(RAY_USAGE_STATS_ENABLED="0"))
    stack.callback(ray.shutdown)
    for attempts_left in reversed(range(STARTS)):
        try:
            with _silent():
                ray.init(
                    num_cpus=n_cpus,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE,
                    _temp_dir=folder,
                    **QUIET,
                )
            stack.enter_context(_exit_on_sigterm())
            break
        except Exception as error:
            ray.shutdown()
            if not attempts_left:
                raise DataError(f"Ray cannot be started on this machine: {_first_line(error)}.") from error
    return folder


def _kill_processes_of(folder: Path) -> None:
    """Kill what Ray has started for a process that was killed: all processes whose command names its folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            if os.fsencode(f"{folder}/") in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Have SIGTERM leave all blocks, in place of Ray's own handler, which prints a stack and leaves its agents."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_address(address: str) -> str:
    """Return an address with its port, once something has answered there; Ray itself would try for a minute."""
    if address == "auto":
        return address
    scheme = "ray://" if address.startswith("ray://") else ""
    host, _, port = address.removeprefix(scheme).partition(":")
    port = port or str(PORTS[scheme])
    if not host or not port.isdecimal():
        raise ArgumentError(f"--address {address!r}; expected auto, HOST:PORT or ray://HOST:PORT.")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN).close()
    except (OSError, OverflowError) as error:
        raise DataError(f"No cluster of Ray answers at {host}:{port}: {error}.") from error
    return f"{scheme}{host}:{port}"


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables that processes started inside inherit; afterwards restore all of Ray's."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in list(os.environ):
            if name.startswith("RAY_"):
                del os.environ[name]
        os.environ.update(before)


@contextmanager
def _silent() -> Iterator[None]:
    """Silence Ray's messages about a start that went well; its errors come as exceptions."""
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else type(error).__name__
    return first.rstrip(".")
