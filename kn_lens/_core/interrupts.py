"""Context managers that restore a model completely, whenever the user interrupts.

Python runs a signal handler between two bytecode instructions of the main thread. The exception of the handler
(``KeyboardInterrupt`` for Ctrl-C) is raised there: possibly inside a ``finally``, or before the first instruction of an
``__exit__``. ``Held`` therefore delays signals during a change and its undoing, and ``Undone`` leaves a block without
an instruction at which a handler could run before the undoing starts.

Exceptions that other threads raise in this one (``PyThreadState_SetAsyncExc``) cannot be delayed. The undoing survives
one of them, because it starts over; it does not survive two.
"""

import io
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_NAMES = "SIGINT SIGTERM SIGHUP SIGQUIT SIGBREAK SIGALRM SIGVTALRM SIGPROF SIGXCPU SIGUSR1 SIGUSR2".split()
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Signals whose handlers may raise: those for termination, time-outs and job schedulers."""


class Held:
    """Delay signals until the end of a block, where their handlers run.

    In other threads than the main thread it does nothing, because Python runs no handlers there.
    """

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}
        self._received: list[int] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._record)
        except BaseException:
            self._restore_handlers()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._restore_handlers()
        except BaseException:  # from a handler that is already restored
            self._restore_handlers()
            raise
        finally:
            with ExitStack() as handled:  # runs every handler, even if one raises
                for number in reversed(dict.fromkeys(self._received)):
                    handled.callback(signal.raise_signal, number)

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: object) -> None:
        self._received.append(number)


class Undone(io.IOBase, Generic[T]):
    """Apply a change for the time of a ``with`` block and undo it at the end, even if the block is interrupted.

    An interrupt during the last operation of a block is raised at the first instruction of the next Python function,
    which would be ``__exit__``. The ``__exit__`` of ``IOBase`` is not a Python function: it calls ``close``, here the
    ``close`` of a generator, which resumes inside its ``try``.

    Args:
        do: applies the change; the ``with`` statement binds its result.
        undo: undoes the change. It does nothing if there is nothing to undo, and can be called again after an
            interrupt.
    """

    def __init__(self, do: Callable[[], T], undo: Callable[[], object]) -> None:
        self._steps = _steps(do, undo)
        self.close = self._steps.close

    def __enter__(self) -> T:  # type: ignore[override]  # IOBase returns itself
        try:
            return next(self._steps)
        except StopIteration:
            raise RuntimeError("This context was entered before, and serves once: make another.") from None
        except BaseException:
            self.close()
            raise


def _steps(do: Callable[[], T], undo: Callable[[], object]) -> Generator[T, None, None]:
    undone = False
    try:
        try:
            with Held():
                value = do()
            yield value
        finally:
            with Held():
                undo()
                undone = True
    finally:
        if not undone:
            with Held():
                undo()


def entered(context: AbstractContextManager[T]) -> Undone[T]:
    """Return a context manager whose ``__enter__`` and ``__exit__`` are not interrupted by signals."""
    stack = ExitStack()
    return Undone(lambda: stack.enter_context(context), stack.close)
