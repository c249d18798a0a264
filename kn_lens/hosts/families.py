"""The families of checkpoints that can be hosted, and the reasons why other checkpoints cannot.

The table drives the loading code, the tests (each family is built, written to disk and read back) and the list of
``kn-lens models``. Another family is accepted when the registry of TransformerLens has an adapter for it, its own or
one that the user registered, and its blocks have dense MLPs. Mixtures of experts are those of the table.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from torch import nn

from kn_lens._core.wording import with_article
from kn_lens.errors import UnsupportedModelError
from kn_lens.hosts.adapters import ADAPTERS, KNOWN_TO_VERSION_4, register_missing
from kn_lens.hosts.encoder_decoder import Writes

Kind = Literal["masked", "causal", "encoder-decoder"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of checkpoints that kn_lens is tested on.

    Attributes:
        name: its common name.
        kind: ``masked``, ``causal`` or ``encoder-decoder``.
        model_type: ``config.model_type`` of its checkpoints.
        architecture: its Hugging Face class with the language-model head.
        example: a checkpoint on the Hugging Face hub.
        gated: whether a neuron's activation is ``act(gate) * up`` instead of ``act(up)``.
        norm_after_mlp: whether a norm stands between ``W_out`` and the residual stream.
        experts: whether its layers, or some of them, are mixtures of experts.
        whole_passes: whether its passes always run all layers and tokens. A layer then has a state beside keys and
            values, or reads those of lower layers, so that no pass can start at it.
        writes: what the decoder of an encoder-decoder was trained to write; None for other kinds.
    """

    name: str
    kind: Kind
    model_type: str
    architecture: str
    example: str
    gated: bool = False
    norm_after_mlp: bool = False
    experts: bool = False
    whole_passes: bool = False
    writes: Writes | None = None


def _masked(name: str, model_type: str, architecture: str, example: str, **settings: Any) -> Family:
    return Family(
        name=name,
        kind="masked",
        model_type=model_type,
        architecture=architecture,
        example=example,
        **settings,
    )


def _causal(name: str, model_type: str, architecture: str, example: str, **settings: Any) -> Family:
    return Family(
        name=name,
        kind="causal",
        model_type=model_type,
        architecture=architecture,
        example=example,
        **settings,
    )


def _encoder_decoder(
    name: str, model_type: str, architecture: str, example: str, writes: Writes, **settings: Any
) -> Family:
    return Family(
        name=name,
        kind="encoder-decoder",
        model_type=model_type,
        architecture=architecture,
        example=example,
        whole_passes=True,
        writes=writes,
        **settings,
    )


_GATED = {"gated": True}
_POST_NORM = {"gated": True, "norm_after_mlp": True}
_EXPERTS = {"gated": True, "experts": True}
_HYBRID = {"gated": True, "whole_passes": True}

