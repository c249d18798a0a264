"""A model leaves every public call as it came, bit by bit and hook by hook, also when the call is stopped half-way."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import kn_lens as kn
from tests.reliability.state import Passes, unchanged
from tests.reliability.tries import TRIED
from tests.tiny import tiny_model

TEMPLATES = ("The capital of [X] is [Y].", "In fact, [X] has its seat of government in [Y]", "[X] is led from [Y].")
CAPITALS = {"Ireland": "Dublin", "France": "Paris"}
FACTS = kn.FactSet(
    [kn.Fact(country, "P36", capital, TEMPLATES) for country, capital in CAPITALS.items()]
    + [kn.Fact(capital, "P1376", country, ("[X] is the capital of [Y].",)) for country, capital in CAPITALS.items()]
)
IRELAND, FRANCE = FACTS[0], FACTS[1]
SOME = kn.NeuronSet([(0, 1), (1, 2), (2, 3)])
OTHERS = kn.NeuronSet([(0, 5), (2, 7)])
NEURONS = {fact: SOME if fact.relation == "P36" else OTHERS for fact in FACTS}


@dataclass(frozen=True)
class Case:
    """What a call is made on."""

    model: Any
    prompts: kn.PromptBatch
    edit: kn.WeightEdit
    folder: Path


def run_hooked(case: Case, intervention: Any) -> None:
    with torch.no_grad(), case.model.hooks(fwd_hooks=intervention.hooks(case.model, case.prompts)):
        case.model(case.prompts.tokens, attention_mask=case.prompts.attention_mask)


def applied(case: Case) -> None:
    with case.edit.applied(case.model):
        kn.predict(case.model, case.prompts)


def applied_and_undone(case: Case) -> None:
    edit = case.edit.apply_(case.model)
    try:
        kn.predict(case.model, case.prompts)
    finally:
        edit.undo_(case.model)


def attribute_by(method: str, **how: Any) -> Callable[[Case], Any]:
    neurons = {"neurons": SOME} if method in ("single_path", "ablation", "log_prob_gain") else {}
    how = {"tolerance": 0.1} | how
    return lambda case: kn.attribute(case.model, case.prompts, method=method, **neurons, **how)


def written(case: Case) -> Path:
    """A file of neurons of the model."""
    path = case.folder / "neurons.json"
    kn.NeuronSet.write_many(path, {"Ireland": SOME}, model=case.model)
    return path


QUESTIONS = {"reworded": kn.reworded(FACTS[:2], {IRELAND: "Paris", FRANCE: "Lima"})}

CALLS: dict[str, list[Callable[[Case], Any]]] = {
    "host_of": [lambda case: kn.host_of(case.model)],
    "load_model": [lambda case: kn.load_model(case.model)],
    "make_prompts": [lambda case: kn.make_prompts(case.model, FACTS, unknown_answers="leave_out")],
    "predict": [lambda case: kn.predict(case.model, case.prompts)],
    "attribute": [
        *map(attribute_by, ("single_path", "activation", "gradient_x_activation", "log_prob_gain", "ablation")),
        attribute_by("integrated_gradients"),
        attribute_by("integrated_gradients", preset="paper", output="logit", keep=0.2),
    ],
    "attribute_in_parts": [
        lambda case: list(kn.attribute_in_parts(case.model, case.prompts, layers=[1], tolerance=0.1, memory_budget=1))
    ],
    "attribute_to_file": [
        lambda case: kn.attribute_to_file(case.model, case.folder / "scores.parquet", case.prompts, tolerance=0.1)
    ],
    "random_neurons": [lambda case: kn.random_neurons(SOME, case.model)],
    "measure": [
        lambda case: kn.measure(case.model, case.prompts, [kn.Suppress(NEURONS), kn.SetTo(OTHERS, 1, position="all")]),
        lambda case: kn.measure(case.model, case.prompts, case.edit),
    ],
    "controlled_effects": [
        lambda case: kn.controlled_effects(
            case.model, case.prompts, NEURONS, NEURONS, intervene={0.0: kn.Suppress, 2.0: kn.Amplify}
        )
    ],
    "update_fact": [lambda case: kn.update_fact(case.model, IRELAND, "Paris", SOME, allow_unknown=True)],
    "update_effects": [
        lambda case: kn.update_effects(
            case.model, {IRELAND: "Paris", FRANCE: "Lima"}, NEURONS, NEURONS, questions=QUESTIONS, others=case.prompts
        )
    ],
    "erase_neurons": [lambda case: kn.erase_neurons(case.model, SOME)],
    "erase_relation": [lambda case: kn.erase_relation(case.model, {IRELAND: SOME, FRANCE: SOME}, top=2)],
    "erase_effects": [lambda case: kn.erase_effects(case.model, case.prompts, NEURONS, NEURONS, top=2)],
    "export": [lambda case: kn.export(case.model, case.edit, case.folder / "exported")],
    "reproduce": [
        lambda case: kn.reproduce(
            case.model, FACTS, case.folder / "run", stages=["effects"], n_resamples=3, attr_threshold=0.5,
            min_prompts=1, quadrature="left", n_steps=2,
        )
    ],
    "Suppress.hooks": [lambda case: run_hooked(case, kn.Suppress(NEURONS))],
    "Amplify.hooks": [lambda case: run_hooked(case, kn.Amplify(SOME, factor=3.0))],
    "SetTo.hooks": [lambda case: run_hooked(case, kn.SetTo(SOME, 1.0, position="all"))],
    "WeightEdit.hooks": [lambda case: run_hooked(case, case.edit)],
    "Suppress.lowest_layers": [lambda case: kn.Suppress(NEURONS).lowest_layers(case.model, case.prompts)],
    "Amplify.lowest_layers": [lambda case: kn.Amplify(NEURONS).lowest_layers(case.model, case.prompts)],
    "SetTo.lowest_layers": [lambda case: kn.SetTo(NEURONS, 0.0).lowest_layers(case.model, case.prompts)],
    "NeuronSet.read": [lambda case: kn.NeuronSet.read(written(case), model=case.model)],
    "NeuronSet.read_many": [lambda case: kn.NeuronSet.read_many(written(case), model=case.model)],
    "choose_lambdas": [
        lambda case: kn.choose_lambdas(
            case.model, {IRELAND: "Paris", FRANCE: "Lima"}, NEURONS, case.prompts, grid=[(1, 1), (1, 2)]
        )
    ],
    "NeuronSet.check": [lambda case: SOME.check(case.model)],
    "WeightEdit.of": [lambda case: kn.WeightEdit.of(case.model, SOME, torch.zeros(3, case.edit.old.shape[1]))],
    "WeightEdit.applied": [applied],
    "WeightEdit.apply_": [applied_and_undone],
    "WeightEdit.undo_": [applied_and_undone],
}  # fmt: skip
"""Every public function and method that takes a model, called."""


def takes_a_model(function: Any) -> bool:
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return False
    return any(name in ("model", "name_or_model") for name in inspect.signature(function).parameters)


def test_every_public_call_is_listed():
    public = {name: getattr(kn, name) for name in kn.__all__ if name != "Intervention"}  # the protocol of the others
    found = {name for name, one in public.items() if takes_a_model(one)}
    for name, one in public.items():
        if inspect.isclass(one):
            methods = [(inner, getattr(one, inner)) for inner in dir(one) if not inner.startswith("_")]
            found |= {f"{name}.{inner}" for inner, method in methods if takes_a_model(method)}
    assert set(CALLS) == found


TAKE_NO_TIME = {"host_of", "random_neurons", "NeuronSet.check"}
"""Those that only look at a model."""


def test_every_public_call_that_runs_a_model_has_it_to_itself():
    """What gives hooks or parts runs nothing yet; applied edits are for the caller to keep other threads from."""
    for name in sorted(set(CALLS) - TAKE_NO_TIME - {"attribute_in_parts"}):
        if "." not in name:
            assert hasattr(getattr(kn, name), "__wrapped__"), name


PASSES = Passes()


@pytest.fixture(scope="module", params=["BertForMaskedLM", "GPT2LMHeadModel"])
def model(request):
    model = tiny_model(request.param)
    tokens = torch.tensor([[1, 2, 3]])
    model.run_with_hooks(tokens, fwd_hooks=[])  # TransformerLens readies some modules when they first run
    handle = PASSES.on(model)
    yield model
    handle.remove()


@pytest.fixture
def case(model, tmp_path):
    prompts = kn.make_prompts(model, FACTS, unknown_answers="leave_out")
    rows = torch.full((3, kn.host_of(model).d_model), 0.25)
    return Case(model=model, prompts=prompts, edit=kn.WeightEdit.of(model, SOME, rows), folder=tmp_path)


@pytest.mark.parametrize(
    "call", [pytest.param(one, id=f"{name}-{number}") for name, all in CALLS.items() for number, one in enumerate(all)]
)
def test_a_call_leaves_nothing_behind(case, call, tmp_path):
    """When it returns, and when an error or an interrupt comes in its first pass, its last, or between."""
    with unchanged(case.model), PASSES.stopping(0, RuntimeError):
        call(case)
    TRIED["calls on a model", "to the end"] += 1
    n = PASSES.seen
    stops = {1: KeyboardInterrupt, n // 2: RuntimeError, n - 1: KeyboardInterrupt, n: RuntimeError}
    for at, error in stops.items():
        if not 1 <= at <= n:
            continue
        again = replace(case, folder=tmp_path / f"stopped-{at}")
        again.folder.mkdir()
        with pytest.raises(error, match="in the middle"), unchanged(case.model), PASSES.stopping(at, error):
            call(again)
        TRIED["calls on a model", "stopped"] += 1
