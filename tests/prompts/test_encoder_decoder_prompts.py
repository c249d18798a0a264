"""Prompts of encoder-decoders: what the encoder reads, what the decoder has written, and where the answer is read."""

import pytest
import torch

import kn_lens as kn
from kn_lens.errors import ArgumentError, PromptError
from tests.encoder_decoders import FACTS, NAMES, TEMPLATES, loaded, plain, prompts_of, rows_of
from tests.tiny import N_CTX
from tests.tiny import loaded as loaded_other

PLACEHOLDER = {name: "<extra_id_0>" if name in ("T5", "FLAN-T5", "mT5") else "<mask>" for name in NAMES}
WRITES_TEXT = ("BART", "mBART")


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_reads_the_whole_text_and_the_decoder_what_precedes_the_answer(name):
    """Against the tokens of the text with its answer, in which the model was trained to leave a span out."""
    tokenizer = kn.host_of(loaded(name)).tokenizer
    placeholder = tokenizer.convert_tokens_to_ids(PLACEHOLDER[name])
    config = plain(name).config
    prompts = prompts_of(name)
    assert prompts.left_out == {} and len(prompts) == len(FACTS) * len(TEMPLATES)
    rows = rows_of(prompts)
    for number in range(len(prompts)):
        fact, template = prompts.fact(number), prompts.template[number]
        text = template.replace("[X]", fact.subject)
        assert prompts.text[number] == text.replace("[Y]", PLACEHOLDER[name])
        whole = tokenizer(text.replace("[Y]", fact.object))["input_ids"]
        own = [rows[row] for row in (prompts.prompt_index == number).nonzero().flatten().tolist()]
        answer = [row.target for row in own]
        assert tokenizer.decode(answer).strip() == fact.object
        start = next(start for start in range(len(whole)) if whole[start : start + len(answer)] == answer)
        before, after = whole[:start], whole[start + len(answer) :]
        if name == "mBART":  # its text ends with the token of the language
            begin = [whole[-1], *before]
            assert tokenizer.convert_ids_to_tokens(whole[-1]) == "en_XX"
        elif name == "BART":
            begin = [config.decoder_start_token_id, *before]
        elif name == "T5Gemma":
            begin = [config.decoder.bos_token_id, placeholder]
        else:
            begin = [config.pad_token_id, placeholder]
        for n_known, row in enumerate(own):
            assert row.encoder_tokens.tolist() == [*before, placeholder, *after]
            assert row.tokens.tolist() == [*begin, *answer[:n_known]]


@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_of_a_text_is_that_of_training(name):
    """transformers' own rule for the decoder's tokens, given the labels of training, of which the answer is a part."""
    hf_model, row = plain(name), rows_of(prompts_of(name))[0]
    tokenizer = kn.host_of(loaded(name)).tokenizer
    if name in WRITES_TEXT:
        labels = tokenizer("The capital of Ireland is Dublin.")["input_ids"]
    else:
        labels = [tokenizer.convert_tokens_to_ids(PLACEHOLDER[name]), row.target]
    decoder_tokens = hf_model.prepare_decoder_input_ids_from_labels(torch.tensor([labels]))[0]
    assert row.tokens.tolist() == decoder_tokens[: len(row.tokens)].tolist()
    assert labels[len(row.tokens) - 1] == row.target


@pytest.mark.parametrize("name", NAMES)
def test_templates_with_text_after_the_object_are_queried(name):
    fact = kn.Fact("Ireland", "P36", "Dublin", ("[Y] is the seat of government of [X] and lies on a river.",))
    prompts = kn.make_prompts(loaded(name), fact)
    assert len(prompts) == 1 and prompts.text[0].endswith("and lies on a river.")


def test_prompts_are_selected_with_what_the_encoder_reads():
    prompts = prompts_of("BART")
    part = prompts[[4, 1]]
    whole = [tuple(row.encoder_tokens.tolist()) for row in rows_of(prompts)]
    owners = prompts.prompt_index.tolist()
    expected = [whole[row] for number in (4, 1) for row, owner in enumerate(owners) if owner == number]
    assert [tuple(row.encoder_tokens.tolist()) for row in rows_of(part)] == expected
    assert torch.equal(part.n_positions, part.length + torch.tensor([len(whole[owners.index(n)]) for n in (4, 1)]))
    assert "encoder-decoder" in repr(prompts)
    assert torch.equal(prompts.to("cpu").encoder_tokens, prompts.encoder_tokens)


@pytest.mark.parametrize("name", ["BART", "T5Gemma"])
def test_text_and_answer_make_a_prompt(name):
    model = loaded(name)
    found = kn.find(model, f"The capital of France is {PLACEHOLDER[name]}.", " Paris")
    fact = kn.Fact("", "text", "Paris", ("The capital of France is [Y].",))
    expected = kn.make_prompts(model, fact)
    assert torch.equal(found.prompts.encoder_tokens, expected.encoder_tokens)
    assert torch.equal(found.prompts.tokens, expected.tokens)
    for text in ("The capital of France is", "The capital of France is [MASK]."):
        with pytest.raises(ArgumentError, match=f"is an encoder-decoder: expected .*{PLACEHOLDER[name]}"):
            kn.find(model, text, "Paris")
    with pytest.raises(ArgumentError, match=r"expected kn_lens.find\(model, 'The capital of France is \[Y\].'"):
        kn.find(model, "The capital of France is")


