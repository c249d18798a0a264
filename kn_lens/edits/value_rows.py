"""Value rows: rows of a model's ``W_out``, read as one tensor and written all or not at all.

Every write of kn_lens to a weight goes through ``ValueRows.write``. It writes to the live parameters: TransformerLens'
stacked ``model.W_out`` is a copy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.interrupts import held
from kn_lens._core.notation import NeuronLike
from kn_lens._core.precision import at_least_float32
from kn_lens.edits.arguments import checked_neurons
from kn_lens.errors import EditError
from kn_lens.hosts import Host, token_embeddings


@dataclass(frozen=True, eq=False)
class ValueRows:
    """The rows of a set of neurons, in the order in which the set iterates.

    Attributes:
        layers: for each layer with neurons, its live value rows and the numbers of these.
    """

    layers: tuple[tuple[Any, Int[Tensor, " row"]], ...]

    @classmethod
    def of(cls, host: Host, neurons: Iterable[NeuronLike]) -> "ValueRows":
        """Look up the rows of neurons in a model.

        Raises:
            ArgumentError: no neurons, or a neuron that the model does not have.
            EditError: an empty set.
        """
        neurons = checked_neurons(neurons)
        layers = []
        for layer, rows in neurons.rows_by_layer(host).items():
            # Detached, so that a write need not switch gradients off: an interrupt could leave them off.
            layers.append((host.value_rows(layer), torch.tensor(rows, device=host.device)))
        return cls(tuple(layers))

    def read(self) -> Float[Tensor, "neuron d_model"]:
        """Return a copy of the rows on the CPU."""
        return torch.cat([W_out[indices].cpu() for W_out, indices in self.layers])

    def write(
        self,
        values: Float[Tensor, "neuron d_model"],
        *,
        rollback: Float[Tensor, "neuron d_model"],
    ) -> None:
        """Write values to the rows while signals wait.

        Args:
            values: the new values of all rows.
            rollback: the values to write instead after a signal or an error.
        """
        try:
            with held():
                self._assign(values)
        except BaseException:
            with held():
                self._assign(rollback)
            raise

    def _assign(self, values: Float[Tensor, "neuron d_model"]) -> None:
        start = 0
        for W_out, indices in self.layers:
            stop = start + len(indices)
            W_out[indices] = values[start:stop].to(W_out.device)
            start = stop


def mean_embedding(host: Host, token_ids: Sequence[int]) -> Float[Tensor, " d_model"]:
    """Return the mean of the input word embeddings of tokens, as wide as a row, on the CPU; in float32 at least.

    Raises:
        EditError: the embeddings are narrower than the rows, and the model has no projection between them.
    """
    return at_least_float32(token_embeddings(host, torch.tensor(token_ids))).mean(0).cpu()


def check_raw(host: Host, consequence: str) -> None:
    """Raise unless the weights of a model are the checkpoint's own.

    Args:
        host: the model.
        consequence: a sentence about what cannot be done with processed weights, and why.

    Raises:
        EditError: TransformerLens has processed the weights.
    """
    if not host.raw:
        raise EditError(
            f"The weights of {host.name} were processed by TransformerLens (norms folded, rows centred), "
            f"so its W_out no longer holds the checkpoint's rows. {consequence} "
            "kn_lens.load_model keeps weights as they are."
        )
