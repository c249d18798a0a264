"""Passes that start where prompts stop being alike: the clean state of some rows, and logits resumed from it.

Changing what ``W_out`` of layer l writes at the read position leaves everything below as it was, and in layer l itself
everything but the read position. So the clean pass is run once and keeps what later passes start from; the results are
the same numbers as full passes give. A resumed pass

1. runs the rest of block l, for the read position alone, on the kept output of its attention;
2. runs the blocks above. In a causal model, read at its last token, nothing before the read position can see the
   change: the keys and values of the tokens before are kept, and one token is run. In a masked model every position
   may change, with two exceptions: block l + 1 still finds the kept queries, keys and values at all other positions,
   and of the last block nothing is needed at other positions but keys and values (the clean pass leaves that out too);
3. runs the head at the read position.

What is changed is the activation of layer l, on its way into ``W_out`` (``logits_with_post``); or something is added to
activations, or to what ``W_out`` writes, of this layer and of any above (``logits_with_added``); or hooks change
activations (``logits_with_hooks``).

Where hooks of the user's are on the model, they belong to the function: they may look at any row and position. Every
pass is then a whole one, in which each hook meets what it would meet without kn_lens, and activations are exchanged
before any hook on ``hook_post`` sees them.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens._splicing import at, index_of, put_into
from kn_lens.hosts import HookFn, Host, Part, PostFn, Prefix
from kn_lens.outputs import at_least_float32

Place = Literal["post", "mlp_out"]
"""Where something is added: before ``W_out`` or after it."""

Added = Mapping[int, tuple[Place, Float[Tensor, "_ _"]]]
"""For each of some layers, where something is added and what, for each row."""


@runtime_checkable
class CleanState(Protocol):
    """The clean pass of some rows, and what resumes from it."""

    @property
    def logits(self) -> Float[Tensor, "row d_vocab"]:
        """Clean logits at the read position."""
        ...

    @property
    def post(self) -> dict[int, Float[Tensor, "row d_mlp"]]:
        """Clean activations at the read position, in float32 at least, of each layer asked for; before any hook."""
        ...

    @property
    def mlp_out(self) -> dict[int, Float[Tensor, "row d_model"]]:
        """Clean output of ``W_out`` at the read position, in float32 at least, of each layer asked for."""
        ...

    @property
    def has_user_hooks(self) -> bool:
        """Whether hooks of the user's stand between the activations and the logits."""
        ...

    def logits_with_post(
        self,
        layer: int,
        rows: Int[Tensor, " some"],
        post: Float[Tensor, "some d_mlp"],
        added: Added | None = None,
        *,
        early: bool = False,
    ) -> Float[Tensor, "some d_vocab"]:
        """Return the logits of some rows with the layer's activation at the read position replaced.

        Args:
            layer: one of those asked for.
            rows: repeats allowed.
            post: their new activations; gradients flow back into them.
            added: see ``logits_with_added``; to this layer and others above it.
            early: read the logits off the residual stream that leaves this layer, with the layers above left out.
        """
        ...

    def logits_with_added(self, rows: Int[Tensor, " some"], added: Added) -> Float[Tensor, "some d_vocab"]:
        """Return the logits of some rows with something added at the read position of layers.

        Args:
            rows: repeats allowed.
            added: for each layer, of those asked for, where, and what for each of ``rows``; gradients flow back into
                it. One backward pass from here finds what passes from each layer find at the clean activations.
        """
        ...

    def logits_with_hooks(
        self, layer: int, rows: Int[Tensor, " some"], hooks: Sequence[tuple[str, HookFn]]
    ) -> Float[Tensor, "some d_vocab"]:
        """Return the logits of some rows with activations changed, at the read position, from a layer on.

        Args:
            layer: one of those asked for; nothing below it changes.
            rows: repeats allowed.
            hooks: on ``hook_post`` of this layer and of others above it. Each gets the activations of just these rows
                at the read position, ``[row, 1, d_mlp]``, and treats every row by itself.
        """
        ...


def last_token_moves(host: Host, attention_mask: Int[Tensor, "row pos"], read_pos: Int[Tensor, " row"]) -> bool:
    """Return whether no token but the last can see a change at the read position."""
    at_last = host.kind == "causal" and bool((read_pos == attention_mask.sum(-1) - 1).all())
    return at_last and not host.has_user_hooks


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
        if host.has_user_hooks:
            return _WholeRows.run(host, tokens, attention_mask, read_pos, layers)
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


