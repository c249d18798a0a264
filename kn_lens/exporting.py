"""An edited model as a plain Hugging Face checkpoint, for everything that loads one."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kn_lens._exclusive import exclusive
from kn_lens._interrupts import Undone
from kn_lens._original import plain_model
from kn_lens._rows import check_raw
from kn_lens._whole_files import part_folder
from kn_lens.errors import ArgumentError, EditError
from kn_lens.hosts import Host, host_of
from kn_lens.weight_edits import WeightEdit

RECORD = "kn_lens_edits.json"


@exclusive
def export(
    model: Any, edits: WeightEdit | Sequence[WeightEdit], directory: str | Path, *, tokenizer: Any = None
) -> Path:
    """Write a model with edits as a Hugging Face checkpoint. The model in memory comes out as it went in.

    The checkpoint loads with transformers alone, and its logits are those of the edited model. Weights are written in
    the type that they have in memory; beside them stand the configuration, the tokenizer if there is one, and what was
    edited and why, as ``kn_lens_edits.json``.

    Args:
        model: the TransformerLens model, without the edits or any others (what is applied is written too).
        edits: one, or several that are applied in their order.
        directory: where to; it must not exist, and appears whole or not at all.
        tokenizer: to write instead of the model's own. A model that came without one is written without.

    Returns:
        The directory. Cost: the size of the checkpoint on disk; nothing runs.

    Raises:
        EditError: the directory exists, or its parent does not; an edit does not fit the model; the model keeps nothing
            of its checkpoint, or TransformerLens has processed its weights.
        ArgumentError: no edits.

    Example:
        >>> import kn_lens as kn, tempfile
        >>> model = kn.load_model("world-bert")
        >>> edit = kn.erase_neurons(model, kn.NeuronSet([(2, 7)]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     edited = kn.load_model(kn.export(model, edit, f"{folder}/edited-bert"))
        >>> float(kn.host_of(edited).W_out(2)[7].abs().max())
        0.0
    """
    host = host_of(model)
    edits = [edits] if isinstance(edits, WeightEdit) else list(edits)
    if not edits or not all(isinstance(edit, WeightEdit) for edit in edits):
        raise ArgumentError(f"Got {edits!r} to export; expected a WeightEdit, or several.")
    check_raw(host, "Written as a checkpoint, the others would make another model.")
    directory = Path(directory)
    check_new(directory)
    tokenizer = host.tokenizer if tokenizer is None else tokenizer
    record = [{"checkpoint": asdict(edit.checkpoint), "why": edit.why, "digest": edit.digest} for edit in edits]
    try:
        with part_folder(directory.parent) as part:
            with _all_applied(edits, host):
                plain_model(model).save_pretrained(part)
            if tokenizer is not None:
                tokenizer.save_pretrained(part)
            (part / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            part.rename(directory)
    except OSError as error:
        raise EditError(f"{directory} cannot be written: {error.strerror or error}.") from error
    return directory


def _all_applied(edits: Sequence[WeightEdit], host: Host) -> AbstractContextManager[None]:
    """Apply edits in their order for the time of a ``with`` block, and undo them last first."""
    stack = ExitStack()

    def apply() -> None:
        for edit in edits:
            stack.enter_context(edit.applied(host))

    return Undone(apply, stack.close)


def check_new(directory: Path) -> None:
    """Raise unless a directory can be made there.

    Raises:
        EditError: it exists, or its parent does not.
    """
    if directory.exists() or directory.is_symlink():
        raise EditError(
            f"{directory} exists; expected the name of a directory to make. Remove it, or take another name."
        )
    if not directory.parent.is_dir():
        raise EditError(f"There is no directory {directory.parent} to make {directory.name} in; make it first.")
