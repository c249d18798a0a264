"""Rows that enter a pass at different layers have the logits and gradients of passes of their own."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import kn_lens as kn
from kn_lens.hosts import Replacement, host_of, padded_head, partial_forward, run_clean
from kn_lens.hosts.padded_head import PaddedHead
from kn_lens.hosts.row_entries import row_leaves, select_row_leaves
from tests.tiny import COUNTRIES, N_LAYERS, tiny_model

TEMPLATES = ("The capital of [X] is [Y].", "In fact, [X] has its seat of government in [Y]")
FACTS = [kn.Fact(country, "P36", capital, TEMPLATES) for country, capital in list(COUNTRIES.items())[:4]]
# With masks, alibi of each head, rotary tables of two kinds, a pass through all layers, and joined rows and positions.
ARCHITECTURES = [
    "BertForMaskedLM",
    "ElectraForMaskedLM",
    "GPT2LMHeadModel",
    "BloomForCausalLM",
    "Gemma3ForCausalLM",
    "OPTForCausalLM",
]


@pytest.fixture(params=ARCHITECTURES)
def state(request):
    model = tiny_model(request.param)
    host = host_of(model)
    prompts = kn.make_prompts(model, FACTS)
    return run_clean(host, prompts.tokens, prompts.attention_mask, prompts.read_pos, range(N_LAYERS))


def replacements(state, *, seed=0):
    """Return different rows for each layer, some of them twice, with activations of their own."""
    generator = torch.Generator().manual_seed(seed)
    n_rows = len(state.logits)
    result = []
    for layer in range(N_LAYERS):
        rows = torch.randint(n_rows, (2 + layer,), generator=generator)
        share = torch.rand(len(rows), 1, generator=generator, dtype=torch.float64)
        added = torch.zeros(len(rows), state.mlp_out[layer].shape[1], dtype=torch.float64, requires_grad=True)
        result.append(Replacement(layer=layer, rows=rows, post=share * state.post[layer][rows], added=added))
    return result


def test_one_pass_for_all_layers_equals_a_pass_for_each(state):
    together = replacements(state)
    alone = replacements(state)
    logits = state.logits_with_post(together)
    parts = [state.logits_with_post([replacement]) for replacement in alone]
    torch.testing.assert_close(logits, torch.cat(parts), rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(logits.square().sum(), [replacement.added for replacement in together])
    for part, replacement, gradient in zip(parts, alone, gradients, strict=True):
        (own,) = torch.autograd.grad(part.square().sum(), [replacement.added])
        torch.testing.assert_close(gradient, own, rtol=1e-10, atol=1e-12)


def test_layers_can_be_left_out(state):
    chosen = [replacement for replacement in replacements(state) if replacement.layer != 1]
    parts = [state.logits_with_post([replacement]) for replacement in chosen]
    torch.testing.assert_close(state.logits_with_post(chosen), torch.cat(parts), rtol=0, atol=1e-12)


def test_rows_of_clean_activations_have_the_clean_logits(state):
    clean = [
        replace(replacement, post=state.post[replacement.layer][replacement.rows])
        for replacement in replacements(state)
    ]
    rows = torch.cat([replacement.rows for replacement in clean])
    torch.testing.assert_close(state.logits_with_post(clean), state.logits[rows], rtol=0, atol=1e-12)


def test_arguments_with_entries_for_each_row_are_found_and_selected():
    def arguments(n_rows):
        mask = torch.arange(n_rows)[:, None].expand(n_rows, 3)
        alibi = torch.arange(4 * n_rows)[:, None, None]  # one for each row and head
        return (None, mask), {"rotary": (torch.ones(1, 3), torch.ones(3, 2)), "of_heads": alibi, "kept": 5}

    leaves = row_leaves(arguments(2), arguments(3))
    assert leaves == {(0, 1), (1, "of_heads")}
    args, kwargs = select_row_leaves(arguments(5), leaves, 1, 3, 5)
    assert args[0] is None and args[1][:, 0].tolist() == [1, 2]
    assert kwargs["of_heads"].flatten().tolist() == list(range(4, 12))
    assert kwargs["rotary"][0].shape == (1, 3) and kwargs["rotary"][1].shape == (3, 2) and kwargs["kept"] == 5


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_a_padded_unembedding_changes_no_score(architecture, monkeypatch):
    model = tiny_model(architecture)
    prompts = kn.make_prompts(model, FACTS)
    plain = kn.attribute(model, prompts)
    widths = []
    forward = PaddedHead.forward

    def watched(self, resid):
        widths.append(len(self.weight))
        return forward(self, resid)

    monkeypatch.setattr(partial_forward, "pays_off", lambda device: True)
    monkeypatch.setattr(padded_head, "COLUMNS", 100)
    monkeypatch.setattr(PaddedHead, "forward", watched)
    padded = kn.attribute(model, prompts)
    assert widths and all(width % 100 == 0 for width in widths)
    torch.testing.assert_close(padded.scores, plain.scores, rtol=1e-12, atol=1e-15)


def test_an_unembedding_of_full_width_or_another_kind_is_not_padded():
    assert PaddedHead.of(nn.Linear(3, 128)) is None and PaddedHead.of(nn.Identity()) is None
    head = nn.Linear(3, 100)
    resid = torch.randn(2, 3)
    torch.testing.assert_close(PaddedHead.of(head).forward(resid), head(resid))
