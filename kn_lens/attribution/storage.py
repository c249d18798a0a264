"""Scores of more prompts than memory holds: written to a file while they are computed, read back whole or in part.

The file is Parquet, which any table library reads. A row is one layer under one prompt, and lists the scores kept:

    prompt   layer   clean   expected   total   tolerance   n_points   neuron       score
    17       9       0.61    0.3924     0.3921  0.00061     3          [188, 2060]  [0.071, 0.212]

with the meaning that ``Attribution`` gives to these names; neurons are in ascending order. A neuron that is not listed
scored less than ``keep`` times the prompt's largest score, or was not computed. Prompts are in the order in which they
were finished. The file's metadata name the method, the model, and a digest of the prompts: scores can only be read
together with their prompts.

A file of scores at several positions has a row for each layer at each position of a prompt: ``prompt`` then numbers the
pairs of prompts and positions, in the order of the prompts, and the metadata name the positions.

Files of a model whose layers have experts have version 2: ``neuron`` is a row of the layer, which counts through its
experts as the metadata state, and there is a column ``routing_term``. Where scores are means over several starts, the
columns ``start_gap_0``, ``start_gap_1``, ... are the gaps from each of them.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from einops import repeat
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from kn_lens._core.atomic import opened, writing_whole
from kn_lens._core.checks import check_path
from kn_lens._core.layout import LayerLayout, NeuronLayout
from kn_lens.attribution.attribute import attribute_in_parts
from kn_lens.attribution.options import AttributionOptions, KeywordsWithoutKeep
from kn_lens.attribution.positions import (
    PositionAttribution,
    PositionPairs,
    Positions,
    expanded_starts,
    numbered,
    position_attribution,
)
from kn_lens.attribution.result import Attribution
from kn_lens.errors import ArgumentError, DataError, KNLensError, did_you_mean
from kn_lens.hosts import HookedModel, Host, Kind, exclusive
from kn_lens.prompts import PositionsName, PromptBatch, check_prompts, host_for

KEY, KEY_DIGEST = b"kn_lens.scores", b"kn_lens.scores.sha256"
VERSION, VERSION_WITH_EXPERTS = 1, 2
METADATA_TYPES = {
    "model": str,
    "prompts": str,
    "method": str,
    "output": str,
    "quadrature": str,
    "n_layers": int,
    "d_mlp": int,
    "n_prompts": int,
    "keep": (float, type(None)),
}
"""The entries of the metadata, and their types."""
FLOATS = ("clean", "expected", "total", "tolerance")
"""The columns that every file has with one number a row, in the precision of the scores."""
START_GAP = "start_gap_"
"""What the names of the columns of gaps from each of several starts begin with."""
SCORES_PER_GROUP = 2**24
"""About as many scores, dropped ones included, are in one row group: what writing and reading hold at a time."""


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
    model: HookedModel | Host,
    path: str | os.PathLike[str],
    prompts: PromptBatch,
    *,
    positions: Positions | None = None,
    keep: float | None = 0.1,
    **keywords: Unpack[KeywordsWithoutKeep],
) -> ScoreFile:
    """Attribute as ``attribute`` does, writing the scores to a file as they come instead of holding them.

    Args:
        model: a TransformerLens model.
        path: the file; it appears when all is done, or not at all.
        prompts: the prompts.
        positions: as for ``attribute``.
        keep: keep only the scores of at least this share of the prompt's largest (0.1 as in the released code); None
            keeps all of them.
        **keywords: the other arguments of ``attribute``.

    Returns:
        The path of the file, and what it holds. Cost: that of ``attribute``. Memory does not grow with the number of
        scores. A kept score takes about 6 bytes of disk, a score of whole ones 4 (float32).

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
    check_path(path)
    path = Path(path)
    if os.path.exists(path):  # False for names that no file can have; writing reports them
        raise ArgumentError(f"{path} exists and is not overwritten: read it with read_attribution, or name another.")
    host = host_for(model, prompts)
    check_prompts(prompts)
    keep = None if keep is None else float(keep)  # JSON takes no other numbers
    positions_entry: dict[str, Any] = {}
    if isinstance(positions, str) and positions == "read":
        prompts = prompts.at("read")
    elif positions is not None:
        pairs = PositionPairs.of(prompts, positions, host.kind)
        prompts = pairs.expanded
        named = positions if isinstance(positions, str) else pairs.positions.tolist()
        positions_entry = {"positions": named, "kind": host.kind}
        keywords["start"] = expanded_starts(keywords.get("start"), pairs)
    n_scores = n_unconverged = 0
    metadata: dict[str, Any] = {
        "version": VERSION_WITH_EXPERTS if host.layout.has_experts else VERSION,
        "model": host.name,
        "n_layers": host.n_layers,
        "d_mlp": host.d_mlp,
        "n_prompts": len(prompts),
        "prompts": _digest(prompts),
        **positions_entry,
    }
    starts = AttributionOptions(**keywords).starts_for(host, prompts)
    if host.layout.has_experts:
        metadata["layout"] = [[layer.n_rows, layer.n_experts, layer.d_expert] for layer in host.layout.layers]
    with _writer(path, _schema(host.dtype, host.layout.has_experts, len(starts))) as writer:
        for numbers, part in attribute_in_parts(model, prompts, keep=keep, **keywords):
            for rows in _row_groups(numbers, part, writer.schema):
                writer.write_batch(rows)
                n_scores += len(rows["score"].flatten())
            n_unconverged += len(part.unconverged)
            for name in ("method", "output", "quadrature", "keep", "start"):
                metadata[name] = getattr(part, name)
        text = json.dumps(metadata).encode()
        # Parquet has checksums for its pages, but none for this.
        digest = hashlib.sha256(text).hexdigest()
        writer.add_key_value_metadata({KEY: text, KEY_DIGEST: digest})
    return ScoreFile(
        path=path,
        n_prompts=len(prompts),
        n_scores=n_scores,
        n_unconverged=n_unconverged,
    )


