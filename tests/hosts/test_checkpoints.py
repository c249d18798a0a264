"""Ways to load a model: from disk, by name and from memory, and what loading leaves alone."""

import json
import logging
import pickle
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import transformers

from kn_lens.errors import ArgumentError, UnsupportedModelError
from kn_lens.hosts import checkpoints as _loading
from kn_lens.hosts import host_of, load_model
from tests.tiny import equal, tiny_checkpoint, tiny_hf_model, tiny_model, tiny_tokenizer


def test_a_model_in_memory_is_wrapped_in_place() -> None:
    hf_model, tokenizer = tiny_hf_model("LlamaForCausalLM"), tiny_tokenizer("LlamaForCausalLM")
    config = hf_model.config.to_dict()
    host = host_of(load_model(hf_model, tokenizer=tokenizer))
    assert host.model.original_model is hf_model
    assert host.tokenizer is tokenizer
    assert hf_model.config.to_dict() == config
    assert host_of(load_model(tiny_hf_model("BertForMaskedLM"))).tokenizer is None


def test_a_transformer_lens_model_passes_through() -> None:
    model = tiny_model("GPT2LMHeadModel")
    tokenizer = host_of(model).tokenizer
    assert load_model(model) is model
    assert host_of(model).tokenizer is tokenizer
    assert host_of(load_model(model, tokenizer=tiny_tokenizer("GPT2LMHeadModel"))).tokenizer is not tokenizer


def test_an_embedded_model_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint("BertForMaskedLM", tmp_path / "world-tiny", dtype=torch.float16)
    monkeypatch.setattr(_loading, "EMBEDDED_DIR", tmp_path)
    host = host_of(load_model("world-tiny", device="cpu"))
    assert (host.name, host.dtype) == ("world-tiny", torch.float32)
    with pytest.raises(UnsupportedModelError, match=r"Unknown model 'world-tyni'.*Did you mean 'world-tiny'\?"):
        load_model("world-tyni")


def test_a_subclass_of_a_hugging_face_model_is_its_family() -> None:
    class MyBert(transformers.BertForMaskedLM):
        pass

    plain = tiny_hf_model("BertForMaskedLM")
    mine = MyBert(plain.config).double().eval()
    mine.load_state_dict(plain.state_dict())
    host, tokens = host_of(load_model(mine)), torch.arange(8, 14)[None]
    assert host.architecture == "BertForMaskedLM"
    equal(host.logits(tokens, torch.ones_like(tokens)), plain(tokens).logits)


@torch.no_grad()
def test_a_causal_family_outside_the_table_works_if_its_mlps_are_dense() -> None:
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.Starcoder2Config(**settings, intermediate_size=24, vocab_size=50)
    hf_model = transformers.Starcoder2ForCausalLM(config).double().eval()
    tokens = torch.arange(8, 14)[None]
    expected = hf_model(tokens).logits
    equal(host_of(load_model(hf_model)).logits(tokens, torch.ones_like(tokens)), expected, 1e-5)


def test_bin_weights_are_read_without_unpickling_code(tmp_path: Path) -> None:
    directory = tiny_checkpoint("BertForMaskedLM", tmp_path)
    hf_model = tiny_hf_model("BertForMaskedLM")
    (directory / "model.safetensors").unlink()
    torch.save(hf_model.state_dict(), directory / "pytorch_model.bin")
    tokens = torch.arange(8, 14)[None]
    host = host_of(load_model(directory, dtype=torch.float64, device="cpu"))
    equal(host.logits(tokens, torch.ones_like(tokens)), hf_model(tokens).logits)

    class Exploit:
        def __reduce__(self):
            return Path.touch, (tmp_path / "code was run",)

    with (directory / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weight": Exploit()}, file)
    with pytest.raises(UnsupportedModelError, match="cannot be loaded"):
        load_model(directory)
    assert not (tmp_path / "code was run").exists()


def test_loading_leaves_loggers_and_warning_filters_alone(tmp_path: Path) -> None:
    directory = tiny_checkpoint("GPT2LMHeadModel", tmp_path)
    logger = logging.getLogger("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = (logger.level, list(warnings.filters), logging.getLogger().level, list(logging.getLogger().handlers))
        load_model(directory)
        assert before == (
            logger.level,
            list(warnings.filters),
            logging.getLogger().level,
            list(logging.getLogger().handlers),
        )


def test_a_directory_without_tokenizer_loads_with_one_given(tmp_path: Path) -> None:
    directory = tiny_checkpoint("BertForMaskedLM", tmp_path)
    (directory / "tokenizer.json").unlink()
    tokenizer = tiny_tokenizer("BertForMaskedLM")
    assert host_of(load_model(directory, tokenizer=tokenizer)).tokenizer is tokenizer


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "MBartForConditionalGeneration", "MPNetForMaskedLM"])
def test_a_tokenizer_given_is_not_compared_with_one_that_transformers_makes_without_words(
    architecture: str, tmp_path: Path
) -> None:
    """It makes one of the checkpoint's class where a folder has none, in which some texts cannot be encoded."""
    if architecture == "MPNetForMaskedLM":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        transformers.MPNetForMaskedLM(transformers.MPNetConfig(vocab_size=300, **sizes)).save_pretrained(tmp_path)
    else:
        tiny_checkpoint(architecture, tmp_path)
        for path in tmp_path.glob("*token*"):
            path.unlink()
    tokenizer = tiny_tokenizer("BertForMaskedLM")  # with [CLS] before each text
    assert host_of(load_model(tmp_path, tokenizer=tokenizer)).tokenizer is tokenizer


@pytest.mark.parametrize(
    "architecture",
    ["BertForMaskedLM", "LlamaForCausalLM", "BartForConditionalGeneration", "T5ForConditionalGeneration"],
)
def test_what_a_model_returns_by_default_is_no_matter(architecture: str, tmp_path: Path) -> None:
    if architecture.startswith("T5") and version("transformer-lens").startswith("3."):
        pytest.skip("TransformerLens 3 cannot run it")
    directory = tiny_checkpoint(architecture, tmp_path)
    expected = load_model(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"return_dict": False}))
    model = load_model(directory)
    tokens = torch.tensor([[5, 6, 7]])
    inputs = {"decoder_input_ids": tokens} if "Conditional" in architecture else {}
    with torch.no_grad():
        assert torch.equal(model(tokens, **inputs), expected(tokens, **inputs))
    model.original_model.config.return_dict = False
    with pytest.raises(UnsupportedModelError, match=r"return_dict=False .*original_model.config.return_dict = True"):
        host_of(model)


def test_a_model_in_memory_that_is_refused_returns_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: object) -> None:
        raise UnsupportedModelError("no")

    hf_model = tiny_hf_model("BertForMaskedLM", return_dict=False)
    monkeypatch.setattr("kn_lens.hosts.loading.host_of", fail)
    with pytest.raises(UnsupportedModelError, match="no"):
        load_model(hf_model)
    assert isinstance(hf_model(torch.tensor([[5, 6]])), tuple)


def test_a_device_that_is_none_is_refused_with_the_usual_ones():
    with pytest.raises(ArgumentError, match=r"^device='gpu'; expected 'cpu', 'cuda' or 'mps'\.$"):
        load_model("world-bert", device="gpu")
