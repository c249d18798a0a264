"""circuitsvis: a drawing of a knowledge neuron's activation on each token."""

import json

import torch

import kn_lens as kn
from tests.interop.tools import tool

tokens = tool("circuitsvis").tokens


def test_circuitsvis_draws_the_activations_of_a_neuron(model, prompts, neurons):
    host, neuron = kn.host_of(model), max(neurons)
    one = prompts.select(torch.tensor([0]))
    _, cache = model.run_with_cache(one.tokens, attention_mask=one.attention_mask)
    length = int(one.attention_mask.sum())
    words = [host.tokenizer.decode([token]) for token in one.tokens[0, :length].tolist()]
    values = cache[host.hook_post(neuron.layer)][0, :length, neuron.index]
    page = str(tokens.colored_tokens(words, values.tolist()))
    assert json.dumps(words) in page and "Ireland" in "".join(words)
    assert all(str(value) in page for value in values.tolist())
