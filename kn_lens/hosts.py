"""The seam to TransformerLens: loading checkpoints, and the few facts about a hosted model that everything else uses.

Only this file and its private helpers (``_host``, ``_hooked``, ``_loading``, ``_families``, ``_splicing``, ``_prefix``,
``_original``) know TransformerLens and transformers; they import them late, because that takes seconds. A hosted model
is a ``TransformerBridge``; or, of TransformerLens 3, a ``HookedTransformer`` or a ``HookedEncoder``. What it must offer
is small:

    post_l  = activation at ``hook_post(l)``          [row, pos, d_mlp]
    mlp_l   = post_l @ W_out(l) + b_out               the value rows that attribution and edits speak of
    logits  = head(residual stream after the last block)

``host_of`` checks that a model offers it and returns a ``Host``; neither runs the model.
"""

from pathlib import Path
from typing import Any

import torch

from kn_lens._exclusive import exclusive
from kn_lens._families import FAMILIES, Family, architecture_of, check_config
from kn_lens._hooked import hooked_from, hooked_host, is_hooked
from kn_lens._host import OF_ROWS, HookFn, Host, Part, PostFn
from kn_lens._loading import (
    attach_tokenizer,
    check_finite,
    check_in_memory,
    check_state,
    embedded_models,
    is_bridge,
    read_checkpoint,
    tokenizer_of,
    wrap,
)
from kn_lens._prefix import Prefix
from kn_lens.errors import ArgumentError, UnsupportedModelError, did_you_mean

__all__ = [
    "FAMILIES",
    "OF_ROWS",
    "Family",
    "HookFn",
    "Host",
    "Part",
    "PostFn",
    "Prefix",
    "embedded_models",
    "host_of",
    "load_model",
]

HOSTS = ("bridge", "hooked")

_NORMS_AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
_NOT_IN_FLOAT64 = ("xglm",)
"""Whose code in transformers puts float64's smallest number into a float32."""
_CONTEXT_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")


def host_of(model: Any) -> Host:
    """Check that kn_lens can work on a TransformerLens model, and describe it. Runs nothing; milliseconds.

    Raises:
        UnsupportedModelError: not a TransformerLens model, in train mode, on several devices, quantised, a mixture of
            experts, or with ``hook_post`` elsewhere than at the input of ``W_out``.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = load_model(GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50)).eval())
    >>> host = host_of(model)
    >>> host.hook_post(1), host.d_mlp
    ('blocks.1.mlp.hook_post', 64)
    """
    if is_hooked(model):
        return hooked_host(model)
    if not is_bridge(model):
        raise UnsupportedModelError(
            f"Got a {type(model).__name__}; expected a TransformerLens model, such as a TransformerBridge. "
            "kn_lens.load_model makes one from a name, a directory or a Hugging Face model."
        )
    hf_model: Any = getattr(model, "original_model", None)
    if not hasattr(getattr(hf_model, "config", None), "model_type"):
        raise UnsupportedModelError(
            f"This TransformerBridge does not wrap a Hugging Face model (but {type(hf_model).__name__}); "
            "expected one made by kn_lens.load_model or TransformerBridge.boot_transformers."
        )
    name = str(model.cfg.model_name)
    architecture = architecture_of(hf_model)
    kind = check_config(hf_model.config, architecture, name)
    check_state(hf_model, name)
    _check_mlps(model, name)
    shapes = {tuple(block.mlp.W_out.shape) for block in model.blocks}
    if len(shapes) > 1:
        raise UnsupportedModelError(
            f"{name}: W_out differs between layers ({', '.join(map(str, sorted(shapes)))}); expected one shape."
        )
    W_out = model.blocks[0].mlp.W_out
    if W_out.dtype == torch.float64 and hf_model.config.model_type in _NOT_IN_FLOAT64:
        raise UnsupportedModelError(f"{name}: transformers cannot run a {architecture} in float64; take torch.float32.")
    return Host(
        model=model,
        name=name,
        architecture=architecture,
        kind=kind,
        n_layers=len(model.blocks),
        d_model=W_out.shape[1],
        d_mlp=W_out.shape[0],
        d_vocab=model.embed.W_E.shape[0],
        n_ctx=_context_length(model),
        device=W_out.device,
        dtype=W_out.dtype,
        tokenizer=tokenizer_of(model),
        raw=not getattr(model, "_weights_processed", model.compatibility_mode),
        norm_after_mlp=any(hasattr(model.blocks[0].original_component, norm) for norm in _NORMS_AFTER_MLP),
    )


