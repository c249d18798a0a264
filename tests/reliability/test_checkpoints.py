"""A damaged checkpoint is refused in words, or loads as a model that can be hosted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from tests.reliability.tries import damaged, fuzz, places_in, taken_or_refused, with_changed
from tests.tiny import tiny_checkpoint

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
VALUES = [None, True, -1, 0, 1, 3, 0.5, "", "x", "../x", [], {}, [[1]], {"a": None}, "BertModel", "gpt2"]
"""No large numbers: what a configuration asks for is built, a billion layers too."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint("BertForMaskedLM", tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def load(checkpoint):
    """Load the checkpoint with another content of one of its files; afterwards it is as before."""
    before = {name: (checkpoint / name).read_bytes() for name in FILES}

    def loaded(name, content):
        (checkpoint / name).write_bytes(content)
        try:
            taken_or_refused("checkpoints: damaged", lambda: kn.host_of(kn.load_model(checkpoint)))
        finally:
            (checkpoint / name).write_bytes(before[name])

    return loaded


@pytest.mark.parametrize("name", FILES)
@fuzz(usually=12, share=0.02)
@given(data=st.data())
def test_after_accidents(checkpoint, load, name, data):
    load(name, data.draw(damaged((checkpoint / name).read_bytes())))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@fuzz(usually=15, share=0.02)
@given(data=st.data())
def test_with_a_value_exchanged(checkpoint, load, name, data):
    valid = json.loads((checkpoint / name).read_bytes())
    place = data.draw(st.sampled_from(list(places_in(valid))))
    load(name, json.dumps(with_changed(valid, place, data.draw(st.sampled_from(VALUES)))).encode())
