"""``ModelIdentity``: the identity of a model, for the files about it, whose neuron indices hold in this model alone.

A name or path says where a model was loaded from, not which one it is: a copy elsewhere is the same model, and the same
directory may hold other weights tomorrow. The *digest* identifies the weights themselves. It depends neither on their
names, which change with the release of TransformerLens, nor on the type in which they are loaded, float32, float64 or
bfloat16: each weight is rounded to bfloat16 first.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kn_lens.hosts.bridge import Host
from kn_lens.hosts.hooked import is_hooked
from kn_lens.hosts.loading import host_of
from kn_lens.hosts.model_protocol import HookedModel

_FIELD_TYPES = {
    "architecture": str,
    "n_layers": int,
    "d_mlp": int,
    "d_model": int,
    "dtype": str,
    "digest": str,
    "side": str,
}


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """The entry of a file for the model that it is about; None for what it does not state.

    Attributes:
        name: the name or path that the model was loaded by.
        architecture: the Hugging Face class.
        n_layers: number of blocks.
        d_mlp: neurons per layer.
        d_model: width of the residual stream.
        dtype: type of the weights, such as ``"float32"``.
        digest: `weights_digest`; None also where TransformerLens has processed the weights, or copied them into a
            model of an older class.
        side: the stack of an encoder-decoder that the layers are of; None where there is one stack.
    """

    name: str
    architecture: str | None = None
    n_layers: int | None = None
    d_mlp: int | None = None
    d_model: int | None = None
    dtype: str | None = None
    digest: str | None = None
    side: str | None = None

    @classmethod
    def of(cls, model: HookedModel | Host, *, with_digest: bool = True) -> "ModelIdentity":
        """Return the identity of a model. The digest reads all weights: 5 s for a thousand million."""
        host = host_of(model)
        has_digest = with_digest and host.raw and not is_hooked(host.model)
        return cls(
            name=host.name,
            architecture=host.architecture,
            n_layers=host.n_layers,
            d_mlp=host.d_mlp,
            d_model=host.d_model,
            dtype=str(host.dtype).removeprefix("torch."),
            digest=weights_digest(host) if has_digest else None,
            side=host.side,
        )

    @classmethod
    def read(cls, entry: object) -> "ModelIdentity | None":
        """Parse the entry of a file for its model, an object or a bare name; None where it names no model.

        Fields of another type than promised are ignored.
        """
        if isinstance(entry, str):
            entry = {"name": entry}
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"]:
            return None
        fields: dict[str, Any] = {}
        for name, expected in _FIELD_TYPES.items():
            if type(entry.get(name)) is expected:
                fields[name] = entry[name]
        return cls(name=entry["name"], **fields)

    def as_dict(self) -> dict[str, Any]:
        """Return the entry to write, without a side where there is one stack."""
        entry = asdict(self)
        if self.side is None:
            del entry["side"]
        return entry

    def difference(self, other: "ModelIdentity") -> str | None:
        """Describe the first difference between two identities, or return None where they may be one model."""
        for name in ("architecture", "side", "n_layers", "d_mlp", "d_model"):
            own, others = getattr(self, name), getattr(other, name)
            if None not in (own, others) and own != others:
                return f"{name} is {own} in the one and {others} in the other"
        if None not in (self.digest, other.digest):
            if self.digest == other.digest:
                return None
            if self.dtype != other.dtype and "float16" in (self.dtype, other.dtype):
                types = f"{self.dtype} in the one, {other.dtype} in the other"
                return f"their weights differ, perhaps by rounding alone: {types}"
            return "their weights differ"
        if _is_same_path(self.name, other.name):
            return None
        return "their names differ, and no digest of weights is known"


def weights_digest(host: Host) -> str:
    """Return the SHA-256 of the set of weights of a checkpoint and of ``W_out`` by layer, rounded to bfloat16.

    Weights of zeros alone are left out, because some releases of TransformerLens add a bias of zeros.
    """
    digests = {_digest(weight) for weight in host.checkpoint.parameters() if weight.any()}
    in_order = [_digest(weight) for layer in range(host.n_layers) for weight in host.output_weights(layer)]
    return hashlib.sha256(b"".join([*sorted(digests), *in_order])).hexdigest()


def _digest(weight: torch.Tensor) -> bytes:
    rounded = weight.detach().to(torch.bfloat16).contiguous()
    digest = hashlib.sha256(str(list(rounded.shape)).encode())
    digest.update(rounded.flatten().view(torch.uint8).cpu().numpy().data)
    return digest.digest()


def _is_same_path(name: str, other: str) -> bool:
    if name == other:
        return True
    return os.path.exists(name) and os.path.exists(other) and os.path.samefile(name, other)
