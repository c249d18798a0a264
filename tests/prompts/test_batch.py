"""``PromptBatch``: selection of prompts, batches from tokens, and the checks of both."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kn_lens.errors import ArgumentError, PromptError
from kn_lens.hosts import host_of
from kn_lens.prompts.build import PromptBatch
from tests.prompts.cases import FACTS, TWO_TOKENS, build, content, mixed, quick
from tests.tiny import tiny_model

BATCH = build(
    "BertForMaskedLM",
    mixed,
    contrast={
        fact: "Oslo Lima" if fact is TWO_TOKENS else "Berlin Oslo".split()[fact.object == "Berlin"] for fact in mixed
    },
)
choices = st.lists(st.integers(0, len(BATCH) - 1), min_size=1, max_size=8)


@quick
@given(choices, st.data())
def test_two_selections_equal_one_composed_selection(first, data):
    second = data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1, max_size=8))
    once, twice = BATCH.select([first[i] for i in second]), BATCH.select(first).select(torch.tensor(second))
    assert content(once) == content(twice) == [content(BATCH)[first[i]] for i in second]
    assert torch.equal(once.contrast_ids, twice.contrast_ids) and once.facts == BATCH.facts
    assert once.prompt_index.unique().tolist() == list(range(len(second)))


def test_selecting_everything_changes_nothing():
    same = BATCH.select(range(len(BATCH)))
    for name, value in vars(BATCH).items():
        assert (
            torch.equal(value, getattr(same, name)) if isinstance(value, torch.Tensor) else value == getattr(same, name)
        )


@pytest.mark.parametrize("chosen", [[-1], [len(BATCH)], [0.5], [True], [[0]]])
def test_prompts_that_do_not_exist_cannot_be_selected(chosen):
    with pytest.raises(ArgumentError, match="Prompts"):
        BATCH.select(chosen)
    with pytest.raises(ArgumentError, match="no prompt in the batch"):
        BATCH.select([])


# --- own tokens ------------------------------------------------------------------------------------------------------

OWN = {
    "tokens": torch.tensor([[5, 6, 7], [5, 6, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    "read_pos": torch.tensor([2, 1]),
    "target_ids": torch.tensor([9, 8]),
}


def test_a_batch_from_tokens_needs_no_tokenizer_and_no_facts():
    batch = PromptBatch.from_tokens(**OWN)
    assert len(batch) == batch.n_rows == 2 and batch.prompt_index.tolist() == [0, 1]
    assert batch.fact(0) != batch.fact(1) and batch.fact(1).object == "8"
    narrow = PromptBatch.from_tokens(**{name: value.int() for name, value in OWN.items()})
    assert narrow.tokens.dtype == torch.int64
    batch = PromptBatch.from_tokens(**OWN, facts=[FACTS[0]], fact_index=torch.tensor([0, 0]))
    assert batch.fact(1) == FACTS[0]
    assert PromptBatch.from_tokens(**OWN, fact_index=torch.tensor([1, 1])).facts[1].object == "8"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": [[5, 6, 7]]}, "tokens must be a tensor of whole numbers; got list"),
        ({"tokens": torch.rand(2, 3)}, "tokens must be a tensor .* got torch.float32"),
        ({"tokens": torch.tensor([5, 6])}, r"tokens has shape \[2\]; expected \[2, 2\]"),
        ({"tokens": torch.tensor([[5, -6, 7], [5, 6, 0]])}, "tokens of row 0 hold a negative id"),
        ({"attention_mask": torch.ones(2, 2).long()}, r"attention_mask has shape \[2, 2\]; expected \[2, 3\]"),
        ({"attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}, "attention_mask of row 1 .*pad on the right"),
        ({"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, "attention_mask of row 1"),
        ({"attention_mask": torch.tensor([[1, 1, 1], [2, 0, 0]])}, "attention_mask of row 1"),
        ({"read_pos": torch.tensor([2, 2])}, "read_pos of row 1 is 2, outside"),
        ({"read_pos": torch.tensor([-1, 1])}, "read_pos of row 0 is -1, outside"),
        ({"read_pos": torch.tensor([2])}, r"read_pos has shape \[1\]; expected \[2\]"),
        ({"read_pos": torch.zeros(2, dtype=torch.int64, device="meta")}, "one device; got .*read_pos on meta"),
        ({"target_ids": torch.tensor([9, -100])}, "target_ids of row 1 is -100"),
        ({"contrast_ids": torch.tensor([-1, 1])}, "contrast_ids of row 0 is -1"),
        ({"fact_index": [0, 0]}, "fact_index must be a tensor of whole numbers; got list"),
        ({"facts": [FACTS[0]]}, "fact_index of prompt 1 is 1; there are 1 facts"),
        ({name: value[:0] for name, value in OWN.items()}, "no prompt in the batch"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(changed, message):
    with pytest.raises(ArgumentError, match=message):
        PromptBatch.from_tokens(**{**OWN, **changed})


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 2], "jumps to 2 at row 1"),
        ([1, 1], "jumps to 1 at row 0"),
        ([1, 0], "jumps to 1 at row 0"),
        ([-1, 0], "jumps to -1 at row 0"),
        ([0, 0], "names 1 prompts; there are 2"),
    ],
)
def test_rows_must_be_in_the_order_of_their_prompts(index, message):
    with pytest.raises(ArgumentError, match=message):
        replace(PromptBatch.from_tokens(**OWN), prompt_index=torch.tensor(index))


def test_check_for_refuses_another_device_vocabulary_or_context_length():
    host = host_of(tiny_model("GPT2LMHeadModel"))
    batch = PromptBatch.from_tokens(**OWN)
    batch.check_for(host)
    with pytest.raises(ArgumentError, match=r"prompts are on cpu and .* on meta; .*prompts\.to\('meta'\)"):
        batch.check_for(replace(host, device=torch.device("meta")))
    with pytest.raises(ArgumentError, match=r"target_ids hold the id 9; .* has 9 tokens"):
        batch.check_for(replace(host, d_vocab=9))
    with pytest.raises(PromptError, match=r"'tokens 0' has 3 tokens, more than .* 2"):
        batch.check_for(replace(host, n_ctx=2))