@pytest.mark.skipif("mT5" not in NAMES, reason="TransformerLens 3 cannot run it")
def test_the_sentinel_of_an_mt5_is_a_piece_of_its_vocabulary():
    """With a space before it, unlike that of a T5, which is added to the vocabulary."""
    from transformers import T5Tokenizer

    own = kn.host_of(loaded("mT5")).tokenizer
    pieces = sorted(own.get_vocab(), key=own.get_vocab().get)[: own.vocab_size]
    vocab = [(piece, -float(number)) for number, piece in enumerate([*pieces, "▁<extra_id_0>"])]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0)
    sentinel = tokenizer.convert_tokens_to_ids("▁<extra_id_0>")
    fact = FACTS[0]
    prompts = kn.make_prompts(loaded("mT5"), fact, tokenizer=tokenizer, templates="The capital of [X] is [Y].")
    assert prompts.text[0] == "The capital of Ireland is <extra_id_0>."
    assert int(prompts.tokens[0, 1]) == sentinel and sentinel in prompts.encoder_tokens[0]


def test_another_token_can_stand_for_the_answer():
    """As the tokenizer's mask token: which one a T5Gemma was trained with, its tokenizer does not say."""
    from copy import deepcopy

    model = loaded("T5Gemma")
    tokenizer = deepcopy(kn.host_of(model).tokenizer)
    tokenizer.mask_token = "▁river"
    prompts = kn.make_prompts(model, FACTS[0], tokenizer=tokenizer, templates="The capital of [X] is [Y].")
    assert int(prompts.tokens[0, 1]) == tokenizer.convert_tokens_to_ids("▁river")


def test_prompts_of_another_kind_of_model_are_refused():
    bart, gpt = loaded("BART"), loaded_other("GPT2LMHeadModel")
    with pytest.raises(ArgumentError, match=r"made for an encoder-decoder model, and .* is a causal one"):
        kn.predict(gpt, prompts_of("BART"))
    with pytest.raises(ArgumentError, match=r"made for a causal model, and .* is an encoder-decoder one"):
        kn.predict(bart, kn.make_prompts(gpt, FACTS[0]))
    options = {"read_pos": torch.tensor([1]), "target_ids": torch.tensor([9])}
    tokens = torch.tensor([[2, 8]])
    without = kn.PromptBatch.from_tokens(tokens, **options)
    with pytest.raises(ArgumentError, match="the prompts have no encoder_tokens"):
        kn.predict(bart, without)
    whole = kn.PromptBatch.from_tokens(tokens, encoder_tokens=torch.tensor([[0, 8, 9]]), **options)
    assert len(kn.predict(bart, whole, k=3)) == 3
    with pytest.raises(ArgumentError, match="The prompts have encoder_tokens"):
        kn.predict(gpt, whole)


def test_tokens_of_the_encoder_are_checked():
    options = {"read_pos": torch.tensor([1]), "target_ids": torch.tensor([9])}
    tokens, texts = torch.tensor([[2, 8]]), torch.tensor([[0, 8, 9]])
    cases = (
        ({"encoder_tokens": texts.repeat(2, 1)}, r"encoder_tokens has shape \[2, 3\]; expected \[1, 3\]"),
        ({"encoder_tokens": texts - 1}, "encoder_tokens of row 0 hold a negative id"),
        ({"encoder_attention_mask": torch.ones_like(texts)}, "belong together"),
        (
            {"encoder_tokens": texts, "encoder_attention_mask": torch.tensor([[0, 1, 1]])},
            "encoder_attention_mask of row 0 is not ones followed by zeros",
        ),
    )
    for arguments, message in cases:
        with pytest.raises(ArgumentError, match=message):
            kn.PromptBatch.from_tokens(tokens, **options, **arguments)
    long = kn.PromptBatch.from_tokens(tokens, encoder_tokens=torch.full((1, N_CTX + 1), 8), **options)
    with pytest.raises(PromptError, match=f"{N_CTX + 1} tokens, more than the model's context of {N_CTX}"):
        kn.predict(loaded("BART"), long)


def test_the_placeholder_stands_for_the_answer_alone():
    fact = kn.Fact("<mask>", "P36", "Dublin", ("The capital of [X] is [Y].",))
    with pytest.raises(PromptError, match="holds <mask> besides the answer's place"):
        kn.make_prompts(loaded("BART"), fact)


def test_a_tokenizer_without_a_placeholder_is_refused():
    tokenizer = kn.host_of(loaded_other("GPT2LMHeadModel")).tokenizer
    with pytest.raises(PromptError, match="An encoder-decoder is queried with a mask token or <extra_id_0>"):
        kn.make_prompts(loaded("BART"), FACTS[0], tokenizer=tokenizer)