@exclusive
def load_model(
    name_or_model: Any,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    host: str = "bridge",
) -> Any:
    """Return a TransformerLens model with raw weights, frozen, in evaluation mode.

    Args:
        name_or_model: an embedded model (``world-bert``), a Hugging Face name, a checkpoint directory, a Hugging Face
            model in memory, or a TransformerLens model, which is checked and passed through. A Hugging Face model is
            wrapped in place: TransformerLens replaces its submodules, its attention becomes ``eager`` and its weights
            stop requiring gradients; from then on it is to be used through what is returned.
        tokenizer: used instead of the checkpoint's own; needed for prompts from text with a model in memory.
        device: for a name or directory; default CUDA where there is one, else the CPU.
        dtype: for a name or directory; default float32, whatever the checkpoint is stored in.
        revision: branch, tag or commit on the Hugging Face hub.
        host: ``hooked`` copies the weights of a GPT-2 into a ``HookedTransformer``, of a BERT into a ``HookedEncoder``;
            TransformerLens has these classes up to version 3.

    Raises:
        UnsupportedModelError: nothing of that name, an incomplete checkpoint, a model that cannot be hosted (with the
            reason and what to use instead), weights that are NaN or infinite.
        ArgumentError: a device or dtype that does not exist, or an argument that a model in memory cannot take.

    >>> from transformers import BertConfig, BertForMaskedLM
    >>> sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    >>> model = load_model(BertForMaskedLM(BertConfig(vocab_size=50, **sizes)).eval())
    >>> host_of(model).W_out(0).shape
    torch.Size([32, 16])
    """
    if host not in HOSTS:
        raise ArgumentError(f"host={host!r}; expected one of {', '.join(HOSTS)}.{did_you_mean(host, HOSTS)}")
    build = wrap if host == "bridge" else hooked_from
    if isinstance(name_or_model, (str, Path)):
        hf_model, tokenizer = read_checkpoint(
            name_or_model, tokenizer=tokenizer, device=device, dtype=dtype, revision=revision
        )
        model = build(hf_model, name=str(name_or_model))
    else:
        options = {"device": device, "dtype": dtype, "revision": revision}
        given = [key for key, value in options.items() if value is not None]
        if given:
            raise ArgumentError(f"{given[0]}= is for checkpoints loaded by name; move or cast the model before.")
        if is_bridge(name_or_model) or is_hooked(name_or_model):
            model = name_or_model
        else:
            check_in_memory(name_or_model)
            name = name_or_model.config._name_or_path or type(name_or_model).__name__
            check_state(name_or_model, name)
            check_finite(name_or_model, name)  # before it is touched
            model = build(name_or_model, name=name)
    host_of(model).check_finite()
    attach_tokenizer(model, tokenizer)
    return model


def _check_mlps(model: Any, name: str) -> None:
    hooks = model.hook_dict
    for layer, block in enumerate(getattr(model, "blocks", [None])):
        out = getattr(getattr(block, "mlp", None), "out", None)
        hook = hooks.get(f"blocks.{layer}.mlp.hook_post")
        if out is None or hook is not out.hook_in or block.mlp.W_out.ndim != 2:
            raise UnsupportedModelError(
                f"{name}: hook_post of layer {layer} is not the input of a W_out (a mixture of experts, or no MLP "
                "there); expected one dense MLP in every block."
            )
        if 0 in block.mlp.W_out.shape:
            raise UnsupportedModelError(
                f"{name}: layer {layer} has no neurons (W_out of shape {tuple(block.mlp.W_out.shape)}); expected some."
            )
        if f"blocks.{layer}.attn.hook_out" not in hooks:
            raise UnsupportedModelError(f"{name}: layer {layer} has no attention; expected it in every block.")


def _context_length(model: Any) -> int | None:
    config = model.original_model.config
    if config.model_type == "bloom":
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # One longer prompt would turn the rotary angles of all prompts in its batch into those for long ones.
        return rope["original_max_position_embeddings"]
    length = next((getattr(config, key) for key in _CONTEXT_LENGTHS if getattr(config, key, None)), None)
    # RoBERTa and its kin count positions from padding_idx + 1 and reserve the table's rows before it.
    table = getattr(getattr(model, "pos_embed", None), "original_component", None)
    reserved = getattr(table, "padding_idx", None)
    return length if length is None or reserved is None else length - reserved - 1
