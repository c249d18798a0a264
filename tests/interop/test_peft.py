"""PEFT: attribution includes the effect of adapters, and edits of rows beside an adapter are refused."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import kn_lens as kn
from kn_lens.hosts import peft_adapters
from tests.interop.tools import without_warnings
from tests.parity.cases import N_LAYERS, make, make_batch
from tests.tiny import tiny_tokenizer

LLAMA = "LlamaForCausalLM"

NEURONS = kn.NeuronSet([(0, 1), (2, 5)])


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """Return a Llama with a strong LoRA adapter on ``down_proj``, the merged model, and the adapter's directory."""
    with without_warnings():
        from peft import LoraConfig, get_peft_model

        folder = tmp_path_factory.mktemp("adapter")
        base = make("gated")
        base.save_pretrained(folder / "base")
        wrapped = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj"]))
        generator = torch.Generator().manual_seed(2)
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.data = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        wrapped.peft_config["default"].base_model_name_or_path = str(folder / "base")
        wrapped.save_pretrained(folder / "adapter")
        read = AutoModelForCausalLM.from_pretrained(
            folder / "adapter", dtype=torch.float64, attn_implementation="eager"
        ).eval()
        merged = copy.deepcopy(wrapped).merge_and_unload().eval()
    return read, merged, folder / "adapter"


def test_scores_are_those_of_the_model_with_its_adapter(adapted):
    read, merged, _ = adapted
    model, prompts = kn.load_model(copy.deepcopy(read)), make_batch(False)
    attr = kn.attribute(model, prompts, quadrature="gauss-legendre", n_steps=2)
    whole = kn.attribute(kn.load_model(copy.deepcopy(merged)), prompts, quadrature="gauss-legendre", n_steps=2)
    base = kn.attribute(kn.load_model(make("gated")), prompts, quadrature="gauss-legendre", n_steps=2)
    for name in ("scores", "clean", "expected"):
        torch.testing.assert_close(getattr(attr, name), getattr(whole, name), rtol=1e-8, atol=1e-12)
    assert not torch.allclose(attr.scores, base.scores, rtol=0.1)
    for layer in range(N_LAYERS):
        reference = kn.reference_attribution(model, prompts, layer, rule="gauss-legendre", n_steps=2)
        torch.testing.assert_close(attr.scores[:, layer], reference, rtol=1e-8, atol=1e-12)


def test_edits_of_rows_beside_an_adapter_are_refused(adapted):
    read, merged, _ = adapted
    model = kn.load_model(copy.deepcopy(read))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for call in (
        lambda: kn.erase_neurons(model, NEURONS),
        lambda: kn.erase_neurons(kn.load_model(make("gated")), NEURONS).apply_(model),
        lambda: kn.erase_neurons(kn.load_model(make("gated")), NEURONS).hooks(model),
    ):
        with pytest.raises(kn.EditError, match=r"(?s)adapter.*merge_and_unload"):
            call()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())

    merged_model, prompts = kn.load_model(copy.deepcopy(merged)), make_batch(False)
    with kn.erase_neurons(merged_model, NEURONS).applied(merged_model):
        erased = kn.measure(merged_model, prompts, [])
    off = kn.measure(model, prompts, kn.Suppress(NEURONS, position="all"))
    torch.testing.assert_close(torch.tensor(off.after.to_numpy()), torch.tensor(erased.after.to_numpy()))


@torch.no_grad()
def test_a_directory_with_an_adapter_is_read_as_its_base_model_with_the_adapter_merged(adapted):
    _, merged, directory = adapted
    with without_warnings():
        model = kn.load_model(directory, tokenizer=tiny_tokenizer(LLAMA), dtype=torch.float64, device="cpu")
    host = kn.host_of(model)
    assert host.origin == f"{directory.parent / 'base'} with the adapter adapter merged in"
    for layer in range(host.n_layers):
        torch.testing.assert_close(host.W_out(layer), merged.model.layers[layer].mlp.down_proj.weight.T)
    kn.erase_neurons(model, NEURONS)  # there is nothing beside the rows


