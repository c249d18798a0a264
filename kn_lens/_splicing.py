"""Running parts of a TransformerLens model: some modules return what they are told, or do without their hooks."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_lens._interrupts import Undone

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where PyTorch keeps the hooks of a module."""


def forwards(instead: Mapping[Any, Callable[..., Any]]) -> AbstractContextManager[None]:
    """Exchange what these modules do when they are called, for the time of a ``with`` block."""
    own: dict[Any, Callable[..., Any]] = {}

    def exchange() -> None:
        # An instance attribute hides the class's forward. Some have one already, of TransformerLens or of the user.
        own.update({module: module.__dict__["forward"] for module in instead if "forward" in module.__dict__})
        for module, forward in instead.items():
            module.__dict__["forward"] = forward

    def take_back() -> None:
        for module in instead:
            module.__dict__.pop("forward", None)
        for module, forward in own.items():
            module.__dict__["forward"] = forward

    return Undone(exchange, take_back)


def returning(output: Any) -> Callable[[Tensor], Any]:
    """Return what puts a tensor in the place of the first of the values that a module returns."""
    if not isinstance(output, tuple):
        return lambda value: value
    beside = (None,) * (len(output) - 1)
    return lambda value: (value, *beside)


def norms_in(model: nn.Module) -> list[Any]:
    """Return the norms of a model that wrap the checkpoint's own."""
    from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge

    return [module for module in model.modules() if isinstance(module, NormalizationBridge)]


def plain_norms(norms: Iterable[Any]) -> dict[Any, Callable[..., Any]]:
    """Return the checkpoint's own norms, for ``forwards``, where TransformerLens calls them and nobody listens.

    To show what is inside, TransformerLens takes such a norm apart beside calling it, in half a dozen operations that
    cost about as much as an activation function. (Other norms it computes itself: they are left alone, for the same
    numbers to the bit.)
    """
    plain = {}
    for module in norms:
        points = (module.hook_in, module.hook_scale, module.hook_normalized, module.hook_out)
        listening = (module, module.original_component, *points)
        if module.use_native_layernorm_autograd and not any(map(is_changed, listening)):
            plain[module] = module.original_component.forward
    return plain


def is_changed(module: Any) -> bool:
    """Return whether a module calls hooks, or something else than its class's ``forward``."""
    return "forward" in module.__dict__ or any(getattr(module, name) for name in HOOKS)


def at(read_pos: Int[Tensor, " row"]) -> Callable[..., Tensor]:
    """Return a hook that keeps one position of each row."""

    def hook_fn(value: Float[Tensor, "row pos *d"], hook: object) -> Float[Tensor, "row 1 *d"]:
        return value.gather(1, index_of(read_pos, value))

    return hook_fn


def put_into(clean: Float[Tensor, "row pos *d"], read_pos: Int[Tensor, " row"]) -> Callable[..., Tensor]:
    """Return a hook that takes the value of one position, and returns the clean ones with it in its place."""

    def hook_fn(value: Float[Tensor, "row 1 *d"], hook: object) -> Float[Tensor, "row pos *d"]:
        return clean.scatter(1, index_of(read_pos, value), value)

    return hook_fn


def index_of(read_pos: Int[Tensor, " row"], like: Float[Tensor, "row pos *d"]) -> Int[Tensor, "row 1 *d"]:
    """Return the index by which ``gather`` and ``scatter`` find one position of each row."""
    return read_pos.view(-1, *[1] * (like.ndim - 1)).expand(-1, 1, *like.shape[2:])
