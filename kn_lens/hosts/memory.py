"""How many rows go through the model at a time: as many as a memory budget holds, fewer when memory runs out."""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens.errors import ArgumentError
from kn_lens.hosts.bridge import Host

T = TypeVar("T")

SHARE_OF_FREE = 0.5
"""The default budget, as a share of the memory that is free when a call starts."""

LARGEST_PASS = {"cpu": 2048}
"""Tokens of a pass above which a larger one is no faster, by type of device. On a CPU the caches are the limit."""
LARGEST_PASS_ELSEWHERE = 65536

TOKENS_WITH_KEYS = 4
"""The number of tokens that count as one token with the keys and values of the tokens before it."""

KEPT_FREED = 64 * 2**20
"""Bytes by which a process may grow over the memory in use before freed memory is returned to the system."""

PASSES_PER_CHUNK = 4
"""Passes in a chunk of prompts, whose clean state is held together: enough that the few prompts that need a finer
quadrature fill one pass."""


@dataclass(kw_only=True)
class Budget:
    """The memory that passes may use.

    Attributes:
        host: the model.
        memory: bytes.
        last_token_only: whether passes recompute only the last token of a causal model.
        gradient: whether passes include a backward pass.
        divisor: divides the number of rows; doubled whenever memory runs out nevertheless.
    """

    host: Host
    memory: float
    last_token_only: bool = False
    gradient: bool = False
    divisor: int = field(default=1, init=False)

    @classmethod
    def of(
        cls,
        host: Host,
        memory: float | None,
        *,
        last_token_only: bool = False,
        gradient: bool = False,
    ) -> "Budget":
        """Return a budget of ``memory`` bytes, by default a share of the free memory of the model's device.

        Raises:
            ArgumentError: not a positive number.
        """
        if memory is None:
            memory = SHARE_OF_FREE * free_memory(host.device)
        elif isinstance(memory, bool) or not isinstance(memory, Real) or not memory > 0:
            raise ArgumentError(f"memory_budget={memory!r}; expected a positive number of bytes, such as 2 * 2**30.")
        return cls(
            host=host,
            memory=float(memory),
            last_token_only=last_token_only,
            gradient=gradient,
        )

    def rows_per_pass(self, length: int) -> int:
        """Return how many rows of ``length`` tokens go into one pass."""
        return self._divided(self._pass_limit(length))

    def share_of_pass(self, layer: int, length: int) -> float:
        """Return what a row takes whose pass starts at ``layer``, as a share of what one takes that runs all layers.

        A pass holds as many more of such rows. On a CPU the share is 1: the caches limit a pass, not what it keeps.
        """
        if not self.gradient or self.host.device.type in LARGEST_PASS:
            return 1.0
        n_layers = self.host.n_layers
        above = self._pass_bytes(length, n_layers - layer + 1)  # one more for the state that the row starts from
        return min(1.0, above / self._pass_bytes(length, n_layers))

    def rows_per_chunk(self, length: int, n_layers: int = 1) -> int:
        """Return how many rows of ``length`` tokens are held with their clean state.

        Args:
            length: tokens of the longest row.
            n_layers: the layers whose passes each row takes part in.
        """
        rows_in_memory = self.memory / 2 / self._state_bytes(length)
        enough = PASSES_PER_CHUNK * self._pass_limit(length) / max(1, n_layers / 2)
        return self._divided(min(rows_in_memory, enough))

    def map_chunks(
        self,
        n_rows: Int[Tensor, " item"],
        length: Int[Tensor, " item"],
        rows_per_chunk: Callable[[int], int],
        run: Callable[[Int[Tensor, " chunk"]], T],
        *,
        text_length: Int[Tensor, " item"] | None = None,
    ) -> Iterator[tuple[Int[Tensor, " chunk"], T]]:
        """Run all items in chunks, from long to short: padding is small, and an item that cannot fit fails first.

        Where memory runs out the same items run again, half as many at a time. Items whose padding would be longer than
        ``Host.longest_padding`` go into another chunk.

        Args:
            n_rows: rows of each item; an item is never split.
            length: tokens of its longest row.
            rows_per_chunk: the number of rows of a given length in a chunk: one of the methods above.
            run: called with the indices of the items of a chunk; it can be called again after an error, so it must not
                have changed anything then.
            text_length: the tokens of its longest row beside which padding may be too long; None for ``length``.

        Yields:
            The indices of the items of a chunk, and the result of ``run`` for them.

        Raises:
            RuntimeError: the original error, when a single item does not fit.
        """
        text_length = length if text_length is None else text_length
        in_order = length if self.host.longest_padding is None else text_length
        remaining = in_order.argsort(descending=True, stable=True)
        resident = resident_memory()
        while len(remaining):
            limit = rows_per_chunk(int(length[remaining].max()))
            chunk = remaining[: _n_fitting(n_rows[remaining], limit)]
            if self.host.longest_padding is not None:
                shortest = text_length[chunk[0]] - self.host.longest_padding
                chunk = chunk[text_length[chunk] >= shortest]  # the first ones: they are in order of their lengths
            try:
                result = run(chunk)
            except (RuntimeError, MemoryError) as error:
                is_smallest = len(chunk) == self.rows_per_pass(int(length[chunk].max())) == 1
                if not ran_out_of_memory(error) or is_smallest:
                    raise
            else:
                yield chunk, result
                del result
                remaining = remaining[len(chunk) :]
                if self.host.device.type == "cpu" and resident_memory() > resident + KEPT_FREED:
                    release_memory()
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
        largest //= TOKENS_WITH_KEYS if self.last_token_only else length
        rows_in_memory = self.memory / 2 / self._pass_bytes(length)
        return max(1.0, min(rows_in_memory, largest))

    def _pass_bytes(self, length: int, n_layers: int | None = None) -> float:
        """Estimate the memory of one row of a pass until its backward pass, or until its logits are read.

        Args:
            length: tokens of the row.
            n_layers: the layers that the row runs through; None for all.

        Linear maps save nothing, since weights get no gradient; activation functions, norms and attention do.
        """
        host, n_tokens = self.host, 1 if self.last_token_only else length
        per_token = 6 * host.d_model + 2 * host.d_active + 2 * length * max(1, host.d_model // 64)
        n_layers = host.n_layers if n_layers is None else n_layers
        n_layers_held = n_layers if self.gradient else 2
        per_row = n_tokens * per_token * n_layers_held + 6 * host.d_vocab
        if self.last_token_only:
            per_row += 2 * length * host.d_model * n_layers  # its own copy of the keys and values
        return per_row * host.dtype.itemsize

    def _state_bytes(self, length: int) -> float:
        """Estimate the memory of the clean state of one row, its scores included."""
        host = self.host
        n_vectors = 2 if self.last_token_only else 4
        # The gradients at three points, and their mean, belong to it.
        per_layer = n_vectors * length * host.d_model + 8 * host.d_model + 3 * host.d_active
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


def release_memory() -> None:
    """Return freed memory to the system: Arrow keeps it, and glibc does in pieces too small for the next tensors."""
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
        if trim is not None:
            trim(0)


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out. Only CUDA has a class for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The last one is oneDNN's, when there is no room for the code that it generates.
    texts = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "bad_alloc",
        "could not create a primitive",
    )
    message = str(error)
    return any(text in message for text in texts)


def _free_in_container(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes left under the memory limit of a container, which the memory of the machine does not show."""
    statistics: dict[str, int] = {}
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        for line in (root / "memory.stat").read_text().splitlines():
            name, value = line.split()
            statistics[name] = int(value)
    except (OSError, ValueError):
        return float("inf")
    if limit == "max":
        return float("inf")
    return int(limit) - used + statistics.get("inactive_file", 0)


def _n_fitting(n_rows: Int[Tensor, " item"], most: int) -> int:
    """Return how many of the first items have at most ``most`` rows together; at least one."""
    return max(1, int((n_rows.cumsum(0) <= most).sum()))
