"""Facts, a tokenizer of each kind, and a comparison of prompts without their padding."""

import torch
from hypothesis import settings

from kn_lens.facts.facts import Fact, FactSet
from kn_lens.prompts.build import PromptForm
from kn_lens.prompts.build import build as build_prompts
from tests.tiny import COUNTRIES, tiny_tokenizer

LAST, FIRST, INSIDE = (
    "The capital of [X] is [Y].",
    "[Y] is the capital of [X].",
    "[X]'s capital city, [Y], lies on a river.",
)
FACTS = FactSet(Fact(country, "P36", capital, (LAST, FIRST, INSIDE)) for country, capital in COUNTRIES.items())
TWO_TOKENS = Fact("Peru", "P36", "Lima Oslo", (LAST,))
MASKED = ("BertForMaskedLM", "RobertaForMaskedLM", "XLMRobertaForMaskedLM", "CamembertForMaskedLM")
CAUSAL = ("GPT2LMHeadModel", "LlamaForCausalLM", "GemmaForCausalLM", "Qwen2ForCausalLM")
TOKENIZERS = {name: tiny_tokenizer(name) for name in MASKED + CAUSAL}


def build(name, facts, contrast=None, unknown_answers="error", n_ctx=64, tokenizer=None):
    tokenizer = tokenizer or TOKENIZERS[name]
    form = PromptForm(
        tokenizer=tokenizer, masked=name in MASKED, n_ctx=n_ctx, d_vocab=len(tokenizer), device=torch.device("cpu")
    )
    return build_prompts(form, FactSet(facts), contrast, unknown_answers)


def row(batch, index):
    """The row's tokens without padding."""
    return batch.tokens[index][batch.attention_mask[index] == 1].tolist()


def content(batch):
    """Every prompt without its padding, to compare batches of different widths."""
    rows_of = [batch.rows_of([i]).tolist() for i in range(len(batch))]
    return [
        (
            [(row(batch, r), int(batch.read_pos[r]), int(batch.target_ids[r])) for r in rows],
            batch.text[i],
            batch.template[i],
            batch.fact(i),
        )
        for i, rows in enumerate(rows_of)
    ]


mixed = [*FACTS, TWO_TOKENS, Fact("", "r", "Rome", ("Italy has its seat of government in [Y].",))]
quick = settings(max_examples=25, deadline=None)
