"""Positions of prompts: the tokens of the subject, their roles, and prompts put at one position."""

import pytest
import torch

import kn_lens as kn
from kn_lens.facts.facts import Fact
from kn_lens.prompts import positions_of, roles_of
from tests.prompts.cases import CAUSAL, FACTS, FIRST, LAST, MASKED, TOKENIZERS, TWO_TOKENS, build
from tests.tiny import loaded

TWICE = "In Ireland, the capital of [X] is [Y]."


def subject_tokens(batch, row, mention=0):
    start, stop = batch.subject[row, mention].tolist()
    return batch.tokens[row, start:stop].tolist()


@pytest.mark.parametrize("name", MASKED + CAUSAL)
def test_the_tokens_of_the_subject_are_those_that_write_it(name):
    tokenizer = TOKENIZERS[name]
    batch = build(name, FACTS)
    for row, prompt in enumerate(batch.prompt_index.tolist()):
        assert tokenizer.decode(subject_tokens(batch, row)).strip() == batch.fact(prompt).subject
        assert batch.subject.shape == (batch.n_rows, 1, 2)


@pytest.mark.parametrize("name", MASKED + CAUSAL)
def test_a_subject_of_several_words_has_the_tokens_of_all_of_them(name):
    batch = build(name, [Fact("Ireland Kenya Peru", "P36", "Dublin", (LAST,))])
    assert TOKENIZERS[name].decode(subject_tokens(batch, 0)).strip() == "Ireland Kenya Peru"
    positions = positions_of(batch, "subject", "causal")
    roles = roles_of(batch, positions)[0]
    assert roles[0] == "subject_first" and roles[-1] == "subject_last" and len(roles) >= 3
    assert set(roles[1:-1]) == {"subject_middle"}


@pytest.mark.parametrize("name", MASKED + CAUSAL)
def test_each_mention_has_a_span_and_the_last_before_the_read_position_counts(name):
    batch = build(name, [Fact("Ireland", "P36", "Dublin", (TWICE,))])
    assert subject_tokens(batch, 0, 0)[-1] == subject_tokens(batch, 0, 1)[-1]
    assert int(batch.at("subject_last").post_pos[0]) == int(batch.subject[0, 1, 1]) - 1
    roles = roles_of(batch, positions_of(batch, "all", "causal"))[0]
    between = roles[int(batch.subject[0, 0, 1]) : int(batch.subject[0, 1, 0])]
    assert roles.count("subject_last") == 2 and set(between) == {"after"}


@pytest.mark.parametrize("name", MASKED)
def test_a_subject_behind_the_mask_is_found_there(name):
    batch = build(name, [Fact("Ireland", "P36", "Dublin", (FIRST, "[Y], of Ireland, is in [X]."))])
    assert (batch.subject[:, 0, 0] > batch.read_pos).all()
    assert torch.equal(batch.at("subject_last").post_pos, batch.subject[:, 0, 1] - 1)  # of two, the first


@pytest.mark.parametrize("name", MASKED + CAUSAL)
def test_every_row_of_a_long_answer_has_the_same_subject(name):
    batch = build(name, [TWO_TOKENS, FACTS[0]])
    n_rows = int(batch.rows_per_prompt[0])
    assert n_rows > 1
    moved = batch.at("subject_last").post_pos[:n_rows]
    assert len(moved.unique()) == 1 and len(batch.read_pos[:n_rows].unique()) == n_rows
    assert subject_tokens(batch, 0) == subject_tokens(batch, n_rows - 1)


def test_all_positions_of_a_causal_prompt_end_at_the_read_position_and_those_of_a_masked_one_at_its_end():
    causal, masked = build("LlamaForCausalLM", FACTS), build("BertForMaskedLM", FACTS)
    positions = positions_of(causal, "all", "causal")
    assert torch.equal(positions.amax(-1), causal.read_pos) and (positions[:, 0] == 0).all()  # the first is <s>
    assert [roles[int((positions[i] >= 0).sum()) - 1] for i, roles in enumerate(roles_of(causal, positions))] == (
        ["read"] * len(causal)
    )
    positions = positions_of(masked, "all", "masked")
    n_tokens = masked.length - (masked.rows_per_prompt - 1)
    assert torch.equal((positions >= 0).sum(-1), n_tokens)
    assert all(roles.count("read") == 1 for roles in roles_of(masked, positions))


