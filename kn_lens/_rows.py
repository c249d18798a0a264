"""Rows of a checkpoint's ``W_out``: read as one tensor, and written all or not at all.

Everything that kn_lens ever writes to a weight goes through ``Rows.write``. It writes to the live parameters:
TransformerLens' stacked ``model.W_out`` is a copy.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens._interrupts import Held
from kn_lens.errors import ArgumentError, EditError
from kn_lens.hosts import Host
from kn_lens.neuron_sets import NeuronSet


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What an edit was made of.

    Attributes:
        name: the name or path that the model was loaded by. Not compared: a copy elsewhere is the same checkpoint.
        architecture: the Hugging Face class.
        n_layers: number of blocks.
        d_mlp: rows of ``W_out``.
        d_model: their width.
        dtype: of the weights: ``"float32"``.
        raw: False where TransformerLens has processed the weights: of such rows edits can only make zeros.
    """

    name: str
    architecture: str
    n_layers: int
    d_mlp: int
    d_model: int
    dtype: str
    raw: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = {str: "text", int: "whole number", bool: "truth value"}[field.type]
            if type(getattr(self, field.name)) is not field.type:
                raise ArgumentError(
                    f"{field.name} of a checkpoint is {getattr(self, field.name)!r}; expected a {kind}."
                )

    @classmethod
    def of(cls, host: Host) -> "Checkpoint":
        """Describe a hosted model."""
        same = {field.name: getattr(host, field.name) for field in fields(cls) if field.name != "dtype"}
        return cls(**same, dtype=dtype_name(host.dtype))

    @property
    def kind(self) -> str:
        """Everything that has to agree for an edit to fit, in words."""
        return f"{self.architecture}, {self.shape}, {self.dtype}" + ("" if self.raw else ", processed")

    @property
    def shape(self) -> str:
        """The number of layers and the shape of their ``W_out``, in words."""
        return f"{self.n_layers} layers of {self.d_mlp} x {self.d_model}"


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of some neurons, in the order in which the set iterates.

    Attributes:
        places: for each layer with neurons, its live ``W_out`` and the indices.
    """

    places: tuple[tuple[Float[Tensor, "d_mlp d_model"], Int[Tensor, " _"]], ...]

    @classmethod
    def of(cls, host: Host, neurons: NeuronSet) -> "Rows":
        """Find the rows.

        Raises:
            ArgumentError: a neuron that the model does not have.
            EditError: no neurons.
        """
        check_not_empty(neurons)
        neurons.check(host)
        return cls(
            tuple(
                # Detached: to be written to without switching gradients off, which an interrupt could leave so.
                (host.W_out(layer).detach(), torch.tensor(indices, device=host.device))
                for layer, indices in neurons.by_layer().items()
            )
        )

    def read(self) -> Float[Tensor, "neuron d_model"]:
        """Return a copy on the CPU."""
        return torch.cat([W_out[index].cpu() for W_out, index in self.places])

    def write(self, rows: Float[Tensor, "neuron d_model"], *, otherwise: Float[Tensor, "neuron d_model"]) -> None:
        """Write rows while signals wait; where one came, or something else went wrong, others in their place."""
        try:
            with Held():
                self._put(rows)
        except BaseException:
            with Held():
                self._put(otherwise)
            raise

    def _put(self, rows: Float[Tensor, "neuron d_model"]) -> None:
        for (W_out, index), part in zip(self.places, rows.split([len(index) for _, index in self.places]), strict=True):
            W_out[index] = part.to(W_out.device)


def same_bits(
    some: Float[Tensor, "neuron d_model"], others: Float[Tensor, "neuron d_model"]
) -> Bool[Tensor, " neuron"]:
    """Return for each row whether the two agree bit for bit (0.0 and -0.0 differ)."""
    if some.shape != others.shape or some.dtype != others.dtype:
        return torch.zeros(len(some), dtype=torch.bool)
    return (some.contiguous().view(torch.uint8) == others.contiguous().view(torch.uint8)).all(-1)


def check_not_empty(neurons: NeuronSet) -> None:
    """Raise for an empty set.

    Raises:
        EditError: it is empty.
    """
    if not neurons:
        raise EditError("The edit would change no row: its set of neurons is empty. Expected at least one neuron.")


def check_raw(host: Host, what: str) -> None:
    """Raise where TransformerLens has processed the weights.

    Args:
        host: the model.
        what: what cannot be done with such weights, and why.

    Raises:
        EditError: it has.
    """
    if not host.raw:
        raise EditError(
            f"The weights of {host.name} were processed by TransformerLens (norms folded, rows centred), so its W_out "
            f"no longer holds the checkpoint's rows. {what} kn_lens.load_model keeps weights as they are."
        )


def check_same_processing(host: Host, made_of: Checkpoint, edit: str) -> None:
    """Raise where an edit is of raw weights and the model's are processed, or the reverse.

    Raises:
        EditError: naming the edit.
    """
    if made_of.raw:
        check_raw(host, f"The edit {edit} is of those; to erase neurons here, make the edit of this model.")
    elif host.raw:
        raise EditError(
            f"The edit {edit} was made of weights that TransformerLens had processed, and those of {host.name} are "
            "raw. Make it of this model: kn_lens.erase_neurons(model, edit.neurons)."
        )


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
