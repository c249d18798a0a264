"""``load_model``, from a name to a TransformerLens model, and ``host_of``, from such a model to a ``Host``.

``check_host`` compares such a model with transformers' own.
"""

from pathlib import Path
from typing import Any

import torch

from kn_lens._core.checks import wrong_kind
from kn_lens._core.names import Side
from kn_lens._core.wording import type_with_article, with_article
from kn_lens.errors import (
    ArgumentError,
    HookError,
    KNLensError,
    UnsupportedModelError,
    did_you_mean,
)
from kn_lens.hosts.bridge import Host, bridge_host, checked_side, first_hooked
from kn_lens.hosts.checkpoints import (
    attach_origin,
    check_finite,
    check_in_memory,
    check_state,
    first_line,
    is_bridge,
    is_wrapped,
    read_checkpoint,
    restored_on_error,
    return_logits_by_name,
    run_experts_one_by_one,
    wrap_in_bridge,
)
from kn_lens.hosts.exclusive import exclusive, exclusively, one_load_at_a_time
from kn_lens.hosts.families import architecture_of, check_config
from kn_lens.hosts.hooked import hooked_from, hooked_host, is_hooked
from kn_lens.hosts.logit_check import LogitCheck, ReferenceLogits, cure_of_failed_pass
from kn_lens.hosts.memory import ran_out_of_memory
from kn_lens.hosts.model_protocol import HookedModel
from kn_lens.hosts.module_tree import modules_of
from kn_lens.hosts.tokenizers import (
    adds_special_tokens_before,
    attach_tokenizer,
    check_beginning,
    check_tokenizer,
    read_again,
    tokenizer_of,
)
from kn_lens.hosts.unwrap import unwrap_model

HOSTS = ("bridge", "hooked")
_ADVICE_ON_LOADING = "Load another checkpoint; check=False of kn_lens.load_model skips this check."
_ADVICE_ON_REFERENCES = (
    "Its weights are others, perhaps edited ones, or its computation is: check_host(model) checks the latter alone."
)


def host_of(model: HookedModel | Host, *, side: str | None = None) -> Host:
    """Check that kn_lens can work on a TransformerLens model, and describe it. Runs nothing; milliseconds.

    Waits for a call of another thread that has the model. A ``Host`` is returned as it is, without another check.

    Args:
        model: the model.
        side: the stack of an encoder-decoder whose layers and neurons are meant: ``decoder``, or ``encoder``. None for
            the decoder, and for the side of a ``Host``. Functions take the host of an encoder in the place of a model.

    Raises:
        ArgumentError: another side, or a side of a model with one stack of layers.
        UnsupportedModelError: not a TransformerLens model, in train mode, on several devices, quantised, a mixture of
            experts of another family than those listed, or with ``hook_post`` elsewhere than at the input of ``W_out``.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = load_model(GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50)).eval())
    >>> host = host_of(model)
    >>> host.hook_post(1), host.d_mlp
    ('blocks.1.mlp.hook_post', 64)
    """
    if isinstance(model, Host):
        checked = checked_side(side or model.side, model.kind, model.name)
        return model if checked == model.side else host_of(model.model, side=checked)
    if is_hooked(model):
        host = hooked_host(model)
        checked_side(side, host.kind, host.name)
        return host
    if is_bridge(model):
        with exclusively(model):  # the wrappers are not there while a pass of another thread runs without them
            return bridge_host(model, side)
    name = repr(model) if isinstance(model, str) else "name_or_model"
    raise wrong_kind(model, f"a TransformerLens model: kn_lens.load_model({name})", error=UnsupportedModelError)


def host_on_side(model: HookedModel | Host, side: Side | None) -> Host:
    """Return the host of a model: on a side, where it has two. That of a ``Host`` stays.

    Raises:
        UnsupportedModelError: as ``host_of``.
    """
    host = host_of(model)
    if isinstance(model, Host) or host.side is None or side is None:
        return host
    return host_of(model, side=side)


def checked_host(model: HookedModel | Host) -> Host:
    """Return the host of a model that can be measured: as ``host_of``, with finite weights.

    Raises:
        UnsupportedModelError: as ``host_of``, or weights that are NaN or infinite.
    """
    host = host_of(model)
    host.check_finite()
    return host


