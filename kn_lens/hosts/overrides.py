"""Modules of a model that return other values, or run without their hooks, for the time of a ``with`` block."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_lens._core.interrupts import undone
from kn_lens.hosts.module_tree import modules_of

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""The attributes in which PyTorch keeps the hooks of a module."""

_IMPLEMENTATION = "_attn_implementation_internal"
"""Where a configuration of transformers keeps how attention is computed: modules read it in every pass."""


def override_forwards(
    forwards: Mapping[Any, Callable[..., Any]],
) -> AbstractContextManager[None]:
    """Replace the ``forward`` of modules, for the time of a ``with`` block."""
    originals: dict[Any, Callable[..., Any]] = {}

    def override() -> None:
        # An instance attribute hides the forward of the class. Some modules have one already, of TransformerLens or of
        # the user.
        for module in forwards:
            if "forward" in module.__dict__:
                originals[module] = module.__dict__["forward"]
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward

    def restore() -> None:
        for module in forwards:
            module.__dict__.pop("forward", None)
        for module, forward in originals.items():
            module.__dict__["forward"] = forward

    return undone(override, restore)


def repack_like(output: Any) -> Callable[[Tensor], Any]:
    """Return the function that gives a tensor the form of a module's output: a bare tensor, or the first of a tuple.

    The other values of the tuple become None: no block reads them.
    """
    if not isinstance(output, tuple):
        return lambda value: value
    others = (None,) * (len(output) - 1)
    return lambda value: (value, *others)


@dataclass(frozen=True, kw_only=True, eq=False)
class WrappedModule:
    """A module of the checkpoint that TransformerLens has replaced by a wrapper with hook points.

    Attributes:
        parent: the module of the checkpoint that holds it.
        name: under which the parent holds it.
        wrapper: what stands there now.
        own: the checkpoint's module.
    """

    parent: nn.Module
    name: str
    wrapper: Any
    own: nn.Module


def wrapped_modules(checkpoint: nn.Module) -> list[WrappedModule]:
    """Return the modules of a Hugging Face model that TransformerLens has replaced by wrappers."""
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    wrapped: list[WrappedModule] = []
    for parent in modules_of(checkpoint):
        if isinstance(parent, GeneralizedComponent):
            continue
        for name, child in parent.named_children():
            if not isinstance(child, GeneralizedComponent):
                continue
            own = getattr(child, "original_component", None)
            if isinstance(own, nn.Module):
                wrapped.append(WrappedModule(parent=parent, name=name, wrapper=child, own=own))
    return wrapped


def own_modules(wrapped: Sequence[WrappedModule]) -> AbstractContextManager[None]:
    """Put the checkpoint's modules in the place of their wrappers, for the time of a ``with`` block."""

    def unwrap() -> None:
        for place in wrapped:
            place.parent._modules[place.name] = place.own

    def wrap() -> None:
        for place in wrapped:
            place.parent._modules[place.name] = place.wrapper

    return undone(unwrap, wrap)


def eager_configs(checkpoint: nn.Module) -> list[Any]:
    """Return the configurations by which modules of a Hugging Face model compute attention in separate products."""
    configs: dict[int, Any] = {}
    for module in modules_of(checkpoint):
        config = getattr(module, "config", None)
        if getattr(config, _IMPLEMENTATION, None) == "eager":
            configs[id(config)] = config
    return list(configs.values())


def attention_by(implementation: str, configs: Sequence[Any]) -> AbstractContextManager[None]:
    """Let modules compute attention by another function of transformers, for the time of a ``with`` block.

    Args:
        implementation: its name, such as ``sdpa`` for PyTorch's fused function.
        configs: the `eager_configs` of the model.
    """

    def exchange() -> None:
        for config in configs:
            setattr(config, _IMPLEMENTATION, implementation)

    def restore() -> None:
        for config in configs:
            setattr(config, _IMPLEMENTATION, "eager")

    return undone(exchange, restore)