def read_attribution(
    path: str | os.PathLike[str],
    prompts: PromptBatch,
    *,
    only: Sequence[int] | Int[Tensor, " chosen"] | None = None,
) -> Attribution:
    """Read what ``attribute_to_file`` wrote.

    Memory is that of the result and of one row group. Where the result is too large, as whole scores soon are, read the
    prompts of one relation after another with ``only``.

    Args:
        path: the file.
        prompts: the prompts that it was written with, all of them.
        only: numbers of the prompts to read, each once; None reads all.

    Returns:
        The attribution of the prompts, or in the order of ``only`` of these prompts, on the CPU; sparse unless the
        scores are whole.

    Raises:
        DataError: no such file, not a file of scores, damaged, of other prompts, or of several positions.
        ArgumentError: ``only`` names a prompt that does not exist, or one twice.

    Example:
        One relation after another::

            for relation, numbers in prompts_by_relation.items():
                neurons |= kn.refine(kn.read_attribution("scores.parquet", prompts, only=numbers))
    """
    check_path(path)
    check_prompts(prompts)
    path = Path(path)
    with _opened(path) as file:
        metadata = _metadata(file, path)
        if "positions" in metadata:
            raise DataError(
                f"{path} holds scores at several positions of each prompt: "
                "read it with kn_lens.read_position_attribution(path, prompts)."
            )
        return _read(file, path, metadata, prompts, only)


