"""What the rest of kn_lens sees of a model: the few names and operations it needs of a ``TransformerBridge``."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_lens._exclusive import own_modes
from kn_lens._families import Kind
from kn_lens._interrupts import Undone, entered
from kn_lens._loading import check_finite, fingerprint
from kn_lens._prefix import Prefix
from kn_lens._splicing import HOOKS, at, forwards, norms_in, plain_norms, returning
from kn_lens.errors import ArgumentError, EditError, HookError, did_you_mean

HookFn = Callable[..., Tensor | None]
PostFn = Callable[[Float[Tensor, "row pos d_mlp"]], Float[Tensor, "row pos d_mlp"]]

OF_ROWS = "of_rows"
"""The attribute of a hook that is for the rows of one batch, in their order."""

ROUNDING = 4
"""By how many units of rounding the output of ``W_out`` may differ from the product that it should be."""

Part = Literal["attn.q", "attn.k", "attn.v", "attn.o", "mlp.in"]  # a linear map of a block


@dataclass(frozen=True, kw_only=True, eq=False)
class Host:
    """A model that kn_lens can work on, seen through the operations it needs.

    Attributes:
        model: the TransformerLens model.
        name: the name or path it was loaded by.
        architecture: the Hugging Face class, such as ``BertForMaskedLM``.
        kind: ``masked`` (reads the answer at the mask) or ``causal`` (reads it after the last token).
        n_layers: number of blocks.
        d_model: width of the residual stream.
        d_mlp: neurons per layer: rows of ``W_out``, also where the MLP is gated.
        d_vocab: number of logits.
        n_ctx: longest prompt in tokens; None where the positions have no limit.
        device: where all the weights are.
        dtype: of the weights.
        tokenizer: the checkpoint's own, as it came; None when the model was handed over without one.
        raw: False after TransformerLens has processed the weights (``enable_compatibility_mode``): ``W_out`` then no
            longer holds the checkpoint's rows, and edits can do no more than erase them.
        norm_after_mlp: True where the block normalises what ``W_out`` writes before adding it to the residual stream
            (Gemma 2, Gemma 3, OLMo 2). Scaling all neurons of such a layer changes nothing until they are almost zero.
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
    tokenizer: Any = field(repr=False)
    raw: bool
    norm_after_mlp: bool

    def hook_post(self, layer: int) -> str:
        """Return the name of the hook on the MLP activations of ``layer``: the input of ``W_out``.

        Raises:
            ArgumentError: the model has no such layer.
        """
        return f"blocks.{self._checked(layer)}.mlp.hook_post"

    def hook_mlp_out(self, layer: int) -> str:
        """Return the name of the hook on the output of ``W_out``, before any norm the family puts after it."""
        return f"blocks.{self._checked(layer)}.mlp.out.hook_out"

    def resid_pre(self, layer: int) -> str:
        """Return the name of the hook on the residual stream that enters ``layer``."""
        return f"blocks.{self._checked(layer)}.hook_in"

    def resid_post(self, layer: int) -> str:
        """Return the name of the hook on the residual stream that leaves ``layer``."""
        return f"blocks.{self._checked(layer)}.hook_out"

    def W_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Return the value rows of ``layer``, live: writing to them (under ``torch.no_grad``) changes the model."""
        return self.model.blocks[self._checked(layer)].mlp.W_out

    def has_adapter(self, layer: int) -> bool:
        """Return whether the last map of the MLP of ``layer`` has other weights than ``W_out`` and its bias."""
        out = self.model.blocks[self._checked(layer)].mlp.out.original_component
        return not {name for name, _ in out.named_parameters()} <= {"weight", "bias"}

    def check_live_rows(self, layers: Iterable[int]) -> None:
        """Raise unless rows of ``W_out`` are weights of the model, and nothing else is made of its activations.

        Cost: one product of one row for each layer.

        Raises:
            EditError: an adapter adds to the product, or the rows are computed from other weights at each pass.
        """
        storages = {weight.untyped_storage().data_ptr() for weight in self.checkpoint.parameters()}
        for layer in layers:
            if self.W_out(layer).untyped_storage().data_ptr() not in storages:
                raise EditError(
                    f"W_out of layer {layer} of {self.name} is no weight but computed from others (a parametrisation, "
                    "such as weight_norm), so that what is written to its rows is lost. Remove it first: "
                    "torch.nn.utils.parametrize.remove_parametrizations."
                )
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(
                1, self.d_mlp, generator=generator, dtype=torch.promote_types(self.dtype, torch.float32)
            )
            probe = probe.to(self.device)
            plain = self.writes_plainly(layer, probe, self.project(layer, probe).to(probe.dtype))
            if self.has_adapter(layer) or not plain:
                raise EditError(
                    f"The MLP of layer {layer} of {self.name} does not write its activations times the rows of W_out: "
                    "an adapter works in it (LoRA, say), or a hook of PyTorch's, which no edit of these rows reaches. "
                    "Merge the adapter before kn_lens.load_model: hf_model = peft_model.merge_and_unload(); remove the "
                    "hook. Suppress and Amplify work with both."
                )

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_embed"]:
        """The input word embeddings, live. ``d_embed`` is ``d_model`` unless the model projects (ELECTRA, OPT-350m)."""
        return self.model.embed.W_E

    @property
    def checkpoint(self) -> nn.Module:
        """The module that holds the weights as the checkpoint does: the Hugging Face model that is wrapped."""
        return self.model.original_model

    @cached_property
    def hook_names(self) -> frozenset[str]:
        """Every hook name of the model, aliases included."""
        return frozenset(self._hook_points)

    @property
    def has_user_hooks(self) -> bool:
        """Whether hooks are on the model now, of TransformerLens' or PyTorch's kind, that its maker did not put there.

        They may do anything to any row and position, and belong to the function that is explained. Reads the lists of
        hooks of every module; runs nothing.
        """
        return any(_is_users(hook_fn) for module in self._modules for hook_fn in _hooks_on(module))

    def post_through(self, functions: Mapping[int, PostFn]) -> AbstractContextManager[None]:
        """Pass the activations of layers through functions on their way to ``W_out``, in the forward passes inside.

        Each takes ``[row, pos, d_mlp]`` and returns what stands in its place. It comes before every hook on
        ``hook_post``, whenever that was added: such hooks see what it returns.

        Args:
            functions: for each of some layers, what becomes of its activations.
        """
        points = {layer: self._hook_points[self.hook_post(layer)] for layer in functions}
        return forwards({points[layer]: _in_rows(points[layer], function) for layer, function in functions.items()})

    def project(self, layer: int, post: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_model"]:
        """Return what the last map of the MLP of ``layer`` makes of activations, in a call without hooks.

        That is ``post @ W_out + b_out``, unless an adapter or anything else works inside the module.
        """
        with torch.no_grad(), own_modes():
            return self.model.blocks[self._checked(layer)].mlp.out.original_component(post.to(self.dtype))

    def writes_plainly(
        self, layer: int, post: Float[Tensor, "row d_mlp"], mlp_out: Float[Tensor, "row d_model"]
    ) -> bool:
        """Return whether ``mlp_out`` is ``post @ W_out + b_out`` to rounding, in every row.

        It is not where the model calls something else than the map whose rows ``W_out`` holds, such as an adapter that
        adds to it. Cost: one product for each row.

        Args:
            layer: one of the model's.
            post: activations, in float32 at least.
            mlp_out: what ``hook_mlp_out`` held for them, likewise.
        """
        W_out = self.W_out(layer).detach().to(post.dtype)
        b_out = self.project(layer, torch.zeros_like(post[:1])).to(post.dtype)
        with own_modes():
            off = (mlp_out - (post @ W_out + b_out)).norm(dim=-1)
        # A product of n terms is rounded by a few units of its terms' type, and what comes out by one of its own.
        terms = torch.finfo(post.dtype).eps * post.norm(dim=-1) * W_out.norm()
        result = torch.finfo(self.dtype).eps * mlp_out.norm(dim=-1)
        return bool((off <= ROUNDING * (terms + result)).all())

    @cached_property
    def tokenizer_fingerprint(self) -> str | None:
        """What tells the tokenizer's tokens from those of others; None without a tokenizer."""
        return fingerprint(self.tokenizer)

    def check_hooks(self, names: Iterable[Any]) -> None:
        """Raise unless every name is a hook of the model.

        Raises:
            HookError: naming the unknown one and the nearest known.
        """
        for name in names:
            if name not in self.hook_names:
                raise HookError(
                    f"{self.name} has no hook {name!r}; expected one of the names in model.hook_dict (exact names, "
                    "not filters)." + (did_you_mean(name, self.hook_names) if isinstance(name, str) else "")
                )

    def logits(
        self,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row prefix_and_pos"],
        read_pos: Int[Tensor, " row"] | None = None,
        fwd_hooks: Sequence[tuple[str, HookFn]] = (),
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "row d_vocab"] | Float[Tensor, "row pos d_vocab"]:
        """Run the model on right-padded tokens, in the caller's grad mode.

        Args:
            tokens: token ids, padded on the right.
            attention_mask: 1 for tokens, 0 for padding.
            read_pos: compute the head at this position of each row only: the same numbers, without ``pos * d_vocab``
                logits. Hooks on the head then see one position.
            fwd_hooks: in TransformerLens' form; called in order.
            prefix: what the model keeps of earlier tokens. Then ``tokens``, ``read_pos`` and the hooks are about those
                after them alone, and the mask about both.

        Returns:
            Logits at ``read_pos``, or at every position.

        Raises:
            HookError: unknown hook name; raised before the model runs.
        """
        hooks = list(fwd_hooks)
        self.check_hooks(name for name, _ in hooks)
        if read_pos is not None:
            hooks.append((self._head_entry, at(read_pos)))
        with entered(self.model.hooks(fwd_hooks=hooks)), forwards(plain_norms(self._norms)):
            logits = self._run(tokens, attention_mask, prefix)
        return logits if read_pos is None else logits.squeeze(1)

    def whole_logits(
        self,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row pos"],
        read_pos: Int[Tensor, " row"],
        fwd_hooks: Sequence[tuple[str, HookFn]] = (),
    ) -> Float[Tensor, "row d_vocab"]:
        """Run whole rows and return their logits at the read position.

        Where hooks of the user's are on the model, the head runs at all positions, since hooks on it may look at any;
        elsewhere at the read position alone. Arguments and errors are those of ``logits``.
        """
        if not self.has_user_hooks:
            return self.logits(tokens, attention_mask, read_pos, fwd_hooks)
        if any(getattr(hook_fn, OF_ROWS, False) for module in self._modules for hook_fn in _hooks_on(module)):
            raise HookError(
                f"Hooks of an intervention, made for the rows of one batch, are on {self.name}, and kn_lens' functions "
                "run a batch in parts and in an order of their own. Pass interventions to measure; to attribute with "
                "neurons off, erase them: with erase_neurons(model, neurons).applied(model): ..."
            )
        logits = self.logits(tokens, attention_mask, None, fwd_hooks)
        return logits[torch.arange(len(logits), device=logits.device), read_pos]

    def linear(self, layer: int, part: Part) -> tuple[str, str]:
        """Return the names of the hooks before and after a linear map of a block of a masked model.

        Causal families join or split theirs in ways of their own, and have not all of these.
        """
        stem = f"blocks.{self._checked(layer)}.{part}"
        return f"{stem}.hook_in", f"{stem}.hook_out"

    @property
    def has_linear_hooks(self) -> bool:
        """Whether ``linear`` names hooks: then a block can be kept from doing what nothing reads."""
        return self.kind == "masked"

    def hook_attn_out(self, layer: int) -> str:
        """Return the name of the hook on what the attention of ``layer`` returns to its block."""
        return f"blocks.{self._checked(layer)}.attn.hook_out"

    def prefix(self, tokens: Int[Tensor, "row pos"]) -> Prefix | None:
        """Run a causal model on tokens without padding, and return its keys and values, or None if it keeps none."""
        return Prefix.of(self.model, tokens)

    def unembed(self, resid: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """Return the logits of a residual stream, by final norm (or masked-LM transform) and unembedding.

        ``unembed(resid_post of the last layer at a position)`` equals the logits there. No block runs.
        """
        tokens = torch.zeros(len(resid), 1, dtype=torch.long, device=self.device)
        with self.resumed(self.n_layers, resid[:, None]):
            return self.logits(tokens, torch.ones_like(tokens)).squeeze(1)

    def resumed(
        self,
        layer: int,
        resid: Float[Tensor, "row pos d_model"],
        attn_out: Float[Tensor, "row pos d_model"] | None = None,
    ) -> AbstractContextManager[None]:
        """Make the forward passes inside start at ``layer`` with the residual stream ``resid``, skipping those below.

        The result is exact (the same operations on the same numbers) when ``resid`` is what ``resid_pre(layer)`` holds
        for the same tokens and mask, which are still to be passed: masks, rotary tables and alibi are built from them.
        Gradients flow into ``resid``. Hooks on skipped blocks do not fire. The first use costs a pass over one token.

        Args:
            layer: first block to run, 0 to ``n_layers``; ``n_layers`` runs the head alone.
            resid: what enters that block.
            attn_out: what ``hook_attn_out(layer)`` holds; the attention is then not run. The rest of a block works
                position by position, so that ``resid`` and ``attn_out`` may hold just some of the positions, which then
                are the ones that ``resid_pre(layer + 1)`` holds.

        Raises:
            ArgumentError: ``layer`` out of range.
        """
        if isinstance(layer, bool) or not isinstance(layer, Integral) or not 0 <= layer <= self.n_layers:
            raise ArgumentError(f"Cannot resume at layer {layer!r}; expected 0 to {self.n_layers}.")
        blocks = self.model.blocks
        of_block, of_attn = self._beside
        instead: dict[Any, Callable[..., Any]] = {block: lambda *_, **__: of_block(resid) for block in blocks[:layer]}
        if layer == 0:
            instead[blocks[0]] = lambda _, *args, **kwargs: type(blocks[0]).forward(blocks[0], resid, *args, **kwargs)
        if attn_out is not None:
            instead[blocks[layer].attn] = lambda *_, **__: of_attn(attn_out)
        return forwards(instead)

    def ending_with(self, layer: int) -> AbstractContextManager[None]:
        """Skip the blocks above ``layer`` in the forward passes inside: the head reads what it leaves."""
        blocks = self.model.blocks
        last, above = blocks[self._checked(layer)], blocks[layer + 1 :]
        seen: list[Any] = []
        stack = ExitStack()

        def skip(entering: Tensor, *_: Any, **__: Any) -> Any:
            return returning(seen[-1])(entering)  # in the form in which this model's blocks return it

        def enter() -> None:
            handle = last.register_forward_hook(lambda module, args, output: seen.append(output))
            stack.callback(handle.remove)
            stack.enter_context(forwards(dict.fromkeys(above, skip)))

        return Undone(enter, stack.close)

    def check_finite(self) -> None:
        """Raise if a weight is NaN or infinite. Reads every weight once.

        Raises:
            UnsupportedModelError: naming the parameter.
        """
        check_finite(self.checkpoint, self.name)

    def _run(
        self, tokens: Int[Tensor, "row pos"], attention_mask: Int[Tensor, "row prefix_and_pos"], prefix: Prefix | None
    ) -> Float[Tensor, "row _ d_vocab"]:
        if self.kind == "masked":
            return self.model(tokens, attention_mask=attention_mask)
        # Padding comes after every token that a causal model could mask it from. Masked nevertheless, padding longer
        # than a sliding window would see nothing: NaN in float64, and by products with it at the tokens too.
        options = {"use_cache": False} if prefix is None else {"use_cache": True, "past_key_values": prefix.cache}
        return self.model(tokens, attention_mask=torch.ones_like(attention_mask), **options)

    @cached_property
    def _hook_points(self) -> Mapping[str, Any]:
        return self.model.hook_dict

    @cached_property
    def _modules(self) -> tuple[nn.Module, ...]:
        # The Hugging Face model has a root of its own, beside that of TransformerLens.
        return tuple(dict.fromkeys((*self.model.modules(), *self.checkpoint.modules())))

    @cached_property
    def _norms(self) -> list[nn.Module]:
        return norms_in(self.model)

    @cached_property
    def _head_entry(self) -> str:
        # The masked-LM transform works position by position too, so it is cut before it, not after.
        return "mlm_head.hook_in" if "mlm_head.hook_in" in self.hook_names else "unembed.hook_in"

    @cached_property
    def _beside(self) -> tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]:
        """How a block and its attention return a tensor: bare, or before values that nothing here needs."""
        seen: list[Any] = []
        handles: list[Any] = []

        def watch() -> None:
            for module in (self.model.blocks[0].attn, self.model.blocks[0]):  # in the order they finish
                handles.append(module.register_forward_hook(lambda module, args, output: seen.append(output)))

        def unwatch() -> None:
            for handle in handles:
                handle.remove()

        with Undone(watch, unwatch):
            tokens = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            with torch.no_grad():
                self.logits(tokens, torch.ones_like(tokens))
        of_attn, of_block = (returning(output) for output in seen)
        return of_block, of_attn

    def _checked(self, layer: int) -> int:
        if isinstance(layer, bool) or not isinstance(layer, Integral) or not 0 <= layer < self.n_layers:
            raise ArgumentError(f"{self.name} has no layer {layer!r}; expected 0 to {self.n_layers - 1}.")
        return layer