FAMILIES: tuple[Family, ...] = (
    _masked("BERT", "bert", "BertForMaskedLM", "google-bert/bert-base-cased"),
    _masked(
        "RoBERTa",
        "roberta",
        "RobertaForMaskedLM",
        "FacebookAI/roberta-base",
    ),
    _masked(
        "XLM-R",
        "xlm-roberta",
        "XLMRobertaForMaskedLM",
        "FacebookAI/xlm-roberta-base",
    ),
    _masked(
        "CamemBERT",
        "camembert",
        "CamembertForMaskedLM",
        "almanach/camembert-base",
    ),
    _masked(
        "DistilBERT",
        "distilbert",
        "DistilBertForMaskedLM",
        "distilbert/distilbert-base-cased",
    ),
    _masked(
        "ELECTRA (generator)",
        "electra",
        "ElectraForMaskedLM",
        "google/electra-base-generator",
    ),
    _masked("ModernBERT", "modernbert", "ModernBertForMaskedLM", "answerdotai/ModernBERT-base", **_GATED),
    _masked("EuroBERT", "eurobert", "EuroBertForMaskedLM", "EuroBERT/EuroBERT-210m", **_GATED),
    _masked("DeBERTa v2, v3", "deberta-v2", "DebertaV2ForMaskedLM", "microsoft/deberta-v3-base"),
    _masked("MPNet", "mpnet", "MPNetForMaskedLM", "microsoft/mpnet-base"),
    _masked("ERNIE", "ernie", "ErnieForMaskedLM", "nghuyong/ernie-2.0-base-en"),
    _masked("MegatronBERT", "megatron-bert", "MegatronBertForMaskedLM", "KBLab/megatron-bert-base-swedish-cased-600k"),
    _masked("NomicBERT", "nomic_bert", "NomicBertForMaskedLM", "nomic-ai/nomic-bert-2048", **_GATED),
    _masked("XLM-R-XL", "xlm-roberta-xl", "XLMRobertaXLForMaskedLM", "facebook/xlm-roberta-xl"),
    _masked("ALBERT", "albert", "AlbertForMaskedLM", "albert/albert-base-v2"),
    _masked("ESM-2", "esm", "EsmForMaskedLM", "facebook/esm2_t6_8M_UR50D"),
    _causal("GPT-2", "gpt2", "GPT2LMHeadModel", "openai-community/gpt2"),
    _causal("GPT-Neo", "gpt_neo", "GPTNeoForCausalLM", "EleutherAI/gpt-neo-125m"),
    _causal("GPT-NeoX / Pythia", "gpt_neox", "GPTNeoXForCausalLM", "EleutherAI/pythia-160m"),
    _causal("GPT-J", "gptj", "GPTJForCausalLM", "EleutherAI/gpt-j-6b"),
    _causal(
        "GPT-BigCode",
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        "bigcode/gpt_bigcode-santacoder",
    ),
    _causal("CodeGen", "codegen", "CodeGenForCausalLM", "Salesforce/codegen-350M-mono"),
    _causal("OPT", "opt", "OPTForCausalLM", "facebook/opt-125m"),
    _causal("XGLM", "xglm", "XGLMForCausalLM", "facebook/xglm-564M"),
    _causal("Bloom", "bloom", "BloomForCausalLM", "bigscience/bloom-560m"),
    _causal("Falcon", "falcon", "FalconForCausalLM", "tiiuae/falcon-7b"),
    _causal("MPT", "mpt", "MptForCausalLM", "mosaicml/mpt-7b"),
    _causal("Phi", "phi", "PhiForCausalLM", "microsoft/phi-1_5"),
    _causal("Phi-3", "phi3", "Phi3ForCausalLM", "microsoft/Phi-3-mini-4k-instruct", **_GATED),
    _causal("Llama", "llama", "LlamaForCausalLM", "meta-llama/Llama-3.2-1B", **_GATED),
    _causal("Mistral", "mistral", "MistralForCausalLM", "mistralai/Mistral-7B-v0.3", **_GATED),
    _causal(
        "Ministral 3",
        "ministral3",
        "Ministral3ForCausalLM",
        "mistralai/Ministral-3-3B-Base-2512",
        **_GATED,
    ),
    _causal("Qwen 2", "qwen2", "Qwen2ForCausalLM", "Qwen/Qwen2.5-0.5B", **_GATED),
    _causal("Qwen 3", "qwen3", "Qwen3ForCausalLM", "Qwen/Qwen3-0.6B", **_GATED),
    _causal("Gemma", "gemma", "GemmaForCausalLM", "google/gemma-2b", **_GATED),
    _causal("Gemma 2", "gemma2", "Gemma2ForCausalLM", "google/gemma-2-2b", **_POST_NORM),
    _causal(
        "Gemma 3 (text)",
        "gemma3_text",
        "Gemma3ForCausalLM",
        "google/gemma-3-1b-pt",
        **_POST_NORM,
    ),
    _causal(
        "VaultGemma",
        "vaultgemma",
        "VaultGemmaForCausalLM",
        "google/vaultgemma-1b",
        **_GATED,
    ),
    _causal("OLMo", "olmo", "OlmoForCausalLM", "allenai/OLMo-1B-hf", **_GATED),
    _causal("OLMo 2", "olmo2", "Olmo2ForCausalLM", "allenai/OLMo-2-0425-1B", **_POST_NORM),
    _causal("OLMo 3", "olmo3", "Olmo3ForCausalLM", "allenai/Olmo-3-1025-7B", **_POST_NORM),
    _causal(
        "StableLM",
        "stablelm",
        "StableLmForCausalLM",
        "stabilityai/stablelm-2-1_6b",
        **_GATED,
    ),
    _causal(
        "Granite",
        "granite",
        "GraniteForCausalLM",
        "ibm-granite/granite-3.1-2b-base",
        **_GATED,
    ),
    _causal("SmolLM3", "smollm3", "SmolLM3ForCausalLM", "HuggingFaceTB/SmolLM3-3B", **_GATED),
    _causal("GLM", "glm", "GlmForCausalLM", "zai-org/glm-4-9b-hf", **_GATED),
    _causal("GLM-4", "glm4", "Glm4ForCausalLM", "zai-org/GLM-4-9B-0414", **_POST_NORM),
    _causal("Cohere", "cohere", "CohereForCausalLM", "CohereLabs/aya-23-8B", **_GATED),
    _causal(
        "Cohere 2",
        "cohere2",
        "Cohere2ForCausalLM",
        "CohereLabs/c4ai-command-r7b-12-2024",
        **_GATED,
    ),
    _causal("Apertus", "apertus", "ApertusForCausalLM", "swiss-ai/Apertus-8B-2509"),
    _causal("Ernie 4.5", "ernie4_5", "Ernie4_5ForCausalLM", "baidu/ERNIE-4.5-0.3B-PT", **_GATED),
    _causal(
        "Exaone 4",
        "exaone4",
        "Exaone4ForCausalLM",
        "LGAI-EXAONE/EXAONE-4.0-1.2B",
        **_POST_NORM,
    ),
    _causal(
        "Seed-OSS",
        "seed_oss",
        "SeedOssForCausalLM",
        "ByteDance-Seed/Seed-OSS-36B-Base",
        **_GATED,
    ),
    _causal(
        "HunYuan (dense)",
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        "tencent/Hunyuan-0.5B-Instruct",
        **_GATED,
    ),
    _causal("Arcee", "arcee", "ArceeForCausalLM", "arcee-ai/AFM-4.5B"),
    _causal("Nemotron", "nemotron", "NemotronForCausalLM", "nvidia/Minitron-4B-Base"),
    _causal(
        "ModernBERT (decoder)",
        "modernbert-decoder",
        "ModernBertDecoderForCausalLM",
        "jhu-clsp/ettin-decoder-150m",
        **_GATED,
    ),
    _causal(
        "Gemma 4 (text)",
        "gemma4_text",
        "Gemma4ForCausalLM",
        "google/gemma-4-31B",
        **_POST_NORM,
    ),
    _causal(
        "Qwen 3.5 (text)",
        "qwen3_5_text",
        "Qwen3_5ForCausalLM",
        "Qwen/Qwen3.5-0.8B-Base",
        **_HYBRID,
    ),
    _causal("LFM2", "lfm2", "Lfm2ForCausalLM", "LiquidAI/LFM2-350M", **_HYBRID),
    _causal(
        "Falcon-H1",
        "falcon_h1",
        "FalconH1ForCausalLM",
        "tiiuae/Falcon-H1-0.5B-Base",
        **_HYBRID,
    ),
    _causal(
        "Llama 4 (dense text)",
        "llama4_text",
        "Llama4ForCausalLM",
        "meta-llama/Llama-4-Scout-17B-16E",
        **_GATED,
    ),
    _causal("OLMoE", "olmoe", "OlmoeForCausalLM", "allenai/OLMoE-1B-7B-0924", **_EXPERTS),
    _causal("Mixtral", "mixtral", "MixtralForCausalLM", "mistralai/Mixtral-8x7B-v0.1", **_EXPERTS),
    _causal("Qwen 2 MoE", "qwen2_moe", "Qwen2MoeForCausalLM", "Qwen/Qwen1.5-MoE-A2.7B", **_EXPERTS),
    _causal("Qwen 3 MoE", "qwen3_moe", "Qwen3MoeForCausalLM", "Qwen/Qwen3-30B-A3B-Base", **_EXPERTS),
    _causal("gpt-oss", "gpt_oss", "GptOssForCausalLM", "openai/gpt-oss-20b", **_EXPERTS),
    _causal("DeepSeek V2", "deepseek_v2", "DeepseekV2ForCausalLM", "deepseek-ai/DeepSeek-V2-Lite", **_EXPERTS),
    _causal("DeepSeek V3", "deepseek_v3", "DeepseekV3ForCausalLM", "deepseek-ai/DeepSeek-V3", **_EXPERTS),
    _causal("GLM-4 MoE", "glm4_moe", "Glm4MoeForCausalLM", "zai-org/GLM-4.5-Air", **_EXPERTS),
    _causal(
        "Gemma 3",
        "gemma3",
        "Gemma3ForConditionalGeneration",
        "google/gemma-3-4b-pt",
        **_POST_NORM,
    ),
    _causal(
        "Gemma 4",
        "gemma4",
        "Gemma4ForConditionalGeneration",
        "google/gemma-4-31B",
        **_POST_NORM,
    ),
    _causal(
        "Mistral 3",
        "mistral3",
        "Mistral3ForConditionalGeneration",
        "mistralai/Mistral-Small-3.1-24B-Base-2503",
        **_GATED,
    ),
    _causal(
        "Qwen 3.5",
        "qwen3_5",
        "Qwen3_5ForConditionalGeneration",
        "Qwen/Qwen3.5-0.8B-Base",
        **_HYBRID,
    ),
    _causal(
        "Llama 4 (dense)",
        "llama4",
        "Llama4ForConditionalGeneration",
        "meta-llama/Llama-4-Scout-17B-16E",
        **_GATED,
    ),
    _encoder_decoder("T5", "t5", "T5ForConditionalGeneration", "google-t5/t5-base", "span"),
    _encoder_decoder("T5 1.1 / FLAN-T5", "t5", "T5ForConditionalGeneration", "google/flan-t5-base", "span", **_GATED),
    _encoder_decoder("mT5", "mt5", "MT5ForConditionalGeneration", "google/mt5-base", "span", **_GATED),
    _encoder_decoder("BART", "bart", "BartForConditionalGeneration", "facebook/bart-base", "text"),
    _encoder_decoder("mBART", "mbart", "MBartForConditionalGeneration", "facebook/mbart-large-cc25", "text"),
    _encoder_decoder(
        "T5Gemma",
        "t5gemma",
        "T5GemmaForConditionalGeneration",
        "google/t5gemma-2b-2b-ul2",
        "span",
        **_POST_NORM,
    ),
)
BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}
BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES}

