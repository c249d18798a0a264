"""Changing chosen neurons while the model runs, as hooks in TransformerLens' own form.

An intervention is data: which neurons, what happens to them, and where. ``hooks(model, prompts)`` turns it into a list
``[(hook_name, hook_fn), ...]`` for forward passes over just these prompts, to be used in ``model.hooks(...)`` or
``model.run_with_hooks(...)``, alone or added to other hooks:

    Suppress   w_i -> 0
    Amplify    w_i -> factor * w_i
    SetTo      w_i -> value

with ``w`` the activation (``hook_post``) of the neuron's layer, by default at the read position of each row only. The
hook functions are pure: they return a changed copy, through which gradients flow. Nothing of the model is written to.
Lists of hooks act in their order, each on what the one before returned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.errors import ArgumentError, HookError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import OF_ROWS, HookFn, Host, host_of
from kn_lens.neuron_sets import NeuronSet
from kn_lens.prompts import PromptBatch

Neurons = NeuronSet | Mapping[Fact, NeuronSet] | Sequence[NeuronSet]
"""One set for all prompts; a set for each fact, acting on that fact's prompts; or a set for each prompt."""

Value = float | Float[Tensor, ""] | Float[Tensor, "n_layers d_mlp"] | Float[Tensor, "row n_layers d_mlp"]
"""What neurons are set to: one number, one for each neuron, or one for each neuron in each row."""

Position = Literal["read", "all"]
"""Where neurons are changed: at each row's read position, or at every position."""

Places = dict[int, tuple[Int[Tensor, "..."], Int[Tensor, "..."]]]
"""For each layer with neurons, the rows and the indices to write to; the two broadcast."""


@runtime_checkable
class Intervention(Protocol):
    """What ``measure`` can try on a model; anything with these two methods will do."""

    def hooks(self, model: Any, prompts: PromptBatch) -> list[tuple[str, HookFn]]:
        """Return hooks for forward passes over the rows of ``prompts``, in TransformerLens' form."""
        ...

    def select(self, prompts: PromptBatch, chosen: Int[Tensor, " some"]) -> "Intervention":
        """Return the intervention on ``prompts.select(chosen)``: itself, unless it says something for each prompt."""
        ...


@runtime_checkable
class Resumable(Intervention, Protocol):
    """An intervention that may let passes start above what it leaves as it is; its ``hooks`` take a ``Host`` too."""

    def lowest_layers(self, model: Any, prompts: PromptBatch) -> Int[Tensor, " batch"] | None:
        """Return the lowest layer that is changed under each prompt, ``n_layers`` where nothing is; or None.

        Layers promise that all its hooks are on ``hook_post``, change the read position alone, treat rows by
        themselves, and read no more of the prompts than that; None promises nothing.
        """
        ...


