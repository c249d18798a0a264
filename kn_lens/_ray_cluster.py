"""Ray itself: started on this machine or found at an address, and left as it was. The only file that imports it."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from kn_lens._cluster import Died, n_processors
from kn_lens._whole_files import abandoned, part_folder
from kn_lens.engines import Failure
from kn_lens.errors import ArgumentError, DataError

ANSWER_WITHIN = 5.0
"""Seconds that a cluster has to answer."""
CLOSE_WITHIN = 5.0
"""Seconds that an actor on a cluster has to end."""
OBJECT_STORE = 512 << 20
"""Bytes for results on their way, where Ray is started on this machine; beyond, Ray uses the disk."""
PORTS = {"": 6379, "ray://": 10001}
"""Ray's own defaults."""
STARTS = 3
"""Times to start Ray here: it gives its processes half a minute each time, which is short on a busy machine."""
POLL = 1.0
"""Seconds to wait for a result at a time."""


class RayCluster:
    """Processors that Ray has, to start actors on; see ``Cluster``."""

    def __init__(self, ray: Any, n_workers: int, threads: int, gpus: float, folder: str | None) -> None:
        self.n_workers, self._ray, self._folder = n_workers, ray, folder
        self._takes = {"num_cpus": threads, "num_gpus": gpus}
        self.needs = f"{threads} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")

    def resources(self) -> str:
        """Return what the cluster has, for people."""
        has = self._ray.cluster_resources()
        return f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"

    def start(self, cls: Callable[[str | None], Any]) -> Any:
        """Start an actor of a class that takes a folder for what is temporary."""
        return self._ray.remote(cls).options(max_restarts=0, **self._takes).remote(self._folder)

    def ask(self, worker: Any, method: str, *args: Any) -> Any:
        """Have an actor call a method of its own."""
        return getattr(worker, method).remote(*args)

    def stop(self, worker: Any) -> None:
        """Stop an actor, whether it lives or not, after it had a moment to remove what is temporary."""
        if self._folder is None:  # else it goes with the folder
            with suppress(self._ray.exceptions.RayError):  # dead, or busy for longer
                self._ray.get(worker.close.remote(), timeout=CLOSE_WITHIN)
        self._ray.kill(worker, no_restart=True)

    def wait(self, refs: Sequence[Any]) -> list[Any]:
        """Return those of some results that are there, after ``POLL`` seconds at most."""
        return self._ray.wait(refs, num_returns=len(refs), timeout=0)[0] or self._ray.wait(refs, timeout=POLL)[0]

    def get(self, ref: Any) -> Any:
        """Return a result, or that its actor died.

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
            return Died(_first_line(error))


@contextmanager
def connected(
    address: str | None, workers: int | None, *, threads: int, gpus: float, runs: int
) -> Iterator[RayCluster]:
    """Connect to a cluster, or start Ray on this machine until the block is left.

    Where this process is connected to a cluster already and no address is given, that is used.

    Args:
        address: see ``RayEngine``.
        workers: actors; None for as many as there is room for, up to ``runs``.
        threads: CPUs of each.
        gpus: GPUs of each.
        runs: how many runs there are.

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
        if not (address is None and ray.is_initialized()):
            folder = _connect(ray, stack, address, workers, threads=threads, runs=runs)
        has = ray.cluster_resources()
        room = int(has.get("CPU", 0) // threads)
        if gpus:
            room = min(room, int(has.get("GPU", 0) / gpus))
        cluster = RayCluster(ray, workers or min(room, runs), threads, gpus, folder)
        if room < 1:
            raise DataError(f"Each worker needs {cluster.needs}; Ray has {cluster.resources()}.")
        yield cluster


def _connect(
    ray: Any, stack: ExitStack, address: str | None, workers: int | None, *, threads: int, runs: int
) -> str | None:
    """Connect; return a folder of this machine's for actors if Ray runs only here."""
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is not None:
        where = _checked(address)
        try:
            with _silent():
                ray.init(address=where, **quiet)
        except Exception as error:  # every way of not being reached has its own
            raise DataError(f"No cluster of Ray can be used at {address}: {_first_line(error)}.") from error
        stack.callback(ray.shutdown)
        return None
    # A short path: it holds sockets, whose names may have 107 characters.
    for left in abandoned(Path("/tmp")):
        _end_processes_of(left)
    folder = str(stack.enter_context(part_folder("/tmp", 0o700)))
    stack.enter_context(_environment(RAY_USAGE_STATS_ENABLED="0"))
    stack.callback(ray.shutdown)
    for left in reversed(range(STARTS)):
        try:
            with _silent():
                ray.init(
                    num_cpus=(workers or max(1, min(n_processors() // threads, runs))) * threads,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE,
                    _temp_dir=folder,
                    **quiet,
                )
            stack.enter_context(_termination())
            break
        except Exception as error:
            ray.shutdown()
            if not left:
                raise DataError(f"Ray cannot be started on this machine: {_first_line(error)}.") from error
    return folder


def _end_processes_of(folder: Path) -> None:
    """End what Ray has started for a process that was killed: all that was told to work in its folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            if os.fsencode(f"{folder}/") in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


@contextmanager
def _termination() -> Iterator[None]:
    """Have SIGTERM leave all blocks, in the place of Ray's own handling, which prints a stack and leaves its agents."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _checked(address: str) -> str:
    """Return an address with its port, after something has answered there; Ray itself would try for a minute."""
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
    """Set variables that processes started inside inherit; afterwards all of Ray's are as before."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _silent() -> Iterator[None]:
    """Leave out what Ray has to say about a start that went well; its errors come as exceptions."""
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
