"""Which neurons the entries of a layer's activation are, and what they write.

In a layer with one MLP there is an entry for each neuron. In a layer with experts there is one for each neuron of the
experts that a row is routed to, so that the same entry is another neuron in another row.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.precision import at_least_float32
from kn_lens.hosts import ActiveExperts

Pairs = tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]
"""Numbers of prompts, and a neuron of the layer under each."""


@runtime_checkable
class LayerNeurons(Protocol):
    """The neurons of a layer under some rows."""

    def written(self, post: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_model"]:
        """Return ``post @ W_out``."""
        ...

    def gradient_at_post(self, gradient: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_mlp"]:
        """Return the gradient with respect to the activation, from that to what is written."""
        ...

    def alone(
        self, post: Float[Tensor, "row d_mlp"], rows: Int[Tensor, " row"], neurons: Int[Tensor, "row 1"]
    ) -> Float[Tensor, "row d_mlp"]:
        """Return the activation with all entries zero but that of one neuron in each row.

        Args:
            post: activations.
            rows: the numbers of their rows.
            neurons: a neuron of the layer for each of them.
        """
        ...

    def dense(self, post: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row n_neurons"]:
        """Return the activation of every neuron of the layer; 0 of those that have no entry."""
        ...

    def entries(self, dense: Float[Tensor, "row n_neurons"]) -> Float[Tensor, "row d_mlp"]:
        """Return those of the values of all neurons that have an entry."""
        ...

    def by_prompt(
        self, values: Float[Tensor, "row d_mlp"], prompt_index: Int[Tensor, " row"], n_prompts: int
    ) -> Float[Tensor, "batch n_neurons"]:
        """Sum values of entries over the rows of each prompt, by neuron."""
        ...

    def active_pairs(self, prompt_index: Int[Tensor, " row"], n_prompts: int) -> Pairs:
        """Return the neurons that have an entry under each prompt."""
        ...

    def at_pairs(
        self, pairs: Pairs, values: Float[Tensor, " pair"], n_prompts: int
    ) -> Float[Tensor, "batch n_neurons"]:
        """Return values of some neurons under some prompts as scores of which the others were not computed."""
        ...


@dataclass(frozen=True, kw_only=True)
class NeuronsOfMLP:
    """The neurons of a layer with one MLP.

    Attributes:
        value_rows: the layer's ``W_out``, live, in the model's precision.
    """

    value_rows: Float[Tensor, "d_mlp d_model"]

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """The layer's value rows in the precision of ``post``.

        Of a model in half precision that is a copy, made at each call: those of all layers together could take more
        memory than its passes.
        """
        return at_least_float32(self.value_rows)

    def written(self, post: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_model"]:
        """Return ``post @ W_out``."""
        return post @ self.W_out

    def gradient_at_post(self, gradient: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_mlp"]:
        """Return the gradient with respect to the activation, from that to what is written."""
        return gradient @ self.W_out.T

    def alone(
        self, post: Float[Tensor, "row d_mlp"], rows: Int[Tensor, " row"], neurons: Int[Tensor, "row 1"]
    ) -> Float[Tensor, "row d_mlp"]:
        """Return the activation with all entries zero but that of one neuron in each row."""
        return torch.zeros_like(post).scatter(1, neurons, post.gather(1, neurons))

    def dense(self, post: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_mlp"]:
        """Return the activation: every neuron has an entry."""
        return post

    def entries(self, dense: Float[Tensor, "row n_neurons"]) -> Float[Tensor, "row d_mlp"]:
        """Return the values of all neurons; other layers may have more."""
        return dense[:, : len(self.value_rows)]

    def by_prompt(
        self, values: Float[Tensor, "row d_mlp"], prompt_index: Int[Tensor, " row"], n_prompts: int
    ) -> Float[Tensor, "batch d_mlp"]:
        """Sum values over the rows of each prompt."""
        return values.new_zeros(n_prompts, values.shape[1]).index_add(0, prompt_index, values)

    def active_pairs(self, prompt_index: Int[Tensor, " row"], n_prompts: int) -> Pairs:
        """Return every neuron under every prompt."""
        prompts = torch.arange(n_prompts, device=prompt_index.device)
        neurons = torch.arange(len(self.value_rows), device=prompt_index.device)
        return prompts.repeat_interleave(len(neurons)), neurons.repeat(n_prompts)

    def at_pairs(self, pairs: Pairs, values: Float[Tensor, " pair"], n_prompts: int) -> Float[Tensor, "batch d_mlp"]:
        """Return values as scores, NaN where there is none."""
        scores = values.new_full((n_prompts, len(self.value_rows)), torch.nan)
        scores[pairs] = values
        return scores


@dataclass(frozen=True, kw_only=True)
class NeuronsOfExperts:
    """The neurons of the experts that rows are routed to. Scores are sparse: those of all other neurons are 0.

    Attributes:
        active: the layer under the rows.
        n_neurons: neurons of all experts together.
    """

    active: ActiveExperts
    n_neurons: int

    def written(self, post: Float[Tensor, "row d_active"]) -> Float[Tensor, "row d_model"]:
        """Return ``post @ W_out``."""
        return self.active.written(post)

    def gradient_at_post(self, gradient: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_active"]:
        """Return the gradient with respect to the activation, from that to what is written."""
        return self.active.gradient_at_post(gradient)

    def alone(
        self, post: Float[Tensor, "row d_active"], rows: Int[Tensor, " row"], neurons: Int[Tensor, "row 1"]
    ) -> Float[Tensor, "row d_active"]:
        """Return the activation with all entries zero but that of one neuron in each row; zero where it is off."""
        return torch.where(self.active.select(rows).rows == neurons, post, 0)

    def dense(self, post: Float[Tensor, "row d_active"]) -> Float[Tensor, "row n_neurons"]:
        """Return the activation of every neuron; 0 of those that are off."""
        return post.new_zeros(len(post), self.n_neurons).scatter(1, self.active.rows, post)

    def entries(self, dense: Float[Tensor, "row n_neurons"]) -> Float[Tensor, "row d_active"]:
        """Return the values of the neurons that are on."""
        return dense.gather(1, self.active.rows)

    def by_prompt(
        self, values: Float[Tensor, "row d_active"], prompt_index: Int[Tensor, " row"], n_prompts: int
    ) -> Float[Tensor, "batch n_neurons"]:
        """Sum values over the rows of each prompt, by neuron: the rows of an answer may run different experts."""
        prompts = prompt_index[:, None].expand_as(values)
        indices = torch.stack([prompts.flatten(), self.active.rows.flatten()])
        return self._sparse(indices, values.flatten(), n_prompts)

    def active_pairs(self, prompt_index: Int[Tensor, " row"], n_prompts: int) -> Pairs:
        """Return the neurons of the experts that each prompt runs in any of its rows."""
        rows = self.active.rows
        prompts, neurons = self.by_prompt(
            rows.new_ones(rows.shape, dtype=torch.float32), prompt_index, n_prompts
        ).indices()
        return prompts, neurons

    def at_pairs(
        self, pairs: Pairs, values: Float[Tensor, " pair"], n_prompts: int
    ) -> Float[Tensor, "batch n_neurons"]:
        """Return values as scores."""
        return self._sparse(torch.stack(pairs), values, n_prompts)

    def _sparse(
        self, indices: Int[Tensor, "2 pair"], values: Float[Tensor, " pair"], n_prompts: int
    ) -> Float[Tensor, "batch n_neurons"]:
        shape = (n_prompts, self.n_neurons)
        return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False).coalesce()