class _ByPass:
    """The answers of a clean state whose rows go into one pass; a subclass says how that pass runs."""

    host: Host
    read_pos: Int[Tensor, " row"]

    def logits_with_post(
        self,
        layer: int,
        rows: Int[Tensor, " some"],
        post: Float[Tensor, "some d_mlp"],
        added: Added | None = None,
        *,
        early: bool = False,
    ) -> Float[Tensor, "some d_vocab"]:
        through, hooks = _adding(self.host, added or {}, self.read_pos[rows])
        through = {layer: _replacing(post, self.read_pos[rows]), **through}
        return self._pass(layer, rows, through, hooks, early=early)

    def logits_with_added(self, rows: Int[Tensor, " some"], added: Added) -> Float[Tensor, "some d_vocab"]:
        return self._pass(min(added), rows, *_adding(self.host, added, self.read_pos[rows]))

    def logits_with_hooks(
        self, layer: int, rows: Int[Tensor, " some"], hooks: Sequence[tuple[str, HookFn]]
    ) -> Float[Tensor, "some d_vocab"]:
        read_pos = self.read_pos[rows]
        return self._pass(layer, rows, {}, [(name, _at_read(hook_fn, read_pos)) for name, hook_fn in hooks])

    def _pass(
        self,
        layer: int,
        rows: Int[Tensor, " some"],
        through: Mapping[int, PostFn],
        hooks: list[tuple[str, HookFn]],
        *,
        early: bool = False,
    ) -> Float[Tensor, "some d_vocab"]:
        """Return the logits of some rows with activations passed through functions, and hooks, from a layer on."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class _Rows(_ByPass):
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
    has_user_hooks: bool = False

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
            layer: {part: keep(host.linear(layer + 1, part)[1]) for part in _kept(host, layer + 1)} for layer in above
        }
        for name in above.values():
            if name not in resid_pre.values():
                keep(name)
        every_row = torch.arange(len(tokens), device=tokens.device)
        if prefix is None:
            hooks += narrowed(host, read_pos, tokens.shape[1])
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

    def _pass(
        self,
        layer: int,
        rows: Int[Tensor, " some"],
        through: Mapping[int, PostFn],
        hooks: list[tuple[str, HookFn]],
        *,
        early: bool = False,
    ) -> Float[Tensor, "some d_vocab"]:
        """Run the read position through what follows the layer's attention, and the blocks above."""
        host, entry, read_pos = self.host, self.entry[layer], self.read_pos[rows]
        tokens, attention_mask = self.tokens[rows], self.attention_mask[rows]
        above = None if early else entry.above
        if above is None and self.prefix is None:
            # No attention is left to run. Some models give what leaves their blocks the shape of the tokens.
            tokens = tokens.gather(1, read_pos[:, None])
            attention_mask, read_pos = torch.ones_like(tokens), torch.zeros_like(read_pos)
        n_pos = tokens.shape[1]
        if self.prefix is None:  # else the rows are of one length
            n_pos = int(attention_mask.any(0).nonzero().max()) + 1  # beyond it, all of these rows are padding
            tokens, attention_mask = tokens[:, :n_pos], attention_mask[:, :n_pos]
        if above is not None:
            hooks.append((host.resid_post(layer), put_into(above[rows, :n_pos], read_pos)))
            hooks += self._only_needed(layer, rows, n_pos)
        ending = host.ending_with(layer) if early else nullcontext()
        with host.resumed(layer, entry.resid_pre[rows], entry.attn_out[rows]), host.post_through(through), ending:
            return host.logits(
                tokens,
                attention_mask,
                read_pos,
                hooks,
                prefix=None if self.prefix is None else self.prefix.select(rows, first_layer=layer),
            )

    def _only_needed(self, layer: int, rows: Int[Tensor, " some"], n_pos: int) -> list[tuple[str, HookFn]]:
        """Return hooks under which blocks do no work that has been done, or that nothing reads, in a masked model."""
        host, read_pos = self.host, self.read_pos[rows]
        hooks: list[tuple[str, HookFn]] = []
        for part, clean in self.entry[layer].projected.items():
            before, after = host.linear(layer + 1, part)
            hooks += [(before, at(read_pos)), (after, put_into(clean[rows, :n_pos], read_pos))]
        return hooks + narrowed(host, read_pos, n_pos)


