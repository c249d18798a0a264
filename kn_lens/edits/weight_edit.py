"""A weight edit: new values for some rows of ``W_out``, exact, reversible and portable.

An edit holds the old and the new values of its rows, bit for bit. It can be applied to rows with the old values and
undone on rows with the new values. All other rows are refused before anything is written:

    apply:  every row == old  ->  every row = new          undo:  every row == new  ->  every row = old

So edits of different rows can be undone in any order, and edits of the same rows last first. An edit for another
checkpoint is refused. A model gets back the bits that it had. Hooks have the same effect without a write:

    mlp_out += hook_post[..., neurons] @ (new - old)

In weights that TransformerLens has processed (folded norms, centred rows), each row is a linear function of the
checkpoint's row. Zero stays zero under any linear function, so erased neurons mean the same there. Other values do
not: they are refused, and so are edits of raw weights for processed ones and the reverse.
"""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens._core.checks import check_path, wrong_kind
from kn_lens._core.display import ROWS_SHOWN, enumerated, shortened, table_html
from kn_lens._core.escape import shown
from kn_lens._core.interrupts import undone
from kn_lens._core.names import SIDES, Side
from kn_lens._core.notation import NeuronKey, NeuronLike
from kn_lens._core.precision import at_least_float32
from kn_lens._core.wording import counted
from kn_lens.edits.arguments import checked_neurons
from kn_lens.edits.files import canonical, digest_of, read_edit, write_edit
from kn_lens.edits.value_rows import ValueRows, check_raw
from kn_lens.errors import ArgumentError, DataError, EditError, HookError, KNLensError
from kn_lens.hosts import ActivationSource, HookedModel, HookFn, Host, host_of, host_on_side
from kn_lens.neurons import Neuron, NeuronSet, neuron_set_of
from kn_lens.prompts import PromptBatch


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The model that an edit was made of.

    Attributes:
        name: the name or path that the model was loaded by. Not compared: a copy elsewhere is the same checkpoint.
        architecture: the Hugging Face class.
        n_layers: number of blocks.
        d_mlp: rows of ``W_out``.
        d_model: width of these rows.
        dtype: type of the weights: ``"float32"``.
        raw: False where TransformerLens has processed the weights. Edits can only set such rows to zero.
        side: the stack of an encoder-decoder that the rows are of; None for other kinds of models.
    """

    name: str
    architecture: str
    n_layers: int
    d_mlp: int
    d_model: int
    dtype: str
    raw: bool = True
    side: Side | None = None

    def __post_init__(self) -> None:
        if self.side is not None and self.side not in SIDES:
            raise ArgumentError(f"side of a checkpoint is {self.side!r}; expected 'decoder' or 'encoder'.")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "side" and type(value) is not field.type:
                expected = {str: "text", int: "whole number", bool: "truth value"}[field.type]
                raise ArgumentError(f"{field.name} of a checkpoint is {value!r}; expected a {expected}.")

    @classmethod
    def of(cls, host: Host) -> "Checkpoint":
        """Describe a hosted model."""
        return cls(
            name=host.name,
            architecture=host.architecture,
            n_layers=host.n_layers,
            d_mlp=host.d_mlp,
            d_model=host.d_model,
            dtype=_dtype_name(host.dtype),
            raw=host.raw,
            side=host.side,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of a file, without a side where there is one stack."""
        entry = asdict(self)
        if self.side is None:
            del entry["side"]
        return entry

    @property
    def kind(self) -> str:
        """Everything that has to agree for an edit to fit, in words."""
        processed = "" if self.raw else ", processed"
        of_encoder = ", encoder" if self.side == "encoder" else ""
        return f"{self.architecture}{of_encoder}, {self.shape}, {self.dtype}{processed}"

    @property
    def shape(self) -> str:
        """The number of layers and the shape of their ``W_out``, in words."""
        return f"{self.n_layers} layers of {self.d_mlp} x {self.d_model}"


STEPS_SHOWN = 3
"""Number of steps in the text of an edit."""

