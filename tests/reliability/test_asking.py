"""Arbitrary text in facts and templates gives prompts with the tokens of the answer, or an error of the library."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kn_lens import Fact, FactSet, KNLensError
from kn_lens.prompts.build import PromptForm
from kn_lens.prompts.build import build as build_prompts
from tests.reliability.tries import TEXTS, fuzz, taken_or_refused
from tests.tiny import COUNTRIES, tiny_tokenizer

MASKED = ("BertForMaskedLM", "RobertaForMaskedLM", "XLMRobertaForMaskedLM")
CAUSAL = ("GPT2LMHeadModel", "LlamaForCausalLM", "GemmaForCausalLM")
N_CTX = 64

WORDS = st.sampled_from([*COUNTRIES, *COUNTRIES.values(), "Paris and Rome", "Dublin.", "(Lima)", "Côte d'Ivoire"])
NAMES = st.one_of(WORDS, WORDS, TEXTS, st.lists(WORDS | TEXTS, max_size=4).map("".join))
PIECES = st.sampled_from(["[X]", "[Y]", "The capital of ", " is ", ".", ", ", "'s", " ", "", "[MASK]", "<mask>", "\n"])
USUAL = st.sampled_from(
    ["The capital of [X] is [Y].", "[Y] is the capital of [X].", "[X] [Y]", "[X] is [Y] ?!", "In fact, [X]:\n[Y]"]
)
TEMPLATES = st.booleans().flatmap(lambda usual: USUAL if usual else st.lists(PIECES | TEXTS, max_size=6).map("".join))


def prompts_of(tokenizer, masked, fact):
    form = PromptForm(
        tokenizer=tokenizer, masked=masked, n_ctx=N_CTX, d_vocab=len(tokenizer), device=torch.device("cpu")
    )
    return build_prompts(form, FactSet([fact]), None, "error")


@pytest.mark.parametrize("name", MASKED + CAUSAL)
@fuzz(usually=120)
@given(subject=NAMES, answer=NAMES, template=TEMPLATES)
def test_prompts_query_the_tokens_of_the_answer(name, subject, answer, template):
    """The oracle tokenizes the whole text: a prompt is a part of it, and the target is the next token."""
    tokenizer, masked = tiny_tokenizer(name), name in MASKED
    made = []

    def make():
        fact = Fact(subject, "r", answer, (template,))
        made.append((fact, prompts_of(tokenizer, masked, fact)))

    taken_or_refused(f"facts made prompts: {'masked' if masked else 'causal'} models", make)
    if not made:
        return
    fact, batch = made[0]
    before, after = (part.replace("[X]", fact.subject) for part in template.split("[Y]"))
    whole = tokenizer(before + fact.object + (after if masked else ""), verbose=False)["input_ids"]
    assert batch.tokens.shape[1] <= N_CTX and len(batch) == 1
    for row in range(batch.n_rows):
        tokens = batch.tokens[row][batch.attention_mask[row] == 1].tolist()
        read, target = int(batch.read_pos[row]), int(batch.target_ids[row])
        assert target not in tokenizer.all_special_ids
        if masked:
            assert tokens[read] == tokenizer.mask_token_id and whole[read] == target
            unlike = [place for place, token in enumerate(tokens) if token != whole[place]]
            assert len(tokens) == len(whole) and unlike == list(range(read, int(batch.read_pos[-1]) + 1))
        else:
            assert [*tokens, target] == whole[: read + 2] and read == len(tokens) - 1


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_in_the_data_is_refused(name):
    tokenizer = tiny_tokenizer(name)
    for subject in (tokenizer.mask_token, f"a {tokenizer.mask_token}"):
        with pytest.raises(KNLensError, match="mask token besides"):
            prompts_of(tokenizer, True, Fact(subject, "r", "Dublin", ("The capital of [X] is [Y].",)))


@pytest.mark.parametrize("name", MASKED + CAUSAL)
@pytest.mark.parametrize("answer", ["[MASK]", "<mask>", "</s>", "<|endoftext|>", "[SEP]", "<unk>", "[UNK]"])
def test_a_special_token_is_refused_as_an_answer(name, answer):
    """A special token of another tokenizer is ordinary text."""
    tokenizer = tiny_tokenizer(name)
    if answer in tokenizer.all_special_tokens:
        with pytest.raises(KNLensError, match="not in the vocabulary"):
            prompts_of(tokenizer, name in MASKED, Fact("Peru", "r", answer, ("The capital of [X] is [Y].",)))
