"""Checkpoints: from a name, a directory or a Hugging Face model to a TransformerBridge with raw, frozen weights.

The configuration is checked before weights are read. A checkpoint is loaded whole or not at all: a missing weight is an
error, never a random matrix. Weights are read from safetensors where there are any; older ``.bin`` files by PyTorch's
``weights_only`` reader, which unpickles no code. Code from the hub is never run.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import nn

from kn_lens._core.atomic import read_whole
from kn_lens._core.checks import wrong_kind
from kn_lens._core.wording import type_with_article, with_article
from kn_lens.errors import ArgumentError, KNLensError, UnsupportedModelError, did_you_mean
from kn_lens.hosts.encoder_decoder import FINAL_BIAS, STACKS
from kn_lens.hosts.exclusive import one_load_at_a_time
from kn_lens.hosts.families import (
    BY_ARCHITECTURE,
    BY_MODEL_TYPE,
    EXPECTED_SOURCE,
    INSTEAD_OF_QUANTISED,
    TEXT_IN_OTHERS,
    Kind,
    architecture_of,
    check_config,
    has_experts,
    quiet_imports,
)
from kn_lens.hosts.gguf import (
    PACKAGED_MODELS,
    dequantising_options,
    forget_quantisation,
    gguf_file_of,
    packaged_file,
    reading_options,
)
from kn_lens.hosts.module_tree import modules_of, weights_of
from kn_lens.hosts.peft_adapters import ADAPTER_CONFIG, base_of_adapter, merge_adapter
from kn_lens.hosts.tokenizers import (
    adds_special_tokens_before,
    check_beginning,
    copy_for_transformer_lens,
)

EMBEDDED_DIR = Path(__file__).parents[1] / "world" / "models"
_ORIGIN_ATTRIBUTE = "_kn_lens_origin"

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

_RETURNED_OTHERWISE = {"return_dict": False, "output_router_logits": True}
_WEIGHT_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_QUANTISING_LIBRARIES = (
    "torch.ao.",
    "torchao.",
    "bitsandbytes.",
    "gptqmodel.",
    "auto_gptq.",
    "awq.",
    "hqq.",
    "optimum.quanto.",
    "compressed_tensors.",
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        hf_model: the Hugging Face model, in evaluation mode.
        tokenizer: its own tokenizer, or the one that the caller chose.
        origin: what was done to the stored weights; empty where they are as stored.
    """

    hf_model: Any
    tokenizer: Any
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class _Location:
    """Where the files of a checkpoint are.

    Attributes:
        name: the name or path that the caller gave.
        path_or_name: a directory, or a name on the hub.
        is_local: whether the files are on this machine.
        gguf_file: the GGUF file with all of it, if it is one.
        options: further arguments of ``from_pretrained``, for configuration, tokenizer and weights.
    """

    name: str
    path_or_name: str
    is_local: bool
    gguf_file: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)


def embedded_models() -> list[str]:
    """Return the names of the checkpoints that come with kn_lens."""
    return sorted(path.parent.name for path in EMBEDDED_DIR.glob("*/config.json"))


def attach_origin(model: Any, origin: str) -> None:
    """Attach to a TransformerLens model what was done to the weights as stored, for `origin_of`."""
    setattr(model, _ORIGIN_ATTRIBUTE, origin)


def origin_of(model: Any) -> str:
    """Return what was done to the weights of a model as stored; empty where nothing was, or where it is not known."""
    return getattr(model, _ORIGIN_ATTRIBUTE, "")


def local_models() -> list[str]:
    """Return the names that need no hub: the embedded models and those in Python packages, installed or not."""
    return [*embedded_models(), *(model.name for model in PACKAGED_MODELS)]


def is_bridge(model: Any) -> bool:
    """Return whether a model is a TransformerBridge, without importing TransformerLens."""
    return any(cls.__name__ == "TransformerBridge" for cls in type(model).__mro__)


