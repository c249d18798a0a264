"""Prompts and facts that are left out before the model runs, and how they are counted and named."""

import pytest
import torch

import kn_lens as kn
from tests.tiny import COUNTRIES, loaded, tiny_hf_model, tiny_model, tiny_tokenizer

WORDINGS = ("The capital of [X] is [Y].", "In fact, [X] has its seat of government in [Y]", "[X]'s capital city, [Y].")
FACTS = [
    kn.Fact("Ireland", "P36", "Dublin", WORDINGS),
    kn.Fact("Peru", "P36", "Lima", WORDINGS[:2]),
    kn.Fact("Japan", "P36", "Tokyo", (*WORDINGS[:2], "[Y] is the capital of [X].")),
]


def test_facts_with_too_few_prompts_are_left_out_before_the_model_runs():
    model = loaded("GPT2LMHeadModel")
    prompts = kn.make_prompts(model, FACTS)
    assert prompts.prompts_per_fact() == dict(zip(FACTS, (3, 2, 2), strict=True))
    enough = kn.make_prompts(model, FACTS, min_prompts=3)
    assert enough.prompts_per_fact() == dict(zip(FACTS, (3, 0, 0), strict=True))
    assert enough.left_out == {"object not last": 1, "fact with fewer than 3 prompts": 4}
    assert torch.equal(enough.tokens, prompts.select([0, 1, 2]).tokens) and enough.text == prompts.text[:3]
    # It is what refining leaves out.
    refined = kn.refine(kn.attribute(model, prompts))
    assert refined == kn.refine(kn.attribute(model, enough)) and refined.left_out == {FACTS[1]: 2, FACTS[2]: 2}
    with pytest.raises(kn.NoPromptError, match=r"fact with fewer than 4 prompts: 7"):
        kn.make_prompts(model, FACTS, min_prompts=4)


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "3"])
def test_a_min_prompts_that_is_not_a_positive_whole_number_is_refused(bad):
    with pytest.raises(kn.ArgumentError, match="min_prompts"):
        kn.make_prompts(loaded(), FACTS, min_prompts=bad)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_prompts_with_tokens_without_embeddings_can_be_left_out(architecture):
    """Both answers and words of the prompt may be tokens that the model has no embedding for."""
    tokenizer = tiny_tokenizer(architecture)
    facts = [kn.Fact(country, "P36", capital, WORDINGS) for country, capital in COUNTRIES.items()]
    whole = kn.make_prompts(loaded(architecture), facts)
    highest = torch.stack([torch.maximum(whole.tokens.max(1).values, whole.target_ids)]).squeeze(0)
    d_vocab = int(highest.sort().values[len(highest) // 2])
    small = kn.load_model(tiny_hf_model(architecture, vocab_size=d_vocab), tokenizer=tokenizer)
    with pytest.raises(kn.PromptError, match=rf"but the model has {d_vocab} tokens.*unknown_answers='leave_out'"):
        kn.make_prompts(small, facts)
    prompts = kn.make_prompts(small, facts, unknown_answers="leave_out")
    fits = (highest < d_vocab).nonzero().squeeze(1)
    assert 0 < len(fits) < len(whole) and prompts.text == tuple(whole.text[i] for i in fits.tolist())
    assert prompts.left_out == {"token beyond the model's vocabulary": len(whole) - len(fits)}
    assert len(kn.predict(small, prompts, k=1)) == prompts.n_rows


def test_an_answer_inside_an_unknown_word_is_reported_as_sharing_a_token():
    """The answer is in the vocabulary, so that a similar word would be no remedy."""
    model = tiny_model()
    fact = kn.Fact("Ireland", "P36", "Dublin", ("The capital of [X] is Ж[Y]Ж.",))
    assert kn.make_prompts(model, fact, templates="The capital of [X] is [Y].").text
    with pytest.raises(kn.PromptError, match="shares a token with the text beside it") as caught:
        kn.make_prompts(model, fact)
    assert "Did you mean" not in str(caught.value)
    left_out = {"answer shares a token with the text beside it": 1}
    other = kn.Fact("Ireland", "P36", "Dublin", (*fact.templates, *WORDINGS))
    assert kn.make_prompts(model, other, unknown_answers="leave_out").left_out == left_out


def test_did_you_mean_never_proposes_the_name_itself():
    from kn_lens.errors import did_you_mean

    assert did_you_mean("Dublin", ["Dublin"]) == ""
    assert did_you_mean("Dublin", ["Dublin", "Dubline"]) == " Did you mean 'Dubline'?"