UPDATES_SHOWN = 2
"""Number of updates in the text of a step that makes several."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightEdit:
    """New values for some rows of ``W_out``.

    ``update_fact``, ``erase_relation`` and ``erase_neurons`` return edits; `of` makes one with any values. An edit is
    also an ``Intervention``: ``measure(model, prompts, edit)`` measures its effect without a write.

    Attributes:
        neurons: the neurons of the rows.
        old: the values of the rows in the checkpoint, in the order in which ``neurons`` iterates; on the CPU.
        new: their new values.
        checkpoint: the model that the edit was made of.
        why: how the edit was made: a JSON object with a ``kind`` for each step.

    Raises:
        ArgumentError: ``neurons`` are no neurons, or ``why`` is no JSON.
        EditError: no rows, rows of another shape or type than the checkpoint's, values that are not finite, or, where
            the weights are processed, values other than zero.

    Example:
        >>> import kn_lens as kn, torch
        >>> model = kn.load_model("world-bert")
        >>> edit = kn.erase_neurons(model, kn.NeuronSet([(2, 7), (3, 5)]))
        >>> with edit.applied(model):
        ...     float(kn.host_of(model).W_out(2)[7].abs().max())
        0.0
        >>> float(kn.host_of(model).W_out(2)[7].abs().max()) > 0
        True
    """

    neurons: NeuronSet
    old: Float[Tensor, "neuron d_model"]
    new: Float[Tensor, "neuron d_model"]
    checkpoint: Checkpoint
    why: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "neurons", checked_neurons(self.neurons))
        source = self.checkpoint
        for neuron in self.neurons:
            if neuron.layer >= source.n_layers or neuron.index >= source.d_mlp:
                raise EditError(f"The edit has the row {neuron}; {source.name} has {source.shape}.")
        object.__setattr__(self, "old", self._checked_rows("old", self.old))
        object.__setattr__(self, "new", self._checked_rows("new", self.new))
        if not source.raw and self.new.any():
            raise EditError(
                f"{source.name} has weights processed by TransformerLens, where only zero means for a row "
                "what it means in the checkpoint. kn_lens.load_model keeps weights; kn_lens.Amplify changes none."
            )
        try:
            why = json.loads(canonical([dict(step) for step in self.why]))
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"why cannot be written as JSON objects: {error}.") from error
        object.__setattr__(self, "why", tuple(why))

    def _checked_rows(
        self,
        name: str,
        rows: Float[Tensor, "neuron d_model"],
    ) -> Float[Tensor, "neuron d_model"]:
        """Return a copy of rows on the CPU, after a check of their shape, type and values."""
        dtype = self.checkpoint.dtype
        expected = f"{[len(self.neurons), self.checkpoint.d_model]} of {dtype}"
        got = f"{list(rows.shape)} of {_dtype_name(rows.dtype)}"
        if got != expected or not rows.is_floating_point():
            raise EditError(f"The {name} rows are {got}; expected {expected}: a row for each neuron.")
        finite = rows.isfinite().all(-1)
        if not finite.all():
            raise EditError(
                f"The {name} row of {self._first_neuron(~finite)} is not finite in {dtype}; expected numbers. "
                "Smaller lambdas, or a model loaded with a wider dtype, keep them finite."
            )
        return rows.detach().cpu().clone()

    @classmethod
    def of(
        cls,
        model: HookedModel | Host,
        neurons: Iterable[NeuronLike],
        new: Float[Tensor, "neuron d_model"],
        why: Iterable[Mapping[str, Any]] = (),
    ) -> "WeightEdit":
        """Return the edit that gives rows of a model new values. The model is only read.

        Args:
            model: the model, or its ``Host``.
            neurons: the neurons of the rows.
            new: the new values, in the order in which ``neurons`` iterates; rounded to the model's type.
            why: kept with the edit.

        Raises:
            ArgumentError: other kinds of arguments, or a neuron that the model does not have.
            EditError: as the class; or an adapter or a parametrisation hides the rows, so that a write has no effect.
        """
        host = host_of(model)
        neurons = checked_neurons(neurons)
        rows = ValueRows.of(host, neurons)
        if not isinstance(new, Tensor):
            raise wrong_kind(new, "a tensor: torch.tensor(rows)", "new rows")
        host.check_rows_editable(neurons.rows_by_layer(host))
        old = rows.read()
        return cls(
            neurons=neurons,
            old=old,
            new=new.to(old),
            checkpoint=Checkpoint.of(host),
            why=tuple(why),
        )

    @property
    def row_hash(self) -> str:
        """SHA-256 of the rows and their old values. The edit fits the checkpoints that have the same."""
        return digest_of({"neurons": _table(self.neurons), "old": self.old})

    @property
    def digest(self) -> str:
        """SHA-256 of the whole edit. Equal edits, and only they, have equal digests."""
        return digest_of(self._tensors(), self._document())

    # --- applying and undoing -------------------------------------------------------------------------

    def apply_(self, model: HookedModel | Host, *, force: bool = False) -> "WeightEdit":
        """Write the new rows to a model, all of them or none.

        Args:
            model: the model, or its ``Host``.
            force: write also to a model whose rows have other values than ``old``, or another type.

        Returns:
            The edit to undo. This is the same edit; or, after ``force`` has overwritten other values, an edit with
            these as ``old``.

        Raises:
            EditError: raised before anything is written. The rows are not ``old``: they are of another checkpoint, or
                an edit is applied to them. Or, in spite of ``force``: the shapes of the model differ, or an adapter or
                a parametrisation hides the rows.
        """
        rows, edit = self._prepare(self._host_of(model), force)
        rows.write(edit.new, rollback=edit.old)
        return edit

    def undo_(self, model: HookedModel | Host) -> None:
        """Write the old rows back, all of them or none. Edits of different rows can be undone in any order.

        Raises:
            EditError: raised before anything is written. The rows are not ``new``: the edit is not applied, or another
                edit of the same rows was applied later and has to be undone first.
        """
        if not self._undo(self._host_of(model)):
            raise EditError(f"The edit {self} is not applied to this model: the rows hold their old values.")

    def applied(
        self,
        model: HookedModel | Host,
        *,
        force: bool = False,
    ) -> AbstractContextManager["WeightEdit"]:
        """Apply the edit for the time of a ``with`` block, and undo it also after an exception or an interrupt.

        The block gets what ``apply_`` returns. It may undo the edit itself.

        Raises:
            EditError: as ``apply_``; and at the end of the block, if it left another edit on the same rows.
        """
        host = self._host_of(model)
        written: list[WeightEdit] = []

        def write() -> WeightEdit:
            rows, edit = self._prepare(host, force)
            written.append(edit)
            rows.write(edit.new, rollback=edit.old)
            return edit

        def undo() -> None:
            for edit in written:
                edit._undo(host)

        return undone(write, undo)

    def _host_of(self, model: HookedModel | Host) -> Host:
        """Return the host of a model, on the side that the rows are of."""
        return host_on_side(model, self.checkpoint.side)

    def _prepare(self, host: Host, force: bool) -> tuple[ValueRows, "WeightEdit"]:
        """Return the rows to write to and the edit to write, after all checks."""
        self._check_same_processing(host)
        target = Checkpoint.of(host)
        same_shape = target.shape == self.checkpoint.shape
        if not same_shape or (target.kind != self.checkpoint.kind and not force):
            cure = " Pass force=True to write the rows all the same." if same_shape else ""
            raise EditError(
                f"The edit {self} is for {self.checkpoint.name} ({self.checkpoint.kind}); "
                f"{host.name} has {target.kind}.{cure}"
            )
        rows = ValueRows.of(host, self.neurons)
        host.check_rows_editable(self.neurons.rows_by_layer(host))
        self._check_shared_rows(host)
        current = rows.read()
        unchanged = same_bits(current, self.old)
        if unchanged.all():
            return rows, self
        if force:
            return rows, replace(self, old=current, new=self.new.to(current.dtype), checkpoint=target)
        if same_bits(current, self.new).all():
            raise EditError(f"The edit {self} is applied to this model already.")
        raise EditError(
            f"The edit {self} was made for other rows: {self._count(~unchanged)} of {host.name} "
            f"differ from those of {self.checkpoint.name}. "
            "The model is another checkpoint, or another edit of these rows is applied: "
            "undo that one, or make this edit while it is applied. "
            "Pass force=True to overwrite the rows all the same."
        )

    def _check_shared_rows(self, host: Host) -> None:
        """Raise if neurons of two layers are one row of the model, and the edit gives it two values.

        Raises:
            EditError: with the two neurons.
        """
        first_layer = {neuron.layer: host.layers_with_rows_of(neuron.layer)[0] for neuron in self.neurons}
        if len(set(first_layer.values())) == len(first_layer):
            return
        seen: dict[tuple[int, int], tuple[Neuron, Tensor]] = {}
        for neuron, row in zip(self.neurons, self.new, strict=True):
            other, other_row = seen.setdefault((first_layer[neuron.layer], neuron.index), (neuron, row))
            if not same_bits(row[None], other_row[None]).all():
                raise EditError(
                    f"{other} and {neuron} are one row of {host.name}, whose layers share W_out, and the edit {self} "
                    "gives them two values; expected one. Make it of the neurons of one layer: the row changes in all."
                )

    def _undo(self, host: Host) -> bool:
        """Undo the edit and return True; return False if the rows hold their old values."""
        self._check_same_processing(host)
        rows = ValueRows.of(host, self.neurons)
        current = rows.read()
        written = same_bits(current, self.new)
        if written.all():
            rows.write(self.old, rollback=self.old)
            return True
        if same_bits(current, self.old).all():
            return False
        raise EditError(
            f"The edit {self} cannot be undone: {self._count(~written)} of {host.name} "
            "no longer hold its new values. "
            "Edits of the same rows are undone last first, by the edit that apply_ returned; "
            "or load the model again."
        )

    def _check_same_processing(self, host: Host) -> None:
        """Raise if the edit is of raw weights and the model's are processed, or the reverse.

        Raises:
            EditError: one of the two.
        """
        if self.checkpoint.raw:
            check_raw(host, f"The edit {self} is of those; to erase neurons here, make the edit of this model.")
        elif host.raw:
            raise EditError(
                f"The edit {self} was made of weights that TransformerLens had processed, "
                f"and those of {host.name} are raw. "
                "Make it of this model: kn_lens.erase_neurons(model, edit.neurons)."
            )

    # --- the same without a write ---------------------------------------------------------------------

    def hooks(
        self,
        model: HookedModel | Host,
        prompts: PromptBatch | None = None,
    ) -> list[tuple[str, HookFn]]:
        """Return hooks with the effect of the edit, equal to rounding. The weights stay as they are.

        Each layer has two hooks. The first reads the activations of the neurons from ``hook_post``; in a layer with
        experts, it computes them from what enters the MLP. The second adds
        their product with the change of the rows to ``mlp_out``, before any norm after the MLP. Hooks that change
        ``hook_post`` go before them in the list.

        Args:
            model: the model that the hooks will run on, or its ``Host``.
            prompts: not used: the rows are the same for all prompts.

        Raises:
            EditError: as ``apply_``.
        """
        host = self._host_of(model)
        hooks: list[tuple[str, HookFn]] = []
        for layer, (indices, change) in self.changes(host).items():
            source = host.activation_source(layer)
            read, add = _layer_hooks(source, indices, change)
            hooks.append((source.hook, read))
            hooks.append((host.hook_mlp_out(layer), add))
        return hooks

    def changes(
        self,
        model: HookedModel | Host,
    ) -> dict[int, tuple[Int[Tensor, " neuron"], Float[Tensor, "neuron d_model"]]]:
        """Return the changed rows of each layer and what is added to them, on the model's device, in float32 at least.

        Where layers share a ``W_out``, the rows change in all of them.

        Raises:
            EditError: as ``apply_``.
        """
        host = self._host_of(model)
        self._prepare(host, force=False)
        change = (at_least_float32(self.new) - at_least_float32(self.old)).to(host.device)
        by_layer = self.neurons.rows_by_layer(host)
        sizes = list(map(len, by_layer.values()))
        changes = {}
        for (layer, indices), layer_change in zip(by_layer.items(), change.split(sizes), strict=True):
            changes[layer] = (torch.tensor(indices, device=host.device), layer_change)
        return _at_all_depths(host, changes)

    def select(
        self,
        prompts: PromptBatch,
        chosen: Int[Tensor, " prompt"],
    ) -> "WeightEdit":
        """Return the edit itself, which is the same for all prompts."""
        return self

    # --- composing ------------------------------------------------------------------------------------

    def __add__(self, other: "WeightEdit") -> "WeightEdit":
        """Return one edit with the effect of this edit followed by the other.

        Raises:
            EditError: the edits are for different kinds of checkpoints; or they share a row, and the other was not made
                while this one was applied, so that the result for this row is not defined.
        """
        if not isinstance(other, WeightEdit):
            return NotImplemented
        if self.checkpoint.kind != other.checkpoint.kind:
            raise EditError(
                "The edits are for different models: "
                f"{self.checkpoint.name} ({self.checkpoint.kind}) "
                f"and {other.checkpoint.name} ({other.checkpoint.kind})."
            )
        if other.neurons == self.neurons and same_bits(self.new, other.old).all():  # as editors of whole layers make
            return replace(self, new=other.new, why=(*self.why, *other.why))
        old = dict(zip(self.neurons, self.old, strict=True))
        new = dict(zip(self.neurons, self.new, strict=True))
        for neuron, next_old, next_new in zip(other.neurons, other.old, other.new, strict=True):
            if neuron in new and not same_bits(new[neuron][None], next_old[None]).all():
                raise EditError(
                    f"Both edits change the row {neuron}, "
                    "and the second does not start from the new value of the first. "
                    "Make the second while the first is applied: with first.applied(model): ..."
                )
            old.setdefault(neuron, next_old)
            new[neuron] = next_new
        neurons = self.neurons | other.neurons
        return replace(
            self,
            neurons=neurons,
            old=torch.stack([old[neuron] for neuron in neurons]),
            new=torch.stack([new[neuron] for neuron in neurons]),
            why=(*self.why, *other.why),
        )

    def scaled(self, factor: float) -> "WeightEdit":
        """Return the edit with its changes multiplied: ``new = old + factor * (new - old)``.

        This scales both lambdas of an update. 1 gives the same rows, 0 the old ones, -1 the opposite change.

        Raises:
            ArgumentError: the factor is not a finite number.
            EditError: the rows would not be finite.
        """
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if not is_number or not math.isfinite(factor):
            raise ArgumentError(f"factor={factor!r}; expected a finite number, such as 0.5.")
        new = torch.lerp(self.old, self.new, float(factor))
        return replace(self, new=new, why=(*self.why, {"kind": "scale", "factor": factor}))

    def restricted_to(self, neurons: Iterable[NeuronLike]) -> "WeightEdit":
        """Return the edit of those of its rows whose neurons are in a set.

        Raises:
            ArgumentError: another kind of argument.
            EditError: none of the neurons is in the set.
        """
        wanted = neuron_set_of(neurons)
        kept = [row for row, neuron in enumerate(self.neurons) if neuron in wanted]
        if not kept:
            raise EditError(f"The edit {self} changes none of the {len(wanted)} neurons it is to be restricted to.")
        return replace(
            self,
            neurons=self.neurons & wanted,
            old=self.old[kept],
            new=self.new[kept],
            why=(*self.why, {"kind": "restrict", "n_neurons": len(kept)}),
        )

    # --- files ----------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the edit to a safetensors file, which appears whole or not at all. Size: two rows a neuron.

        Raises:
            ArgumentError: another kind of argument than a path.
            DataError: the file cannot be written.
        """
        check_path(path)
        write_edit(Path(path), self._tensors(), self._document())

    @classmethod
    def load(cls, path: str | Path) -> "WeightEdit":
        """Read a file written by `save`; the rows have the same bits.

        Raises:
            ArgumentError: another kind of argument than a path.
            DataError: no such file, not an edit, truncated or tampered with.
        """
        check_path(path)
        tensors, document = read_edit(Path(path))
        try:
            neurons = NeuronSet(map(_key, tensors["neurons"].tolist()))
            if not torch.equal(_table(neurons), tensors["neurons"]):
                raise EditError("its neurons are not in order of layer and index, each once")
            return cls(
                neurons=neurons,
                old=tensors["old"],
                new=tensors["new"],
                checkpoint=Checkpoint(**document["checkpoint"]),
                why=tuple(document["why"]),
            )
        except (KNLensError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"{path} holds no edit that could be applied to a model: {error}") from error

    def _tensors(self) -> dict[str, Tensor]:
        return {"neurons": _table(self.neurons), "old": self.old, "new": self.new}

    def _document(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint.as_dict(), "why": list(self.why)}

    def __str__(self) -> str:
        steps = [_describe(step) for step in self.why[:STEPS_SHOWN]] or ["rows"]
        n_others = len(self.why) - STEPS_SHOWN
        if n_others > 0:
            steps.append(f"{n_others:,} more")
        return f"{shortened(' + '.join(steps), 120)!r} ({counted(len(self.neurons), 'row')})"

    def __repr__(self) -> str:
        weights = "" if self.checkpoint.raw else "processed weights of "
        return f"WeightEdit({self}, of {weights}{shown(self.checkpoint.name)}, {self.digest[:8]})"

    def _repr_html_(self) -> str:
        rows = []
        for neuron, old, new in zip(self.neurons[:ROWS_SHOWN], self.old, self.new, strict=False):
            change = at_least_float32(new) - at_least_float32(old)
            lengths = [float(at_least_float32(row).norm()) for row in (old, new, change)]
            rows.append([neuron, *(f"{length:.3g}" for length in lengths)])
        columns = ["neuron", "length of the old row", "of the new row", "of the change"]
        return table_html(repr(self), columns, rows, n_rows=len(self.neurons))

    def _first_neuron(self, chosen: Bool[Tensor, " neuron"]) -> Neuron:
        return list(self.neurons)[int(chosen.long().argmax())]

    def _count(self, chosen: Bool[Tensor, " neuron"]) -> str:
        return f"{int(chosen.sum())} of {len(self.neurons)} rows, such as {self._first_neuron(chosen)},"


