"""``Host``: the names and operations that kn_lens uses of a ``TransformerBridge``.

What a hosted model offers is small:

    post_l  = activation at ``hook_post(l)``          [row, pos, d_mlp]
    mlp_l   = post_l @ W_out(l) + b_out               the value rows that attribution and edits refer to
    logits  = head(residual stream after the last block)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_lens._core.interrupts import entered, undone
from kn_lens._core.layout import ONE_MLP_A_LAYER, LayerLayout, NeuronLayout
from kn_lens._core.names import SIDES, Side
from kn_lens._core.wording import type_with_article, with_article
from kn_lens.errors import (
    ArgumentError,
    EditError,
    HookError,
    UnsupportedModelError,
    did_you_mean,
)
from kn_lens.hosts.checkpoints import check_finite, check_state, origin_of, output_settings
from kn_lens.hosts.encoder_decoder import STACKS, DecoderForm, EncoderInput
from kn_lens.hosts.exclusive import exclusively, leave_caller_modes
from kn_lens.hosts.experts import ActiveExperts, ExpertLayer, ExpertRows
from kn_lens.hosts.families import (
    BY_ARCHITECTURE,
    Kind,
    architecture_of,
    check_config,
    has_experts,
    longest_padding,
    needs_whole_passes,
    text_config,
)
from kn_lens.hosts.kv_prefix import KVPrefix
from kn_lens.hosts.model_protocol import HookFn, PostFn
from kn_lens.hosts.module_tree import modules_of, weights_of
from kn_lens.hosts.overrides import (
    HOOKS,
    WrappedModule,
    attention_by,
    caches_expanded_keys,
    eager_configs,
    fused_activations,
    native_norm_forwards,
    norm_bridges,
    override_forwards,
    own_modules,
    repack_like,
    select_position,
    without_hooks,
    wrapped_modules,
)
from kn_lens.hosts.row_entries import (
    EntryPhase,
    LeafPath,
    RowEntry,
    join_rows,
    row_leaves,
    select_row_leaves,
)
from kn_lens.hosts.shared_keys import IMPLEMENTATIONS, register_implementations
from kn_lens.hosts.tokenizers import fingerprint, tokenizer_of

FOR_ONE_BATCH = "for_one_batch"
"""The attribute of a hook function that is True where it is made for the rows of one batch, in their order."""

PROBE_ROUNDING = 64
"""Units of rounding, times the square root of the number of blocks, by which two ways to run a model may differ.

