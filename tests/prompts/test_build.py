"""``make_prompts``: tokens of prompts and answers, what is left out or refused, and independence of the batch."""

import copy
from dataclasses import replace
from importlib import import_module

import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from kn_lens.errors import ArgumentError, DataError, PromptError
from kn_lens.facts.facts import Fact
from kn_lens.hosts import host_of, load_model
from kn_lens.prompts.build import SAME, PromptForm, make_prompts
from kn_lens.prompts.build import build as build_prompts
from kn_lens.prompts.predict import predict
from tests.prompts.cases import (
    CAUSAL,
    FACTS,
    FIRST,
    INSIDE,
    LAST,
    MASKED,
    TOKENIZERS,
    TWO_TOKENS,
    build,
    content,
    mixed,
    quick,
    row,
)
from tests.tiny import memory_for, tiny_hf_model, tiny_model


def text_level(name):
    """Return the tokenizer, changed so that a mask in the text has the tokens around it that a word would have.

    A mask swallows the space before it, and the text after it does not begin like a new sentence.
    """
    tokenizer = copy.deepcopy(TOKENIZERS[name])
    if name != "BertForMaskedLM":
        tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, special=True)})
    if name in ("XLMRobertaForMaskedLM", "CamembertForMaskedLM"):
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


# --- what a prompt is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_prompt_is_the_text_with_a_mask_instead_of_the_answer(name):
    tokenizer = TOKENIZERS[name]
    batch = build(name, FACTS)
    by_text = text_level(name)
    assert len(batch) == batch.n_rows == 3 * len(FACTS) and not batch.left_out
    for i in range(len(batch)):
        fact = batch.fact(i)
        assert batch.text[i] == fact.filled(batch.template[i]).replace("[Y]", tokenizer.mask_token)
        assert row(batch, i) == by_text(batch.text[i]).input_ids
        assert row(batch, i)[batch.read_pos[i]] == tokenizer.mask_token_id
        filled = row(batch, i)
        filled[batch.read_pos[i]] = int(batch.target_ids[i])
        assert filled == tokenizer(fact.filled(batch.template[i]).replace("[Y]", fact.object)).input_ids


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_prompt_ends_where_the_answer_begins(name):
    tokenizer = TOKENIZERS[name]
    batch = build(name, FACTS)
    assert batch.template == (LAST,) * len(FACTS) and batch.left_out == {"object not last": 2 * len(FACTS)}
    for i in range(len(batch)):
        assert batch.text[i] == f"The capital of {batch.fact(i).subject} is"
        assert row(batch, i) == tokenizer(batch.text[i]).input_ids
        assert batch.read_pos[i] == len(row(batch, i)) - 1
        continued = [*row(batch, i), int(batch.target_ids[i])]
        assert continued == tokenizer(f"{batch.text[i]} {batch.fact(i).object}").input_ids


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("BertForMaskedLM", "[CLS]"),
        ("RobertaForMaskedLM", "<s>"),
        ("GPT2LMHeadModel", "The"),
        ("LlamaForCausalLM", "<s>"),
        ("GemmaForCausalLM", "<bos>"),
    ],
)
def test_prompts_begin_with_the_special_tokens_of_the_checkpoint(name, first):
    assert TOKENIZERS[name].convert_ids_to_tokens(row(build(name, FACTS), 0))[0] == first


def test_a_byte_bpe_prompt_begins_with_the_bos_token_of_its_tokenizer():
    plain = TOKENIZERS["GPT2LMHeadModel"]
    opt = transformers.GPT2Tokenizer(
        vocab=plain.get_vocab(), merges=list(_merges(plain)), bos_token="<|endoftext|>", add_bos_token=True
    )
    with_bos, without = (build("GPT2LMHeadModel", FACTS, tokenizer=tokenizer) for tokenizer in (opt, plain))
    assert row(with_bos, 0) == [opt.bos_token_id, *row(without, 0)]
    assert torch.equal(with_bos.read_pos, without.read_pos + 1)
    assert torch.equal(with_bos.target_ids, without.target_ids)


