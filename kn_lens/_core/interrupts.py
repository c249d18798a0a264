"""Context managers that restore a model completely, whenever the user interrupts.

Python runs a signal handler between two bytecode instructions of the main thread. The exception of the handler
(``KeyboardInterrupt`` for Ctrl-C) is raised there: possibly inside a ``finally``, or before the first instruction of an
``__exit__``. ``held`` therefore delays signals during a change and its undoing, and ``guarded_context`` makes contexts
that no interrupt finds half entered or half left.

Exceptions that other threads raise in this one (``PyThreadState_SetAsyncExc``) cannot be delayed. The undoing survives
one of them, because it starts over; it does not survive two.
"""

import io
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_NAMES = "SIGINT SIGTERM SIGHUP SIGQUIT SIGBREAK SIGALRM SIGVTALRM SIGPROF SIGXCPU SIGUSR1 SIGUSR2".split()
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Signals whose handlers may raise: those for termination, time-outs and job schedulers."""


class _Guarded(io.IOBase, Generic[T]):
    """The context of a generator. See `guarded_context`.

    An interrupt during the last operation of a block is raised at the first instruction of the next Python function,
    which would be ``__exit__``. The ``__exit__`` of ``IOBase`` is not a Python function: it calls ``close``, here the
    ``close`` of a generator, which resumes inside its ``try``.
    """

    def __init__(self, steps: Generator[T, None, None]) -> None:
        self._steps = steps
        self.close = steps.close

    def __enter__(self) -> T:  # type: ignore[override]  # IOBase returns itself
        try:
            return next(self._steps)
        except StopIteration:
            raise RuntimeError("This context was entered before, and serves once: make another.") from None
        except BaseException:
            self.close()
            raise


def guarded_context(steps: Callable[P, Generator[T, None, None]]) -> Callable[P, AbstractContextManager[T]]:
    """Make a function that yields once into a context manager, as ``contextlib.contextmanager`` does.

    What the function does in a ``finally`` is done even if an interrupt comes as the block begins or ends, where
    ``contextmanager`` leaves the generator suspended. Exceptions of the block are not raised in the function: its
    generator is closed.
    """

    @wraps(steps)
    def make(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Guarded(steps(*args, **kwargs))

    return make


@guarded_context
def held() -> Generator[None, None, None]:
    """Delay signals until the end of a block, where their handlers run.

    In other threads than the main thread it does nothing, because Python runs no handlers there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[signal.Signals, Any] = {}
    received: list[int] = []
    restored = False

    def record(number: int, frame: object) -> None:
        received.append(number)

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    try:
        try:
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    handlers[number] = handler
                    signal.signal(number, record)
            yield
        finally:
            restore()
            restored = True
    finally:
        if not restored:  # a handler that was already restored has raised
            restore()
        with ExitStack() as handled:  # runs every handler, even if one raises
            for number in reversed(dict.fromkeys(received)):
                handled.callback(signal.raise_signal, number)


@guarded_context
def undone(do: Callable[[], T], undo: Callable[[], object]) -> Generator[T, None, None]:
    """Apply a change for the time of a ``with`` block and undo it at the end, even if the block is interrupted.

    Args:
        do: applies the change; the ``with`` statement binds its result.
        undo: undoes the change. It does nothing if there is nothing to undo, and can be called again after an
            interrupt.
    """
    is_undone = False
    try:
        try:
            with held():
                value = do()
            yield value
        finally:
            with held():
                undo()
                is_undone = True
    finally:
        if not is_undone:
            with held():
                undo()


def entered(context: AbstractContextManager[T]) -> AbstractContextManager[T]:
    """Return a context manager whose ``__enter__`` and ``__exit__`` are not interrupted by signals."""
    stack = ExitStack()
    return undone(lambda: stack.enter_context(context), stack.close)
