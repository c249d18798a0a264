"""The check at loading: a host that computes another model is refused, and a right one never is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.model_bridge.supported_architectures import LlamaArchitectureAdapter

import kn_lens as kn
from kn_lens.errors import ArgumentError, HookError, UnsupportedModelError
from tests.tiny import CAUSAL, MASKED, tiny_checkpoint, tiny_hf_model, tiny_model, tiny_tokenizer

TOKENS = torch.arange(8, 14)[None]


class WrongRotation(LlamaArchitectureAdapter):
    """An adapter that turns queries and keys by other angles than the checkpoint does."""

    def prepare_model(self, hf_model: Any) -> None:
        super().prepare_model(hf_model)
        hf_model.model.rotary_emb.inv_freq *= 2


class WrongNorm(LlamaArchitectureAdapter):
    """An adapter whose norms have another epsilon than the checkpoint's: a small error."""

    def prepare_model(self, hf_model: Any) -> None:
        super().prepare_model(hf_model)
        for block in hf_model.model.layers:
            block.input_layernorm.variance_epsilon = 1e-2


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[ArchitectureAdapterFactory]]:
    """TransformerLens' registry of adapters, which a test may add to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArchitectureAdapterFactory, "_adapters", dict(ArchitectureAdapterFactory._adapters))
        yield ArchitectureAdapterFactory


@pytest.mark.parametrize("adapter", [WrongRotation, WrongNorm])
def test_a_wrong_adapter_is_caught_with_the_size_of_its_error(adapter: type, registry: Any, tmp_path: Path) -> None:
    registry.register_adapter("LlamaForCausalLM", adapter)
    directory = tiny_checkpoint("LlamaForCausalLM", tmp_path)
    with pytest.raises(
        UnsupportedModelError,
        match=r"other logits than transformers: they differ by [\d.e-]+ \(root mean square\), where "
        r"logits vary by \d.* and rounding in torch.float32 explains [\d.e-]+",
    ):
        kn.load_model(directory)
    model = kn.load_model(directory, check=False)
    with pytest.raises(UnsupportedModelError, match="other logits than the checkpoint"):
        kn.check_host(model, directory)


def test_a_refused_model_in_memory_is_as_it_was(registry: Any) -> None:
    registry.register_adapter("LlamaForCausalLM", WrongNorm)
    hf_model = tiny_hf_model("LlamaForCausalLM")
    names = [(name, type(module)) for name, module in hf_model.named_modules()]
    before, attention = hf_model(TOKENS).logits, hf_model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match="computes other logits"):
        kn.load_model(hf_model)
    assert [(name, type(module)) for name, module in hf_model.named_modules()] == names
    assert hf_model.config._attn_implementation == attention
    assert all(weight.requires_grad for weight in hf_model.parameters())
    assert torch.equal(hf_model(TOKENS).logits, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "architecture", ["BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "Gemma3ForCausalLM"]
)
def test_rounding_passes(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Also between the fused attention of transformers and the eager one of the host."""
    hf_model = tiny_hf_model(architecture, dtype)
    assert hf_model.config._attn_implementation == "sdpa"
    model = kn.load_model(hf_model, tokenizer=tiny_tokenizer(architecture))
    check = kn.check_host(model, tiny_hf_model(architecture, dtype))
    assert check.reference == f"the {architecture} given"
    assert 0 < check.difference < check.limit / 3


def test_each_part_of_a_mask_is_checked() -> None:
    """A host that ignores the attention mask is wrong for padded prompts alone."""
    model = tiny_model("BertForMaskedLM")
    kn.check_host(model)
    forward = model.forward

    def without_mask(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return forward(*args, attention_mask=torch.ones_like(attention_mask), **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "forward", lambda self, *args, **kwargs: without_mask(*args, **kwargs))
        with pytest.raises(UnsupportedModelError, match="computes other logits"):
            kn.check_host(model)


@pytest.mark.parametrize("architecture", MASKED + CAUSAL)
def test_the_weights_of_a_bridge_are_run_in_a_plain_model(architecture: str) -> None:
    model = tiny_model(architecture)
    weights = kn.host_of(model).W_out(0)
    check = kn.check_host(model)
    assert check.reference == f"the same weights in a plain {architecture}"
    assert check.difference <= check.limit
    assert kn.host_of(model).W_out(0).data_ptr() == weights.data_ptr()


def test_weights_are_compared_with_a_checkpoints(tmp_path: Path) -> None:
    directory = tiny_checkpoint("GPT2LMHeadModel", tmp_path)
    model = kn.load_model(directory)
    assert kn.check_host(model, directory).reference == f"the checkpoint {str(directory)!r}"
    with kn.erase_neurons(model, kn.NeuronSet([(1, 3)])).applied(model):
        kn.check_host(model)  # its computation is right
        with pytest.raises(UnsupportedModelError, match="other logits than the checkpoint"):
            kn.check_host(model, directory)


def test_processed_weights_need_a_reference() -> None:
    model = tiny_model("GPT2LMHeadModel")
    model.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ArgumentError, match="does not hold the weights of its checkpoint; expected reference="):
        kn.check_host(model)
    kn.check_host(model, tiny_hf_model("GPT2LMHeadModel"))


def test_hooks_belong_to_no_plain_model() -> None:
    model = tiny_model("GPT2LMHeadModel")
    with (
        model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda value, hook: value)]),
        pytest.raises(HookError, match="remove them before check_host"),
    ):
        kn.check_host(model)