@one_load_at_a_time
def read_checkpoint(
    source: str | Path,
    *,
    tokenizer: Any,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    revision: str | None,
    with_tokenizer: bool = True,
) -> Checkpoint:
    """Load a Hugging Face model in evaluation mode, and its tokenizer unless one is given or none is wanted.

    Raises:
        UnsupportedModelError: no such checkpoint, an incomplete one, or a model that kn_lens cannot host.
        ArgumentError: an invalid device or dtype, a revision of a checkpoint that is not on the hub, or a tokenizer
            that begins texts otherwise than the checkpoint's own.
    """
    device, dtype = _resolve(device, dtype)
    directory = Path(os.path.expanduser(source))
    if os.path.isfile(directory / ADAPTER_CONFIG) and not os.path.exists(directory / "config.json"):
        if revision is not None:
            raise ArgumentError(f"revision= is for names on the Hugging Face hub; {str(source)!r} is on this machine.")
        return _read_adapter(directory, tokenizer, device, dtype, with_tokenizer=with_tokenizer)
    with quiet_imports():
        from transformers import AutoConfig, AutoTokenizer

    reads_tokenizer = with_tokenizer and tokenizer is None
    location = _locate(source, revision, needs_tokenizer=reads_tokenizer)
    name, path_or_name, options = location.name, location.path_or_name, location.options
    try:
        config = AutoConfig.from_pretrained(path_or_name, trust_remote_code=False, **options)
    except Exception as error:
        reason = first_line(error)
        message = f"{name!r} cannot be loaded: {reason}" if location.is_local else _not_found(name, reason)
        raise UnsupportedModelError(message) from error
    kind = check_config(config, None, name)
    auto = _auto_class(config, kind)
    weight_options = dequantising_options(location.gguf_file) if location.gguf_file else options

    def read_tokenizer() -> Any:
        return AutoTokenizer.from_pretrained(path_or_name, trust_remote_code=False, **options)

    def read_weights() -> Any:
        return auto.from_pretrained(
            path_or_name,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
            trust_remote_code=False,
            **weight_options,
        )

    if tokenizer is not None and adds_special_tokens_before(tokenizer):
        unchanged = None
        with suppress(Exception):  # a checkpoint without a tokenizer that can be read has none to compare with
            unchanged = read_tokenizer()
        check_beginning(tokenizer, unchanged)
    try:
        if reads_tokenizer:
            tokenizer = read_tokenizer()
        model, info = read_weights()
        if config.model_type == "deberta-v2" and _has_newer_head(info["unexpected_keys"]):
            config.legacy = False
            model, info = read_weights()
    except Exception as error:  # damaged files fail in as many ways as there are readers
        raise UnsupportedModelError(f"{name!r} cannot be loaded: {first_line(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UnsupportedModelError(
            f"{name!r} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]!r}, which would be "
            f"random; it was saved from {(config.architectures or ['another class'])[0]}. Expected a checkpoint of "
            f"{with_article(type(model).__name__)}"
            + (" (ELECTRA: the generator)." if config.model_type == "electra" else ".")
        )
    origin = ""
    if location.gguf_file:
        forget_quantisation(model)
        origin = f"dequantised from {location.gguf_file.name}"
    return Checkpoint(hf_model=model.to(device).eval(), tokenizer=tokenizer, origin=origin)


def _has_newer_head(unread_weights: Iterable[str]) -> bool:
    """Return whether a DeBERTa v2 or v3 has the head that transformers reads under ``legacy=False`` alone."""
    return any(name.startswith("lm_predictions.") for name in unread_weights)


def _read_adapter(
    directory: Path,
    tokenizer: Any,
    device: torch.device,
    dtype: torch.dtype,
    *,
    with_tokenizer: bool,
) -> Checkpoint:
    """Load the base model of an adapter of PEFT, and merge the adapter into it."""
    name = base_of_adapter(directory)
    try:
        base = read_checkpoint(
            name,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            revision=None,
            with_tokenizer=with_tokenizer,
        )
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"The base model of the adapter in {str(directory)!r}: {error}") from error
    origin = f"{name} with the adapter {directory.name} merged in"
    return Checkpoint(
        hf_model=merge_adapter(base.hf_model, directory),
        tokenizer=base.tokenizer,
        origin=f"{origin}; base {base.origin}" if base.origin else origin,
    )


