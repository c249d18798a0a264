"""captum: integrated gradients along the same path, over a forward pass of the TransformerLens model."""

import torch
from captum.attr import IntegratedGradients

import kn_lens as kn


def test_captum_gives_the_sum_of_the_paper(model, prompts, neurons):
    one = prompts.select(torch.tensor([1]))
    layer = max(neuron.layer for neuron in neurons)
    host, pos = kn.host_of(model), int(one.read_pos)

    def probability(post):
        """Return P(answer) with each row of ``post`` as the layer's activation at the read position."""

        def put(activation, hook):
            here = (torch.arange(activation.shape[1]) == pos)[None, :, None]
            return torch.where(here, post[:, None], activation)

        mask = one.attention_mask.expand(len(post), -1)
        tokens = one.tokens.expand(len(post), -1)
        logits = model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=[(host.hook_post(layer), put)])
        return logits[:, pos].softmax(-1)[:, one.target_ids[0]]

    _, cache = model.run_with_cache(one.tokens, attention_mask=one.attention_mask)
    theirs = IntegratedGradients(probability).attribute(
        cache[host.hook_post(layer)][:, pos], n_steps=20, method="riemann_right"
    )
    ours = kn.attribute(model, one, preset="paper").scores[:, layer]
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-6)
    assert ours.abs().max() > 1e-3
