"""A pool of workers: what the driver of a study needs of processes here, or of Ray's actors."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


def n_processors() -> int:
    """Return how many processors this process may use: its CPU affinity where there is one, else all."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class WorkerDied:
    """The result of every call to a worker that has died.

    Attributes:
        reason: why it died, as far as it is known.
    """

    reason: str


class WorkerPool(Protocol):
    """Starts workers, which execute the calls submitted to them one after another."""

    n_workers: int
    """Workers to start."""
    needs: str
    """Resources of each worker, for error messages."""

    def resources(self) -> str:
        """Return the resources of the pool, for error messages."""
        ...

    def start(self, cls: Callable[[str | None], Any]) -> Any:
        """Start a worker around an object of a class that takes a folder for temporary files."""
        ...

    def submit(self, worker: Any, method: str, *args: Any) -> Any:
        """Queue a call of a method of the worker's object; return a reference to its result."""
        ...

    def wait(self, refs: Sequence[Any]) -> list[Any]:
        """Return the references whose results have arrived; wait a moment at most."""
        ...

    def get(self, ref: Any) -> Any:
        """Return a result that has arrived, or ``WorkerDied``.

        Raises:
            DataError: the pool itself died.
        """
        ...

    def stop(self, worker: Any) -> None:
        """Stop a worker, alive or dead."""
        ...
