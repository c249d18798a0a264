"""Passes that start where prompts stop being alike: the clean state of some rows, and logits resumed from it.

Changing the activation of layer l at the read position leaves everything below l as it was. So the clean pass is run
once and keeps what later passes start from; the results are the same numbers as full passes give.

A masked model reads inside the prompt, and every position above l may change: its passes start from the residual
stream that enters l, and recompute all positions from l up. A causal model is read at the last token, and nothing
before it can see the change: its passes start from the keys and values of the tokens before, and recompute one token
from l up, a saving by the length of the prompt.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.hosts import HookFn, Host, Prefix
from kn_lens.outputs import at_least_float32


@runtime_checkable
class CleanState(Protocol):
    """The clean pass of some rows, and what resumes from it."""

    @property
    def logits(self) -> Float[Tensor, "row d_vocab"]:
        """Clean logits at the read position."""
        ...

    @property
    def post(self) -> dict[int, Float[Tensor, "row d_mlp"]]:
        """Clean ``hook_post`` at the read position, in float32 at least, of each layer asked for."""
        ...

    def resumed(
        self, layer: int, rows: Int[Tensor, " some"], post: Float[Tensor, "some d_mlp"], *, early: bool = False
    ) -> Float[Tensor, "some d_vocab"]:
        """Return the logits of some rows with the layer's activation at the read position replaced by ``post``.

        Args:
            layer: one of those asked for.
            rows: repeats allowed.
            post: their new activations; gradients flow back into it.
            early: read the logits off the residual stream that leaves this layer, with the layers above left out.
        """
        ...


def run_clean(
    host: Host,
    tokens: Int[Tensor, "row pos"],
    attention_mask: Int[Tensor, "row pos"],
    read_pos: Int[Tensor, " row"],
    layers: Sequence[int],
) -> CleanState:
    """Run right-padded rows once and keep what passes from each of ``layers`` start from.

    Cost: one forward pass per row. Holds per row the residual stream at each of ``layers``, at all positions for a
    masked model and at one for a causal model, for which it also holds the keys and values.
    """
    length = attention_mask.sum(-1)
    n_pos = int(attention_mask.any(0).nonzero().max()) + 1
    tokens, attention_mask = tokens[:, :n_pos], attention_mask[:, :n_pos]
    with torch.no_grad():
        if host.kind == "masked" or not bool((read_pos == length - 1).all()):
            return _Rows.run(host, tokens, attention_mask, read_pos, layers)
        # Keys and values are kept without padding, so rows of one length go together.
        lengths, group = length.unique(return_inverse=True)
        parts, place = [], torch.zeros_like(group)
        for number, n in enumerate(lengths.tolist()):
            rows = (group == number).nonzero().squeeze(1)
            prefix = host.prefix(tokens[rows, : n - 1]) if n > 1 else None
            if n > 1 and prefix is None:
                return _Rows.run(host, tokens, attention_mask, read_pos, layers)
            at_last = torch.zeros_like(rows)
            parts.append(_Rows.run(host, tokens[rows, n - 1 : n], attention_mask[rows, :n], at_last, layers, prefix))
            place[rows] = torch.arange(len(rows), device=rows.device)
    return _ByLength.of(parts, group, place)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows that go into one pass together; with a prefix, ``tokens`` are the ones after it."""

    host: Host
    tokens: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row prefix_and_pos"]
    read_pos: Int[Tensor, " row"]
    prefix: Prefix | None
    logits: Float[Tensor, "row d_vocab"]
    post: dict[int, Float[Tensor, "row d_mlp"]]
    resid: dict[int, Float[Tensor, "row pos d_model"]]

    @classmethod
    def run(
        cls,
        host: Host,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row prefix_and_pos"],
        read_pos: Int[Tensor, " row"],
        layers: Sequence[int],
        prefix: Prefix | None = None,
    ) -> "_Rows":
        post: dict[int, Tensor] = {}
        resid: dict[int, Tensor] = {}
        hooks = [(host.hook_post(layer), _keep(post, layer, read_pos)) for layer in layers]
        hooks += [(host.resid_pre(layer), _keep(resid, layer)) for layer in layers if layer]
        logits = host.logits(
            tokens,
            attention_mask,
            read_pos,
            hooks,
            prefix=None if prefix is None else prefix.select(torch.arange(len(tokens), device=tokens.device)),
        )
        return cls(
            host=host,
            tokens=tokens,
            attention_mask=attention_mask,
            read_pos=read_pos,
            prefix=prefix,
            logits=logits,
            post={layer: at_least_float32(value) for layer, value in post.items()},
            resid=resid,
        )

    def resumed(
        self, layer: int, rows: Int[Tensor, " some"], post: Float[Tensor, "some d_mlp"], *, early: bool = False
    ) -> Float[Tensor, "some d_vocab"]:
        host, read_pos = self.host, self.read_pos[rows]
        n_pos = int(self.attention_mask[rows].any(0).nonzero().max()) + 1  # beyond it, all of these rows are padding
        left: dict[int, Tensor] = {}
        hooks: list[tuple[str, HookFn]] = host.narrowing(read_pos) if host.kind == "masked" else []
        narrowed = hooks and layer == host.n_layers - 1
        hooks.append((host.hook_post(layer), _replace(post, torch.zeros_like(read_pos) if narrowed else read_pos)))
        if early:
            hooks.append((host.resid_post(layer), _keep(left, layer, read_pos)))
        with host.resumed(layer, self.resid[layer][rows, :n_pos]) if layer else nullcontext():
            logits = host.logits(
                self.tokens[rows, :n_pos],
                self.attention_mask[rows, :n_pos],
                read_pos,
                hooks,
                prefix=None if self.prefix is None else self.prefix.select(rows, first_layer=layer),
            )
        return host.unembed(left[layer]) if early else logits