def fused_activations(checkpoint: nn.Module) -> dict[Any, Callable[..., Any]]:
    """Return the forwards, for `override_forwards`, of activation functions that transformers computes step by step.

    GPT-2's form of GELU takes eight operations there, and one in PyTorch.
    """
    from transformers.activations import NewGELUActivation

    fused = partial(nn.functional.gelu, approximate="tanh")
    return {module: fused for module in modules_of(checkpoint) if isinstance(module, NewGELUActivation)}


def caches_expanded_keys(block: Any) -> bool:
    """Return whether TransformerLens' attention of a block keeps other keys and values than the checkpoint's own.

    In multi-head latent attention (DeepSeek) the checkpoint keeps what they are computed from.
    """
    from transformer_lens.model_bridge.generalized_components.mla_attention import MLAAttentionBridge

    return isinstance(getattr(block, "attn", None), MLAAttentionBridge)


def norm_bridges(modules: Iterable[nn.Module]) -> list[Any]:
    """Return those of some modules with which TransformerLens wraps the norms of the checkpoint."""
    from transformer_lens.model_bridge.generalized_components.normalization import (
        NormalizationBridge,
    )

    return [module for module in modules if isinstance(module, NormalizationBridge)]


def native_norm_forwards(norms: Iterable[Any]) -> dict[Any, Callable[..., Any]]:
    """Return the forwards of the checkpoint's own norms, for `override_forwards`, where no hook is on them.

    TransformerLens calls such a norm and, to fill its hook points, also computes it step by step, in half a dozen
    operations that cost about as much as an activation function. (Other norms are computed by TransformerLens alone:
    they are left as they are, for the same numbers to the bit.)
    """
    forwards = {}
    for module in norms:
        points = (
            module.hook_in,
            module.hook_scale,
            module.hook_normalized,
            module.hook_out,
        )
        listening = (module, module.original_component, *points)
        if module.use_native_layernorm_autograd and not any(map(is_changed, listening)):
            forwards[module] = module.original_component.forward
    return forwards


def without_hooks(modules: Iterable[Any], is_off: Callable[[Any], bool]) -> AbstractContextManager[None]:
    """Take some hooks of PyTorch off modules, for the time of a ``with`` block, and put them back in their order.

    Args:
        modules: the modules.
        is_off: whether a hook is taken off.
    """
    kept: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in modules:
        for name in HOOKS:
            hooks = getattr(module, name)
            if any(map(is_off, hooks.values())):
                kept.append((hooks, dict(hooks)))

    def take_off() -> None:
        for hooks, before in kept:
            for key, hook_fn in before.items():
                if is_off(hook_fn):
                    hooks.pop(key, None)

    def put_back() -> None:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)

    return undone(take_off, put_back)


def is_changed(module: Any) -> bool:
    """Return whether a module has hooks, or another ``forward`` than its class."""
    return "forward" in module.__dict__ or any(getattr(module, name) for name in HOOKS)


def select_position(read_pos: Int[Tensor, " row"]) -> Callable[..., Tensor]:
    """Return a hook that keeps one position of each row."""

    def hook_fn(value: Float[Tensor, "row pos *d"], hook: object) -> Float[Tensor, "row 1 *d"]:
        return value.gather(1, position_index(read_pos, value))

    return hook_fn


def scatter_position(clean: Float[Tensor, "row pos *d"], read_pos: Int[Tensor, " row"]) -> Callable[..., Tensor]:
    """Return a hook that takes the value of one position and returns the clean values with it at that position."""

    def hook_fn(value: Float[Tensor, "row 1 *d"], hook: object) -> Float[Tensor, "row pos *d"]:
        return clean.scatter(1, position_index(read_pos, value), value)

    return hook_fn


def position_index(read_pos: Int[Tensor, " row"], like: Float[Tensor, "row pos *d"]) -> Int[Tensor, "row 1 *d"]:
    """Return the index by which ``gather`` and ``scatter`` find one position of each row."""
    return read_pos.view(-1, *[1] * (like.ndim - 1)).expand(-1, 1, *like.shape[2:])
