"""Forward and backward passes that attribution is made of, in bounded batches.

A ``Site`` is one layer under some prompts. It answers one question: *with the layer's activation at the read position
replaced by v, what is the output, and what is its gradient with respect to v?* Everything in ``attribution.py`` is a
sum of such answers.

Nothing below the layer depends on v, so it is computed once per prompt: an ``Engine`` runs the clean pass, keeps the
residual stream that enters each layer, and every later pass resumes from there. The head is computed at the read
position only. Weights never get a gradient. A pass holds at most ``rows_per_pass`` rows; a row is one prompt (or one
answer token of it) at one point of the path, so that memory does not depend on the number of prompts or points.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.errors import ArgumentError
from kn_lens.hosts import HookFn, Host
from kn_lens.outputs import Output, at_least_float32
from kn_lens.prompts import PromptBatch


@dataclass(frozen=True)
class Engine:
    """A model, what it is asked, and what is read from it.

    Attributes:
        host: the model.
        prompts: what it is asked.
        output: what is read from its logits.
        rows_per_pass: upper bound on the rows of a pass. An answer of more tokens than this still goes in whole.
    """

    host: Host
    prompts: PromptBatch
    output: Output
    rows_per_pass: int

    def __post_init__(self) -> None:
        if self.rows_per_pass < 1:
            raise ArgumentError(f"rows_per_pass={self.rows_per_pass}; expected at least 1.")
        if self.prompts.tokens.device != self.host.device:
            raise ArgumentError(
                f"The prompts are on {self.prompts.tokens.device} and the model on {self.host.device}; expected one "
                f"device: use prompts.to({str(self.host.device)!r})."
            )

    @cached_property
    def first_row(self) -> Int[Tensor, " batch"]:
        """The first row of each prompt."""
        return self.n_rows.cumsum(0) - self.n_rows

    @cached_property
    def n_rows(self) -> Int[Tensor, " batch"]:
        """The number of rows of each prompt: the tokens of its answer."""
        return torch.bincount(self.prompts.prompt_index, minlength=len(self.prompts))

    def rows(self, prompt_ids: Int[Tensor, " pair"]) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Return the rows of the given prompts, in order, and for each the position of its prompt in ``prompt_ids``."""
        n_rows = self.n_rows[prompt_ids]
        pair = torch.repeat_interleave(n_rows)
        offset = torch.arange(len(pair), device=pair.device) - (n_rows.cumsum(0) - n_rows)[pair]
        return self.first_row[prompt_ids][pair] + offset, pair

    def stretches(self) -> Iterator[Int[Tensor, " some"]]:
        """Yield all prompts, a pass's worth at a time, from short to long: little of a pass is then padding."""
        length = self.prompts.attention_mask.sum(-1)[self.first_row]
        return self.passes(length.argsort(stable=True))

    def passes(self, prompt_ids: Int[Tensor, " pair"]) -> Iterator[Int[Tensor, " some"]]:
        """Cut ``prompt_ids`` into stretches of at most ``rows_per_pass`` rows, never inside a prompt."""
        start = rows = 0
        for stop, n in enumerate(self.n_rows[prompt_ids].tolist()):
            if rows and rows + n > self.rows_per_pass:
                yield prompt_ids[start:stop]
                start, rows = stop, 0
            rows += n
        yield prompt_ids[start:]

    def sites(self, prompt_ids: Int[Tensor, " batch"], layers: Sequence[int]) -> list["Site"]:
        """Run the unaltered model once on some prompts and return a site for each layer.

        Cost: one forward pass per row. Holds ``len(layers)`` residual streams of these rows.
        """
        rows, _ = self.rows(prompt_ids)
        kept: dict[str, Tensor] = {}
        hooks = []
        for layer in layers:
            hooks.append((self.host.hook_post(layer), _keep(kept, f"post {layer}", self.prompts.read_pos[rows])))
            if layer:
                hooks.append((self.host.resid_pre(layer), _keep(kept, f"resid {layer}")))
        with torch.no_grad():
            clean = self.read(prompt_ids, hooks)
        return [
            Site(
                engine=self,
                layer=layer,
                prompt_ids=prompt_ids,
                post=at_least_float32(kept[f"post {layer}"]),
                resid=kept.get(f"resid {layer}"),
                clean=clean,
            )
            for layer in layers
        ]

    def read(self, prompt_ids: Int[Tensor, " pair"], hooks: list[tuple[str, HookFn]]) -> Float[Tensor, " pair"]:
        """Return the output of each prompt from one pass with these hooks, in the caller's grad mode."""
        rows, pair = self.rows(prompt_ids)
        n_pos = self.n_pos(rows)
        prompts = self.prompts
        logits = self.host.logits(
            prompts.tokens[rows, :n_pos], prompts.attention_mask[rows, :n_pos], prompts.read_pos[rows], hooks
        )
        return self.read_logits(rows, pair, logits)

    def read_logits(
        self, rows: Int[Tensor, " row"], pair: Int[Tensor, " row"], logits: Float[Tensor, "row d_vocab"]
    ) -> Float[Tensor, " pair"]:
        """Return the output of each of the prompts that own these rows."""
        prompts = self.prompts
        contrast_ids = None if prompts.contrast_ids is None else prompts.contrast_ids[rows]
        return self.output(logits, prompts.target_ids[rows], contrast_ids, pair, int(pair[-1]) + 1)

    def n_pos(self, rows: Int[Tensor, " row"]) -> int:
        """Return the number of positions that these rows need: beyond it, all of them are padding."""
        return int(self.prompts.attention_mask[rows].any(0).nonzero().max()) + 1


