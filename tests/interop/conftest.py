"""One fact in one model, with its knowledge neurons, for the tests of all tools."""

import pytest
import torch

import kn_lens as kn


@pytest.fixture(scope="session")
def model():
    return kn.load_model("world-gpt2", dtype=torch.float64)


@pytest.fixture(scope="session")
def fact():
    return kn.FactSet.world().find("Ireland", relation="P36")


@pytest.fixture(scope="session")
def prompts(model, fact):
    """Return four prompts of different lengths."""
    return kn.make_prompts(model, fact).select(torch.arange(4))


@pytest.fixture(scope="session")
def neurons(model, fact, prompts):
    found = kn.refine(kn.attribute(model, prompts))[fact]
    assert len(found) and max(neuron.layer for neuron in found) == kn.host_of(model).n_layers - 1
    return found
