"""Scores of all layers, filled layer by layer: a dense tensor, or a sparse one where layers have experts."""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.hosts import Host


class ScoreTable(Protocol):
    """Scores of all layers under some prompts: the mean of those from several starts."""

    def add_layer(self, layer: int, scores: Float[Tensor, "batch n_neurons"]) -> None:
        """Add the scores of a layer from one start; NaN where one was not computed."""
        ...

    def result(self) -> Float[Tensor, "batch n_layers d_mlp"]:
        """Return the scores."""
        ...


def scores_of(host: Host, n_prompts: int, dtype: torch.dtype, n_starts: int) -> ScoreTable:
    """Return an empty table for the neurons of a model, and scores from so many starts."""
    shape = (n_prompts, host.n_layers, host.d_mlp)
    if host.layout.has_experts:
        return SparseScores(shape, dtype, host.device, n_starts)
    return DenseScores(shape, dtype, host.device, n_starts)


class DenseScores:
    """A score for every neuron."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, n_starts: int) -> None:
        self._scores = torch.full(shape, torch.nan, dtype=dtype, device=device)
        self._n_starts = n_starts
        self._layers: set[int] = set()

    def add_layer(self, layer: int, scores: Float[Tensor, "batch d_mlp"]) -> None:
        """Add the scores of a layer from one start."""
        if layer in self._layers:
            self._scores[:, layer] += scores / self._n_starts
        else:
            self._scores[:, layer] = scores / self._n_starts if self._n_starts > 1 else scores
            self._layers.add(layer)

    def result(self) -> Float[Tensor, "batch n_layers d_mlp"]:
        """Return the scores."""
        return self._scores


class SparseScores:
    """Scores of the neurons that are on: memory does not grow with the number of experts."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, n_starts: int) -> None:
        self._shape = shape
        self._n_starts = n_starts
        self._indices = [torch.empty(3, 0, dtype=torch.long, device=device)]
        self._values = [torch.empty(0, dtype=dtype, device=device)]

    def add_layer(self, layer: int, scores: Float[Tensor, "batch n_neurons"]) -> None:
        """Add the scores of a layer from one start, of which it keeps those that were computed."""
        if scores.is_sparse:
            indices, values = scores.indices(), scores.values()
        else:
            indices = (~scores.isnan()).nonzero().T
            values = scores[tuple(indices)]
        prompt, row = indices
        self._indices.append(torch.stack([prompt, torch.full_like(prompt, layer), row]))
        self._values.append(values / self._n_starts if self._n_starts > 1 else values)

    def result(self) -> Float[Tensor, "batch n_layers d_mlp"]:
        """Return the scores, sparse."""
        scores = torch.sparse_coo_tensor(
            torch.cat(self._indices, dim=1), torch.cat(self._values), self._shape, check_invariants=False
        )
        return scores.coalesce()
