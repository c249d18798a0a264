"""The options of an attribution, checked before any model runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypedDict, cast, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens._core import defaults
from kn_lens._core.checks import check_kind, check_number, check_share
from kn_lens._core.names import QUADRATURES, Method, Preset
from kn_lens._core.notation import NeuronLike, neuron_name
from kn_lens._core.progress import Report as Progress
from kn_lens.attribution.baselines import Ablation, Activation, GradientXActivation, LogProbGain
from kn_lens.attribution.baselines._one_by_one import NeuronwiseMethod
from kn_lens.attribution.chosen_neurons import ChosenNeurons, neuron_keys
from kn_lens.attribution.integrated_gradients import IntegratedGradients
from kn_lens.attribution.integration import PathRule
from kn_lens.attribution.method import AttributionMethod, PathMethod
from kn_lens.attribution.outputs import Output, resolve_output
from kn_lens.attribution.quadrature import RULES, fixed_rule, nested_levels
from kn_lens.attribution.single_path import SinglePath
from kn_lens.attribution.starts import PathStart, Start, resolve_starts
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import Host
from kn_lens.prompts import PromptBatch

METHODS: dict[str, type[AttributionMethod]] = {
    IntegratedGradients.name: IntegratedGradients,
    SinglePath.name: SinglePath,
    Activation.name: Activation,
    GradientXActivation.name: GradientXActivation,
    LogProbGain.name: LogProbGain,
    Ablation.name: Ablation,
}
"""The methods by name."""

PRESETS = {"paper": ("right", 20), "official": ("left", 20)}
"""The quadratures of the paper's equation 3 and of its released code."""

Neurons = Iterable[NeuronLike] | Mapping[Fact, Iterable[NeuronLike]]
"""The same neurons for all prompts, or those of each fact for its prompts."""


