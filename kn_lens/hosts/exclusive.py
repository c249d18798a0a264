"""Exclusive access of each public call to its model, outside the caller's inference and autocast modes.

A pass puts hooks on a model and replaces forwards of its modules, until it ends. Two threads in one model would run
each other's hooks, so each call locks its model and a second one waits. The same thread may make further calls.

Attribution needs gradients and the model's own precision. A call leaves ``torch.inference_mode`` and ``torch.autocast``
of its caller, and returns the results that it has without them.

Models are loaded one after another, because transformers changes settings of the whole process meanwhile.
"""

import inspect
from collections.abc import Callable, Generator
from contextlib import ExitStack, nullcontext
from functools import wraps
from threading import Lock, RLock
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch

from kn_lens._core.interrupts import guarded_context

P = ParamSpec("P")
R = TypeVar("R")

_LOCKS: "WeakKeyDictionary[torch.nn.Module, Any]" = WeakKeyDictionary()
"""The lock of every model in use. An attribute of the model would prevent copies and pickles of it."""

_LOCKS_LOCK = Lock()

_LOADING_LOCK = RLock()


def exclusive(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function or method with a parameter ``model`` under `exclusively` for that model."""
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


def one_load_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function that loads a model while no other thread runs one.

    While transformers reads a model, the default type of tensors and methods of its classes are changed for the whole
    process: of two models read at a time, weights get the type of the other, or stay unset.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _LOADING_LOCK:
            return function(*args, **kwargs)

    return call


@guarded_context
def exclusively(model: Any) -> Generator[None, None, None]:
    """Lock a model and leave the caller's modes.

    Args:
        model: the model, or a ``Host`` of it. Anything else is left to the caller to refuse.
    """
    # A model has the attributes of the model that it wraps, ``model`` among them: this one is read of a host alone.
    module = model if isinstance(model, torch.nn.Module) else getattr(model, "model", None)
    lock = lock_of(module) if isinstance(module, torch.nn.Module) else nullcontext()
    with lock, leave_caller_modes():
        yield


@guarded_context
def leave_caller_modes() -> Generator[None, None, None]:
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
    """Return the one lock of a model, which its thread may acquire several times."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, RLock())
