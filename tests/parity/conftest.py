"""A model outside and inside TransformerLens, with prompts."""

import pytest
from transformers import BertForMaskedLM

import kn_lens as kn
from tests.parity.cases import CONFIGS, make, make_batch


@pytest.fixture(params=CONFIGS, scope="module")
def pair(request):
    """Return a Hugging Face model, for the oracle, and a TransformerLens model with the same weights."""
    plain, hosted = make(request.param), make(request.param)
    return plain, kn.load_model(hosted)


@pytest.fixture
def prompts(pair):
    return make_batch(isinstance(pair[0], BertForMaskedLM))