def _locate(source: str | Path, revision: str | None, *, needs_tokenizer: bool) -> _Location:
    """Return where a checkpoint is, by its name or path.

    Raises:
        UnsupportedModelError: no such checkpoint on this machine, or an incomplete one.
        ArgumentError: a revision of a checkpoint that is not on the hub.
    """
    name = str(source)
    packaged = packaged_file(name)
    if packaged is not None:
        path = packaged
    elif name in embedded_models():
        path = EMBEDDED_DIR / name
    else:
        path = Path(os.path.expanduser(source))
    is_directory = os.path.isdir(path)  # unlike Path's, false for names that cannot be
    gguf_file = gguf_file_of(path, _WEIGHT_FILES) if is_directory or path.suffix.lower() == ".gguf" else None
    if revision is not None and (is_directory or gguf_file):
        raise ArgumentError(f"revision= is for names on the Hugging Face hub; {name!r} is on this machine.")
    if gguf_file is not None:
        return _Location(
            name=name,
            path_or_name=str(gguf_file.parent),
            is_local=True,
            gguf_file=gguf_file,
            options=reading_options(gguf_file),
        )
    if is_directory:
        _check_directory(path, needs_tokenizer=needs_tokenizer)
        return _Location(name=name, path_or_name=str(path), is_local=True)
    if (
        isinstance(source, Path)
        or name.startswith((".", "/", "~", "world-"))
        or name.endswith(".gguf")
        or name.count("/") > 1
        or get_close_matches(name, local_models(), cutoff=0.85)  # a slip of the pen, not a name to ask a hub for
    ):
        raise UnsupportedModelError(_not_found(name))
    options = {} if revision is None else {"revision": revision}
    return _Location(name=name, path_or_name=name, is_local=False, options=options)


def _auto_class(config: Any, kind: Kind) -> Any:
    """Return the class of transformers that reads checkpoints of a configuration.

    Of a model of text and images that is the language model alone, where transformers can read it alone.
    """
    with quiet_imports():
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoModelForMaskedLM,
            AutoModelForSeq2SeqLM,
        )
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if kind == "masked":
        return AutoModelForMaskedLM
    if kind == "encoder-decoder":
        return AutoModelForSeq2SeqLM
    family = BY_MODEL_TYPE.get(config.model_type)
    is_text_in_other = family is not None and family.architecture.endswith(TEXT_IN_OTHERS)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, TEXT_IN_OTHERS)
    return AutoModelForImageTextToText if is_text_in_other and causal.endswith(TEXT_IN_OTHERS) else AutoModelForCausalLM


def is_wrapped(model: nn.Module) -> bool:
    """Return whether TransformerLens has wrapped a Hugging Face model."""
    return any(name.endswith("_original_component") for name, _ in model.named_modules())


def check_in_memory(model: Any) -> None:
    """Raise unless ``model`` is a Hugging Face model that `wrap_in_bridge` can take.

    Raises:
        UnsupportedModelError: not a Hugging Face model, one that is already wrapped, or one that cannot be hosted.
    """
    with quiet_imports():
        from transformers import PreTrainedModel

    kind = type(model).__name__
    if hasattr(model, "merge_and_unload"):
        raise UnsupportedModelError(
            f"Got {with_article(kind)}, a model inside an adapter of PEFT; expected the Hugging Face model with the "
            "adapter merged in: peft_model.merge_and_unload()."
        )
    if not isinstance(model, PreTrainedModel):
        expected = "a name, a directory, a Hugging Face model or a TransformerLens model"
        raise wrong_kind(model, expected, error=UnsupportedModelError)
    if is_wrapped(model):
        raise UnsupportedModelError(
            f"This {kind} is wrapped by TransformerLens already; pass the TransformerLens model that wraps it."
        )
    check_config(model.config, architecture_of(model), kind)


