"""Forward passes that start at a layer: the clean state of a batch of rows, and logits resumed from it.

A row has a read position, whose logits give the answer, and a moved position, whose activations change; unless the
prompts are put elsewhere, they are one. A change of what ``W_out`` of layer l writes at the moved position leaves
everything below as it was, and in layer l everything but the moved position. So the clean pass runs once and keeps the
state that later passes start from; their results are the same numbers as those of full passes. A resumed pass

1. runs the rest of block l, for the moved position alone, on the kept output of its attention;
2. runs the blocks above. In a causal model nothing before the moved position can see the change: the keys and values of
   the earlier tokens are kept, and the tokens from the moved position on are run. Of a row that is moved where it is
   read, at its last token, that is one. In a masked model every position may change, with two exceptions: block l + 1
   reuses the kept queries, keys and values at all other positions, and of the last block nothing is needed at other
   positions than the read position but keys and values (the clean pass leaves the rest out too, where it is the moved
   position that is read);
3. runs the head at the read position.

In the last layer a change at another position than the read position changes nothing: its gradient is exactly 0.

These passes run the checkpoint's own modules where they give the numbers of TransformerLens' wrappers around them,
whose hooks nobody listens to (`Host.has_own_modules`). Prompts of different lengths go through a causal model together
where it takes their positions (`Host.takes_padded_prefix`).

Three kinds of change are computed: the activation of a layer is replaced (``logits_with_post``); tensors are added to
activations, or to outputs of ``W_out``, of several layers (``logits_with_additions``); hooks change activations
(``logits_with_hooks``). Rows whose activation is replaced in different layers go through one pass: see ``row_entries``.

Where layers have experts, their activations are in the active form of `experts`, and passes with activations replaced
or added to hold the routing of the layers above as the clean pass chose it: with routing free, an output jumps where a
router changes its choice, and no integral has its gradient. Passes under hooks leave routing free.

The user's hooks on the model belong to the function: they may read and change any row and position. Every pass is then
a full pass, in which each hook sees what it would see without kn_lens, and activations are replaced before any hook on
``hook_post`` sees them. Passes are full ones too where a model has states beside keys and values
(``Host.whole_passes``). Those of an encoder-decoder run the decoder alone, on what the encoder returned in the clean
pass; where layers are the encoder's, moved positions are tokens of the encoder, and every pass runs both.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kn_lens._core.precision import at_least_float32
from kn_lens.hosts.bridge import Host, LinearMap
from kn_lens.hosts.encoder_decoder import EncoderInput
from kn_lens.hosts.experts import (
    ActiveExperts,
    Routing,
    changed_output_forwards,
    holding_forwards,
    recording_forwards,
)
from kn_lens.hosts.kv_prefix import KVPrefix
from kn_lens.hosts.model_protocol import HookFn, PostFn
from kn_lens.hosts.overrides import override_forwards, position_index, scatter_position, select_position
from kn_lens.hosts.padded_head import PaddedHead, pays_off
from kn_lens.hosts.row_entries import EntryPhase, RowEntry

MLPActivation = Literal["post", "mlp_out"]
"""The input of ``W_out``, or its output."""

Additions = Mapping[int, tuple[MLPActivation, Float[Tensor, "_ _"]]]
"""By layer: the activation that is changed, and the tensor that is added to it, one vector for each row."""

Hooks = list[tuple[str, HookFn]]


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """Rows whose pass starts at a layer, and what is replaced there at the moved position.

    Attributes:
        layer: one of the layers of the state.
        rows: indices of rows; repeats allowed.
        post: their new activations, of experts in the active form; gradients flow back into them. None leaves them.
        added: a tensor that is added to the output of ``W_out`` of the layer; gradients flow back into it.
    """

    layer: int
    rows: Int[Tensor, " selected"]
    post: Float[Tensor, "selected d_mlp"] | None = None
    added: Float[Tensor, "selected d_model"] | None = None


@runtime_checkable
class CleanState(Protocol):
    """The clean pass of a batch of rows, and the passes that resume from it."""

    @property
    def logits(self) -> Float[Tensor, "row d_vocab"]:
        """Clean logits at the read position."""
        ...

    @property
    def post(self) -> dict[int, Float[Tensor, "row _"]]:
        """By layer: clean activations at the moved position, in float32 or float64; before any hook."""
        ...

    @property
    def active(self) -> dict[int, ActiveExperts]:
        """By layer, where it has experts: how the rows are routed at the moved position."""
        ...

    @property
    def mlp_out(self) -> dict[int, Float[Tensor, "row d_model"]]:
        """By layer: clean output of ``W_out``, or of experts, at the moved position, in float32 or float64."""
        ...

    @property
    def has_user_hooks(self) -> bool:
        """Whether the user's hooks stand between the activations and the logits."""
        ...

    @property
    def pass_group(self) -> Int[Tensor, " row"]:
        """The group of each row: rows of one group go through the model together, those of two groups do not."""
        ...

    def logits_with_post(
        self,
        replacements: Sequence[Replacement],
        *,
        groups: Int[Tensor, " selected"] | None = None,
        early_exit: bool = False,
        holds_routing: bool = True,
    ) -> Float[Tensor, "selected d_vocab"]:
        """Return the logits of rows with the activation of one layer at the moved position replaced.

        Args:
            replacements: at least one, in the order of their layers, each layer once.
            groups: the `pass_group` of all these rows, on the processor, where it is known: else it is read from the
                device, which is waited for.
            early_exit: compute the logits from the residual stream that leaves the layer, without the layers above.
                For one replacement, of rows that are moved where they are read.
            holds_routing: whether experts in the layers above are those of the clean pass; False lets routers choose.

        Returns:
            The logits of the rows of the first replacement, those of the second, and so on. All of them go through
            the layers in one pass.
        """
        ...

    def logits_with_additions(
        self, rows: Int[Tensor, " selected"], additions: Additions
    ) -> Float[Tensor, "selected d_vocab"]:
        """Return the logits of selected rows with tensors added at the moved position of layers.

        Args:
            rows: indices of rows; repeats allowed.
            additions: a vector for each of ``rows``, by layer of the state; gradients flow back into it. One backward
                pass from here computes the gradients at the clean activations of all these layers.
        """
        ...

    def logits_with_hooks(
        self,
        layer: int,
        rows: Int[Tensor, " selected"],
        hooks: Sequence[tuple[str, HookFn]],
    ) -> Float[Tensor, "selected d_vocab"]:
        """Return the logits of selected rows with activations changed by hooks, at the moved position, from a layer on.

        Args:
            layer: one of the layers of the state; nothing below it changes.
            rows: indices of rows; repeats allowed.
            hooks: on ``hook_post`` of this layer and of layers above. Each gets the activations of just these rows at
                the moved position, ``[row, 1, d_mlp]``, and treats every row by itself.
        """
        ...


