"""The state of a model and of PyTorch that a call of the library could change."""

import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def bits(tensor: torch.Tensor | None) -> str | None:
    """Return a digest of a tensor's bits."""
    if tensor is None:
        return None
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


ROUTINES: dict[type, bool] = {}
"""Types of values, and whether they are those of functions and methods, which a type alone decides."""


def is_routine(value: Any) -> bool:
    """Return ``inspect.isroutine`` of a value; a model has thousands, of a few types."""
    kind = type(value)
    if kind not in ROUTINES:
        ROUTINES[kind] = inspect.isroutine(value)
    return ROUTINES[kind]


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    """Return weights, gradients, modes, hooks and replaced methods of every module, by name."""
    found: dict[str, Any] = {}
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        found[f"{name}: weight"] = (bits(weight), weight.dtype, weight.data_ptr(), weight.requires_grad)
        found[f"{name}: grad"] = bits(weight.grad)
    for name, module in model.named_modules():
        kept = vars(module)
        found[f"{name}: mode"] = module.training
        found[f"{name}: methods"] = sorted(key for key, value in kept.items() if is_routine(value))
        found[f"{name}: contexts"] = kept.get("context_level")
        found[f"{name}: hooks"] = {
            key: len(value)
            for key, value in kept.items()
            if "hooks" in key and isinstance(value, (dict, list)) and value
        }
    return found


def state_of_torch() -> dict[str, Any]:
    """Return modes, defaults and random generators of the process; not that of Python, which the type checker uses."""
    return {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "torch's random numbers": bits(torch.get_rng_state()),
        "NumPy's random numbers": repr(np.random.get_state()),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the entries that differ, with both values."""
    return {
        key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)
    }  # fmt: skip


@contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Fail if the block changes anything, also when it ends with an exception."""
    before, of_torch = state_of(model), state_of_torch()
    try:
        yield
    finally:
        left = differences(before, state_of(model)) | differences(of_torch, state_of_torch())
        assert not left, left


class Passes:
    """A counter of the forward and backward passes of a model's last MLP, which can raise at one of them.

    Attributes:
        seen: so many.
        stop_at: the number of the pass that raises, from 1; 0 for none.
        error: what it raises.
    """

    def __init__(self) -> None:
        self.seen, self.stop_at, self.error = 0, 0, RuntimeError

    def tick(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.stop_at:
            raise self.error("stopped in the middle of a pass")

    def on(self, model: Any) -> Any:
        """Count the passes of a model until the returned handle is removed.

        The hook is on all modules: one on the model would be a user hook, under which all passes are full ones.
        """
        watched = model.blocks[-1].mlp.out

        def watch(module: Any, args: Any, output: Any) -> None:
            if module is watched:
                self.tick()
                if output.requires_grad:
                    output.register_hook(self.tick)

        return torch.nn.modules.module.register_module_forward_hook(watch)

    @contextmanager
    def stopping(self, at: int, error: type[BaseException]) -> Iterator[None]:
        """Raise at a pass, counted from here on."""
        self.seen, self.stop_at, self.error = 0, at, error
        try:
            yield
        finally:
            self.stop_at = 0
