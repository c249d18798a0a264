"""Passes that start where prompts stop being alike: the clean state of some rows, and logits resumed from it.

Changing what ``W_out`` of layer l writes at the read position leaves everything below as it was, and in layer l itself
everything but the read position. So the clean pass is run once and keeps what later passes start from; the results are
the same numbers as full passes give. A resumed pass

1. runs the rest of block l, for the read position alone, on the kept output of its attention;
2. runs the blocks above. In a causal model, read at its last token, nothing before the read position can see the
   change: the keys and values of the tokens before are kept, and one token is run. In a masked model every position
   may change, with two exceptions: block l + 1 still finds the kept queries, keys and values at all other positions,
   and of the last block nothing is needed at other positions but keys and values;
3. runs the head at the read position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._splicing import at, index_of, put_into
from kn_lens.hosts import HookFn, Host, Part, Prefix
from kn_lens.outputs import at_least_float32

QKV: tuple[Part, ...] = ("attn.q", "attn.k", "attn.v")


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

    @property
    def mlp_out(self) -> dict[int, Float[Tensor, "row d_model"]]:
        """Clean output of ``W_out`` at the read position, in float32 at least, of each layer asked for."""
        ...

    def resumed(
        self, layer: int, rows: Int[Tensor, " some"], mlp_out: Float[Tensor, "some d_model"], *, early: bool = False
    ) -> Float[Tensor, "some d_vocab"]:
        """Return the logits of some rows with the output of the layer's ``W_out`` at the read position replaced.

        Args:
            layer: one of those asked for.
            rows: repeats allowed.
            mlp_out: their new outputs; gradients flow back into it.
            early: read the logits off the residual stream that leaves this layer, with the layers above left out.
        """
        ...


def last_token_moves(host: Host, attention_mask: Int[Tensor, "row pos"], read_pos: Int[Tensor, " row"]) -> bool:
    """Return whether no token but the last can see a change at the read position."""
    return host.kind == "causal" and bool((read_pos == attention_mask.sum(-1) - 1).all())


def run_clean(
    host: Host,
    tokens: Int[Tensor, "row pos"],
    attention_mask: Int[Tensor, "row pos"],
    read_pos: Int[Tensor, " row"],
    layers: Sequence[int],
) -> CleanState:
    """Run right-padded rows once and keep what passes from each of ``layers`` start from.

    Cost: one forward pass per row. Holds per row and layer, for a masked model, the residual stream, queries, keys and
    values at all positions; for a causal model keys and values at all positions, and the residual stream at one.
    """
    n_pos = int(attention_mask.any(0).nonzero().max()) + 1
    tokens, attention_mask = tokens[:, :n_pos], attention_mask[:, :n_pos]
    with torch.no_grad():
        if not last_token_moves(host, attention_mask, read_pos):
            return _Rows.run(host, tokens, attention_mask, read_pos, layers)
        # Keys and values are kept without padding, so rows of one length go together.
        lengths, group = attention_mask.sum(-1).unique(return_inverse=True)
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
class _Entry:
    """Where passes that change one layer set in: see the steps above."""

    resid_pre: Float[Tensor, "row 1 d_model"]
    attn_out: Float[Tensor, "row 1 d_model"]
    above: Float[Tensor, "row pos d_model"] | None  # resid_pre of the next layer; None in the last
    projected: dict[Part, Float[Tensor, "row pos ..."]]  # queries, keys and values of the next layer


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
    mlp_out: dict[int, Float[Tensor, "row d_model"]]
    entry: dict[int, _Entry]

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
        seen: dict[str, Tensor] = {}

        def keep(name: str, at: Int[Tensor, " row"] | None = None) -> str:
            hooks.append((name, _keep(seen, name, at)))
            return name

        hooks: list[tuple[str, HookFn]] = []
        post = {layer: keep(host.hook_post(layer), read_pos) for layer in layers}
        mlp_out = {layer: keep(host.hook_mlp_out(layer), read_pos) for layer in layers}
        resid_pre = {layer: keep(host.resid_pre(layer)) for layer in layers}
        attn_out = {layer: keep(host.hook_attn_out(layer), read_pos) for layer in layers}
        above = {layer: host.resid_pre(layer + 1) for layer in layers if layer < host.n_layers - 1}
        projected: dict[int, dict[Part, str]] = {
            layer: {part: keep(host.linear(layer + 1, part)[1]) for part in QKV} if host.kind == "masked" else {}
            for layer in above
        }
        for name in above.values():
            if name not in resid_pre.values():
                keep(name)
        every_row = torch.arange(len(tokens), device=tokens.device)
        logits = host.logits(
            tokens, attention_mask, read_pos, hooks, prefix=None if prefix is None else prefix.select(every_row)
        )
        return cls(
            host=host,
            tokens=tokens,
            attention_mask=attention_mask,
            read_pos=read_pos,
            prefix=prefix,
            logits=logits,
            post={layer: at_least_float32(seen[name]) for layer, name in post.items()},
            mlp_out={layer: at_least_float32(seen[name]) for layer, name in mlp_out.items()},
            entry={
                layer: _Entry(
                    resid_pre=seen[resid_pre[layer]][every_row, read_pos, None],
                    attn_out=seen[attn_out[layer]][:, None],
                    above=seen[above[layer]] if layer in above else None,
                    projected={part: seen[name] for part, name in projected[layer].items()} if layer in above else {},
                )
                for layer in layers
            },
        )

    def resumed(
        self, layer: int, rows: Int[Tensor, " some"], mlp_out: Float[Tensor, "some d_model"], *, early: bool = False
    ) -> Float[Tensor, "some d_vocab"]:
        host, entry, read_pos = self.host, self.entry[layer], self.read_pos[rows]
        tokens, attention_mask = self.tokens[rows], self.attention_mask[rows]
        n_pos = tokens.shape[1]
        if self.prefix is None:  # else the rows are of one length
            n_pos = int(attention_mask.any(0).nonzero().max()) + 1  # beyond it, all of these rows are padding
            tokens, attention_mask = tokens[:, :n_pos], attention_mask[:, :n_pos]
        hooks: list[tuple[str, HookFn]] = [(host.hook_mlp_out(layer), lambda _, hook: mlp_out[:, None].to(host.dtype))]
        above = None if early else entry.above
        if above is not None:
            hooks.append((host.resid_pre(layer + 1), put_into(above[rows, :n_pos], read_pos)))
            if host.kind == "masked":
                hooks += self._only_needed(layer, rows, n_pos)
        with host.resumed(layer, entry.resid_pre[rows], entry.attn_out[rows], alone=early):
            return host.logits(
                tokens,
                attention_mask,
                torch.zeros_like(read_pos) if above is None else read_pos,
                hooks,
                prefix=None if self.prefix is None else self.prefix.select(rows, first_layer=layer),
            )

    def _only_needed(self, layer: int, rows: Int[Tensor, " some"], n_pos: int) -> list[tuple[str, HookFn]]:
        """Return hooks under which blocks do no work that has been done, or that nothing reads, in a masked model."""
        host, read_pos = self.host, self.read_pos[rows]
        last = host.n_layers - 1
        only = at(read_pos)
        hooks: list[tuple[str, HookFn]] = []
        for part, clean in self.entry[layer].projected.items():
            before, after = host.linear(layer + 1, part)
            hooks += [(before, only), (after, put_into(clean[rows, :n_pos], read_pos))]
        # Adding one position to the residual stream broadcasts: the stream is right where it is read, that is enough.
        hooks += [(host.linear(last, "attn.o")[0], only), (host.linear(last, "mlp.in")[0], only)]
        if layer + 1 < last:
            before, after = host.linear(last, "attn.q")
            hooks += [(before, only), (after, lambda query, hook: query.expand(-1, n_pos, *query.shape[2:]))]
        return hooks


@dataclass(frozen=True, kw_only=True)
class _ByLength:
    """Rows in groups of one length: row r is number ``place[r]`` of ``parts[group[r]]``."""

    parts: tuple[_Rows, ...]
    group: Int[Tensor, " row"]
    place: Int[Tensor, " row"]
    logits: Float[Tensor, "row d_vocab"]
    post: dict[int, Float[Tensor, "row d_mlp"]]
    mlp_out: dict[int, Float[Tensor, "row d_model"]]

    @classmethod
    def of(cls, parts: list[_Rows], group: Int[Tensor, " row"], place: Int[Tensor, " row"]) -> "_ByLength":
        return cls(
            parts=tuple(parts),
            group=group,
            place=place,
            logits=cls._in_order([part.logits for part in parts], group),
            post={layer: cls._in_order([part.post[layer] for part in parts], group) for layer in parts[0].post},
            mlp_out={layer: cls._in_order([part.mlp_out[layer] for part in parts], group) for layer in parts[0].post},
        )

    def resumed(
        self, layer: int, rows: Int[Tensor, " some"], mlp_out: Float[Tensor, "some d_model"], *, early: bool = False
    ) -> Float[Tensor, "some d_vocab"]:
        group, place = self.group[rows], self.place[rows]
        logits = []
        for number in group.unique().tolist():
            mine = group == number
            logits.append(self.parts[number].resumed(layer, place[mine], mlp_out[mine], early=early))
        return self._in_order(logits, group)

    @staticmethod
    def _in_order(parts: list[Float[Tensor, "_ d"]], group: Int[Tensor, " row"]) -> Float[Tensor, "row d"]:
        """Undo the sorting of rows by group."""
        return torch.cat(parts)[group.argsort(stable=True).argsort()]


def _keep(seen: dict[str, Tensor], name: str, read_pos: Int[Tensor, " row"] | None) -> HookFn:
    def hook_fn(value: Float[Tensor, "row pos *d"], hook: object) -> None:
        value = value.detach()
        seen[name] = value if read_pos is None else value.gather(1, index_of(read_pos, value)).squeeze(1)

    return hook_fn
