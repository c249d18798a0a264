"""Adapters of PEFT inside a model: attribution sees what they do, and edits of rows that they bypass are refused."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import kn_lens as kn
from tests.interop.tools import without_warnings
from tests.parity.cases import N_LAYERS, make, make_batch

NEURONS = kn.NeuronSet([(0, 1), (2, 5)])


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A Llama with a LoRA adapter on ``down_proj`` that does a lot, read from disk by transformers; and merged."""
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
    return read, merged


def test_scores_are_those_of_the_model_with_its_adapter(adapted):
    read, merged = adapted
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
    read, merged = adapted
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
