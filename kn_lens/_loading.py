"""From a name, a directory or a Hugging Face model to a TransformerBridge with raw, frozen weights.

Everything is decided from the configuration before weights are read, and a checkpoint is loaded whole or not at all: a
weight that it lacks is an error, never a random matrix. Weights come from safetensors where there are any; older
``.bin`` files go through PyTorch's ``weights_only`` reader, which unpickles no code. Code from the hub is never run.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kn_lens.errors import UnsupportedModelError, did_you_mean

EMBEDDED_DIR = Path(__file__).parent / "world" / "models"
TOKENIZER_ATTRIBUTE = "_kn_lens_tokenizer"

Kind = Literal["masked", "causal"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of checkpoints that kn_lens is tested on.

    Attributes:
        name: as people call it.
        kind: ``masked`` or ``causal``.
        model_type: ``config.model_type`` of its checkpoints.
        architecture: its Hugging Face class with the language-model head.
        example: a checkpoint on the Hugging Face hub.
        paths: where the parts of BERT are found in it, for masked models: TransformerLens' BERT adapter serves them all
            under these names. None takes a part away. Empty: the adapter of ``architecture`` is used as it is.
    """

    name: str
    kind: Kind
    model_type: str
    architecture: str
    example: str
    paths: Mapping[str, str | None] = field(default_factory=dict)


def _roberta_paths() -> dict[str, str | None]:
    return {
        "embed": "roberta.embeddings.word_embeddings",
        "token_type_embed": "roberta.embeddings.token_type_embeddings",
        "pos_embed": "roberta.embeddings.position_embeddings",
        "embed_ln": "roberta.embeddings.LayerNorm",
        "blocks": "roberta.encoder.layer",
        "mlm_head": "lm_head.dense",
        "ln_final": "lm_head.layer_norm",
        "unembed": "lm_head.decoder",
    }


_ELECTRA_PATHS: dict[str, str | None] = {
    "embed": "electra.embeddings.word_embeddings",
    "token_type_embed": "electra.embeddings.token_type_embeddings",
    "pos_embed": "electra.embeddings.position_embeddings",
    "embed_ln": "electra.embeddings.LayerNorm",
    "blocks": "electra.encoder.layer",
    "mlm_head": "generator_predictions.dense",
    "ln_final": "generator_predictions.LayerNorm",
    "unembed": "generator_lm_head",
}
_DISTILBERT_PATHS: dict[str, str | None] = {
    "embed": "distilbert.embeddings.word_embeddings",
    "token_type_embed": None,
    "pos_embed": "distilbert.embeddings.position_embeddings",
    "embed_ln": "distilbert.embeddings.LayerNorm",
    "blocks": "distilbert.transformer.layer",
    "blocks.ln1": "sa_layer_norm",
    "blocks.ln2": "output_layer_norm",
    "blocks.attn.q": "q_lin",
    "blocks.attn.k": "k_lin",
    "blocks.attn.v": "v_lin",
    "blocks.attn.o": "out_lin",
    "blocks.mlp.in": "ffn.lin1",
    "blocks.mlp.out": "ffn.lin2",
    "mlm_head": "vocab_transform",
    "ln_final": "vocab_layer_norm",
    "unembed": "vocab_projector",
}


def _masked(
    name: str, model_type: str, architecture: str, example: str, paths: Mapping[str, str | None] | None = None
) -> Family:
    return Family(
        name=name, kind="masked", model_type=model_type, architecture=architecture, example=example, paths=paths or {}
    )


def _causal(name: str, model_type: str, architecture: str, example: str) -> Family:
    return Family(name=name, kind="causal", model_type=model_type, architecture=architecture, example=example)


