"""Every public call leaves a model unchanged, in bits and hooks, also when the call is stopped half-way."""

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch

import kn_lens as kn
from kn_lens.hosts.exclusive import lock_of
from tests.public_calls import CALLS, FACTS, SOME, Case
from tests.reliability.state import Passes, unchanged
from tests.reliability.tries import TRIED
from tests.tiny import tiny_model

PROTOCOLS = ("Editor", "Intervention")
"""Public classes whose methods are those of others."""


def takes_a_model(function: Any) -> bool:
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return False
    return any(name in ("model", "name_or_model") for name in inspect.signature(function).parameters)


def test_every_public_call_is_listed():
    public = {name: getattr(kn, name) for name in kn.__all__ if name not in PROTOCOLS}
    found = {name for name, one in public.items() if takes_a_model(one)}
    for name, one in public.items():
        if inspect.isclass(one):
            methods = [(inner, getattr(one, inner)) for inner in dir(one) if not inner.startswith("_")]
            found |= {f"{name}.{inner}" for inner, method in methods if takes_a_model(method)}
    assert set(CALLS) == found


TAKE_NO_TIME = {"host_of", "neuronpedia_url", "random_neurons"}
TAKE_NO_TIME |= {"NeuronSet.check", "NeuronSet.mask", "NeuronSet.rows_by_layer"}
"""Those that only look at a model."""


PASSES = Passes()


@pytest.fixture(scope="module", params=["BertForMaskedLM", "GPT2LMHeadModel"])
def model(request):
    model = tiny_model(request.param)
    if request.param == "GPT2LMHeadModel":
        model.requires_grad_(True)  # as of a bridge that TransformerLens has just made
    tokens = torch.tensor([[1, 2, 3]])
    # TransformerLens readies some modules when they first run; transformers adds hooks of its own for the first cache.
    model.run_with_cache(tokens)
    handle = PASSES.on(model)
    yield model
    handle.remove()


@pytest.fixture
def case(model, tmp_path):
    prompts = kn.make_prompts(model, FACTS, unknown_answers="leave_out")
    rows = torch.full((3, kn.host_of(model).d_model), 0.25)
    return Case(model=model, prompts=prompts, edit=kn.WeightEdit.of(model, SOME, rows), folder=tmp_path)


@pytest.fixture
def lock_seen(model):
    """Return a list that gets, at each pass of the model, whether the thread of the pass holds the model's lock."""
    watched, seen = model.blocks[-1].mlp.out, []

    def look(module, args):
        if module is watched:
            seen.append(lock_of(model)._is_owned())

    # On all modules, as one on the model would be a user hook, under which all passes are full ones.
    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    yield seen
    handle.remove()


@pytest.mark.parametrize(
    ("name", "call"),
    [pytest.param(name, one, id=f"{name}-{number}") for name, all in CALLS.items() for number, one in enumerate(all)],
)
def test_a_call_has_the_model_to_itself_and_leaves_it_unchanged(case, name, call, lock_seen, tmp_path):
    """The call returns, or an error or an interrupt is raised in its first pass, its last, or one between.

    Calls that return hooks run nothing yet; the caller keeps other threads from a model with an applied edit.
    """
    with unchanged(case.model), PASSES.stopping(0, RuntimeError):
        call(case)
    if "." not in name and name not in TAKE_NO_TIME:
        assert all(lock_seen)
        assert lock_seen or hasattr(getattr(kn, name), "__wrapped__")
    TRIED["calls on a model", "to the end"] += 1
    n = PASSES.seen
    # No RuntimeError: a pass that tries what a model can do takes that as its answer.
    stops = {1: KeyboardInterrupt, n // 2: ArithmeticError, n: KeyboardInterrupt}
    for at, error in stops.items():
        if not 1 <= at <= n:
            continue
        again = replace(case, folder=tmp_path / f"stopped-{at}")
        again.folder.mkdir()
        with pytest.raises(error, match="in the middle"), unchanged(case.model), PASSES.stopping(at, error):
            call(again)
        TRIED["calls on a model", "stopped"] += 1
