"""The older model classes of TransformerLens 3, ``HookedTransformer`` and ``HookedEncoder``, as hosts.

They hold the same numbers under other names, and their weights apart from any Hugging Face model. What differs:

- hooks stand around blocks, not around each linear map in them (``has_linear_hooks``), so that passes through a masked
  model compute all positions of the blocks above;
- no keys and values are handed out that a pass could start from (``kv_prefix``): causal models run all tokens;
- ``hook_mlp_out`` comes after a norm that a family puts behind ``W_out``: such models are refused.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_lens._core.wording import type_with_article
from kn_lens.errors import ArgumentError, UnsupportedModelError
from kn_lens.hosts.bridge import Host
from kn_lens.hosts.checkpoints import check_placed, origin_of
from kn_lens.hosts.families import architecture_of, quiet_imports
from kn_lens.hosts.kv_prefix import KVPrefix
from kn_lens.hosts.model_protocol import HookFn
from kn_lens.hosts.module_tree import modules_of
from kn_lens.hosts.overrides import select_position
from kn_lens.hosts.tokenizers import copy_for_transformer_lens

CENTRED = 1e-3
"""Mean over its numbers of a row of ``W_O``, in standard deviations, below which all rows have been centred."""


_POST_NORM = (
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
)  # TransformerLens' own list, which releases keep in several places


class HookedHost(Host):
    """A ``HookedTransformer`` (causal) or ``HookedEncoder`` (masked)."""

    def hook_mlp_out(self, layer: int) -> str:
        return f"blocks.{self._checked(layer)}.hook_mlp_out"

    def resid_pre(self, layer: int) -> str:
        return f"blocks.{self._checked(layer)}.hook_resid_pre"

    def resid_post(self, layer: int) -> str:
        # An encoder's block adds first and normalises then, and so calls what leaves it.
        stem = f"blocks.{self._checked(layer)}"
        return f"{stem}.hook_normalized_resid_post" if self.kind == "masked" else f"{stem}.hook_resid_post"

    def hook_attn_out(self, layer: int) -> str:
        return f"blocks.{self._checked(layer)}.hook_attn_out"

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_embed"]:
        embed = self.model.embed
        return embed.embed.W_E if self.kind == "masked" else embed.W_E

    @property
    def unembedding(self) -> nn.Module:
        return self.model.unembed

    def has_adapter(self, layer: int) -> bool:
        return False

    def apply_W_out(self, layer: int, post: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_model"]:
        mlp = self.model.blocks[self._checked(layer)].mlp
        with torch.no_grad():
            return post.to(self.dtype) @ mlp.W_out + mlp.b_out

    @cached_property
    def has_linear_hooks(self) -> bool:
        return False

    @cached_property
    def has_own_modules(self) -> bool:  # these classes hold weights, and wrap no modules
        return False

    @cached_property
    def norm_after_mlp(self) -> bool:  # such models are refused
        return False

    @property
    def checkpoint(self) -> nn.Module:
        return self.model

    def kv_prefix(self, tokens: Int[Tensor, "row pos"]) -> KVPrefix | None:
        return None

    def _run(
        self,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row pos"],
        prefix: KVPrefix | None,
    ) -> Float[Tensor, "row _ d_vocab"]:
        if self.kind == "masked":
            return self.model(tokens, one_zero_attention_mask=attention_mask)
        return self.model(tokens, attention_mask=attention_mask)

    def _head_hooks(self, read_pos: Int[Tensor, " row"]) -> list[tuple[str, HookFn]]:
        # None stands between the blocks and the first map of the head, and those on a block see some rows at a time.
        return []

    def _head_forwards(self, read_pos: Int[Tensor, " row"]) -> dict[Any, Callable[..., Any]]:
        head = self.model.mlm_head if self.kind == "masked" else self.model.ln_final
        select, run = select_position(read_pos), head.forward
        return {head: lambda resid: run(select(resid, None))}


def is_hooked(model: Any) -> bool:
    """Return whether a model is of one of the older classes, importing nothing that its maker has not."""
    return any(cls.__name__ in ("HookedTransformer", "HookedEncoder") for cls in type(model).__mro__)


def hooked_host(model: Any) -> HookedHost:
    """Check a model of the older classes, and describe it.

    Raises:
        UnsupportedModelError: as ``host_of``; or a norm stands behind ``W_out``.
    """
    cfg = model.cfg
    name = str(cfg.model_name)
    check_placed(model, name, modules_of(model))  # there is no dropout in these classes: train mode changes nothing
    _check_blocks(model, name)
    if cfg.use_normalization_before_and_after or cfg.original_architecture in _POST_NORM:
        raise UnsupportedModelError(
            f"{name}: a norm stands between W_out and hook_mlp_out of {type_with_article(model)}, so that what W_out "
            "writes cannot be read; load it as a TransformerBridge: kn_lens.load_model(name)."
        )
    masked = any(cls.__name__ == "HookedEncoder" for cls in type(model).__mro__)
    W_out = model.blocks[0].mlp.W_out
    return HookedHost(
        model=model,
        name=name,
        architecture=cfg.original_architecture or type(model).__name__,
        kind="masked" if masked else "causal",
        n_layers=len(model.blocks),
        d_model=W_out.shape[1],
        d_mlp=W_out.shape[0],
        d_vocab=cfg.d_vocab_out,
        n_ctx=cfg.n_ctx,
        device=W_out.device,
        dtype=W_out.dtype,
        origin=origin_of(model),
        raw=not _processed(model),
    )


def hooked_from(hf_model: Any, *, name: str, tokenizer: Any) -> Any:
    """Return a ``HookedTransformer`` or ``HookedEncoder`` with copies of the raw weights of a Hugging Face model.

    TransformerLens sets up a copy of the tokenizer as ``model.tokenizer``, for its own functions on texts.
    BERT's pooler and next-sentence head, which a masked-LM checkpoint lacks and no knowledge neuron needs, are zero.

    Raises:
        ArgumentError: TransformerLens has no such classes (from version 4 on).
        UnsupportedModelError: neither a GPT-2 nor a BERT.
    """
    build = {"GPT2LMHeadModel": _gpt2, "BertForMaskedLM": _bert}.get(architecture_of(hf_model))
    if build is None:
        raise UnsupportedModelError(
            f"{name!r} is {type_with_article(hf_model)}; host='hooked' takes GPT2LMHeadModel and BertForMaskedLM. "
            "Leave host= out to load it as a TransformerBridge."
        )
    with quiet_imports():
        warnings.simplefilter("ignore", DeprecationWarning)  # that they end with version 3 is known here
        try:
            model: Any = build(hf_model, name).requires_grad_(False).eval()
        except ImportError:
            raise ArgumentError(
                "host='hooked' needs TransformerLens 3; in the installed "
                f"{version('transformer-lens')} TransformerBridge has replaced HookedTransformer and HookedEncoder. "
                "Leave host= out to load one."
            ) from None
    # nn.Module's own ``to``: that of these classes prints.
    model = nn.Module.to(model, hf_model.device)
    if tokenizer is not None:
        own = copy_for_transformer_lens(tokenizer)
        if hasattr(model, "set_tokenizer"):
            model.set_tokenizer(own)
        else:  # HookedEncoder
            model.tokenizer = own
    return model


def _gpt2(hf_model: Any, name: str) -> Any:
    classes = _classes()

    config = hf_model.config
    cfg = _config(
        classes,
        hf_model,
        name,
        n_layers=config.n_layer,
        n_heads=config.n_head,
        d_model=config.n_embd,
        d_mlp=config.n_inner or 4 * config.n_embd,
        n_ctx=config.n_positions,
        eps=config.layer_norm_epsilon,
        act_fn=config.activation_function,
        use_attn_scale=config.scale_attn_weights,
        scale_attn_by_inverse_layer_idx=config.scale_attn_by_inverse_layer_idx,
    )
    return _filled(
        classes.HookedTransformer(cfg, move_to_device=False),
        classes.convert_gpt2_weights(hf_model, cfg),
    )


def _bert(hf_model: Any, name: str) -> Any:
    classes = _classes()

    config = hf_model.config
    cfg = _config(
        classes,
        hf_model,
        name,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        d_model=config.hidden_size,
        d_mlp=config.intermediate_size,
        n_ctx=config.max_position_embeddings,
        eps=config.layer_norm_eps,
        act_fn=config.hidden_act,
        attention_dir="bidirectional",
    )
    heads = SimpleNamespace(
        bert=SimpleNamespace(
            embeddings=hf_model.bert.embeddings,
            encoder=hf_model.bert.encoder,
            pooler=SimpleNamespace(dense=_zero(cfg.d_model, cfg.d_model)),
        ),
        cls=SimpleNamespace(predictions=hf_model.cls.predictions, seq_relationship=_zero(cfg.d_model, 2)),
    )
    return _filled(
        classes.HookedEncoder(cfg, move_to_device=False),
        classes.convert_bert_weights(heads, cfg),
    )


def _filled(model: Any, weights: Mapping[str, Tensor]) -> Any:
    """Put weights into a new model as they are: TransformerLens' own loading takes those of float64 through float32."""
    missing = model.load_state_dict(weights, strict=False).missing_keys
    lost = {name for name, _ in model.named_parameters() if name != "unembed.b_U"} & {*missing}
    assert not lost, lost  # a GPT-2's head has no bias, and its zeros are there
    return model


