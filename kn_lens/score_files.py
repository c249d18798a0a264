"""Scores of more prompts than memory holds: written to a file while they are computed, and read back whole or in part.

The file is Parquet, which any table library reads. A row is one layer under one prompt, and lists the scores kept:

    prompt   layer   clean   expected   total   tolerance   n_points   neuron       score
    17       9       0.61    0.3924     0.3921  0.00061     3          [188, 2060]  [0.071, 0.212]

with the meaning that ``Attribution`` gives to these names; neurons rise. A neuron that is not listed scored less than
``keep`` times the prompt's largest score, or where scores are whole was not computed. Prompts come in the order in
which they were finished. The file's metadata name the method, the model, and a digest of the prompts: scores are read
back with the prompts they belong to, or not at all.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from einops import repeat
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from kn_lens._exclusive import exclusive
from kn_lens._whole_files import opened, writing_whole
from kn_lens.attribution import Attribution, attribute_in_parts
from kn_lens.errors import ArgumentError, DataError, KNLensError, did_you_mean
from kn_lens.hosts import host_of
from kn_lens.prompts import PromptBatch

KEY, KEY_DIGEST = b"kn_lens.scores", b"kn_lens.scores.sha256"
VERSION = 1
TEXTS, NUMBERS = ("model", "prompts", "method", "output", "quadrature"), ("n_layers", "d_mlp", "n_prompts")
HEAD = {**dict.fromkeys(TEXTS, str), **dict.fromkeys(NUMBERS, int), "keep": (float, type(None))}
"""What the metadata say, and as what."""
FLOATS = ("clean", "expected", "total", "tolerance")
"""The columns with one number a row, of the type of the scores."""
CELLS_IN_GROUP = 2**24
"""Prompts with about as many neurons go into one row group, which is what writing and reading hold at a time."""


@dataclass(frozen=True, kw_only=True)
class ScoreFile:
    """What ``attribute_to_file`` wrote; it stands for its path wherever a path is wanted.

    Attributes:
        path: the file.
        n_prompts: prompts in it.
        n_scores: scores kept.
        n_unconverged: (prompt, layer) pairs whose completeness gap is above the tolerance.
    """

    path: Path
    n_prompts: int
    n_scores: int
    n_unconverged: int

    def __fspath__(self) -> str:
        return str(self.path)


@exclusive
def attribute_to_file(
    model: Any, path: str | os.PathLike[str], prompts: PromptBatch, *, keep: float | None = 0.1, **how: Any
) -> ScoreFile:
    """Attribute as ``attribute`` does, writing the scores to a file as they come instead of holding them.

    Args:
        model: a TransformerLens model.
        path: the file; it appears when all is done, or not at all.
        prompts: what to ask.
        keep: the share of a prompt's largest score from which scores are kept (0.1 as in the released code); None keeps
            all of them.
        **how: the other arguments of ``attribute``.

    Returns:
        What was written. Cost: that of ``attribute``. Memory does not grow with the number of scores. A kept score
        takes about 6 bytes of disk, a whole one 4 (float32).

    Raises:
        ArgumentError: the path exists; or as ``attribute``.
        DataError: the file cannot be written.

    Example:
        >>> import kn_lens as kn, tempfile
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, kn.FactSet.world().of("P36")[:2])
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     scores = kn.attribute_to_file(model, f"{directory}/capitals.parquet", prompts)
        ...     attr = kn.read_attribution(scores, prompts)
        >>> attr.scores.is_sparse, attr.keep, list(kn.refine(attr)) == list(prompts.facts[:2])
        (True, 0.1, True)
    """
    path = Path(path)
    if os.path.exists(path):  # False for names that no file can have, of which writing tells
        raise ArgumentError(f"{path} exists and is not overwritten: read it with read_attribution, or name another.")
    host = host_of(model)
    keep = None if keep is None else float(keep)  # the file's metadata, written last, take no other numbers
    n_scores = n_unconverged = 0
    head: dict[str, Any] = {
        "version": VERSION,
        "model": host.name,
        "n_layers": host.n_layers,
        "d_mlp": host.d_mlp,
        "n_prompts": len(prompts),
        "prompts": _digest(prompts),
    }
    with _written_whole(path, _schema(host.dtype)) as writer:
        for numbers, part in attribute_in_parts(model, prompts, keep=keep, **how):
            for rows in _row_groups(numbers, part, writer.schema):
                writer.write_batch(rows)
                n_scores += len(rows["score"].flatten())
            n_unconverged += len(part.unconverged)
            head |= {name: getattr(part, name) for name in ("method", "output", "quadrature", "keep")}
        text = json.dumps(head).encode()
        # Parquet has checksums for its pages, but none for this.
        writer.add_key_value_metadata({KEY: text, KEY_DIGEST: hashlib.sha256(text).hexdigest()})
    return ScoreFile(path=path, n_prompts=len(prompts), n_scores=n_scores, n_unconverged=n_unconverged)


def read_attribution(
    path: str | os.PathLike[str],
    prompts: PromptBatch,
    *,
    only: Sequence[int] | Int[Tensor, " some"] | None = None,
) -> Attribution:
    """Read what ``attribute_to_file`` wrote.

    Memory is that of the result and of one row group. Where the result is too much, as whole scores soon are, read the
    prompts of one relation after another with ``only``.

    Args:
        path: the file.
        prompts: those that it was written with, all of them.
        only: numbers of the prompts to read, each once; None reads all.

    Returns:
        The attribution of the prompts, or in the order of ``only`` of these prompts, on the CPU; sparse unless the
        scores are whole.

    Raises:
        DataError: no such file, not a file of scores, damaged, or of other prompts.
        ArgumentError: ``only`` names no prompt, or one twice.

    Example:
        One relation after another::

            for relation, numbers in prompts_by_relation.items():
                neurons |= kn.refine(kn.read_attribution("scores.parquet", prompts, only=numbers))
    """
    path = Path(path)
    with _opened(path) as file:
        head = _head(file, path)
        if (head["n_prompts"], head["prompts"]) != (len(prompts), _digest(prompts)):
            raise DataError(
                f"{path} holds scores of {head['n_prompts']} prompts that are not these {len(prompts)}; expected the "
                "prompts that attribute_to_file was given, all of them and in their order."
            )
        numbers = torch.arange(len(prompts)) if only is None else torch.as_tensor(only).cpu()
        selected = (prompts if only is None else prompts.select(numbers.to(prompts.tokens.device))).to("cpu")
        if len(numbers.unique()) < len(numbers):
            raise ArgumentError(f"only={only!r}; expected the number of each prompt once.")

        part = _Part(file=file, path=path, head=head, numbers=numbers)
        values = part.values()
        scores = part.scores(values.pop("n_scores"))
    return Attribution(
        scores=scores,
        clean=values.pop("clean")[:, 0],
        tolerance=values.pop("tolerance")[:, 0],
        **values,
        prompts=selected,
        method=head["method"],
        output=head["output"],
        quadrature=head["quadrature"],
        keep=head["keep"],
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What an open file has on the numbered prompts; ``pair`` is ``place in numbers * n_layers + layer``."""

    file: pq.ParquetFile
    path: Path
    head: dict[str, Any]
    numbers: Int[Tensor, " some"]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.numbers), self.head["n_layers"], self.head["d_mlp"]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.file.schema_arrow.field("clean").type == pa.float64() else torch.float32

    def values(self) -> dict[str, Shaped[Tensor, "some n_layers"]]:
        """Read the columns with one value a row, by their names, and as ``n_scores`` how many scores a row lists."""
        found = {name: torch.full(self.shape[:2], torch.nan, dtype=self.dtype) for name in FLOATS}
        found |= {name: torch.full(self.shape[:2], -1) for name in ("n_points", "n_scores")}
        for pair, rows in self.rows([*FLOATS, "n_points", "neuron"]):
            for name in (*FLOATS, "n_points"):
                found[name].view(-1)[pair] = _tensor(rows[name]).to(found[name].dtype)
            found["n_scores"].view(-1)[pair] = _lists(rows["neuron"])[0].long()
        lacking = (found["n_points"] < 0).any(1).nonzero()
        if len(lacking):
            raise self.changed(f"lacks scores of prompt {int(self.numbers[lacking[0]])}")
        return found

    def scores(self, n_scores: Int[Tensor, "some n_layers"]) -> Float[Tensor, "some n_layers d_mlp"]:
        """Read the scores into the places that their numbers leave for them, so that nothing is held twice."""
        _, n_layers, d_mlp = self.shape
        if self.head["keep"] is None:
            whole = torch.full(self.shape, torch.nan, dtype=self.dtype)
            for pair, _, neuron, score in self.lists():
                whole.view(-1, d_mlp)[pair, neuron] = score
            return whole
        first = n_scores.view(-1).cumsum(0) - n_scores.view(-1)
        indices = torch.empty(3, int(n_scores.sum()), dtype=torch.long)
        values = torch.empty(indices.shape[1], dtype=self.dtype)
        for pair, place, neuron, score in self.lists():
            at = first[pair] + place
            indices[:, at] = torch.stack([pair // n_layers, pair % n_layers, neuron])
            values[at] = score
        return torch.sparse_coo_tensor(indices, values, self.shape, is_coalesced=True, check_invariants=True)

    def lists(
        self,
    ) -> Iterator[tuple[Int[Tensor, " score"], Int[Tensor, " score"], Int[Tensor, " score"], Float[Tensor, " score"]]]:
        """Yield the scores, a row group at a time, after their pairs, their places in the pairs' lists and neurons."""
        for pair, rows in self.rows(["neuron", "score"]):
            (length, neuron), (n_listed, score) = _lists(rows["neuron"]), _lists(rows["score"])
            if not length.equal(n_listed) or not _within(neuron, self.shape[2]) or score.isnan().any():
                raise self.changed("names neurons that there are not, or without a score")
            owner = pair.repeat_interleave(length)
            if not ((neuron.diff() > 0) | (owner.diff() != 0)).all():
                raise self.changed("names neurons twice, or in another order")
            first = (length.cumsum(0) - length).repeat_interleave(length)
            yield owner, torch.arange(len(score)) - first, neuron.long(), score

    def rows(self, columns: list[str]) -> Iterator[tuple[Int[Tensor, " pair"], pa.Table]]:
        """Yield the prompts' rows, a row group at a time, with the pairs they belong to."""
        place = torch.full((self.head["n_prompts"],), -1)
        place[self.numbers] = torch.arange(len(self.numbers))
        for group in range(self.file.num_row_groups):
            ids = self.file.read_row_group(group, columns=["prompt", "layer"])
            prompt, layer = _tensor(ids["prompt"]), _tensor(ids["layer"])
            if not _within(prompt, len(place)) or not _within(layer, self.shape[1]):
                raise self.changed("names prompts or layers that there are not")
            mine = place[prompt] >= 0
            if mine.any():
                rows = self.file.read_row_group(group, columns=columns)
                pair = place[prompt] * self.shape[1] + layer
                yield pair[mine], rows if mine.all() else rows.filter(pa.array(mine.numpy()))

    def changed(self, what: str) -> DataError:
        return DataError(f"{self.path} {what}; the file has been changed.")


def _within(numbers: Int[Tensor, " some"], stop: int) -> bool:
    return bool(((numbers >= 0) & (numbers < stop)).all())


def _tensor(values: pa.Array | pa.ChunkedArray) -> Shaped[Tensor, " value"]:
    return torch.tensor(values.to_numpy())


def _lists(column: pa.ChunkedArray) -> tuple[Int[Tensor, " row"], Shaped[Tensor, " entry"]]:
    """Return the lengths of a column's lists, and their entries, one list after another."""
    lists = column.combine_chunks()
    return _tensor(lists.value_lengths()), _tensor(lists.flatten())


def _schema(dtype: torch.dtype) -> pa.Schema:
    score = pa.float64() if dtype == torch.float64 else pa.float32()
    types = {"prompt": pa.int32(), "layer": pa.int32(), **dict.fromkeys(FLOATS, score), "n_points": pa.int32()}
    lists = {
        name: pa.list_(pa.field("element", element, nullable=False))
        for name, element in (("neuron", pa.int32()), ("score", score))
    }
    return pa.schema([pa.field(name, of, nullable=False) for name, of in (types | lists).items()])


def _row_groups(numbers: Int[Tensor, " batch"], part: Attribution, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some finished prompts."""
    n_prompts, n_layers, d_mlp = part.scores.shape
    of_prompts = {"prompt": numbers, "clean": part.clean, "tolerance": part.tolerance}
    columns = {
        name: repeat(values, "batch -> batch n_layers", n_layers=n_layers) for name, values in of_prompts.items()
    }
    columns["layer"] = repeat(torch.arange(n_layers), "n_layers -> batch n_layers", batch=n_prompts)
    columns |= {name: getattr(part, name) for name in ("expected", "total", "n_points")}
    at_once = max(1, CELLS_IN_GROUP // (n_layers * d_mlp))
    for start in range(0, n_prompts, at_once):
        stop = min(start + at_once, n_prompts)
        length, neuron, score = _listed(part.scores, start, stop)
        arrays = {name: values[start:stop].flatten() for name, values in columns.items()}
        arrays |= {"neuron": neuron, "score": score}
        arrays = {name: pa.array(values.cpu().numpy()) for name, values in arrays.items()}
        offsets = pa.array(torch.nn.functional.pad(length.cumsum(0), (1, 0)).int().cpu().numpy())
        for name in ("neuron", "score"):
            of = schema.field(name).type
            arrays[name] = pa.ListArray.from_arrays(offsets, arrays[name].cast(of.value_type), type=of)
        yield pa.record_batch([arrays[field.name].cast(field.type) for field in schema], schema=schema)


def _listed(
    scores: Float[Tensor, "batch n_layers d_mlp"], start: int, stop: int
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " score"], Float[Tensor, " score"]]:
    """Return the scores of prompts ``start`` to ``stop``: how many each layer has, of which neurons, and themselves."""
    n_layers, d_mlp = scores.shape[1:]
    if not scores.is_sparse:
        computed = ~scores[start:stop].isnan()
        neuron = torch.arange(d_mlp, dtype=torch.int32, device=scores.device).expand_as(computed)[computed]
        return computed.sum(-1).flatten(), neuron, scores[start:stop][computed]
    bounds = torch.tensor([start, stop], device=scores.device)
    first, last = torch.searchsorted(scores.indices()[0].contiguous(), bounds).tolist()
    prompt, layer, neuron = scores.indices()[:, first:last]
    length = torch.bincount((prompt - start) * n_layers + layer, minlength=(stop - start) * n_layers)
    return length, neuron, scores.values()[first:last]


def _digest(prompts: PromptBatch) -> str:
    """Return what tells these prompts from others: what the model is asked, whatever the padding and the facts."""
    digest = hashlib.sha256()
    tokens = prompts.tokens[prompts.attention_mask.bool()]
    lengths = prompts.attention_mask.sum(-1)
    for asked in (lengths, tokens, prompts.read_pos, prompts.target_ids, prompts.prompt_index, prompts.contrast_ids):
        digest.update(b"none" if asked is None else asked.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


@contextmanager
def _written_whole(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    try:
        with (
            writing_whole(path) as file,
            pq.ParquetWriter(
                file,
                schema,
                compression="zstd",
                use_dictionary=False,
                column_encoding={"neuron.list.element": "DELTA_BINARY_PACKED"},
                write_page_checksum=True,
            ) as writer,
        ):
            yield writer
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}.") from error


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with opened(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            yield file
    except KNLensError:
        raise
    except FileNotFoundError as error:
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"There is no file {path}.{did_you_mean(path.name, beside)}") from error
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: also a name with a null character
        raise DataError(f"{path} is no Parquet file, or damaged: {error}.") from error


def _head(file: pq.ParquetFile, path: Path) -> dict[str, Any]:
    """Return what the file says of its scores.

    Raises:
        DataError: it holds something else, is damaged, or was written by another version.
    """
    found = file.metadata.metadata or {}
    if KEY not in found:
        raise DataError(f"{path} holds no scores; expected a file written by attribute_to_file.")
    if hashlib.sha256(found[KEY]).hexdigest().encode() != found.get(KEY_DIGEST):
        raise DataError(f"{path} is damaged: what it says of its scores is not what was written.")
    try:
        head = json.loads(found[KEY])
        version = head["version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DataError(f"{path} does not say what its scores are; the file has been changed.") from None
    if version != VERSION:
        raise DataError(f"{path} has version {version}; this version of kn_lens reads {VERSION}.")
    is_head = all(isinstance(head.get(name, ...), kind) for name, kind in HEAD.items())
    rows = file.metadata.num_rows
    if not is_head or not 0 < head["n_layers"] <= rows <= head["n_prompts"] * head["n_layers"] or head["d_mlp"] < 1:
        raise DataError(f"{path} says of its {rows} rows what cannot be; the file has been changed.")
    if not any(file.schema_arrow.equals(_schema(dtype)) for dtype in (torch.float32, torch.float64)):
        raise DataError(f"{path} has other columns than attribute_to_file writes; the file has been changed.")
    return head