FAMILIES: tuple[Family, ...] = (
    _masked("BERT", "bert", "BertForMaskedLM", "google-bert/bert-base-cased"),
    _masked("RoBERTa", "roberta", "RobertaForMaskedLM", "FacebookAI/roberta-base", _roberta_paths()),
    _masked("XLM-R", "xlm-roberta", "XLMRobertaForMaskedLM", "FacebookAI/xlm-roberta-base", _roberta_paths()),
    _masked("CamemBERT", "camembert", "CamembertForMaskedLM", "almanach/camembert-base", _roberta_paths()),
    _masked("DistilBERT", "distilbert", "DistilBertForMaskedLM", "distilbert/distilbert-base-cased", _DISTILBERT_PATHS),
    _masked("ELECTRA (generator)", "electra", "ElectraForMaskedLM", "google/electra-base-generator", _ELECTRA_PATHS),
    _causal("GPT-2", "gpt2", "GPT2LMHeadModel", "openai-community/gpt2"),
    _causal("GPT-Neo", "gpt_neo", "GPTNeoForCausalLM", "EleutherAI/gpt-neo-125m"),
    _causal("GPT-NeoX / Pythia", "gpt_neox", "GPTNeoXForCausalLM", "EleutherAI/pythia-160m"),
    _causal("GPT-J", "gptj", "GPTJForCausalLM", "EleutherAI/gpt-j-6b"),
    _causal("OPT", "opt", "OPTForCausalLM", "facebook/opt-125m"),
    _causal("Bloom", "bloom", "BloomForCausalLM", "bigscience/bloom-560m"),
    _causal("Falcon", "falcon", "FalconForCausalLM", "tiiuae/falcon-7b"),
    _causal("MPT", "mpt", "MptForCausalLM", "mosaicml/mpt-7b"),
    _causal("Phi", "phi", "PhiForCausalLM", "microsoft/phi-1_5"),
    _causal("Phi-3", "phi3", "Phi3ForCausalLM", "microsoft/Phi-3-mini-4k-instruct"),
    _causal("Llama", "llama", "LlamaForCausalLM", "meta-llama/Llama-3.2-1B"),
    _causal("Mistral", "mistral", "MistralForCausalLM", "mistralai/Mistral-7B-v0.3"),
    _causal("Qwen 2", "qwen2", "Qwen2ForCausalLM", "Qwen/Qwen2.5-0.5B"),
    _causal("Qwen 3", "qwen3", "Qwen3ForCausalLM", "Qwen/Qwen3-0.6B"),
    _causal("Gemma", "gemma", "GemmaForCausalLM", "google/gemma-2b"),
    _causal("Gemma 2", "gemma2", "Gemma2ForCausalLM", "google/gemma-2-2b"),
    _causal("Gemma 3 (text)", "gemma3_text", "Gemma3ForCausalLM", "google/gemma-3-1b-pt"),
    _causal("OLMo", "olmo", "OlmoForCausalLM", "allenai/OLMo-1B-hf"),
    _causal("OLMo 2", "olmo2", "Olmo2ForCausalLM", "allenai/OLMo-2-0425-1B"),
    _causal("StableLM", "stablelm", "StableLmForCausalLM", "stabilityai/stablelm-2-1_6b"),
    _causal("Granite", "granite", "GraniteForCausalLM", "ibm-granite/granite-3.1-2b-base"),
)
BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}
BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES}