def check_state(hf_model: nn.Module, name: str, modules: Sequence[nn.Module]) -> None:
    """Raise unless the model is in evaluation mode, whole on one device, and of plain floating-point weights.

    Args:
        hf_model: the model.
        name: its name in the message.
        modules: its `modules_of`.

    Raises:
        UnsupportedModelError: with the module or weight that fails the check.
    """
    if any(module.training for module in modules):
        training = [path for path, module in hf_model.named_modules() if module.training]
        where = "" if "" in training else f" ({len(training)} of its parts, such as {_checkpoint_name(training[0])!r})"
        raise UnsupportedModelError(
            f"{name} is in train mode{where}, where dropout makes passes random; call model.eval() first."
        )
    check_placed(hf_model, name, modules)


def check_placed(model: nn.Module, name: str, modules: Sequence[nn.Module]) -> None:
    """Raise unless the model is whole on one device, and of plain floating-point weights.

    Args:
        model: the model.
        name: its name in the message.
        modules: its `modules_of`.

    Raises:
        UnsupportedModelError: with the module or weight that fails the check.
    """
    weights = weights_of(modules)
    devices = {str(device) for device in {weight.device for weight in weights}}
    if len(devices) > 1 or "meta" in devices:
        raise UnsupportedModelError(
            f"{name} has weights on {' and '.join(sorted(devices))}; expected all on one device: model.to(device), or "
            "loaded without device_map= (a model on meta has its weights elsewhere, or none). Where memory is short, "
            "load it in dtype=torch.bfloat16."
        )
    for module in modules:
        library = type(module).__module__
        if library.startswith(_QUANTISING_LIBRARIES):
            path = next(path for path, other in model.named_modules() if other is module)
            raise UnsupportedModelError(
                f"{name} is quantised: {_checkpoint_name(path)!r} is {type_with_article(module)} of "
                f"{library.partition('.nn')[0]}; load {INSTEAD_OF_QUANTISED}."
            )
    for weight in weights:
        # Those of torchao have classes of their own, and say that they are float32.
        is_plain = type(weight) in (nn.Parameter, torch.Tensor)
        if is_plain and weight.dtype in _WEIGHT_TYPES and not weight.is_inference():
            continue
        path = _checkpoint_name(next(path for path, other in model.named_parameters() if other is weight))
        if weight.is_inference():
            raise UnsupportedModelError(
                f"{name} was made under torch.inference_mode(): no gradient passes its weights, such as {path!r}, and "
                "no edit of them can be undone. Load it outside that mode."
            )
        if weight.dtype not in _WEIGHT_TYPES:
            raise UnsupportedModelError(
                f"{name} is quantised: {path!r} is {weight.dtype}; load {INSTEAD_OF_QUANTISED}."
            )
        raise UnsupportedModelError(
            f"{name} is quantised or sharded: {path!r} is {type_with_article(weight)}, no plain tensor; load "
            f"{INSTEAD_OF_QUANTISED}."
        )


def check_finite(hf_model: nn.Module, name: str) -> None:
    """Raise if a weight is NaN or infinite. Reads every weight once.

    Raises:
        UnsupportedModelError: with the name of the weight.
    """
    for path, weight in hf_model.named_parameters():
        if bool(weight.sum().isfinite()):  # as fast as memory is read; a sum that overflows is looked at more closely
            continue
        n_bad = weight.numel() - int(torch.isfinite(weight).sum())
        if n_bad:
            weight_name = _checkpoint_name(path)
            raise UnsupportedModelError(
                f"{name}: {n_bad} of {weight.numel()} values of the weight {weight_name} are NaN or infinite; "
                "expected finite weights. The checkpoint is damaged, or was cast to a type too small for it: load it "
                "again, with a wider dtype."
            )


@contextmanager
def restored_on_error(hf_model: Any) -> Iterator[None]:
    """Give a Hugging Face model its own submodules and settings back if the ``with`` block raises."""
    states: list[tuple[nn.Module, dict[str, Any]]] = []
    modules = modules_of(hf_model)
    for module in modules:
        state: dict[str, Any] = {}
        for key, value in vars(module).items():
            state[key] = copy(value) if isinstance(value, dict) else value  # of submodules, weights and hooks
        states.append((module, state))
    gradients = {weight: weight.requires_grad for weight in hf_model.parameters()}
    # TransformerLens moves this buffer of a BART into the bias of its head.
    bias = getattr(hf_model, FINAL_BIAS, None)
    kept_bias = None if bias is None else bias.clone()
    attention = hf_model.config._attn_implementation
    experts = hf_model.config._experts_implementation
    outputs = output_settings(modules)
    try:
        yield
    except BaseException:
        for module, state in states:
            vars(module).clear()
            vars(module).update(state)
        for weight, requires_grad in gradients.items():
            weight.requires_grad_(requires_grad)
        if bias is not None:
            bias.copy_(kept_bias)
        hf_model.set_attn_implementation(attention)
        hf_model.config._experts_implementation = experts
        for setting in outputs:
            setattr(setting.config, setting.name, setting.value)
        raise


