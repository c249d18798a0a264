"""Arguments that are easy to mix up: an error of one sentence that names the right call, before the model runs."""

import pytest

import kn_lens as kn
from tests.effects import FACTS
from tests.tiny import tiny_model

NEURONS = kn.NeuronSet([(0, 1)])
SETS = {FACTS[0]: NEURONS}
EXPECTED_PROMPTS = r"expected a PromptBatch: kn_lens.make_prompts\(model, facts\)"
EXPECTED_INTERVENTION = r"expected an intervention, such as kn_lens.Suppress\(neurons\)"
EXPECTED_ATTRIBUTION = "expected an Attribution"
EXPECTED_TOKENIZER = "tokenizer is a str; expected a Hugging Face tokenizer"

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
        f"Got prompts of type Suppress; {EXPECTED_PROMPTS}",
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
        "Got a string, 'Ireland'; expected several Facts",
    ),
    "make_prompts: a subject, with templates": (
        lambda model, prompts: kn.make_prompts(model, "Ireland", templates="[X] is [Y]"),
        "Got a string, 'Ireland'; expected several Facts",
    ),
    "make_prompts: a number": (lambda model, prompts: kn.make_prompts(model, 1), "Got an int; expected several Facts"),
    "refine: scores": (lambda model, prompts: kn.refine(prompts.tokens), f"Got a Tensor; {EXPECTED_ATTRIBUTION}"),
    "coarse: scores": (lambda model, prompts: kn.coarse(prompts.tokens), EXPECTED_ATTRIBUTION),
    "refine_by_relation: prompts": (lambda model, prompts: kn.refine_by_relation(prompts), EXPECTED_ATTRIBUTION),
    "activation_neurons: scores": (
        lambda model, prompts: kn.activation_neurons(prompts.tokens, SETS),
        EXPECTED_ATTRIBUTION,
    ),
    "matched_neurons: scores": (lambda model, prompts: kn.matched_neurons(prompts.tokens, SETS), EXPECTED_ATTRIBUTION),
    "random_neurons: swapped": (lambda model, prompts: kn.random_neurons(model, NEURONS), "expected a NeuronSet"),
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
    with pytest.raises(kn.ArgumentError, match="Got a str; expected a Fact"):
        neurons["Ireland"]