@dataclass(frozen=True, kw_only=True)
class _WholeRows(_ByPass):
    """Rows that go whole through a model with hooks of the user's on it."""

    host: Host
    tokens: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row pos"]
    read_pos: Int[Tensor, " row"]
    logits: Float[Tensor, "row d_vocab"]
    post: dict[int, Float[Tensor, "row d_mlp"]]
    mlp_out: dict[int, Float[Tensor, "row d_model"]]
    has_user_hooks: bool = True

    @classmethod
    def run(
        cls,
        host: Host,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row pos"],
        read_pos: Int[Tensor, " row"],
        layers: Sequence[int],
    ) -> "_WholeRows":
        post: dict[int, Tensor] = {}
        seen: dict[str, Tensor] = {}
        reading = {layer: _keeping(post, layer, read_pos) for layer in layers}
        hooks = [(host.hook_mlp_out(layer), _keep(seen, host.hook_mlp_out(layer), read_pos)) for layer in layers]
        with host.post_through(reading):
            logits = host.whole_logits(tokens, attention_mask, read_pos, hooks)
        return cls(
            host=host,
            tokens=tokens,
            attention_mask=attention_mask,
            read_pos=read_pos,
            logits=logits,
            post=post,
            mlp_out={layer: at_least_float32(seen[host.hook_mlp_out(layer)]) for layer in layers},
        )

    def _pass(
        self,
        layer: int,
        rows: Int[Tensor, " some"],
        through: Mapping[int, PostFn],
        hooks: list[tuple[str, HookFn]],
        *,
        early: bool = False,
    ) -> Float[Tensor, "some d_vocab"]:
        host = self.host
        with host.post_through(through), host.ending_with(layer) if early else nullcontext():
            return host.whole_logits(self.tokens[rows], self.attention_mask[rows], self.read_pos[rows], hooks)


@dataclass(frozen=True, kw_only=True)
class _ByLength:
    """Rows in groups of one length: row r is number ``place[r]`` of ``parts[group[r]]``."""

    parts: tuple[_Rows, ...]
    group: Int[Tensor, " row"]
    place: Int[Tensor, " row"]
    logits: Float[Tensor, "row d_vocab"]
    post: dict[int, Float[Tensor, "row d_mlp"]]
    mlp_out: dict[int, Float[Tensor, "row d_model"]]
    has_user_hooks: bool = False

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

    def logits_with_post(
        self,
        layer: int,
        rows: Int[Tensor, " some"],
        post: Float[Tensor, "some d_mlp"],
        added: Added | None = None,
        *,
        early: bool = False,
    ) -> Float[Tensor, "some d_vocab"]:
        group, place = self.group[rows], self.place[rows]
        logits = []
        for number in group.unique().tolist():
            mine = group == number
            of_mine = _of_rows(added or {}, mine)
            logits.append(self.parts[number].logits_with_post(layer, place[mine], post[mine], of_mine, early=early))
        return self._in_order(logits, group)

    def logits_with_added(self, rows: Int[Tensor, " some"], added: Added) -> Float[Tensor, "some d_vocab"]:
        group, place = self.group[rows], self.place[rows]
        logits = []
        for number in group.unique().tolist():
            mine = group == number
            logits.append(self.parts[number].logits_with_added(place[mine], _of_rows(added, mine)))
        return self._in_order(logits, group)

    def logits_with_hooks(
        self, layer: int, rows: Int[Tensor, " some"], hooks: Sequence[tuple[str, HookFn]]
    ) -> Float[Tensor, "some d_vocab"]:
        group, place = self.group[rows], self.place[rows]
        logits = []
        for number in group.unique().tolist():
            mine = (group == number).nonzero().squeeze(1)
            of_mine = [(name, _among(hook_fn, mine, len(rows))) for name, hook_fn in hooks]
            logits.append(self.parts[number].logits_with_hooks(layer, place[mine], of_mine))
        return self._in_order(logits, group)

    @staticmethod
    def _in_order(parts: list[Float[Tensor, "_ d"]], group: Int[Tensor, " row"]) -> Float[Tensor, "row d"]:
        """Undo the sorting of rows by group."""
        return torch.cat(parts)[group.argsort(stable=True).argsort()]


def narrowed(host: Host, read_pos: Int[Tensor, " row"], n_pos: int) -> list[tuple[str, HookFn]]:
    """Return hooks under which the last block of a masked model does nothing for other positions but keys and values.

    Adding one position to the residual stream broadcasts: the stream is right where it is read, that is enough.
    Other hooks of the block see one position, the one read; there are none where hooks of the user's are on the model.
    """
    if not host.has_linear_hooks or host.has_user_hooks:
        return []
    last, only = host.n_layers - 1, at(read_pos)
    before, after = host.linear(last, "attn.q")
    hooks: list[tuple[str, HookFn]] = [(before, only), (after, lambda query, hook: _spread(query, n_pos))]
    return [*hooks, *((host.linear(last, part)[0], only) for part in ("attn.o", "mlp.in"))]


