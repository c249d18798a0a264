"""On every family, resumed and batched attribution equals full passes over one unpadded prompt at a time."""

import pytest
import torch

import kn_lens as kn
from kn_lens.quadrature import quadrature
from tests.tiny import CAUSAL, MASKED, N_LAYERS, equal, loaded, tiny_model

# These compute the softmax of attention in float32, whatever the weights are in.
ROUGH = {"GPTNeoForCausalLM", "GPTJForCausalLM", "MptForCausalLM"}


def full_pass(model, prompts, row, layer, post):
    """P(target) of one row from a full, unpadded pass, with the activation replaced unless post is None; and it."""
    length, read_pos = int(prompts.attention_mask[row].sum()), int(prompts.read_pos[row])
    seen = []

    def hook_fn(activation, hook):
        seen.append(activation[0, read_pos].detach())
        if post is not None:
            at_read_pos = (torch.arange(length) == read_pos)[None, :, None]
            return torch.where(at_read_pos, post, activation)

    tokens = prompts.tokens[row, None, :length]
    logits = model.run_with_hooks(
        tokens, attention_mask=torch.ones_like(tokens), fwd_hooks=[(f"blocks.{layer}.mlp.hook_post", hook_fn)]
    )
    return logits[0, read_pos].softmax(-1)[prompts.target_ids[row]], seen[0]


def prompts_for(model, lengths, read_pos):
    """Right-padded prompts of random tokens."""
    generator = torch.Generator().manual_seed(3)
    lengths, n_pos = torch.tensor(lengths), max(lengths)
    mask = (torch.arange(n_pos) < lengths[:, None]).long()
    tokens = torch.randint(10, 40, (len(lengths), n_pos), generator=generator)
    pad = getattr(kn.host_of(model).tokenizer, "pad_token_id", None) or 0
    return kn.PromptBatch.from_tokens(
        torch.where(mask.bool(), tokens, pad),
        attention_mask=mask,
        read_pos=torch.tensor(read_pos),
        target_ids=torch.randint(10, 40, (len(lengths),), generator=generator),
    )


def assert_scores_of_full_passes(model, prompts, share):
    """``share`` is of each layer's largest score."""
    attr = kn.attribute(model, prompts, quadrature="gauss-legendre", n_steps=3)
    points = quadrature("gauss-legendre", 3)
    for row in range(len(prompts)):
        for layer in range(N_LAYERS):
            with torch.no_grad():
                p, w = full_pass(model, prompts, row, layer, None)
            total = torch.zeros_like(w)
            for node, weight in zip(points.nodes, points.weights, strict=True):
                point = (node * w).requires_grad_()
                total += weight * torch.autograd.grad(full_pass(model, prompts, row, layer, point)[0], point)[0]
            scores = w * total
            torch.testing.assert_close(attr.scores[row, layer], scores, rtol=0, atol=share * float(scores.abs().max()))
            torch.testing.assert_close(attr.clean[row], p, rtol=share, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("architecture", MASKED + CAUSAL)
def test_attribution_equals_full_passes_one_by_one(architecture, dtype):
    model = tiny_model(architecture, dtype=dtype)
    read_pos = [5, 8, 5, 3] if architecture in CAUSAL else [3, 4, 3, 2]
    share = 1e-5 if dtype == torch.float32 else 1e-10
    assert_scores_of_full_passes(
        model, prompts_for(model, [6, 9, 6, 4], read_pos), 1e-4 if architecture in ROUGH else share
    )


@pytest.mark.parametrize("architecture", CAUSAL)
def test_causal_models_are_read_at_any_token(architecture):
    """Also where tokens follow that see the change, and beside a prompt that is read at its last token."""
    model = loaded(architecture)
    share = 1e-4 if architecture in ROUGH else 1e-10
    prompts = prompts_for(model, [9, 4, 3], [4, 0, 2])
    assert_scores_of_full_passes(model, prompts, share)

    # Passes that change several layers at once.
    neurons = kn.NeuronSet([(layer, index) for layer in range(N_LAYERS) for index in (1, 5)])
    after = kn.measure(model, prompts, kn.Suppress(neurons))["after"]
    slopes = kn.attribute(model, prompts, method="gradient_x_activation").scores
    for row in range(len(prompts)):
        alone = prompts.select(torch.tensor([row]))
        with torch.no_grad(), model.hooks(fwd_hooks=kn.Suppress(neurons).hooks(model, alone)):
            assert float(full_pass(model, prompts, row, 0, None)[0]) == pytest.approx(after[row], rel=share)
        for layer in range(N_LAYERS):
            point = full_pass(model, prompts, row, layer, None)[1].requires_grad_()
            slope = torch.autograd.grad(full_pass(model, prompts, row, layer, point)[0], point)[0]
            equal(slopes[row, layer], (point * slope).detach(), share)