def test_a_type_in_which_transformer_lens_fails_is_refused(tmp_path: Path) -> None:
    directory = tiny_checkpoint("OlmoForCausalLM", tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"cannot run .* in torch\.bfloat16: .*Load it in torch\.float32"):
        kn.load_model(directory, dtype=torch.bfloat16)


def test_a_bridge_made_elsewhere_is_not_compared_when_loaded(registry: Any) -> None:
    registry.register_adapter("LlamaForCausalLM", WrongRotation)
    hf_model = tiny_hf_model("LlamaForCausalLM")
    hf_model.set_attn_implementation("eager")
    bridge = build_bridge_from_module(hf_model, "LlamaForCausalLM", hf_config=hf_model.config)
    assert kn.load_model(bridge) is bridge
    with pytest.raises(UnsupportedModelError, match="other logits than the LlamaForCausalLM given"):
        kn.check_host(bridge, tiny_hf_model("LlamaForCausalLM"))


def test_the_check_runs_by_default_and_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    forward = transformers.GPT2LMHeadModel.forward

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(len(args))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", counting)
    kn.load_model(tiny_hf_model("GPT2LMHeadModel"), check=False)
    assert not passes
    kn.load_model(tiny_hf_model("GPT2LMHeadModel"))
    assert passes


@pytest.mark.parametrize(
    ("settings", "dtype", "reason"),
    [
        ({"vocab_size": 900}, torch.float64, "has 900 tokens in its vocabulary; expected 415"),
        ({"vocab_size": 90}, torch.float64, "has 90 tokens in its vocabulary; expected 415"),
        ({}, torch.bfloat16, r"has torch\.bfloat16 as the type of its weights; expected torch\.float64"),
    ],
)
def test_a_reference_that_cannot_be_compared_is_refused(settings: dict, dtype: torch.dtype, reason: str) -> None:
    reference = tiny_hf_model("GPT2LMHeadModel", dtype, **settings)
    with pytest.raises(ArgumentError, match=reason):
        kn.check_host(tiny_model("GPT2LMHeadModel"), reference)


def test_a_reference_in_transformer_lens_is_refused() -> None:
    model = tiny_model("GPT2LMHeadModel")
    for reference in (model, kn.host_of(model), model.original_model):
        with pytest.raises(ArgumentError, match="is wrapped by TransformerLens; expected a model that"):
            kn.check_host(model, reference)


def test_a_host_is_checked_as_its_model_is() -> None:
    model = tiny_model("GPT2LMHeadModel")
    assert kn.check_host(kn.host_of(model)) == kn.check_host(model)


def test_a_reference_needs_no_tokenizer(tmp_path: Path) -> None:
    hf_model = tiny_hf_model("GPT2LMHeadModel", torch.float32)
    hf_model.save_pretrained(tmp_path)
    model = kn.load_model(hf_model)
    assert kn.check_host(model, tmp_path).reference == f"the checkpoint {str(tmp_path)!r}"


def test_weights_that_are_not_finite_are_named_rather_than_compared() -> None:
    model = tiny_model("GPT2LMHeadModel")
    reference = tiny_hf_model("GPT2LMHeadModel")
    reference.transformer.h[0].mlp.c_fc.weight.data[0, 0] = torch.nan
    with pytest.raises(UnsupportedModelError, match=r"h\.0\.mlp\.c_fc\.weight are NaN"):
        kn.check_host(model, reference)
    kn.host_of(model).W_out(0).data[0, 0] = torch.inf
    with pytest.raises(UnsupportedModelError, match=r"h\.0\.mlp\.c_proj\.weight are NaN or infinite"):
        kn.check_host(model)


def test_hooks_of_a_model_in_memory_that_transformer_lens_passes_by_are_named() -> None:
    hf_model = tiny_hf_model("LlamaForCausalLM")
    attention = hf_model.model.layers[1].self_attn
    attention.register_forward_hook(lambda module, args, output: (2 * output[0], *output[1:]))
    with pytest.raises(UnsupportedModelError, match=r"are on 'model\.layers\.1\.self_attn', where TransformerLens"):
        kn.load_model(hf_model)


def test_the_advice_is_for_the_caller(tmp_path: Path) -> None:
    directory = tiny_checkpoint("GPT2LMHeadModel", tmp_path)
    model = kn.load_model(directory)
    edit = kn.erase_neurons(model, kn.NeuronSet([(1, 3)]))
    with edit.applied(model), pytest.raises(UnsupportedModelError, match=r"perhaps edited .* check_host\(model\)"):
        kn.check_host(model, directory)


class SwappedWeights(LlamaArchitectureAdapter):
    """An adapter that takes the up-projection for W_out: the logits are right, and neurons are not."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        parts = self.component_mapping["blocks"].submodules["mlp"].submodules
        parts["out"].name, parts["in"].name = parts["in"].name, parts["out"].name


class WithoutEmbedding(LlamaArchitectureAdapter):
    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        del self.component_mapping["embed"]


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (SwappedWeights, r"W_out of layer 0 has the shape \(16, 24\); expected rows of .* width, 16"),
        (WithoutEmbedding, "its adapter maps no 'embed'"),
    ],
)
def test_an_adapter_without_the_parts_that_are_read_is_refused(adapter: type, reason: str, registry: Any) -> None:
    registry.register_adapter("LlamaForCausalLM", adapter)
    with pytest.raises(UnsupportedModelError, match=reason):
        kn.load_model(tiny_hf_model("LlamaForCausalLM"))