def read_position_attribution(
    path: str | os.PathLike[str],
    prompts: PromptBatch,
    *,
    only: Sequence[int] | Int[Tensor, " chosen"] | None = None,
) -> PositionAttribution:
    """Read what ``attribute_to_file`` wrote at several positions of each prompt.

    Args:
        path: the file.
        prompts: the prompts that it was written with, all of them.
        only: as for ``read_attribution``: numbers of the prompts to read.

    Returns:
        The attribution of the prompts, or in the order of ``only`` of these prompts, on the CPU; sparse unless the
        scores are whole.

    Raises:
        DataError: no such file, not a file of such scores, damaged, or of other prompts.
        ArgumentError: ``only`` names a prompt that does not exist, or one twice.

    Example:
        >>> import kn_lens as kn, tempfile
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, kn.FactSet.world().of("P36")[:2])
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     scores = kn.attribute_to_file(model, f"{directory}/scores.parquet", prompts, positions="subject")
        ...     attr = kn.read_position_attribution(scores, prompts)
        >>> attr.at("subject_last").scores.is_sparse
        True
    """
    check_path(path)
    check_prompts(prompts)
    path = Path(path)
    with _opened(path) as file:
        metadata = _metadata(file, path)
        if "positions" not in metadata:
            raise DataError(
                f"{path} holds scores at one position of each prompt: read it with kn_lens.read_attribution(path, "
                "prompts)."
            )
        positions: Positions = metadata["positions"]
        if isinstance(positions, list):
            positions = torch.tensor(positions)
        pairs = PositionPairs.of(prompts.to("cpu"), positions, metadata["kind"])
        if only is None:
            return position_attribution(pairs, _read(file, path, metadata, pairs.expanded, None))
        chosen, numbers = _chosen(pairs.prompts, only)
        pair_index = pairs.pair_index[numbers]
        exists = pair_index >= 0
        return PositionAttribution(
            pairs=_read(file, path, metadata, pairs.expanded, pair_index[exists]),
            prompts=chosen,
            positions=pairs.positions[numbers],
            pair_index=numbered(exists),
        )


def _read(
    file: pq.ParquetFile,
    path: Path,
    metadata: dict[str, Any],
    prompts: PromptBatch,
    only: Sequence[int] | Int[Tensor, " chosen"] | None,
) -> Attribution:
    """Read the scores of prompts, or of pairs of prompts and positions; see ``read_attribution``."""
    if (metadata["n_prompts"], metadata["prompts"]) != (len(prompts), _digest(prompts)):
        raise DataError(
            f"{path} holds scores of {metadata['n_prompts']} prompts that are not these {len(prompts)}; "
            "expected the prompts that attribute_to_file was given, all of them and in their order."
        )
    selected, numbers = (prompts, torch.arange(len(prompts))) if only is None else _chosen(prompts, only)
    reader = _Reader(file=file, path=path, metadata=metadata, numbers=numbers)
    values = reader.values()
    scores = reader.scores(values["n_scores"])
    return Attribution(
        scores=scores,
        total=values["total"],
        clean=values["clean"][:, 0],
        expected=values["expected"],
        n_points=values["n_points"],
        tolerance=values["tolerance"][:, 0],
        prompts=selected.to("cpu"),
        method=metadata["method"],
        output=metadata["output"],
        quadrature=metadata["quadrature"],
        keep=metadata["keep"],
        layout=_layout(metadata),
        start=metadata.get("start", "zero"),
        routing_term=values.get("routing_term"),
        start_gaps=reader.start_gaps(values),
    )


def _chosen(
    prompts: PromptBatch, only: Sequence[int] | Int[Tensor, " chosen"]
) -> tuple[PromptBatch, Int[Tensor, " chosen"]]:
    """Return some prompts, and their numbers.

    Raises:
        ArgumentError: a prompt that does not exist, or one twice.
    """
    selected = prompts.select(only)
    numbers = torch.as_tensor(only).cpu()
    if len(numbers.unique()) < len(numbers):
        raise ArgumentError(f"only={only!r}; expected the number of each prompt once.")
    return selected, numbers