@dataclass(frozen=True, kw_only=True)
class OutputSetting:
    """A setting of what a model returns, beside what it computes.

    Attributes:
        config: the configuration, of the model or of a part of it.
        name: of the setting.
        value: its value.
    """

    config: Any
    name: str
    value: Any


def output_settings(modules: Iterable[nn.Module]) -> list[OutputSetting]:
    """Return the settings with which passes of a model of some modules fail, since they return something else.

    Without ``return_dict``, modules return tuples where others expect names. With ``output_router_logits``, a mixture
    of experts computes a loss of the routing, of passes through all layers and rows alone.
    """
    # A plain attribute of modules: one that lacks it would look for it in all its weights and parts.
    configs = {id(config): config for config in (vars(module).get("config") for module in modules)}
    found: list[OutputSetting] = []
    for config in configs.values():
        for name, value in _RETURNED_OTHERWISE.items():
            if getattr(config, name, None) is value:
                found.append(OutputSetting(config=config, name=name, value=value))
    return found


def return_logits_by_name(hf_model: nn.Module) -> None:
    """Let a model return its logits by name, and nothing beside that passes of parts of it cannot compute."""
    for setting in output_settings(modules_of(hf_model)):
        setattr(setting.config, setting.name, not setting.value)


def run_experts_one_by_one(hf_model: Any) -> None:
    """Let the experts of a model be computed one after another: the fused kernels of transformers take no float64."""
    if has_experts(hf_model.config):
        hf_model.set_experts_implementation("eager")


def wrap_in_bridge(hf_model: Any, *, name: str, tokenizer: Any) -> Any:
    """Build a TransformerBridge around a Hugging Face model, in place, and freeze its weights.

    TransformerLens sets up a copy of the tokenizer as ``bridge.tokenizer``, for its own functions on texts.

    Raises:
        UnsupportedModelError: its blocks have no dense MLP (the model is then untouched), or TransformerLens fails.
    """
    architecture = architecture_of(hf_model)
    family = BY_ARCHITECTURE.get(architecture)
    stacks = list(STACKS.values()) if family and family.kind == "encoder-decoder" else ["blocks"]

    def on_adapter(adapter: Any) -> None:  # called before the model is touched
        if not has_experts(hf_model.config):
            _map_dense_mlps(adapter)
            for stack in stacks:
                _check_blocks(adapter.component_mapping, stack, name)
        if hf_model.config._attn_implementation != "eager":
            hf_model.set_attn_implementation("eager")  # the attention hooks do not fire in the fused kernels

    with quiet_imports():
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        try:
            bridge = build_bridge_from_module(
                hf_model,
                architecture,
                hf_config=hf_model.config,
                tokenizer=None if tokenizer is None else copy_for_transformer_lens(tokenizer),
                model_name=name,
                post_adapter_hook=on_adapter,
            )
        except KNLensError:
            raise
        except Exception as error:
            raise UnsupportedModelError(f"TransformerLens cannot host {name!r}: {first_line(error)}") from error
    bridge.requires_grad_(False)  # after building: families with joint QKV get new parameters then
    return bridge


def import_model_libraries() -> None:
    """Import the libraries that loading a model imports, ahead of time."""
    with quiet_imports():
        import transformers.models.auto.modeling_auto
        import transformers.models.bert.modeling_bert  # noqa: F401

        with suppress(ImportError):  # before TransformerLens 4
            import transformer_lens.model_bridge.sources  # noqa: F401