def _in_rows(point: Any, function: PostFn) -> Callable[[Tensor], Tensor]:
    """Return what a hook point is to call for a function to see activations in the form in which its hooks do.

    Where the checkpoint joins rows and positions (OPT), TransformerLens takes them apart for hooks alone.
    """

    def forward(value: Tensor) -> Tensor:
        conversion = point.hook_conversion
        return function(value) if conversion is None else conversion.revert(function(conversion.convert(value)))

    return forward


def _hooks_on(module: Any) -> Iterator[Any]:
    """Yield what a module calls beside its class's ``forward``, or instead of it; hooks as they were given.

    TransformerLens wraps a hook for PyTorch and, from version 4 on, keeps the original beside the wrapper; version 3
    keeps none, and puts none on a model itself.
    """
    handles = [*getattr(module, "fwd_hooks", ()), *getattr(module, "bwd_hooks", ())]
    yield from (getattr(handle, "user_hook", None) for handle in handles)
    for name in HOOKS:
        for hook_fn in getattr(module, name).values():
            if not handles or _module_of(hook_fn) != "transformer_lens.hook_points":
                yield hook_fn
    if "forward" in module.__dict__:
        yield module.__dict__["forward"]


def _is_users(hook_fn: Any) -> bool:
    """Return whether neither TransformerLens put it on the model, nor transformers, to collect what it is asked for."""
    return not _module_of(hook_fn).startswith(("transformer_lens.model_bridge.", "transformers.utils."))


def _module_of(function: Any) -> str:
    function = getattr(function, "func", function)  # of a partial
    return getattr(function, "__module__", None) or ""
