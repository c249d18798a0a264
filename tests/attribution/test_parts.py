"""Attribution in parts: joined parts equal the whole; facts and relations can be kept together."""

import pytest
import torch

import kn_lens as kn
from kn_lens.attribution import parts
from tests.tiny import COUNTRIES, D_MLP, N_LAYERS, loaded

TEMPLATES = ("The capital of [X] is [Y].", "In fact, [X] has its seat of government in [Y]", "[X] is led from [Y].")
FACTS = [
    kn.Fact(country, f"P{number % 2}", capital, TEMPLATES)
    for number, (country, capital) in enumerate(COUNTRIES.items())
]


@pytest.fixture(scope="module")
def model():
    return loaded("GPT2LMHeadModel")


@pytest.fixture(scope="module")
def prompts(model):
    return kn.make_prompts(model, FACTS)


@pytest.mark.parametrize("keep", [None, 0.1])
@pytest.mark.parametrize("together", [None, "fact", "relation"])
def test_joined_parts_equal_the_whole_attribution(model, prompts, monkeypatch, together, keep):
    monkeypatch.setattr(parts, "SCORES_PER_PART", 7 * N_LAYERS * D_MLP)  # two facts and a prompt
    whole = kn.attribute(model, prompts, keep=keep)
    seen, progress = [], []
    for numbers, part in kn.attribute_in_parts(
        model, prompts, together=together, keep=keep, progress=lambda *done: progress.append(done)
    ):
        seen += numbers.tolist()
        assert part.keep == keep and part.prompts.text == prompts.select(numbers).text
        expected = whole.scores.to_dense()[numbers]
        torch.testing.assert_close(part.scores.to_dense(), expected, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(part.expected, whole.expected[numbers], rtol=1e-9, atol=1e-14)
    assert sorted(seen) == list(range(len(prompts)))
    total = len(prompts) * N_LAYERS
    assert progress == sorted(progress) and progress[-1] == (total, total)


def test_parts_hold_whole_facts_or_relations_and_are_bounded(model, prompts, monkeypatch):
    monkeypatch.setattr(parts, "SCORES_PER_PART", 7 * N_LAYERS * D_MLP)

    def sizes(together):
        owners = []
        for _, part in kn.attribute_in_parts(model, prompts, together=together, method="activation"):
            facts = [part.prompts.fact(number) for number in range(len(part.prompts))]
            owners.append({fact.key if together == "fact" else fact.relation for fact in facts})
        for number, owner in enumerate(owners):
            assert all(owner.isdisjoint(other) for other in owners[number + 1 :])
        return [len(owner) for owner in owners]

    assert sizes("fact") == [2, 2, 2, 2]
    assert sizes("relation") == [1, 1]  # one relation at least, however many scores it has
    with pytest.raises(kn.ArgumentError, match="'fact', 'relation' or None"):
        kn.attribute_in_parts(model, prompts, together="facts")


def test_arguments_are_checked_before_the_first_part_is_asked_for(model, prompts):
    with pytest.raises(kn.ArgumentError, match="at least one layer"):
        kn.attribute_in_parts(model, prompts, layers=[])