def recomputes_last_token_only(
    host: Host,
    attention_mask: Int[Tensor, "row pos"],
    read_pos: Int[Tensor, " row"],
    post_pos: Int[Tensor, " row"] | None = None,
) -> bool:
    """Return whether passes run the last token alone: no other can see a change at the moved position, ``post_pos``."""
    last = attention_mask.sum(-1) - 1
    is_last = host.kind == "causal" and bool((read_pos == last).all())
    if is_last and post_pos is not None and post_pos is not read_pos:
        is_last = bool((post_pos == last).all())
    return is_last and not (host.whole_passes or host.has_user_hooks)


def run_clean(
    host: Host,
    tokens: Int[Tensor, "row pos"],
    attention_mask: Int[Tensor, "row pos"],
    read_pos: Int[Tensor, " row"],
    layers: Sequence[int],
    encoder: EncoderInput | None = None,
    post_pos: Int[Tensor, " row"] | None = None,
    *,
    together: bool = False,
) -> CleanState:
    """Run right-padded rows once and keep the state that passes from each of ``layers`` start from.

    Of an encoder-decoder they are the rows of the decoder. The encoder runs here alone, once for each different text.

    Args:
        host: the model.
        tokens: of the rows.
        attention_mask: 1 for tokens, 0 for padding.
        read_pos: whose logits are read.
        layers: those whose activations are moved.
        encoder: what the encoder of an encoder-decoder reads.
        post_pos: whose activations are moved; None for the read position.
        together: whether passes run rows with different numbers of tokens from the moved position on together, where
            they can. It is the faster way for a few rows, whose passes take the time that it takes to read the weights;
            many rows go by that number, since their passes take the time of their tokens.

    Cost: one forward pass per row. Holds per row and layer, for a masked model, the residual stream, queries, keys and
    values at all positions; for a causal model keys and values at all positions, and the residual stream at those from
    the moved position on.
    """
    if host.side == "encoder":
        assert post_pos is not None
    elif post_pos is None or post_pos is read_pos or bool((post_pos == read_pos).all()):
        post_pos = read_pos
    n_pos = int(attention_mask.any(0).nonzero().max()) + 1
    tokens, attention_mask = tokens[:, :n_pos], attention_mask[:, :n_pos]
    with torch.no_grad():
        if host.whole_passes or host.has_user_hooks:
            if encoder is not None:
                encoder = host.encode(encoder.cropped())
            return _FullPassState.run(host, tokens, attention_mask, read_pos, layers, encoder, post_pos)
        padded_head = PaddedHead.of(host.unembedding) if pays_off(host.device) else None
        if post_pos is not read_pos:
            return _run_moved(host, tokens, attention_mask, read_pos, post_pos, layers, padded_head, together)
        if not recomputes_last_token_only(host, attention_mask, read_pos):
            return _ResumedState.run(host, tokens, attention_mask, read_pos, layers, padded_head)
        # Keys and values are kept without padding, so rows of one length go together.
        lengths, group = attention_mask.sum(-1).unique(return_inverse=True)
        states, index = [], torch.zeros_like(group)
        for number, length in enumerate(lengths.tolist()):
            rows = (group == number).nonzero().squeeze(1)
            prefix = host.kv_prefix(tokens[rows, : length - 1]) if length > 1 else None
            if length > 1 and prefix is None:
                return _ResumedState.run(host, tokens, attention_mask, read_pos, layers, padded_head)
            last_token, mask = (
                tokens[rows, length - 1 : length],
                attention_mask[rows, :length],
            )
            state = _ResumedState.run(host, last_token, mask, torch.zeros_like(rows), layers, padded_head, prefix)
            states.append(state)
            index[rows] = torch.arange(len(rows), device=rows.device)
        can_join = len(states) > 1 and host.takes_padded_prefix
        joined = _ResumedState.joined(states, group) if can_join else None
    return _GroupedState.of(states, group, index) if joined is None else joined


def _run_moved(
    host: Host,
    tokens: Int[Tensor, "row pos"],
    attention_mask: Int[Tensor, "row pos"],
    read_pos: Int[Tensor, " row"],
    post_pos: Int[Tensor, " row"],
    layers: Sequence[int],
    padded_head: PaddedHead | None,
    together: bool,
) -> "_ResumedState | _GroupedState":
    """Run rows that are moved at another position than the one that is read; see `run_clean`."""
    if not host.runs_tokens_after_prefix:
        return _ResumedState.run(host, tokens, attention_mask, read_pos, layers, padded_head, post_pos=post_pos)
    # Keys and values before the moved position are kept without padding, so rows moved at one position go together.
    # Padding comes after all tokens, where no token sees it.
    positions, group = post_pos.unique(return_inverse=True)
    longest = int(positions.max())
    prefixes = host.kv_prefix(tokens[:, :longest]) if longest else None
    states, index = [], torch.zeros_like(group)
    for number, first in enumerate(positions.tolist()):
        rows = (group == number).nonzero().squeeze(1)
        n_pos = int(attention_mask[rows].sum(-1).max())
        prefix = prefixes.first(rows, first) if prefixes is not None and first else None
        state = _ResumedState.run(
            host,
            tokens[rows, first:n_pos],
            attention_mask[rows, :n_pos],
            read_pos[rows] - first,
            layers,
            padded_head,
            prefix,
            post_pos=torch.zeros_like(rows),
        )
        states.append(state)
        index[rows] = torch.arange(len(rows), device=rows.device)
    n_tokens = attention_mask.sum(-1) - post_pos
    n_in_pass = n_tokens.max().expand_as(n_tokens) if together else n_tokens
    if prefixes is not None and len(n_in_pass.unique()) < len(states) and host.takes_padded_prefix_of_tokens:
        return _joined_by_tokens(states, group, index, n_tokens, n_in_pass, prefixes)
    return _GroupedState.of(states, group, index)


