"""Many passes over many prompts, in bounded batches.

A ``Site`` is one layer under some prompts. It answers one question: *with the layer's activation at the read position
replaced by v, what is the output, and what is its gradient with respect to v?* Everything in ``attribution.py`` is a
sum of such answers. Weights never get a gradient.

A pass holds at most ``rows_per_pass`` rows; a row is one prompt (or one answer token of it) at one point of the path,
so that memory does not depend on the number of prompts or points.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.errors import ArgumentError
from kn_lens.hosts import Host
from kn_lens.outputs import Output
from kn_lens.prompts import PromptBatch
from kn_lens.resume import CleanState, run_clean


def stretches(prompts: PromptBatch, rows_per_pass: int) -> list[Int[Tensor, " some"]]:
    """Return all prompts, a pass's worth at a time, from short to long: little of a pass is then padding.

    Raises:
        ArgumentError: ``rows_per_pass`` below 1.
    """
    if rows_per_pass < 1:
        raise ArgumentError(f"rows_per_pass={rows_per_pass}; expected at least 1.")
    n_rows = prompts.rows_per_prompt
    length = prompts.attention_mask.sum(-1)[n_rows.cumsum(0) - 1]  # of the last row, which holds the most of the answer
    order = length.argsort(stable=True)
    return [order[some] for some in _cuts(n_rows[order], rows_per_pass)]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One layer under some prompts, with the clean state that passes start from.

    Attributes:
        layer: zero-based.
        prompts: what is asked.
        clean: output of the unaltered model.
        post: clean ``hook_post`` at the read position.
        output: what is read from the logits.
        state: the clean pass, shared by the sites of all layers.
        rows_per_pass: upper bound on the rows of a pass. An answer of more tokens than this still goes in whole.
    """

    layer: int
    prompts: PromptBatch
    clean: Float[Tensor, " batch"]
    post: Float[Tensor, "row d_mlp"]
    output: Output
    state: CleanState
    rows_per_pass: int

    @property
    def everyone(self) -> Int[Tensor, " batch"]:
        """The number of every prompt."""
        return torch.arange(len(self.clean), device=self.clean.device)

    def per_prompt(self, values: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "batch d_mlp"]:
        """Sum over the rows of each prompt's answer."""
        return values.new_zeros(len(self.clean), values.shape[-1]).index_add(0, self.prompts.prompt_index, values)

    def outputs(
        self, batch: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"], *, early: bool = False
    ) -> Float[Tensor, " pair"]:
        """Return the output of each prompt with its activations at the read position replaced by ``post``.

        Args:
            batch: numbers of prompts, repeats allowed.
            post: one activation for each of ``prompts.rows_of(batch)``.
            early: read the output off the residual stream that leaves this layer, with the layers above left out.

        Cost: a forward pass per row, from this layer up.
        """
        with torch.no_grad():
            return torch.cat([self._pass(now, new, early=early) for now, new in self._passes(batch, post)])

    def gradients(
        self, batch: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"]
    ) -> tuple[Float[Tensor, " pair"], Float[Tensor, "row d_mlp"]]:
        """Return as ``outputs`` does, and the gradient of each prompt's output with respect to its rows of ``post``.

        Cost: a forward and a backward pass per row, from this layer up.
        """
        values, gradients = [], []
        for now, new in self._passes(batch, post):
            with torch.enable_grad():
                point = new.detach().requires_grad_()
                value = self._pass(now, point)
                # Prompts do not see each other, so the gradient of the sum holds each one's own.
                gradients.append(torch.autograd.grad(value.sum(), point)[0])
            values.append(value.detach())
        return torch.cat(values), torch.cat(gradients)

    def _pass(
        self, batch: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"], *, early: bool = False
    ) -> Float[Tensor, " pair"]:
        rows, owner = self.prompts.rows_and_owners(batch)
        return _read(self.output, self.prompts, rows, owner, self.state.resumed(self.layer, rows, post, early=early))

    def _passes(
        self, batch: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"]
    ) -> Iterator[tuple[Int[Tensor, " some"], Float[Tensor, "row d_mlp"]]]:
        n_rows = self.prompts.rows_per_prompt[batch]
        end = n_rows.cumsum(0)
        for some in _cuts(n_rows, self.rows_per_pass):
            first, last = int(some[0]), int(some[-1])
            yield batch[some], post[int(end[first] - n_rows[first]) : int(end[last])]


def sites(host: Host, prompts: PromptBatch, output: Output, layers: Sequence[int], rows_per_pass: int) -> list[Site]:
    """Run the unaltered model once on prompts that fit a pass, and return the site of each layer.

    Cost: one forward pass per row. The sites share the clean state.
    """
    state = run_clean(host, prompts.tokens, prompts.attention_mask, prompts.read_pos, layers)
    rows = torch.arange(prompts.n_rows, device=host.device)
    clean = _read(output, prompts, rows, prompts.prompt_index, state.logits)
    return [
        Site(
            layer=layer,
            prompts=prompts,
            clean=clean,
            post=state.post[layer],
            output=output,
            state=state,
            rows_per_pass=rows_per_pass,
        )
        for layer in layers
    ]


def _read(
    output: Output,
    prompts: PromptBatch,
    rows: Int[Tensor, " row"],
    owner: Int[Tensor, " row"],
    logits: Float[Tensor, "row d_vocab"],
) -> Float[Tensor, " pair"]:
    contrast_ids = None if prompts.contrast_ids is None else prompts.contrast_ids[rows]
    return output(logits, prompts.target_ids[rows], contrast_ids, owner, int(owner[-1]) + 1)


def _cuts(n_rows: Int[Tensor, " some"], most: int) -> Iterator[Int[Tensor, " fewer"]]:
    """Cut positions 0, 1, ... into runs of at most ``most`` rows, each at least one position long."""
    start = rows = 0
    for stop, n in enumerate(n_rows.tolist()):
        if rows and rows + n > most:
            yield torch.arange(start, stop, device=n_rows.device)
            start, rows = stop, 0
        rows += n
    yield torch.arange(start, len(n_rows), device=n_rows.device)
