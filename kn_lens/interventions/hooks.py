"""Interventions on chosen neurons during a forward pass, as TransformerLens hooks.

An intervention is data: the neurons, the operation and the positions. ``hooks(model, prompts)`` turns it into a list
``[(hook_name, hook_fn), ...]`` for forward passes over exactly these prompts. Use the list in ``model.hooks(...)`` or
``model.run_with_hooks(...)``, alone or added to other hooks:

    Suppress   w_i -> 0
    Amplify    w_i -> factor * w_i
    SetTo      w_i -> value

``w_i`` is the activation of neuron ``i`` at ``hook_post`` of its layer, by default only at the read position of each
row, or where ``prompts.at`` has put the prompts; that of an expert's neuron has the routing weight as a factor
(``hosts.experts``). The hook functions are pure: they return a changed copy, through which gradients flow, and write
nothing to the model. The hooks of a list run in order, each on the output of the one before.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kn_lens._core.checks import check_number, wrong_kind
from kn_lens._core.notation import NeuronLike
from kn_lens._core.precision import at_least_float32
from kn_lens._core.wording import counted
from kn_lens.errors import ArgumentError, HookError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import FOR_ONE_BATCH, HookedModel, HookFn, Host
from kn_lens.neurons import Neuron, NeuronSet, neuron_set_of
from kn_lens.prompts import PromptBatch, check_prompts, host_for, one_position, subject_mask

Sets = NeuronSet | Mapping[Fact, NeuronSet] | Sequence[NeuronSet]
"""One set for all prompts; a set for each fact, which applies to the fact's prompts; or a set for each prompt."""

Neurons = Sets | NeuronLike | Sequence[NeuronLike]
"""Sets, or the neurons of one set."""

Value = float | Float[Tensor, ""] | Float[Tensor, "n_layers d_mlp"] | Float[Tensor, "row n_layers d_mlp"]
"""A target activation: one number, one for each neuron of the model, or one for each neuron in each row."""

Position = Literal["read", "subject_last", "subject", "all"]
"""The changed positions: the read position of each row, its subject's last token, all tokens of the subject, or all."""

Cells = dict[int, tuple[Int[Tensor, "..."], Int[Tensor, "..."]]]
"""For each layer with neurons, the rows and the neuron indices to change, which broadcast against each other."""


@runtime_checkable
class Intervention(Protocol):
    """An intervention that ``measure`` can apply: any object with these two methods."""

    def hooks(
        self,
        model: HookedModel | Host,
        prompts: PromptBatch,
    ) -> list[tuple[str, HookFn]]:
        """Return TransformerLens hooks for forward passes over the rows of ``prompts``."""
        ...

    def select(
        self,
        prompts: PromptBatch,
        chosen: Int[Tensor, " chosen"],
    ) -> "Intervention":
        """Return the intervention on ``prompts.select(chosen)``; the same object unless it holds values per prompt."""
        ...


@runtime_checkable
class Resumable(Intervention, Protocol):
    """An intervention whose passes may start at the lowest layer that it changes; ``hooks`` also takes a ``Host``."""

    def lowest_layers(
        self,
        model: HookedModel | Host,
        prompts: PromptBatch,
    ) -> Int[Tensor, " batch"] | None:
        """Return the lowest changed layer for each prompt, ``n_layers`` where no layer is changed; or None.

        A tensor of layers guarantees that every hook changes and reads ``prompts.post_pos`` only, and treats each row
        independently of the others; and that it is on ``hook_post``, or on what enters and leaves the MLP of a layer
        with experts. None guarantees nothing.
        """
        ...


@runtime_checkable
class Positionwise(Intervention, Protocol):
    """An intervention that treats all positions alike, whatever their number: passes may leave some out.

    Its hooks are on ``hook_post`` and ``mlp_out`` alone.
    """

    treats_positions_alike: bool