def _joined_by_tokens(
    states: Sequence["_ResumedState"],
    group: Int[Tensor, " row"],
    index: Int[Tensor, " row"],
    n_tokens: Int[Tensor, " row"],
    n_in_pass: Int[Tensor, " row"],
    prefixes: KVPrefix,
) -> "_GroupedState":
    """Group rows with prefixes of different lengths by the number of tokens that passes run of them.

    Args:
        states: by moved position.
        group: the number of the state of each row.
        index: the number of each row in its state.
        n_tokens: the tokens of each row from the moved position on.
        n_in_pass: the number of them, with padding, in a pass.
        prefixes: of all rows, as long as the longest.
    """
    joined: list[_ResumedState] = []
    new_index = torch.zeros_like(index)
    sizes, new_group = n_in_pass.unique(return_inverse=True)
    for size, n_tokens_of_size in enumerate(sizes.tolist()):
        rows = (new_group == size).nonzero().squeeze(1)
        numbers, part_of_row = group[rows].unique(return_inverse=True)
        parts: list[_ResumedState] = []
        for part, number in enumerate(numbers.tolist()):
            in_part = rows[part_of_row == part]
            state = states[number].part(index[in_part], n_tokens[in_part], n_tokens_of_size)
            if state.prefix is None:  # of prompts that are moved at their first token
                state = replace(state, prefix=prefixes.first(in_part, 0))
            parts.append(state)
        state = _ResumedState.joined(parts, part_of_row)
        assert state is not None  # all prefixes are plain
        new_index[rows] = torch.arange(len(rows), device=rows.device)
        joined.append(state)
    return _GroupedState.of(joined, new_group, new_index)


@dataclass(frozen=True, kw_only=True)
class _LayerState:
    """The values of the clean pass that passes from one layer on start from: see the steps above."""

    resid_pre: Float[Tensor, "row 1 d_model"]
    attn_out: Float[Tensor, "row 1 d_model"]
    next_resid_pre: Float[Tensor, "row pos d_model"] | None  # of the next layer; None in the last
    next_projections: dict[LinearMap, Float[Tensor, "row pos ..."]]  # queries, keys and values of the next layer


