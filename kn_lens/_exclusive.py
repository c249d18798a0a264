"""What holds around each public call on a model: one thread at a time, in modes of the library's own.

A pass puts hooks on a model and exchanges what modules of it do, for its own time. Two threads in one model would meet
each other's, so each call has the model to itself and a second one waits. The same thread may go on to other calls.

Attribution needs gradients and the model's own precision. A caller's ``torch.inference_mode`` and ``torch.autocast``
are left for the time of a call: the results are those without them.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from threading import Lock, RLock
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch

P = ParamSpec("P")
R = TypeVar("R")

_LOCKS: "WeakKeyDictionary[torch.nn.Module, Any]" = WeakKeyDictionary()
"""The lock of every model in use. As an attribute of the model it would keep it from being copied and pickled."""

_LOCKS_LOCK = Lock()


def exclusive(function: Callable[P, R]) -> Callable[P, R]:
    """Give a public function or method with a parameter ``model`` the model to itself, and modes of its own."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            model = signature.bind_partial(*args, **kwargs).arguments.get("model")
        except TypeError:
            return function(*args, **kwargs)  # raises, in the function's own name
        with exclusively(model):
            return function(*args, **kwargs)

    return call


@contextmanager
def exclusively(model: Any) -> Iterator[None]:
    """Have a model to oneself, in the library's own modes.

    Args:
        model: the model, or a ``Host`` of it; what is neither is for the caller to refuse.
    """
    # A model has attributes of the model that it wraps, ``model`` among them: a host alone is looked into.
    module = model if isinstance(model, torch.nn.Module) else getattr(model, "model", None)
    alone = lock_of(module) if isinstance(module, torch.nn.Module) else nullcontext()
    with alone, own_modes():
        yield


@contextmanager
def own_modes() -> Iterator[None]:
    """Leave the caller's inference and autocast modes."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # leaving inference mode turns gradients on
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def lock_of(model: torch.nn.Module) -> Any:
    """Return the one lock of a model, which its thread may take several times."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, RLock())
