"""Scores of all layers, filled layer by layer: a dense tensor, or a sparse one where layers have experts."""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.hosts import Host


class ScoreTable(Protocol):
    """Scores of all layers under some prompts."""

    def set_layer(self, layer: int, scores: Float[Tensor, "batch n_neurons"]) -> None:
        """Set the scores of a layer; NaN where one was not computed."""
        ...

    def result(self) -> Float[Tensor, "batch n_layers d_mlp"]:
        """Return the scores."""
        ...


def scores_of(host: Host, n_prompts: int, dtype: torch.dtype) -> ScoreTable:
    """Return an empty table for the neurons of a model."""
    if host.layout.has_experts:
        return SparseScores((n_prompts, host.n_layers, host.d_mlp), dtype, host.device)
    return DenseScores((n_prompts, host.n_layers, host.d_mlp), dtype, host.device)


class DenseScores:
    """A score for every neuron."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._scores = torch.full(shape, torch.nan, dtype=dtype, device=device)

    def set_layer(self, layer: int, scores: Float[Tensor, "batch d_mlp"]) -> None:
        """Set the scores of a layer."""
        self._scores[:, layer] = scores

    def result(self) -> Float[Tensor, "batch n_layers d_mlp"]:
        """Return the scores."""
        return self._scores


class SparseScores:
    """Scores of the neurons that are on: memory does not grow with the number of experts."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._shape = shape
        self._indices = [torch.empty(3, 0, dtype=torch.long, device=device)]
        self._values = [torch.empty(0, dtype=dtype, device=device)]

    def set_layer(self, layer: int, scores: Float[Tensor, "batch n_neurons"]) -> None:
        """Set the scores of a layer, of which it keeps those that were computed."""
        if scores.is_sparse:
            indices, values = scores.indices(), scores.values()
        else:
            indices = (~scores.isnan()).nonzero().T
            values = scores[tuple(indices)]
        prompt, row = indices
        self._indices.append(torch.stack([prompt, torch.full_like(prompt, layer), row]))
        self._values.append(values)

    def result(self) -> Float[Tensor, "batch n_layers d_mlp"]:
        """Return the scores, sparse."""
        scores = torch.sparse_coo_tensor(
            torch.cat(self._indices, dim=1), torch.cat(self._values), self._shape, check_invariants=False
        )
        return scores.coalesce()