def _at_all_depths(
    host: Host,
    changes: dict[int, tuple[Int[Tensor, " neuron"], Float[Tensor, "neuron d_model"]]],
) -> dict[int, tuple[Int[Tensor, " neuron"], Float[Tensor, "neuron d_model"]]]:
    """Return changes of rows at every layer that has these rows, each row once."""
    at_depths: dict[int, dict[int, Float[Tensor, " d_model"]]] = {}
    for layer, (indices, change) in changes.items():
        depths = host.layers_with_rows_of(layer)
        if len(depths) == 1:
            continue
        for depth in depths:
            at_depths.setdefault(depth, {}).update(zip(indices.tolist(), change, strict=True))
    shared = {}
    for depth, rows in at_depths.items():
        shared[depth] = (torch.tensor(list(rows), device=host.device), torch.stack(list(rows.values())))
    return changes | shared


def _layer_hooks(
    source: ActivationSource,
    indices: Int[Tensor, " neuron"],
    change: Float[Tensor, "neuron d_model"],
) -> tuple[HookFn, HookFn]:
    """Return the hooks on the activations and on ``mlp_out`` of a layer."""
    activations: list[Tensor] = []  # from the first hook to the second, within one pass

    def read(value: Float[Tensor, "row pos d"], hook: object = None) -> None:
        activations[:] = [source.of(value, indices)]

    def add(
        mlp_out: Float[Tensor, "row pos d_model"],
        hook: object = None,
    ) -> Float[Tensor, "row pos d_model"]:
        if not activations:
            raise HookError(f"The hooks of an edit come in pairs; that on {source.hook} did not run.")
        added = at_least_float32(activations.pop()) @ change
        return (mlp_out + added).to(mlp_out.dtype)

    return read, add