Where early tokens have large activations, as in SmolLM2, they do differ by more than 20.
"""

PROBE_LIMIT = 0.05
"""The difference beyond which it is not rounding in any type, relative to the logits."""

ROUNDING = 4
"""Units of rounding by which the output of ``W_out`` may differ from the matrix product."""

LinearMap = Literal["attn.q", "attn.k", "attn.v", "attn.o", "mlp.in"]
"""A linear map of a block, by its path in the block."""

LINEAR_MAPS: tuple[LinearMap, ...] = get_args(LinearMap)
_NOT_IN_FLOAT64 = ("xglm",)
"""Model types whose code in transformers puts the smallest number of float64 into a float32 tensor."""
CONTEXT_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
_RELATIVE_POSITIONS = ("bloom", "t5", "mt5")
"""Model types whose attention sees distances alone, so that no text is too long for them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Host:
    """A TransformerLens model that kn_lens can work on, seen through the operations that it needs.

    Attributes:
        model: the TransformerLens model.
        name: the name or path that it was loaded by.
        architecture: the Hugging Face class, such as ``BertForMaskedLM``.
        kind: ``masked`` (the answer is read at the mask token), ``causal`` (it is read at the last token) or
            ``encoder-decoder`` (it is read at the last token of the decoder).
        n_layers: number of blocks; of an encoder-decoder those of its ``side``, which all layers here are.
        d_model: width of the residual stream.
        d_mlp: neurons per layer: rows of ``W_out``, also where the MLP is gated. Where layers have experts, those of
            all experts together, of the layer that has most.
        d_vocab: number of logits.
        n_ctx: longest prompt in tokens; None where the positions have no limit.
        device: the device of all weights.
        dtype: the type of the weights.
        raw: False after TransformerLens has processed the weights (``enable_compatibility_mode``): ``W_out`` then no
            longer holds the checkpoint's rows, and the only possible edit is to erase neurons.
        whole_passes: True where no pass can start at a layer, because layers have other states than keys and values,
            or read those of lower layers or the output of an encoder: every pass then runs all of them.
        longest_padding: the longest padding that a prompt may have beside longer ones, in tokens; None where it is not
            limited.
        layout: how neurons are numbered within layers, where some layers have experts.
        origin: what was done to the stored weights before they were the model's, such as ``dequantised from x.gguf``;
            empty where they are as stored, or where that is not known.
        decoder: how the decoder of an encoder-decoder begins; None for other kinds.
        side: the stack of an encoder-decoder that layers and neurons are of; None where there is one stack.
    """

    model: Any = field(repr=False)
    name: str
    architecture: str
    kind: Kind
    n_layers: int
    d_model: int
    d_mlp: int
    d_vocab: int
    n_ctx: int | None
    device: torch.device
    dtype: torch.dtype
    raw: bool
    origin: str
    whole_passes: bool = False
    longest_padding: int | None = None
    layout: NeuronLayout = ONE_MLP_A_LAYER
    decoder: DecoderForm | None = None
    side: Side | None = None

    @property
    def reads_whole_text(self) -> bool:
        """Whether the model sees the text after the answer: it does unless it is a causal one."""
        return self.kind != "causal"

    @property
    def has_readouts(self) -> bool:
        """Whether the head reads what the layers write, so that a value row stands for logits; not in an encoder."""
        return self.side != "encoder"

    @property
    def blocks(self) -> Any:
        """The blocks, in order."""
        return getattr(self.model, self._stack)

    @property
    def _stack(self) -> str:
        """The name of the blocks in TransformerLens."""
        return _stack_of(self.side)

    # --- names of hooks ---------------------------------------------------------------------------

    def hook_post(self, layer: int) -> str:
        """Return the name of the hook on the MLP activations of ``layer``: the input of ``W_out``.

        Raises:
            ArgumentError: the model has no such layer.
            UnsupportedModelError: the layer has experts, whose activations no hook sees.
        """
        if self._checked(layer) in self.expert_layers:
            raise UnsupportedModelError(
                f"Layer {layer} of {self.name} has experts, on whose activations TransformerLens has no hook; "
                f"expected a layer with one MLP. {self.hook_mlp_in(layer)} and {self.hook_mlp_out(layer)} are hooks on "
                "what enters and leaves them."
            )
        return f"{self._stack}.{layer}.mlp.hook_post"

    def hook_mlp_in(self, layer: int) -> str:
        """Return the name of the hook on what enters the MLP of ``layer``."""
        return f"{self._stack}.{self._checked(layer)}.mlp.hook_in"

    def hook_mlp_out(self, layer: int) -> str:
        """Return the name of the hook on the output of ``W_out``, before any norm that the family puts after it."""
        if self._checked(layer) in self.expert_layers:
            return f"{self._stack}.{layer}.mlp.hook_out"
        return f"{self._stack}.{layer}.mlp.{self._out_name(layer)}.hook_out"

    def resid_pre(self, layer: int) -> str:
        """Return the name of the hook on the residual stream that enters ``layer``."""
        return f"{self._stack}.{self._checked(layer)}.hook_in"

    def resid_post(self, layer: int) -> str:
        """Return the name of the hook on the residual stream that leaves ``layer``."""
        return f"{self._stack}.{self._checked(layer)}.hook_out"

    def hook_attn_out(self, layer: int) -> str:
        """Return the name of the hook on the output of the attention of ``layer``."""
        attention = "self_attn" if self.side == "decoder" else "attn"
        return f"{self._stack}.{self._checked(layer)}.{attention}.hook_out"

    def activation_source(self, layer: int) -> "ActivationSource":
        """Return the hook that activations of ``layer`` are read from, and how."""
        expert_layer = self.expert_layers.get(self._checked(layer))
        if expert_layer is None:
            return ActivationSource(self.hook_post(layer), lambda post, rows: post[..., rows])
        return ActivationSource(self.hook_mlp_in(layer), expert_layer.activations_of)

    def linear_hooks(self, layer: int, linear_map: LinearMap) -> tuple[str, str]:
        """Return the names of the hooks before and after a linear map of a block of a masked model.

        Causal families fuse or split these maps in different ways, and lack some of the hooks.
        """
        stem = f"blocks.{self._checked(layer)}.{linear_map}"
        return f"{stem}.hook_in", f"{stem}.hook_out"

    @cached_property
    def has_linear_hooks(self) -> bool:
        """Whether `linear_hooks` exist, by which a block can leave out results that nothing reads.

        Of a model whose weights TransformerLens has processed, it locks some of them.
        """
        if self.kind != "masked" or not self.raw:
            return False
        names: set[str] = set()
        for linear_map in LINEAR_MAPS:
            names.update(self.linear_hooks(0, linear_map))
        return names <= self.hook_names  # some masked models have one map for queries, keys and values

    @cached_property
    def hook_names(self) -> frozenset[str]:
        """All hook names of the model, aliases included."""
        return frozenset(self._hook_points)

    def check_hooks(self, names: Iterable[Any]) -> None:
        """Raise unless every name is a hook of the model.

        Raises:
            HookError: with the unknown name and the nearest known one.
        """
        for name in names:
            if name in self.hook_names:
                continue
            near = did_you_mean(name, self.hook_names) if isinstance(name, str) else ""
            raise HookError(
                f"{self.name} has no hook {name!r}; expected one of the names in model.hook_dict (exact names, "
                f"not filters).{near}"
            )

    # --- weights ----------------------------------------------------------------------------------

    def W_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Return the value rows of ``layer``, live: writing to them (under ``torch.no_grad``) changes the model.

        Raises:
            UnsupportedModelError: the layer has experts, whose rows are not one matrix: see `value_rows`.
        """
        if self._checked(layer) in self.expert_layers:
            raise UnsupportedModelError(
                f"Layer {layer} of {self.name} has experts, whose value rows are not one W_out; expected a layer with "
                f"one MLP. host.value_rows({layer})[rows] reads some of them."
            )
        return self.blocks[layer].mlp.W_out

    def value_rows(self, layer: int) -> "Float[Tensor, 'd_mlp d_model'] | ExpertRows":
        """Return the value rows of ``layer``, live, to be read and written by row: ``rows[indices]``."""
        expert_layer = self.expert_layers.get(self._checked(layer))
        return self.W_out(layer).detach() if expert_layer is None else ExpertRows(expert_layer)

    def output_weights(self, layer: int) -> list[Tensor]:
        """Return the weights that hold the value rows of ``layer``."""
        expert_layer = self.expert_layers.get(self._checked(layer))
        return [self.W_out(layer)] if expert_layer is None else expert_layer.output_weights

    @cached_property
    def expert_layers(self) -> Mapping[int, ExpertLayer]:
        """The layers that have experts."""
        return expert_layers_of(self.blocks) if self.layout.has_experts else {}

    @cached_property
    def d_active(self) -> int:
        """Neurons of the widest layer whose activations a token has: ``d_mlp`` where no layer has experts."""
        if not self.layout.has_experts:
            return self.d_mlp
        dense = [layer.n_rows for layer in self.layout.layers if not layer.n_experts]
        return max([*dense, *(layer.d_active for layer in self.expert_layers.values())])

    def layers_with_rows_of(self, layer: int) -> list[int]:
        """Return the layers with the ``W_out`` of ``layer``: itself alone, unless layers share weights (ALBERT)."""
        address = self._row_addresses[self._checked(layer)]
        return [other for other, other_address in enumerate(self._row_addresses) if other_address == address]

    @cached_property
    def _row_addresses(self) -> list[int]:
        return [self.output_weights(layer)[0].data_ptr() for layer in range(self.n_layers)]

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_embed"]:
        """The input word embeddings, live. ``d_embed`` is ``d_model`` unless the model projects (ELECTRA, OPT-350m)."""
        return _embedding(self.model, self.side).W_E

    @property
    def unembedding(self) -> nn.Module:
        """The checkpoint's map from the residual stream to logits."""
        return self.model.unembed.original_component

    @property
    def checkpoint(self) -> nn.Module:
        """The module that holds the weights as the checkpoint does: the wrapped Hugging Face model."""
        return self.model.original_model

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's own tokenizer, unchanged by TransformerLens; None where there is none at hand.

        For a model that kn_lens did not load it is read again from where that of TransformerLens was read.
        """
        return None if self.model is None else tokenizer_of(self.model)  # a worker sends its host without model

    @cached_property
    def tokenizer_fingerprint(self) -> str | None:
        """The `fingerprint` of the tokenizer; None without a tokenizer."""
        return fingerprint(self.tokenizer)

    def has_adapter(self, layer: int) -> bool:
        """Return whether the last linear map of the MLP of ``layer`` has weights beside ``W_out`` and its bias."""
        expert_layer = self.expert_layers.get(self._checked(layer))
        if expert_layer is not None:
            return expert_layer.has_adapter
        out = self._out(layer)
        own = (out._parameters.get("weight"), out._parameters.get("bias"))
        return any(all(weight is not one for one in own) for weight in weights_of(modules_of(out)))

    def apply_W_out(self, layer: int, post: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_model"]:
        """Return the output of the last linear map of the MLP of ``layer`` for activations, without hooks.

        That is ``post @ W_out + b_out``, unless an adapter or a hook of PyTorch's works inside the module.
        """
        with torch.no_grad(), leave_caller_modes():
            return self._out(layer)(post.to(self.dtype))

    def _out(self, layer: int) -> nn.Module:
        """Return the checkpoint's last linear map of the MLP of a layer with one MLP."""
        return getattr(self.blocks[self._checked(layer)].mlp, self._out_name(layer)).original_component

    def _out_name(self, layer: int) -> str:
        return out_name(self.blocks[layer].mlp)

    def is_W_out_product(
        self,
        layer: int,
        post: Float[Tensor, "row d_mlp"],
        mlp_out: Float[Tensor, "row d_model"],
    ) -> bool:
        """Return whether ``mlp_out`` equals ``post @ W_out + b_out`` to rounding, in every row.

        It does not where the model computes something else beside this product, such as an adapter that adds to it.
        Cost: one product for each row.

        Args:
            layer: a layer of the model.
            post: activations, in float32 or float64.
            mlp_out: the values of ``hook_mlp_out`` for them, in the same type.
        """
        W_out = self.W_out(layer).detach().to(post.dtype)
        b_out = self.apply_W_out(layer, torch.zeros_like(post[:1])).to(post.dtype)
        with leave_caller_modes():
            distance = (mlp_out - (post @ W_out + b_out)).norm(dim=-1)
        # A product of n terms has a rounding error of a few units of the type of its terms, and its result of one unit
        # of its own type.
        of_terms = torch.finfo(post.dtype).eps * post.norm(dim=-1) * W_out.norm()
        of_result = torch.finfo(self.dtype).eps * mlp_out.norm(dim=-1)
        return bool((distance <= ROUNDING * (of_terms + of_result)).all())

    def writes_mlp_out(
        self,
        active: ActiveExperts,
        post: Float[Tensor, "row d_active"],
        mlp_out: Float[Tensor, "row d_model"],
    ) -> bool:
        """Return whether ``mlp_out`` of a layer with experts is what its activations write, to rounding, in every row.

        Experts compute in the type of the weights, products and weights of the routing one after another: the limit is
        in units of that type.

        Args:
            active: the layer under the rows.
            post: their activations in the active form.
            mlp_out: the values of ``hook_mlp_out`` for them.
        """
        with torch.no_grad(), leave_caller_modes():
            distance = (mlp_out - active.mlp_out(post)).norm(dim=-1)
            weights = active.expert_layer.output_weights
            largest = max(weight.detach().flatten(-2).norm(dim=-1).max() for weight in weights)
        limit = torch.finfo(self.dtype).eps * (post.norm(dim=-1) * largest + mlp_out.norm(dim=-1))
        return bool((distance <= ROUNDING * limit).all())

    def check_rows_editable(self, layers: Iterable[int]) -> None:
        """Raise unless the rows of ``W_out`` are weights of the model, and all that the activations are multiplied by.

        Cost: one product of one row for each layer.

        Raises:
            EditError: an adapter adds to the product, or each pass computes the rows from other weights.
        """
        storages = {weight.untyped_storage().data_ptr() for weight in weights_of(modules_of(self.checkpoint))}
        for layer in layers:
            if any(weight.untyped_storage().data_ptr() not in storages for weight in self.output_weights(layer)):
                raise EditError(
                    f"W_out of layer {layer} of {self.name} is no weight: each pass computes it from other weights (a "
                    "parametrisation, such as weight_norm), so that new rows would be lost. Remove the parametrisation "
                    "first: torch.nn.utils.parametrize.remove_parametrizations."
                )
            if self.has_adapter(layer) or not self._writes_rows(layer):
                raise EditError(
                    f"The output of the MLP of layer {layer} of {self.name} is not its activations times the rows of "
                    "W_out: an adapter (such as LoRA) or a hook of PyTorch's adds to it, which an edit of the rows "
                    "does not reach. Merge an adapter before kn_lens.load_model: "
                    "hf_model = peft_model.merge_and_unload(); remove a hook. Suppress and Amplify work with both."
                )

    def _writes_rows(self, layer: int) -> bool:
        """Return whether the output of the MLP of a layer is its activations times its value rows, for a random row."""
        generator = torch.Generator().manual_seed(0)
        dtype = torch.promote_types(self.dtype, torch.float32)
        expert_layer = self.expert_layers.get(layer)
        if expert_layer is None:
            probe = torch.randn(1, self.W_out(layer).shape[0], generator=generator, dtype=dtype).to(self.device)
            return self.is_W_out_product(layer, probe, self.apply_W_out(layer, probe).to(probe.dtype))
        probe = torch.randn(1, self.d_model, generator=generator, dtype=dtype).to(self.device, self.dtype)
        with torch.no_grad(), leave_caller_modes():
            active, post = expert_layer.active(probe, expert_layer.route(probe))
            mlp_out = expert_layer.block(probe[None])
        mlp_out = mlp_out[0] if isinstance(mlp_out, tuple) else mlp_out
        return self.writes_mlp_out(active, post, mlp_out[0].to(post.dtype))

    def check_changeable_experts(self, layer: int) -> None:
        """Raise unless what a change of activations writes can be added where the experts of ``layer`` are left.

        Cost: one pass of one token through the experts, where the model has hooks of the user or an adapter.

        Raises:
            HookError: hooks of the user, or an adapter, come between the activations and ``hook_mlp_out``.
        """
        name = self.hook_mlp_out(layer)
        is_hooked_there = any(map(_is_users, _hooks_on([self._hook_points[name]])))
        if not is_hooked_there:
            if not self.has_user_hooks and not self.has_adapter(layer):
                return
            if self._writes_rows(layer):
                return
        found = f"a hook is on {name}" if is_hooked_there else "an adapter or a hook of PyTorch's is in them"
        raise HookError(
            f"Neurons of the experts of layer {layer} of {self.name} cannot be changed by hooks: {found}, and changes "
            "are added to what the experts have written, after it. Remove it, or merge the adapter before "
            "kn_lens.load_model: hf_model = peft_model.merge_and_unload(). Your own hooks can act after a change: "
            "model.hooks(fwd_hooks=[*intervention.hooks(model, prompts), *own_hooks])."
        )

    def check_finite(self) -> None:
        """Raise if a weight is NaN or infinite. Reads every weight once.

        Raises:
            UnsupportedModelError: with the name of the weight.
        """
        check_finite(self.checkpoint, self.name)

    @property
    def norm_after_mlp(self) -> bool:
        """Whether the block normalises the output of ``W_out`` before it adds it to the residual stream.

        Gemma 2, OLMo 2 and others do. Scaling all neurons of such a layer changes nothing until they are almost zero.
        The answer is what a block computes, not what its modules are called: with the residual stream held, twice the
        output of ``W_out`` has the effect of the output itself. Hooks of the user's are off meanwhile. Cost, at the
        first use: one block of each class and the head for one token, three times.
        """
        # The model before the property: a thread that has the model must not wait for one that computes the property.
        with exclusively(self):
            return self._norm_after_mlp

    @cached_property
    def _norm_after_mlp(self) -> bool:
        layers: dict[type, int] = {}
        for layer, block in enumerate(self.blocks):
            layers.setdefault(type(block.original_component), layer)
        with without_hooks(self._modules, _is_users):
            return any(map(self._normalises_mlp_out, layers.values()))

    def _normalises_mlp_out(self, layer: int) -> bool:
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(2, 1, 1, self.d_model, generator=generator)
        resid, mlp_out = vectors.to(self.device, self.dtype)
        tokens = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        leaving: list[Tensor] = []

        def keep(value: Float[Tensor, "row pos d_model"], hook: object) -> None:
            leaving.append(value.detach().float())

        for factor in (0.0, 1.0, 2.0):
            output = factor * mlp_out
            hooks = [
                (
                    self.hook_mlp_out(layer),
                    lambda value, hook, output=output: output.view_as(value),
                ),
                (self.resid_post(layer), keep),
            ]
            with (
                torch.no_grad(),
                self.skip_blocks_below(layer, resid),
                self.skip_blocks_above(layer),
            ):
                self.logits(tokens, torch.ones_like(tokens), fwd_hooks=hooks, encoder=self._any_text(1))
        nothing, once, twice = leaving
        return bool((twice - once).norm() < 0.1 * (once - nothing).norm())

    # --- forward passes ---------------------------------------------------------------------------

    def logits(
        self,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row prefix_and_pos"] | None,
        read_pos: Int[Tensor, " row"] | None = None,
        fwd_hooks: Sequence[tuple[str, HookFn]] = (),
        prefix: KVPrefix | None = None,
        functions: Mapping[int, PostFn] | None = None,
        *,
        own: bool = False,
        position_ids: Int[Tensor, "row pos"] | None = None,
        encoder: EncoderInput | None = None,
    ) -> Float[Tensor, "row d_vocab"] | Float[Tensor, "row pos d_vocab"]:
        """Run the model on right-padded tokens, in the caller's grad mode.

        Args:
            tokens: token ids, padded on the right; of an encoder-decoder those of the decoder.
            attention_mask: 1 for tokens, 0 for padding; with ``own`` None where there is no padding.
            read_pos: compute the head at this position of each row alone: the same numbers, without ``pos * d_vocab``
                logits. Hooks on the head then see one position.
            fwd_hooks: in TransformerLens' form; called in order.
            prefix: keys and values of earlier tokens. ``tokens``, ``read_pos`` and the hooks are then about the later
                tokens alone, and the mask about both.
            functions: by layer, as `transform_post` takes them.
            own: run the checkpoint's modules without TransformerLens' wrappers around them (`has_own_modules`). The
                numbers are the same to rounding. What is left out are the hooks that nobody listens to, and what the
                wrappers compute for them: of a small model or a small batch, most of the time of a pass. Hooks must be
                at the entry or the exit of a wrapped module, and those of the user are not called.
            position_ids: with ``own``, the position of each token in its prompt, where tokens of the prefix are padded
                (`takes_padded_prefix`).
            encoder: what the encoder of an encoder-decoder reads. Where its output is known, the encoder is not run.

        Returns:
            Logits at ``read_pos``, or at every position.

        Raises:
            HookError: unknown hook name; raised before the model runs.
        """
        hooks = list(fwd_hooks)
        self.check_hooks(name for name, _ in hooks)
        head_forwards: dict[Any, Callable[..., Any]] = {}
        if read_pos is not None:
            hooks += self._head_hooks(read_pos)
            head_forwards = self._head_forwards(read_pos)
        if own:
            attention = None if prefix is None else prefix.attention
            if attention is None:
                attention = "sdpa" if self.fuses_attention else "eager"
            logits = self._run_own(tokens, attention_mask, prefix, hooks, functions, position_ids, attention=attention)
        else:
            with (
                entered(self.model.hooks(fwd_hooks=hooks)),
                self.transform_post(functions or {}),
                override_forwards(native_norm_forwards(self._norms) | head_forwards),
            ):
                assert attention_mask is not None
                if encoder is None:
                    logits = self._run(tokens, attention_mask, prefix)
                else:
                    logits = self._run_decoder(tokens, encoder)
        return logits if read_pos is None else logits.squeeze(1)

    def logits_at_read_pos(
        self,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row pos"],
        read_pos: Int[Tensor, " row"],
        fwd_hooks: Sequence[tuple[str, HookFn]] = (),
        encoder: EncoderInput | None = None,
    ) -> Float[Tensor, "row d_vocab"]:
        """Run a full pass under the user's hooks and return the logits at the read position.

        Where the user's hooks are on the model, the head runs at all positions, because hooks on it may read any of
        them; elsewhere at the read position alone. Arguments and errors are those of `logits`.

        Raises:
            HookError: the hooks of an intervention, which are made for one batch, are on the model.
        """
        if not self.has_user_hooks:
            encoder = None if encoder is None else self.encode(encoder)
            return self.logits(tokens, attention_mask, read_pos, fwd_hooks, encoder=encoder)
        if any(getattr(hook_fn, FOR_ONE_BATCH, False) for hook_fn in _hooks_on(self._modules)):
            raise HookError(
                f"Hooks of an intervention are on {self.name}. They are made for the rows of one batch, and the "
                "functions of kn_lens run a batch in parts and in another order. Pass interventions to measure; to "
                "attribute with neurons switched off, erase them: with erase_neurons(model, neurons).applied(model): "
                "..."
            )
        logits = self.logits(tokens, attention_mask, None, fwd_hooks, encoder=encoder)
        return logits[torch.arange(len(logits), device=logits.device), read_pos]

    def unembed(self, resid: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Return the logits of a residual stream, by final norm (or masked-LM transform) and unembedding.

        ``unembed(resid_post of the last layer at a position)`` equals the logits there. No block runs.

        Raises:
            UnsupportedModelError: the layers are those of an encoder, which no head reads.
        """
        if not self.has_readouts:
            raise UnsupportedModelError(
                f"What layers of the encoder of {self.name} write is read by its decoder, not by a head: it stands for "
                "no logits. The layers of the decoder have them: kn_lens.host_of(model)."
            )
        tokens = torch.zeros(len(resid), 1, dtype=torch.long, device=self.device)
        with self.skip_blocks_below(self.n_layers, resid[:, None]):
            return self.logits(tokens, torch.ones_like(tokens), encoder=self._any_text(len(resid))).squeeze(1)

    def encode(self, encoder: EncoderInput) -> EncoderInput:
        """Run the encoder, once for each different text, and return its input with the output; no gradients.

        Returned as it is where the output is known, and where passes run the encoder again: its layers are the host's,
        or the user's hooks are on the model.
        """
        if encoder.output is not None or self.side == "encoder" or self.has_user_hooks:
            return encoder
        texts, text_of_row = encoder.distinct()
        checkpoint: Any = self.checkpoint
        with torch.no_grad(), override_forwards(native_norm_forwards(self._norms)):
            encoded = checkpoint.get_encoder()(input_ids=texts.tokens, attention_mask=texts.attention_mask)
        return replace(encoder, output=encoded.last_hidden_state[text_of_row])

    def _any_text(self, n_rows: int) -> EncoderInput | None:
        """Return a text for the encoder, in passes in which it does not matter which; None without an encoder.

        For layers of the encoder it is one token, as many as there are in the residual stream that passes start from.
        For layers of the decoder it is two: the tensors that a block returns are told apart by their shapes.
        """
        if self.decoder is None:
            return None
        tokens = torch.zeros(1, 1 if self.side == "encoder" else 2, dtype=torch.long, device=self.device)
        encoder = self.encode(EncoderInput(tokens=tokens, attention_mask=torch.ones_like(tokens)))
        return encoder.select(torch.zeros(n_rows, dtype=torch.long, device=self.device))

    def kv_prefix(self, tokens: Int[Tensor, "row pos"]) -> KVPrefix | None:
        """Run a causal model on tokens, and return its keys and values, or None if it keeps none.

        Padding on the right changes nothing before it: it is cut off by `KVPrefix.first`.
        """
        config = self.checkpoint.config
        if not (self.has_own_modules and self._fills_cache):
            return KVPrefix.of(self.model, config, tokens)
        without_head: Any = self.checkpoint.base_model
        with own_modules(self._wrapped), override_forwards(self._fused_activations):
            return KVPrefix.of(without_head, config, tokens)

    @property
    def has_user_hooks(self) -> bool:
        """Whether the user has put hooks on the model, of TransformerLens' or PyTorch's kind.

        They may change any row and position, and belong to the function that is explained. Reads the lists of hooks of
        every module; runs nothing.
        """
        return any(map(_is_users, _hooks_on(self._modules)))

    # --- parts of forward passes ------------------------------------------------------------------

    def skip_blocks_below(
        self,
        layer: int,
        resid: Float[Tensor, "row pos d_model"],
        attn_out: Float[Tensor, "row pos d_model"] | None = None,
    ) -> AbstractContextManager[None]:
        """Start forward passes at ``layer`` with the residual stream ``resid``, for the time of a ``with`` block.

        The result is exact (the same operations on the same numbers) when ``resid`` is what ``resid_pre(layer)`` holds
        for the same tokens and mask. These must still be passed: masks, rotary tables and alibi are built from them.
        Gradients flow into ``resid``. Hooks on skipped blocks do not fire. The first use costs a pass over one token.

        Args:
            layer: first block to run, 0 to ``n_layers``; ``n_layers`` runs the head alone.
            resid: the input of that block.
            attn_out: the value of ``hook_attn_out(layer)``; the attention is then not run. The rest of a block works
                position by position, so that ``resid`` and ``attn_out`` may hold some of the positions alone;
                ``resid_pre(layer + 1)`` then holds the same positions.

        Raises:
            ArgumentError: ``layer`` out of range.
        """
        if isinstance(layer, bool) or not isinstance(layer, Integral) or not 0 <= layer <= self.n_layers:
            raise ArgumentError(f"Cannot start a pass at layer {layer!r}; expected 0 to {self.n_layers}.")
        blocks = self.blocks
        as_block_output, as_attn_output = self._output_forms
        forwards: dict[Any, Callable[..., Any]] = {}
        for block in blocks[:layer]:
            forwards[block] = lambda *_, **__: as_block_output(resid)
        if layer == 0:
            first = blocks[0]
            forwards[first] = lambda _, *args, **kwargs: type(first).forward(first, resid, *args, **kwargs)
        if attn_out is not None:
            forwards[blocks[layer].attn] = lambda *_, **__: as_attn_output(attn_out)
        return override_forwards(forwards)

    def enter_rows(
        self,
        entries: Mapping[int, RowEntry],
        phase: EntryPhase,
        n_rows: int,
        *,
        after_prefix: bool = False,
        several_tokens: bool = False,
        own: bool = False,
        padded: bool = False,
    ) -> AbstractContextManager[None]:
        """Let rows enter forward passes at several layers, for the time of a ``with`` block.

        The passes are over the tokens and masks of all rows, in the order of the layers where they enter. No block
        below the lowest runs. The results are those of `skip_blocks_below` at each of the layers. The first use costs
        two passes over a few tokens.

        Args:
            entries: by layer; at least one.
            phase: for hooks, which rows a block is running on.
            n_rows: the number of rows of all entries.
            after_prefix: whether the passes start after a prefix.
            several_tokens: whether they then run more than one token of each row.
            own: whether the passes run the checkpoint's own modules, see `logits`.
            padded: whether the prefix is padded.
        """
        as_block_output, as_attn_output = self._own_output_forms if own else self._output_forms
        leaves = self._row_leaves[own, after_prefix, padded, several_tokens]
        lowest = min(entries)
        forwards: dict[Any, Callable[..., Any]] = {}
        n_entered = 0
        for layer, wrapper in enumerate(self.blocks):
            block = wrapper.original_component if own else wrapper
            entry = entries.get(layer)
            if layer < lowest:
                forwards[block] = lambda resid, *_, **__: as_block_output(resid)
                continue
            forwards[block] = _entering_forward(
                run=block.forward,
                entry=entry,
                rows=range(n_entered, n_entered + (0 if entry is None else len(entry.resid_pre))),
                n_rows=n_rows,
                leaves=leaves[layer],
                phase=phase,
                as_output=as_block_output,
            )
            if entry is not None:
                attn = wrapper.attn.original_component if own else wrapper.attn
                forwards[attn] = _known_for_entering(attn.forward, as_attn_output(entry.attn_out), phase)
                n_entered += len(entry.resid_pre)
        return override_forwards(forwards)

    def skip_blocks_above(self, layer: int) -> AbstractContextManager[None]:
        """Make the head read the output of ``layer``, for the time of a ``with`` block: an early exit."""
        blocks = self.blocks
        last, above = blocks[self._checked(layer)], blocks[layer + 1 :]
        outputs: list[Any] = []
        stack = ExitStack()

        def skip(resid: Tensor, *_: Any, **__: Any) -> Any:
            return repack_like(outputs[-1])(resid)  # in the form in which the blocks of this model return it

        def enter() -> None:
            handle = last.register_forward_hook(lambda module, args, output: outputs.append(output))
            stack.callback(handle.remove)
            stack.enter_context(override_forwards(dict.fromkeys(above, skip)))

        return undone(enter, stack.close)

    def transform_post(self, functions: Mapping[int, PostFn]) -> AbstractContextManager[None]:
        """Pass activations through functions on their way to ``W_out``, for the time of a ``with`` block.

        A function takes ``[row, pos, d_mlp]`` and returns the values that replace them. It runs before every hook on
        ``hook_post``, whenever that was added: such hooks see its result.

        Args:
            functions: by layer.
        """
        forwards: dict[Any, Callable[..., Any]] = {}
        for layer, function in functions.items():
            point = self._hook_points[self.hook_post(layer)]
            forwards[point] = _in_rows(point, function)
        return override_forwards(forwards)

    def _run(
        self,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row prefix_and_pos"],
        prefix: KVPrefix | None,
    ) -> Float[Tensor, "row _ d_vocab"]:
        if self.kind == "masked":
            return self.model(tokens, attention_mask=attention_mask)
        # Padding comes after all tokens, and no token of a causal model sees what comes after it. With a mask, padding
        # longer than a sliding window would attend to nothing: NaN in float64, and in products with it at the tokens.
        return self.model(tokens, attention_mask=torch.ones_like(attention_mask), **_cache_options(prefix))

    def _run_decoder(
        self,
        tokens: Int[Tensor, "row pos"],
        encoder: EncoderInput,
    ) -> Float[Tensor, "row _ d_vocab"]:
        """Run the decoder on what the encoder has returned, or both."""
        options = {
            "attention_mask": encoder.attention_mask,
            "decoder_input_ids": tokens,
            # As in `_run`: no token of the decoder sees what comes after it. Without a mask some models make one, in
            # which the first token is padding.
            "decoder_attention_mask": torch.ones_like(tokens),
            "use_cache": False,
        }
        if encoder.output is None:
            return self.model(encoder.tokens, **options)
        from transformers.modeling_outputs import BaseModelOutput

        output: Any = encoder.output
        module: Any = self.checkpoint
        return module(encoder_outputs=BaseModelOutput(last_hidden_state=output), **options).logits

    def _run_own(
        self,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row prefix_and_pos"] | None,
        prefix: KVPrefix | None,
        hooks: Sequence[tuple[str, HookFn]] = (),
        functions: Mapping[int, PostFn] | None = None,
        position_ids: Int[Tensor, "row pos"] | None = None,
        *,
        attention: str = "eager",
    ) -> Float[Tensor, "row _ d_vocab"]:
        """Run the checkpoint's own modules, with functions and hooks before and after some of them."""
        before: dict[nn.Module, list[Callable[[Tensor], Tensor]]] = {}
        after: dict[nn.Module, list[Callable[[Tensor], Tensor]]] = {}
        for layer, function in (functions or {}).items():
            end = self._ends[self.hook_post(layer)]
            before.setdefault(end.module, []).append(_in_rows(end.point, function))
        for name, hook_fn in hooks:
            end = self._ends[name]
            at_end = after if end.is_output else before
            at_end.setdefault(end.module, []).append(_in_rows(end.point, _kept_or_changed(hook_fn, end.point)))
        forwards = dict(self._fused_activations)
        for module in before | after:
            forwards[module] = _between(before.get(module, []), module.forward, after.get(module, []))
        options: dict[str, Any] = {"attention_mask": attention_mask}
        if self.kind == "causal":
            options |= _cache_options(prefix)
            if position_ids is None:  # as in `_run`; no mask spares transformers a look at it, for which it waits
                options["attention_mask"] = None
            else:
                options["position_ids"] = position_ids
        by = nullcontext() if attention == "eager" else attention_by(attention, self._eager_configs)
        with own_modules(self._wrapped), override_forwards(forwards), by:
            return self.checkpoint(input_ids=tokens, return_dict=True, **options).logits

    @cached_property
    def has_own_modules(self) -> bool:
        """Whether passes can run the checkpoint's modules without TransformerLens' wrappers around them.

        They cannot where TransformerLens has processed the weights, or where a wrapper computes something else than the
        module in it. Cost: two passes over a few tokens at the first use.
        """
        if not self.raw:
            return False
        in_place = {place.wrapper for place in self._wrapped}
        for layer, block in enumerate(self.blocks):
            # The blocks of some families prepare, in a forward of their own, what their hooks need.
            is_general = type(block).forward.__module__.endswith(".generalized_components.block")
            if layer in self.expert_layers:
                mlp_ends = {self.hook_mlp_in(layer), self.hook_mlp_out(layer)}
            else:
                mlp_ends = {self.hook_post(layer)}
            has_ends = {block, getattr(block, "attn", None)} <= in_place and mlp_ends <= self._ends.keys()
            if not (is_general and has_ends):
                return False
        if self._head_entry not in self._ends or any(map(caches_expanded_keys, self.blocks)):
            return False
        wrapped = self._probe_logits(lambda tokens, mask: self.logits(tokens, mask))
        return self._runs_own_modules(wrapped, "eager")

    @cached_property
    def fuses_attention(self) -> bool:
        """Whether passes of the checkpoint's own modules compute attention by PyTorch's fused function.

        TransformerLens turns it off, because it needs the attention pattern; some models of transformers cannot do
        without the pattern either. Cost: two passes over a few tokens at the first use.
        """
        if self.device.type == "cpu":  # no faster there: measured on BERTs and GPT-2s
            return False
        if not (self.has_own_modules and getattr(self.checkpoint, "_supports_sdpa", False)):
            return False
        separate = self._probe_logits(lambda tokens, mask: self._run_own(tokens, mask, None))
        return self._runs_own_modules(separate, "sdpa")

    @cached_property
    def takes_padded_prefix(self) -> bool:
        """Whether prompts of different lengths can go through a causal model together, after a joined `KVPrefix`.

        Where positions are not those that it is told, or layers keep other states, they go by length. Cost: passes over
        two short prompts at the first use.
        """
        return self._equals_padded_prefix(1)

    @cached_property
    def takes_padded_prefix_of_tokens(self) -> bool:
        """Whether they can where several tokens of each prompt are run after the joined `KVPrefix`.

        Cost: passes over two short prompts at the first use.
        """
        return self.runs_tokens_after_prefix and self._equals_padded_prefix(2)

    def _equals_padded_prefix(self, n_tokens: int) -> bool:
        """Return whether the last tokens of two prompts of different lengths give, run together, the logits of each."""
        if self.kind != "causal" or not self.has_own_modules:
            return False
        lengths = (5, 3)
        tokens = torch.arange(1, 11, device=self.device).view(2, 5) % self.d_vocab
        last = torch.tensor(lengths, device=self.device) - 1
        positions = last[:, None] + torch.arange(1 - n_tokens, 1, device=self.device)
        every = torch.arange(2, device=self.device)
        with torch.no_grad():
            expected = self.logits(tokens, torch.ones_like(tokens), last)
            prefixes = [self.kv_prefix(tokens[[row], : length - n_tokens]) for row, length in enumerate(lengths)]
            prefix = KVPrefix.joined(prefixes, every)
            if prefix is None:
                return False
            mask = torch.ones_like(tokens)
            mask[1, : lengths[0] - lengths[1]] = 0
            prefix = prefix.select([every] * self.n_layers)
            last_tokens = tokens.gather(1, positions)
            read_pos = torch.full_like(last, n_tokens - 1)
            try:
                logits = self.logits(last_tokens, mask, read_pos, (), prefix, own=True, position_ids=positions)
            except (RuntimeError, TypeError, ValueError):  # it takes no positions
                return False
        return self._equal_to_rounding(logits, expected)

    @cached_property
    def runs_tokens_after_prefix(self) -> bool:
        """Whether passes through a causal model can run the last tokens of a prompt after a `KVPrefix` of the others.

        They can where each layer keeps all keys and values, and the model's own modules and TransformerLens' wrappers
        both give the numbers of whole passes. Cost: three passes over two short prompts at the first use.
        """
        if self.kind != "causal" or not self.has_own_modules:
            return False
        tokens = torch.arange(1, 11, device=self.device).view(2, 5) % self.d_vocab
        mask = torch.ones_like(tokens)
        with torch.no_grad():
            expected = self.logits(tokens, mask)[:, 2:]
            prefix = self.kv_prefix(tokens[:, :2])
            if prefix is None or not prefix.is_plain:
                return False
            every = [torch.arange(2, device=self.device)] * self.n_layers
            for own in (False, True):
                try:
                    logits = self.logits(tokens[:, 2:], mask, prefix=prefix.select(every), own=own)
                except (RuntimeError, TypeError, ValueError):  # it takes one token after its keys and values
                    return False
                if not self._equal_to_rounding(logits, expected):
                    return False
        return True

    @cached_property
    def shared_keys(self) -> str | None:
        """The attention by which rows share the keys and values of their prompts, for `KVPrefix.share`, or None.

        None where the model's attention is not one that transformers looks up by name, or computes something else
        beside. Cost: a few passes over two short prompts at the first use.
        """
        if self.device.type != "cpu":  # no sizes of tables are known there without waiting for the device
            return None
        if self.kind != "causal" or not self.has_own_modules or not self._eager_configs:
            return None
        register_implementations()
        tokens = torch.arange(1, 11, device=self.device).view(2, 5) % self.d_vocab
        rows = torch.tensor([1, 0, 1, 1], device=self.device)
        every = [rows] * self.n_layers
        mask = torch.ones_like(tokens)
        position_ids = None
        if self.takes_padded_prefix:
            mask[1, :2] = 0
            position_ids = (mask.sum(-1, keepdim=True) - 1)[rows]
        with torch.no_grad():
            prefix = self.kv_prefix(tokens[:, :-1])
            if prefix is None or not prefix.is_plain:
                return None
            last, mask = tokens[rows, -1:], mask[rows]
            expected = self._run_own(last, mask, prefix.select(every), position_ids=position_ids)
            for attention in IMPLEMENTATIONS:
                shared = prefix.share(every, attention)
                try:
                    logits = self._run_own(last, mask, shared, position_ids=position_ids, attention=attention)
                except (RuntimeError, TypeError, ValueError):
                    continue
                if self._equal_to_rounding(logits, expected):
                    return attention
        return None

    def _probe_logits(
        self, run: Callable[[Int[Tensor, "row pos"], Int[Tensor, "row pos"]], Tensor]
    ) -> Float[Tensor, "token d_vocab"]:
        """Return the logits of the tokens of two short prompts, of which one is padded."""
        tokens = torch.arange(1, 11, device=self.device).view(2, 5) % self.d_vocab
        mask = torch.ones_like(tokens)
        mask[1, 3:] = 0
        with torch.no_grad():
            return run(tokens, mask)[mask.bool()]

    def _runs_own_modules(self, expected: Float[Tensor, "token d_vocab"], attention: str) -> bool:
        """Return whether the checkpoint's own modules give the expected logits of `_probe_logits`, to rounding."""
        try:
            logits = self._probe_logits(lambda tokens, mask: self._run_own(tokens, mask, None, attention=attention))
        except (RuntimeError, TypeError, ValueError):  # fused attention cannot cap its scores, for one
            return False
        return self._equal_to_rounding(logits, expected)

    def _equal_to_rounding(self, logits: Float[Tensor, "*_"], expected: Float[Tensor, "*_"]) -> bool:
        tolerance = PROBE_ROUNDING * torch.finfo(self.dtype).eps * self.n_layers**0.5
        return bool((logits - expected).norm() <= min(tolerance, PROBE_LIMIT) * expected.norm())

    @cached_property
    def _fills_cache(self) -> bool:
        """Whether TransformerLens' wrappers, which run the clean pass after a prefix, keep keys and values."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        return KVPrefix.of(self.model, self.checkpoint.config, token) is not None

    @cached_property
    def _fused_activations(self) -> Mapping[Any, Callable[..., Any]]:
        return fused_activations(self.checkpoint)

    @cached_property
    def _eager_configs(self) -> list[Any]:
        return eager_configs(self.checkpoint)

    @cached_property
    def _wrapped(self) -> list[WrappedModule]:
        return wrapped_modules(self.checkpoint)

    @cached_property
    def _ends(self) -> Mapping[str, "_ModuleEnd"]:
        """By the name of a hook: the module of the checkpoint at whose entry or exit it is, for those that are."""
        by_point: dict[Any, _ModuleEnd] = {}
        for place in self._wrapped:
            for is_output, point in enumerate((place.wrapper.hook_in, place.wrapper.hook_out)):
                by_point[point] = _ModuleEnd(module=place.own, is_output=bool(is_output), point=point)
        return {name: by_point[point] for name, point in self._hook_points.items() if point in by_point}

    @cached_property
    def _hook_points(self) -> Mapping[str, Any]:
        return self.model.hook_dict

    @cached_property
    def _modules(self) -> tuple[nn.Module, ...]:
        # The Hugging Face model has a root module of its own, beside that of TransformerLens.
        return tuple(modules_of(self.model, self.checkpoint))

    @cached_property
    def _norms(self) -> list[nn.Module]:
        return norm_bridges(self._modules)

    def _head_hooks(self, read_pos: Int[Tensor, " row"]) -> list[tuple[str, HookFn]]:
        """Return the hooks by which the head runs at one position of each row."""
        return [(self._head_entry, select_position(read_pos))]

    def _head_forwards(self, read_pos: Int[Tensor, " row"]) -> dict[Any, Callable[..., Any]]:
        """Return the forwards, for `override_forwards`, by which it does where there is no such hook."""
        return {}

    @cached_property
    def _head_entry(self) -> str:
        """The hook where one position is selected: before the masked-LM transform, which works on each position."""
        return "mlm_head.hook_in" if "mlm_head.hook_in" in self.hook_names else "unembed.hook_in"

    @cached_property
    def _output_forms(self) -> tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]:
        """The functions that give a tensor the form in which a block, and its attention, return it."""
        return self._find_output_forms(own=False)

    @cached_property
    def _own_output_forms(self) -> tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]:
        """The same for the checkpoint's own blocks."""
        return self._find_output_forms(own=True)

    def _find_output_forms(self, *, own: bool) -> tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]:
        outputs: list[Any] = []
        handles: list[Any] = []

        def watch() -> None:
            first = self.blocks[0]
            # In the order in which they finish. A first block without attention has no output of one to replace.
            for wrapper in (getattr(first, "attn", first), first):
                module = wrapper.original_component if own else wrapper
                handles.append(module.register_forward_hook(lambda module, args, output: outputs.append(output)))

        def unwatch() -> None:
            for handle in handles:
                handle.remove()

        with undone(watch, unwatch):
            tokens = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            with torch.no_grad():
                self.logits(tokens, torch.ones_like(tokens), own=own, encoder=self._any_text(1))
        return repack_like(outputs[-1]), repack_like(outputs[0])

    @cached_property
    def _row_leaves(self) -> "_RowLeaves":
        return _RowLeaves(self)

    def find_row_leaves(
        self, *, own: bool, after_prefix: bool, padded: bool, several_tokens: bool
    ) -> list[set[LeafPath]]:
        """Return, by block, the places of the tensors with entries for each row among the arguments of its call.

        Compares passes over two and over three rows.
        """
        arguments: dict[int, list[Any]] = {}
        for n_rows in (2, 3):
            tokens = torch.zeros(n_rows, 3 if several_tokens else 2, dtype=torch.long, device=self.device)
            mask = torch.ones_like(tokens)
            prefix = position_ids = None
            if after_prefix:
                prefix = self.kv_prefix(tokens[:, :1])
                tokens = tokens[:, 1:]
            if padded:
                position_ids = torch.ones_like(tokens)
            if padded or not after_prefix:
                mask[0, 0 if padded else 1] = 0  # some models get no mask where nothing is padding
            arguments[n_rows] = [None] * self.n_layers
            forwards: dict[Any, Callable[..., Any]] = {}
            for layer, wrapper in enumerate(self.blocks):
                block = wrapper.original_component if own else wrapper
                forwards[block] = _recorded(block.forward, arguments[n_rows], layer)
            with torch.no_grad(), override_forwards(forwards):
                self.logits(tokens, mask, prefix=prefix, own=own, position_ids=position_ids)
        return [row_leaves(two, three) for two, three in zip(arguments[2], arguments[3], strict=True)]

    def _checked(self, layer: int) -> int:
        if isinstance(layer, bool) or not isinstance(layer, Integral) or not 0 <= layer < self.n_layers:
            raise ArgumentError(f"{self.name} has no layer {layer!r}; expected 0 to {self.n_layers - 1}.")
        return layer