@exclusive
@one_load_at_a_time
def load_model(
    name_or_model: Any,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    host: str = "bridge",
    check: bool = True,
) -> Any:
    """Return a TransformerLens model with raw weights, frozen, in evaluation mode.

    Args:
        name_or_model: an embedded model (``world-bert``), a Hugging Face name, a checkpoint directory, a Hugging Face
            model in memory, or a TransformerLens model, which is checked and returned. A Hugging Face model is wrapped
            in place: TransformerLens replaces its submodules, its attention becomes ``eager`` and its weights stop
            requiring gradients; from then on use it through the returned model.
        tokenizer: used instead of the checkpoint's own; needed for prompts from text with a model in memory.
        device: for a name or directory; default CUDA where there is one, else the CPU.
        dtype: for a name or directory; default float32, whatever the checkpoint is stored in.
        revision: branch, tag or commit on the Hugging Face hub.
        host: ``hooked`` copies the weights of a GPT-2 into a ``HookedTransformer``, of a BERT into a ``HookedEncoder``;
            TransformerLens has these classes up to version 3.
        check: compare logits of two short prompts with those of transformers, computed before TransformerLens wraps
            the model; see `check_host`. Cost: about six passes of at most eight tokens, and no memory for weights. A
            TransformerLens model is not compared: there is no other model to compare it with.

    Raises:
        UnsupportedModelError: no checkpoint of that name, an incomplete one, a model that cannot be hosted (with the
            reason and what to use instead), weights that are NaN or infinite, logits that are not those of
            transformers. A Hugging Face model in memory is then as it was.
        ArgumentError: a device or dtype that does not exist, or an argument that a model in memory cannot take.

    >>> from transformers import BertConfig, BertForMaskedLM
    >>> sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    >>> model = load_model(BertForMaskedLM(BertConfig(vocab_size=50, **sizes)).eval())
    >>> host_of(model).W_out(0).shape
    torch.Size([32, 16])
    """
    if host not in HOSTS:
        raise ArgumentError(f"host={host!r}; expected one of {', '.join(HOSTS)}.{did_you_mean(host, HOSTS)}")
    check_tokenizer(tokenizer)
    if isinstance(name_or_model, (str, Path)):
        checkpoint = read_checkpoint(
            name_or_model,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            revision=revision,
        )
        tokenizer = checkpoint.tokenizer
        model = _host_model(checkpoint.hf_model, host, str(name_or_model), tokenizer, check=check)
        attach_origin(model, checkpoint.origin)
    else:
        for_names = {"device": device, "dtype": dtype, "revision": revision}
        given = [key for key, value in for_names.items() if value is not None]
        if given:
            raise ArgumentError(
                f"{given[0]}= is for checkpoints loaded by name; got {type_with_article(name_or_model)}. Move or cast "
                "the model before."
            )
        if is_bridge(name_or_model) or is_hooked(name_or_model):
            model = name_or_model
            if tokenizer is not None and adds_special_tokens_before(tokenizer):
                check_beginning(tokenizer, tokenizer_of(model))
            checked_host(model)
        else:
            check_in_memory(name_or_model)
            name = name_or_model.config._name_or_path or type(name_or_model).__name__
            check_state(name_or_model, name, modules_of(name_or_model))
            if tokenizer is not None and adds_special_tokens_before(tokenizer):
                check_beginning(tokenizer, read_again(tokenizer))
            with restored_on_error(name_or_model):
                model = _host_model(name_or_model, host, name, tokenizer, check=check)
    attach_tokenizer(model, tokenizer)
    return model


def _host_model(hf_model: Any, host: str, name: str, tokenizer: Any, *, check: bool) -> Any:
    """Return a TransformerLens model of a Hugging Face model, with finite weights and the same logits."""
    check_finite(hf_model, name)
    run_experts_one_by_one(hf_model)
    return_logits_by_name(hf_model)
    hooked = first_hooked(hf_model)
    reference = _reference_logits(hf_model, name, tokenizer) if check else None
    build = wrap_in_bridge if host == "bridge" else hooked_from
    model = build(hf_model, name=name, tokenizer=tokenizer)
    described = host_of(model)
    if reference is None:
        return model
    advice = _ADVICE_ON_LOADING if hooked is None else _advice_on_hooks(hooked)
    try:
        reference.compare(described, name="transformers", advice=advice)
    except Exception as error:
        if isinstance(error, KNLensError) or ran_out_of_memory(error):
            raise
        raise UnsupportedModelError(
            f"TransformerLens cannot run {name!r} in {described.dtype}: {first_line(error)}. "
            f"{cure_of_failed_pass(described.dtype)}"
        ) from error
    return model


