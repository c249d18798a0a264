"""What tells a model from others, for the files that are about one: an index means nothing in another model.

A name or path says where a model was loaded from, not which it is: a copy elsewhere is the same model, and the same
place may hold other weights tomorrow. The *digest* is of the weights themselves. It depends neither on their names,
which change with the release of TransformerLens, nor on float32, float64 or bfloat16 as the type that they are loaded
in: each is rounded to bfloat16 first.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kn_lens._hooked import is_hooked
from kn_lens._loading import is_bridge
from kn_lens.hosts import Host, host_of


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What a file says of the model that it is about; None where it does not say.

    Attributes:
        name: the name or path that the model was loaded by.
        architecture: the Hugging Face class.
        n_layers: number of blocks.
        d_mlp: neurons per layer.
        d_model: width of the residual stream.
        dtype: of the weights: ``"float32"``.
        digest: of the weights; None also where TransformerLens has processed them, or copied them into a model of its
            own.
    """

    name: str
    architecture: str | None = None
    n_layers: int | None = None
    d_mlp: int | None = None
    d_model: int | None = None
    dtype: str | None = None
    digest: str | None = None

    @classmethod
    def of(cls, model: Any, *, with_digest: bool = True) -> "ModelIdentity":
        """Describe a model; a ``Host`` will do. With the digest all weights are read: 5 s for a thousand million."""
        host = model if isinstance(model, Host) else host_of(model)
        return cls(
            name=host.name,
            architecture=host.architecture,
            n_layers=host.n_layers,
            d_mlp=host.d_mlp,
            d_model=host.d_model,
            dtype=str(host.dtype).removeprefix("torch."),
            digest=weights_digest(host) if with_digest and host.raw and not is_hooked(host.model) else None,
        )

    @classmethod
    def read(cls, found: object) -> "ModelIdentity | None":
        """Return what a file's entry for its model says: an object, or a bare name; None where it names none."""
        if isinstance(found, str):
            found = {"name": found}
        if not isinstance(found, Mapping) or not isinstance(found.get("name"), str) or not found["name"]:
            return None
        kinds = {
            **dict.fromkeys(("architecture", "dtype", "digest"), str),
            "n_layers": int,
            "d_mlp": int,
            "d_model": int,
        }
        said: dict[str, Any] = {name: found[name] for name, kind in kinds.items() if type(found.get(name)) is kind}
        return cls(name=found["name"], **said)

    def as_dict(self) -> dict[str, Any]:
        """Return the entry to write."""
        return asdict(self)

    def difference(self, other: "ModelIdentity") -> str | None:
        """Return in words what tells the two apart, or None where they are one model as far as is known."""
        for name in ("architecture", "n_layers", "d_mlp", "d_model"):
            mine, its = getattr(self, name), getattr(other, name)
            if None not in (mine, its) and mine != its:
                return f"{name} is {mine} in the one and {its} in the other"
        if None not in (self.digest, other.digest):
            if self.digest == other.digest:
                return None
            if self.dtype != other.dtype and "float16" in (self.dtype, other.dtype):
                types = f"{self.dtype} in the one, {other.dtype} in the other"
                return f"their weights differ, perhaps by rounding alone: {types}"
            return "their weights differ"
        return None if _same_place(self.name, other.name) else "their names differ, and no digest of weights is known"


def is_hosted(value: object) -> bool:
    """Return whether a value is a model that kn_lens may work on, rather than a name."""
    return isinstance(value, Host) or is_bridge(value) or is_hooked(value)


def weights_digest(host: Host) -> str:
    """Return the SHA-256 of the set of weights of a checkpoint, and of each layer's ``W_out``, rounded to bfloat16.

    Weights of zeros alone are left out: releases of TransformerLens differ in whether they add a bias of zeros.
    """
    digests = {_digest(weight) for weight in host.checkpoint.parameters() if weight.any()}
    in_order = [_digest(host.W_out(layer)) for layer in range(host.n_layers)]
    return hashlib.sha256(b"".join([*sorted(digests), *in_order])).hexdigest()


def _digest(weight: torch.Tensor) -> bytes:
    rounded = weight.detach().to(torch.bfloat16).contiguous()
    one = hashlib.sha256(str(list(rounded.shape)).encode())
    one.update(rounded.flatten().view(torch.uint8).cpu().numpy().data)
    return one.digest()


def _same_place(one: str, other: str) -> bool:
    return one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))