def _zero(n_in: int, n_out: int) -> nn.Linear:
    linear = nn.Linear(n_in, n_out)
    for weight in linear.parameters():
        nn.init.zeros_(weight)
    return linear


def _classes() -> Any:
    """Return what TransformerLens 3 has for these models, by name; ImportError from version 4 on."""
    import transformer_lens
    from transformer_lens.pretrained import weight_conversions  # pyright: ignore[reportMissingImports]

    names = ("HookedTransformer", "HookedEncoder", "HookedTransformerConfig")
    converters = ("convert_gpt2_weights", "convert_bert_weights")
    return SimpleNamespace(
        **{name: getattr(transformer_lens, name) for name in names},
        **{name: getattr(weight_conversions, name) for name in converters},
    )


def _config(classes: Any, hf_model: Any, name: str, **sizes: Any) -> Any:
    return classes.HookedTransformerConfig(
        model_name=name,
        original_architecture=architecture_of(hf_model),
        d_head=sizes["d_model"] // sizes["n_heads"],
        d_vocab=hf_model.config.vocab_size,
        normalization_type="LN",
        dtype=hf_model.dtype,
        device=str(hf_model.device),
        init_weights=False,
        **sizes,
    )


def _check_blocks(model: Any, name: str) -> None:
    hooks = model.hook_dict
    for layer, block in enumerate(model.blocks):
        W_out = getattr(getattr(block, "mlp", None), "W_out", None)
        if getattr(W_out, "ndim", 0) != 2 or f"blocks.{layer}.mlp.hook_post" not in hooks:
            raise UnsupportedModelError(
                f"{name}: layer {layer} has no dense MLP with a W_out (a mixture of experts, or attention only); "
                "expected one in every block."
            )


def _processed(model: Any) -> bool:
    """Return whether TransformerLens has folded norms into weights, or centred what writes to the residual stream."""
    W_O = model.blocks[0].attn.W_O.detach().float()  # centred with W_out, and not edited
    centred = bool((W_O.mean(-1).abs() < CENTRED * W_O.std(-1)).all())
    return centred or str(model.cfg.normalization_type).endswith("Pre")
