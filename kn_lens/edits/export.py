"""Export: an edited model as a plain Hugging Face checkpoint, which other programs can load."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from kn_lens._core.atomic import writing_folder
from kn_lens._core.checks import check_kind, check_path, wrong_kind
from kn_lens._core.interrupts import undone
from kn_lens.edits.value_rows import check_raw
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.errors import ArgumentError, EditError
from kn_lens.hosts import HookedModel, Host, exclusive, host_of, unwrap_model

RECORD = "kn_lens_edits.json"


@exclusive
def export(
    model: HookedModel | Host,
    edits: WeightEdit | Sequence[WeightEdit],
    directory: str | Path,
    *,
    tokenizer: Any = None,
) -> Path:
    """Write a model with edits as a Hugging Face checkpoint. The model in memory comes out as it went in.

    The checkpoint loads with transformers alone, and its logits are those of the edited model. Weights are written in
    the type that they have in memory. The directory also holds the configuration, the tokenizer if there is one, and a
    record of the edits, ``kn_lens_edits.json``.

    Args:
        model: the TransformerLens model, without these edits applied. Other edits that are applied are written too.
        edits: one edit, or several that are applied in their order.
        directory: the directory to make. It must not exist, and appears whole or not at all.
        tokenizer: the tokenizer to write instead of the model's own. A model without one is written without.

    Returns:
        The directory. Cost: the size of the checkpoint on disk; no forward pass.

    Raises:
        EditError: the directory exists, or its parent does not; an edit does not fit the model; the model keeps nothing
            of its checkpoint, or TransformerLens has processed its weights.
        ArgumentError: no edits, or other kinds of arguments.

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
    edits = _checked_edits(edits)
    check_path(directory, "directory")
    check_raw(host, "A checkpoint of processed weights would be another model.")
    directory = Path(directory)
    check_new(directory)
    if tokenizer is None:
        tokenizer = host.tokenizer
    record = []
    for edit in edits:
        entry = {"checkpoint": edit.checkpoint.as_dict(), "why": edit.why, "digest": edit.digest}
        record.append(entry)
    try:
        with writing_folder(directory) as part:
            with _all_applied(edits, host.model):
                unwrap_model(host.model).save_pretrained(part)
            if tokenizer is not None:
                tokenizer.save_pretrained(part)
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            (part / RECORD).write_text(text, encoding="utf-8")
    except OSError as error:
        raise EditError(f"{directory} cannot be written: {error.strerror or error}.") from error
    return directory


def _checked_edits(edits: Any) -> list[WeightEdit]:
    if isinstance(edits, WeightEdit):
        return [edits]
    if isinstance(edits, (str, Mapping)) or not isinstance(edits, Iterable):
        raise wrong_kind(edits, "a WeightEdit or a list of them: kn_lens.export(model, edit, directory)", "edits")
    edits = list(edits)
    if not edits:
        raise ArgumentError("There are no edits to export; expected a WeightEdit, or several.")
    for edit in edits:
        check_kind(edit, WeightEdit, "WeightEdits alone: kn_lens.export(model, [edit], directory)", "one of the edits")
    return edits


def _all_applied(
    edits: Sequence[WeightEdit],
    model: HookedModel,
) -> AbstractContextManager[None]:
    """Apply edits in their order for the time of a ``with`` block, and undo them last first."""
    stack = ExitStack()

    def apply() -> None:
        for edit in edits:
            stack.enter_context(edit.applied(model))

    return undone(apply, stack.close)


def check_new(directory: Path) -> None:
    """Raise unless the directory can be made.

    Raises:
        EditError: it exists, or its parent does not.
    """
    if directory.exists() or directory.is_symlink():
        raise EditError(
            f"{directory} exists; expected the name of a directory to make. Remove it, or take another name."
        )
    if not directory.parent.is_dir():
        raise EditError(f"There is no directory {directory.parent} to make {directory.name} in; make it first.")