@dataclass(frozen=True, kw_only=True)
class _ByLength:
    """Rows in groups of one length: row r is number ``place[r]`` of ``parts[group[r]]``."""

    parts: tuple[_Rows, ...]
    group: Int[Tensor, " row"]
    place: Int[Tensor, " row"]
    logits: Float[Tensor, "row d_vocab"]
    post: dict[int, Float[Tensor, "row d_mlp"]]

    @classmethod
    def of(cls, parts: list[_Rows], group: Int[Tensor, " row"], place: Int[Tensor, " row"]) -> "_ByLength":
        return cls(
            parts=tuple(parts),
            group=group,
            place=place,
            logits=cls._in_order([part.logits for part in parts], group),
            post={layer: cls._in_order([part.post[layer] for part in parts], group) for layer in parts[0].post},
        )

    def resumed(
        self, layer: int, rows: Int[Tensor, " some"], post: Float[Tensor, "some d_mlp"], *, early: bool = False
    ) -> Float[Tensor, "some d_vocab"]:
        group, place = self.group[rows], self.place[rows]
        logits = []
        for number in group.unique().tolist():
            mine = group == number
            logits.append(self.parts[number].resumed(layer, place[mine], post[mine], early=early))
        return self._in_order(logits, group)

    @staticmethod
    def _in_order(parts: list[Float[Tensor, "_ d"]], group: Int[Tensor, " row"]) -> Float[Tensor, "row d"]:
        """Undo the sorting of rows by group."""
        return torch.cat(parts)[group.argsort(stable=True).argsort()]


def _keep(kept: dict[int, Tensor], layer: int, read_pos: Int[Tensor, " row"] | None = None) -> HookFn:
    def hook_fn(value: Float[Tensor, "row pos d"], hook: object) -> None:
        value = value.detach()
        kept[layer] = value if read_pos is None else value[torch.arange(len(value), device=value.device), read_pos]

    return hook_fn


def _replace(new: Float[Tensor, "row d_mlp"], read_pos: Int[Tensor, " row"]) -> HookFn:
    def hook_fn(post: Float[Tensor, "row pos d_mlp"], hook: object) -> Float[Tensor, "row pos d_mlp"]:
        index = rearrange(read_pos, "row -> row 1 1").expand(-1, 1, post.shape[-1])
        return post.scatter(1, index, rearrange(new, "row d_mlp -> row 1 d_mlp").to(post.dtype))

    return hook_fn