EXPECTED_SOURCE = (
    "expected an embedded model (`kn-lens models` lists them), a Hugging Face name such as "
    "'google-bert/bert-base-cased', or a checkpoint directory"
)

TEXT_IN_OTHERS = "ForConditionalGeneration"
"""How classes end whose language model stands beside an image or audio tower, or on an encoder."""

_REFUSED = {
    "openai-gpt": "TransformerLens computes other logits than the checkpoint; take a GPT-2",
}
_NEED_VERSION_4 = {
    "cohere": "computes other logits than the checkpoint",
    "cohere2": "computes other logits than the checkpoint",
    "hunyuan_v1_dense": "computes other logits than the checkpoint",
    "t5": "cannot run its blocks in this version of transformers",
    "mt5": "cannot run its blocks in this version of transformers",
}
_NUMBERS_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
INSTEAD_OF_QUANTISED = (
    "the original weights, with dtype=torch.bfloat16 where memory is short, or a GGUF file of the model, which "
    "load_model dequantises"
)
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
_KIND_BY_ENDING: Mapping[str, Kind] = {
    "ForMaskedLM": "masked",
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
}

Setting = tuple[str, Callable[[Any], bool], str]
"""A model type, a condition on its configuration, and a description of what holds then."""

_SETTINGS: tuple[Setting, ...] = (
    (
        "falcon",
        lambda config: config.alibi,
        "alibi=True, which TransformerLens adds to attention scores twice",
    ),
    (
        "falcon",
        lambda config: config.new_decoder_architecture or config.num_ln_in_parallel_attn == 2,
        "new_decoder_architecture=True, whose queries, keys and values TransformerLens takes for those of the old one",
    ),
    (
        "gpt2",
        lambda config: not config.scale_attn_weights,
        "scale_attn_weights=False, and TransformerLens scales attention scores always",
    ),
    (
        "gpt_neox",
        lambda config: not config.attention_bias,
        "attention_bias=False, and TransformerLens needs biases in its attention",
    ),
    (
        "opt",
        lambda config: (
            config.word_embed_proj_dim == config.hidden_size
            and (config._remove_final_layer_norm or not config.do_layer_norm_before)
        ),
        "no final norm (do_layer_norm_before=False or _remove_final_layer_norm=True), and TransformerLens needs one "
        "where word_embed_proj_dim is hidden_size",
    ),
    (
        "albert",
        lambda config: config.inner_group_num > 1,
        "several layers at each depth (inner_group_num above 1)",
    ),
    (
        "bloom",
        lambda config: config.slow_but_exact and config.pretraining_tp > 1,
        "slow_but_exact=True with pretraining_tp above 1, where transformers leaves biases out and "
        "TransformerLens does not",
    ),
    (
        "gemma3_text",
        lambda config: config.attn_logit_softcapping is not None,
        "attn_logit_softcapping, which only some attention implementations of transformers apply",
    ),
)
"""Settings of a family with which TransformerLens computes another model than the checkpoint, or fails."""