# Families whose weights do not fit the picture of one value row per neuron and layer, and what to take instead.
_REFUSED = {
    "albert": "its layers share one W_out, so a neuron of one layer is in all of them; take a BERT or RoBERTa",
    "modernbert": "TransformerLens has no adapter for it; take a BERT or RoBERTa",
    "deberta": "TransformerLens has no adapter for it; take a BERT or RoBERTa",
    "deberta-v2": "TransformerLens has no adapter for it; take a BERT or RoBERTa",
    "mpnet": "TransformerLens has no adapter for it; take a BERT or RoBERTa",
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Import TransformerLens inside this: what it does to loggers and warning filters on import is undone."""
    logger = logging.getLogger("transformers")
    level = logger.level
    with warnings.catch_warnings():
        try:
            yield
        finally:
            logger.setLevel(level)


def embedded_models() -> list[str]:
    """Return the names of the checkpoints that come with kn_lens."""
    return sorted(path.parent.name for path in EMBEDDED_DIR.glob("*/config.json"))


def is_bridge(model: Any) -> bool:
    """Return whether a model is a TransformerBridge, importing nothing that the model's maker has not."""
    return any(cls.__name__ == "TransformerBridge" for cls in type(model).__mro__)


def tokenizer_of(model: Any) -> Any:
    """Return the tokenizer that `attach_tokenizer` left on the model, or None."""
    return getattr(model, TOKENIZER_ATTRIBUTE, None)


def attach_tokenizer(model: Any, tokenizer: Any) -> None:
    """Let the tokenizer travel with the model, untouched: TransformerLens alters the one in ``model.tokenizer``."""
    if tokenizer is not None:
        setattr(model, TOKENIZER_ATTRIBUTE, tokenizer)


def architecture_of(hf_model: nn.Module) -> str:
    """Return the name of the Hugging Face class, also for a subclass of it made elsewhere."""
    names = [cls.__name__ for cls in type(hf_model).__mro__]
    return next((name for name in names if name in BY_ARCHITECTURE), names[0])


def read_checkpoint(
    source: str | Path, *, tokenizer: Any, device: torch.device, dtype: torch.dtype, revision: str | None
) -> tuple[nn.Module, Any]:
    """Load a Hugging Face model in evaluation mode, and its tokenizer unless one is given.

    Raises:
        UnsupportedModelError: nothing there, incomplete, or of a kind that kn_lens cannot host.
    """
    with quiet_imports():
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    name = str(source)
    location = EMBEDDED_DIR / name if name in embedded_models() else Path(source).expanduser()
    if location.is_dir():
        _check_directory(location, needs_tokenizer=tokenizer is None)
        where, options = str(location), {}
    elif isinstance(source, Path) or name.startswith((".", "/", "~", "\\")) or name.count("/") > 1:
        raise UnsupportedModelError(f"There is no directory {name!r}; expected a checkpoint directory, {_EXPECTED}")
    else:
        where, options = name, {"revision": revision}
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(_not_found(name, error)) from error
    kind = check_config(config, name)
    auto = AutoModelForMaskedLM if kind == "masked" else AutoModelForCausalLM
    try:
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
        model, info = auto.from_pretrained(
            where, config=config, dtype=dtype, attn_implementation="eager", output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(f"{name!r} cannot be loaded: {error}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UnsupportedModelError(
            f"{name!r} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]!r}, which would be "
            f"random; it was saved from {(config.architectures or ['another class'])[0]}. Expected a checkpoint with "
            "its language-model head" + (" (ELECTRA: the generator)." if config.model_type == "electra" else ".")
        )
    return model.to(device).eval(), tokenizer


def check_config(config: Any, name: str) -> Kind:
    """Return the kind of a checkpoint, from its configuration alone.

    Raises:
        UnsupportedModelError: with the reason, and what to use instead.
    """
    model_type = config.model_type
    experts = [key for key in _EXPERTS if (getattr(config, key, None) or 0) > 1]
    if getattr(config, "is_encoder_decoder", False):
        reason = (
            "it is an encoder-decoder, and knowledge neurons are defined for one stack; take a masked or causal model"
        )
    elif experts:
        reason = (
            f"it is a mixture of experts ({experts[0]}={getattr(config, experts[0])}), where a neuron of a layer is "
            "not one row of one W_out; take a dense model of the same line"
        )
    elif getattr(config, "quantization_config", None):
        reason = (
            "its weights are quantised, so that rows can be neither read nor edited exactly; take the original weights"
        )
    elif model_type in _REFUSED:
        reason = _REFUSED[model_type]
    elif model_type in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[model_type].kind
    elif _has_causal_adapter(config):
        return "causal"
    else:
        reason = f"the family {model_type!r} has no adapter here; {_EXPECTED}" + did_you_mean(model_type, BY_MODEL_TYPE)
    raise UnsupportedModelError(f"{name!r} cannot be hosted: {reason}.")


def check_in_memory(model: Any) -> None:
    """Raise unless ``model`` is a Hugging Face model that `wrap` can take.

    Raises:
        UnsupportedModelError: another object, a model already wrapped, or one without a language-model head.
    """
    with quiet_imports():
        from transformers import PreTrainedModel

    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"Got a {kind}; expected a name, a directory, a Hugging Face or a TransformerLens model."
        )
    if any(name.endswith("_original_component") for name, _ in model.named_modules()):
        raise UnsupportedModelError(
            f"This {kind} is wrapped by TransformerLens already; pass the TransformerLens model that wraps it."
        )
    check_config(model.config, kind)
    if architecture_of(model) not in BY_ARCHITECTURE and not kind.endswith(("ForCausalLM", "LMHeadModel")):
        family = BY_MODEL_TYPE.get(model.config.model_type)
        raise UnsupportedModelError(
            f"A {kind} has no language-model head to read an answer from"
            + (f"; expected a {family.architecture}." if family else ".")
        )


def wrap(hf_model: nn.Module, *, name: str) -> Any:
    """Build a TransformerBridge around a Hugging Face model, in place, and freeze its weights.

    Raises:
        UnsupportedModelError: TransformerLens cannot host the class.
    """
    with quiet_imports():
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        architecture = architecture_of(hf_model)
        family = BY_ARCHITECTURE.get(architecture)
        hf_model.set_attn_implementation("eager")  # the attention hooks do not fire in the fused kernels
        paths = family.paths if family else {}
        bridge = build_bridge_from_module(
            hf_model,
            "BertForMaskedLM" if paths else architecture,
            hf_config=hf_model.config,
            model_name=name,
            post_adapter_hook=(lambda adapter: _place(adapter.component_mapping, paths)) if paths else None,
        )
    bridge.requires_grad_(False)  # after building: families with joint QKV get new parameters then
    return bridge


def _place(mapping: dict[str, Any], paths: Mapping[str, str | None]) -> None:
    """Point the components of BERT's adapter at where ``paths`` says they are."""
    for path, target in paths.items():
        *parents, last = path.split(".")
        components = mapping
        for parent in parents:
            components = components[parent].submodules
        if target is None:
            del components[last]
        else:
            components[last].name = target


def _has_causal_adapter(config: Any) -> bool:
    with quiet_imports():
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    architecture = (getattr(config, "architectures", None) or [""])[0]
    return architecture.endswith(("ForCausalLM", "LMHeadModel")) and architecture in SUPPORTED_ARCHITECTURES


def _check_directory(path: Path, *, needs_tokenizer: bool) -> None:
    present = {entry.name for entry in path.iterdir()}
    for what, files in {
        "configuration": ("config.json",),
        "weights": _WEIGHT_FILES,
        "tokenizer": _TOKENIZER_FILES,
    }.items():
        if not present.intersection(files) and (what != "tokenizer" or needs_tokenizer):
            cure = " or pass tokenizer=" if what == "tokenizer" else ""
            raise UnsupportedModelError(
                f"{str(path)!r} holds no {what}; expected {' or '.join(files)} there, as written by "
                f"save_pretrained{cure}."
            )


def _not_found(name: str, error: Exception) -> str:
    from huggingface_hub.constants import is_offline_mode

    offline = (
        " The Hugging Face hub was not asked, because HF_HUB_OFFLINE is set and no copy lies in the cache."
        if is_offline_mode()
        else ""
    )
    first_line = str(error).strip().splitlines()[0]
    return f"Unknown model {name!r}; {_EXPECTED}.{did_you_mean(name, embedded_models())}{offline} ({first_line})"


_EXPECTED = (
    "expected an embedded model (`kn-lens models` lists them), a Hugging Face name such as "
    "'google-bert/bert-base-cased', or a checkpoint directory"
)
