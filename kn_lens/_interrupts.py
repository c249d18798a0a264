"""What is done to a model for the time of a block is undone whole, whenever the user interrupts.

Python runs the handler of a signal between two steps of the main thread, and what it raises (``KeyboardInterrupt``, for
Ctrl-C) comes up there: in a ``finally`` as well, or before the first step of an ``__exit__``. So signals wait while
something is done or undone (``Held``); and the end of a block is reached without a step in between (``Undone``).

What other threads raise here (``PyThreadState_SetAsyncExc``) cannot be made to wait: one such exception is survived,
because undoing starts over, and two within one undoing are not.
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
"""Those whose handlers raise, in programs that have any: to be stopped, by time-outs, and by schedulers of jobs."""


class Held:
    """Lets signals wait until a block is left; then their handlers run. Other threads than the main run no handlers."""

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}
        self._came: list[int] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        except BaseException:
            self._give_back()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._give_back()
        except BaseException:  # by a handler that is back already
            self._give_back()
            raise
        finally:
            with ExitStack() as handled:  # every one of them, though the first may raise
                for number in reversed(dict.fromkeys(self._came)):
                    handled.callback(signal.raise_signal, number)

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self._came.append(number)


class Undone(io.IOBase, Generic[T]):
    """Does something for the time of a ``with`` block, and undoes it then, whatever interrupts.

    An interrupt that comes in the last operation of the block is raised by the first step of a Python function that
    Python calls next, which would be ``__exit__``. That of ``IOBase`` is none: it calls ``close``, here a generator's,
    which goes on in the middle of its ``try``.

    Args:
        do: what to do; its result is what the block is given.
        undo: undoes it; does nothing where there is nothing to undo, and can be started over.
    """

    def __init__(self, do: Callable[[], T], undo: Callable[[], object]) -> None:
        self._steps = _steps(do, undo)
        self.close = self._steps.close

    def __enter__(self) -> T:  # type: ignore[override]  # a file would return itself
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
    """Return a context that is entered and left whole."""
    stack = ExitStack()
    return Undone(lambda: stack.enter_context(context), stack.close)