def architecture_of(hf_model: nn.Module) -> str:
    """Return the name of the Hugging Face class, also for a user's subclass of it."""
    names = [cls.__name__ for cls in type(hf_model).__mro__]
    return next((name for name in names if name in BY_ARCHITECTURE), names[0])


def adapter_state(family: Family) -> str:
    """Return whose adapter hosts a family here, ``TransformerLens`` or ``kn_lens``, or what is missing for one."""
    is_version_3 = version("transformer-lens").startswith("3.")
    if is_version_3 and family.model_type in _NEED_VERSION_4:
        return "needs TransformerLens 4"
    ours = ADAPTERS.keys() if is_version_3 else ADAPTERS.keys() - KNOWN_TO_VERSION_4
    return "kn_lens" if family.architecture in ours else "TransformerLens"


def text_config(config: Any) -> Any:
    """Return the configuration of the language model, or of the decoder, where it is a part of that of the model."""
    if getattr(config, "is_encoder_decoder", False):
        return getattr(config, "decoder", None) or config
    return getattr(config, "text_config", None) or config


def check_config(config: Any, architecture: str | None, name: str) -> Kind:
    """Check that a model can be hosted, by its configuration and class alone, and return its kind.

    Args:
        config: the Hugging Face configuration.
        architecture: the class of a model in memory; None for a checkpoint that is not read yet.
        name: the name of the model in the message.

    Raises:
        UnsupportedModelError: with the reason, and what to use instead.
    """
    family = BY_MODEL_TYPE.get(config.model_type)
    if architecture is None:
        architecture = family.architecture if family else next(iter(config.architectures or ()), "")
    reason = _reason_against(config) or _reason_against_class(config, architecture, family)
    if reason:
        raise UnsupportedModelError(f"{name!r} cannot be hosted: {reason}.")
    if family is not None and family.architecture == architecture:
        return family.kind
    for ending, kind in _KIND_BY_ENDING.items():
        if architecture.endswith(ending):
            return kind
    return "causal"


