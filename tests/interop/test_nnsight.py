"""nnsight: a trace of the checkpoint that an edit was exported to."""

import torch
from transformers import AutoModelForCausalLM

import kn_lens as kn
from tests.interop.tools import tool

nnsight = tool("nnsight")


def test_nnsight_traces_an_exported_edit(model, prompts, neurons, tmp_path):
    neuron = max(neurons)
    edit = kn.erase_neurons(model, kn.NeuronSet([neuron]))
    where = kn.export(model, edit, tmp_path / "edited")
    one = prompts.select(torch.tensor([0]))
    pos, hook_post = int(one.read_pos), kn.host_of(model).hook_post(neuron.layer)
    with edit.applied(model):
        expected, cache = model.run_with_cache(one.tokens, attention_mask=one.attention_mask)

    traced = nnsight.NNsight(AutoModelForCausalLM.from_pretrained(where))
    tokens = one.tokens
    with torch.no_grad(), traced.trace(tokens):
        post = traced.transformer.h[neuron.layer].mlp.c_proj.input.save()
        logits = traced.lm_head.output.save()
    torch.testing.assert_close(post[0, pos], cache[hook_post][0, pos], atol=1e-10, rtol=0)
    torch.testing.assert_close(logits[0, pos], expected[0, pos], atol=1e-10, rtol=0)
