"""Callers' modes of PyTorch change no result, and one thread at a time has a model."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import fields
from threading import Event, Thread
from typing import get_args

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import kn_lens as kn
from kn_lens._core.names import Method
from kn_lens.hosts.exclusive import exclusively, lock_of
from tests.reliability.state import unchanged
from tests.tiny import loaded, tiny_checkpoint, tiny_hf_model, tiny_model

FACTS = kn.FactSet(
    [
        kn.Fact("Ireland", "P36", "Dublin", ("The capital of [X] is [Y].", "[X] is led from [Y]")),
        kn.Fact("France", "P36", "Paris", ("The capital of [X] is [Y].", "[X] is led from [Y]")),
    ]
)
NEURONS = kn.NeuronSet([(1, 2), (2, 3)])
MODES = {
    "inference": [lambda: torch.inference_mode()],
    "no gradients": [lambda: torch.no_grad()],
    "autocast": [lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    "both": [lambda: torch.inference_mode(), lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
}


def everything(model):
    prompts = kn.make_prompts(model, FACTS, unknown_answers="leave_out")
    attr = kn.attribute(model, prompts)
    parts = [part.scores for _, part in kn.attribute_in_parts(model, prompts)]
    edit = kn.erase_neurons(model, NEURONS)
    with edit.applied(model):
        erased = kn.predict(model, prompts)
    return attr.scores, attr.total, *parts, kn.measure(model, prompts, kn.Suppress(NEURONS)), erased


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other) and not one.is_inference()
        else:
            assert one.equals(other)


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_results_are_those_without_the_callers_modes(architecture, name):
    model = loaded(architecture)
    expected = everything(model)
    with unchanged(model), ExitStack() as stack:
        for mode in MODES[name]:
            stack.enter_context(mode())
        found = everything(model)
        assert torch.is_inference_mode_enabled() == (name in ("inference", "both"))
        assert torch.is_autocast_enabled("cpu") == (name in ("autocast", "both"))
    assert_same(found, expected)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_results_of_a_model_with_trainable_weights_hold_no_graph(architecture, tmp_path):
    """As of a bridge that TransformerLens has just made."""
    frozen, trainable = loaded(architecture), tiny_model(architecture)
    trainable.requires_grad_(True)
    prompts = kn.make_prompts(frozen, FACTS, unknown_answers="leave_out")
    kn.predict(trainable, prompts)  # TransformerLens readies some modules when they first run
    for method in get_args(Method):
        neurons = NEURONS if method == "single_path" else None
        expected = kn.attribute(frozen, prompts, method=method, neurons=neurons)
        with unchanged(trainable):
            found = kn.attribute(trainable, prompts, method=method, neurons=neurons)
        for field in fields(found):
            value = getattr(found, field.name)
            if isinstance(value, torch.Tensor):
                assert not value.requires_grad, (method, field.name)
                torch.testing.assert_close(value, getattr(expected, field.name), rtol=0, atol=0, equal_nan=True)
    (_, part), *_ = kn.attribute_in_parts(trainable, prompts)
    assert not part.scores.requires_grad
    kn.attribute_to_file(trainable, tmp_path / "scores.safetensors", prompts, keep=0.5)
    assert kn.attribute(trainable, prompts)._repr_html_()


def test_an_edit_is_applied_under_autocast_too(tmp_path):
    """Whether its rows are all that is multiplied with is seen in the model's own precision."""
    model = kn.load_model(tiny_checkpoint("GPT2LMHeadModel", tmp_path), device="cpu")  # float32, which autocast lowers
    with torch.autocast("cpu", dtype=torch.bfloat16), kn.erase_neurons(model, NEURONS).applied(model):
        assert not kn.host_of(model).W_out(1)[2].any()


