"""SAELens: the features that a knowledge neuron writes to, and the effect of suppression with an SAE in the model."""

import pytest
import torch

import kn_lens as kn
from tests.interop.tools import tool

sae_lens = tool("sae_lens")


@pytest.fixture(params=["bridge", "hooked"])
def host(request):
    return kn.host_of(kn.load_model("world-gpt2", dtype=torch.float64, host=request.param))


@pytest.fixture(scope="module")
def sae():
    """Return an untrained SAE of the residual stream; the tests hold for any weights."""
    torch.manual_seed(0)
    sae = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=128, d_sae=256, dtype="float64"))
    return sae.requires_grad_(False).eval()


def test_suppression_removes_from_each_feature_what_the_neuron_wrote(host, sae, prompts, neurons):
    model, neuron = host.model, max(neurons)
    name, rows = host.resid_post(neuron.layer), torch.arange(len(prompts))
    run = dict(attention_mask=prompts.attention_mask)

    def features(hooks):
        with model.hooks(fwd_hooks=hooks):
            _, cache = model.run_with_cache(prompts.tokens, **run)
        resid = cache[name][rows, prompts.read_pos]
        return cache, sae.run_with_cache(resid)[1]["hook_sae_acts_pre"]

    cache, before = features([])
    _, after = features(kn.Suppress(kn.NeuronSet([neuron])).hooks(model, prompts))
    writes = host.W_out(neuron.layer)[neuron.index] @ sae.W_enc  # to each feature, per unit of activation
    post = cache[host.hook_post(neuron.layer)][rows, prompts.read_pos, neuron.index]
    torch.testing.assert_close(before - after, post[:, None] * writes, atol=1e-10, rtol=0)
    assert (before - after).abs().max() > 0.1


def test_the_effect_is_measured_through_a_spliced_sae(host, sae, prompts, neurons):
    """An SAE with its error term changes no activation, so that suppression below and above it has its usual effect."""
    model, suppress = host.model, kn.Suppress(neurons)
    active = []

    def splice(resid, hook):
        active.append(sae.encode(resid) > 0)
        reconstruction = sae(resid)
        return reconstruction + (resid - reconstruction)

    hooks = [*suppress.hooks(model, prompts), (host.resid_post(min(neurons).layer), splice)]
    logits = model.run_with_hooks(prompts.tokens, attention_mask=prompts.attention_mask, fwd_hooks=hooks)
    rows = torch.arange(len(prompts))
    found = logits[rows, prompts.read_pos].softmax(-1)[rows, prompts.target_ids]
    assert active[0].any()
    assert found.tolist() == pytest.approx(kn.measure(model, prompts, suppress)["after"].tolist(), abs=1e-10)
