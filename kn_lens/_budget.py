"""How much goes through the model at a time: as many rows as a memory budget holds, fewer when memory runs out."""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens.errors import ArgumentError
from kn_lens.hosts import Host

T = TypeVar("T")

SHARE_OF_FREE = 0.5
"""The default budget, as a share of the memory that is free when a call starts."""

LARGEST_PASS = {"cpu": 2048}
"""Tokens of a pass beyond which more at a time is no faster: on a CPU the caches, not the cores, are what runs out."""
LARGEST_PASS_ELSEWHERE = 65536

TOKENS_WITH_KEYS = 4
"""What a token that brings the keys and values of those before along counts for."""

KEPT_FREED = 64 * 2**20
"""Bytes by which a process may grow, over what it still uses, before it is seen to that freed memory is given back."""

PASSES_PER_STRETCH = 4
"""Prompts whose clean state is held together, in passes: enough that the few that need a finer quadrature fill one."""


@dataclass(kw_only=True)
class Budget:
    """The memory that passes may take, and how far that has been tried.

    Attributes:
        host: what runs.
        memory: bytes.
        moving_last: whether passes recompute only the last token of a causal model.
        gradient: whether they have a backward pass.
        divisor: what the number of rows is divided by: doubled whenever memory ran out nevertheless.
    """

    host: Host
    memory: float
    moving_last: bool = False
    gradient: bool = False
    divisor: int = field(default=1, init=False)

    @classmethod
    def of(cls, host: Host, memory: float | None, *, moving_last: bool = False, gradient: bool = False) -> "Budget":
        """Return a budget of so many bytes, by default a share of what is free on the model's device.

        Raises:
            ArgumentError: not a positive number.
        """
        if memory is None:
            memory = SHARE_OF_FREE * free_memory(host.device)
        elif isinstance(memory, bool) or not isinstance(memory, Real) or not memory > 0:
            raise ArgumentError(f"memory_budget={memory!r}; expected a positive number of bytes, such as 2 * 2**30.")
        return cls(host=host, memory=float(memory), moving_last=moving_last, gradient=gradient)

    def rows_per_pass(self, length: int) -> int:
        """Return how many rows of so many tokens go into one pass."""
        return self._divided(self._pass_limit(length))

    def rows_per_stretch(self, length: int) -> int:
        """Return how many rows of so many tokens are held with their clean state."""
        return self._divided(
            min(self.memory / 2 / self._state_bytes(length), PASSES_PER_STRETCH * self._pass_limit(length))
        )

    def work_through(
        self,
        n_rows: Int[Tensor, " item"],
        length: Int[Tensor, " item"],
        rows: Callable[[int], int],
        run: Callable[[Int[Tensor, " some"]], T],
    ) -> Iterator[tuple[Int[Tensor, " some"], T]]:
        """Run all items, some at a time, from long to short: little is then padding, and what cannot fit fails first.

        Where memory runs out the same items are run again, half as many at a time.

        Args:
            n_rows: of each item; an item is never cut.
            length: tokens of its longest row.
            rows: how many rows of a length go together: one of the methods above.
            run: what to do with the items of these numbers; to be run again it must not have changed anything.

        Yields:
            The numbers of some items, and what ``run`` returned for them.

        Raises:
            RuntimeError: as it came, when one item at a time does not fit either.
        """
        left = length.argsort(descending=True, stable=True)
        resident = resident_memory()
        while len(left):
            some = left[: _fitting(n_rows[left], rows(int(length[left[0]])))]
            try:
                result = run(some)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error) or len(some) == self.rows_per_pass(int(length[some[0]])) == 1:
                    raise
            else:
                yield some, result
                del result
                left = left[len(some) :]
                if self.host.device.type == "cpu" and resident_memory() > resident + KEPT_FREED:
                    give_back_memory()
                    resident = resident_memory()
                continue
            # Outside of the handler, where the error no longer keeps the frames of the pass and their tensors alive,
            # unless they refer to it in turn.
            gc.collect()
            self.divisor *= 2
            if self.host.device.type == "cuda":
                torch.cuda.empty_cache()

    def _divided(self, rows: float) -> int:
        return max(1, int(rows) // self.divisor)

    def _pass_limit(self, length: int) -> float:
        largest = LARGEST_PASS.get(self.host.device.type, LARGEST_PASS_ELSEWHERE)
        largest //= TOKENS_WITH_KEYS if self.moving_last else length
        return max(1.0, min(self.memory / 2 / self._pass_bytes(length), largest))

    def _pass_bytes(self, length: int) -> float:
        """Estimate what one row of a pass holds until its backward pass, or until its logits are read.

        Linear maps save nothing, since weights get no gradient; activation functions, norms and attention do.
        """
        host, moving = self.host, 1 if self.moving_last else length
        per_token = 6 * host.d_model + 2 * host.d_mlp + 2 * length * max(1, host.d_model // 64)
        per_row = moving * per_token * (host.n_layers if self.gradient else 2) + 6 * host.d_vocab
        if self.moving_last:
            per_row += 2 * length * host.d_model * host.n_layers  # its own copy of the keys and values
        return per_row * host.dtype.itemsize

    def _state_bytes(self, length: int) -> float:
        """Estimate what is kept of one row for all passes, its scores included."""
        host = self.host
        per_layer = (2 if self.moving_last else 4) * length * host.d_model + 4 * host.d_model + 3 * host.d_mlp
        return host.n_layers * per_layer * host.dtype.itemsize


def free_memory(device: torch.device) -> float:
    """Return the bytes that can still be allocated on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    import psutil

    return min(psutil.virtual_memory().available, _free_in_container())


def resident_memory() -> int:
    """Return the bytes of this process that are in memory."""
    import psutil

    return psutil.Process().memory_info().rss


def give_back_memory() -> None:
    """Let the system have what was freed, which Arrow keeps, and glibc, in pieces that the next tensors do not fit."""
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have no such thing
        if trim is not None:
            trim(0)


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be had. Only CUDA has a class for it."""
    # oneDNN says the last one, when there is no room for the code it generates.
    texts = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "could not create a primitive")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in texts)


def _free_in_container(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return what the limit of a container leaves, which the memory of the machine says nothing about."""
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        stat: dict[str, Any] = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))


def _fitting(n_rows: Int[Tensor, " item"], most: int) -> int:
    """Return how many of the first items have at most so many rows together; at least one."""
    return max(1, int((n_rows.cumsum(0) <= most).sum()))