ScoreList = tuple[
    Int[Tensor, " score"],
    Int[Tensor, " score"],
    Int[Tensor, " score"],
    Float[Tensor, " score"],
]
"""For each score of a row group: its pair, its position in the pair's list, its neuron, and the score itself."""


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Reads the scores of some prompts from an open file.

    A pair is a (prompt, layer), numbered ``position of the prompt in numbers * n_layers + layer``.

    Attributes:
        file: open.
        path: its path, for messages.
        metadata: what the file states about its scores.
        numbers: the prompts to read.
    """

    file: pq.ParquetFile
    path: Path
    metadata: dict[str, Any]
    numbers: Int[Tensor, " chosen"]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.numbers), self.metadata["n_layers"], self.metadata["d_mlp"]

    @property
    def has_experts(self) -> bool:
        return self.metadata["version"] == VERSION_WITH_EXPERTS

    @property
    def dtype(self) -> torch.dtype:
        if self.file.schema_arrow.field("clean").type == pa.float64():
            return torch.float64
        return torch.float32

    @property
    def floats(self) -> list[str]:
        """The columns with one number a row, in the precision of the scores."""
        return [field.name for field in self.file.schema_arrow if field.type in (pa.float32(), pa.float64())]

    def start_gaps(
        self, values: Mapping[str, Shaped[Tensor, "chosen n_layers"]]
    ) -> Float[Tensor, "chosen n_layers start"] | None:
        """Return the gaps from each start, from the columns with one value a row; None of a single start."""
        gaps = [values[name] for name in self.floats if name.startswith(START_GAP)]
        return torch.stack(gaps, -1) if gaps else None

    def values(self) -> dict[str, Shaped[Tensor, "chosen n_layers"]]:
        """Read the columns with one value a row, by name, and as ``n_scores`` the number of scores that a row lists."""
        columns: dict[str, Tensor] = {}
        floats = self.floats
        for name in floats:
            columns[name] = torch.full(self.shape[:2], torch.nan, dtype=self.dtype)
        for name in ("n_points", "n_scores"):
            columns[name] = torch.full(self.shape[:2], -1)
        for pair, rows in self.rows([*floats, "n_points", "neuron"]):
            for name in (*floats, "n_points"):
                columns[name].view(-1)[pair] = _tensor(rows[name]).to(columns[name].dtype)
            n_scores, _ = _lists(rows["neuron"])
            columns["n_scores"].view(-1)[pair] = n_scores.long()
        lacking = (columns["n_points"] < 0).any(1).nonzero()
        if len(lacking):
            raise self.corrupt(f"lacks scores of prompt {int(self.numbers[lacking[0]])}")
        return columns

    def scores(self, n_scores: Int[Tensor, "chosen n_layers"]) -> Float[Tensor, "chosen n_layers d_mlp"]:
        """Read the scores into tensors of their final size, so that nothing is held twice.

        Args:
            n_scores: number of scores of each pair.
        """
        _, n_layers, d_mlp = self.shape
        if self.metadata["keep"] is None and not self.has_experts:
            dense = torch.full(self.shape, torch.nan, dtype=self.dtype)
            for pair, _, neuron, score in self.score_lists():
                dense.view(-1, d_mlp)[pair, neuron] = score
            return dense
        first = n_scores.view(-1).cumsum(0) - n_scores.view(-1)  # entry of each pair's first score
        indices = torch.empty(3, int(n_scores.sum()), dtype=torch.long)
        values = torch.empty(indices.shape[1], dtype=self.dtype)
        for pair, position, neuron, score in self.score_lists():
            entry = first[pair] + position
            indices[:, entry] = torch.stack([pair // n_layers, pair % n_layers, neuron])
            values[entry] = score
        return torch.sparse_coo_tensor(
            indices,
            values,
            self.shape,
            is_coalesced=True,
            check_invariants=True,
        )

    def score_lists(self) -> Iterator[ScoreList]:
        """Yield the scores of each row group that has any of the prompts."""
        for pair, rows in self.rows(["neuron", "score"]):
            length, neuron = _lists(rows["neuron"])
            n_listed, score = _lists(rows["score"])
            same_lengths = length.equal(n_listed)
            if not same_lengths or not _within(neuron, self.shape[2]) or score.isnan().any():
                raise self.corrupt("lists neurons that do not exist, or without a score")
            owner = pair.repeat_interleave(length)
            is_ascending = (neuron.diff() > 0) | (owner.diff() != 0)
            if not is_ascending.all():
                raise self.corrupt("lists a neuron twice, or neurons in another order")
            first = (length.cumsum(0) - length).repeat_interleave(length)
            yield owner, torch.arange(len(score)) - first, neuron.long(), score

    def rows(self, columns: list[str]) -> Iterator[tuple[Int[Tensor, " pair"], pa.Table]]:
        """Yield, for each row group, the rows of the prompts to read, with their pairs."""
        position = torch.full((self.metadata["n_prompts"],), -1)
        position[self.numbers] = torch.arange(len(self.numbers))
        for group in range(self.file.num_row_groups):
            ids = self.file.read_row_group(group, columns=["prompt", "layer"])
            prompt, layer = _tensor(ids["prompt"]), _tensor(ids["layer"])
            if not _within(prompt, len(position)) or not _within(layer, self.shape[1]):
                raise self.corrupt("names prompts or layers that do not exist")
            is_chosen = position[prompt] >= 0
            if is_chosen.any():
                rows = self.file.read_row_group(group, columns=columns)
                pair = position[prompt] * self.shape[1] + layer
                if not is_chosen.all():
                    rows = rows.filter(pa.array(is_chosen.numpy()))
                yield pair[is_chosen], rows

    def corrupt(self, what: str) -> DataError:
        return DataError(f"{self.path} {what}; the file has been changed.")


def _within(numbers: Int[Tensor, " value"], stop: int) -> bool:
    return bool(((numbers >= 0) & (numbers < stop)).all())


def _tensor(values: pa.Array | pa.ChunkedArray) -> Shaped[Tensor, " value"]:
    return torch.tensor(values.to_numpy())


def _lists(column: pa.ChunkedArray) -> tuple[Int[Tensor, " row"], Shaped[Tensor, " entry"]]:
    """Return the lengths of a column's lists, and their entries, one list after another."""
    lists = column.combine_chunks()
    return _tensor(lists.value_lengths()), _tensor(lists.flatten())