def same_bits(
    rows: Float[Tensor, "neuron d_model"],
    other_rows: Float[Tensor, "neuron d_model"],
) -> Bool[Tensor, " neuron"]:
    """Return for each row whether the two agree bit for bit (0.0 and -0.0 differ)."""
    if rows.shape != other_rows.shape or rows.dtype != other_rows.dtype:
        return torch.zeros(len(rows), dtype=torch.bool)
    same_bytes = rows.contiguous().view(torch.uint8) == other_rows.contiguous().view(torch.uint8)
    return same_bytes.all(-1)


ONE_MLP = -2
"""What stands for the expert of a neuron without one, in a table that has experts."""


def _table(neurons: NeuronSet) -> Int[Tensor, "neuron key"]:
    """Return layer and index of neurons; where any is an expert's, layer, expert and index."""
    has_experts = any(neuron.expert is not None for neuron in neurons)
    keys = []
    for layer, *expert, index in neurons:
        keys.append([layer, *(expert or [ONE_MLP]), index] if has_experts else [layer, index])
    return torch.tensor(keys, dtype=torch.int64).reshape(-1, 3 if has_experts else 2)


def _key(row: list[int]) -> NeuronKey:
    """Return the key of a neuron of a row of `_table`."""
    layer, *expert, index = row
    return (layer, index) if expert in ([], [ONE_MLP]) else tuple(row)


def _dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _describe(step: Mapping[str, Any]) -> str:
    """Return a step of ``why`` in a few words; a step of another program by its kind."""
    kind = step.get("kind", "rows")
    if kind == "update":
        return f"{step.get('fact')} -> {step.get('new_object')}"
    if kind == "erase":
        return f"erase {step.get('relation') or 'neurons'}"
    if kind == "scale" and "factor" in step:
        return f"scale {step['factor']}"
    if "editor" in step and "updates" in step:
        updates = [f"{update.get('fact')} -> {update.get('new_object')}" for update in step["updates"]]
        return f"{step['editor']}: {enumerated(updates, UPDATES_SHOWN)}"
    return str(kind)
