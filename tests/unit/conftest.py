"""Models that have to come back as they were, and one that must not run."""

import pytest

import kn_lens as kn
from tests.effects import FACTS, MODELS
from tests.reliability.state import differences, state_of
from tests.tiny import loaded


@pytest.fixture(params=MODELS)
def model_and_prompts(request):
    """A model and prompts of two relations; the model has to come back as it was."""
    model = loaded(request.param)
    before = state_of(model)
    yield model, kn.make_prompts(model, FACTS)
    assert not differences(before, state_of(model))


@pytest.fixture
def no_passes(monkeypatch):
    """A model whose forward pass fails the test."""
    model = loaded("GPT2LMHeadModel")

    def forward(*args, **kwargs):
        raise AssertionError("the model ran")

    monkeypatch.setattr(model.original_model, "forward", forward)
    with pytest.raises(AssertionError, match="the model ran"):
        kn.predict(model, kn.make_prompts(model, FACTS))
    return model