@dataclass(frozen=True)
class _NeuronIntervention:
    """Base of the interventions; a subclass computes the new activations in ``_changed``."""

    neurons: Neurons
    position: Position | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        known = get_args(Position)
        if self.position is not None and self.position not in known:
            raise ArgumentError(
                f"position={self.position!r}; expected 'read', 'subject_last', 'subject', 'all', or None: where "
                f"prompts.at has put the prompts.{did_you_mean(str(self.position), known)}"
            )
        object.__setattr__(self, "neurons", _checked_sets(self.neurons))

    def hooks(
        self,
        model: HookedModel | Host,
        prompts: PromptBatch,
    ) -> list[tuple[str, HookFn]]:
        """Return one hook for each layer with neurons, for forward passes over the rows of ``prompts``.

        In a layer with experts there are two, on what enters the MLP and on what leaves it: the first computes the
        activations of the neurons, the second adds what their change writes. A neuron whose expert a token is not
        routed to has no activation to change. Of two interventions on one such neuron, both start from its activation
        without the other.

        Args:
            model: the model that the hooks will run on, or its ``Host``.
            prompts: the batch that will be run, complete and in its order.

        Raises:
            ArgumentError: the model lacks a neuron, the prompts were made for another model, the fact of a prompt has
                no set, the number of sets differs from the number of prompts, or the values of ``SetTo`` have another
                shape or are not finite.
            HookError: hooks of the user come between the activations of experts and where changes are added; or
                raised by a hook that runs on activations of another batch.
        """
        host = host_for(model, prompts)
        check_prompts(prompts)
        prompts.check_for(host)
        cells = _cells(_resolve(self._sets, host, prompts), host, prompts)
        self._check(host, prompts, cells)
        hooks: list[tuple[str, HookFn]] = []
        for layer, (rows, index) in cells.items():
            if layer in host.expert_layers:
                hooks += self._expert_hooks(layer, rows, index, host, prompts)
                continue
            hook_fn = self._hook(layer, rows, index, host, prompts)
            hooks.append((host.hook_post(layer), hook_fn))
        return hooks

    def lowest_layers(
        self,
        model: HookedModel | Host,
        prompts: PromptBatch,
    ) -> Int[Tensor, " batch"] | None:
        """Return the lowest layer with neurons for each prompt, ``n_layers`` where it has none.

        None unless it acts where the prompts are put.
        """
        acts_there = self.position is None or (self.position == "read" and prompts.moved_pos is None)
        if not acts_there:
            return None
        host = host_for(model, prompts)
        sets = _resolve(self._sets, host, prompts)
        if isinstance(sets, NeuronSet):
            sets = [sets] * len(prompts)
        lowest: list[int] = []
        for neurons in sets:
            first = next(iter(neurons), None)  # neurons are in order of their layers
            lowest.append(host.n_layers if first is None else first.layer)
        return torch.tensor(lowest, device=prompts.tokens.device)

    def select(
        self,
        prompts: PromptBatch,
        chosen: Int[Tensor, " chosen"],
    ) -> "_NeuronIntervention":
        """Return the intervention on ``prompts.select(chosen)``."""
        sets = self._sets
        if isinstance(sets, (NeuronSet, Mapping)):
            return self
        return replace(self, neurons=[sets[prompt] for prompt in chosen.tolist()])

    def __repr__(self) -> str:
        sets = self._sets
        if isinstance(sets, NeuronSet):
            parts = [repr(sets)]
        else:
            parts = [f"sets of {counted(len(sets), 'fact' if isinstance(sets, Mapping) else 'prompt')}"]
        for name in ("factor", "value", "position"):
            value = getattr(self, name, None)
            if isinstance(value, Tensor):
                value = f"tensor of shape {list(value.shape)}"
            if value is not None:
                parts.append(f"{name}={value}")
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def _sets(self) -> Sets:
        return cast("Sets", self.neurons)

    def _hook(
        self,
        layer: int,
        rows: Int[Tensor, "..."],
        index: Int[Tensor, "..."],
        host: Host,
        prompts: PromptBatch,
    ) -> HookFn:
        one_of_row, is_changed = self._positions(prompts)
        location = (rows, slice(None) if one_of_row is None else one_of_row[rows], index)
        d_mlp = host.layout.layers[layer].n_rows if host.layout.layers else host.d_mlp
        check = self._batch_check(layer, prompts, d_mlp, "d_mlp")

        def hook_fn(
            post: Float[Tensor, "row pos d_mlp"],
            hook: object = None,
        ) -> Float[Tensor, "row pos d_mlp"]:
            check(post)
            changed = post.clone()
            new = self._changed(post[location], layer, rows, index)
            if is_changed is not None:
                new = torch.where(_widened(is_changed, post.shape[1])[rows], new, post[location])
            changed[location] = new
            return changed

        self._mark(hook_fn)
        return hook_fn

    def _expert_hooks(
        self,
        layer: int,
        rows: Int[Tensor, "..."],
        index: Int[Tensor, "..."],
        host: Host,
        prompts: PromptBatch,
    ) -> list[tuple[str, HookFn]]:
        """Return the hooks of a layer with experts."""
        host.check_changeable_experts(layer)
        expert_layer = host.expert_layers[layer]
        wanted, column = index.unique(return_inverse=True)
        value_rows = at_least_float32(host.value_rows(layer)[wanted])
        check = self._batch_check(layer, prompts, host.d_model, "d_model")
        every_row = torch.arange(prompts.n_rows, device=host.device)
        one_of_row, is_changed = self._positions(prompts)
        changes: list[Tensor] = []  # from the first hook to the second, within one pass

        def read(mlp_in: Float[Tensor, "row pos d_model"], hook: object = None) -> None:
            check(mlp_in)
            tokens = mlp_in if one_of_row is None else mlp_in[every_row, one_of_row, None]
            activations, is_on = expert_layer.activations_and_state_of(tokens, wanted)
            old = rearrange(activations, "row pos neuron -> row neuron pos")[rows, column]
            on = rearrange(is_on, "row pos neuron -> row neuron pos")[rows, column]
            if one_of_row is None:
                new = self._changed(old, layer, rows, index)
            else:
                new = self._changed(old[..., 0], layer, rows, index)[..., None]
            if is_changed is not None:
                on = on & _widened(is_changed, mlp_in.shape[1])[rows]
            change = torch.zeros_like(rearrange(activations, "row pos neuron -> row neuron pos"))
            change = change.index_put((rows, column), torch.where(on, new - old, 0))
            changes[:] = [rearrange(change, "row neuron pos -> row pos neuron") @ value_rows]

        def add(mlp_out: Float[Tensor, "row pos d_model"], hook: object = None) -> Float[Tensor, "row pos d_model"]:
            if not changes:
                raise HookError(
                    f"The hooks of {type(self).__name__} come in pairs in a layer with experts; "
                    f"that on {host.hook_mlp_in(layer)} did not run."
                )
            added = changes.pop().to(mlp_out.dtype)
            if one_of_row is None:
                return mlp_out + added
            return mlp_out.index_put((every_row, one_of_row), added[:, 0], accumulate=True)

        self._mark(read)
        self._mark(add)
        return [(host.hook_mlp_in(layer), read), (host.hook_mlp_out(layer), add)]

    def _positions(self, prompts: PromptBatch) -> tuple[Int[Tensor, " row"] | None, Bool[Tensor, "row pos"] | None]:
        """Return the changed position of each row, where it has one, or which of its positions are changed.

        Both are None where all are.
        """
        if self.position is None:
            return prompts.post_pos, None
        if self.position == "all":
            return None, None
        if self.position == "subject":
            return None, subject_mask(prompts)
        return one_position(prompts, self.position), None

    def _batch_check(self, layer: int, prompts: PromptBatch, width: int, name: str) -> Callable[[Tensor], None]:
        """Return the function that raises unless values are those of the prompts, with a last axis of this width."""
        # Also where other positions are changed: values without the read position are of other prompts.
        last_read_pos = int(prompts.answer_pos.max())

        def check(value: Tensor) -> None:
            is_of_batch = value.ndim == 3 and value.shape[::2] == (prompts.n_rows, width)
            if not is_of_batch or value.shape[1] <= last_read_pos:
                raise HookError(
                    f"{type(self).__name__} met activations of shape {list(value.shape)} in layer {layer}; "
                    f"expected [{prompts.n_rows}, {last_read_pos + 1} or more, {width}] "
                    f"(row, pos, {name}): these hooks are for the rows of one batch, and fit no others. "
                    "In model.hooks(...) run the model on that batch, whole and in its order. "
                    "kn_lens' own functions run a batch in parts, attribute runs each many times: "
                    "pass interventions to measure, and to attribute with neurons off erase them: "
                    "with erase_neurons(model, neurons).applied(model): ..."
                )

        return check

    def _mark(self, hook_fn: HookFn) -> None:
        """Note on a hook whether it is for one batch."""
        # One set at every position fits any batch with this number of rows, in any order.
        for_one_batch = self.position != "all" or not isinstance(self.neurons, NeuronSet)
        setattr(hook_fn, FOR_ONE_BATCH, for_one_batch)

    def _check(self, host: Host, prompts: PromptBatch, cells: Cells) -> None:
        """Raise if the values of the subclass do not fit the model, the prompts or the neurons."""

    def _changed(
        self,
        old: Float[Tensor, "..."],
        layer: int,
        rows: Int[Tensor, "..."],
        index: Int[Tensor, "..."],
    ) -> Float[Tensor, "..."]:
        """Return the new activations.

        ``old`` has the axes that ``rows`` and ``index`` broadcast to; where several positions of a row are changed one
        more, the last: pos.
        """
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Suppress(_NeuronIntervention):
    """Turn neurons off: ``w_i -> 0``.

    Attributes:
        neurons: a ``NeuronSet`` or its neurons (``["L9N7"]``), a set for each fact, or a set for each prompt.
        position: ``"read"``, ``"subject_last"`` (the subject's last token), ``"subject"`` (all its tokens) or
            ``"all"``; None: where the prompts are put, the read position unless ``prompts.at`` says otherwise.

    >>> Suppress(NeuronSet([(9, 7)]), position="subject_last")
    Suppress(NeuronSet(['L9N7']), position=subject_last)
    """

    def _changed(
        self,
        old: Float[Tensor, "..."],
        layer: int,
        rows: Int[Tensor, "..."],
        index: Int[Tensor, "..."],
    ) -> Float[Tensor, "..."]:
        return torch.zeros_like(old)


