"""Arguments that are easy to mix up: an error of one sentence that names the right call, before the model runs."""

import inspect
from pathlib import Path

import pytest

import kn_lens as kn
from kn_lens.cli._facts import detect_format
from tests.effects import FACTS
from tests.tiny import tiny_model

NEURONS = kn.NeuronSet([(0, 1)])
SETS = {FACTS[0]: NEURONS}
EXPECTED_PROMPTS = r"expected a PromptBatch: kn_lens.make_prompts\(model, facts\)"
EXPECTED_INTERVENTION = r"expected an intervention: kn_lens.Suppress\(neurons\)"
EXPECTED_ATTRIBUTION = r"expected an Attribution: kn_lens.attribute\(model, prompts\)"
EXPECTED_TOKENIZER = "Got the text 'llama' as tokenizer; expected a Hugging Face tokenizer"

REFUSED_ELSEWHERE = {"load_model", "check_host", "host_of"}
"""Functions that take a model alone: tests/hosts/test_refused_models.py."""

CASES = {
    "neurons as an intervention": (
        lambda model, prompts: kn.measure(model, prompts, NEURONS),
        f"Got a NeuronSet; {EXPECTED_INTERVENTION}",
    ),
    "a class as an intervention": (
        lambda model, prompts: kn.measure(model, prompts, kn.Suppress),
        EXPECTED_INTERVENTION,
    ),
    "hooks as interventions": (
        lambda model, prompts: kn.measure(model, prompts, kn.Suppress(NEURONS).hooks(model, prompts)),
        f"Got a tuple; {EXPECTED_INTERVENTION}",
    ),
    "measure: swapped": (
        lambda model, prompts: kn.measure(model, kn.Suppress(NEURONS), prompts),
        f"Got a Suppress as prompts; {EXPECTED_PROMPTS}",
    ),
    "measure: model after prompts": (
        lambda model, prompts: kn.measure(prompts, model, kn.Suppress(NEURONS)),
        "Got a PromptBatch; expected a TransformerLens model",
    ),
    "measure: tokenizer": (
        lambda model, prompts: kn.measure(model, prompts, kn.Suppress(NEURONS), tokenizer="llama"),
        EXPECTED_TOKENIZER,
    ),
    "controlled_effects: facts": (lambda model, prompts: kn.controlled_effects(model, FACTS, SETS), EXPECTED_PROMPTS),
    "controlled_effects: one set": (
        lambda model, prompts: kn.controlled_effects(model, prompts, NEURONS),
        r"expected a mapping from facts to NeuronSets",
    ),
    "controlled_effects: an intervention": (
        lambda model, prompts: kn.controlled_effects(model, prompts, SETS, intervene=kn.Suppress(NEURONS)),
        "Got a Suppress as intervene; expected a function",
    ),
    "degenerate_sets: facts": (lambda model, prompts: kn.degenerate_sets(model, FACTS, SETS), EXPECTED_PROMPTS),
    "degenerate_sets: one set": (
        lambda model, prompts: kn.degenerate_sets(model, prompts, NEURONS),
        r"expected a mapping from facts to NeuronSets",
    ),
    "hooks: facts": (lambda model, prompts: kn.Suppress(NEURONS).hooks(model, FACTS), EXPECTED_PROMPTS),
    "attribute: facts": (lambda model, prompts: kn.attribute(model, [FACTS[0]]), EXPECTED_PROMPTS),
    "attribute: a fact": (lambda model, prompts: kn.attribute(model, FACTS[0]), EXPECTED_PROMPTS),
    "attribute: a text": (lambda model, prompts: kn.attribute(model, "Paris is in"), EXPECTED_PROMPTS),
    "attribute_in_parts: facts": (lambda model, prompts: kn.attribute_in_parts(model, FACTS), EXPECTED_PROMPTS),
    "attribute_to_file: facts": (
        lambda model, prompts: kn.attribute_to_file(model, "no-such-file.parquet", FACTS),
        EXPECTED_PROMPTS,
    ),
    "reference: facts": (lambda model, prompts: kn.reference_attribution(model, FACTS, layer=0), EXPECTED_PROMPTS),
    "predict: facts": (lambda model, prompts: kn.predict(model, FACTS), EXPECTED_PROMPTS),
    "predict: tokenizer": (lambda model, prompts: kn.predict(model, prompts, tokenizer="llama"), EXPECTED_TOKENIZER),
    "make_prompts: tokenizer": (
        lambda model, prompts: kn.make_prompts(model, FACTS, tokenizer="llama"),
        EXPECTED_TOKENIZER,
    ),
    "make_prompts: a subject": (
        lambda model, prompts: kn.make_prompts(model, "Ireland"),
        "Got the text 'Ireland'; expected several Facts",
    ),
    "make_prompts: a subject, with templates": (
        lambda model, prompts: kn.make_prompts(model, "Ireland", templates="[X] is [Y]"),
        "Got the text 'Ireland'; expected several Facts",
    ),
    "make_prompts: a number": (lambda model, prompts: kn.make_prompts(model, 1), "Got an int; expected several Facts"),
    "find: a subject": (
        lambda model, prompts: kn.find(model, "Ireland"),
        r"Got the text 'Ireland' without an answer; expected kn_lens.find\(model, 'The capital of France is \[MASK\].'",
    ),
    "find: swapped": (
        lambda model, prompts: kn.find(FACTS, model),
        "expected a TransformerLens model",
    ),
    "refine: scores": (lambda model, prompts: kn.refine(prompts.tokens), f"Got a Tensor; {EXPECTED_ATTRIBUTION}"),
    "consistency: sets": (lambda model, prompts: kn.consistency(SETS), EXPECTED_ATTRIBUTION),
    "consistency: prompts": (lambda model, prompts: kn.consistency(prompts), EXPECTED_ATTRIBUTION),
    "language_neurons: scores": (
        lambda model, prompts: kn.language_neurons(prompts.tokens),
        "Got a Tensor as neurons_by_fact; expected",
    ),
    "language_neurons: facts of one language": (
        lambda model, prompts: kn.language_neurons(SETS),
        "expected a fact with both",
    ),
    "translated_questions: swapped": (
        lambda model, prompts: kn.translated_questions({FACTS[0]: "Rome"}, FACTS),
        "expected",
    ),
    "coarse: scores": (lambda model, prompts: kn.coarse(prompts.tokens), EXPECTED_ATTRIBUTION),
    "refine_by_relation: prompts": (lambda model, prompts: kn.refine_by_relation(prompts), EXPECTED_ATTRIBUTION),
    "activation_neurons: scores": (
        lambda model, prompts: kn.activation_neurons(prompts.tokens, SETS),
        EXPECTED_ATTRIBUTION,
    ),
    "matched_neurons: scores": (lambda model, prompts: kn.matched_neurons(prompts.tokens, SETS), EXPECTED_ATTRIBUTION),
    "random_neurons: swapped": (lambda model, prompts: kn.random_neurons(model, NEURONS), "expected a NeuronSet"),
    "attribute: a name for a model": (
        lambda model, prompts: kn.attribute("gpt2", prompts),
        r"Got the text 'gpt2'; expected a TransformerLens model: kn_lens.load_model\('gpt2'\)",
    ),
    "attribute: one layer": (
        lambda model, prompts: kn.attribute(model, prompts, layers=0),
        r"Got an int as layers; expected a list of layers: \[0, 1\]",
    ),
    "attribute: a function as method": (
        lambda model, prompts: kn.attribute(model, prompts, method=kn.coarse),
        "Unknown method <function coarse.*expected one of integrated_gradients",
    ),
    "attribute: a text as tolerance": (
        lambda model, prompts: kn.attribute(model, prompts, tolerance="x"),
        "tolerance='x'; expected a number",
    ),
    "attribute_to_file: swapped": (
        lambda model, prompts: kn.attribute_to_file(model, prompts, "scores.parquet"),
        "Got a PromptBatch as path; expected the name of a file",
    ),
    "read_attribution: facts": (
        lambda model, prompts: kn.read_attribution("scores.parquet", FACTS),
        EXPECTED_PROMPTS,
    ),
    "read_position_attribution: facts": (
        lambda model, prompts: kn.read_position_attribution("scores.parquet", FACTS),
        EXPECTED_PROMPTS,
    ),
    "Suppress: sets by key": (
        lambda model, prompts: kn.Suppress({FACTS[0].key: NEURONS}),
        "Got a dict as neurons; expected a NeuronSet, a mapping from facts",
    ),
    "Amplify: a text as factor": (
        lambda model, prompts: kn.Amplify(NEURONS, factor="2"),
        "factor='2'; expected a number",
    ),
    "effect_table: an attribution": (
        lambda model, prompts: kn.effect_table(NEURONS),
        "Got a NeuronSet as effects; expected the table of kn_lens.controlled_effects",
    ),
    "refine_released: an attribution": (
        lambda model, prompts: kn.refine_released(prompts),
        "Got a PromptBatch as path",
    ),
    "match_facts: one set": (
        lambda model, prompts: kn.match_facts(NEURONS, FACTS),
        r"Got a NeuronSet as sets; .*: kn_lens.NeuronSet.read_many\(path\)",
    ),
    "match_facts: a fact": (
        lambda model, prompts: kn.match_facts({FACTS[0].key: NEURONS}, FACTS[0]),
        "Got a Fact as facts; expected several Facts",
    ),
    "match_facts: a file of facts": (
        lambda model, prompts: kn.match_facts({FACTS[0].key: NEURONS}, "facts.csv"),
        "Got the text 'facts.csv' as facts; expected several Facts",
    ),
    "make_prompts: a number of templates": (
        lambda model, prompts: kn.make_prompts(model, FACTS, templates=1),
        "Got an int as templates; expected a text or several",
    ),
    "make_prompts: a number as contrast": (
        lambda model, prompts: kn.make_prompts(model, FACTS, contrast=1),
        "Got an int as contrast; expected an answer",
    ),
    "select: a fact": (
        lambda model, prompts: prompts.select(FACTS[0]),
        r"Got a Fact as prompts; expected a list of the numbers of prompts: \[0, 1\]",
    ),
    "FactSet: subjects": (
        lambda model, prompts: kn.FactSet(["Ireland"]),
        "Got the text 'Ireland' as one of the facts; expected Facts alone",
    ),
    "find: a fact": (
        lambda model, prompts: kn.FactSet(FACTS).find(FACTS[0]),
        "Got a Fact as subject; expected the name of a subject",
    ),
    "of: a list": (
        lambda model, prompts: kn.FactSet(FACTS).of(["P36"]),
        r"Got a list as relation; expected names of relations: facts.of\('P36', 'capital'\)",
    ),
    "sample: a text": (
        lambda model, prompts: kn.FactSet(FACTS).sample("3", seed=0),
        "n is '3'; expected 0 to",
    ),
    "from_csv: a table": (
        lambda model, prompts: kn.FactSet.from_csv(kn.FactSet(FACTS).to_frame()),
        "Got a DataFrame as path",
    ),
    "from_frame: a file": (
        lambda model, prompts: kn.FactSet.from_frame("facts.csv"),
        r"Got the text 'facts.csv' as frame; expected a table: kn_lens.FactSet.from_csv\(path\)",
    ),
    "NeuronSet.read: a set": (
        lambda model, prompts: kn.NeuronSet.read(NEURONS),
        "Got a NeuronSet as path",
    ),
    "NeuronSet.write_many: swapped": (
        lambda model, prompts: kn.NeuronSet.write_many(SETS, "neurons.json"),
        "Got a dict as path",
    ),
    "NeuronSet.write_many: one set": (
        lambda model, prompts: kn.NeuronSet.write_many("neurons.json", NEURONS),
        r"Got a NeuronSet as sets; expected sets by fact or by name: \{fact: neurons\}",
    ),
    "compare_edits: neurons as editors": (
        lambda model, prompts: kn.compare_edits(model, {FACTS[0]: "Rome"}, SETS),
        r"Got a dict as editors; expected editors: \[kn_lens.KN\(\), kn_lens.FT\(\)\]",
    ),
    "choose_lambdas: a number as grid": (
        lambda model, prompts: kn.choose_lambdas(model, {FACTS[0]: "Rome"}, SETS, prompts, grid=1),
        r"Got an int as grid; expected pairs of lambdas: \[\(1, 1\), \(1, 2\)\]",
    ),
    "EditingData: a list of cases": (
        lambda model, prompts: kn.EditingData.from_counterfact([{}]),
        "Got a list as path; expected",
    ),
    "second_moments: one text": (
        lambda model, prompts: kn.second_moments(model, "Dublin is the capital of Ireland."),
        r"as texts; expected several texts: \['Dublin is the capital of Ireland.', ...\]",
    ),
    "ROME: texts as moments": (
        lambda model, prompts: kn.ROME(moments=["Dublin is the capital of Ireland."]),
        r"Got a list as moments; expected SecondMoments: kn_lens.second_moments\(model, texts\)",
    ),
    "undo_any_: one edit": (
        lambda model, prompts: kn.undo_any_(model, 1, 0),
        r"Got an int as edits; expected the applied edits in order: \[first, second\]",
    ),
    "compare_runs: one run": (
        lambda model, prompts: kn.compare_runs("run"),
        r"Got the text 'run' as runs; expected directories of runs, .*: \['run_a', 'run_b'\]",
    ),
    "compare_runs: models": (
        lambda model, prompts: kn.compare_runs([model, model]),
        "Got a TransformerBridge as path",
    ),
    "reproduce: prompts": (
        lambda model, prompts: kn.reproduce(model, prompts, "run"),
        r"Got a PromptBatch as facts; expected a FactSet: kn_lens.FactSet\(facts\)",
    ),
    "reproduce: a list of facts": (
        lambda model, prompts: kn.reproduce(model, list(FACTS), "run"),
        "Got a list as facts; expected a FactSet",
    ),
    "reproduce: one stage": (
        lambda model, prompts: kn.reproduce(model, kn.FactSet(FACTS), "run", stages="facts"),
        r"Got the text 'facts' as stages; expected a list of stages: \['facts'\]",
    ),
    "write_report: tables": (lambda model, prompts: kn.write_report({"table2": None}), "Got a dict as path"),
    "write_comparison: runs": (
        lambda model, prompts: kn.write_comparison(["run_a", "run_b"], "comparison.html"),
        r"Got a list as comparison; expected a Comparison: kn_lens.compare_runs\(\['run_a', 'run_b'\]\)",
    ),
    "write_figures: tables": (lambda model, prompts: kn.write_figures({"table2": None}), "Got a dict as path"),
    "write_tables: tables": (lambda model, prompts: kn.write_tables({"table2": None}), "Got a dict as path"),
    "read_study: a mapping": (lambda model, prompts: kn.read_study({"models": []}), "Got a dict as path"),
    "run_study: a file": (
        lambda model, prompts: kn.run_study("study.toml", {"world": kn.FactSet(FACTS)}, "study"),
        r"Got the text 'study.toml' as config; expected a StudyConfig: kn_lens.read_study\(path\)",
    ),
    "StudyConfig: one name": (
        lambda model, prompts: kn.StudyConfig(models="world-bert"),
        r"Got the text 'world-bert' as models; expected a list: \[model\]",
    ),
    "StudyConfig: names": (
        lambda model, prompts: kn.StudyConfig(models=["world-bert"]),
        "Got the text 'world-bert' as model; expected a kn_lens.runs.ModelEntry",
    ),
    "neuronpedia_url: swapped": (
        lambda model, prompts: kn.neuronpedia_url(model, "L0N1"),
        r"as neurons; expected a NeuronSet",
    ),
    "write_dataset: one set": (
        lambda model, prompts: kn.write_dataset("sets", NEURONS, model=model),
        r"expected a mapping from facts to NeuronSets",
    ),
    "format_table: an attribution": (
        lambda model, prompts: kn.format_table(NEURONS),
        r"Got a NeuronSet as table; expected a table: kn_lens.effect_table\(effects\)",
    ),
    "easyedit_requests: facts": (
        lambda model, prompts: kn.easyedit_requests(FACTS),
        r"expected a mapping from facts to new objects: \{fact: 'Tokyo'\}",
    ),
    "easyedit_requests: sets as others": (
        lambda model, prompts: kn.easyedit_requests({FACTS[0]: "Tokyo"}, SETS),
        r"expected several Facts, or those that read_easyedit returns",
    ),
    "read_easyedit: one request": (
        lambda model, prompts: kn.read_easyedit({"prompt": "Ireland has the capital"}),
        r"expected a file, or a list of requests",
    ),
    "circuit_scores: prompts": (
        lambda model, prompts: kn.circuit_scores(model, prompts),
        r"Got a PromptBatch as pairs; expected PromptPairs: kn_lens.counterfactual_pairs\(model, facts\)",
    ),
    "find_circuits: prompts": (
        lambda model, prompts: kn.find_circuits(model, prompts),
        r"Got a PromptBatch as pairs; expected PromptPairs",
    ),
    "faithfulness: prompts": (
        lambda model, prompts: kn.faithfulness(model, prompts),
        r"Got a PromptBatch as scores; expected CircuitScores: kn_lens.circuit_scores\(model, pairs\)",
    ),
    "counterfactual_pairs: prompts": (
        lambda model, prompts: kn.counterfactual_pairs(model, prompts),
        r"Got a PromptBatch",
    ),
    "direct_effects: facts": (
        lambda model, prompts: kn.direct_effects(model, kn.FactSet.world()),
        r"Got a FactSet as prompts; expected a PromptBatch: kn_lens.make_prompts\(model, facts\)",
    ),
    "query_neurons: facts": (
        lambda model, prompts: kn.query_neurons(model, kn.FactSet.world()),
        r"Got a FactSet as prompts; expected a PromptBatch: kn_lens.make_prompts\(model, facts\)",
    ),
    "random_neurons: subjects": (
        lambda model, prompts: kn.random_neurons(["Ireland"], model),
        "'Ireland' is not the name of a neuron; expected one such as 'L9N1234'",
    ),
}


