"""Where workers are started and asked: what the driver of a study needs of processes here, or of Ray."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


def n_processors() -> int:
    """Return how many processors this process may use: where it can be bound to some, those, else all."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Died:
    """What a worker returns that can return nothing any more.

    Attributes:
        reason: as far as it is known.
    """

    reason: str


class Cluster(Protocol):
    """Somewhere to start workers, which do what they are asked one after another."""

    n_workers: int
    """That there are to be."""
    needs: str
    """What each takes, for people."""

    def resources(self) -> str:
        """Return what there is for them, for people."""
        ...

    def start(self, cls: Callable[[str | None], Any]) -> Any:
        """Start a worker around an object of a class that takes a folder for what is temporary."""
        ...

    def ask(self, worker: Any, method: str, *args: Any) -> Any:
        """Have a worker call a method of its object, after those before; return what stands for the result."""
        ...

    def wait(self, refs: Sequence[Any]) -> list[Any]:
        """Return those of some results that are there, after a moment at most."""
        ...

    def get(self, ref: Any) -> Any:
        """Return a result that is there, or ``Died``.

        Raises:
            DataError: the cluster itself died.
        """
        ...

    def stop(self, worker: Any) -> None:
        """Stop a worker, whether it lives or not."""
        ...