@dataclass(frozen=True, repr=False)
class Amplify(_NeuronIntervention):
    """Multiply neurons: ``w_i -> factor * w_i``.

    Attributes:
        neurons: a ``NeuronSet`` or its neurons (``["L9N7"]``), a set for each fact, or a set for each prompt.
        factor: 2 in the paper; a factor between 0 and 1 weakens a neuron, a negative one turns its sign.
        position: see ``Suppress``.

    Raises:
        ArgumentError: ``neurons`` has another type, ``position`` another value, or ``factor`` is not finite.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="P36"))
        >>> neurons = kn.NeuronSet([(3, 5), (3, 17)])
        >>> suppressed = kn.measure(model, prompts, Suppress(neurons))
        >>> times_0 = kn.measure(model, prompts, Amplify(neurons, 0.0))
        >>> bool((suppressed.after == times_0.after).all())
        True
    """

    factor: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("factor", self.factor)
        if not math.isfinite(self.factor):
            raise ArgumentError(f"factor={self.factor}; expected a finite number, such as 2.0.")

    def _changed(
        self,
        old: Float[Tensor, "..."],
        layer: int,
        rows: Int[Tensor, "..."],
        index: Int[Tensor, "..."],
    ) -> Float[Tensor, "..."]:
        return self.factor * old


