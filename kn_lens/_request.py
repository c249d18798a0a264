"""What an attribution is asked for, checked before any model runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.hosts import Host, host_of
from kn_lens.outputs import Output, resolve_output
from kn_lens.prompts import PromptBatch
from kn_lens.quadrature import RULES, Quadrature, nested_levels
from kn_lens.quadrature import quadrature as fixed_rule

Method = Literal[
    "integrated_gradients", "single_path", "activation", "gradient_x_activation", "log_prob_gain", "ablation"
]
Preset = Literal["paper", "official"]

PRESETS = {"paper": ("right", 20), "official": ("left", 20)}
"""The quadratures of the paper's equation 3 and of its released code."""


@runtime_checkable
class NeuronLike(Protocol):
    """Anything that names a neuron."""

    @property
    def layer(self) -> int:
        """Zero-based layer."""
        ...

    @property
    def index(self) -> int:
        """Row of the layer's ``W_out``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of ``attribute``, with names replaced by what they stand for.

    Attributes:
        host: what runs.
        method: as given.
        output: what is explained.
        layers: which are attributed.
        neurons: the chosen indices of every layer, or None for all neurons.
        levels: of the quadrature, coarsest first.
        rule: name of the quadrature.
        tolerance: of the completeness gap, relative.
    """

    host: Host
    method: Method
    output: Output
    layers: list[int]
    neurons: dict[int, Int[Tensor, " chosen"]] | None
    levels: tuple[Quadrature, ...]
    rule: str
    tolerance: float

    @classmethod
    def of(
        cls,
        model: Any,
        prompts: PromptBatch,
        *,
        method: Method = "integrated_gradients",
        output: str | Output = "prob",
        preset: Preset | None = None,
        quadrature: str = "adaptive",
        n_steps: int | None = None,
        tolerance: float = 1e-3,
        max_points: int = 129,
        layers: Sequence[int] | None = None,
        neurons: Iterable[NeuronLike] | None = None,
    ) -> "Request":
        """Check all that can be checked without running the model; see ``attribute`` for arguments and errors."""
        host = host_of(model)
        if method not in get_args(Method):
            known = get_args(Method)
            raise ArgumentError(
                f"Unknown method {method!r}; expected one of {', '.join(known)}.{did_you_mean(method, known)}"
            )
        levels, rule = _resolve_rule(preset, quadrature, n_steps, max_points)
        chosen_layers = _check_layers(host, layers)
        chosen = _check_neurons(host, method, neurons, chosen_layers)
        readout = resolve_output(
            "log_prob" if method == "log_prob_gain" else output, has_contrast=prompts.contrast_ids is not None
        )
        if not 0 < tolerance < float("inf"):
            raise ArgumentError(f"tolerance={tolerance}; expected a positive number, such as 1e-3.")
        prompts.check_for(host)
        return cls(
            host=host,
            method=method,
            output=readout,
            layers=chosen_layers,
            neurons=chosen,
            levels=levels,
            rule=rule,
            # Half precision has coarser rounding than any useful tolerance: refining further would chase noise.
            tolerance=max(tolerance, 2 * torch.finfo(host.dtype).eps),
        )


def _resolve_rule(
    preset: str | None, rule: str, n_steps: int | None, max_points: int
) -> tuple[tuple[Quadrature, ...], str]:
    """Return the levels of the quadrature that is asked for, coarsest first, and its name."""
    if preset is not None:
        if preset not in PRESETS:
            raise ArgumentError(
                f"Unknown preset {preset!r}; expected one of {', '.join(PRESETS)}.{did_you_mean(preset, PRESETS)}"
            )
        if rule != "adaptive" or n_steps is not None:
            raise ArgumentError(
                f"preset={preset!r} fixes the quadrature: leave quadrature and n_steps out, or the preset."
            )
        rule, n_steps = PRESETS[preset]
    if rule == "adaptive":
        if n_steps is not None:
            raise ArgumentError(
                f"n_steps={n_steps} with quadrature='adaptive', which chooses the number itself: "
                "bound it with max_points, or name a fixed rule such as 'gauss-legendre'."
            )
        levels = nested_levels(max_points)
        return levels, f"adaptive clenshaw-curtis, 3 to {len(levels[-1])} points"
    if rule not in RULES:
        known = ("adaptive", *RULES)
        raise ArgumentError(
            f"Unknown quadrature {rule!r}; expected one of {', '.join(known)}.{did_you_mean(rule, known)}"
        )
    n_steps = 20 if n_steps is None else n_steps
    return (fixed_rule(rule, n_steps),), f"{rule}, {n_steps} points"


def _check_layers(host: Host, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        return list(range(host.n_layers))
    for layer in layers:
        host.hook_post(layer)  # raises on a layer that is not there
    if not layers or len(set(layers)) != len(layers):
        raise ArgumentError(f"layers={list(layers)}; expected at least one layer, and none twice.")
    return list(layers)


def _check_neurons(
    host: Host, method: str, neurons: Iterable[NeuronLike] | None, layers: list[int]
) -> dict[int, Int[Tensor, " chosen"]] | None:
    """Return the chosen indices of every layer, or None for all neurons."""
    if neurons is None:
        if method == "single_path":
            raise ArgumentError("single_path integrates one neuron at a time: name them with neurons=NeuronSet(...).")
        return None
    if method not in ("single_path", "ablation", "log_prob_gain"):
        raise ArgumentError(f"{method} scores every neuron at once: leave neurons out, and select from the scores.")
    chosen: dict[int, set[int]] = {layer: set() for layer in layers}  # one named twice is one
    for neuron in neurons:
        if not isinstance(neuron, NeuronLike):
            raise ArgumentError(f"neurons holds {neuron!r}; expected neurons: NeuronSet([(9, 1234)]).")
        if neuron.layer not in chosen:
            raise ArgumentError(f"{neuron} is not in the layers to attribute, {layers}.")
        if not 0 <= neuron.index < host.d_mlp:
            raise ArgumentError(f"{neuron}: index must be between 0 and {host.d_mlp - 1} (d_mlp={host.d_mlp}).")
        chosen[neuron.layer].add(neuron.index)
    return {
        layer: torch.tensor(sorted(indices), device=host.device, dtype=torch.long) for layer, indices in chosen.items()
    }


def check_share(name: str, value: float) -> None:
    """Raise unless the argument is a share."""
    if not 0 <= value <= 1:
        raise ArgumentError(f"{name}={value}; expected a share from 0 to 1.")