def _reason_against_class(config: Any, architecture: str, family: Family | None) -> str | None:
    """Return why a class cannot be hosted, or None where there is an adapter for it."""
    if family is None and getattr(config, "is_encoder_decoder", False):
        return (
            f"{architecture or 'it'} is an encoder-decoder in which it is not known where an answer is read; take a "
            "T5, mT5, BART, mBART or T5Gemma"
        )
    registered = adapters()
    if is_users_own(registered, architecture):
        return None
    if family and family.architecture != architecture:
        if architecture.endswith(tuple(_KIND_BY_ENDING)):
            reason = f"it is {with_article(architecture)}, and {family.name} is hosted as {family.architecture} alone"
        else:
            reason = f"{with_article(architecture)} lacks the language-model head that answers are read from"
        return f"{reason}; take {with_article(family.architecture)}"
    instead = "take one of the families that `kn-lens models` lists"
    if architecture not in registered:
        return (
            f"{architecture or 'its class'} has no adapter in TransformerLens {version('transformer-lens')}; register "
            f"one with its ArchitectureAdapterFactory.register_adapter, or {instead}"
        )
    if family:
        return None
    if architecture.endswith(TEXT_IN_OTHERS):
        return f"the text model inside {architecture} has not been compared with transformers' own; {instead}"
    if not architecture.endswith(tuple(_KIND_BY_ENDING)):
        return f"{architecture} is no masked or causal language model; {instead}"
    return None


def _reason_against(config: Any) -> str | None:
    text = text_config(config)
    experts = _setting_of_experts(text)
    if experts and not has_experts(config):
        families = ", ".join(family.name for family in FAMILIES if family.experts)
        return (
            f"it is a mixture of experts ({experts}={getattr(text, experts)}) whose experts have not been compared "
            f"with transformers' own; take a dense model, or one of {families}"
        )
    quantisation = _quantisation_of(config)
    if quantisation:
        return (
            f"its weights are quantised ({quantisation}), so that rows can be neither read nor edited exactly; take "
            f"{INSTEAD_OF_QUANTISED}"
        )
    if config.model_type in _NEED_VERSION_4 and version("transformer-lens").startswith("3."):
        return f"TransformerLens 3 {_NEED_VERSION_4[config.model_type]}; install TransformerLens 4"
    return _REFUSED.get(config.model_type) or _setting_against(text)