def test_of_a_long_masked_answer_only_the_read_position_is_named():
    batch = build("BertForMaskedLM", [TWO_TOKENS])
    n_tokens, n_rows = int(batch.attention_mask[0].sum()), batch.n_rows
    positions = positions_of(batch, "all", "masked")
    assert n_rows > 1 and positions.shape == (1, n_tokens - n_rows + 1)
    assert set(positions[0].tolist()) & set(batch.read_pos.tolist()) == {int(batch.read_pos[0])}


def test_prompts_at_a_position_are_read_where_they_were_and_go_back():
    batch = build("GPT2LMHeadModel", FACTS)
    moved = batch.at("subject_last")
    assert torch.equal(moved.read_pos, batch.read_pos) and not torch.equal(moved.post_pos, moved.read_pos)
    assert torch.equal(moved[2].post_pos, moved.post_pos[2:3]) and torch.equal(moved[2].subject, batch.subject[2:3])
    assert moved.at("read").moved_pos is None and torch.equal(moved.at("read").post_pos, batch.read_pos)
    assert torch.equal(batch.at(moved.post_pos).post_pos, moved.post_pos)


def test_spans_of_the_user_may_be_one_or_several():
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]])
    options = {"read_pos": torch.tensor([3, 3]), "target_ids": torch.tensor([9, 9])}
    once = kn.PromptBatch.from_tokens(tokens, subject=torch.tensor([[0, 2], [1, 2]]), **options)
    assert once.at("subject_last").post_pos.tolist() == [1, 1]
    spans = torch.tensor([[[0, 2], [2, 3]], [[1, 2], [-1, -1]]])
    twice = kn.PromptBatch.from_tokens(tokens, subject=spans, **options)
    assert twice.at("subject_last").post_pos.tolist() == [2, 1]
    assert positions_of(twice, "subject", "causal").tolist() == [[0, 1, 2], [1, -1, -1]]
    with pytest.raises(kn.ArgumentError, match="subject of row 1 is not the first token"):
        kn.PromptBatch.from_tokens(tokens, subject=torch.tensor([[0, 2], [3, 5]]), **options)


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ("subjects", "Did you mean 'subject'"),
        (torch.tensor([0, 1]), "number of positions"),
        (torch.full((24, 1), -1), "expected at least one"),
        (torch.full((24, 1), 40), "does not have"),
        (torch.full((24, 2), 1), "twice"),
        (torch.full((24, 1), 0.5), "float32"),
    ],
)
def test_other_positions_are_refused(positions, words):
    with pytest.raises(kn.ArgumentError, match=words):
        positions_of(build("BertForMaskedLM", FACTS), positions, "masked")


def test_positions_behind_the_read_position_of_a_causal_prompt_are_refused():
    tokens = torch.tensor([[5, 6, 7, 8]])
    batch = kn.PromptBatch.from_tokens(tokens, read_pos=torch.tensor([2]), target_ids=torch.tensor([9]))
    with pytest.raises(kn.ArgumentError, match="after the read position, 2"):
        positions_of(batch, torch.tensor([[3]]), "causal")
    assert positions_of(batch, torch.tensor([[3, -1, 0]]), "masked").tolist() == [[0, 3]]


@pytest.mark.parametrize(("position", "words"), [("subject", "are several"), ("last", "subject_last")])
def test_one_position_is_not_several(position, words):
    with pytest.raises(kn.ArgumentError, match=words):
        build("BertForMaskedLM", FACTS).at(position)


def test_prompts_without_a_subject_say_so():
    tokens = torch.tensor([[5, 6]])
    own = kn.PromptBatch.from_tokens(tokens, read_pos=torch.tensor([1]), target_ids=torch.tensor([9]))
    with pytest.raises(kn.ArgumentError, match="subject=spans"):
        own.at("subject_last")
    nameless = build("GPT2LMHeadModel", [Fact("", "r", "Rome", ("Italy has its seat of government in [Y].",))])
    with pytest.raises(kn.ArgumentError, match=r"does not name its subject ''.*\[X\]"):
        nameless.at("subject_last")
    model = loaded("T5ForConditionalGeneration")
    with pytest.raises(kn.ArgumentError, match="read by the encoder"):
        kn.make_prompts(model, FACTS).at("subject_last")
