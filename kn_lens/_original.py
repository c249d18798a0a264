"""The Hugging Face model inside a TransformerLens model: what it was before TransformerLens put itself into it."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._hooked import is_hooked
from kn_lens._interrupts import entered
from kn_lens.errors import EditError
from kn_lens.hosts import Host

_PROJECTIONS = ("embeddings_project.weight", "project_in.weight")  # from d_embed to d_model, in ELECTRA and OPT


def token_embeddings(host: Host, ids: Int[Tensor, " some"]) -> Float[Tensor, "some d_model"]:
    """Return the input word embeddings of tokens, as the residual stream could hold them.

    Where they are narrower than it, they go through the checkpoint's own projection, without its bias: the direction in
    which the token moves the stream.

    Raises:
        EditError: they are narrower, and there is no projection.
    """
    rows = host.W_E.detach()[ids.to(host.device)]
    if rows.shape[-1] == host.d_model:
        return rows
    for name, weight in host.checkpoint.named_parameters():
        if _plain(name).endswith(_PROJECTIONS) and weight.shape == (host.d_model, rows.shape[-1]):
            return rows @ weight.detach().T
    raise EditError(
        f"The word embeddings of {host.name} have {rows.shape[-1]} numbers and the rows of W_out {host.d_model}, so "
        f"that rows cannot be made of them; expected a projection between them, {' or '.join(_PROJECTIONS)}."
    )


def plain_model(model: Any) -> Any:
    """Return a Hugging Face model with the weights of a TransformerLens model, shared, for ``save_pretrained`` alone.

    TransformerLens replaces submodules of the model that it wraps, so that the names of its weights are no longer the
    checkpoint's. Those are given back here to an empty model of the same class. Costs no memory for weights.

    Raises:
        EditError: there is no such model in it, or a weight of the class is not found there.
    """
    if is_hooked(model):
        raise EditError(
            f"A {type(model).__name__} keeps nothing of the checkpoint that it came from. Save the edit, and export it "
            "from the checkpoint loaded with kn_lens.load_model(name)."
        )
    wrapped = model.original_model
    with entered(torch.device("meta")):
        plain = type(wrapped)(wrapped.config)
    weights = {_plain(name): weight for name, weight in wrapped.state_dict().items()}
    missing = plain.state_dict().keys() - weights.keys()
    if missing:
        raise EditError(
            f"This {type(wrapped).__name__} cannot be written as a checkpoint: TransformerLens keeps {min(missing)!r} "
            "in another form. Apply the saved edit to a freshly loaded model instead."
        )
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()}, assign=True)
    if plain.can_generate():
        plain.generation_config = wrapped.generation_config
    return plain


def _plain(name: str) -> str:
    return name.replace("._original_component", "")