def _schema(dtype: torch.dtype, has_experts: bool, n_starts: int) -> pa.Schema:
    """Return the columns of a file, for scores of a precision and paths from a number of starts."""
    score = pa.float64() if dtype == torch.float64 else pa.float32()
    types: dict[str, pa.DataType] = {"prompt": pa.int32(), "layer": pa.int32()}
    for name in FLOATS:
        types[name] = score
    if has_experts:
        types["routing_term"] = score
    for number in range(n_starts if n_starts > 1 else 0):
        types[f"{START_GAP}{number}"] = score
    types["n_points"] = pa.int32()
    for name, entry in (("neuron", pa.int32()), ("score", score)):
        types[name] = pa.list_(pa.field("element", entry, nullable=False))
    fields = [pa.field(name, type_, nullable=False) for name, type_ in types.items()]
    return pa.schema(fields)


def _row_groups(
    numbers: Int[Tensor, " part"],
    part: Attribution,
    schema: pa.Schema,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some finished prompts, in groups of bounded size.

    Args:
        numbers: of the prompts.
        part: their attribution.
        schema: of the file.
    """
    n_prompts, n_layers, d_mlp = part.scores.shape
    layer = torch.arange(n_layers)
    columns: dict[str, Tensor] = {"layer": repeat(layer, "n_layers -> part n_layers", part=n_prompts)}
    values_by_prompt = {"prompt": numbers, "clean": part.clean, "tolerance": part.tolerance}
    for name, values in values_by_prompt.items():
        columns[name] = repeat(values, "part -> part n_layers", n_layers=n_layers)
    for name in ("expected", "total", "n_points"):
        columns[name] = getattr(part, name)
    if part.routing_term is not None:
        columns["routing_term"] = part.routing_term
    if part.start_gaps is not None:
        for number, gaps in enumerate(part.start_gaps.unbind(-1)):
            columns[f"{START_GAP}{number}"] = gaps
    prompts_per_group = max(1, SCORES_PER_GROUP // (n_layers * d_mlp))
    for start in range(0, n_prompts, prompts_per_group):
        stop = min(start + prompts_per_group, n_prompts)
        length, neuron, score = _listed(part.scores, start, stop)
        offsets = pa.array(pad(length.cumsum(0), (1, 0)).int().cpu().numpy())
        arrays: dict[str, pa.Array] = {}
        for name, values in columns.items():
            array = pa.array(values[start:stop].flatten().cpu().numpy())
            arrays[name] = array.cast(schema.field(name).type)
        for name, values in (("neuron", neuron), ("score", score)):
            list_type = schema.field(name).type
            entries = pa.array(values.cpu().numpy()).cast(list_type.value_type)
            arrays[name] = pa.ListArray.from_arrays(offsets, entries, type=list_type)
        yield pa.record_batch([arrays[name] for name in schema.names], schema=schema)


def _listed(
    scores: Float[Tensor, "part n_layers d_mlp"],
    start: int,
    stop: int,
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " score"], Float[Tensor, " score"]]:
    """Return the scores of prompts ``start`` to ``stop``: how many each layer has, of which neurons, and themselves."""
    n_layers, d_mlp = scores.shape[1:]
    if not scores.is_sparse:
        computed = ~scores[start:stop].isnan()
        indices = torch.arange(d_mlp, dtype=torch.int32, device=scores.device)
        neuron = indices.expand_as(computed)[computed]
        return computed.sum(-1).flatten(), neuron, scores[start:stop][computed]
    bounds = torch.tensor([start, stop], device=scores.device)
    first, last = torch.searchsorted(scores.indices()[0].contiguous(), bounds).tolist()
    prompt, layer, neuron = scores.indices()[:, first:last]
    pair = (prompt - start) * n_layers + layer
    length = torch.bincount(pair, minlength=(stop - start) * n_layers)
    return length, neuron, scores.values()[first:last]


def _digest(prompts: PromptBatch) -> str:
    """Return a digest of what the prompts ask the model, whatever their padding and facts."""
    lengths = prompts.attention_mask.sum(-1)
    tokens = prompts.tokens[prompts.attention_mask.bool()]
    digest = hashlib.sha256()
    for values in (
        lengths,
        tokens,
        prompts.read_pos,
        prompts.target_ids,
        prompts.prompt_index,
        prompts.contrast_ids,
    ):
        digest.update(b"none" if values is None else values.cpu().numpy().astype("<i8").tobytes())
    if prompts.encoder_tokens is not None and prompts.encoder_attention_mask is not None:
        for values in (
            prompts.encoder_attention_mask.sum(-1),
            prompts.encoder_tokens[prompts.encoder_attention_mask.bool()],
        ):
            digest.update(values.cpu().numpy().astype("<i8").tobytes())
    if prompts.moved_pos is not None:
        digest.update(b"moved" + prompts.moved_pos.cpu().numpy().astype("<i8").tobytes())
    if prompts.encoder_pos is not None:
        digest.update(b"encoder" + prompts.encoder_pos.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a file whole, or not at all."""
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
    """Open a file for reading; what PyArrow raises in the block is a ``DataError`` too."""
    try:
        with opened(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            yield file
    except KNLensError:
        raise
    except FileNotFoundError as error:
        names = []
        if path.parent.is_dir():
            names = [sibling.name for sibling in path.parent.iterdir()]
        raise DataError(f"There is no file {path}.{did_you_mean(path.name, names)}") from error
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a name with a null character
        raise DataError(f"{path} is no Parquet file, or damaged: {error}.") from error


def _metadata(file: pq.ParquetFile, path: Path) -> dict[str, Any]:
    """Return what a file states about its scores.

    Raises:
        DataError: it holds something else, is damaged, or was written by another version.
    """
    stored = file.metadata.metadata or {}
    if KEY not in stored:
        raise DataError(f"{path} holds no scores; expected a file written by attribute_to_file.")
    if hashlib.sha256(stored[KEY]).hexdigest().encode() != stored.get(KEY_DIGEST):
        raise DataError(f"{path} is damaged: its metadata are not what was written.")
    try:
        metadata = json.loads(stored[KEY])
        version = metadata["version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DataError(f"{path} does not state what its scores are; the file has been changed.") from None
    if version not in (VERSION, VERSION_WITH_EXPERTS):
        raise DataError(
            f"{path} has version {version}; this version of kn_lens reads {VERSION} and {VERSION_WITH_EXPERTS}."
        )
    n_rows = file.metadata.num_rows
    if not _describes_rows(metadata, n_rows):
        raise DataError(f"{path} has metadata that cannot be those of its {n_rows} rows; the file has been changed.")
    schema = file.schema_arrow
    has_experts = version == VERSION_WITH_EXPERTS
    n_starts = len(metadata.get("start", "zero").split(", "))
    known = [_schema(dtype, has_experts, n_starts) for dtype in (torch.float32, torch.float64)]
    if not any(map(schema.equals, known)):
        raise DataError(f"{path} has other columns than attribute_to_file writes; the file has been changed.")
    return metadata


def _describes_rows(metadata: dict[str, Any], n_rows: int) -> bool:
    """Return whether metadata have all entries, of the right types, and sizes that this many rows can have."""
    for name, type_ in METADATA_TYPES.items():
        if not isinstance(metadata.get(name, ...), type_):
            return False
    if not isinstance(metadata.get("start", "zero"), str):
        return False
    n_layers = metadata["n_layers"]
    if metadata["version"] == VERSION_WITH_EXPERTS and not _describes_layout(metadata.get("layout"), metadata):
        return False
    if "positions" in metadata and not _describes_positions(metadata):
        return False
    most_rows = metadata["n_prompts"] * n_layers
    return 0 < n_layers <= n_rows <= most_rows and metadata["d_mlp"] >= 1


def _describes_positions(metadata: dict[str, Any]) -> bool:
    """Return whether the entries of metadata name positions: by name, or as rows of whole numbers of one length."""
    if metadata.get("kind") not in get_args(Kind):
        return False
    positions = metadata["positions"]
    if isinstance(positions, str):
        return positions in get_args(PositionsName)
    if not isinstance(positions, list) or not positions:
        return False
    for of_prompt in positions:
        if not isinstance(of_prompt, list) or len(of_prompt) != len(positions[0]):
            return False
        if any(type(position) is not int for position in of_prompt):
            return False
    return True


def _describes_layout(layers: Any, metadata: dict[str, Any]) -> bool:
    """Return whether an entry of metadata is the layout of all layers."""
    if not isinstance(layers, list) or len(layers) != metadata["n_layers"]:
        return False
    for layer in layers:
        if not isinstance(layer, list) or [type(number) for number in layer] != [int, int, int]:
            return False
        n_rows, n_experts, d_expert = layer
        if min(layer) < 0 or not n_experts * d_expert <= n_rows <= metadata["d_mlp"]:
            return False
    return True


def _layout(metadata: dict[str, Any]) -> NeuronLayout:
    """Return the layout that metadata state."""
    layers = []
    for n_rows, n_experts, d_expert in metadata.get("layout", ()):
        layers.append(LayerLayout(n_rows=n_rows, n_experts=n_experts, d_expert=d_expert))
    return NeuronLayout(tuple(layers))