@dataclass(frozen=True)
class _Change:
    """What the interventions share; a subclass says what becomes of the activations."""

    neurons: Neurons
    position: Position = field(default="read", kw_only=True)

    def __post_init__(self) -> None:
        if self.position not in ("read", "all"):
            raise ArgumentError(
                f"position={self.position!r}; expected 'read' or 'all'."
                + did_you_mean(str(self.position), ("read", "all"))
            )
        sets = self.neurons.values() if isinstance(self.neurons, Mapping) else self.neurons
        is_one = isinstance(self.neurons, NeuronSet)
        if not is_one and not (
            isinstance(self.neurons, (Mapping, Sequence)) and all(isinstance(one, NeuronSet) for one in sets)
        ):
            raise ArgumentError(
                f"Got neurons of type {type(self.neurons).__name__}; expected a NeuronSet, a mapping from facts to "
                "NeuronSets, or a sequence with one NeuronSet for each prompt."
            )

    def hooks(self, model: Any, prompts: PromptBatch) -> list[tuple[str, HookFn]]:
        """Return one hook for each layer with neurons, for forward passes over the rows of ``prompts``.

        Args:
            model: the model that they will run on; a ``Host`` will do.
            prompts: the batch that will be run, whole and in its order.

        Raises:
            ArgumentError: a neuron that the model does not have, prompts that were made for another model, a prompt
                whose fact has no set, another number of sets than prompts, or values (of ``SetTo``) that do not fit or
                are not finite.
            HookError: when run, on activations of another batch.
        """
        host = model if isinstance(model, Host) else host_of(model)
        prompts.check_for(host)
        places = _places(_resolve(self.neurons, host, prompts), prompts)
        self._check(host, prompts, places)
        return [
            (host.hook_post(layer), self._hook(layer, rows, index, host, prompts))
            for layer, (rows, index) in places.items()
        ]

    def lowest_layers(self, model: Any, prompts: PromptBatch) -> Int[Tensor, " batch"] | None:
        """Return the lowest layer with neurons of each prompt, ``n_layers`` without any; None for all positions."""
        if self.position == "all":
            return None
        host = model if isinstance(model, Host) else host_of(model)
        sets = _resolve(self.neurons, host, prompts)
        each = [sets] * len(prompts) if isinstance(sets, NeuronSet) else sets
        lowest = [next((neuron.layer for neuron in one), host.n_layers) for one in each]
        return torch.tensor(lowest, device=prompts.tokens.device)

    def select(self, prompts: PromptBatch, chosen: Int[Tensor, " some"]) -> "_Change":
        """Return the intervention on ``prompts.select(chosen)``."""
        if isinstance(self.neurons, (NeuronSet, Mapping)):
            return self
        return replace(self, neurons=[self.neurons[prompt] for prompt in chosen.tolist()])

    def _hook(
        self, layer: int, rows: Int[Tensor, "..."], index: Int[Tensor, "..."], host: Host, prompts: PromptBatch
    ) -> HookFn:
        at_read = self.position == "read"
        where = (rows, prompts.read_pos[rows] if at_read else slice(None), index)
        expected = f"[{prompts.n_rows}, {int(prompts.read_pos.max()) + 1} or more, {host.d_mlp}]"

        def hook_fn(post: Float[Tensor, "row pos d_mlp"], hook: object = None) -> Float[Tensor, "row pos d_mlp"]:
            if (
                post.ndim != 3
                or post.shape[::2] != (prompts.n_rows, host.d_mlp)
                or post.shape[1] <= int(prompts.read_pos.max())
            ):
                raise HookError(
                    f"{type(self).__name__} met activations of shape {list(post.shape)} in layer {layer}; expected "
                    f"{expected} (row, pos, d_mlp): these hooks are for the rows of one batch, and fit no others. In "
                    "model.hooks(...) run the model on that batch, whole and in its order. kn_lens' own functions run "
                    "a batch in parts, attribute runs each many times: pass interventions to measure, and to attribute "
                    "with neurons off erase them: with erase_neurons(model, neurons).applied(model): ..."
                )
            changed = post.clone()
            changed[where] = self._changed(post[where], layer, rows, index)
            return changed

        # One set at every position is for any rows in any order, as long as there are as many.
        setattr(hook_fn, OF_ROWS, at_read or not isinstance(self.neurons, NeuronSet))
        return hook_fn

    def _check(self, host: Host, prompts: PromptBatch, places: Places) -> None:
        """Raise when what the subclass holds does not fit the model, the prompts or the neurons."""

    def _changed(
        self, old: Float[Tensor, "..."], layer: int, rows: Int[Tensor, "..."], index: Int[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """Return the new activations; one axis more than ``rows`` and ``index`` broadcast to: pos, for ``all``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Suppress(_Change):
    """Turn neurons off: ``w_i -> 0``.

    Attributes:
        neurons: a ``NeuronSet``, a set for each fact, or a sequence with a set for each prompt.
        position: ``"read"`` or ``"all"``.

    >>> Suppress(NeuronSet([(9, 7)])).position
    'read'
    """

    def _changed(
        self, old: Float[Tensor, "..."], layer: int, rows: Int[Tensor, "..."], index: Int[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        return torch.zeros_like(old)


@dataclass(frozen=True)
class Amplify(_Change):
    """Multiply neurons: ``w_i -> factor * w_i``.

    Attributes:
        neurons: a ``NeuronSet``, a set for each fact, or a sequence with a set for each prompt.
        factor: 2 in the paper; between 0 and 1 it weakens, below 0 it turns the sign.
        position: ``"read"`` or ``"all"``.

    Raises:
        ArgumentError: neurons of another type, another position, or a factor that is not finite.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="P36"))
        >>> neurons = kn.NeuronSet([(3, 5), (3, 17)])
        >>> off, times_0 = (kn.measure(model, prompts, one) for one in (Suppress(neurons), Amplify(neurons, 0.0)))
        >>> bool((off.after == times_0.after).all())
        True
    """

    factor: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.factor):
            raise ArgumentError(f"factor={self.factor}; expected a finite number, such as 2.0.")

    def _changed(
        self, old: Float[Tensor, "..."], layer: int, rows: Int[Tensor, "..."], index: Int[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        return self.factor * old


@dataclass(frozen=True, eq=False)
class SetTo(_Change):
    """Set neurons to given activations: ``w_i -> value``.

    Attributes:
        neurons: a ``NeuronSet``, a set for each fact, or a sequence with a set for each prompt.
        value: one number; or, of which only the neurons' entries are read, an activation for every neuron of the model,
            ``[n_layers, d_mlp]``, or for every neuron in each row of the prompts, ``[row, n_layers, d_mlp]``. Where
            every answer has one token, the scores of ``attribute(..., method="activation")`` are of the last kind.
        position: ``"read"`` or ``"all"``; all positions get the same value.

    Raises:
        ArgumentError: neurons of another type, another position, or a value that is no finite number and no tensor of
            these shapes; whether a tensor fits, and is finite where it is read, is seen when it meets a model.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="P36"))
        >>> clean = kn.attribute(model, prompts, method="activation").scores
        >>> as_it_was = kn.measure(model, prompts, SetTo(kn.NeuronSet([(3, 5)]), clean))
        >>> bool(as_it_was.change.abs().max() < 1e-5)
        True
    """

    value: Value

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.value, Tensor) and self.value.ndim:
            if self.value.ndim not in (2, 3):
                raise ArgumentError(
                    f"value has the shape {list(self.value.shape)}; expected one number, [n_layers, d_mlp] or "
                    "[row, n_layers, d_mlp]."
                )
            if self.value.is_sparse:
                raise ArgumentError(
                    "value is a sparse tensor, which lacks the scores that were dropped; expected an activation for "
                    "every neuron, as of attribute(..., method='activation', keep=None)."
                )
            return
        try:
            number = float(self.value)
        except (TypeError, ValueError):
            raise ArgumentError(f"value={self.value!r}; expected a number or a tensor of activations.") from None
        if not math.isfinite(number):
            raise ArgumentError(f"value={number}; expected a finite number.")
        object.__setattr__(self, "value", number)  # also what was a tensor without axes

    def select(self, prompts: PromptBatch, chosen: Int[Tensor, " some"]) -> "_Change":
        """Return the intervention on ``prompts.select(chosen)``."""
        narrowed = super().select(prompts, chosen)
        if isinstance(self.value, Tensor) and self.value.ndim == 3:
            return replace(narrowed, value=self.value[prompts.rows_of(chosen)])
        return narrowed

    def _check(self, host: Host, prompts: PromptBatch, places: Places) -> None:
        if not isinstance(self.value, Tensor):
            return
        expected = [prompts.n_rows, host.n_layers, host.d_mlp][-self.value.ndim :]
        if list(self.value.shape) != expected or self.value.device != host.device:
            raise ArgumentError(
                f"value has the shape {list(self.value.shape)}, on {self.value.device}; expected {expected}, on "
                f"{host.device}."
            )
        for layer, (rows, index) in places.items():
            if not bool(self._of(layer, rows, index).isfinite().all()):
                raise ArgumentError(
                    f"value holds NaN or infinity for a neuron of layer {layer}; expected finite activations. Scores "
                    "that were not computed are NaN."
                )

    def _of(self, layer: int, rows: Int[Tensor, "..."], index: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the values of some neurons in some rows; without rows where they are the same in all."""
        assert isinstance(self.value, Tensor)
        return self.value[rows, layer, index] if self.value.ndim == 3 else self.value[layer, index]

    def _changed(
        self, old: Float[Tensor, "..."], layer: int, rows: Int[Tensor, "..."], index: Int[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        if not isinstance(self.value, Tensor):
            return torch.full_like(old, self.value)
        new = self._of(layer, rows, index).to(old.dtype)
        return new[..., None] if self.position == "all" else new


def _resolve(neurons: Neurons, host: Host, prompts: PromptBatch) -> NeuronSet | list[NeuronSet]:
    """Return one set for all prompts, or a list with each prompt's, once the model has all of their neurons."""
    if isinstance(neurons, NeuronSet):
        neurons.check(host)
        return neurons
    if isinstance(neurons, Mapping):
        of_fact: dict[int, NeuronSet] = {}
        for i in prompts.fact_index.unique().tolist():
            fact = prompts.facts[i]
            if fact not in neurons:
                raise ArgumentError(
                    f"There is no set of neurons for {fact.key}, which some of the prompts ask for; give it one, if "
                    f"need be an empty NeuronSet().{did_you_mean(fact.key, (other.key for other in neurons))}"
                )
            of_fact[i] = neurons[fact]
        sets = [of_fact[i] for i in prompts.fact_index.tolist()]
    else:
        sets = list(neurons)
        if len(sets) != len(prompts):
            raise ArgumentError(f"Got {len(sets)} sets of neurons for {len(prompts)} prompts; expected one for each.")
    for different in set(sets):
        different.check(host)
    return sets


def _places(sets: NeuronSet | list[NeuronSet], prompts: PromptBatch) -> Places:
    """Return where neurons are changed."""
    device = prompts.tokens.device
    if isinstance(sets, NeuronSet):
        rows = rearrange(torch.arange(prompts.n_rows, device=device), "row -> row 1")
        return {layer: (rows, torch.tensor(index, device=device)) for layer, index in sets.by_layer().items()}
    layers_of = {different: different.by_layer() for different in set(sets)}
    found: dict[int, tuple[list[int], list[int]]] = {}
    for row, prompt in enumerate(prompts.prompt_index.tolist()):
        for layer, index in layers_of[sets[prompt]].items():
            rows_there, index_there = found.setdefault(layer, ([], []))
            rows_there += [row] * len(index)
            index_there += index
    return {
        layer: (torch.tensor(rows, device=device), torch.tensor(index, device=device))
        for layer, (rows, index) in sorted(found.items())
    }