@dataclass(frozen=True, eq=False, repr=False)
class SetTo(_NeuronIntervention):
    """Set neurons to given activations: ``w_i -> value``.

    Attributes:
        neurons: a ``NeuronSet`` or its neurons (``["L9N7"]``), a set for each fact, or a set for each prompt.
        value: one number; an activation for every neuron of the model, ``[n_layers, d_mlp]``; or one for every neuron
            in each row of the prompts, ``[row, n_layers, d_mlp]``. Only the entries of ``neurons`` are read. Where
            every answer has one token, the scores of ``attribute(..., method="activation")`` have the last shape.
        position: see ``Suppress``; all positions get the same value.

    Raises:
        ArgumentError: ``neurons`` has another type, ``position`` another value, or ``value`` is neither a finite number
            nor a tensor with two or three axes. ``hooks`` checks that a tensor fits the model and the prompts, and that
            the entries that are read are finite.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="P36"))
        >>> clean = kn.attribute(model, prompts, method="activation").scores
        >>> unchanged = kn.measure(model, prompts, SetTo(kn.NeuronSet([(3, 5)]), clean))
        >>> bool(unchanged.change.abs().max() < 1e-5)
        True
    """

    value: Value

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.value, Tensor) and self.value.ndim:
            if self.value.ndim not in (2, 3):
                raise ArgumentError(
                    f"value has the shape {list(self.value.shape)}; "
                    "expected one number, [n_layers, d_mlp] or [row, n_layers, d_mlp]."
                )
            if self.value.is_sparse:
                raise ArgumentError(
                    "value is a sparse tensor, which lacks the scores that were dropped; "
                    "expected an activation for every neuron, "
                    "as of attribute(..., method='activation', keep=None)."
                )
            return
        try:
            number = float(self.value)
        except (TypeError, ValueError):
            raise ArgumentError(f"value={self.value!r}; expected a number or a tensor of activations.") from None
        if not math.isfinite(number):
            raise ArgumentError(f"value={number}; expected a finite number.")
        object.__setattr__(self, "value", number)  # a tensor without axes becomes a float

    def select(
        self,
        prompts: PromptBatch,
        chosen: Int[Tensor, " chosen"],
    ) -> "_NeuronIntervention":
        """Return the intervention on ``prompts.select(chosen)``."""
        selected = super().select(prompts, chosen)
        if isinstance(self.value, Tensor) and self.value.ndim == 3:
            return replace(selected, value=self.value[prompts.rows_of(chosen)])
        return selected

    def _check(self, host: Host, prompts: PromptBatch, cells: Cells) -> None:
        if not isinstance(self.value, Tensor):
            return
        expected = [prompts.n_rows, host.n_layers, host.d_mlp][-self.value.ndim :]
        if list(self.value.shape) != expected or self.value.device != host.device:
            raise ArgumentError(
                f"value has the shape {list(self.value.shape)}, on {self.value.device}; "
                f"expected {expected}, on {host.device}."
            )
        for layer, (rows, index) in cells.items():
            if not bool(self._values(layer, rows, index).isfinite().all()):
                raise ArgumentError(
                    f"value holds NaN or infinity for a neuron of layer {layer}; "
                    "expected finite activations. Scores that were not computed are NaN."
                )

    def _values(
        self,
        layer: int,
        rows: Int[Tensor, "..."],
        index: Int[Tensor, "..."],
    ) -> Float[Tensor, "..."]:
        """Return the values of neurons of a layer in ``rows``, or, where all rows share them, without the row axis."""
        assert isinstance(self.value, Tensor)
        if self.value.ndim == 3:
            return self.value[rows, layer, index]
        return self.value[layer, index]

    def _changed(
        self,
        old: Float[Tensor, "..."],
        layer: int,
        rows: Int[Tensor, "..."],
        index: Int[Tensor, "..."],
    ) -> Float[Tensor, "..."]:
        if not isinstance(self.value, Tensor):
            return torch.full_like(old, self.value)
        new = self._values(layer, rows, index).to(old.dtype)
        return new[..., None] if self.position in ("all", "subject") else new


