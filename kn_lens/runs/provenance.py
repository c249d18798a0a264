"""What the records of a run depend on besides its settings: the model bit by bit, the libraries, and the machine."""

import hashlib
import platform
from importlib.metadata import version
from typing import Any

import torch

from kn_lens._core.precision import dtype_name
from kn_lens.hosts import Host

LIBRARIES = ("torch", "transformers", "tokenizers", "transformer-lens")
"""Packages whose versions can change records."""


def model_identity(host: Host) -> dict[str, Any]:
    """Return digests of the model's weights and tokenizer, with its dtype, or TF32, and kind of device.

    Cost: reads all weights once, about a second per gigabyte.
    """
    weights = hashlib.sha256()
    for name, tensor in host.checkpoint.state_dict().items():
        weights.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
        values = tensor.detach().contiguous().flatten()
        weights.update(values.view(torch.uint8).cpu().numpy().data)
    tokenizer = getattr(host.tokenizer, "backend_tokenizer", None)
    vocabulary = ""
    if tokenizer is not None:
        vocabulary = tokenizer.to_str() + str(sorted(host.tokenizer.special_tokens_map.items()))
    return {
        "architecture": host.architecture,
        "weights": weights.hexdigest(),
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "dtype": dtype_name(host.dtype),
        "device": host.device.type,
    }


def model_size(host: Host) -> dict[str, Any]:
    """Return the kind and dimensions of a model, by which runs are compared across models.

    Of an encoder-decoder also the side of it whose neurons all records are about.
    """
    n_params = sum(parameter.numel() for parameter in host.checkpoint.parameters())
    side = {} if host.side is None else {"side": host.side}
    return {
        "kind": host.kind,
        **side,
        "n_layers": host.n_layers,
        "d_model": host.d_model,
        "d_mlp": host.d_mlp,
        "d_vocab": host.d_vocab,
        "n_params": n_params,
    }


def versions() -> dict[str, str]:
    """Return the versions of the libraries that records depend on."""
    import kn_lens

    found = {"kn_lens": kn_lens.__version__}
    for name in LIBRARIES:
        found[name] = version(name)
    return found


def machine(host: Host) -> dict[str, Any]:
    """Return where the run was made; records do not depend on it."""
    return {
        "device": str(host.device),
        "threads": torch.get_num_threads(),
        "machine": platform.platform(),
    }
