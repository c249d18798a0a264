"""The Hugging Face model inside a TransformerLens model, with the checkpoint's names of its weights."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_lens._core.interrupts import entered
from kn_lens.errors import EditError
from kn_lens.hosts.bridge import Host
from kn_lens.hosts.encoder_decoder import FINAL_BIAS
from kn_lens.hosts.hooked import is_hooked
from kn_lens.hosts.model_protocol import HookedModel

_PROJECTIONS = (
    "embeddings_project.weight",
    "project_in.weight",
    "embedding_hidden_mapping_in.weight",
    "embed_proj.weight",
)  # from d_embed to d_model, in ELECTRA, OPT, ALBERT and DeBERTa


def token_embeddings(host: Host, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """Return the input word embeddings of tokens, as vectors of the residual stream.

    Where embeddings are narrower than the stream, the checkpoint's own projection is applied, without its bias: the
    direction in which the token moves the stream.

    Raises:
        EditError: embeddings are narrower, and there is no projection.
    """
    rows = host.W_E.detach()[ids.to(host.device)]
    if rows.shape[-1] == host.d_model:
        return rows
    for name, weight in host.checkpoint.named_parameters():
        if _checkpoint_name(name).endswith(_PROJECTIONS) and weight.shape == (
            host.d_model,
            rows.shape[-1],
        ):
            return rows @ weight.detach().T
    raise EditError(
        f"The word embeddings of {host.name} have {rows.shape[-1]} numbers and the rows of W_out {host.d_model}; "
        f"expected a projection between them, {' or '.join(_PROJECTIONS)}. Rows can be set to zero in this model, not "
        "to embeddings."
    )


def unwrap_model(model: HookedModel) -> Any:
    """Return a Hugging Face model that shares the weights of a TransformerLens model: to be saved, or to be run.

    TransformerLens replaces submodules of the model that it wraps, so that the names of its weights are no longer the
    checkpoint's. Here the weights and buffers get these names back, in an empty model of the same class. Costs no
    memory for weights.

    Raises:
        EditError: the model wraps no Hugging Face model, or lacks a weight of its class.
    """
    if is_hooked(model):
        raise EditError(
            f"A {type(model).__name__} does not hold the checkpoint that its weights came from; expected a "
            "TransformerBridge. Save the edit, and export it from the checkpoint loaded with kn_lens.load_model(name)."
        )
    wrapped: Any = model.original_model  # pyright: ignore[reportAttributeAccessIssue]  # not of the older classes
    with entered(torch.device("meta")):
        unwrapped = type(wrapped)(wrapped.config)
    weights = {_checkpoint_name(name): weight for name, weight in wrapped.state_dict().items()}
    if FINAL_BIAS in weights and "lm_head.bias" in weights:
        weights[FINAL_BIAS] = weights[FINAL_BIAS] + weights["lm_head.bias"].to(weights[FINAL_BIAS])
    missing = unwrapped.state_dict().keys() - weights.keys()
    if missing:
        raise EditError(
            f"This {type(wrapped).__name__} cannot be written as a checkpoint: TransformerLens keeps {min(missing)!r} "
            "in another form. Apply the saved edit to a freshly loaded model instead."
        )
    unwrapped.load_state_dict({name: weights[name] for name in unwrapped.state_dict()}, assign=True)
    _share_buffers(wrapped, unwrapped)
    if unwrapped.can_generate():
        unwrapped.generation_config = wrapped.generation_config
    return unwrapped.eval()


def _share_buffers(wrapped: nn.Module, unwrapped: nn.Module) -> None:
    """Share the buffers that no checkpoint holds, such as rotary frequencies."""
    # One module may be in several places: rotary frequencies are in the attention of TransformerLens too.
    in_every_place = wrapped.named_buffers(remove_duplicate=False)
    buffers = {_checkpoint_name(name): buffer for name, buffer in in_every_place}
    for name, buffer in list(unwrapped.named_buffers()):
        if buffer.is_meta and name in buffers:
            path, _, last = name.rpartition(".")
            setattr(unwrapped.get_submodule(path), last, buffers[name])


def _checkpoint_name(name: str) -> str:
    return name.replace("._original_component", "")