class _SinglePassState:
    """A clean state whose rows go into one pass; a subclass defines how that pass runs."""

    host: Host
    read_pos: Int[Tensor, " row"]
    post_pos: Int[Tensor, " row"]
    active: dict[int, ActiveExperts]

    @property
    def reads_elsewhere(self) -> bool:
        """Whether some rows are read at another position of the layers' stack than the one that is moved.

        All positions of an encoder are read, by the decoder.
        """
        return self.post_pos is not self.read_pos and self.host.side != "encoder"

    def in_last_block(
        self,
        rows: Int[Tensor, " selected"],
        values: Float[Tensor, "selected ..."],
        otherwise: Float[Tensor, "selected ..."],
    ) -> Float[Tensor, "selected ..."]:
        """Return values of the last block for rows that are read where they are moved, and others for other rows."""
        is_read = (self.post_pos == self.read_pos)[rows]
        return torch.where(is_read.view(-1, *[1] * (values.ndim - 1)), values, otherwise)

    @property
    def pass_group(self) -> Int[Tensor, " row"]:
        return torch.zeros_like(self.read_pos)

    def _passed_on(self, start: Replacement) -> Float[Tensor, "selected _"]:
        """Return the new activations of a layer; of one with experts what they write."""
        assert start.post is not None
        if start.layer not in self.active:
            return start.post
        return self.active[start.layer].select(start.rows).mlp_out(start.post.to(self.host.dtype))

    def logits_with_post(
        self,
        replacements: Sequence[Replacement],
        *,
        groups: Int[Tensor, " selected"] | None = None,
        early_exit: bool = False,
        holds_routing: bool = True,
    ) -> Float[Tensor, "selected d_vocab"]:
        return self._pass(replacements, {}, [], early_exit=early_exit, holds_routing=holds_routing)

    def logits_with_additions(
        self, rows: Int[Tensor, " selected"], additions: Additions
    ) -> Float[Tensor, "selected d_vocab"]:
        functions, hooks = _addition_functions(self, rows, additions)
        return self._pass([Replacement(layer=min(additions), rows=rows)], functions, hooks)

    def logits_with_hooks(
        self,
        layer: int,
        rows: Int[Tensor, " selected"],
        hooks: Sequence[tuple[str, HookFn]],
    ) -> Float[Tensor, "selected d_vocab"]:
        post_pos = self.post_pos[rows]
        at_position = [(name, _hook_at(hook_fn, post_pos)) for name, hook_fn in self._of_blocks_read(hooks, rows)]
        return self._pass([Replacement(layer=layer, rows=rows)], {}, at_position, holds_routing=False)

    def _of_blocks_read(self, hooks: Sequence[tuple[str, HookFn]], rows: Int[Tensor, " selected"]) -> Hooks:
        """Return hooks of which those on the last block leave rows alone that are read at another position."""
        if not self.reads_elsewhere:
            return list(hooks)
        host, last = self.host, self.host.n_layers - 1
        of_last_block = {host.hook_mlp_in(last), host.hook_mlp_out(last)}
        if last not in host.expert_layers:
            of_last_block.add(host.hook_post(last))
        limited: Hooks = []
        for name, hook_fn in hooks:
            if name in of_last_block:
                hook_fn = _hook_where_read(hook_fn, self, rows)
            limited.append((name, hook_fn))
        return limited

    def _pass(
        self,
        starts: Sequence[Replacement],
        functions: Mapping[int, PostFn],
        hooks: Hooks,
        *,
        early_exit: bool = False,
        holds_routing: bool = True,
    ) -> Float[Tensor, "selected d_vocab"]:
        """Return the logits of the rows of all starts.

        Args:
            starts: in the order of their layers, each layer once.
            functions: change the activations of layers, or what experts write, of all rows; for one start.
            hooks: the same, after the functions; for one start.
            early_exit: leave out the layers above; for one start.
            holds_routing: see `CleanState.logits_with_post`.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class _ResumedState(_SinglePassState):
    """Rows whose passes start at a layer; with a prefix, ``tokens`` are the tokens after it."""

    host: Host
    tokens: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row prefix_and_pos"]
    read_pos: Int[Tensor, " row"]
    post_pos: Int[Tensor, " row"]
    has_padding: bool
    position_ids: Int[Tensor, "row pos"] | None
    prefix: KVPrefix | None
    logits: Float[Tensor, "row d_vocab"]
    post: dict[int, Float[Tensor, "row _"]]
    mlp_out: dict[int, Float[Tensor, "row d_model"]]
    active: dict[int, ActiveExperts]
    routing: dict[int, Routing]  # of all positions, in every layer with experts
    layer_states: dict[int, _LayerState]
    padded_head: PaddedHead | None
    has_user_hooks: bool = False

    @classmethod
    def run(
        cls,
        host: Host,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row prefix_and_pos"],
        read_pos: Int[Tensor, " row"],
        layers: Sequence[int],
        padded_head: PaddedHead | None,
        prefix: KVPrefix | None = None,
        post_pos: Int[Tensor, " row"] | None = None,
    ) -> "_ResumedState":
        post_pos = read_pos if post_pos is None else post_pos
        cache: dict[str, Tensor] = {}
        hooks: Hooks = []

        def record(name: str, at: Int[Tensor, " row"] | None = None) -> None:
            hooks.append((name, _record(cache, name, at)))

        dense = [layer for layer in layers if layer not in host.expert_layers]
        experts = _RecordedExperts(host, post_pos, layers)
        for layer in dense:
            record(host.hook_post(layer), post_pos)
        for layer in layers:
            record(host.hook_mlp_out(layer), post_pos)
        for layer in layers:
            record(host.resid_pre(layer))
        for layer in layers:
            record(host.hook_attn_out(layer), post_pos)
        has_next = [layer for layer in layers if layer < host.n_layers - 1]
        for layer in has_next:
            for linear_map in _reused_maps(host, layer + 1):
                record(host.linear_hooks(layer + 1, linear_map)[1])
        for layer in has_next:
            if layer + 1 not in layers:
                record(host.resid_pre(layer + 1))
        every_row = torch.arange(len(tokens), device=tokens.device)
        if prefix is None and post_pos is read_pos:  # else the moved position of the last block is wanted too
            hooks += last_block_hooks(host, read_pos, tokens.shape[1])
        prefix_of_rows = None if prefix is None else prefix.select([every_row] * host.n_layers)
        with override_forwards(_padded(padded_head) | experts.forwards()):
            logits = host.logits(tokens, attention_mask, read_pos, hooks, prefix=prefix_of_rows)
        active, active_post = experts.active()
        layer_states: dict[int, _LayerState] = {}
        for layer in layers:
            next_resid_pre, next_projections = None, {}
            if layer in has_next:
                next_resid_pre = cache[host.resid_pre(layer + 1)]
                for linear_map in _reused_maps(host, layer + 1):
                    next_projections[linear_map] = cache[host.linear_hooks(layer + 1, linear_map)[1]]
            layer_states[layer] = _LayerState(
                resid_pre=cache[host.resid_pre(layer)][every_row, post_pos, None],
                attn_out=cache[host.hook_attn_out(layer)][:, None],
                next_resid_pre=next_resid_pre,
                next_projections=next_projections,
            )
        return cls(
            host=host,
            tokens=tokens,
            attention_mask=attention_mask,
            read_pos=read_pos,
            post_pos=post_pos,
            has_padding=prefix is None and not bool(attention_mask.all()),
            position_ids=None,
            prefix=prefix,
            logits=logits,
            post={layer: at_least_float32(cache[host.hook_post(layer)]) for layer in dense} | active_post,
            mlp_out={layer: at_least_float32(cache[host.hook_mlp_out(layer)]) for layer in layers},
            active=active,
            routing=experts.routing,
            layer_states=layer_states,
            padded_head=padded_head,
        )

    def part(
        self, rows: Int[Tensor, " selected"], n_tokens: Int[Tensor, " selected"], n_in_pass: int
    ) -> "_ResumedState":
        """Return the state of some rows with another number of tokens after the prefix.

        Args:
            rows: indices of rows.
            n_tokens: the number of their tokens after the prefix.
            n_in_pass: how many there are in the part. The last token is repeated where there are fewer: no token before
                it sees what follows.
        """
        n_prefix = self.attention_mask.shape[1] - self.tokens.shape[1]
        every_token = torch.arange(n_in_pass, device=rows.device)
        index = rows[:, None], torch.minimum(every_token, n_tokens[:, None] - 1)
        layer_states: dict[int, _LayerState] = {}
        for layer, state in self.layer_states.items():
            following = state.next_resid_pre
            layer_states[layer] = _LayerState(
                resid_pre=state.resid_pre[rows],
                attn_out=state.attn_out[rows],
                next_resid_pre=None if following is None else following[index],
                next_projections={},  # of masked models
            )
        return replace(
            self,
            tokens=self.tokens[index],
            attention_mask=self.attention_mask.new_ones(len(rows), n_prefix + n_in_pass),
            read_pos=self.read_pos[rows],
            post_pos=self.post_pos[rows],
            prefix=None if self.prefix is None else self.prefix.select([rows] * self.host.n_layers),
            logits=self.logits[rows],
            post={layer: post[rows] for layer, post in self.post.items()},
            mlp_out={layer: mlp_out[rows] for layer, mlp_out in self.mlp_out.items()},
            active={layer: active.select(rows) for layer, active in self.active.items()},
            routing={layer: routing.select(index) for layer, routing in self.routing.items()},
            layer_states=layer_states,
        )

    @classmethod
    def joined(cls, states: Sequence["_ResumedState"], group: Int[Tensor, " row"]) -> "_ResumedState | None":
        """Join the states of prompts of different lengths; None where their prefixes cannot be joined.

        Args:
            states: each with its prefix, and all with the same number of tokens after it.
            group: the number of the state of each row, in whose order the rows of a state are.
        """
        order = group.argsort(stable=True).argsort()
        prefix = KVPrefix.joined([state.prefix for state in states], order)
        if prefix is None:
            return None

        def in_order(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts)[order]

        first = states[0]
        lengths = [state.attention_mask.shape[1] for state in states]
        masks = [
            nn.functional.pad(state.attention_mask, (max(lengths) - length, 0))
            for state, length in zip(states, lengths, strict=True)
        ]
        attention_mask = in_order(masks)
        layer_states: dict[int, _LayerState] = {}
        for layer in first.layer_states:
            of_layer = [state.layer_states[layer] for state in states]
            following = [state.next_resid_pre for state in of_layer if state.next_resid_pre is not None]
            layer_states[layer] = _LayerState(
                resid_pre=in_order([state.resid_pre for state in of_layer]),
                attn_out=in_order([state.attn_out for state in of_layer]),
                next_resid_pre=in_order(following) if following else None,
                next_projections={},
            )
        read_pos = in_order([state.read_pos for state in states])
        moved_where_read = all(state.post_pos is state.read_pos for state in states)
        return cls(
            host=first.host,
            tokens=in_order([state.tokens for state in states]),
            attention_mask=attention_mask,
            read_pos=read_pos,
            post_pos=read_pos if moved_where_read else in_order([state.post_pos for state in states]),
            has_padding=True,
            # Repeated tokens of the longest prompt may be beyond the last position that the model has.
            position_ids=(attention_mask.cumsum(-1)[:, -first.tokens.shape[1] :] - 1).clamp(max=first.host.n_ctx - 1),
            prefix=prefix,
            logits=in_order([state.logits for state in states]),
            post={layer: in_order([state.post[layer] for state in states]) for layer in first.post},
            mlp_out={layer: in_order([state.mlp_out[layer] for state in states]) for layer in first.mlp_out},
            active=_joined_active(states, order),
            routing={
                layer: Routing.joined([state.routing[layer] for state in states], order) for layer in first.routing
            },
            layer_states=layer_states,
            padded_head=first.padded_head,
        )

    def _pass(
        self,
        starts: Sequence[Replacement],
        functions: Mapping[int, PostFn],
        hooks: Hooks,
        *,
        early_exit: bool = False,
        holds_routing: bool = True,
    ) -> Float[Tensor, "selected d_vocab"]:
        """Run the moved position through what follows the attention of its first layer, and the blocks above."""
        host, lowest, phase = self.host, starts[0].layer, EntryPhase()
        rows = torch.cat([start.rows for start in starts])
        tokens, attention_mask, read_pos = self.tokens[rows], self.attention_mask[rows], self.read_pos[rows]
        post_pos = self.post_pos[rows] if self.reads_elsewhere else read_pos
        own, has_padding = host.has_own_modules and not early_exit, self.has_padding
        position_ids = None if self.position_ids is None else self.position_ids[rows]
        if (early_exit or lowest == host.n_layers - 1) and self.prefix is None:
            # No attention is left to run. Some models give the output of their blocks the shape of the tokens.
            tokens = tokens.gather(1, read_pos[:, None])
            attention_mask, has_padding = torch.ones_like(tokens), False
            read_pos = post_pos = torch.zeros_like(read_pos)
        elif has_padding and self.prefix is None:
            n_pos = int(attention_mask.any(0).nonzero().max()) + 1  # beyond it, all of these rows are padding
            tokens, attention_mask = tokens[:, :n_pos], attention_mask[:, :n_pos]
        n_pos = tokens.shape[1]

        functions, hooks = dict(functions), list(hooks)
        entries: dict[int, RowEntry] = {}
        n_entered = 0
        for start in starts:
            state, stop = self.layer_states[start.layer], n_entered + len(start.rows)
            if start.post is not None:
                functions[start.layer] = phase.for_entering(_replaced_by(self._passed_on(start)))
            if start.added is not None:
                hooks.append((host.hook_mlp_out(start.layer), _addition_for_entering(start.added, phase)))
            entries[start.layer] = RowEntry(
                resid_pre=state.resid_pre[start.rows],
                attn_out=state.attn_out[start.rows],
                complete=self._completion(start, post_pos[n_entered:stop], n_pos),
            )
            if not early_exit:
                hooks += self._reuse_hooks(start, post_pos[:stop], n_entered, n_pos, phase)
            n_entered = stop
        if n_pos > 1:
            below_last = read_pos[: sum(len(start.rows) for start in starts if start.layer < host.n_layers - 1)]
            for name, hook_fn in last_block_hooks(host, below_last, n_pos):
                hooks.append((name, phase.for_entered(hook_fn)))
        prefix = self._prefix_of(starts, own=own and n_pos == 1)

        def held(layer: int, n_tokens: int) -> Routing | None:
            if phase.entering:  # of this layer, which nothing has changed yet
                return None
            routing = self.routing[layer].select((rows[: n_tokens // n_pos], slice(n_pos)))
            return Routing(experts=routing.experts.flatten(0, 1), weights=routing.weights.flatten(0, 1))

        expert_forwards, functions = _of_experts(host, functions)
        if holds_routing:
            expert_forwards |= holding_forwards(host.expert_layers, held)
        with (
            override_forwards(expert_forwards),
            host.enter_rows(
                entries,
                phase,
                len(rows),
                after_prefix=prefix is not None,
                several_tokens=prefix is not None and n_pos > 1,
                own=own,
                padded=own and position_ids is not None,
            ),
            host.skip_blocks_above(lowest) if early_exit else nullcontext(),
            override_forwards(_padded(self.padded_head)),
        ):
            # Without a mask transformers does not look for padding: a look for which it waits.
            mask = None if own and not has_padding else attention_mask
            logits = host.logits(tokens, mask, read_pos, hooks, prefix, functions, own=own, position_ids=position_ids)
        return self._with_clean_logits(logits, rows, starts)

    def _with_clean_logits(
        self,
        logits: Float[Tensor, "selected d_vocab"],
        rows: Int[Tensor, " selected"],
        starts: Sequence[Replacement],
    ) -> Float[Tensor, "selected d_vocab"]:
        """Return the logits of a pass, the clean ones for rows that the last layer moves where they are not read."""
        if not self.reads_elsewhere or starts[-1].layer < self.host.n_layers - 1:
            return logits
        n_below = len(rows) - len(starts[-1].rows)
        moved_in_last = self.in_last_block(rows[n_below:], logits[n_below:], self.logits[rows[n_below:]])
        return torch.cat([logits[:n_below], moved_in_last])

    def _completion(
        self,
        start: Replacement,
        post_pos: Int[Tensor, " selected"],
        n_pos: int,
    ) -> Callable[[Float[Tensor, "selected 1 d_model"]], Float[Tensor, "selected pos d_model"]]:
        """Return the function that puts what leaves the layer at the moved position between the clean positions."""
        clean = self.layer_states[start.layer].next_resid_pre
        if n_pos == 1:
            return lambda leaving: leaving
        if clean is None:  # of the last layer no other position is read, and rows moved elsewhere have clean logits
            return lambda leaving: leaving.expand(-1, n_pos, -1)
        clean_rows = clean[start.rows, :n_pos]
        return lambda leaving: clean_rows.scatter(1, position_index(post_pos, leaving), leaving)

    def _reuse_hooks(
        self,
        start: Replacement,
        post_pos: Int[Tensor, " entered"],
        n_below: int,
        n_pos: int,
        phase: EntryPhase,
    ) -> Hooks:
        """Return hooks by which the next block of a masked model reuses the clean projections of rows that entered.

        Args:
            start: the rows, and the layer where they entered.
            post_pos: of the rows that entered below, and of these.
            n_below: the number of rows that entered below.
            n_pos: the number of positions of the pass.
            phase: of the pass.
        """
        host = self.host
        hooks: Hooks = []
        for linear_map, clean in self.layer_states[start.layer].next_projections.items():
            before, after = host.linear_hooks(start.layer + 1, linear_map)
            select = select_position(post_pos[n_below:])
            scatter = scatter_position(clean[start.rows, :n_pos], post_pos[n_below:])
            hooks.append((before, phase.for_entered(_select_after(n_below, select))))
            hooks.append((after, phase.for_entered(_scatter_after(n_below, n_pos, scatter))))
        return hooks

    def _prefix_of(self, starts: Sequence[Replacement], *, own: bool) -> KVPrefix | None:
        """Return the prefix of the rows of a pass."""
        if self.prefix is None:
            return None
        rows_of_layers = self._rows_of_layers(starts)
        attention = self.host.shared_keys if own else None
        if attention is None:
            return self.prefix.select(rows_of_layers)
        return self.prefix.share(rows_of_layers, attention)

    def _rows_of_layers(self, starts: Sequence[Replacement]) -> list[Int[Tensor, " selected"] | None]:
        """Return the rows that the attention of each layer runs on."""
        rows_of_layers: list[Tensor | None] = []
        entered: list[Tensor] = []
        entering = {start.layer: start.rows for start in starts}
        for layer in range(self.host.n_layers):
            rows_of_layers.append(torch.cat(entered) if entered else None)
            if layer in entering:
                entered.append(entering[layer])
        return rows_of_layers


@dataclass(frozen=True, kw_only=True)
class _FullPassState(_SinglePassState):
    """Rows whose passes are full passes: the user's hooks are on the model, or no pass can start at a layer."""

    host: Host
    tokens: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row pos"]
    read_pos: Int[Tensor, " row"]
    post_pos: Int[Tensor, " row"]
    logits: Float[Tensor, "row d_vocab"]
    post: dict[int, Float[Tensor, "row _"]]
    mlp_out: dict[int, Float[Tensor, "row d_model"]]
    active: dict[int, ActiveExperts]
    routing: dict[int, Routing]
    has_user_hooks: bool
    encoder: EncoderInput | None

    @classmethod
    def run(
        cls,
        host: Host,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row pos"],
        read_pos: Int[Tensor, " row"],
        layers: Sequence[int],
        encoder: EncoderInput | None,
        post_pos: Int[Tensor, " row"],
    ) -> "_FullPassState":
        post: dict[int, Tensor] = {}
        cache: dict[str, Tensor] = {}
        dense = [layer for layer in layers if layer not in host.expert_layers]
        experts = _RecordedExperts(host, post_pos, layers)
        functions = {layer: _record_post(post, layer, post_pos) for layer in dense}
        names = {layer: host.hook_mlp_out(layer) for layer in dense}
        hooks: Hooks = [(name, _record(cache, name, post_pos)) for name in names.values()]
        # Hooks of the user at hook_mlp_out act on what experts have written.
        written: dict[int, Tensor] = {}
        observers = {layer: _record_post(written, layer, post_pos) for layer in experts.layers}
        expert_forwards = experts.forwards() | changed_output_forwards(host.expert_layers, observers)
        has_user_hooks = host.has_user_hooks
        with override_forwards(expert_forwards), host.transform_post(functions):
            logits = host.logits_at_read_pos(tokens, attention_mask, read_pos, hooks, encoder)
        active, active_post = experts.active()
        return cls(
            host=host,
            tokens=tokens,
            attention_mask=attention_mask,
            read_pos=read_pos,
            post_pos=post_pos,
            logits=logits,
            post=post | active_post,
            mlp_out={layer: at_least_float32(cache[name]) for layer, name in names.items()} | written,
            active=active,
            routing=experts.routing,
            has_user_hooks=has_user_hooks,
            encoder=encoder,
        )

    def _pass(
        self,
        starts: Sequence[Replacement],
        functions: Mapping[int, PostFn],
        hooks: Hooks,
        *,
        early_exit: bool = False,
        holds_routing: bool = True,
    ) -> Float[Tensor, "selected d_vocab"]:
        host, functions, hooks = self.host, dict(functions), list(hooks)
        rows = torch.cat([start.rows for start in starts])
        read_pos, post_pos = self.read_pos[rows], self.post_pos[rows]
        first = 0
        for start in starts:
            own = slice(first, first + len(start.rows))
            first = own.stop
            if start.post is not None:
                functions[start.layer] = _on_rows(own, _replace_at(self._passed_on(start), post_pos[own]))
            if start.added is not None:
                add = _on_rows(own, _add_at(start.added, post_pos[own]))
                hooks.append((host.hook_mlp_out(start.layer), lambda value, hook, add=add: add(value)))

        def held(layer: int, n_tokens: int) -> Routing:
            routing = self.routing[layer].select(rows)
            return Routing(experts=routing.experts.flatten(0, 1), weights=routing.weights.flatten(0, 1))

        expert_forwards, functions = _of_experts(host, functions)
        if holds_routing:
            expert_forwards |= holding_forwards(host.expert_layers, held)
        exit_context = host.skip_blocks_above(starts[0].layer) if early_exit else nullcontext()
        encoder = None if self.encoder is None else self.encoder.select(rows)
        with override_forwards(expert_forwards), host.transform_post(functions), exit_context:
            return host.logits_at_read_pos(self.tokens[rows], self.attention_mask[rows], read_pos, hooks, encoder)