def _widened(is_changed: Bool[Tensor, "row pos"], n_pos: int) -> Bool[Tensor, "row {n_pos}"]:
    """Return which of so many positions are changed, none of those beyond the tokens of the prompts."""
    n_missing = max(0, n_pos - is_changed.shape[1])
    return nn.functional.pad(is_changed, (0, n_missing))[:, :n_pos]


def _checked_sets(neurons: Any) -> Sets:
    """Return one set, a mapping to sets or a sequence of sets; neurons that are given alone become one set.

    Raises:
        ArgumentError: something else.
    """
    if isinstance(neurons, NeuronSet):
        return neurons
    if isinstance(neurons, (str, Neuron)):
        return neuron_set_of(neurons)
    if isinstance(neurons, Mapping):
        are_facts = all(isinstance(fact, Fact) for fact in neurons)
        sets = list(neurons.values()) if are_facts else [None]
    elif isinstance(neurons, Sequence):
        sets = neurons
        if sets and all(isinstance(neuron, (str, tuple)) for neuron in sets):
            return neuron_set_of(neurons)
    else:
        sets = [None]
    if not all(isinstance(neuron_set, NeuronSet) for neuron_set in sets):
        expected = (
            "a NeuronSet, a mapping from facts to NeuronSets, or a sequence with one NeuronSet for each prompt: "
            "kn_lens.NeuronSet(['L2N7'])"
        )
        raise wrong_kind(neurons, expected, "neurons")
    return neurons