def test_a_model_inside_an_adapter_is_refused_with_the_call_that_merges_it(adapted):
    with without_warnings():
        from peft import LoraConfig, get_peft_model

        wrapped = get_peft_model(make("gated"), LoraConfig(r=2, target_modules=["down_proj"]))
    with pytest.raises(kn.UnsupportedModelError, match=r"adapter of PEFT.*peft_model\.merge_and_unload\(\)"):
        kn.load_model(wrapped)


def test_adapters_that_cannot_be_merged_are_refused(adapted, tmp_path, monkeypatch):
    directory = adapted[-1]
    broken = shutil.copytree(directory, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(kn.UnsupportedModelError, match=r"broken' cannot be merged into its base model"):
        kn.load_model(broken, tokenizer=tiny_tokenizer(LLAMA))
    (broken / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    with pytest.raises(kn.UnsupportedModelError, match=r"with the base model None; expected a name or a path"):
        kn.load_model(broken)
    (broken / "adapter_config.json").write_text("[]")
    with pytest.raises(kn.UnsupportedModelError, match=r"damaged: expected base_model_name_or_path"):
        kn.load_model(broken)
    monkeypatch.setattr(peft_adapters, "find_spec", lambda name: None)
    with pytest.raises(kn.UnsupportedModelError, match=r"Install it with: pip install peft"):
        kn.load_model(directory)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("layers.0", "layers.9", "its file lacks 2 weights, such as .*layers.0.mlp.down_proj.lora_A"),
        ("lora_B", "lora_C", "its file lacks 3 weights, such as .*lora_B"),
    ],
)
def test_an_adapter_whose_weights_have_other_names_is_refused(adapted, tmp_path, old, new, reason):
    """PEFT warns alone, and the adapter would do nothing."""
    directory = shutil.copytree(adapted[-1], tmp_path / "renamed")
    file = directory / "adapter_model.safetensors"
    renamed = {}
    for name, weight in load_file(file).items():
        renamed[name.replace(old, new)] = weight
    save_file(renamed, file)
    with without_warnings(), pytest.raises(kn.UnsupportedModelError, match=reason):
        kn.load_model(directory, tokenizer=tiny_tokenizer(LLAMA))


def test_an_adapter_for_more_layers_is_refused(adapted, tmp_path):
    directory = shutil.copytree(adapted[-1], tmp_path / "deeper")
    file = directory / "adapter_model.safetensors"
    weights = load_file(file)
    deeper = {name.replace("layers.0", "layers.9"): weight.clone() for name, weight in weights.items()}
    save_file({**weights, **deeper}, file)
    with (
        without_warnings(),
        pytest.raises(kn.UnsupportedModelError, match=r"2 weights that the model has no place for.*layers\.9"),
    ):
        kn.load_model(directory, tokenizer=tiny_tokenizer(LLAMA))


def test_what_an_adapter_lacks_is_named(adapted, tmp_path):
    directory = shutil.copytree(adapted[-1], tmp_path / "adapter")
    with pytest.raises(kn.ArgumentError, match="revision= is for names on the Hugging Face hub"):
        kn.load_model(directory, revision="main")
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(kn.UnsupportedModelError, match=r"holds no weights of an adapter; expected adapter_model\.saf"):
        kn.load_model(directory, tokenizer=tiny_tokenizer(LLAMA))
    config = json.loads((directory / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/no/such/base"
    (directory / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(kn.UnsupportedModelError, match=r"base model of the adapter in .*Unknown model '/no/such"):
        kn.load_model(directory)


def test_an_adapter_of_another_size_says_where(adapted, tmp_path):
    directory = shutil.copytree(adapted[-1], tmp_path / "adapter")
    file = directory / "adapter_model.safetensors"
    save_file({name: weight[:1].clone() for name, weight in load_file(file).items()}, file)
    with without_warnings(), pytest.raises(kn.UnsupportedModelError, match=r"size mismatch for .*lora_"):
        kn.load_model(directory, tokenizer=tiny_tokenizer(LLAMA))
