"""The file that a weight edit is kept in: safetensors, with everything but the rows as JSON in its metadata.

Tensors: ``neurons`` (int64, [neuron, 2], layer and index), ``old`` and ``new`` (``[neuron, d_model]``, in the model's
type). The metadata has one entry, ``kn_lens``: ``{"format": "kn_lens.edit", "version": 1, "checkpoint": {...}, "why":
[...], "digest": "..."}``. The digest is the SHA-256 of all the rest, so that a file that was damaged or changed by hand
is told from one that was not; it is no signature. No pickle, no code.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kn_lens._whole_files import write_whole
from kn_lens.errors import DataError, did_you_mean

FORMAT = "kn_lens.edit"
VERSION = 1
TENSORS = ("neurons", "new", "old")

_ENTRY = "kn_lens"


def canonical(document: Any) -> str:
    """Return the one way to write a document as JSON.

    Raises:
        TypeError, ValueError: it cannot be written, or holds NaN.
    """
    return json.dumps(document, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def digest_of(tensors: Mapping[str, Tensor], document: Any = None) -> str:
    """Return the SHA-256 of tensors, with their names, types and shapes, and of a JSON document."""
    digest = hashlib.sha256(canonical(document).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_edit(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write an edit. The same edit gives the same bytes, and the file appears whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    from safetensors.torch import save

    content = {**document, "digest": digest_of(tensors, document)}
    metadata = {_ENTRY: canonical({"format": FORMAT, "version": VERSION, **content})}
    written = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    try:
        write_whole(path, written)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise DataError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error


def read_edit(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_edit` wrote: the tensors and the document.

    Raises:
        DataError: no such file, another format or version, truncated, or not as it was written.
    """
    tensors, metadata = _opened(path)
    try:
        content = json.loads(metadata[_ENTRY])
        kind, version, digest = content.pop("format"), content.pop("version"), content.pop("digest")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise DataError(f"{path} holds no edit; expected a file written by WeightEdit.save.") from None
    if kind != FORMAT or version != VERSION:
        raise DataError(
            f"{path} is {kind!r} version {version!r}; this version of kn_lens reads {FORMAT!r} version {VERSION}."
        )
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if tuple(sorted(shapes)) != TENSORS or any(len(shape) != 2 for shape in shapes.values()):
        raise DataError(f"{path} holds tensors of the shapes {shapes}; expected neurons, new and old, each a table.")
    try:
        intact = digest == digest_of(tensors, content)
    except (ValueError, RecursionError):  # what canonical JSON cannot hold was not written by write_edit
        intact = False
    if not intact:
        raise DataError(
            f"{path} is not as it was written: its contents do not have the digest that it names. It was damaged or "
            "changed; make the edit again, or fetch the file again."
        )
    return tensors, content


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    if not os.path.isfile(path):  # unlike Path's, false for names that cannot be
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"There is no file {path}.{did_you_mean(path.name, beside)}")
    try:
        with safe_open(path, framework="pt") as file:
            # Copied, because the file may change or go while the edit is used.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}
    except Exception as error:  # damaged files fail in as many ways as the reader has branches
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path} cannot be read as an edit, which is a safetensors file: {reason}.") from error