@dataclass(frozen=True, kw_only=True)
class _GroupedState:
    """Rows in groups of one length: row r is row ``index[r]`` of ``states[group[r]]``."""

    states: tuple[_ResumedState, ...]
    group: Int[Tensor, " row"]
    index: Int[Tensor, " row"]
    logits: Float[Tensor, "row d_vocab"]
    post: dict[int, Float[Tensor, "row _"]]
    mlp_out: dict[int, Float[Tensor, "row d_model"]]
    active: dict[int, ActiveExperts]
    has_user_hooks: bool = False

    @classmethod
    def of(
        cls,
        states: list[_ResumedState],
        group: Int[Tensor, " row"],
        index: Int[Tensor, " row"],
    ) -> "_GroupedState":
        layers = list(states[0].post)
        return cls(
            states=tuple(states),
            group=group,
            index=index,
            logits=cls._in_order([state.logits for state in states], group),
            post={layer: cls._in_order([state.post[layer] for state in states], group) for layer in layers},
            mlp_out={layer: cls._in_order([state.mlp_out[layer] for state in states], group) for layer in layers},
            active=_joined_active(states, group.argsort(stable=True).argsort()),
        )

    @property
    def pass_group(self) -> Int[Tensor, " row"]:
        return self.group

    def logits_with_post(
        self,
        replacements: Sequence[Replacement],
        *,
        groups: Int[Tensor, " selected"] | None = None,
        early_exit: bool = False,
        holds_routing: bool = True,
    ) -> Float[Tensor, "selected d_vocab"]:
        if groups is None:
            groups = self.group[torch.cat([replacement.rows for replacement in replacements])].cpu()
        logits = []
        numbers = groups.unique().tolist()
        for number in numbers:
            parts: list[Replacement] = []
            first = 0
            for replacement in replacements:
                own_groups = groups[first : first + len(replacement.rows)]
                first += len(replacement.rows)
                part = replacement
                if len(numbers) > 1:
                    part = _selected(replacement, (own_groups == number).nonzero().squeeze(1))
                if len(part.rows):
                    parts.append(replace(part, rows=self.index[part.rows]))
            state = self.states[number]
            logits.append(state._pass(parts, {}, [], early_exit=early_exit, holds_routing=holds_routing))
        return self._in_order(logits, groups)

    def logits_with_additions(
        self, rows: Int[Tensor, " selected"], additions: Additions
    ) -> Float[Tensor, "selected d_vocab"]:
        group, index = self.group[rows], self.index[rows]
        logits = []
        for number in group.unique().tolist():
            in_group = group == number
            state, additions_in_group = (
                self.states[number],
                _select_rows(additions, in_group),
            )
            logits.append(state.logits_with_additions(index[in_group], additions_in_group))
        return self._in_order(logits, group)

    def logits_with_hooks(
        self,
        layer: int,
        rows: Int[Tensor, " selected"],
        hooks: Sequence[tuple[str, HookFn]],
    ) -> Float[Tensor, "selected d_vocab"]:
        group, index = self.group[rows], self.index[rows]
        logits = []
        for number in group.unique().tolist():
            in_group = (group == number).nonzero().squeeze(1)
            hooks_in_group = [(name, _hook_on_subset(hook_fn, in_group, len(rows))) for name, hook_fn in hooks]
            logits.append(self.states[number].logits_with_hooks(layer, index[in_group], hooks_in_group))
        return self._in_order(logits, group)

    @staticmethod
    def _in_order(parts: list[Float[Tensor, "_ d"]], group: Int[Tensor, " row"]) -> Float[Tensor, "row d"]:
        """Undo the sorting of rows by group."""
        if len(parts) == 1:
            return parts[0]
        position = group.argsort(stable=True).argsort()
        # The gradient of this function adds up without the sorting that a general index needs.
        return torch.cat(parts).index_select(0, position.to(parts[0].device, non_blocking=True))


