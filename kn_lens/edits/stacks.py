"""Stacks: edits that are applied one on another, of which any can be taken back.

A ``WeightEdit`` is undone where its rows hold its new values. Where a later edit changed the same rows, as edits of
whole layers do, they no longer do. To take back edit i of a stack, its rows and those of later edits get the values
that they had before it, and each later edit adds the change to these that it added before:

    row = value below       new = value below + (new_j - old_j)      for each later edit j, from the lowest on

Sums are taken in float64 and rounded once. A row that lies on the value it was made on keeps its new value, bit for
bit. So the lowest edit of a row always lies on the checkpoint's own value: when all edits are taken back, in any order,
every bit is that of the checkpoint.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens._core.checks import check_kind
from kn_lens.edits.value_rows import ValueRows
from kn_lens.edits.weight_edit import Checkpoint, WeightEdit, same_bits
from kn_lens.errors import ArgumentError, EditError
from kn_lens.hosts import HookedModel, Host, exclusive, host_of
from kn_lens.neurons import Neuron, NeuronSet


@exclusive
def undo_any_(
    model: HookedModel | Host,
    edits: Sequence[WeightEdit],
    which: WeightEdit | int,
) -> tuple[WeightEdit, ...]:
    """Take back one of several applied edits, whatever the order in which they were applied.

    The model is written once: it has the old weights or all of the new ones, also after an exception or an interrupt.

    Args:
        model: the model, or its ``Host``.
        edits: the applied edits, in the order in which they were applied.
        which: the edit to take back: one of them, or its number.

    Returns:
        The other edits as they are applied now, in order. Those below are the same; those above that share rows have
        other old and new values, and a step ``rebase`` in their ``why``. With them any of the rest can be taken back.

    Raises:
        ArgumentError: another kind of argument, or an edit that is none of them.
        EditError: raised before anything is written. The rows do not hold what these edits in this order have written.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> facts = kn.FactSet.world("held_out")
        >>> first = kn.FT(n_steps=1).edit(model, {facts.find("Ireland", "P36"): "Rome"}).apply_(model)
        >>> second = kn.FT(n_steps=1).edit(model, {facts.find("Japan", "P36"): "Paris"}).apply_(model)
        >>> (second,) = kn.undo_any_(model, [first, second], first)
        >>> kn.undo_any_(model, [second], second)
        ()
    """
    host = host_of(model)
    check_kind(edits, Sequence, "the applied edits in order: [first, second]", "edits")
    for edit in edits:
        check_kind(edit, WeightEdit, "WeightEdits alone: [first, second]", "one of the edits")
    number = _number_of(edits, which)
    moved = edits[number:]
    kind = Checkpoint.of(host).kind
    for edit in moved:
        if edit.checkpoint.kind != kind:
            raise EditError(f"The edit {edit} is for {edit.checkpoint.name} ({edit.checkpoint.kind}); got {kind}.")
    rows = _Rows(host, moved)
    current = rows.live.read()
    values = current.clone()
    for edit in reversed(moved):
        at = rows.of(edit)
        differs = ~same_bits(values[at], edit.new)
        if differs.any():
            raise EditError(
                f"The edit {edits[number]} cannot be taken back: {int(differs.sum())} of {len(at)} rows of the edit "
                f"{edit} do not hold its new values. Pass all edits that are applied, in the order in which they were, "
                "as apply_ and undo_any_ returned them; or load the model again."
            )
        values[at] = edit.old
    rebased = []
    for edit in moved[1:]:
        at = rows.of(edit)
        edit = _on(edit, values[at])
        values[at] = edit.new
        rebased.append(edit)
    rows.live.write(values, rollback=current)
    return (*edits[:number], *rebased)


def _number_of(edits: Sequence[WeightEdit], which: object) -> int:
    """Return the number of an edit among others."""
    if isinstance(which, WeightEdit):
        for number, edit in enumerate(edits):
            if edit is which:
                return number
        digests = [edit.digest for edit in edits]
        if which.digest in digests:
            return digests.index(which.digest)
        raise ArgumentError(f"The edit {which} is none of the {len(edits)} applied ones; expected one of them.")
    if isinstance(which, bool) or not isinstance(which, int) or not 0 <= which < len(edits):
        raise ArgumentError(f"which={which!r}; expected one of the edits, or its number from 0 to {len(edits) - 1}.")
    return which


def _on(edit: WeightEdit, old: Float[Tensor, "neuron d_model"]) -> WeightEdit:
    """Return an edit with the same change of other values."""
    same = same_bits(old, edit.old)
    if same.all():
        return edit
    change = edit.new.double() - edit.old.double()
    moved = (old.double() + change).to(old.dtype)
    new = torch.where(same[:, None], edit.new, moved)
    step = {"kind": "rebase", "n_rows": int((~same).sum())}
    return replace(edit, old=old, new=new, why=(*edit.why, step))


class _Rows:
    """The rows that some edits change, each once; of layers that share ``W_out`` those of the first."""

    def __init__(self, host: Host, edits: Sequence[WeightEdit]) -> None:
        self._first_layer = {
            layer: host.layers_with_rows_of(layer)[0]
            for layer in {neuron.layer for edit in edits for neuron in edit.neurons}
        }
        neurons = NeuronSet(self._row(neuron) for edit in edits for neuron in edit.neurons)
        self._position = {neuron: position for position, neuron in enumerate(neurons)}
        self.live = ValueRows.of(host, neurons)

    def of(self, edit: WeightEdit) -> list[int]:
        """Return the positions of the rows of an edit."""
        return [self._position[self._row(neuron)] for neuron in edit.neurons]

    def _row(self, neuron: Neuron) -> Neuron:
        layer = self._first_layer[neuron.layer]
        return neuron if layer == neuron.layer else Neuron(layer, neuron.index, neuron.expert)