def _resolve(
    neurons: Sets,
    host: Host,
    prompts: PromptBatch,
) -> NeuronSet | list[NeuronSet]:
    """Return one set for all prompts or a list with the set of each prompt; raise if the model lacks a neuron."""
    if isinstance(neurons, NeuronSet):
        neurons.check(host)
        return neurons
    if isinstance(neurons, Mapping):
        set_by_fact: dict[int, NeuronSet] = {}
        for fact_index in prompts.fact_index.unique().tolist():
            fact = prompts.facts[fact_index]
            if fact not in neurons:
                near = did_you_mean(fact.key, (other.key for other in neurons))
                raise ArgumentError(
                    f"There is no set of neurons for {fact.key}, which some of the prompts ask for; "
                    f"give it one, if need be an empty NeuronSet().{near}"
                )
            set_by_fact[fact_index] = neurons[fact]
        sets = [set_by_fact[fact_index] for fact_index in prompts.fact_index.tolist()]
    else:
        sets = list(neurons)
        if len(sets) != len(prompts):
            raise ArgumentError(f"Got {len(sets)} sets of neurons for {len(prompts)} prompts; expected one for each.")
    for neuron_set in set(sets):
        neuron_set.check(host)
    return sets


def _cells(sets: NeuronSet | list[NeuronSet], host: Host, prompts: PromptBatch) -> Cells:
    """Return the rows of prompts and of neurons to change in each layer, in order of the layers."""
    device = prompts.tokens.device
    cells: Cells = {}
    if isinstance(sets, NeuronSet):
        rows = rearrange(torch.arange(prompts.n_rows, device=device), "row -> row 1")
        for layer, index in sets.rows_by_layer(host).items():
            cells[layer] = (rows, torch.tensor(index, device=device))
        return cells
    by_layer = {neuron_set: neuron_set.rows_by_layer(host) for neuron_set in set(sets)}
    lists: dict[int, tuple[list[int], list[int]]] = {}
    for row, prompt in enumerate(prompts.prompt_index.tolist()):
        for layer, index in by_layer[sets[prompt]].items():
            layer_rows, layer_index = lists.setdefault(layer, ([], []))
            layer_rows += [row] * len(index)
            layer_index += index
    for layer, (layer_rows, layer_index) in sorted(lists.items()):
        cells[layer] = (
            torch.tensor(layer_rows, device=device),
            torch.tensor(layer_index, device=device),
        )
    return cells


def check_expert_neurons_once(interventions: Sequence[Intervention], host: Host, prompts: PromptBatch) -> None:
    """Raise if two interventions change one neuron of an expert under one prompt.

    Both would start from its activation without the other, where those on another neuron act in their order.

    Raises:
        ArgumentError: with the neuron.
    """
    if not host.layout.has_experts:
        return
    changed: set[tuple[int, int, int]] = set()
    for intervention in interventions:
        if not isinstance(intervention, _NeuronIntervention):
            continue
        own: set[tuple[int, int, int]] = set()
        for layer, cells in _cells(_resolve(intervention._sets, host, prompts), host, prompts).items():
            if layer not in host.expert_layers:
                continue
            rows, index = torch.broadcast_tensors(*cells)
            own.update((layer, *cell) for cell in zip(rows.flatten().tolist(), index.flatten().tolist(), strict=True))
        if changed & own:
            layer, _, index = min(changed & own)
            raise ArgumentError(
                f"Two interventions change {host.layout.name(layer, index)} of {host.name} under one prompt; expected "
                "each neuron of an expert in one of them, whose hooks see its activation without those of others. "
                "Write both as one, such as Amplify with the product of two factors."
            )
        changed |= own
