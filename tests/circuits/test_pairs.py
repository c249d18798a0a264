import pytest
import torch

import kn_lens as kn
from kn_lens.circuits.pairs import NO_COUNTERFACTUAL
from tests.prompts_of_tokens import batch_of


@pytest.fixture(scope="module")
def model():
    return kn.load_model("world-gpt2")


@pytest.fixture(scope="module")
def facts():
    return [fact for fact in kn.FactSet.world() if fact.relation == "P36"][:20]


def test_pairs_differ_in_the_subject_alone(model, facts):
    pairs = kn.counterfactual_pairs(model, facts)
    assert len(pairs) > 50
    for number in range(len(pairs)):
        clean, other = pairs.clean, pairs.counterfactual
        assert clean.template[number] == other.template[number]
        assert clean.fact(number).relation == other.fact(number).relation
        assert clean.fact(number).subject != other.fact(number).subject
        assert clean.length[number] == other.length[number]
        assert clean.target_ids[number] != clean.contrast_ids[number] == other.target_ids[number]
    tokens_differ = (pairs.clean.tokens != pairs.counterfactual.tokens).sum(-1)
    assert bool((tokens_differ >= 1).all())


def test_prompts_without_a_partner_are_counted(model, facts):
    alone = kn.counterfactual_pairs(model, facts[:2], others=facts)
    n_prompts = len(kn.make_prompts(model, facts[:2]))
    assert len(alone) + sum(alone.left_out.values()) == n_prompts
    with pytest.raises(kn.NoPromptError, match=NO_COUNTERFACTUAL):
        kn.counterfactual_pairs(model, facts[0])


def test_known_keeps_pairs_whose_answers_the_model_prefers(model, facts):
    pairs = kn.counterfactual_pairs(model, facts[:4])
    known = kn.counterfactual_pairs(model, facts[:4], known=True)
    expected = []
    for number in range(len(pairs)):
        read_pos, values = int(pairs.clean.read_pos[number]), []
        for prompts in (pairs.clean, pairs.counterfactual):
            with torch.no_grad():
                logits = model.original_model(prompts.tokens[[number]]).logits[0, read_pos]
            values.append(logits[pairs.clean.target_ids[number]] - logits[pairs.clean.contrast_ids[number]])
        if values[0] > 0 > values[1]:
            expected.append(pairs.clean.text[number])
    assert list(known.clean.text) == expected
    assert 0 < len(known) <= len(pairs)


def test_misaligned_prompts_are_refused():
    clean = batch_of(torch.tensor([[5, 6, 7]]), contrast_ids=torch.tensor([3]))
    for counterfactual, message in (
        (batch_of(torch.tensor([[5, 6, 7, 8]])), "another length"),
        (batch_of(torch.tensor([[5, 6, 7], [5, 6, 8]])), "1 clean and 2"),
    ):
        with pytest.raises(kn.ArgumentError, match=message):
            kn.PromptPairs(clean=clean, counterfactual=counterfactual, left_out={})
    with pytest.raises(kn.ArgumentError, match="contrast_ids"):
        kn.PromptPairs(clean=batch_of(torch.tensor([[5, 6, 7]])), counterfactual=clean, left_out={})