def _map_dense_mlps(adapter: Any) -> None:
    """Map the MLPs of a model without experts as gated ones, where the adapter is for mixtures with dense layers."""
    from transformer_lens.model_bridge.generalized_components import GatedMLPBridge

    blocks = adapter.component_mapping.get("blocks")
    mlp = getattr(blocks, "submodules", {}).get("mlp")
    parts = getattr(mlp, "submodules", {})
    if blocks is None or mlp is None or "dense_gate" not in parts or "out" in parts:
        return
    dense = {
        "gate": parts["dense_gate"],
        "in": parts["dense_in"],
        "out": parts["dense_out"],
    }
    blocks.submodules["mlp"] = GatedMLPBridge(name=mlp.name, config=adapter.cfg, submodules=dense)


def _check_blocks(mapping: Any, stack: str, name: str) -> None:
    mlp = mapping[stack].submodules.get("mlp") if stack in mapping else None
    if "out" not in getattr(mlp, "submodules", {}):
        raise UnsupportedModelError(
            f"{name!r} cannot be hosted: its blocks have no dense MLP with a W_out; take a dense transformer."
        )


def _resolve(device: str | torch.device | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    if dtype is not None and dtype not in _WEIGHT_TYPES:
        expected = ", ".join(map(str, _WEIGHT_TYPES))
        raise ArgumentError(f"dtype={dtype!r}; expected one of {expected}.")
    if device is not None and not isinstance(device, (str, torch.device)):
        raise ArgumentError(f"device={device!r}; expected a name such as 'cuda', or a torch.device.")
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ArgumentError(f"device={device!r}; expected 'cpu', 'cuda' or 'mps'.") from error
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"device={device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if found.type == "meta":
        raise ArgumentError(f"device={device!r} holds no weights; expected a device that can run the model.")
    return found, dtype or torch.float32


def _check_directory(path: Path, *, needs_tokenizer: bool) -> None:
    present = {entry.name for entry in path.iterdir()}
    for name in sorted(present):
        if not (path / name).is_dir() and (path / name).exists() and not (path / name).is_file():
            raise UnsupportedModelError(
                f"{str(path)!r} holds {name}, which is not a regular file; expected the files of a "
                "checkpoint. Remove or replace it."
            )
    for what, files in {
        "configuration": ("config.json",),
        "weights": _WEIGHT_FILES,
        "tokenizer": _TOKENIZER_FILES,
    }.items():
        if not present.intersection(files) and (what != "tokenizer" or needs_tokenizer):
            cure = ", or tokenizer=" if what == "tokenizer" else ""
            raise UnsupportedModelError(
                f"{str(path)!r} holds no {what}; expected {' or '.join(files)} there, as written by "
                f"save_pretrained{cure}."
            )
    for name in present.intersection(_WEIGHT_FILES):
        if name.endswith(".index.json"):
            _check_index(path / name)


def _check_index(path: Path) -> None:
    """Raise where an index names a file outside its directory; links in it may lead elsewhere, as those of a cache do.

    Raises:
        UnsupportedModelError: with the name.
    """
    try:
        names = json.loads(read_whole(path))["weight_map"].values()
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UnsupportedModelError(
            f"{str(path)!r} is damaged: expected the files of the weights by name ({error})."
        ) from error
    for name in names:
        target = PureWindowsPath(name if isinstance(name, str) else "..")  # which parses the paths of other systems too
        if target.anchor or ".." in target.parts:
            raise UnsupportedModelError(
                f"{str(path)!r} has weights in {name!r}; expected names of files in its own directory."
            )


def _not_found(name: str, reason: str = "") -> str:
    from huggingface_hub.constants import is_offline_mode

    if reason and is_offline_mode():
        reason = "HF_HUB_OFFLINE is set, so the hub was not queried, and the cache holds no copy"
    return f"Unknown model {name!r}; {EXPECTED_SOURCE}.{did_you_mean(name, local_models())}" + (
        reason and f" ({reason})"
    )


def first_line(error: Exception) -> str:
    """Return the first line of the message of an error, or the name of its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _checkpoint_name(path: str) -> str:
    return path.replace("._original_component", "")