class _RecordedExperts:
    """What a clean pass records of layers with experts: routing at all positions, and what enters some of them.

    Args:
        host: the model.
        post_pos: the moved position of each row.
        layers: the layers whose activations are wanted.
    """

    def __init__(self, host: Host, post_pos: Int[Tensor, " row"], layers: Sequence[int]) -> None:
        self.host, self.post_pos = host, post_pos
        self.layers = [layer for layer in layers if layer in host.expert_layers]
        self.routing: dict[int, Routing] = {}
        self._mlp_in: dict[int, Float[Tensor, "row d_model"]] = {}

    def forwards(self) -> dict[Any, Callable[..., Any]]:
        """Return the forwards, for `override_forwards`, that record."""
        return recording_forwards(self.host.expert_layers, self._record)

    def _record(self, layer: int, tokens: Float[Tensor, "token d_model"], routing: Routing) -> None:
        by_row = (len(self.post_pos), -1)
        experts, weights = routing.experts.unflatten(0, by_row), routing.weights.unflatten(0, by_row)
        self.routing[layer] = Routing(experts=experts, weights=weights)
        if layer in self.layers:
            every_row = torch.arange(len(self.post_pos), device=tokens.device)
            self._mlp_in[layer] = tokens.unflatten(0, by_row)[every_row, self.post_pos]

    def active(self) -> tuple[dict[int, ActiveExperts], dict[int, Float[Tensor, "row _"]]]:
        """Return the layers under the rows, and the activations at the moved position in their active form."""
        active: dict[int, ActiveExperts] = {}
        post: dict[int, Float[Tensor, "row _"]] = {}
        every_row = torch.arange(len(self.post_pos), device=self.post_pos.device)
        for layer in self.layers:
            at_post_pos = self.routing[layer].select((every_row, self.post_pos))
            expert_layer = self.host.expert_layers[layer]
            active[layer], post[layer] = expert_layer.active(self._mlp_in[layer], at_post_pos)
        return active, post


