"""Applied edits: equal by weights and by hooks in every family, their composition, and what is refused."""

import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kn_lens as kn
from tests.edit_cases import FACTS, IRELAND, NEURONS, bits, changed_rows, logits, random_edit, same
from tests.tiny import CAUSAL, D_MLP, D_MODEL, MASKED, loaded, tiny_model

SINGLE = ("GPTNeoForCausalLM", "GPTJForCausalLM", "MptForCausalLM")


@pytest.mark.parametrize("architecture", MASKED + CAUSAL)
def test_an_edit_in_every_family(architecture):
    """Edits act on the live weights, are exact and reversible, equal their hooks, and with zeros equal suppression."""
    model = loaded(architecture)
    before, clean = bits(model), logits(model)
    edit = random_edit(model)
    by_hooks = logits(model, edit.hooks(model))
    assert same(before, bits(model))
    with edit.applied(model) as in_force:
        by_weights = logits(model)
        host = kn.host_of(model)
        for neuron, row in zip(edit.neurons, edit.new, strict=True):
            assert torch.equal(host.W_out(neuron.layer)[neuron.index], row)
    assert in_force is edit
    assert same(before, bits(model)) and torch.equal(clean, logits(model))
    # GPT-Neo, GPT-J and MPT take their softmax in float32.
    close = {"atol": 1e-5, "rtol": 0} if architecture in SINGLE else {"atol": 1e-9, "rtol": 0}
    torch.testing.assert_close(by_hooks, by_weights, **close)
    assert (by_weights - clean).abs().max() > 1e-3

    erased = kn.erase_neurons(model, NEURONS)
    prompts = kn.make_prompts(model, FACTS)
    with torch.no_grad(), erased.applied(model):
        zeroed = host.logits(prompts.tokens, prompts.attention_mask)
    with torch.no_grad():
        off = host.logits(
            prompts.tokens,
            prompts.attention_mask,
            fwd_hooks=kn.Suppress(NEURONS, position="all").hooks(model, prompts),
        )
    torch.testing.assert_close(zeroed, off, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_exact_too(dtype):
    model = tiny_model("LlamaForCausalLM", dtype=dtype)
    before = bits(model)
    edit = kn.update_fact(model, IRELAND, "Tokyo", NEURONS, allow_unknown=True)
    hooked = logits(model, edit.hooks(model))
    with edit.applied(model):
        torch.testing.assert_close(hooked, logits(model), atol=60 * torch.finfo(dtype).eps, rtol=0.05)
    assert same(before, bits(model))


# --- composing -------------------------------------------------------------------------------------------


def test_a_sum_of_edits_equals_both_edits_applied():
    model = loaded("BertForMaskedLM")
    before = bits(model)
    first, apart = random_edit(model), random_edit(model, kn.NeuronSet([(0, 0), (2, 1)]), seed=2)
    with first.applied(model):
        on_top = random_edit(model, kn.NeuronSet([(1, 0), (2, 2)]), seed=1)
    for other in (apart, on_top):
        with first.applied(model), other.applied(model):
            expected = bits(model)
        total = first + other
        with total.applied(model):
            assert same(expected, bits(model))
        assert total.neurons == first.neurons | other.neurons and total.why == first.why + other.why
    assert ((first + on_top) + apart).digest != (first + apart).digest
    assert same(before, bits(model))
    with pytest.raises(kn.EditError, match="Both edits change the row L1N0"):
        on_top + first


@settings(max_examples=40, deadline=None)
@given(factor=st.floats(-8, 8))
def test_scaling_multiplies_the_change(factor):
    edit = random_edit(loaded("BertForMaskedLM"))
    scaled = edit.scaled(factor)
    torch.testing.assert_close(scaled.new - scaled.old, factor * (edit.new - edit.old), atol=1e-12, rtol=1e-9)
    assert torch.equal(edit.scaled(1).new, edit.new) and torch.equal(edit.scaled(0).new, edit.old)
    assert scaled.why[-1] == {"kind": "scale", "factor": factor}


def test_scaling_an_update_scales_its_lambdas():
    model = loaded("BertForMaskedLM")
    once = kn.update_fact(model, IRELAND, "Tokyo", NEURONS, lambdas=(1, 4), allow_unknown=True)
    twice = kn.update_fact(model, IRELAND, "Tokyo", NEURONS, lambdas=(2, 8), allow_unknown=True)
    torch.testing.assert_close(once.scaled(2.0).new, twice.new, atol=1e-12, rtol=0)


def test_a_restricted_edit_and_its_rest_add_up():
    model = loaded("BertForMaskedLM")
    edit = random_edit(model)
    part, rest = edit.restricted_to([(1, 0), (2, 23), (2, 5)]), edit.restricted_to(NEURONS - [(1, 0), (2, 23)])
    assert part.neurons == kn.NeuronSet([(1, 0), (2, 23)]) and torch.equal(part.new, edit.new[[1, 3]])
    both = part + rest
    assert torch.equal(both.new, edit.new) and torch.equal(both.old, edit.old)
    assert part.why == (*edit.why, {"kind": "restrict", "n_neurons": 2})
    with pytest.raises(kn.EditError, match="none of the 1 neurons"):
        edit.restricted_to([(0, 0)])


def test_measure_takes_an_edit_as_an_intervention():
    model = loaded("LlamaForCausalLM")
    prompts = kn.make_prompts(model, FACTS)
    edit = random_edit(model)
    effect = kn.measure(model, prompts, edit)
    with edit.applied(model):
        after = kn.measure(model, prompts, [])
    assert effect.after.to_numpy() == pytest.approx(after.before.to_numpy(), rel=1e-9)
    assert (effect.change.abs() > 1e-6).any()


def test_hooks_of_an_edit_see_activations_changed_by_earlier_hooks():
    model = loaded("GPT2LMHeadModel")
    prompts = kn.make_prompts(model, IRELAND)
    edit = random_edit(model)
    off = kn.Suppress(NEURONS, position="all")
    neither = kn.measure(model, prompts, [off, edit])
    assert neither.after.to_numpy() == pytest.approx(kn.measure(model, prompts, off).after.to_numpy(), rel=1e-9)


def test_hooks_of_an_edit_work_in_pairs():
    """Each layer's second hook adds what its first has read in the same pass, and nothing from an earlier pass."""
    model = loaded("GPT2LMHeadModel")
    edit = random_edit(model)
    hooks = edit.hooks(model)
    assert len(hooks) == 2 * 3
    by_hooks = logits(model, hooks)
    for alone in hooks[1::2]:
        with pytest.raises(kn.HookError, match=r"blocks.\d.mlp.hook_post did not run"):
            logits(model, [alone])
    assert torch.equal(logits(model, hooks), by_hooks)


# --- what is refused -------------------------------------------------------------------------------------


def test_zeros_of_either_sign_are_other_rows():
    """They are equal as numbers; an edit is exact in the bits."""
    model = loaded("BertForMaskedLM")
    before, neurons = bits(model), kn.NeuronSet([(1, 0)])
    with kn.erase_neurons(model, neurons).applied(model):
        erased = bits(model)
        negative = kn.WeightEdit.of(model, neurons, torch.full((1, D_MODEL), -0.0))
        with pytest.raises(kn.EditError, match="is not applied"):
            negative.undo_(model)
        with negative.applied(model):
            assert not same(erased, bits(model))
        assert same(erased, bits(model))
    assert same(before, bits(model))


def test_an_edit_is_applied_once():
    model = loaded("BertForMaskedLM")
    edit = random_edit(model)
    with edit.applied(model):
        with pytest.raises(kn.EditError, match="applied to this model already"):
            edit.apply_(model)
        with pytest.raises(kn.EditError, match="applied to this model already"):
            edit.hooks(model)


def test_one_row_with_another_value_is_enough_to_refuse_an_edit():
    model = loaded("BertForMaskedLM")
    edit = random_edit(model)
    with random_edit(model, kn.NeuronSet([(1, 0)]), seed=1).applied(model):
        within = bits(model)
        with pytest.raises(kn.EditError, match=r"made for other rows: 1 of 4 rows, such as L1N0,"):
            edit.apply_(model)
        assert same(within, bits(model))


def test_an_edit_in_force_in_part_is_neither_applied_nor_undone():
    model = loaded("BertForMaskedLM")
    before = bits(model)
    edit = random_edit(model)
    part = edit.restricted_to([(1, 0)])
    with part.applied(model):
        with pytest.raises(kn.EditError, match=r"made for other rows: 1 of 4 rows, such as L1N0,"):
            edit.apply_(model)
    edit.apply_(model)
    part.undo_(model)
    with pytest.raises(kn.EditError, match=r"cannot be undone: 1 of 4 rows, such as L1N0,"):
        edit.undo_(model)
    part.apply_(model)
    edit.undo_(model)
    assert same(before, bits(model))


def test_another_checkpoint_is_refused_unless_forced_and_comes_back():
    edit = random_edit(loaded("BertForMaskedLM"))
    other = tiny_model("BertForMaskedLM", seed=1)
    before = bits(other)
    for use in (edit.apply_, edit.hooks, lambda model: edit.applied(model).__enter__()):
        with pytest.raises(kn.EditError, match=r"4 of 4 rows, such as L0N3, .* force=True"):
            use(other)
    assert same(before, bits(other))
    forced = edit.apply_(other, force=True)
    assert changed_rows(other, tiny_model("BertForMaskedLM", seed=1)) == NEURONS
    assert torch.equal(forced.new, edit.new) and not torch.equal(forced.old, edit.old)
    forced.undo_(other)
    assert same(before, bits(other))
    with edit.applied(other, force=True):
        assert not same(before, bits(other))
    assert same(before, bits(other))


def test_another_type_or_shape_is_refused():
    edit = random_edit(loaded("BertForMaskedLM"))
    half = tiny_model("BertForMaskedLM", dtype=torch.bfloat16)
    before = bits(half)
    with pytest.raises(kn.EditError, match=r"float64.*bfloat16.*force=True"):
        edit.apply_(half)
    with edit.applied(half, force=True) as forced:
        assert forced.checkpoint.dtype == "bfloat16" and torch.equal(forced.new, edit.new.bfloat16())
    assert same(before, bits(half))
    wider = tiny_model("BertForMaskedLM", intermediate_size=D_MLP + 1)
    for force in (False, True):
        with pytest.raises(kn.EditError, match=f"3 layers of {D_MLP} x 16.*{D_MLP + 1} x 16"):
            edit.apply_(wider, force=force)


@pytest.mark.parametrize(
    "use, error, message",
    [
        (
            lambda model: kn.WeightEdit.of(model, NEURONS, torch.zeros(4, 3)),
            kn.EditError,
            r"\[4, 3\] .*; expected \[4, 16\]",
        ),
        (
            lambda model: kn.WeightEdit.of(model, NEURONS, torch.zeros(4, D_MODEL), [{"a": object()}]),
            kn.ArgumentError,
            "JSON",
        ),
        (lambda model: random_edit(model).scaled(float("nan")), kn.ArgumentError, "finite number"),
        (lambda model: random_edit(model).scaled(True), kn.ArgumentError, "finite number"),
        (lambda model: random_edit(model).scaled("2"), kn.ArgumentError, "finite number"),
        (lambda model: random_edit(model).scaled(1e308), kn.EditError, "new row of L0N3 is not finite"),
        (lambda model: random_edit(model) + 1, TypeError, "unsupported operand"),
        (
            lambda model: replace(random_edit(model), neurons=kn.NeuronSet([(0, 3), (1, 0), (1, 7), (3, 0)])),
            kn.EditError,
            f"the row L3N0; .* has 3 layers of {D_MLP} x 16",
        ),
        (
            lambda model: replace(random_edit(model), neurons=kn.NeuronSet([(0, 3), (1, 0), (1, 7), (2, D_MLP)])),
            kn.EditError,
            f"the row L2N{D_MLP}; ",
        ),
        (lambda model: random_edit(model).undo_(model), kn.EditError, "is not applied"),
    ],
)
def test_invalid_edits_are_refused(use, error, message):
    model = loaded("BertForMaskedLM")
    before = bits(model)
    with pytest.raises(error, match=message):
        use(model)
    assert same(before, bits(model))


# --- cost ------------------------------------------------------------------------------------------------


def test_a_thousand_rows_cost_less_than_a_forward_pass():
    from transformers import BertConfig, BertForMaskedLM

    model = kn.load_model(BertForMaskedLM(BertConfig()).eval())
    host = kn.host_of(model)
    neurons = kn.NeuronSet((i % 12, 3 * i) for i in range(1000))
    edit = kn.erase_neurons(model, neurons)
    tokens = torch.full((1, 12), 7)

    def seconds(action):
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    def forward():
        with torch.no_grad():
            host.logits(tokens, torch.ones_like(tokens))

    actions = (lambda: edit.apply_(model), lambda: edit.undo_(model), forward)
    times = [[seconds(action) for action in actions] for _ in range(5)]
    applying, undoing, passing = (min(column) for column in zip(*times, strict=True))
    assert max(applying, undoing) < passing
