"""What results of circuits show in a terminal, progress bars, and the message on prompts in the place of pairs."""

import pytest

import kn_lens as kn
from tests.tiny import COUNTRIES, loaded

FACTS = [
    kn.Fact(country, "P36", capital, ("The capital of [X] is [Y].",))
    for country, capital in list(COUNTRIES.items())[:4]
]


@pytest.fixture(scope="module")
def pairs():
    return kn.counterfactual_pairs(loaded("GPT2LMHeadModel"), FACTS).select([0])


def test_results_show_what_they_are_and_no_tensors(pairs):
    model = loaded("GPT2LMHeadModel")
    scores = kn.circuit_scores(model, pairs)
    results = [
        scores,
        kn.faithfulness(model, scores, sizes=[1, 4]),
        kn.direct_effects(model, pairs.clean),
        kn.query_neurons(model, pairs.clean)[0],
    ]
    for result in results:
        assert repr(result).startswith(f"{type(result).__name__}(") and "tensor" not in repr(result)
        assert len(repr(result)) < 200
    assert "1 pair" in repr(scores) and "circuits of 1 to 4 nodes" in repr(results[1])


@pytest.mark.parametrize("name", ["circuit_scores", "find_circuits", "query_neurons", "faithfulness"])
def test_true_draws_a_bar_and_a_function_is_called(name, pairs):
    model, seen = loaded("GPT2LMHeadModel"), []
    argument = pairs.clean if name == "query_neurons" else pairs
    if name == "faithfulness":
        argument = kn.circuit_scores(model, pairs)
    getattr(kn, name)(model, argument, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (1, 1)
    getattr(kn, name)(model, argument, progress=True)


def test_prompts_are_no_pairs(pairs):
    with pytest.raises(kn.ArgumentError, match=r"Got a PromptBatch as pairs; expected PromptPairs: kn_lens.counterfac"):
        kn.circuit_scores(loaded("GPT2LMHeadModel"), pairs.clean)