@dataclass(frozen=True, kw_only=True)
class AttributionOptions:
    """The keyword arguments of ``attribute``; see there for their meaning.

    Raises:
        ArgumentError: an option out of range, or two that exclude each other.
    """

    method: Method = defaults.METHOD
    output: str | Output = defaults.OUTPUT
    preset: Preset | None = None
    quadrature: str = defaults.QUADRATURE
    n_steps: int | None = None
    tolerance: float = defaults.TOLERANCE
    max_points: int = 129
    start: Start | Sequence[Start] | None = None
    layers: Sequence[int] | None = None
    neurons: Neurons | None = None
    keep: float | None = None
    memory_budget: float | None = None
    progress: Progress | bool | None = None

    def __post_init__(self) -> None:
        known = get_args(Method)
        if self.method not in known:
            hint = did_you_mean(self.method, known)
            raise ArgumentError(f"Unknown method {self.method!r}; expected one of {', '.join(known)}.{hint}")
        check_number("tolerance", self.tolerance)
        self.rule(self.tolerance)
        if not 0 < self.tolerance < float("inf"):
            raise ArgumentError(f"tolerance={self.tolerance}; expected a positive number, such as 1e-3.")
        if self.keep is not None:
            check_share("keep", self.keep)

    def rule(self, tolerance: float) -> PathRule:
        """Return the quadrature.

        Args:
            tolerance: for the completeness gap, relative to the clean output.

        Raises:
            ArgumentError: unknown rule or preset, or a number of points that does not go with it.
        """
        rule, n_steps = self.quadrature, self.n_steps
        if self.preset is not None:
            if self.preset not in PRESETS:
                raise ArgumentError(
                    f"Unknown preset {self.preset!r}; expected one of {', '.join(PRESETS)}."
                    f"{did_you_mean(self.preset, PRESETS)}"
                )
            if rule != "adaptive" or n_steps is not None:
                raise ArgumentError(
                    f"preset={self.preset!r} fixes the quadrature: leave quadrature and n_steps out, or the preset."
                )
            rule, n_steps = PRESETS[self.preset]
        if rule == "adaptive":
            if n_steps is not None:
                raise ArgumentError(
                    f"n_steps={n_steps} with quadrature='adaptive', which chooses the number itself: "
                    "bound it with max_points, or name a fixed rule such as 'gauss-legendre'."
                )
            fewest = len(nested_levels(self.max_points)[0])
            name = f"adaptive, {fewest} to {self.max_points} points"
            return PathRule(name=name, fixed=None, max_points=self.max_points, tolerance=tolerance)
        if rule not in RULES:
            raise ArgumentError(
                f"Unknown quadrature {rule!r}; expected one of {', '.join(QUADRATURES)}."
                f"{did_you_mean(rule, QUADRATURES)}"
            )
        n_steps = defaults.N_STEPS if n_steps is None else n_steps
        fixed = fixed_rule(rule, n_steps)
        return PathRule(name=f"{rule}, {n_steps} points", fixed=fixed, max_points=n_steps, tolerance=tolerance)

    def tolerance_of(self, host: Host) -> float:
        """Return the relative tolerance for a model.

        Half precision has coarser rounding than any useful tolerance: refining further would chase noise.
        """
        return max(self.tolerance, 2 * torch.finfo(host.dtype).eps)

    def method_for(self, host: Host) -> AttributionMethod:
        """Return the method with its settings for a model."""
        method = METHODS[self.method]
        if issubclass(method, NeuronwiseMethod):
            return method(self.chosen_neurons(host))
        if not issubclass(method, PathMethod):
            return method()
        return method(self.rule(self.tolerance_of(host)))

    def output_for(self, prompts: PromptBatch) -> Output:
        """Return the output that is explained.

        Raises:
            ArgumentError: unknown name, or it needs a contrast answer and the prompts have none.
        """
        output = METHODS[self.method].output or self.output
        return resolve_output(output, has_contrast=prompts.contrast_ids is not None)

    def check_positions(self, prompts: PromptBatch) -> None:
        """Raise if the method has no scores where the prompts are put.

        Raises:
            ArgumentError: it reads the answer off the residual stream of the layer, which it does where it is moved.
        """
        if not METHODS[self.method].exits_early or prompts.post_pos is prompts.read_pos:
            return
        if prompts.side == "encoder":
            raise ArgumentError(
                f"{self.method} reads the answer off the residual stream right after the layer, which that of an "
                "encoder does not hold; expected another method, such as 'integrated_gradients', or prompts for the "
                "decoder: make_prompts(model, facts)."
            )
        if bool((prompts.post_pos != prompts.read_pos).any()):
            raise ArgumentError(
                f"{self.method} reads the answer off the residual stream right after the layer, where other positions "
                "have not been read yet; expected positions='read', or another method, such as "
                "'integrated_gradients'."
            )

    def starts_for(self, host: Host, prompts: PromptBatch) -> tuple[PathStart, ...]:
        """Return where paths start.

        Raises:
            ArgumentError: the method has no start, or one that does not go with the prompts.
        """
        method = METHODS[self.method]
        if self.start is not None and not method.takes_start:
            raise ArgumentError(f"{self.method} moves no activation from a start to the clean one: leave start out.")
        start = "zero" if self.start is None and self.preset is not None else self.start
        return resolve_starts(start, host, prompts, norm_needs_mean=method is IntegratedGradients)

    def layers_of(self, host: Host) -> list[int]:
        """Return the layers to attribute.

        Raises:
            ArgumentError: no layer, one twice, or one that the model does not have.
        """
        if self.layers is None:
            return list(range(host.n_layers))
        check_kind(self.layers, Sequence, "a list of layers: [0, 1]", "layers")
        for layer in self.layers:
            host.resid_pre(layer)  # raises for a layer that does not exist
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ArgumentError(f"layers={list(self.layers)}; expected at least one layer, and none twice.")
        return list(self.layers)

    def chosen_neurons(self, host: Host) -> ChosenNeurons | None:
        """Return the neurons of each fact; None where all prompts have the same, or all neurons."""
        if isinstance(self.neurons, Mapping):
            return ChosenNeurons.of(cast("Mapping[Fact, Iterable[NeuronLike]]", self.neurons), host.layout)
        return None

    def neurons_of(self, host: Host) -> dict[int, Int[Tensor, " chosen"]] | None:
        """Return the chosen rows of every layer to attribute, of any fact, ascending; None for all neurons.

        Raises:
            ArgumentError: the method takes no choice of neurons, or not one for each fact, or needs one; or a neuron
                that is not in the layers.
        """
        choice = METHODS[self.method].neurons
        if self.neurons is None:
            if choice == "required":
                raise ArgumentError(
                    f"{self.method} integrates one neuron at a time: name them with neurons=NeuronSet(...)."
                )
            return None
        if choice == "all":
            raise ArgumentError(
                f"{self.method} scores every neuron at once: leave neurons out, and select from the scores."
            )
        neurons: Iterable[NeuronLike]
        if not isinstance(self.neurons, Mapping):
            neurons = self.neurons
        elif choice == "optional":
            neurons = chain.from_iterable(map(neuron_keys, self.neurons.values()))
        else:
            raise ArgumentError(
                f"{self.method} takes the same neurons for all prompts; got a set for each fact: "
                "attribute the prompts of one fact at a time."
            )
        layers = self.layers_of(host)
        # Sets, so that a neuron named twice counts once.
        chosen: dict[int, set[int]] = {layer: set() for layer in layers}
        for key in neuron_keys(neurons):
            name, layer, row = neuron_name(*key), key[0], host.layout.row(key)
            if layer not in chosen:
                raise ArgumentError(f"{name} is not in the layers to attribute, {layers}.")
            if host.layout.has_experts and row is None:
                raise ArgumentError(f"{name} does not exist; layer {layer} has {host.layout.layers[layer]}.")
            if row is None or not 0 <= row < host.d_mlp:
                raise ArgumentError(f"{name}: index must be between 0 and {host.d_mlp - 1} (d_mlp={host.d_mlp}).")
            chosen[layer].add(row)
        indices_by_layer: dict[int, Int[Tensor, " chosen"]] = {}
        for layer, indices in chosen.items():
            indices_by_layer[layer] = torch.tensor(
                sorted(indices),
                device=host.device,
                dtype=torch.long,
            )
        return indices_by_layer


class KeywordsWithoutKeep(TypedDict, total=False):
    """The fields of ``AttributionOptions`` but ``keep`` as keyword arguments, for type checkers."""

    method: Method
    output: str | Output
    preset: Preset | None
    quadrature: str
    n_steps: int | None
    tolerance: float
    max_points: int
    start: Start | Sequence[Start] | None
    layers: Sequence[int] | None
    neurons: Neurons | None
    memory_budget: float | None
    progress: Progress | bool | None


class AttributionKeywords(KeywordsWithoutKeep, total=False):
    """The fields of ``AttributionOptions`` as keyword arguments, for type checkers."""

    keep: float | None
