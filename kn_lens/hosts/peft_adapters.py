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

    try:
        adapted: Any = PeftModel.from_pretrained(hf_model, str(directory))
        return adapted.merge_and_unload().eval()
    except Exception as error:  # damaged files, other sizes, prompt tuning: each fails in its own way
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UnsupportedModelError(
            f"The adapter in {str(directory)!r} cannot be merged into its base model: {reason}"
        ) from error
