"""Forward and backward passes that attribution is made of, in bounded batches.

The engine answers one question: *with the activation of one layer at the read position replaced by v, what is the
output, and what is its gradient with respect to v?* Everything in ``attribution.py`` is a sum of such answers.

A pass holds at most ``rows_per_pass`` rows; a row is one prompt (or one answer token of it) at one point of the path,
so memory does not depend on the number of prompts or points. Weights never get a gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.errors import ArgumentError
from kn_lens.hosts import Host
from kn_lens.outputs import Output
from kn_lens.prompts import PromptBatch


@dataclass(frozen=True)
class Engine:
    """Passes over the prompts of one batch; see the module's text.

    Attributes:
        host: the model.
        prompts: what it is asked.
        output: what is read from its logits.
        rows_per_pass: upper bound on the rows of a forward pass. An answer of more tokens than this still goes in
        whole.
    """

    host: Host
    prompts: PromptBatch
    output: Output
    rows_per_pass: int

    def __post_init__(self) -> None:
        if self.rows_per_pass < 1:
            raise ArgumentError(f"rows_per_pass={self.rows_per_pass}; expected at least 1.")

    @cached_property
    def _first_row(self) -> Int[Tensor, " batch"]:
        return torch.searchsorted(self.prompts.prompt_index, torch.arange(len(self.prompts), device=self.host.device))

    @cached_property
    def _n_rows(self) -> Int[Tensor, " batch"]:
        return torch.bincount(self.prompts.prompt_index, minlength=len(self.prompts))

    def rows(self, prompt_ids: Int[Tensor, " pair"]) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Return the rows of the given prompts, in order, and for each the position of its prompt in ``prompt_ids``."""
        n_rows = self._n_rows[prompt_ids]
        pair = torch.repeat_interleave(n_rows)
        offset = torch.arange(len(pair), device=pair.device) - (n_rows.cumsum(0) - n_rows)[pair]
        return self._first_row[prompt_ids][pair] + offset, pair

    def on(self, prompt_ids: Int[Tensor, " some"]) -> "Engine":
        """Return the engine over these prompts alone."""
        return replace(self, prompts=self.prompts.select(prompt_ids))

    def by_length(self) -> Int[Tensor, " batch"]:
        """Return the prompts from short to long: in that order little of a pass is padding."""
        lengths = self.prompts.attention_mask.sum(-1)
        return lengths[self._first_row].argsort(stable=True)

    def clean(self, layers: list[int]) -> tuple[Float[Tensor, "row n_layers d_mlp"], Float[Tensor, " batch"]]:
        """Return ``hook_post`` of the given layers at the read position, and the output, of the unaltered model.

        Cost: one forward pass per row.
        """
        posts, outputs = [], []
        for prompt_ids in self._passes(torch.arange(len(self.prompts), device=self.host.device)):
            rows, pair = self.rows(prompt_ids)
            kept: dict[int, Tensor] = {}
            hooks = [(self.host.hook_post(layer), _keep(kept, layer, self.prompts.read_pos[rows])) for layer in layers]
            with torch.no_grad():
                outputs.append(self._output(rows, pair, len(prompt_ids), hooks))
            posts.append(torch.stack([kept[layer] for layer in layers], dim=1))
        return torch.cat(posts), torch.cat(outputs)

    def outputs(
        self, layer: int, prompt_ids: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"]
    ) -> Float[Tensor, " pair"]:
        """Return the output of each prompt with ``hook_post`` of ``layer`` at its read positions replaced by ``post``.

        ``post`` has the rows of ``rows(prompt_ids)``. Cost: one forward pass per row.
        """
        values = []
        for prompt_ids_now, post_now in self._passes_with(prompt_ids, post):
            with torch.no_grad():
                values.append(self._replaced(layer, prompt_ids_now, post_now))
        return torch.cat(values)

    def early_outputs(
        self, layer: int, prompt_ids: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"]
    ) -> Float[Tensor, " pair"]:
        """Return as ``outputs`` does, read off the residual stream after ``layer``: the blocks above are left out."""
        with self.host.skipping(range(layer + 1, self.host.n_layers)):
            return self.outputs(layer, prompt_ids, post)

    def gradients(
        self, layer: int, prompt_ids: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"]
    ) -> tuple[Float[Tensor, " pair"], Float[Tensor, "row d_mlp"]]:
        """Return as ``outputs`` does, and the gradient of each prompt's output with respect to its rows of ``post``.

        Cost: one forward pass per row, and one backward pass through the layers from ``layer`` up.
        """
        values, gradients = [], []
        for prompt_ids_now, post_now in self._passes_with(prompt_ids, post):
            with torch.enable_grad():
                point = post_now.detach().requires_grad_()
                value = self._replaced(layer, prompt_ids_now, point)
                # Prompts do not see each other, so the gradient of the sum holds each one's own.
                gradients.append(torch.autograd.grad(value.sum(), point)[0])
            values.append(value.detach())
        return torch.cat(values), torch.cat(gradients)

    def _replaced(
        self, layer: int, prompt_ids: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"]
    ) -> Float[Tensor, " pair"]:
        rows, pair = self.rows(prompt_ids)
        hooks = [(self.host.hook_post(layer), _replace(post, self.prompts.read_pos[rows]))]
        return self._output(rows, pair, len(prompt_ids), hooks)

    def _output(
        self, rows: Int[Tensor, " row"], pair: Int[Tensor, " row"], n_pairs: int, hooks: list
    ) -> Float[Tensor, " pair"]:
        prompts = self.prompts
        n_pos = int(prompts.attention_mask[rows].any(0).nonzero().max()) + 1  # beyond it, every row is padding
        logits = self.host.logits(
            prompts.tokens[rows, :n_pos], prompts.attention_mask[rows, :n_pos], prompts.read_pos[rows], hooks
        )
        contrast_ids = None if prompts.contrast_ids is None else prompts.contrast_ids[rows]
        return self.output(logits, prompts.target_ids[rows], contrast_ids, pair, n_pairs)

    def _passes(self, prompt_ids: Int[Tensor, " pair"]) -> Iterator[Int[Tensor, " pair"]]:
        """Cut ``prompt_ids`` into stretches of at most ``rows_per_pass`` rows, never inside a prompt."""
        n_rows = self._n_rows[prompt_ids].tolist()
        start = rows = 0
        for stop, n in enumerate(n_rows):
            if rows and rows + n > self.rows_per_pass:
                yield prompt_ids[start:stop]
                start, rows = stop, 0
            rows += n
        yield prompt_ids[start:]

    def _passes_with(
        self, prompt_ids: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"]
    ) -> Iterator[tuple[Int[Tensor, " pair"], Float[Tensor, "row d_mlp"]]]:
        start = 0
        for prompt_ids_now in self._passes(prompt_ids):
            stop = start + int(self._n_rows[prompt_ids_now].sum())
            yield prompt_ids_now, post[start:stop]
            start = stop


def _keep(kept: dict[int, Tensor], layer: int, read_pos: Int[Tensor, " row"]):
    def hook_fn(post: Float[Tensor, "row pos d_mlp"], hook: object) -> None:
        kept[layer] = post[torch.arange(len(post), device=post.device), read_pos].detach()

    return hook_fn


def _replace(new: Float[Tensor, "row d_mlp"], read_pos: Int[Tensor, " row"]):
    def hook_fn(post: Float[Tensor, "row pos d_mlp"], hook: object) -> Float[Tensor, "row pos d_mlp"]:
        index = rearrange(read_pos, "row -> row 1 1").expand(-1, 1, post.shape[-1])
        return post.scatter(1, index, rearrange(new, "row d_mlp -> row 1 d_mlp").to(post.dtype))

    return hook_fn