@dataclass(frozen=True, kw_only=True)
class Site:
    """One layer, under some prompts of an engine, with the clean state that passes start from.

    Attributes:
        engine: whose prompts, model and output these are.
        layer: zero-based.
        prompt_ids: which prompts of the engine: the site's batch.
        post: clean ``hook_post`` at the read position.
        resid: clean residual stream that enters the layer; None for layer 0, which starts from the tokens.
        clean: clean output.
    """

    engine: Engine
    layer: int
    prompt_ids: Int[Tensor, " batch"]
    post: Float[Tensor, "row d_mlp"]
    resid: Float[Tensor, "row pos d_model"] | None
    clean: Float[Tensor, " batch"]

    @cached_property
    def prompt_of_row(self) -> Int[Tensor, " row"]:
        """The prompt, counted within the site, that each row of ``post`` belongs to."""
        return self.engine.rows(self.prompt_ids)[1]

    @cached_property
    def _first_row(self) -> Int[Tensor, " batch"]:
        n_rows = self.engine.n_rows[self.prompt_ids]
        return n_rows.cumsum(0) - n_rows

    def rows(self, batch: Int[Tensor, " pair"]) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Return the site's rows of the given prompts of its batch, and for each row its place in ``batch``."""
        rows, pair = self.engine.rows(self.prompt_ids[batch])
        shift = self._first_row[batch] - self.engine.first_row[self.prompt_ids[batch]]
        return rows + shift[pair], pair

    def per_prompt(self, values: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "batch d_mlp"]:
        """Sum over the rows of each prompt's answer."""
        return values.new_zeros(len(self.clean), values.shape[-1]).index_add(0, self.prompt_of_row, values)

    def outputs(
        self, batch: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"], *, early: bool = False
    ) -> Float[Tensor, " pair"]:
        """Return the output of each prompt with its activations at the read position replaced by ``post``.

        Args:
            batch: prompts of the site's batch, repeats allowed.
            post: for the rows of ``rows(batch)``.
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
        engine, host = self.engine, self.engine.host
        prompt_ids = self.prompt_ids[batch]
        rows, pair = engine.rows(prompt_ids)
        read_pos = engine.prompts.read_pos[rows]
        hooks: list[tuple[str, HookFn]] = [(host.hook_post(self.layer), _replace(post, read_pos))]
        kept: dict[str, Tensor] = {}
        if early:
            hooks.append((host.resid_post(self.layer), _keep(kept, "resid", read_pos)))
        if self.resid is None:
            resumed = nullcontext()
        else:
            resumed = host.resumed(self.layer, self.resid[self.rows(batch)[0], : engine.n_pos(rows)])
        with resumed:
            output = engine.read(prompt_ids, hooks)
        return engine.read_logits(rows, pair, host.unembed(kept["resid"])) if early else output

    def _passes(
        self, batch: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"]
    ) -> Iterator[tuple[Int[Tensor, " some"], Float[Tensor, "row d_mlp"]]]:
        start = row = 0
        for prompt_ids in self.engine.passes(self.prompt_ids[batch]):
            stop, end = start + len(prompt_ids), row + int(self.engine.n_rows[prompt_ids].sum())
            yield batch[start:stop], post[row:end]
            start, row = stop, end


def _keep(kept: dict[str, Tensor], name: str, read_pos: Int[Tensor, " row"] | None = None) -> HookFn:
    def hook_fn(value: Float[Tensor, "row pos d"], hook: object) -> None:
        value = value.detach()
        kept[name] = value if read_pos is None else value[torch.arange(len(value), device=value.device), read_pos]

    return hook_fn


def _replace(new: Float[Tensor, "row d_mlp"], read_pos: Int[Tensor, " row"]) -> HookFn:
    def hook_fn(post: Float[Tensor, "row pos d_mlp"], hook: object) -> Float[Tensor, "row pos d_mlp"]:
        index = rearrange(read_pos, "row -> row 1 1").expand(-1, 1, post.shape[-1])
        return post.scatter(1, index, rearrange(new, "row d_mlp -> row 1 d_mlp").to(post.dtype))

    return hook_fn