@pytest.fixture(scope="module")
def model_and_prompts():
    model = tiny_model()
    return model, kn.make_prompts(model, FACTS)


@pytest.mark.parametrize("name", CASES)
def test_an_argument_of_another_kind_is_refused_before_the_model_runs(name, model_and_prompts):
    call, message = CASES[name]
    model, prompts = model_and_prompts
    passes = []

    def count(tensor, hook):
        passes.append(hook.name)

    with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", count)]), pytest.raises(kn.KNLensError, match=message):
        call(model, prompts)
    assert not passes


def test_a_fact_without_a_set_is_named_in_short(model_and_prompts):
    model, prompts = model_and_prompts
    first = prompts.select((prompts.fact_index == 0).nonzero().flatten())
    neurons = kn.refine(kn.attribute(model, first, method="activation"), min_prompts=1)
    with pytest.raises(
        kn.ArgumentError, match=f"{FACTS[1].key} has no set: the attribution has no prompts of it"
    ) as error:
        neurons[FACTS[1]]
    assert isinstance(error.value, KeyError) and neurons.get(FACTS[1]) is None and FACTS[1] not in neurons
    with pytest.raises(kn.ArgumentError, match="Got the text 'Ireland'; expected a Fact"):
        neurons["Ireland"]


def test_a_text_as_threshold_is_refused(model_and_prompts):
    attr = kn.attribute(*model_and_prompts, method="activation")
    with pytest.raises(kn.ArgumentError, match="attr_threshold='x'; expected a number"):
        kn.refine(attr, attr_threshold="x")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("atribute", "Did you mean 'attribute'?"),
        ("load", "Did you mean 'load_model'?"),
        ("Neurons", "Did you mean 'Neuron"),
        ("suppress", "Did you mean 'Suppress'?"),
        ("xyzzy", r"dir\(kn_lens\) lists what it has"),
    ],
)
def test_a_name_that_the_package_lacks_is_told_with_the_nearest(name, hint):
    with pytest.raises(AttributeError, match=f"kn_lens has no '{name}'. {hint}"):
        getattr(kn, name)


def test_every_public_function_is_called_with_a_wrong_argument():
    called = " ".join(inspect.getsource(call) for call, _ in CASES.values())
    elsewhere = Path(__file__).parents[1].joinpath("edits", "test_arguments.py").read_text(encoding="utf-8")
    for name in kn.__all__:
        if inspect.isfunction(getattr(kn, name)) and name not in REFUSED_ELSEWHERE:
            assert f"kn.{name}(" in called + elsewhere, name


def test_a_template_of_plain_text_in_a_table_is_told_with_its_row(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("subject,relation,object,template\nFrance,P36,Paris,The capital of France is\n")
    with pytest.raises(
        kn.DataError, match=r"facts.csv:2: .*'The capital of France is' holds \[Y\].*expected exactly once"
    ):
        kn.FactSet.from_csv(path)


def test_a_file_with_an_unknown_ending_is_told_with_the_known_ones(tmp_path):
    path = tmp_path / "facts.xlsx"
    path.write_bytes(b"PK")
    with pytest.raises(
        kn.ArgumentError, match=r"'.xlsx' does not determine the format.*--format.*\.jsonl, \.json or \.csv"
    ):
        detect_format(str(path))
