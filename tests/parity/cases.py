"""Small random models in float64, with prompts of mixed lengths."""

from dataclasses import replace
from functools import cache

import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import kn_lens as kn

N_LAYERS, D_MLP, VOCAB = 3, 20, 40
SIZES = {"vocab_size": VOCAB, "initializer_range": 0.4}
CONFIGS = {
    "masked": (
        BertForMaskedLM,
        BertConfig(hidden_size=16, num_hidden_layers=N_LAYERS, num_attention_heads=2, intermediate_size=D_MLP, **SIZES),
    ),
    "causal": (
        GPT2LMHeadModel,
        GPT2Config(n_embd=16, n_layer=N_LAYERS, n_head=2, n_inner=D_MLP, n_positions=32, **SIZES),
    ),
    "gated": (
        LlamaForCausalLM,
        LlamaConfig(
            hidden_size=16,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=2,
            intermediate_size=D_MLP,
            max_position_embeddings=32,
            **SIZES,
        ),
    ),
}


def make(kind):
    """Return a new random model in float64."""
    torch.manual_seed(0)
    cls, config = CONFIGS[kind]
    return cls(config).eval().double()


@cache
def hosted(kind):
    """Return the same model inside TransformerLens, once: for tests that leave it as it was."""
    return kn.load_model(make(kind))


def make_batch(kind_is_masked, lengths=(7, 4, 6), seed=1):
    """Return right-padded prompts, read at an inner token for masked models and at the last token for causal ones."""
    generator = torch.Generator().manual_seed(seed)
    n = len(lengths)
    tokens = torch.randint(4, VOCAB, (n, max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    read_pos = torch.tensor([length // 2 if kind_is_masked else length - 1 for length in lengths])
    target_ids = torch.randint(4, VOCAB, (n,), generator=generator)
    return kn.PromptBatch.from_tokens(tokens * mask, attention_mask=mask, read_pos=read_pos, target_ids=target_ids)


def unpadded(prompts, i):
    length = int(prompts.attention_mask[i].sum())
    return prompts.tokens[i, :length], int(prompts.read_pos[i]), int(prompts.target_ids[i])


def joined_rows(prompts):
    """Return a batch in which the first two of three prompts are the two answer tokens of one prompt."""
    return replace(
        prompts.select(torch.tensor([0, 1, 2])),
        prompt_index=torch.tensor([0, 0, 1]),
        fact_index=torch.tensor([0, 1]),
        text=prompts.text[1:],
        template=prompts.template[1:],
    )
