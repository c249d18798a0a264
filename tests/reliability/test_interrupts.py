"""Ctrl-C at any moment, once or twice, while a model is changed for a block: the model is restored."""

import inspect
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import pytest
import torch

import kn_lens as kn
from kn_lens._core.interrupts import held, undone
from kn_lens.hosts.exclusive import lock_of
from tests.edit_cases import NEURONS, random_edit
from tests.effects import FACTS, sets_of
from tests.reliability.state import differences, state_of, state_of_torch
from tests.reliability.tries import BY_HAND
from tests.tiny import loaded

FILES = ("kn_lens", "contextlib.py", "torch/utils/_device.py", "transformer_lens")
"""Parts of the names of the files in which Ctrl-C is pressed."""
SHORT = tuple(replace(fact, templates=fact.templates[:1]) for fact in (*FACTS[:2], *FACTS[-2:]))
LAST, SPREAD = (24, 12) if BY_HAND else (8, 4)
"""So many of the last moments of each way to change a model are tried, and so many of all."""


@cache
def concerned(code):
    # As a generator is resumed, Python looks for no signals outside its ``try``; that a profile function is called
    # there, whose exceptions end the generator without its ``finally``, is no moment to press anything.
    return any(part in code.co_filename for part in FILES) and not code.co_flags & inspect.CO_GENERATOR


class Keyboard:
    """An interrupt at a moment when Python handles signals: at the start of a function, and when a C function returns.

    Attributes:
        first: the number of the moment to press it at, from 1; 0 for never.
        second: that of the moment after it, of those as a function begins, to press it again.
        seen: moments so far.
        since: moments since the first press.
    """

    def __init__(self, first: int, second: int = 0) -> None:
        self.first, self.second, self.seen, self.since = first, second, 0, 0

    def __enter__(self):
        self.before = sys.getprofile(), sys.gettrace()
        sys.settrace(self._again if self.second else None)
        sys.setprofile(self._moment)

    def __exit__(self, *_):
        sys.setprofile(self.before[0])
        sys.settrace(self.before[1])

    def _moment(self, frame, event, _):
        if event in ("call", "c_return") and concerned(frame.f_code):
            self.seen += 1
            if self.seen == self.first:
                signal.raise_signal(signal.SIGINT)

    def _again(self, frame, event, _):
        # A way of its own, because what a profile function raises ends its calls.
        if 0 < self.first <= self.seen and concerned(frame.f_code):
            self.since += 1
            if self.since == self.second:
                signal.raise_signal(signal.SIGINT)


def nothing():
    pass


def applied(model, folder):
    with random_edit(model).applied(model):
        nothing()


def nested(model, folder):
    with random_edit(model).applied(model):
        on_top = random_edit(model, kn.NeuronSet(list(NEURONS)[:2]), seed=1)
        with on_top.applied(model), random_edit(model, kn.NeuronSet([(2, 5)])).applied(model):
            nothing()


def exported(model, folder):
    kn.export(model, [random_edit(model), random_edit(model, kn.NeuronSet([(2, 5)]))], folder / "edited")


def updated(model, folder):
    kn.update_effects(model, {SHORT[1]: "Tokyo"}, sets_of(SHORT))


def erased(model, folder):
    kn.erase_effects(model, kn.make_prompts(model, SHORT[1:]), sets_of(SHORT))


def hooked(model, folder):
    kn.measure(model, kn.make_prompts(model, FACTS[:1]), random_edit(model))


def resumed(model, folder):
    host = kn.host_of(model)
    with host.skip_blocks_below(1, torch.zeros(1, 4, host.d_model, dtype=host.dtype)):
        host.logits(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))


WAYS = (applied, nested, exported, updated, erased, hooked, resumed)


def everything(model):
    of_process = {"SIGINT": signal.getsignal(signal.SIGINT), "device": torch.ones(1).device}
    return state_of(model) | state_of_torch() | of_process


def can_be_locked(model):
    """Return whether another thread can have the model: whether no call of this one holds it still."""
    with ThreadPoolExecutor(1) as pool:
        lock = lock_of(model)
        return pool.submit(lambda: lock.acquire(blocking=False) and not lock.release()).result()


@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_at_any_moment_restores_the_model(way, presses, tmp_path):
    model = loaded("GPT2LMHeadModel")
    way(model, tmp_path)  # what is computed once is there
    shutil.rmtree(tmp_path / "edited", ignore_errors=True)
    before, whole = everything(model), Keyboard(0)
    with whole:
        way(model, tmp_path)
    n = whole.seen
    moments = [*range(n - LAST + 1, n + 1), *range(1, n - LAST, -(-n // SPREAD))]
    kept = []
    for number, moment in enumerate(moments):
        for attempt in range(10):
            folder = tmp_path / f"{number}-{attempt}"
            folder.mkdir()
            keyboard = Keyboard(moment, 1 + 5 * number % 18 if presses == 2 else 0)
            try:
                with keyboard:
                    way(model, folder)
            except KeyboardInterrupt as interrupt:  # kept, as notebooks keep it, with all that its frames hold
                kept.append(interrupt)
            left = differences(before, everything(model))
            assert can_be_locked(model), (moment - n, keyboard.second)
            assert not left, (moment - n, keyboard.second, left)
            if len(kept) > number:
                break
            assert keyboard.seen < moment, "an interrupt was lost"
            moment -= n - keyboard.seen  # this time there was less beside, such as collected garbage: aim anew
    assert len(kept) == len(moments)


def test_an_interrupt_in_the_last_operation_of_a_block():
    """Python handles signals after calls, not after such an operation: the interrupt comes while the block ends."""
    model, numbers = loaded("GPT2LMHeadModel"), torch.randn(1200, 1200, dtype=torch.float64)
    before, handler = everything(model), signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt) as kept, random_edit(model).applied(model):
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                numbers @ numbers
            assert kept and not differences(before, everything(model))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_held_signals_are_all_handled_afterwards():
    handled = []

    def stop(number, _):
        handled.append(number)
        raise ZeroDivisionError

    both = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(one, stop) for one in both]
    try:
        with pytest.raises(ZeroDivisionError), held(), held():
            for one in both:
                signal.raise_signal(one)
            assert not handled
        assert sorted(handled) == sorted(both)
        assert all(signal.getsignal(one) is stop for one in both)
    finally:
        for one, handler in zip(both, before, strict=True):
            signal.signal(one, handler)


def test_another_thread_has_no_signals_to_hold():
    with ThreadPoolExecutor(1) as pool:
        model = loaded("GPT2LMHeadModel")
        before = everything(model)
        pool.submit(applied, model, None).result()
        assert not differences(before, everything(model))


@pytest.mark.parametrize("fails_to_undo", [False, True])
def test_a_failed_change_is_undone_and_its_error_raised(fails_to_undo):
    done = []

    def do():
        done.append(1)
        raise ZeroDivisionError

    def undo():
        done.clear()
        if fails_to_undo:
            raise LookupError

    with pytest.raises(LookupError if fails_to_undo else ZeroDivisionError), undone(do, undo):
        pass
    assert not done
