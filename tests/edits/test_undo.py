"""Undo restores every bit, in any order of edits, after interrupts, and after changes of the mode of the model."""

import signal
import sys
from contextlib import contextmanager
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens._core.interrupts import SIGNALS
from tests.edit_cases import bits, random_edit, same
from tests.tiny import loaded, tiny_model

POOL = [(0, 3), (0, 4), (1, 0), (1, 7), (2, 23)]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["make", "apply", "undo", "force", "enter", "exit", "raise"]),
        st.integers(0, 5),
        st.sets(st.sampled_from(POOL), min_size=1, max_size=3),
    ),
    max_size=30,
)


class Boom(Exception):
    pass


@settings(max_examples=50, deadline=None)
@given(operations=OPERATIONS)
def test_any_interleaving_of_edits_is_undone_bit_for_bit(operations):
    """An oracle keeps the rows as bytes: allowed steps change exactly these, and refused steps change nothing."""
    model = loaded("BertForMaskedLM")
    host = kn.host_of(model)
    before = bits(model)

    def now():
        return {pair: host.W_out(pair[0])[pair[1]].numpy().tobytes() for pair in POOL}

    def rows(edit, values):
        return {(n.layer, n.index): row.numpy().tobytes() for n, row in zip(edit.neurons, values, strict=True)}

    rest = now()
    made, contexts = [random_edit(model, kn.NeuronSet(POOL[:2]))], []

    def expect(allowed, action, result):
        expected = now() | (result if allowed else {})
        if allowed:
            value = action()
        else:
            with pytest.raises(kn.EditError):
                action()
            value = None
        assert now() == expected
        return value

    def leave(error):
        context, old, new = contexts.pop()
        current = now().items()
        expect(new.items() <= current or old.items() <= current, lambda: context.__exit__(*error), old)

    for seed, (operation, number, neurons) in enumerate(operations):
        edit = made[number % len(made)]
        old, new = rows(edit, edit.old), rows(edit, edit.new)
        fits = old.items() <= now().items()
        if operation == "make":
            made.append(random_edit(model, kn.NeuronSet(neurons), seed))
        elif operation == "apply":
            expect(fits, lambda edit=edit: edit.apply_(model), new)
        elif operation == "force":
            made.append(expect(True, lambda edit=edit: edit.apply_(model, force=True), new))
        elif operation == "undo":
            expect(new.items() <= now().items(), lambda edit=edit: edit.undo_(model), old)
        elif operation == "enter":
            context = edit.applied(model)
            if expect(fits, context.__enter__, new):
                contexts.append((context, old, new))
        elif operation in ("exit", "raise") and contexts:
            leave((Boom, Boom(), None) if operation == "raise" else (None, None, None))
    while contexts:
        leave((None, None, None))
    # Whatever is left, writing the first values back by force makes the model what it was.
    clean = torch.stack([torch.frombuffer(bytearray(rest[pair]), dtype=torch.float64) for pair in sorted(POOL)])
    kn.WeightEdit.of(model, kn.NeuronSet(POOL), clean).apply_(model)
    assert same(before, bits(model))


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(4)), data=st.data())
def test_edits_of_different_rows_are_undone_in_any_order(order, data):
    model = loaded("GPT2LMHeadModel")
    before = bits(model)
    stacked = [random_edit(model, kn.NeuronSet([(i % 3, i), (1, 10 + i)]), seed=i) for i in range(4)]
    for edit in data.draw(st.permutations(stacked)):
        edit.apply_(model)
    for i in order:
        stacked[i].undo_(model)
    assert same(before, bits(model))


def test_edits_of_the_same_row_are_undone_last_first():
    model = loaded("BertForMaskedLM")
    before = bits(model)
    first = random_edit(model)
    with pytest.raises(kn.EditError, match=r"cannot be undone: 1 of 4 rows, such as L1N0, of .* last first"):
        with first.applied(model):
            second = random_edit(model, kn.NeuronSet([(1, 0)]), seed=1)
            second.apply_(model)
    second.undo_(model)
    first.undo_(model)
    assert same(before, bits(model))


@contextmanager
def interrupt_at(line, filenames):
    """Raise KeyboardInterrupt before the given line, counted over all lines that run in these files."""
    n_seen = 0

    def trace(frame, event, _):
        nonlocal n_seen
        if frame.f_code.co_filename not in filenames:
            return None
        n_seen += event == "line"
        if event == "line" and n_seen == line:
            raise KeyboardInterrupt
        return trace

    tracer = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(tracer)
        torch.set_grad_enabled(True)  # the interrupt may have come while torch was switching it


@pytest.mark.parametrize("action", ["apply", "undo", "with"])
def test_an_interrupt_anywhere_leaves_a_whole_edit_or_none(action):
    """The interrupt comes before each line of the modules that write, in turn."""
    model = loaded("GPT2LMHeadModel")
    edit = random_edit(model, kn.NeuronSet([(0, 3), (2, 23)]))  # two layers: what is half written differs from both
    without = bits(model)
    with edit.applied(model):
        within = bits(model)
    handlers = [signal.getsignal(number) for number in SIGNALS]

    def block():
        with edit.applied(model):
            pass

    run = {"apply": lambda: edit.apply_(model), "undo": lambda: edit.undo_(model), "with": block}[action]
    written = ("edits.weight_edit", "edits.value_rows", "_core.interrupts")
    filenames = {sys.modules[f"kn_lens.{name}"].__file__ for name in written}
    for line in count(1):
        if action == "undo":
            edit.apply_(model)
        interrupted = False
        try:
            with interrupt_at(line, filenames):
                run()
        except KeyboardInterrupt:
            interrupted = True
        assert [signal.getsignal(number) for number in SIGNALS] == handlers, line
        current = bits(model)
        assert same(current, without) or (same(current, within) and action != "with"), line
        if not same(current, without):
            edit.undo_(model)
        if not interrupted:
            break
    assert line > 20 and same(without, bits(model))


def test_a_model_may_change_its_mode_while_an_edit_is_applied():
    model = tiny_model("BertForMaskedLM")
    before = bits(model)
    with random_edit(model).applied(model):
        model.train()
    assert same(before, bits(model))


def test_weights_that_require_gradients_can_be_edited():
    model = tiny_model("BertForMaskedLM")
    model.requires_grad_(True)
    before = bits(model)
    with random_edit(model).applied(model):
        assert not same(before, bits(model))
    assert same(before, bits(model))
