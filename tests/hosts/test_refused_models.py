"""Models that cannot be hosted, or not like this: refused with the reason, before they are touched."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kn_lens.errors import ArgumentError, UnsupportedModelError
from kn_lens.hosts import host_of, load_model
from tests.tiny import tiny_checkpoint, tiny_hf_model, tiny_model, tiny_tokenizer

T5_WITHOUT_HEAD = (
    "install TransformerLens 4"
    if version("transformer-lens").startswith("3.")
    else "head that answers are read from; take a T5ForConditionalGeneration"
)
SMALL_BART = {
    "vocab_size": 50,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        (
            "GraniteMoeForCausalLM",
            {},
            r"mixture of experts \(num_(local_)?experts=8\).*take a dense model, or one of OLM",
        ),
        ("Ernie4_5_MoeForCausalLM", {}, "mixture of experts"),
        ("AlbertForMaskedLM", {"inner_group_num": 2}, "several layers at each depth .*take another checkpoint"),
        ("LongT5ForConditionalGeneration", {}, "encoder-decoder in which it is not known where .*; take a T5"),
        ("T5EncoderModel", {}, T5_WITHOUT_HEAD),
        ("RoFormerForMaskedLM", {}, "no adapter in TransformerLens .*; register one with"),
        ("ElectraForPreTraining", {}, "head.*take an ElectraForMaskedLM"),
        ("BertModel", {}, "head.*take a BertForMaskedLM"),
        (
            "BertLMHeadModel",
            {},
            "a BertLMHeadModel, and BERT is hosted as BertForMaskedLM alone; take a BertFor",
        ),
        ("AlbertModel", {}, "an AlbertModel lacks the language-model head.*; take an AlbertForMaskedLM"),
        (
            "BartForCausalLM",
            {},
            "it is a BartForCausalLM, and BART is hosted as BartForConditionalGeneration alone; take a BartFor",
        ),
        ("MambaForCausalLM", {"hidden_size": 16, "num_hidden_layers": 1}, "no dense MLP"),
        ("RwkvForCausalLM", {"hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2}, "no dense MLP"),
        ("OpenAIGPTLMHeadModel", {}, "computes other logits than the checkpoint; take a GPT-2"),
        ("ViTModel", {}, "ViTModel is no masked or causal language model; take one of the families"),
        ("LlavaForConditionalGeneration", {}, "text model inside LlavaForConditionalGeneration has not been compared"),
        ("SplinterForPreTraining", {}, "SplinterForPreTraining has no adapter in TransformerLens .*; register one"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "fp8"}}, "quantised.*original weights"),
    ],
)
def test_what_cannot_be_hosted_is_refused_before_it_is_touched(architecture: str, settings: dict, reason: str) -> None:
    cls = getattr(transformers, architecture)
    config = cls.config_class(**settings)
    with torch.device(
        "cpu" if architecture in ("MambaForCausalLM", "RwkvForCausalLM") else "meta"
    ):  # most are refused for their configuration
        hf_model = cls(config).eval()
    modules, attention = [type(module) for module in hf_model.modules()], hf_model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(hf_model)
    assert [type(module) for module in hf_model.modules()] == modules
    assert hf_model.config._attn_implementation == attention


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("FalconForCausalLM", {"alibi": True}, "alibi=True, which TransformerLens adds to attention scores twice"),
        ("FalconForCausalLM", {"new_decoder_architecture": True}, "queries, keys and values .* of the old one"),
        ("FalconForCausalLM", {"num_ln_in_parallel_attn": 2}, "queries, keys and values .* of the old one"),
        ("GPT2LMHeadModel", {"scale_attn_weights": False}, "scale_attn_weights=False"),
        ("GPTNeoXForCausalLM", {"attention_bias": False}, "attention_bias=False, and TransformerLens needs biases"),
        ("OPTForCausalLM", {"do_layer_norm_before": False}, "no final norm .*word_embed_proj_dim is hidden_size"),
        ("OPTForCausalLM", {"_remove_final_layer_norm": True}, "no final norm"),
        ("BloomForCausalLM", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact=True"),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping"),
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}, "tokens attend to later tokens"),
        ("BertForMaskedLM", {"chunk_size_feed_forward": 2}, "see 2 positions at a time"),
        ("BertForMaskedLM", {"num_hidden_layers": 0}, "no layers, and so no neurons"),
        ("GPT2LMHeadModel", {"n_layer": 0}, "no layers, and so no neurons"),
        ("MptForCausalLM", {"n_heads": 0}, r"no attention \(num_attention_heads=0\)"),
    ],
)
def test_settings_that_make_another_model_of_it_are_refused_before_weights_are_read(
    architecture: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    directory = tiny_checkpoint(architecture, tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | settings))
    (directory / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(directory)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_layers_without_neurons_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"layer 0 has no neurons \(W_out has the shape \(0, 16\)\)"):
        load_model(tiny_checkpoint("LlamaForCausalLM", tmp_path, intermediate_size=0))


def test_what_transformer_lens_refuses_is_an_error_of_ours() -> None:
    with pytest.raises(UnsupportedModelError, match=r"TransformerLens cannot host 'PhiForCausalLM': .*q_layernorm"):
        load_model(tiny_hf_model("PhiForCausalLM", qk_layernorm=True))


def test_the_same_refusals_come_from_disk_before_weights_are_read(tmp_path: Path) -> None:
    directory = tiny_checkpoint("LlamaForCausalLM", tmp_path)
    transformers.GraniteMoeConfig(architectures=["GraniteMoeForCausalLM"]).save_pretrained(directory)
    (directory / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        load_model(directory)


def test_a_bridge_made_elsewhere_is_held_to_the_same() -> None:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.GraniteMoeConfig(**sizes, num_key_value_heads=1, vocab_size=50, num_local_experts=2)
    hf_model = transformers.GraniteMoeForCausalLM(config).eval()
    hf_model.set_attn_implementation("eager")
    bridge = build_bridge_from_module(hf_model, "GraniteMoeForCausalLM", hf_config=config)
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        host_of(bridge)
    config.num_local_experts = 0  # a mixture that does not say so
    with pytest.raises(UnsupportedModelError, match="hook_post of layer 0 is not the input of a W_out"):
        host_of(bridge)


def test_a_checkpoint_without_its_head_is_refused_not_filled_at_random(tmp_path: Path) -> None:
    directory = tiny_checkpoint("ElectraForMaskedLM", tmp_path)
    transformers.ElectraForPreTraining(tiny_hf_model("ElectraForMaskedLM").config).save_pretrained(directory)
    with pytest.raises(
        UnsupportedModelError, match=r"lacks .*generator.*ElectraForPreTraining.*ELECTRA: the generator"
    ):
        load_model(directory)


@pytest.mark.parametrize(
    ("missing", "named"),
    [("config.json", "no configuration"), ("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_an_incomplete_directory_is_named_with_what_it_lacks(tmp_path: Path, missing: str, named: str) -> None:
    directory = tiny_checkpoint("BertForMaskedLM", tmp_path)
    (directory / missing).unlink()
    with pytest.raises(UnsupportedModelError, match=f"{named}.*{missing}"):
        load_model(directory)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path, file: str) -> None:
    directory = tiny_checkpoint("BertForMaskedLM", tmp_path)
    (directory / file).write_bytes((directory / file).read_bytes()[:40])
    with pytest.raises(UnsupportedModelError, match="cannot be loaded"):
        load_model(directory)


def test_an_unknown_family_on_disk(tmp_path: Path) -> None:
    directory = tiny_checkpoint("BertForMaskedLM", tmp_path)
    (directory / "config.json").write_text(json.dumps({"model_type": "brt"}))
    with pytest.raises(UnsupportedModelError, match="brt"):
        load_model(directory)


def test_an_unknown_name_says_why_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnsupportedModelError, match=r"Unknown model 'no-such/model'.*HF_HUB_OFFLINE is set"):
        load_model("no-such/model")
    for name in ("./no-such-directory", Path("no-such-directory"), "a/b/c"):
        with pytest.raises(UnsupportedModelError, match=r"Unknown model .*or a checkpoint directory\.$"):
            load_model(name)


@pytest.mark.parametrize("thing", [None, 3, torch.nn.Linear(2, 2), ["world-bert"]])
def test_other_objects_are_refused(thing: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"Got (None|an? {type(thing).__name__}); expected"):
        load_model(thing)
    with pytest.raises(UnsupportedModelError, match=rf"Got (None|an? {type(thing).__name__}); expected"):
        host_of(thing)


def test_a_model_wrapped_before_is_refused() -> None:
    model = tiny_model("BertForMaskedLM")
    with pytest.raises(UnsupportedModelError, match="wrapped by TransformerLens already"):
        load_model(model.original_model)


def test_train_mode_is_refused_where_it_hides_too() -> None:
    hf_model = tiny_hf_model("BertForMaskedLM").train()
    with pytest.raises(UnsupportedModelError, match=r"in train mode, .*model\.eval\(\)"):
        load_model(hf_model)
    model = tiny_model("BertForMaskedLM")
    model.original_model.bert.encoder.layer[1].output.dropout.train()
    with pytest.raises(UnsupportedModelError, match=r"1 of its parts, such as 'bert.encoder.layer.1.output.dropout'"):
        host_of(model)
    model.eval()
    host_of(model)


def test_weights_on_several_devices_are_refused() -> None:
    hf_model = tiny_hf_model("BertForMaskedLM")
    hf_model.cls.to("meta")
    with pytest.raises(UnsupportedModelError, match="weights on cpu and meta; expected all on one device"):
        load_model(hf_model)
    with pytest.raises(UnsupportedModelError, match="weights on meta; expected"):
        load_model(hf_model.to("meta"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float, tmp_path: Path) -> None:
    model = tiny_model("GPT2LMHeadModel")
    with torch.no_grad():
        host_of(model).W_out(2)[5, 7] = bad
    with pytest.raises(UnsupportedModelError, match=r"1 of 384 values .* transformer\.h\.2\.mlp\.c_proj\.weight"):
        load_model(model)
    host_of(model)  # cheap: does not look


def test_a_damaged_model_in_memory_is_refused_before_it_is_wrapped() -> None:
    hf_model = tiny_hf_model("BertForMaskedLM")
    hf_model.bert.embeddings.LayerNorm.bias.data[0] = float("nan")
    modules = [type(module) for module in hf_model.modules()]
    with pytest.raises(UnsupportedModelError, match=r"bert\.embeddings\.LayerNorm\.bias"):
        load_model(hf_model)
    assert [type(module) for module in hf_model.modules()] == modules


def test_arguments_that_do_not_apply(tmp_path: Path) -> None:
    directory = tiny_checkpoint("BertForMaskedLM", tmp_path)
    hf_model = tiny_hf_model("BertForMaskedLM")
    for option in ({"device": "cpu"}, {"dtype": torch.float32}, {"revision": "main"}):
        with pytest.raises(ArgumentError, match=next(iter(option))):
            load_model(hf_model, **option)
    for option in (
        {"device": "cpuu"},
        {"device": "cuda:99"},
        {"device": ["cpu"]},
        {"device": "meta"},
        {"dtype": torch.int64},
        {"dtype": torch.float8_e4m3fn},
        {"revision": "x"},
    ):
        with pytest.raises(ArgumentError, match=next(iter(option))):
            load_model(directory, **option)


def test_a_decoder_alone_lacks_weights_of_the_whole_model(tmp_path: Path) -> None:
    config = transformers.BartConfig(**SMALL_BART)
    transformers.BartForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"saved from BartForCausalLM\. Expected a checkpoint of a BartFor"):
        load_model(tmp_path, tokenizer=tiny_tokenizer("BartForConditionalGeneration"))


@pytest.mark.parametrize(
    ("dtype", "cure"),
    [(torch.float32, r"Its configuration \(config.json\)"), (torch.float64, "Load it in torch.float32, or, where its")],
)
def test_what_transformers_cannot_run_is_refused_with_a_cure_that_fits_the_type(dtype: torch.dtype, cure: str) -> None:
    """The table of relative positions has fewer rows than the attention of an MPNet looks up."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.MPNetConfig(vocab_size=50, relative_attention_num_buckets=2, **sizes)
    hf_model = transformers.MPNetForMaskedLM(config).to(dtype).eval()
    with pytest.raises(UnsupportedModelError, match=f"transformers cannot run .*index out of range in self. {cure}"):
        load_model(hf_model)
