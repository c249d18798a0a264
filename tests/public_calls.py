"""Every public function and method that takes a model, called on a tiny one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

import kn_lens as kn

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
        run_pass(case)


def run_pass(case: Case) -> None:
    """Run the model as its user would."""
    prompts = case.prompts
    if prompts.encoder_tokens is None:
        case.model(prompts.tokens, attention_mask=prompts.attention_mask)
    else:
        mask = prompts.encoder_attention_mask
        case.model(prompts.encoder_tokens, attention_mask=mask, decoder_input_ids=prompts.tokens)


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


def moments_of(case: Case) -> kn.SecondMoments:
    return kn.second_moments(case.model, [fact.subject for fact in FACTS], layers=[0])


def taken_back(case: Case) -> None:
    kn.undo_any_(case.model, [case.edit.apply_(case.model)], 0)


def edit_by(case: Case, editor: Any, **how: Any) -> kn.WeightEdit:
    return editor(moments=moments_of(case), n_steps=2, **how).edit(case.model, {IRELAND: "Paris"})


def where_supported(call: Callable[[Case], Any]) -> Callable[[Case], Any]:
    """Return a call that models which it does not support refuse."""

    def tried(case: Case) -> Any:
        try:
            return call(case)
        except kn.UnsupportedModelError:
            return None

    return tried


def pairs_of(case: Case) -> kn.PromptPairs:
    """Two prompts of the model's vocabulary that differ in one token."""
    clean, other = torch.tensor([[5, 6, 7, 8], [5, 9, 7, 8]])[:, None]
    read_pos = torch.tensor([3])
    answers = torch.tensor([10]), torch.tensor([11])
    return kn.PromptPairs(
        clean=kn.PromptBatch.from_tokens(clean, read_pos=read_pos, target_ids=answers[0], contrast_ids=answers[1]),
        counterfactual=kn.PromptBatch.from_tokens(other, read_pos=read_pos, target_ids=answers[1]),
        left_out={},
    )


QUESTIONS = {"reworded": kn.reworded(FACTS[:2], {IRELAND: "Paris", FRANCE: "Lima"})}
CALLS: dict[str, list[Callable[[Case], Any]]] = {
    "check_host": [lambda case: kn.check_host(case.model)],
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
        lambda case: list(kn.attribute_in_parts(case.model, case.prompts, layers=[1], tolerance=0.1, memory_budget=1)),
        lambda case: list(kn.attribute_in_parts(case.model, case.prompts, layers=[1], tolerance=0.1, together="fact")),
    ],
    "reference_attribution": [lambda case: kn.reference_attribution(case.model, case.prompts, 1, n_steps=2)],
    "attribute_to_file": [
        lambda case: kn.attribute_to_file(case.model, case.folder / "scores.parquet", case.prompts, tolerance=0.1)
    ],
    "find": [
        lambda case: kn.find(case.model, FACTS[:2], tolerance=0.1, min_prompts=1),
        lambda case: kn.find(case.model, "The capital of France is [Y].", " Paris", tolerance=0.1),
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
    "degenerate_sets": [
        lambda case: kn.degenerate_sets(case.model, case.prompts, NEURONS, NEURONS, share=0.9),
        lambda case: kn.degenerate_sets(case.model, case.prompts, NEURONS, enumerate_up_to=1),
    ],
    "counterfactual_pairs": [lambda case: kn.counterfactual_pairs(case.model, FACTS)],
    "circuit_scores": [where_supported(lambda case: kn.circuit_scores(case.model, pairs_of(case), n_steps=2))],
    "find_circuits": [
        where_supported(lambda case: kn.find_circuits(case.model, pairs_of(case), share=0.2, edges=True)),
        where_supported(lambda case: kn.find_circuits(case.model, pairs_of(case), share=0.1, selection="greedy")),
    ],
    "faithfulness": [
        where_supported(
            lambda case: kn.faithfulness(case.model, kn.circuit_scores(case.model, pairs_of(case)), sizes=[1, 9])
        )
    ],
    "direct_effects": [
        where_supported(lambda case: kn.direct_effects(case.model, pairs_of(case).clean, kn.NeuronNode(1, 2, 3)))
    ],
    "query_neurons": [
        where_supported(lambda case: kn.query_neurons(case.model, pairs_of(case).clean, n_values=2, values="mlp"))
    ],
    "update_fact": [lambda case: kn.update_fact(case.model, IRELAND, "Paris", SOME, allow_unknown=True)],
    "second_moments": [where_supported(lambda case: moments_of(case))],
    "SecondMoments.check_for": [where_supported(lambda case: moments_of(case).check_for(case.model, [0]))],
    "ROME.edit": [where_supported(lambda case: edit_by(case, kn.ROME, layer=0))],
    "MEMIT.edit": [where_supported(lambda case: edit_by(case, kn.MEMIT, layers=[0]))],
    "AlphaEdit.edit": [where_supported(lambda case: edit_by(case, kn.AlphaEdit, layers=[0], threshold=1.0))],
    "FT.edit": [where_supported(lambda case: kn.FT(n_steps=2).edit(case.model, {IRELAND: "Paris"}))],
    "KN.edit": [lambda case: kn.KN(neurons=NEURONS).edit(case.model, {IRELAND: "Paris"})],
    "undo_any_": [taken_back],
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
    "compare_edits": [
        where_supported(
            lambda case: kn.compare_edits(
                case.model, {IRELAND: "Paris"}, [kn.KN(neurons=NEURONS)], others=case.prompts, max_disturbed=0.5
            ).drop(columns="seconds")  # of this run
        )
    ],
    "choose_lambdas": [
        lambda case: kn.choose_lambdas(
            case.model, {IRELAND: "Paris", FRANCE: "Lima"}, NEURONS, case.prompts, grid=[(1, 1), (1, 2)]
        )
    ],
    "NeuronSet.mask": [lambda case: SOME.mask(case.model)],
    "NeuronSet.rows_by_layer": [lambda case: SOME.rows_by_layer(case.model)],
    "write_dataset": [
        lambda case: kn.write_dataset(case.folder / f"sets-{uuid4().hex}", NEURONS, model=case.model),
    ],
    "neuronpedia_url": [lambda case: kn.neuronpedia_url("L0N1", replace(kn.host_of(case.model), name="gpt2"))],
    "NeuronSet.check": [lambda case: SOME.check(case.model)],
    "WeightEdit.of": [lambda case: kn.WeightEdit.of(case.model, SOME, torch.zeros(3, case.edit.old.shape[1]))],
    "WeightEdit.changes": [lambda case: case.edit.changes(case.model)],
    "WeightEdit.applied": [applied],
    "WeightEdit.apply_": [applied_and_undone],
    "WeightEdit.undo_": [applied_and_undone],
}  # fmt: skip
"""Every public function and method that takes a model, called."""