def _spread(query: Float[Tensor, "row 1 *d"], n_pos: int) -> Float[Tensor, "row pos *d"]:
    """Repeat the query of the read position: what attends at the others is not read.

    As a copy: products of stacks of matrices that overlap in memory are taken one matrix at a time.
    """
    return query.expand(-1, n_pos, *query.shape[2:]).contiguous()


def _kept(host: Host, layer: int) -> tuple[Part, ...]:
    """Return the maps of a block whose clean results later passes find."""
    if not host.has_linear_hooks:
        return ()
    return ("attn.k", "attn.v") if layer == host.n_layers - 1 else ("attn.q", "attn.k", "attn.v")


def _adding(
    host: Host, added: Added, read_pos: Int[Tensor, " row"]
) -> tuple[dict[int, PostFn], list[tuple[str, HookFn]]]:
    """Return what activations pass through, and the hooks, that add something at the read position of layers."""
    through: dict[int, PostFn] = {}
    hooks: list[tuple[str, HookFn]] = []
    for layer, (place, values) in added.items():
        add = _added(values, read_pos)
        if place == "post":
            through[layer] = add
        else:
            hooks.append((host.hook_mlp_out(layer), lambda value, hook, add=add: add(value)))
    return through, hooks


def _added(values: Float[Tensor, "row d"], read_pos: Int[Tensor, " row"]) -> PostFn:
    """Return what adds something at the read position; where there is one position it is that one."""

    def add(value: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
        here = values[:, None].to(value.dtype)
        return value + here if value.shape[1] == 1 else value.scatter_add(1, index_of(read_pos, value), here)

    return add


def _replacing(post: Float[Tensor, "row d_mlp"], read_pos: Int[Tensor, " row"]) -> PostFn:
    """Return what puts activations at the read position; where there is one position it is that one."""

    def replace(value: Float[Tensor, "row pos d_mlp"]) -> Float[Tensor, "row pos d_mlp"]:
        here = post[:, None].to(value.dtype)
        return here if value.shape[1] == 1 else value.scatter(1, index_of(read_pos, value), here)

    return replace


def _keeping(seen: dict[int, Tensor], layer: int, read_pos: Int[Tensor, " row"]) -> PostFn:
    """Return what leaves activations as they are and keeps those at the read position."""

    def keep(value: Float[Tensor, "row pos d_mlp"]) -> Float[Tensor, "row pos d_mlp"]:
        seen[layer] = at_least_float32(value.detach().gather(1, index_of(read_pos, value)).squeeze(1))
        return value

    return keep


def _of_rows(added: Added, chosen: Bool[Tensor, " row"]) -> Added:
    return {layer: (place, values[chosen]) for layer, (place, values) in added.items()}


def _at_read(hook_fn: HookFn, read_pos: Int[Tensor, " row"]) -> HookFn:
    """Return a hook that hands on the read position alone; where there is one position it is that one."""

    def hook(value: Float[Tensor, "row pos d_mlp"], hook: object) -> Float[Tensor, "row pos d_mlp"] | None:
        if value.shape[1] == 1:
            return hook_fn(value, hook)
        index = index_of(read_pos, value)
        changed = hook_fn(value.gather(1, index), hook)
        return None if changed is None else value.scatter(1, index, changed)

    return hook


def _among(hook_fn: HookFn, mine: Int[Tensor, " some"], n_rows: int) -> HookFn:
    """Return a hook on some rows that calls one on all of them, the others being zero."""

    def hook(value: Float[Tensor, "some 1 d_mlp"], hook: object) -> Float[Tensor, "some 1 d_mlp"] | None:
        changed = hook_fn(value.new_zeros(n_rows, *value.shape[1:]).index_copy(0, mine, value), hook)
        return None if changed is None else changed[mine]

    return hook


def _keep(seen: dict[str, Tensor], name: str, read_pos: Int[Tensor, " row"] | None) -> HookFn:
    def hook_fn(value: Float[Tensor, "row pos *d"], hook: object) -> None:
        value = value.detach()
        if read_pos is None:
            seen[name] = value
        else:  # of the last block there may be one position, the one read
            seen[name] = value[:, 0] if value.shape[1] == 1 else value.gather(1, index_of(read_pos, value)).squeeze(1)

    return hook_fn