def _joined_active(states: "Sequence[_ResumedState]", order: Int[Tensor, " row"]) -> dict[int, ActiveExperts]:
    """Join how the rows of states are routed at the moved position."""
    joined: dict[int, ActiveExperts] = {}
    for layer in states[0].active:
        joined[layer] = ActiveExperts.joined([state.active[layer] for state in states], order)
    return joined


def _of_experts(host: Host, functions: Mapping[int, PostFn]) -> tuple[dict[Any, Callable[..., Any]], dict[int, PostFn]]:
    """Return forwards for the functions of layers with experts, and the functions of the others."""
    of_experts = {layer: function for layer, function in functions.items() if layer in host.expert_layers}
    others = {layer: function for layer, function in functions.items() if layer not in host.expert_layers}
    return changed_output_forwards(host.expert_layers, of_experts), others


def _padded(padded_head: PaddedHead | None) -> dict[Any, Callable[..., Any]]:
    """Return the forward of the padded unembedding, for `override_forwards`."""
    return {} if padded_head is None else {padded_head.module: padded_head.forward}


def last_block_hooks(host: Host, read_pos: Int[Tensor, " row"], n_pos: int) -> Hooks:
    """Return hooks by which the last block of a masked model computes only keys and values at other positions.

    The output of the read position is added to the residual stream by broadcasting: the sum is right at the read
    position, and no other position is read. Other hooks on the block see the read position alone. Empty where the
    user's hooks are on the model.
    """
    if not host.has_linear_hooks or host.has_user_hooks:
        return []
    last, select = host.n_layers - 1, select_position(read_pos)
    before, after = host.linear_hooks(last, "attn.q")
    hooks: Hooks = [
        (before, select),
        (after, lambda query, hook: _repeat_query(query, n_pos)),
    ]
    maps: tuple[LinearMap, ...] = ("attn.o", "mlp.in")
    for linear_map in maps:
        hooks.append((host.linear_hooks(last, linear_map)[0], select))
    return hooks


def _repeat_query(query: Float[Tensor, "row 1 *d"], n_pos: int) -> Float[Tensor, "row pos *d"]:
    """Repeat the query of the read position: the attention of the other positions is not read.

    As a copy: PyTorch multiplies stacks of matrices that overlap in memory one matrix at a time.
    """
    return query.expand(-1, n_pos, *query.shape[2:]).contiguous()


def _reused_maps(host: Host, layer: int) -> tuple[LinearMap, ...]:
    """Return the linear maps of a block whose clean results later passes reuse."""
    if not host.has_linear_hooks:
        return ()
    return ("attn.k", "attn.v") if layer == host.n_layers - 1 else ("attn.q", "attn.k", "attn.v")