def _advice_on_hooks(path: str) -> str:
    return (
        f"Hooks, or a changed forward, are on {path or 'the model'!r}, where TransformerLens computes in code of its "
        "own: load the model without them, and put hooks on what load_model returns."
    )


def _reference_logits(hf_model: Any, name: str, tokenizer: Any) -> ReferenceLogits:
    kind = check_config(hf_model.config, architecture_of(hf_model), name)
    return ReferenceLogits.of(
        hf_model,
        name=name,
        kind=kind,
        mask_token_id=getattr(tokenizer, "mask_token_id", None),
    )


@exclusive
def check_host(model: HookedModel | Host, reference: Any = None) -> LogitCheck:
    """Check that a TransformerLens model computes the logits that transformers computes.

    ``load_model`` does so for every model that it wraps. This is for models that were made elsewhere, such as by
    ``TransformerBridge.boot_transformers``. The logits of two short prompts are compared at all positions, one prompt
    padded, and of a pass that starts at the middle layer; ``kn_lens.hosts.logit_check`` has the rule.

    Args:
        model: the model, without hooks.
        reference: what it is compared with. None: a plain model of the same Hugging Face class that shares its weights:
            the computation is checked, not whether the weights are a checkpoint's. A name or a directory: the
            checkpoint there, read in the same type on the same device, as a second copy of the weights: both are
            checked. A Hugging Face model in memory, of the same type on the same device, which TransformerLens has not
            wrapped: that model.

    Returns:
        What was compared, the difference, and the largest difference that rounding explains.

    Raises:
        UnsupportedModelError: the logits differ by more, with the size, or weights are NaN or infinite.
        ArgumentError: no reference, and the model holds no weights of a Hugging Face model: it is of the older classes,
            or its weights are processed. A reference of another vocabulary, type or device, or one that TransformerLens
            has wrapped.
        HookError: the model has hooks, which belong to no plain model.

    >>> import kn_lens as kn
    >>> check = kn.check_host(kn.load_model("world-bert"))
    >>> check.reference, check.difference < check.limit
    ('the same weights in a plain BertForMaskedLM', True)
    """
    host = checked_host(model)
    advice = _ADVICE_ON_REFERENCES
    if host.has_user_hooks:
        raise HookError(f"Hooks are on {host.name}, which a plain model has not; remove them before check_host.")
    if reference is None:
        if is_hooked(host.model) or not host.raw:
            raise ArgumentError(
                f"{host.name} does not hold the weights of its checkpoint; expected reference=, the name, the "
                "directory or the Hugging Face model that it was made from."
            )
        plain = unwrap_model(host.model)
        advice = "Load another checkpoint."
        name = f"the same weights in a plain {host.architecture}"
    elif isinstance(reference, (str, Path)):
        checkpoint = read_checkpoint(
            reference,
            tokenizer=None,
            device=host.device,
            dtype=host.dtype,
            revision=None,
            with_tokenizer=False,
        )
        plain = checkpoint.hf_model
        name = f"the checkpoint {str(reference)!r}"
    else:
        kind = type(reference).__name__
        if is_hosted(reference) or (isinstance(reference, torch.nn.Module) and is_wrapped(reference)):
            raise ArgumentError(
                f"The reference, {with_article(kind)}, is wrapped by TransformerLens; expected a model that "
                "transformers runs: the name or directory of the checkpoint, or a Hugging Face model that was not "
                "passed to load_model."
            )
        check_in_memory(reference)
        check_state(reference, kind, modules_of(reference))
        plain = reference
        name = f"the {kind} given"
    _check_comparable(plain, host, name)
    check_finite(plain, name)
    return _reference_logits(plain, name, tokenizer_of(host.model)).compare(host, name=name, advice=advice)


def _check_comparable(hf_model: Any, host: Host, name: str) -> None:
    """Raise unless two models take the same tokens, in the same type on the same device.

    Raises:
        ArgumentError: with both values.
    """
    for what, found, expected in (
        ("tokens in its vocabulary", len(hf_model.get_input_embeddings().weight), host.d_vocab),
        ("as the type of its weights", hf_model.dtype, host.dtype),
        ("as its device", hf_model.device, host.device),
    ):
        if found != expected:
            raise ArgumentError(
                f"The reference, {name}, has {found} {what}; expected {expected}, as {host.name} has. Pass the model "
                "that it was made from, in the same type on the same device."
            )


def is_hosted(value: object) -> bool:
    """Return whether a value is a model that kn_lens may work on, rather than a name."""
    return isinstance(value, Host) or is_bridge(value) or is_hooked(value)