def _setting_of_experts(config: Any) -> str | None:
    """Return the setting that makes a mixture of experts of some layers, or None."""
    if getattr(config, "moe_layers", None) == []:  # Llama 4 lists the layers that have experts
        return None
    for setting in _NUMBERS_OF_EXPERTS:
        if getattr(config, setting, None) not in (None, 0, 1):
            return setting
    return None


def has_experts(config: Any) -> bool:
    """Return whether a model is a mixture of experts of a family that kn_lens is tested on."""
    family = BY_MODEL_TYPE.get(config.model_type)
    return family is not None and family.experts


def _quantisation_of(config: Any) -> str | None:
    """Return the method by which weights are quantised, such as ``gptq``; None for plain ones."""
    settings = getattr(config, "quantization_config", None)
    if not settings:
        return None
    if not isinstance(settings, Mapping):
        settings = vars(settings)
    method = settings.get("quant_method", "bitsandbytes" if "load_in_8bit" in settings else "unknown method")
    return str(getattr(method, "value", method))


def _setting_against(config: Any) -> str | None:
    """Return the setting of a configuration for which the model cannot be hosted, with the cure, or None."""
    for setting, nothing in (
        ("num_hidden_layers", "layers, and so no neurons"),
        ("num_attention_heads", "attention"),
    ):
        if getattr(config, setting, None) == 0:
            return f"it has no {nothing} ({setting}=0); take a checkpoint with some"
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return "its tokens attend to later tokens (use_bidirectional_attention); take a causal model"
    if getattr(config, "chunk_size_feed_forward", 0):
        return (
            f"its MLPs, and hooks on them, see {config.chunk_size_feed_forward} positions at a time "
            "(chunk_size_feed_forward); set it to 0, which gives the same numbers"
        )
    for model_type, is_so, meaning in _SETTINGS:
        if config.model_type == model_type and is_so(config):
            return f"it has {meaning}; take another checkpoint of the family"
    return None


def needs_whole_passes(config: Any) -> bool:
    """Return whether a pass cannot start at a layer, from the residual stream, keys and values.

    Some layers then have a recurrent or convolutional state, or read the keys and values of lower layers; or the
    output of the first block is joined with a convolution of the embeddings (the larger DeBERTas v2); or, in an
    encoder-decoder, they read the output of the encoder.
    """
    if getattr(config, "is_encoder_decoder", False):
        return True
    text = text_config(config)
    layer_types = set(getattr(text, "layer_types", None) or ())
    convolves = text.model_type == "deberta-v2" and getattr(text, "conv_kernel_size", 0) > 0
    return bool(layer_types - _ATTENTION or getattr(text, "num_kv_shared_layers", 0) or convolves)


def longest_padding(config: Any, kind: Kind) -> int | None:
    """Return the longest padding of a prompt beside longer ones, in tokens; None where any is right.

    Tokens of a masked model, or of an encoder, with local attention see a window on both sides. Padding that is further
    from the prompt sees no token: its attention is a division of zero by zero in some types of weights and kinds of
    attention.
    """
    text: Any = getattr(config, "encoder", None) if kind == "encoder-decoder" else text_config(config)
    is_local = "sliding_attention" in (getattr(text, "layer_types", None) or ())
    if kind == "causal" or not is_local:
        return None
    # A masked model sees tokens up to this distance; the encoder of a T5Gemma those that are nearer.
    return text.sliding_window if kind == "masked" else text.sliding_window - 1


def adapters() -> Mapping[str, Any]:
    """Return the adapters in TransformerLens' registry, by architecture: its own, ours, those of packages and users."""
    with quiet_imports():
        from transformer_lens.factories.architecture_adapter_factory import (
            ArchitectureAdapterFactory,
        )

        ArchitectureAdapterFactory.discover_entry_points()
        register_missing(ArchitectureAdapterFactory._adapters)
    return ArchitectureAdapterFactory._adapters


def is_users_own(registered: Mapping[str, Any], architecture: str) -> bool:
    """Return whether an architecture has an adapter that does not come with TransformerLens."""
    from transformer_lens.factories.architecture_adapter_factory import (
        SUPPORTED_ARCHITECTURES,
    )

    adapter = registered.get(architecture)
    return adapter is not None and SUPPORTED_ARCHITECTURES.get(architecture) is not adapter


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Restore the level of the ``transformers`` logger and the warning filters, which TransformerLens changes."""
    logger = logging.getLogger("transformers")
    level = logger.level
    with warnings.catch_warnings():
        try:
            yield
        finally:
            if logger.level != level:  # setting it clears what every logger of the process knows of its level
                logger.setLevel(level)
