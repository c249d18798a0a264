"""Addresses on Neuronpedia: its form for MLP neurons, and models that are not known."""

import re

import pytest

import kn_lens as kn
from kn_lens.neurons.neuronpedia import NEURONPEDIA_IDS
from tests.tiny import loaded


def test_address_is_model_layer_and_index():
    """The source of MLP neurons is the layer's number alone, as in addresses in Neuronpedia's own documentation."""
    expected = "https://www.neuronpedia.org/gpt2-small/6/2294"
    for neuron in ("L6N2294", (6, 2294), kn.Neuron(6, 2294), kn.NeuronSet(["L6N2294"])):
        assert kn.neuronpedia_url(neuron, "gpt2-small") == expected
    assert kn.neuronpedia_url("L6N2294", "openai-community/gpt2") == expected
    assert kn.neuronpedia_url("L0N1", "some-model") == "https://www.neuronpedia.org/some-model/0/1"


def test_ids_are_parts_of_addresses():
    assert all(re.fullmatch(r"[a-z0-9.-]+", model_id) for model_id in NEURONPEDIA_IDS.values())


def test_what_has_no_address_is_refused_with_the_call():
    model = loaded("GPT2LMHeadModel")
    with pytest.raises(kn.ArgumentError, match=r"not known here; expected the id .*neuronpedia_url\(neuron, 'gpt2"):
        kn.neuronpedia_url("L0N1", model)
    with pytest.raises(kn.ArgumentError, match="has no neuron L99N1"):
        kn.neuronpedia_url("L99N1", model)
    with pytest.raises(kn.ArgumentError, match="Did you mean 'Qwen/Qwen3-4B'"):
        kn.neuronpedia_url("L0N1", "Qwen/Qwen-4B")
    with pytest.raises(kn.ArgumentError, match="for neuron in neurons"):
        kn.neuronpedia_url(kn.NeuronSet(["L0N1", "L0N2"]), "gpt2-small")
    with pytest.raises(kn.UnsupportedModelError, match="expected a TransformerLens model"):
        kn.neuronpedia_url("L0N1", None)