@dataclass(frozen=True)
class ActivationSource:
    """Where the activations of a layer are read: `of(value, rows)` are those of the neurons of some rows.

    Attributes:
        hook: the name of the hook.
        of: a function of the hook's value, ``[*token d]``, and of rows, that returns ``[*token row]``.
    """

    hook: str
    of: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class _ModuleEnd:
    """The entry or the exit of a module of the checkpoint.

    Attributes:
        module: of the checkpoint.
        is_output: whether it is the exit.
        point: the hook point that TransformerLens' wrapper has there.
    """

    module: nn.Module
    is_output: bool
    point: Any


class _RowLeaves(dict[tuple[bool, bool, bool, bool], list[set[LeafPath]]]):
    """`Host.find_row_leaves` by its arguments, each found at its first use."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host

    def __missing__(self, key: tuple[bool, bool, bool, bool]) -> list[set[LeafPath]]:
        own, after_prefix, padded, several_tokens = key
        self[key] = self._host.find_row_leaves(
            own=own, after_prefix=after_prefix, padded=padded, several_tokens=several_tokens
        )
        return self[key]


def bridge_host(model: Any, side: str | None = None) -> Host:
    """Check a TransformerBridge, and describe it. Runs nothing.

    Args:
        model: the model.
        side: the stack of an encoder-decoder whose layers are meant; None for its decoder.

    Raises:
        UnsupportedModelError: as ``host_of``.
        ArgumentError: as ``host_of``.
    """
    hf_model: Any = getattr(model, "original_model", None)
    if not hasattr(getattr(hf_model, "config", None), "model_type"):
        raise UnsupportedModelError(
            f"This TransformerBridge wraps {type_with_article(hf_model)}; expected one that wraps a Hugging Face "
            "model, as kn_lens.load_model and TransformerBridge.boot_transformers make it."
        )
    name = str(model.cfg.model_name)
    architecture = architecture_of(hf_model)
    kind = check_config(hf_model.config, architecture, name)
    checked = checked_side(side, kind, name)
    modules = modules_of(hf_model)
    check_state(hf_model, name, modules)
    _check_outputs(modules, name)
    hooks = model.hook_dict
    _check_ends(hooks, name)
    stack = _stack_of(checked)
    blocks = getattr(model, stack, [None])
    expert_layers = expert_layers_of(blocks) if has_experts(hf_model.config) else {}
    width = getattr(text_config(hf_model.config), "hidden_size", None)
    layers: list[LayerLayout] = []
    weights: list[Tensor] = []
    for layer, block in enumerate(blocks):
        if layer in expert_layers:
            layers.append(expert_layers[layer].layout)
            weights.append(expert_layers[layer].shared_rows)
        else:
            rows = _checked_W_out(block, layer, hooks.get(f"{stack}.{layer}.mlp.hook_post"), width, name)
            layers.append(LayerLayout(n_rows=rows.shape[0]))
            weights.append(rows)
    shapes = {tuple(weight.shape) for weight in weights}
    if len(shapes) > 1 and not expert_layers:
        listed = ", ".join(str(shape) for shape in sorted(shapes))
        raise UnsupportedModelError(f"{name}: W_out differs between layers ({listed}); expected one shape.")
    W_out = weights[0]
    if W_out.dtype == torch.float64 and hf_model.config.model_type in _NOT_IN_FLOAT64:
        raise UnsupportedModelError(
            f"{name}: transformers cannot run {with_article(architecture)} in float64; load it in torch.float32."
        )
    return Host(
        model=model,
        name=name,
        architecture=architecture,
        kind=kind,
        n_layers=len(blocks),
        d_model=W_out.shape[1],
        d_mlp=max(layer.n_rows for layer in layers),
        d_vocab=_embedding(model, checked).W_E.shape[0],
        n_ctx=_context_length(model),
        device=W_out.device,
        dtype=W_out.dtype,
        origin=origin_of(model),
        raw=not getattr(model, "_weights_processed", model.compatibility_mode),
        whole_passes=needs_whole_passes(hf_model.config) or not _has_attention(model, hooks),
        longest_padding=longest_padding(hf_model.config, kind),
        layout=NeuronLayout(tuple(layers)) if expert_layers else ONE_MLP_A_LAYER,
        decoder=_decoder_form(hf_model.config, architecture),
        side=checked,
    )


def checked_side(side: Any, kind: Kind, name: str) -> Side | None:
    """Return the stack whose layers are meant: of an encoder-decoder the decoder, unless the encoder is asked for.

    Raises:
        ArgumentError: another value, or a side of a model that has one stack.
    """
    if side is not None and side not in SIDES:
        raise ArgumentError(f"side={side!r}; expected 'decoder' or 'encoder'.{did_you_mean(str(side), SIDES)}")
    if kind == "encoder-decoder":
        return side or "decoder"
    if side is not None:
        raise ArgumentError(
            f"side={side!r}, and {name} is {with_article(kind)} model, which has one stack of layers; leave side out."
        )
    return None


def _decoder_form(config: Any, architecture: str) -> DecoderForm | None:
    """Return how the decoder of an encoder-decoder begins; None for other kinds."""
    family = BY_ARCHITECTURE.get(architecture)
    if family is None or family.writes is None:
        return None
    return DecoderForm.of(config, family.writes)


def _stack_of(side: Side | None) -> str:
    """Return the name of the blocks in TransformerLens."""
    return "blocks" if side is None else STACKS[side]


def _embedding(model: Any, side: Side | None) -> Any:
    """Return the word embeddings of a bridge; those of a side, where it has its own."""
    own = None if side is None else getattr(model, f"{side}_embed", None)
    return model.embed if own is None else own


def _check_outputs(modules: Iterable[nn.Module], name: str) -> None:
    """Raise unless passes of a model of some modules return their logits by name."""
    for setting in output_settings(modules):
        raise UnsupportedModelError(
            f"{name} has {setting.name}={setting.value} in its configuration, with which passes of parts of it fail; "
            f"expected {not setting.value}, which kn_lens.load_model sets: "
            f"model.original_model.config.{setting.name} = {not setting.value}."
        )


def _check_ends(hooks: Mapping[str, Any], name: str) -> None:
    """Raise unless the word embeddings and the unembedding of a bridge are mapped, by its hooks."""
    for component in ("embed", "unembed"):
        if f"{component}.hook_in" not in hooks and f"decoder_{component}.hook_in" not in hooks:
            raise UnsupportedModelError(
                f"{name}: its adapter maps no {component!r}; expected one that maps 'embed', 'blocks' and 'unembed'."
            )


def first_hooked(module: nn.Module) -> str | None:
    """Return the path of the first submodule with hooks of the user, or a changed forward; None where there is none."""
    for path, part in module.named_modules():
        if any(map(_is_users, _hooks_on([part]))):
            return path
    return None


def out_name(mlp: Any) -> str:
    """Return the name of the last linear map of one MLP, which is another where other layers have experts."""
    return "out" if hasattr(mlp, "out") else "dense_out"


def expert_layers_of(blocks: Any) -> dict[int, ExpertLayer]:
    """Return which of the blocks of a bridge have experts."""
    layers: dict[int, ExpertLayer] = {}
    for number, block in enumerate(blocks):
        layer = ExpertLayer.of(number, getattr(block, "mlp", None))
        if layer is not None:
            layers[number] = layer
    return layers


def _checked_W_out(
    block: Any, layer: int, hook_post: Any, width: int | None, name: str
) -> Float[Tensor, "d_mlp d_model"]:
    """Return the value rows of a block that has one dense MLP, whose ``hook_post`` is the input of its ``W_out``.

    Args:
        block: the block.
        layer: its number.
        hook_post: the hook point of that name; None where there is none.
        width: of the residual stream; None where the configuration does not tell.
        name: of the model.

    Raises:
        UnsupportedModelError: the block has no such MLP.
    """
    mlp = getattr(block, "mlp", None)
    out = getattr(mlp, out_name(mlp), None)
    W_out = None if out is None or hook_post is not out.hook_in else block.mlp.W_out
    if W_out is None or W_out.ndim != 2:
        raise UnsupportedModelError(
            f"{name}: hook_post of layer {layer} is not the input of a W_out (the layer is a mixture of experts, "
            "or has no MLP); expected one dense MLP in every block. Load a dense model."
        )
    shape = tuple(W_out.shape)
    if width is not None and shape[1] != width:
        raise UnsupportedModelError(
            f"{name}: W_out of layer {layer} has the shape {shape}; expected rows of the residual stream's width, "
            f"{width}. The adapter maps another weight as W_out."
        )
    if 0 in shape:
        raise UnsupportedModelError(
            f"{name}: layer {layer} has no neurons (W_out has the shape {shape}); expected "
            "at least one. Load a checkpoint with MLPs."
        )
    return W_out


def _has_attention(model: Any, hooks: Mapping[str, Any]) -> bool:
    """Return whether every block has attention, whose output a pass can start from."""
    return all(f"blocks.{layer}.attn.hook_out" in hooks for layer in range(len(getattr(model, "blocks", ()))))


def _context_length(model: Any) -> int | None:
    config = text_config(model.original_model.config)
    if config.model_type in _RELATIVE_POSITIONS:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # One longer prompt would turn the rotary angles of all prompts in its batch into those for long prompts.
        return rope["original_max_position_embeddings"]
    lengths = [getattr(config, key, None) for key in CONTEXT_LENGTHS]
    length = next((length for length in lengths if length), None)
    # RoBERTa and its relatives count positions from padding_idx + 1 and reserve the rows of the table before it.
    table = getattr(getattr(model, "pos_embed", None), "original_component", None)
    reserved = getattr(table, "padding_idx", None)
    return length if length is None or reserved is None else length - reserved - 1


def _in_rows(point: Any, function: PostFn) -> Callable[[Tensor], Tensor]:
    """Return the forward of a hook point that applies a function to activations as the hooks of the point see them.

    Where the checkpoint joins rows and positions (OPT), TransformerLens separates them for hooks alone.
    """

    def forward(value: Tensor) -> Tensor:
        conversion = point.hook_conversion
        return function(value) if conversion is None else conversion.revert(function(conversion.convert(value)))

    return forward


def _entering_forward(
    *,
    run: Callable[..., Any],
    entry: RowEntry | None,
    rows: range,
    n_rows: int,
    leaves: set[LeafPath],
    phase: EntryPhase,
    as_output: Callable[[Tensor], Any],
) -> Callable[..., Any]:
    """Return the forward of a block that runs on the rows that entered below, and on those that enter.

    Args:
        run: the forward of the block.
        entry: the rows that enter; None where none do.
        rows: their numbers in the pass; the rows before them entered below.
        n_rows: the number of rows of the pass.
        leaves: the places of the arguments that have entries for each row.
        phase: set for the time in which the rows that enter are run.
        as_output: gives a tensor the form in which the block returns it.
    """

    def run_on(part: Tensor, arguments: Any, start: int, stop: int) -> Tensor:
        args, kwargs = select_row_leaves(arguments, leaves, start, stop, n_rows)
        output = run(part, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def forward(resid: Tensor, *args: Any, **kwargs: Any) -> Any:
        parts = []
        if rows.start:
            parts.append(run_on(resid, (args, kwargs), 0, rows.start))
        if entry is not None:
            phase.entering = True
            try:
                leaving = run_on(entry.resid_pre, (args, kwargs), rows.start, rows.stop)
            finally:
                phase.entering = False
            parts.append(entry.complete(leaving))
        return as_output(join_rows(parts))

    return forward


def _known_for_entering(run: Callable[..., Any], known: Any, phase: EntryPhase) -> Callable[..., Any]:
    """Return the forward of an attention whose output is known for the rows that enter."""
    return lambda *args, **kwargs: known if phase.entering else run(*args, **kwargs)


def _kept_or_changed(hook_fn: HookFn, point: Any) -> Callable[[Tensor], Tensor]:
    """Return the function of a value that a hook is, which may return None to keep it."""

    def change(value: Tensor) -> Tensor:
        changed = hook_fn(value, hook=point)
        return value if changed is None else changed

    return change


def _between(
    before: Sequence[Callable[[Tensor], Tensor]],
    run: Callable[..., Any],
    after: Sequence[Callable[[Tensor], Tensor]],
) -> Callable[..., Any]:
    """Return the forward of a module with functions of its first argument before it, and of its output after it."""

    def forward(value: Tensor, *args: Any, **kwargs: Any) -> Any:
        for function in before:
            value = function(value)
        output = run(value, *args, **kwargs)
        if not after:
            return output
        first = output[0] if isinstance(output, tuple) else output  # routers' scores may come with it
        for function in after:
            first = function(first)
        return (first, *output[1:]) if isinstance(output, tuple) else first

    return forward


def _cache_options(prefix: KVPrefix | None) -> dict[str, Any]:
    return {"use_cache": False} if prefix is None else {"use_cache": True, "past_key_values": prefix.cache}


def _recorded(run: Callable[..., Any], arguments: list[Any], layer: int) -> Callable[..., Any]:
    """Return the forward of a block that also keeps its arguments beside the residual stream."""

    def forward(resid: Tensor, *args: Any, **kwargs: Any) -> Any:
        arguments[layer] = (args, kwargs)
        return run(resid, *args, **kwargs)

    return forward


def _hooks_on(modules: Iterable[Any]) -> Iterator[Any]:
    """Yield the functions that modules call beside, or instead of, the ``forward`` of their class.

    TransformerLens wraps a hook for PyTorch and, from version 4 on, keeps the original beside the wrapper; version 3
    keeps none, and puts no hooks on a model itself.
    """
    for module in modules:
        # Read as they are stored, since a module looks for an attribute that it lacks in all its weights and parts.
        attributes = vars(module)
        handles = [*attributes.get("fwd_hooks", ()), *attributes.get("bwd_hooks", ())]
        for handle in handles:
            yield getattr(handle, "user_hook", None)
        for name in HOOKS:
            for hook_fn in attributes[name].values():
                if not handles or _module_of(hook_fn) != "transformer_lens.hook_points":
                    yield hook_fn
        if "forward" in attributes:
            yield attributes["forward"]


def _is_users(hook_fn: Any) -> bool:
    """Return whether a hook is the user's: not of TransformerLens, nor of transformers, which records outputs by it."""
    return not _module_of(hook_fn).startswith(("transformer_lens.model_bridge.", "transformers.utils."))


def _module_of(function: Any) -> str:
    function = getattr(function, "func", function)  # of a partial
    return getattr(function, "__module__", None) or ""
