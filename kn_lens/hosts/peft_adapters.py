"""Adapters of PEFT on disk: a directory with an adapter is read as its base model with the adapter merged in."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kn_lens._core.atomic import read_whole
from kn_lens.errors import UnsupportedModelError
from kn_lens.hosts.families import quiet_imports

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def base_of_adapter(directory: Path) -> str:
    """Return the name or path of the base model of an adapter.

    Raises:
        UnsupportedModelError: the adapter names none, its configuration is damaged, or PEFT is not installed.
    """
    try:
        base = json.loads(read_whole(directory / ADAPTER_CONFIG))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UnsupportedModelError(
            f"{str(directory / ADAPTER_CONFIG)!r} is damaged: expected base_model_name_or_path ({error})."
        ) from error
    if not isinstance(base, str) or not base or os.path.realpath(base) == os.path.realpath(directory):
        raise UnsupportedModelError(
            f"{str(directory)!r} holds an adapter of PEFT with the base model {base!r}; expected a name or a path. "
            "Merge it yourself: load_model(peft_model.merge_and_unload(), tokenizer=tokenizer)."
        )
    if find_spec("peft") is None:
        raise UnsupportedModelError(
            f"{str(directory)!r} holds an adapter of PEFT, which merges it into {base!r}. Install it with: "
            "pip install peft"
        )
    return base


def merge_adapter(hf_model: Any, directory: Path) -> Any:
    """Return a base model with the adapter of a directory merged into its weights, in evaluation mode.

    Raises:
        UnsupportedModelError: the adapter does not fit the model, or is of a kind that cannot be merged.
    """
    with quiet_imports():
        from peft import PeftModel

    if not any((directory / name).is_file() for name in _WEIGHT_FILES):
        raise UnsupportedModelError(
            f"{str(directory)!r} holds no weights of an adapter; expected {' or '.join(_WEIGHT_FILES)} there."
        )
    try:
        adapted: Any = PeftModel.from_pretrained(hf_model, str(directory))
        wrong = _wrong_weight(adapted, directory)
        if wrong is None:
            return adapted.merge_and_unload().eval()
        reason, cause = wrong, None
    except Exception as error:  # damaged files, other sizes, prompt tuning: each fails in its own way
        lines = str(error).split("\n")
        reason, cause = " ".join(" ".join(lines[:2]).split()) or type(error).__name__, error
    raise UnsupportedModelError(
        f"The adapter in {str(directory)!r} cannot be merged into its base model: {reason}"
    ) from cause


def _wrong_weight(adapted: Any, directory: Path) -> str | None:
    """Describe a weight that an adapter's file lacks, or has beyond those of its model; None where there is none.

    PEFT leaves such weights at their initial values, with which an adapter does nothing, or out.
    """
    from peft import get_peft_model_state_dict, load_peft_weights

    stored = load_peft_weights(str(directory), device="cpu").keys()
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    lacking = sorted(expected - stored)
    if lacking:
        return f"its file lacks {len(lacking)} weights, such as {lacking[0]!r}."
    beyond = sorted(name for name in stored - expected if adapted.base_model.prefix in name)
    if beyond:
        return f"its file has {len(beyond)} weights that the model has no place for, such as {beyond[0]!r}."
    return None
