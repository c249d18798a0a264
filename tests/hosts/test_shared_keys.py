"""Rows that share the keys and values of their prompts get the numbers of rows with copies of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.hosts import Replacement, host_of, run_clean
from kn_lens.hosts.shared_keys import IMPLEMENTATIONS, RowTable, share_layers
from tests.tiny import CAUSAL, COUNTRIES, N_LAYERS, equal, loaded

TEMPLATES = ("The capital of [X] is [Y].", "In fact, [X] has its seat of government in [Y]")
FACTS = [kn.Fact(country, "P36", capital, TEMPLATES) for country, capital in list(COUNTRIES.items())[:3]]

# Whose attention is looked up by name, has neither a window nor caps, and runs without TransformerLens' wrappers.
SHARED = {
    "GPT2LMHeadModel",
    "PhiForCausalLM",
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "OlmoForCausalLM",
    "Olmo2ForCausalLM",
    "StableLmForCausalLM",
    "GraniteForCausalLM",
}
# Rows of one layer: of all prompts alike, of some alone, and nearly all of one, which share nothing.
SELECTIONS = {"even": [0, 1, 2, 3, 4, 5] * 3, "some": [4, 2, 4, 2, 5], "uneven": [0] * 12 + [1, 2, 3, 4, 5]}


def resumed(host, selection):
    """Return the logits of a pass that rows enter at every layer, and the gradients at what ``W_out`` writes."""
    prompts = kn.make_prompts(host.model, FACTS)
    state = run_clean(host, prompts.tokens, prompts.attention_mask, prompts.read_pos, range(N_LAYERS))
    rows = torch.tensor(SELECTIONS[selection])
    factors = torch.linspace(0.1, 0.9, len(rows), dtype=torch.float64)[:, None]
    replacements = []
    for layer in range(N_LAYERS):
        added = torch.zeros(len(rows), host.d_model, dtype=torch.float64, requires_grad=True)
        post = factors * state.post[layer][rows]
        replacements.append(Replacement(layer=layer, rows=rows, post=post, added=added))
    logits = state.logits_with_post(replacements)
    gradients = torch.autograd.grad(logits.square().sum(), [replacement.added for replacement in replacements])
    return logits, torch.cat(gradients)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_which_families_share_keys(architecture):
    assert (host_of(loaded(architecture)).shared_keys is not None) == (architecture in SHARED)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("architecture", sorted(SHARED))
def test_shared_keys_give_the_numbers_of_copied_ones(architecture, selection):
    model = loaded(architecture)
    sharing, copying = host_of(model), host_of(model)
    copying.__dict__["shared_keys"] = None
    for value, expected in zip(resumed(sharing, selection), resumed(copying, selection), strict=True):
        equal(value, expected, 1e-11)
    assert model.original_model.config._attn_implementation == "eager"


def test_no_key_is_copied_for_a_row():
    host = host_of(loaded("LlamaForCausalLM"))
    prefix = host.kv_prefix(torch.ones(6, 5, dtype=torch.long))
    sizes = {}
    for selection, rows in SELECTIONS.items():
        layer = share_layers(prefix.cache.layers[:1], [torch.tensor(rows)])[0]
        sizes[selection] = len(layer.keys)
        if selection == "even":
            assert layer.keys.data_ptr() == prefix.cache.layers[0].keys.data_ptr()
    assert sizes == {"even": 6, "some": 3, "uneven": 17}


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_a_table_holds_each_row_once_beside_rows_of_its_prompt(prompt_of_row):
    prompt_of_row = torch.tensor(prompt_of_row)
    table = RowTable.of(prompt_of_row)
    values = torch.randn(len(prompt_of_row), 2, 3)
    assert torch.equal(table.gather(table.spread(values)), values)
    filled = torch.zeros(table.rows.numel(), dtype=torch.bool)
    filled[table.slot] = True
    assert filled.sum() == len(prompt_of_row)
    lines = torch.arange(table.rows.numel()) // table.rows.shape[1]
    assert torch.equal(table.prompts[lines[table.slot]], prompt_of_row)
    assert torch.equal(prompt_of_row[table.rows[:, 0]], table.prompts)  # the mask of a line is that of its first row


def test_caps_and_sinks_are_not_left_out():
    from transformers import AttentionInterface

    host = host_of(loaded("LlamaForCausalLM"))
    assert host.shared_keys in IMPLEMENTATIONS
    attend = AttentionInterface()[host.shared_keys]
    query = torch.randn(2, 2, 1, 4)
    for option in ("softcap", "s_aux", "position_bias"):
        with pytest.raises(ValueError, match="no softcap, sinks or position bias"):
            attend(None, query, query, query, None, **{option: 1.0})