def _addition_functions(
    state: _SinglePassState, rows: Int[Tensor, " row"], additions: Additions
) -> tuple[dict[int, PostFn], Hooks]:
    """Return the functions of activations and the hooks that add tensors at the moved position of layers."""
    functions: dict[int, PostFn] = {}
    hooks: Hooks = []
    for layer, (activation, values) in additions.items():
        if activation == "post" and layer in state.active:
            values = state.active[layer].select(rows).written(values)
        if state.reads_elsewhere and layer == state.host.n_layers - 1:
            values = state.in_last_block(rows, values, torch.zeros_like(values))
        add = _add_at(values, state.post_pos[rows])
        if activation == "post":
            functions[layer] = add
        else:
            hooks.append((state.host.hook_mlp_out(layer), lambda value, hook, add=add: add(value)))
    return functions, hooks


def _selected(replacement: Replacement, chosen: Int[Tensor, " chosen"]) -> Replacement:
    """Return some of the rows of a replacement."""
    chosen = chosen.to(replacement.rows.device, non_blocking=True)
    post, added = replacement.post, replacement.added
    return Replacement(
        layer=replacement.layer,
        rows=replacement.rows[chosen],
        post=None if post is None else post.index_select(0, chosen),
        added=None if added is None else added.index_select(0, chosen),
    )


def _replaced_by(post: Float[Tensor, "row d_mlp"]) -> PostFn:
    """Return the function that replaces the activations of rows that have one position."""
    return lambda value: post[:, None].to(value.dtype)


def _addition_for_entering(added: Float[Tensor, "row d_model"], phase: EntryPhase) -> HookFn:
    """Return the hook that adds vectors to the values of the rows that enter, which have one position."""

    def hook_fn(value: Float[Tensor, "row _ d_model"], hook: object) -> Float[Tensor, "row 1 d_model"] | None:
        return value + added[:, None].to(value.dtype) if phase.entering else None

    return hook_fn


def _on_rows(rows: slice, function: PostFn) -> PostFn:
    """Return the function that changes some of the rows and leaves the others as they are."""

    def change(value: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
        return torch.cat([value[: rows.start], function(value[rows]), value[rows.stop :]])

    return change


def _select_after(n_below: int, select: Callable[..., Tensor]) -> HookFn:
    """Return the hook that keeps all positions of the first rows, and what ``select`` does of the later ones.

    A linear map takes them as the positions of one row.
    """

    def hook_fn(value: Float[Tensor, "row pos d"], hook: object) -> Float[Tensor, "_ _ d"]:
        if not n_below:
            return select(value, hook)
        whole = rearrange(value[:n_below], "row pos d -> 1 (row pos) d")
        selected = rearrange(select(value[n_below:], hook), "row 1 d -> 1 row d")
        return torch.cat([whole, selected], dim=1)

    return hook_fn


def _scatter_after(n_below: int, n_pos: int, scatter: Callable[..., Tensor]) -> HookFn:
    """Return the hook that undoes `_select_after` behind the linear map; ``scatter`` completes the later rows."""

    def hook_fn(value: Float[Tensor, "_ _ *d"], hook: object) -> Float[Tensor, "row pos *d"]:
        if not n_below:
            return scatter(value, hook)
        n_whole = n_below * n_pos
        whole = value[0, :n_whole].unflatten(0, (n_below, n_pos))
        return torch.cat([whole, scatter(value[0, n_whole:, None], hook)])

    return hook_fn


def _add_at(values: Float[Tensor, "row d"], post_pos: Int[Tensor, " row"]) -> PostFn:
    """Return the function that adds vectors at the moved position, or at the one position that there is."""

    def add(value: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
        addition = values[:, None].to(value.dtype)
        if value.shape[1] == 1:
            return value + addition
        return value.scatter_add(1, position_index(post_pos, value), addition)

    return add


def _replace_at(post: Float[Tensor, "row d_mlp"], post_pos: Int[Tensor, " row"]) -> PostFn:
    """Return the function that replaces activations at the moved position, or at the one position that there is."""

    def replace(value: Float[Tensor, "row pos d_mlp"]) -> Float[Tensor, "row pos d_mlp"]:
        replacement = post[:, None].to(value.dtype)
        if value.shape[1] == 1:
            return replacement
        return value.scatter(1, position_index(post_pos, value), replacement)

    return replace


def _record_post(post: dict[int, Tensor], layer: int, post_pos: Int[Tensor, " row"]) -> PostFn:
    """Return the function that records activations at the moved position and returns all of them unchanged."""

    def record(value: Float[Tensor, "row pos d_mlp"]) -> Float[Tensor, "row pos d_mlp"]:
        post[layer] = at_least_float32(value.detach().gather(1, position_index(post_pos, value)).squeeze(1))
        return value

    return record


def _record(cache: dict[str, Tensor], name: str, position: Int[Tensor, " row"] | None) -> HookFn:
    """Return the hook that records a value, at all positions or at one of each row."""

    def hook_fn(value: Float[Tensor, "row pos *d"], hook: object) -> None:
        value = value.detach()
        if position is None:
            cache[name] = value
        elif value.shape[1] == 1:  # of the last block there may be the read position alone
            cache[name] = value[:, 0]
        else:
            cache[name] = value.gather(1, position_index(position, value)).squeeze(1)

    return hook_fn


def _hook_at(hook_fn: HookFn, post_pos: Int[Tensor, " row"]) -> HookFn:
    """Return a hook that passes the moved position alone to another hook."""

    def hook(value: Float[Tensor, "row pos d_mlp"], hook: object) -> Float[Tensor, "row pos d_mlp"] | None:
        if value.shape[1] == 1:
            return hook_fn(value, hook)
        index = position_index(post_pos, value)
        changed = hook_fn(value.gather(1, index), hook)
        return None if changed is None else value.scatter(1, index, changed)

    return hook


def _hook_where_read(hook_fn: HookFn, state: _SinglePassState, rows: Int[Tensor, " row"]) -> HookFn:
    """Return a hook on the last block that leaves rows as they are whose moved position is not the one that is read."""

    def hook(value: Float[Tensor, "row 1 d"], hook: object) -> Float[Tensor, "row 1 d"] | None:
        changed = hook_fn(value, hook)
        return None if changed is None else state.in_last_block(rows, changed, value)

    return hook


def _hook_on_subset(hook_fn: HookFn, subset: Int[Tensor, " selected"], n_rows: int) -> HookFn:
    """Return a hook on some of the rows that another hook takes, which is called with zeros for the other rows."""

    def hook(value: Float[Tensor, "selected 1 d_mlp"], hook: object) -> Float[Tensor, "selected 1 d_mlp"] | None:
        all_rows = value.new_zeros(n_rows, *value.shape[1:]).index_copy(0, subset, value)
        changed = hook_fn(all_rows, hook)
        return None if changed is None else changed[subset]

    return hook


def _select_rows(additions: Additions, chosen: Bool[Tensor, " row"]) -> Additions:
    return {layer: (activation, values[chosen]) for layer, (activation, values) in additions.items()}