def test_tokens_and_models_made_in_inference_mode(tmp_path):
    tiny_checkpoint("GPT2LMHeadModel", tmp_path)
    batch = {"tokens": [[8, 9, 10, 11], [9, 8, 11, 10]], "read_pos": [3, 3], "target_ids": [12, 13]}
    with torch.inference_mode():
        model = kn.load_model(tmp_path, dtype=torch.float64, device="cpu")
        prompts = kn.PromptBatch.from_tokens(**{name: torch.tensor(value) for name, value in batch.items()})
        inside = kn.attribute(model, prompts)
    plain = kn.PromptBatch.from_tokens(**{name: torch.tensor(value) for name, value in batch.items()})
    assert torch.equal(inside.scores, kn.attribute(model, plain).scores)
    with kn.erase_neurons(model, NEURONS).applied(model):
        pass

    with torch.inference_mode():
        hf_model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=20)).eval()
    with pytest.raises(kn.UnsupportedModelError, match=r"inference_mode.* outside"):
        kn.load_model(hf_model)


def test_threads_that_share_a_model_get_what_each_gets_alone():
    model = loaded("GPT2LMHeadModel")
    expected = everything(model)
    with unchanged(model), ThreadPoolExecutor(4) as pool:
        for found in pool.map(everything_but_edits, [model] * 12):
            assert_same(found, expected[:-1])


def everything_but_edits(model):
    """Without the edit that is applied between calls: what others compute meanwhile is for their caller to see to."""
    prompts = kn.make_prompts(model, FACTS, unknown_answers="leave_out")
    attr = kn.attribute(model, prompts)
    parts = [part.scores for _, part in kn.attribute_in_parts(model, prompts)]
    return attr.scores, attr.total, *parts, kn.measure(model, prompts, kn.Suppress(NEURONS))


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_a_call_waits_for_the_one_before_and_none_waits_for_itself(architecture):
    model, entered = loaded(architecture), Event()

    def call():
        kn.predict(model, kn.make_prompts(model, FACTS, unknown_answers="leave_out"))
        entered.set()

    with exclusively(model), exclusively(kn.host_of(model)):
        thread = Thread(target=call)
        thread.start()
        assert not entered.wait(0.2)
        call()  # the same thread goes on
        entered.clear()
    thread.join(30)
    assert entered.is_set()


def test_an_error_gives_the_lock_back_and_the_model_does_not_hold_it():
    model = loaded("GPT2LMHeadModel")
    with pytest.raises(kn.ArgumentError):
        kn.attribute(model, kn.make_prompts(model, FACTS, unknown_answers="leave_out"), method="nothing")

    def take_and_give_back():
        taken = lock_of(model).acquire(timeout=5)
        if taken:
            lock_of(model).release()
        return taken

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(take_and_give_back).result()
    assert not any(isinstance(value, type(lock_of(model))) for value in vars(model).values())


def test_a_wrong_call_is_reported_in_the_functions_own_name():
    with pytest.raises(TypeError, match=r"attribute\(\)"):
        kn.attribute(model=None, nothing=1)  # pyright: ignore
    with pytest.raises(kn.UnsupportedModelError):
        kn.attribute("world-bert", None)  # pyright: ignore


def test_models_are_loaded_in_several_threads(tmp_path):
    """transformers sets the default type of the whole process while it reads a model."""
    directory = tiny_checkpoint("GPT2LMHeadModel", tmp_path)
    dtypes = [torch.float64, torch.float32, torch.bfloat16] * 3
    with ThreadPoolExecutor(len(dtypes)) as pool:
        loaded_models = pool.map(lambda dtype: kn.load_model(directory, dtype=dtype, check=False), dtypes)
        for model, dtype in zip(loaded_models, dtypes, strict=True):
            assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_a_model_in_memory_is_wrapped_once_by_several_threads():
    hf_model = tiny_hf_model("GPT2LMHeadModel")

    def load(_):
        try:
            return type(kn.load_model(hf_model)).__name__
        except kn.UnsupportedModelError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        results = sorted(pool.map(load, range(3)))
    wrapped = "This GPT2LMHeadModel is wrapped by TransformerLens already"
    assert results[0].startswith(wrapped) and results[1].startswith(wrapped)
    assert results[2] == "TransformerBridge"
