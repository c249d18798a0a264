"""A weight edit: new values for some rows of ``W_out``, exact, reversible and portable.

An edit holds the rows as they were, ``old``, and as they are to be, ``new``, bit for bit. It can be made and applied
where ``old`` is found and undone where ``new`` is found, and is refused, with nothing written, anywhere else:

    apply:  every row == old  ->  every row = new          undo:  every row == new  ->  every row = old

So edits of different rows are undone in any order, and edits of the same rows last first; an edit for another
checkpoint is refused; and a model comes back with the bits it came with. Without touching weights, hooks do the same:

    mlp_out += hook_post[..., neurons] @ (new - old)

Where TransformerLens has processed the weights (folded norms, centred rows), each row has become a linear function of
what it was. That takes zero to zero: erased neurons mean the same there. Other values do not, and are refused, and so
are edits of raw weights for processed ones and the reverse.
"""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._interrupts import Undone
from kn_lens._rows import Checkpoint, Rows, check_not_empty, check_same_processing, dtype_name, same_bits
from kn_lens._shown import shown
from kn_lens.edit_files import canonical, digest_of, read_edit, write_edit
from kn_lens.errors import ArgumentError, DataError, EditError, HookError, KNLensError
from kn_lens.hosts import HookFn, Host, host_of
from kn_lens.neuron_sets import NeuronSet
from kn_lens.outputs import at_least_float32
from kn_lens.prompts import PromptBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightEdit:
    """New values for some rows of ``W_out``.

    Made by ``update_fact``, ``erase_relation`` and ``erase_neurons``, or for any values by `of`. It is also an
    ``Intervention``: ``measure(model, prompts, edit)`` tries it without touching weights.

    Attributes:
        neurons: the rows.
        old: their values in the checkpoint, in the order in which ``neurons`` iterates; on the CPU.
        new: the values that they are to have.
        checkpoint: what it was made of.
        why: how it came about: JSON objects with a ``kind``, one for each step.

    Raises:
        EditError: no rows, rows of another shape or type than the checkpoint's, values that are not finite, or other
            than zero where the weights are processed.

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
        made_of = self.checkpoint
        check_not_empty(self.neurons)
        for neuron in self.neurons:
            if neuron.layer >= made_of.n_layers or neuron.index >= made_of.d_mlp:
                raise EditError(f"The edit has the row {neuron}; {made_of.name} has {made_of.shape}.")
        expected = f"{[len(self.neurons), made_of.d_model]} of {made_of.dtype}"
        for name in ("old", "new"):
            rows: Tensor = getattr(self, name)
            got = f"{list(rows.shape)} of {dtype_name(rows.dtype)}"
            if got != expected or not rows.is_floating_point():
                raise EditError(f"The {name} rows are {got}; expected {expected}: a row for each neuron.")
            if not rows.isfinite().all():
                bad = list(self.neurons)[int((~rows.isfinite().all(-1)).long().argmax())]
                raise EditError(
                    f"The {name} row of {bad} is not finite in {made_of.dtype}; expected numbers. Smaller lambdas, or "
                    "a model loaded with a wider dtype, keep them finite."
                )
            object.__setattr__(self, name, rows.detach().cpu().clone())
        if not made_of.raw and self.new.any():
            raise EditError(
                f"{made_of.name} has weights processed by TransformerLens, where only zero means for a row "
                "what it means in the checkpoint. kn_lens.load_model keeps weights; kn_lens.Amplify changes none."
            )
        try:
            why = json.loads(canonical([dict(step) for step in self.why]))
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"why cannot be written as JSON objects: {error}.") from error
        object.__setattr__(self, "why", tuple(why))

    @classmethod
    def of(
        cls, model: Any, neurons: NeuronSet, new: Float[Tensor, "neuron d_model"], why: Iterable[Mapping[str, Any]] = ()
    ) -> "WeightEdit":
        """Return the edit that gives rows of a model new values. The model is only read.

        Args:
            model: the model; a ``Host`` will do.
            neurons: the rows.
            new: a value for each, in the order in which ``neurons`` iterates; rounded to the model's type.
            why: kept with the edit.

        Raises:
            ArgumentError: a neuron that the model does not have.
            EditError: as the class; or an adapter or a parametrisation stands between the rows and what is written.
        """
        host = _host(model)
        rows = Rows.of(host, neurons)
        host.check_live_rows(neurons.by_layer())
        old = rows.read()
        return cls(neurons=neurons, old=old, new=new.to(old), checkpoint=Checkpoint.of(host), why=tuple(why))

    @property
    def row_hash(self) -> str:
        """SHA-256 of the rows and their old values, which a checkpoint must hold for the edit to be for it."""
        return digest_of({"neurons": _pairs(self.neurons), "old": self.old})

    @property
    def digest(self) -> str:
        """SHA-256 of the whole edit; equal edits, and only they, have equal digests."""
        return digest_of(*self._contents())

    # --- applying and undoing -------------------------------------------------------------------------

    def apply_(self, model: Any, *, force: bool = False) -> "WeightEdit":
        """Write the new rows to a model, all of them or none.

        Args:
            model: the model; a ``Host`` will do.
            force: write to a model whose rows are not ``old``, or are of another type, as well.

        Returns:
            What to undo: this edit; or, where other rows were overwritten by force, one whose ``old`` are these.

        Raises:
            EditError: before anything is written: the rows are not ``old`` (they are of another checkpoint, or hold
                this or another edit); or, which no force overcomes, the model's shapes do not fit, or an adapter or a
                parametrisation stands between the rows and what is written.
        """
        rows, edit = self._ready(_host(model), force)
        rows.write(edit.new, otherwise=edit.old)
        return edit

    def undo_(self, model: Any) -> None:
        """Write the old rows back, all of them or none. Edits of different rows can be undone in any order.

        Raises:
            EditError: before anything is written: the rows are not ``new``: the edit is not applied, or another edit of
                the same rows was applied later and has to be undone first.
        """
        if not self._undone(_host(model)):
            raise EditError(f"The edit {self} is not applied to this model: the rows hold their old values.")

    def applied(self, model: Any, *, force: bool = False) -> AbstractContextManager["WeightEdit"]:
        """Apply the edit for the time of a ``with`` block, and undo it then, also after an exception or an interrupt.

        The block is given what ``apply_`` returns. Where it has undone the edit itself, nothing is left to do.

        Raises:
            EditError: as ``apply_``; and at the end of the block if it left another edit on the same rows.
        """
        host = _host(model)
        written: list[WeightEdit] = []

        def write() -> WeightEdit:
            rows, edit = self._ready(host, force)
            written.append(edit)
            rows.write(edit.new, otherwise=edit.old)
            return edit

        def undo() -> None:
            for edit in written:
                edit._undone(host)

        return Undone(write, undo)

    def _ready(self, host: Host, force: bool) -> tuple[Rows, "WeightEdit"]:
        """Return the rows to write to and what to write, once nothing speaks against it."""
        check_same_processing(host, self.checkpoint, str(self))
        here = Checkpoint.of(host)
        if here.shape != self.checkpoint.shape or (here.kind != self.checkpoint.kind and not force):
            raise EditError(
                f"The edit {self} is for {self.checkpoint.name} ({self.checkpoint.kind}); {host.name} has {here.kind}."
                + ("" if here.shape != self.checkpoint.shape else " Pass force=True to write the rows all the same.")
            )
        rows = Rows.of(host, self.neurons)
        host.check_live_rows(self.neurons.by_layer())
        there = rows.read()
        agree = same_bits(there, self.old)
        if agree.all():
            return rows, self
        if force:
            return rows, replace(self, old=there, new=self.new.to(there.dtype), checkpoint=here)
        if same_bits(there, self.new).all():
            raise EditError(f"The edit {self} is applied to this model already.")
        raise EditError(
            f"The edit {self} was made for other rows: {self._some(~agree)} of {host.name} differ from those of "
            f"{self.checkpoint.name}. The model is another checkpoint, or another edit of these rows is applied: undo "
            "that one, or make this edit while it is applied. Pass force=True to overwrite the rows all the same."
        )

    def _undone(self, host: Host) -> bool:
        """Undo the edit and return True, or return False where the rows hold their old values."""
        check_same_processing(host, self.checkpoint, str(self))
        rows = Rows.of(host, self.neurons)
        there = rows.read()
        agree = same_bits(there, self.new)
        if agree.all():
            rows.write(self.old, otherwise=self.old)
            return True
        if same_bits(there, self.old).all():
            return False
        raise EditError(
            f"The edit {self} cannot be undone: {self._some(~agree)} of {host.name} no longer hold what it wrote. "
            "Edits of the same rows are undone last first, by the edit that apply_ returned; or load the model again."
        )

    # --- the same without touching weights ------------------------------------------------------------

    def hooks(self, model: Any, prompts: PromptBatch | None = None) -> list[tuple[str, HookFn]]:
        """Return hooks with the effect of the edit, to rounding, for a model whose weights must stay as they are.

        Each layer has two: one reads the neurons' activations off ``hook_post``, the other adds what the change of
        their rows makes of them to ``mlp_out``, before any norm after the MLP. Hooks that change ``hook_post`` go
        before them in the list.

        Args:
            model: the model that they will run on; a ``Host`` will do.
            prompts: not looked at: rows are the same for all prompts.

        Raises:
            EditError: as ``apply_``.
        """
        host = _host(model)
        self._ready(host, force=False)
        change = (at_least_float32(self.new) - at_least_float32(self.old)).to(host.device)
        by_layer = self.neurons.by_layer()
        hooks: list[tuple[str, HookFn]] = []
        for (layer, indices), part in zip(
            by_layer.items(), change.split([len(indices) for indices in by_layer.values()]), strict=True
        ):
            read, add = _pair_of_hooks(layer, torch.tensor(indices, device=host.device), part)
            hooks += [(host.hook_post(layer), read), (host.hook_mlp_out(layer), add)]
        return hooks

    def select(self, prompts: PromptBatch, chosen: Int[Tensor, " some"]) -> "WeightEdit":
        """Return the edit itself, which is the same for all prompts."""
        return self

    # --- composing ------------------------------------------------------------------------------------

    def __add__(self, other: "WeightEdit") -> "WeightEdit":
        """Return one edit that does what this one and then the other do.

        Raises:
            EditError: made of different kinds of checkpoints; or they share a row and the other was not made while this
                one was applied, so that it is not clear what becomes of it.
        """
        if not isinstance(other, WeightEdit):
            return NotImplemented
        if self.checkpoint.kind != other.checkpoint.kind:
            raise EditError(
                f"The edits are for different models: {self.checkpoint.name} ({self.checkpoint.kind}) and "
                f"{other.checkpoint.name} ({other.checkpoint.kind})."
            )
        mine_old, mine_new = (dict(zip(self.neurons, rows, strict=True)) for rows in (self.old, self.new))
        its_old, its_new = (dict(zip(other.neurons, rows, strict=True)) for rows in (other.old, other.new))
        for neuron in self.neurons & other.neurons:
            if not same_bits(mine_new[neuron][None], its_old[neuron][None]).all():
                raise EditError(
                    f"Both edits change the row {neuron}, and the second does not start from what the first makes of "
                    "it. Make the second while the first is applied: with first.applied(model): ..."
                )
        old, new = its_old | mine_old, mine_new | its_new
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

        Of an update this scales both lambdas; 1 gives the same rows, 0 the old ones, -1 the opposite change.

        Raises:
            ArgumentError: the factor is not a finite number.
            EditError: the rows would not be finite.
        """
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not math.isfinite(factor):
            raise ArgumentError(f"factor={factor!r}; expected a finite number, such as 0.5.")
        new = torch.lerp(self.old, self.new, float(factor))
        return replace(self, new=new, why=(*self.why, {"kind": "scale", "factor": factor}))

    def restricted_to(self, neurons: Iterable[Any]) -> "WeightEdit":
        """Return the edit of those of its rows that are in a set.

        Raises:
            EditError: none of them is.
        """
        wanted = NeuronSet(neurons)
        kept = [place for place, neuron in enumerate(self.neurons) if neuron in wanted]
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
            DataError: the file cannot be written.
        """
        write_edit(Path(path), *self._contents())

    @classmethod
    def load(cls, path: str | Path) -> "WeightEdit":
        """Read what `save` wrote; the rows have the same bits.

        Raises:
            DataError: no such file, not an edit, truncated or tampered with.
        """
        tensors, document = read_edit(Path(path))
        try:
            neurons = NeuronSet(tensors["neurons"].tolist())
            if not torch.equal(_pairs(neurons), tensors["neurons"]):
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

    def _contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"neurons": _pairs(self.neurons), "old": self.old, "new": self.new}
        return tensors, {"checkpoint": asdict(self.checkpoint), "why": list(self.why)}

    def __str__(self) -> str:
        what = " + ".join(_in_words(step) for step in self.why) or "rows"
        return f"{what!r} ({len(self.neurons)} rows)"

    def __repr__(self) -> str:
        weights = "" if self.checkpoint.raw else "processed weights of "
        return f"WeightEdit({self}, of {weights}{shown(self.checkpoint.name)}, {self.digest[:8]})"

    def _some(self, chosen: Tensor) -> str:
        first = list(self.neurons)[int(chosen.long().argmax())]
        return f"{int(chosen.sum())} of {len(self.neurons)} rows, such as {first},"


def _pair_of_hooks(
    layer: int, index: Int[Tensor, " some"], change: Float[Tensor, "some d_model"]
) -> tuple[HookFn, HookFn]:
    held: list[Tensor] = []  # from the first hook to the second, within one pass

    def read(post: Float[Tensor, "row pos d_mlp"], hook: object = None) -> None:
        held[:] = [post[..., index]]

    def add(mlp_out: Float[Tensor, "row pos d_model"], hook: object = None) -> Float[Tensor, "row pos d_model"]:
        if not held:
            raise HookError(f"The hooks of an edit come in pairs; that on hook_post of layer {layer} did not run.")
        return (mlp_out + at_least_float32(held.pop()) @ change).to(mlp_out.dtype)

    return read, add


def _host(model: Any) -> Host:
    return model if isinstance(model, Host) else host_of(model)


def _pairs(neurons: NeuronSet) -> Int[Tensor, "neuron 2"]:
    return torch.tensor([(neuron.layer, neuron.index) for neuron in neurons], dtype=torch.int64).reshape(-1, 2)


def _in_words(step: Mapping[str, Any]) -> str:
    """Return a step of ``why`` in a few words; one of another maker by its kind."""
    kind = step.get("kind", "rows")
    if kind == "update":
        return f"{step.get('fact')} -> {step.get('new_object')}"
    if kind == "erase":
        return f"erase {step.get('relation') or 'neurons'}"
    return f"{kind} {step['factor']}" if kind == "scale" and "factor" in step else str(kind)
