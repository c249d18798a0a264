"""Passes that run rows of several lengths together, moved at several positions, give what each row gives alone."""

import pytest
import torch

import kn_lens as kn
from kn_lens.hosts import run_clean
from kn_lens.hosts.partial_forward import Replacement
from tests.experts import both
from tests.tiny import equal, loaded

LENGTHS, POST_POS = (7, 5, 6, 3), (4, 2, 0, 1)
LAYERS = (0, 1)


def batch(d_vocab):
    """Return tokens, mask and positions of rows that run 3, 3, 6 and 2 tokens from the moved one on."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, d_vocab, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return tokens * mask, mask, torch.tensor(LENGTHS) - 1, torch.tensor(POST_POS)


@pytest.fixture(params=["GPT2LMHeadModel", "LlamaForCausalLM", "Gemma2ForCausalLM", "MixtralForCausalLM"])
def host(request):
    architecture = request.param
    return kn.host_of(both(architecture)[0] if "Mixtral" in architecture else loaded(architecture))


@pytest.mark.parametrize(("together", "groups"), [(False, [1, 1, 2, 0]), (True, [0, 0, 0, 0])])
def test_logits_and_gradients_are_those_of_each_row_alone(host, together, groups):
    tokens, mask, read_pos, post_pos = batch(host.d_vocab)
    state = run_clean(host, tokens, mask, read_pos, LAYERS, post_pos=post_pos, together=together)
    if host.architecture != "Gemma2ForCausalLM":  # its windows keep other states than all keys and values
        assert state.pass_group.tolist() == groups
    rows = torch.arange(len(tokens))
    generator = torch.Generator().manual_seed(6)
    added = torch.randn(len(tokens), host.d_model, dtype=host.dtype, generator=generator).requires_grad_()
    logits = state.logits_with_additions(rows, {0: ("mlp_out", added)})
    (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[:, 7].sum(), [added])
    halved = {layer: state.post[layer] / 2 for layer in LAYERS}
    replaced = state.logits_with_post([Replacement(layer=layer, rows=rows, post=halved[layer]) for layer in LAYERS])
    replaced = replaced.unflatten(0, (len(LAYERS), -1))

    for row, length in enumerate(LENGTHS):
        own = slice(row, row + 1)
        alone = run_clean(host, tokens[own, :length], mask[own, :length], read_pos[own], LAYERS, post_pos=post_pos[own])
        one = torch.tensor([0])
        equal(state.logits[own], alone.logits)
        for layer in LAYERS:
            equal(state.post[layer][own], alone.post[layer])
            equal(state.mlp_out[layer][own], alone.mlp_out[layer])
            expected = alone.logits_with_post([Replacement(layer=layer, rows=one, post=alone.post[layer] / 2)])
            equal(replaced[layer, own], expected)
        moved = added.detach()[own].clone().requires_grad_()
        expected = alone.logits_with_additions(one, {0: ("mlp_out", moved)})
        equal(logits[own], expected)
        (expected_gradient,) = torch.autograd.grad(expected.log_softmax(-1)[:, 7].sum(), [moved])
        equal(gradient[own], expected_gradient)
        assert (logits[own] - alone.logits).norm() > 1e-3


def test_rows_at_the_end_of_the_context_go_with_rows_that_run_more_tokens():
    """The tokens that fill up the longest row would be beyond the last position."""
    host = kn.host_of(loaded("GPT2LMHeadModel"))
    lengths, post_pos = torch.tensor([host.n_ctx, 6]), torch.tensor([host.n_ctx - 1, 2])
    mask = (torch.arange(host.n_ctx) < lengths[:, None]).long()
    tokens = torch.arange(1, 1 + mask.numel()).view(mask.shape) % host.d_vocab * mask
    state = run_clean(host, tokens, mask, lengths - 1, LAYERS, post_pos=post_pos, together=True)
    assert state.pass_group.tolist() == [0, 0]
    added = torch.ones(2, host.d_model, dtype=host.dtype)
    logits = state.logits_with_additions(torch.arange(2), {0: ("mlp_out", added)})
    for row, length in enumerate(lengths.tolist()):
        own = slice(row, row + 1)
        alone = run_clean(
            host, tokens[own, :length], mask[own, :length], lengths[own] - 1, LAYERS, post_pos=post_pos[own]
        )
        equal(logits[own], alone.logits_with_additions(torch.tensor([0]), {0: ("mlp_out", added[own])}))
