"""A damaged checkpoint is refused with a clear error, or loads as a model that can be hosted."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

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
    """Load the checkpoint with another content of one of its files, then restore the file."""
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
def test_damaged_files_are_loaded_or_refused(checkpoint, load, name, data):
    load(name, data.draw(damaged((checkpoint / name).read_bytes())))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@fuzz(usually=15, share=0.02)
@given(data=st.data())
def test_files_with_one_changed_value_are_loaded_or_refused(checkpoint, load, name, data):
    valid = json.loads((checkpoint / name).read_bytes())
    place = data.draw(st.sampled_from(list(places_in(valid))))
    load(name, json.dumps(with_changed(valid, place, data.draw(st.sampled_from(VALUES)))).encode())


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "a/../../outside.safetensors", 3])
def test_weights_outside_of_the_checkpoint_are_not_loaded(name, tmp_path):
    folder = tiny_checkpoint("GPT2LMHeadModel", tmp_path / "checkpoint")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    weights = load_file(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, name)})
    )
    with pytest.raises(kn.UnsupportedModelError, match="in its own directory"):
        kn.load_model(folder)


def test_symbolic_links_as_in_the_hub_cache_are_followed(tmp_path):
    folder = tiny_checkpoint("GPT2LMHeadModel", tmp_path / "checkpoint")
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    kn.load_model(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_in_a_checkpoint_does_not_block(name, tmp_path):
    folder = tiny_checkpoint("GPT2LMHeadModel", tmp_path / "checkpoint")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(kn.UnsupportedModelError, match=f"{name}, which is not a regular file"):
        kn.load_model(folder)
