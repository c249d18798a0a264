"""Files of weight edits: safetensors, with everything but the rows as JSON in the metadata.

Tensors: ``neurons`` (int64, ``[neuron, 2]``, layer and index; where any is an expert's, ``[neuron, 3]``, layer, expert
and index, with -1 for the shared expert and -2 in layers with one MLP), ``old`` and ``new`` (``[neuron, d_model]``, in
the model's type). The metadata has one entry, ``kn_lens``:

    {"format": "kn_lens.edit", "version": 1, "checkpoint": {...}, "why": [...], "digest": "..."}

The digest is the SHA-256 of everything else. It reveals damage and changes by hand; it is no signature. The file holds
no pickle and no code.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kn_lens._core.atomic import write_whole
from kn_lens.errors import DataError, did_you_mean

FORMAT = "kn_lens.edit"
VERSION = 1
TENSORS = ("neurons", "new", "old")

_ENTRY = "kn_lens"


def canonical(document: Any) -> str:
    """Return the canonical JSON of a document: sorted keys, ASCII, no blanks.

    Raises:
        TypeError, ValueError: the document is no JSON, or holds NaN.
    """
    return json.dumps(
        document,
        sort_keys=True,
        ensure_ascii=True,
        allow_nan=False,
        separators=(",", ":"),
    )


def digest_of(tensors: Mapping[str, Tensor], document: Any = None) -> str:
    """Return the SHA-256 of tensors, with their names, types and shapes, and of a JSON document."""
    digest = hashlib.sha256(canonical(document).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_edit(
    path: Path,
    tensors: Mapping[str, Tensor],
    document: Mapping[str, Any],
) -> None:
    """Write an edit. The same edit gives the same bytes, and the file appears whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    from safetensors.torch import save

    digest = digest_of(tensors, document)
    header = {"format": FORMAT, "version": VERSION, **document, "digest": digest}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = save(contiguous, {_ENTRY: canonical(header)})
    try:
        write_whole(path, content)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be written: {reason}.") from error


def read_edit(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file written by `write_edit`: the tensors and the document.

    Raises:
        DataError: no such file, another format or version, truncated, or changed after it was written.
    """
    tensors, metadata = _read_safetensors(path)
    try:
        document = json.loads(metadata[_ENTRY])
        file_format = document.pop("format")
        version = document.pop("version")
        digest = document.pop("digest")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise DataError(f"{path} holds no edit; expected a file written by WeightEdit.save.") from None
    if file_format != FORMAT or version != VERSION:
        raise DataError(
            f"{path} is {file_format!r} version {version!r}; "
            f"this version of kn_lens reads {FORMAT!r} version {VERSION}."
        )
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    are_tables = all(len(shape) == 2 for shape in shapes.values())
    if tuple(sorted(shapes)) != TENSORS or not are_tables:
        raise DataError(f"{path} holds tensors of the shapes {shapes}; expected neurons, new and old, each a table.")
    try:
        intact = digest == digest_of(tensors, document)
    except (ValueError, RecursionError):  # no canonical JSON, so not written by write_edit
        intact = False
    if not intact:
        raise DataError(
            f"{path} is not as it was written: its contents do not have the digest that it names. "
            "It was damaged or changed; make the edit again, or fetch the file again."
        )
    return tensors, document


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file."""
    from safetensors import safe_open

    if not os.path.isfile(path):  # unlike Path's method, False for impossible names
        names = []
        if path.parent.is_dir():
            names = [sibling.name for sibling in path.parent.iterdir()]
        raise DataError(f"There is no file {path}.{did_you_mean(path.name, names)}")
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # not a mapping: it has no __iter__
                # Cloned, because the file may change or disappear while the edit is used.
                tensors[name] = file.get_tensor(name).clone()
            return tensors, file.metadata() or {}
    except Exception as error:  # safetensors raises many types for damaged files
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path} cannot be read as an edit, which is a safetensors file: {reason}.") from error