def _merges(tokenizer):
    import json

    return (tuple(merge) for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"])


@pytest.mark.parametrize("name", MASKED + CAUSAL)
def test_an_answer_of_two_tokens_is_teacher_forced(name):
    tokenizer = TOKENIZERS[name]
    batch = build(name, [FACTS[0], TWO_TOKENS, FACTS[1]])
    i = batch.template.index(LAST, 1)  # the second fact's prompt
    assert batch.fact(i) is TWO_TOKENS and batch.rows_per_prompt[i] == 2 and batch.n_rows == len(batch) + 1
    first, second = batch.rows_of([i]).tolist()
    lima, oslo = batch.target_ids[[first, second]].tolist()
    assert tokenizer.decode([lima, oslo]).strip() == "Lima Oslo"
    assert batch.read_pos[second] == batch.read_pos[first] + 1
    if name in MASKED:
        mask = tokenizer.mask_token_id
        start = int(batch.read_pos[first])
        assert row(batch, first)[start : start + 2] == [mask, mask]
        assert row(batch, second)[start : start + 2] == [lima, mask]
        assert row(batch, first) == text_level(name)(batch.text[i]).input_ids
    else:
        assert row(batch, second) == [*row(batch, first), lima]
        assert [*row(batch, second), oslo] == tokenizer("The capital of Peru is Lima Oslo").input_ids


def test_a_space_token_before_the_answer_belongs_to_the_answer():
    tokenizer = TOKENIZERS["XLMRobertaForMaskedLM"]
    batch = build("XLMRobertaForMaskedLM", [Fact("Peru", "r", "is", ("[X] in fact [Y].",))])
    assert tokenizer.convert_ids_to_tokens(batch.target_ids.tolist()) == ["▁", "is"]
    assert row(batch, 0) == text_level("XLMRobertaForMaskedLM")(batch.text[0]).input_ids


@pytest.mark.parametrize("trim_offsets", [True, False])
@pytest.mark.parametrize(("object", "pieces"), [("is", ["Ġ", "i", "s"]), ("é", ["Ġ", "Ã", "©"])])
def test_a_space_token_is_found_with_and_without_trimmed_offsets(trim_offsets, object, pieces):
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import processors

    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    batch = build("GPT2LMHeadModel", [Fact("X", "r", object, ("[X] [Y]", "[X]  [Y]"))], tokenizer=tokenizer)
    assert tokenizer.convert_ids_to_tokens(batch.target_ids.tolist()) == pieces * 2
    assert tokenizer.convert_ids_to_tokens(row(batch, 0)) == ["X"]
    assert tokenizer.convert_ids_to_tokens(row(batch, len(pieces))) == ["X", "Ġ"]  # the other space is the prompt's


def test_only_punctuation_may_follow_the_object_of_a_causal_template():
    patterns = ("[X]: [Y]", "[X]; [Y] .", '[X]: "[Y]".', "[X] - [Y]!\n", "[X]: [Y], and so on", "[Y]: [X]", "[X] [Y]s")
    batch = build("GPT2LMHeadModel", [replace(FACTS[0], templates=patterns)])
    assert batch.template == patterns[:4] and batch.left_out == {"object not last": 3}


def test_templates_that_give_the_same_causal_prompt_give_one_prompt():
    """Otherwise a neuron of this one wording would count as shared by three prompts."""
    fact = Fact("Ireland", "r", "Dublin", ("[X] has [Y].", "In [X] lies [Y]", "[X] has [Y]", "[X] has [Y]!"))
    batch = build("GPT2LMHeadModel", [fact])
    assert batch.template == ("[X] has [Y].", "In [X] lies [Y]") and batch.left_out == {SAME: 2}
    assert len(build("BertForMaskedLM", [fact])) == 4  # which it reads as four
    twice = replace(fact, templates=fact.templates[:1] * 2)
    for name in ("GPT2LMHeadModel", "BertForMaskedLM"):
        assert len(build(name, [twice])) == 1 and build(name, [twice]).left_out == {SAME: 1}


def test_text_after_the_object_does_not_change_the_tokens_of_a_causal_answer():
    """The text 'D.C..' would end in one token for both full stops."""
    one, other = (
        build("GPT2LMHeadModel", [Fact("Peru", "P36", "Lima.", (template,))]) for template in (LAST, LAST.rstrip("."))
    )
    assert content(one)[0][0] == content(other)[0][0]


def test_a_subject_may_contain_the_text_of_a_slot():
    batch = build("BertForMaskedLM", [Fact("[Y] of [X]", "r", "Paris", ("[X] is [Y].", "[Y] is [X]."))])
    assert batch.text == ("[Y] of [X] is [MASK].", "[MASK] is [Y] of [X].")


def test_templates_passed_to_make_prompts_replace_those_of_the_facts():
    model = tiny_model("BertForMaskedLM")
    assert set(make_prompts(model, FACTS[0], templates=LAST).template) == {LAST}
    assert make_prompts(model, FACTS[:2], templates=[LAST, FIRST]).template == (LAST, FIRST) * 2
    assert set(make_prompts(model, FACTS, templates={"P36": [INSIDE]}).template) == {INSIDE}
    with pytest.raises(ArgumentError, match=r"none for relation 'P36'.*Did you mean 'P63'"):
        make_prompts(model, FACTS, templates={"P63": [LAST]})
    with pytest.raises(ArgumentError, match=r"holds \[Y\].* 0 times"):
        make_prompts(model, FACTS, templates=["The capital of [X]"])


# --- contrast answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKED + CAUSAL)
def test_contrast_ids_are_the_tokens_of_the_contrast_in_the_answers_slot(name):
    others = dict(zip(FACTS, [*(fact.object for fact in FACTS[1:]), FACTS[0].object], strict=True))
    batch = build(name, FACTS, contrast=others)
    swapped = build(name, [replace(fact, object=other, uid="swapped") for fact, other in others.items()])
    assert torch.equal(batch.contrast_ids, swapped.target_ids)
    assert torch.equal(batch.tokens, build(name, FACTS).tokens)


def test_a_contrast_answer_of_two_tokens_has_one_token_in_each_row():
    batch = build("BertForMaskedLM", [TWO_TOKENS], contrast="Paris Rome")
    assert TOKENIZERS["BertForMaskedLM"].decode(batch.contrast_ids) == "Paris Rome"


@pytest.mark.parametrize(
    ("contrast", "message"),
    [
        ("Lima Oslo", "it has 2 tokens, and 'Dublin' has 1"),
        ("Łódź", "does not fit P36/Ireland/Dublin .*not in the vocabulary"),
        ("Dublin", "expected another answer than the true one"),
        ({FACTS[0]: "Paris"}, "contrast gives no answer for the fact P36/France/Paris"),
        ({fact: None for fact in FACTS}, "answer of P36/Ireland/Dublin is None"),
    ],
)
def test_a_contrast_answer_that_does_not_fit_is_refused(contrast, message):
    with pytest.raises(PromptError, match=message):
        build("BertForMaskedLM", FACTS, contrast=contrast)


# --- what cannot be queried ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BertForMaskedLM", "XLMRobertaForMaskedLM", "LlamaForCausalLM"])
def test_an_answer_outside_the_vocabulary_is_refused_or_left_out(name):
    facts = [*FACTS[:2], Fact("Poland", "P36", "Łódź", (LAST, FIRST)), Fact("Spain", "P36", "Māñ", (LAST,))]
    with pytest.raises(PromptError, match=r"'Łódź' of P36/Poland/Łódź is not in the vocabulary.* \(2 facts have"):
        build(name, facts)
    batch = build(name, facts, unknown_answers="leave_out")
    assert batch.left_out["answer not in the vocabulary"] == (3 if name in MASKED else 2)
    assert {batch.fact(i) for i in range(len(batch))} == set(FACTS[:2]) and batch.facts == tuple(facts)
    assert TOKENIZERS[name].unk_token_id not in batch.target_ids
    with pytest.raises(PromptError, match=r"No prompt is left of 2 pairs .*answer not in the vocabulary: "):
        build(name, facts[2:3], unknown_answers="leave_out")


def test_the_error_of_an_unknown_answer_names_a_similar_token():
    with pytest.raises(PromptError, match=r"Did you mean 'Dublin'\?"):
        build("BertForMaskedLM", [replace(FACTS[0], object="Dubłin")])


@pytest.mark.parametrize("answer", ["[MASK]", "[UNK]", "[SEP]"])
def test_a_special_token_is_refused_as_an_answer(answer):
    with pytest.raises(PromptError, match="not in the vocabulary"):
        build("BertForMaskedLM", [replace(FACTS[0], object=answer)])


def test_an_answer_that_shares_a_token_with_its_neighbours_is_refused():
    glued = Fact("Ireland", "r", "Dub", ("[Y]lin is the capital of [X].", "[X] is not [Y]."))
    with pytest.raises(PromptError, match=r"'Dub' .* shares a token with the text beside it in '\[Y\]lin"):
        build("BertForMaskedLM", [glued])
    batch = build("BertForMaskedLM", [glued], unknown_answers="leave_out")
    assert batch.left_out == {"answer shares a token with the text beside it": 1} and len(batch) == 1


def test_a_prompt_longer_than_the_context_is_refused_by_name():
    length = int(build("BertForMaskedLM", FACTS).attention_mask.sum(-1).max())
    build("BertForMaskedLM", FACTS, n_ctx=length)
    with pytest.raises(
        PromptError, match=rf"capital city, \[Y\], .* has {length} tokens, .* context of {length - 1}\."
    ):
        build("BertForMaskedLM", FACTS, n_ctx=length - 1)
    # A causal row holds the prompt and all of the answer but its last token.
    longest = int(build("GPT2LMHeadModel", [TWO_TOKENS]).attention_mask.sum(-1).max())
    build("GPT2LMHeadModel", [TWO_TOKENS], n_ctx=longest)
    with pytest.raises(PromptError, match=f"has {longest} tokens"):
        build("GPT2LMHeadModel", [TWO_TOKENS], n_ctx=longest - 1)


@pytest.mark.parametrize(
    ("name", "facts", "message"),
    [
        ("BertForMaskedLM", [], "There are no facts"),
        ("BertForMaskedLM", [Fact("Ireland", "P36", "Dublin")], "P36/Ireland/Dublin has no templates"),
        (
            "GPT2LMHeadModel",
            [Fact("Ireland", "P36", "Dublin", (FIRST,))],
            r"No prompt is left of 1 .*object not last: 1",
        ),
        ("GPT2LMHeadModel", [Fact("", "P36", "Dublin", ("[Y]",))], "nothing before the answer"),
        ("BertForMaskedLM", [Fact("[MASK]", "P36", "Dublin", (LAST,))], "holds the mask token besides"),
    ],
)
def test_facts_that_give_no_prompt_are_refused(name, facts, message):
    with pytest.raises(PromptError, match=message):
        build(name, facts)


def test_an_unsuitable_tokenizer_is_refused():
    with pytest.raises(PromptError, match="GPT2Tokenizer has none"):
        build("BertForMaskedLM", FACTS, tokenizer=TOKENIZERS["GPT2LMHeadModel"])
    form = PromptForm(
        tokenizer=TOKENIZERS["BertForMaskedLM"], masked=True, n_ctx=64, d_vocab=10, device=torch.device("cpu")
    )
    with pytest.raises(PromptError, match="the model has 10 tokens"):
        build_prompts(form, FACTS, None, "error")

    class Slow:
        is_fast = False

    with pytest.raises(PromptError, match=r"Slow cannot say which characters.*use_fast=True"):
        build("GPT2LMHeadModel", FACTS, tokenizer=type("Slow", (Slow,), {"__len__": lambda self: 10})())
    with pytest.raises(ArgumentError, match="unknown_answers is 'skip'"):
        build("BertForMaskedLM", FACTS, unknown_answers="skip")


def test_a_model_without_a_tokenizer_needs_the_tokenizer_argument(monkeypatch):
    model = tiny_model("GPT2LMHeadModel")
    bare = host_of(load_model(tiny_hf_model("GPT2LMHeadModel")))
    monkeypatch.setattr(import_module("kn_lens.prompts.build"), "host_of", lambda model: bare)
    monkeypatch.setattr(import_module("kn_lens.prompts.predict"), "host_for", lambda model, prompts: bare)
    with pytest.raises(PromptError, match=r"has no tokenizer.*PromptBatch\.from_tokens"):
        make_prompts(model, FACTS)
    batch = make_prompts(model, FACTS, tokenizer=TOKENIZERS["GPT2LMHeadModel"])
    assert content(batch) == content(build("GPT2LMHeadModel", FACTS))
    assert predict(model, batch, k=1)["token"].str.isdecimal().all()


def test_a_padding_token_without_an_embedding_is_not_used():
    """Users add such a token to GPT-2's tokenizer, which has none, without extending the embeddings of the model."""
    model, tokenizer = tiny_model("GPT2LMHeadModel"), copy.deepcopy(TOKENIZERS["GPT2LMHeadModel"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == host_of(model).d_vocab
    facts = [*FACTS, TWO_TOKENS]  # of two lengths
    batch = make_prompts(model, facts, tokenizer=tokenizer)
    assert not batch.attention_mask.all() and content(batch) == content(build("GPT2LMHeadModel", facts))
    pd.testing.assert_frame_equal(predict(model, batch), predict(model, make_prompts(model, facts)))


def test_a_fact_given_twice_is_refused():
    with pytest.raises(DataError, match="occurs twice: 0 and 2"):
        make_prompts(tiny_model("BertForMaskedLM"), [FACTS[0], FACTS[1], FACTS[0]])


# --- properties ------------------------------------------------------------------------------------------------------

some_facts = st.lists(st.sampled_from(mixed), min_size=1, max_size=6, unique=True)


@pytest.mark.parametrize("name", MASKED + CAUSAL)
@quick
@given(some_facts)
def test_a_prompt_does_not_depend_on_its_batch_or_order(name, facts):
    together = content(build(name, facts))
    assert together == [prompt for fact in facts for prompt in content(build(name, [fact]))]


# --- predict ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BertForMaskedLM", "LlamaForCausalLM"])
def test_predictions_equal_those_of_a_plain_forward_pass(name):
    model = tiny_model(name)
    batch = make_prompts(model, [FACTS[0], TWO_TOKENS])
    table = predict(model, batch, k=3, memory_budget=memory_for(2, model, batch, gradient=False))
    assert len(table) == 3 * batch.n_rows and table["rank"].tolist() == [0, 1, 2] * batch.n_rows
    with torch.no_grad():
        logits = model(batch.tokens, attention_mask=batch.attention_mask)
    expected = logits[torch.arange(batch.n_rows), batch.read_pos].softmax(-1).topk(3)
    torch.testing.assert_close(torch.tensor(table["probability"]), expected.values.flatten())
    assert table["token_id"].tolist() == expected.indices.flatten().tolist()
    last = table[table["prompt"] == len(batch) - 1]
    assert last["answer_token"].tolist() == [0, 0, 0, 1, 1, 1] and set(last["text"]) == {batch.text[-1]}
    assert table["token"][0] == TOKENIZERS[name].decode([table["token_id"][0]])


def test_predict_refuses_a_k_out_of_range():
    model = tiny_model("GPT2LMHeadModel")
    batch = make_prompts(model, FACTS)
    for k in (0, 10_000, 1.5, True):
        with pytest.raises(ArgumentError, match=rf"k is {k}; expected a whole number from 1 to"):
            predict(model, batch, k=k)
    with pytest.raises(ArgumentError, match="memory_budget=0"):
        predict(model, batch, memory_budget=0)
