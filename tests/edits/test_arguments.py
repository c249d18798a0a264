"""Arguments of a wrong type: an error that names the right call, before the model runs."""

import pytest
import torch

import kn_lens as kn
from tests.edit_cases import FACTS, IRELAND, NEURONS, bits, random_edit, same
from tests.tiny import D_MODEL, loaded

SETS = {IRELAND: NEURONS}
NEW = {IRELAND: "Tokyo"}
NEW_ROWS = torch.zeros(len(NEURONS), D_MODEL)


def prompts_of(model):
    return kn.make_prompts(model, FACTS[:2])


# Each case: a call with one argument of a wrong kind, and what its message says.
MAKING = {
    "sets for neurons": (
        lambda m: kn.update_fact(m, IRELAND, "Tokyo", SETS),
        r"mapping of 1 fact as neurons; .* neurons\[fact\]",
    ),
    "a number for neurons": (
        lambda m: kn.update_fact(m, IRELAND, "Tokyo", 7),
        r"an int as neurons; .* kn_lens.NeuronSet\(\['L2N7'\]\)",
    ),
    "facts for neurons": (
        lambda m: kn.update_fact(m, IRELAND, "Tokyo", FACTS),
        r"Got Fact\(.*expected a neuron: its name 'L9N1234'",
    ),
    "object and neurons exchanged": (
        lambda m: kn.update_fact(m, IRELAND, NEURONS, "Tokyo"),
        "'Tokyo' is not the name of a neuron",
    ),
    "subject for fact": (
        lambda m: kn.update_fact(m, "Ireland", "Tokyo", NEURONS),
        r"the text '.*' as fact; .* facts.find\('Ireland', 'P36'\)",
    ),
    "several facts": (
        lambda m: kn.update_fact(m, [IRELAND], "Tokyo", NEURONS),
        "a list as fact",
    ),
    "neurons for sets": (
        lambda m: kn.update_fact(m, IRELAND, "Tokyo", NEURONS, neurons_by_fact=NEURONS),
        r"a NeuronSet as neurons_by_fact; .* \{fact: neurons\}",
    ),
    "sets to erase": (
        lambda m: kn.erase_neurons(m, SETS),
        r"mapping of 1 fact as neurons; .* neurons\[fact\]",
    ),
    "neurons for a relation": (
        lambda m: kn.erase_relation(m, NEURONS),
        r"a NeuronSet as neurons_by_fact; .* \{fact: neurons\}",
    ),
    "keys for facts": (
        lambda m: kn.erase_relation(m, {"P36/Ireland/Dublin": NEURONS}),
        r"maps a str to a NeuronSet; .* kn_lens.match_facts\(sets, facts\)",
    ),
    "sets of an edit": (
        lambda m: kn.WeightEdit.of(m, SETS, NEW_ROWS),
        r"mapping of 1 fact as neurons; .* neurons\[fact\]",
    ),
    "rows and neurons exchanged": (
        lambda m: kn.WeightEdit.of(m, NEW_ROWS, NEURONS),
        "a Tensor as neurons",
    ),
    "lists for rows": (
        lambda m: kn.WeightEdit.of(m, NEURONS, NEW_ROWS.tolist()),
        r"a list as new rows; .* torch.tensor\(rows\)",
    ),
}
USING = {
    "sets to restrict to": (
        lambda m: random_edit(m).restricted_to(SETS),
        r"mapping of 1 fact as neurons; .* neurons\[fact\]",
    ),
    "a number to restrict to": (
        lambda m: random_edit(m).restricted_to(7),
        "an int as neurons; expected a NeuronSet",
    ),
    "no path": (
        lambda m: random_edit(m).save(None),
        "None as path; expected the name of a file or folder, or a Path",
    ),
    "an edit to load": (
        lambda m: kn.WeightEdit.load(random_edit(m)),
        "a WeightEdit as path; expected the name of a file or folder, or a Path",
    ),
    "directory and edit exchanged": (
        lambda m: kn.export(m, "edited", random_edit(m)),
        r"the text '.*' as edits; .* kn_lens.export\(model, edit, directory\)",
    ),
    "edits by fact": (
        lambda m: kn.export(m, {IRELAND: random_edit(m)}, "edited"),
        "a dict as edits; expected a WeightEdit or a list",
    ),
    "a fact among edits": (
        lambda m: kn.export(m, [IRELAND], "edited"),
        "Got a Fact as one of the edits; expected WeightEdits alone",
    ),
    "no directory": (
        lambda m: kn.export(m, random_edit(m), None),
        "None as directory",
    ),
}
MEASURING = {
    "fact and object": (
        lambda m: kn.update_effects(m, IRELAND, "Tokyo"),
        r"a Fact as new_objects; .* \{fact: 'Tokyo'\}",
    ),
    "subjects for facts": (
        lambda m: kn.update_effects(m, {"Ireland": "Tokyo"}, SETS),
        r"a dict as new_objects; .* \{fact: 'Tokyo'\}",
    ),
    "one set": (
        lambda m: kn.update_effects(m, NEW, NEURONS),
        r"a NeuronSet as neurons_by_fact; .* \{fact: neurons\}",
    ),
    "pairs by fact": (
        lambda m: kn.update_effects(m, NEW, {IRELAND: [(2, 7)]}),
        "maps a Fact to a list",
    ),
    "one active set": (
        lambda m: kn.update_effects(m, NEW, SETS, NEURONS),
        "a NeuronSet as activation_neurons",
    ),
    "questions without a name": (
        lambda m: kn.update_effects(m, NEW, SETS, questions=kn.reworded([IRELAND], NEW)),
        r"another kind than questions; .* \{'synonym': \{fact: kn_lens.Question\(fact, 'Edo'\)\}\}",
    ),
    "answers for questions": (
        lambda m: kn.update_effects(m, NEW, SETS, questions={"synonym": {IRELAND: "Edo"}}),
        "another kind than questions",
    ),
    "a list of questions": (
        lambda m: kn.update_effects(m, NEW, SETS, questions=[kn.Question(IRELAND, "Edo")]),
        r"a list as questions; .* \{'held out': kn_lens.reworded\(facts, new_objects\)\}",
    ),
    "facts for others": (
        lambda m: kn.update_effects(m, NEW, SETS, others=FACTS),
        r"a tuple as others; .* kn_lens.make_prompts\(model, facts\)",
    ),
    "one dose": (
        lambda m: kn.update_effects(m, NEW, SETS, doses=1.0),
        r"doses=1.0; expected factors, such as \[1.0\]",
    ),
    "facts for prompts": (
        lambda m: kn.erase_effects(m, FACTS, SETS),
        r"a tuple as prompts; .* kn_lens.make_prompts\(model, facts\)",
    ),
    "one set to erase": (
        lambda m: kn.erase_effects(m, prompts_of(m), NEURONS),
        "a NeuronSet as neurons_by_fact",
    ),
    "one set to choose by": (
        lambda m: kn.choose_lambdas(m, NEW, NEURONS, prompts_of(m)),
        "a NeuronSet as neurons_by_fact",
    ),
    "facts for others to choose by": (
        lambda m: kn.choose_lambdas(m, NEW, SETS, FACTS),
        "a tuple as others",
    ),
    "prompts for held-out facts": (
        lambda m: kn.choose_lambdas(m, NEW, SETS, prompts_of(m), held_out=prompts_of(m)),
        "a PromptBatch as facts; expected several",
    ),
    "updates and facts exchanged": (
        lambda m: kn.reworded(NEW, FACTS),
        "a tuple as new_objects",
    ),
    "one inverse relation": (
        lambda m: kn.inverse_questions(FACTS, NEW, "P1376"),
        r"inverse='P1376'; .* \{'P36': 'P1376'\}",
    ),
    "an edit for its effects": (
        lambda m: kn.edit_table(random_edit(m)),
        "a WeightEdit as effects; expected the table of kn_lens.update_effects",
    ),
}


CALLS = MAKING | USING | MEASURING


@pytest.mark.parametrize("call, message", CALLS.values(), ids=CALLS)
def test_the_error_of_a_wrong_argument_type_names_the_right_call(no_passes, call, message):
    before = bits(no_passes)
    with pytest.raises(kn.ArgumentError, match=message):
        call(no_passes)
    assert same(before, bits(no_passes))


@pytest.mark.parametrize("wrong", ["world-bert", None, NEURONS])
def test_an_edit_is_applied_to_models_only(wrong):
    edit = random_edit(loaded("BertForMaskedLM"))
    for use in (edit.apply_, edit.undo_, edit.applied, edit.hooks):
        with pytest.raises(kn.UnsupportedModelError, match=r"expected a TransformerLens model: kn_lens.load_model"):
            use(wrong)
