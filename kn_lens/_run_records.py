"""A run directory read back, without the model: its settings, records and tables, and what is not there yet."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens._whole_files import read_whole
from kn_lens.errors import ArgumentError, DataError
from kn_lens.experiments.run_directory import CONFIG, PROVENANCE, RunDirectory, Shard, completed, from_toml
from kn_lens.experiments.settings import PRESETS, Settings

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
"""The relation of a shard that is about all of them."""
OPTIONS = ("model", "facts", "format", "templates", "split", "preset", "seed", "limit", "relations")
"""Entries of a configuration that are options of their own; the others are given with ``--set``."""
LABELS = frozenset(
    "relation key text texts word why neurons facts statistic measure varied asked end subject object".split()
)
"""Columns of tables that hold names, also where all of them read like numbers."""
NUMBERS = frozenset("factor layer value low high n control paper n_pairs largest_gap above_tolerance".split())
"""Columns of tables that hold nothing but numbers."""

RECORDS = {
    "facts": ("key", "relation subject object asked n_prompts"),
    "answers": ("key", "n_right n_prompts"),
    "neurons": ("neurons key", "relation layer index"),
    "effects": ("factor facts neurons key", "before after"),
    "predictions": ("", "key text before after rank_before rank_after top_before top_after"),
    "neuron_scores": ("key layer index", "score low high share n_prompts"),
    "readouts": ("layer index", "tokens logits"),
}
"""The stages whose records are read without their models: columns that tell their rows apart, and others."""

ENTRIES: Mapping[str, Any] = {
    "made_from": {
        "versions": {"kn_lens": str},
        "model": {"architecture": str, "dtype": str, "device": str},
    },
    "model": {"kind": str, "n_layers": range(1, 10_000), "d_mlp": range(1, 2**31), "n_params": range(1, 2**63)},
    "n_relations": range(1, 2**31),
}
"""What is read of the provenance of a run on a model: texts, and whole numbers that some model could have."""
DEEPEST = 20
"""Levels of settings and provenance; those written have five."""


@dataclass(frozen=True)
class RunRecords:
    """What a run left.

    Attributes:
        path: its directory.
        config: its settings, and the names of model and facts.
        provenance: what it was made from.
    """

    path: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    _run: RunDirectory = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_run", RunDirectory(self.path))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "RunRecords":
        """Open the directory of a run, finished or not.

        Raises:
            ArgumentError: it is no run directory.
            DataError: ``config.toml`` or ``provenance.json`` is damaged.
        """
        path = checked_path(path)
        if not (path / CONFIG).is_file() or not (path / PROVENANCE).is_file():
            what = "is no run directory: it has no config.toml and provenance.json" if path.exists() else "is not there"
            raise ArgumentError(f"{path} {what}. 'kn-lens reproduce --out {shlex.quote(str(path))}' makes one.")
        read = []
        for name, parse in ((CONFIG, _config), (PROVENANCE, _provenance)):
            try:
                read.append(parse(read_whole(path / name).decode()))
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path / name} is damaged ({error}); 'kn-lens reproduce --force' with the settings of the run "
                    "writes it anew and keeps the records."
                ) from None
        return cls(path, *read)

    def lacking(self) -> list[str]:
        """Return the entries of the provenance that a run on a model has and this one has not, by their paths."""
        return list(_lacking(self.provenance, ENTRIES))

    def relations(self) -> list[str]:
        """Return the relations that have facts the model was asked for, as far as the run has come."""
        asked = self.records("facts")
        return [] if asked is None else list(dict.fromkeys(asked.loc[asked["asked"], "relation"]))

    def records(self, stage: str) -> "pd.DataFrame | None":
        """Return the records of a stage's shards that are there; None where there are none.

        Raises:
            DataError: a file of records is not what was written, or is another's, or they are of two versions of the
                stage.
        """
        import pandas as pd

        parts = []
        versions = self.versions(stage)
        if len(set(versions.values())) > 1:
            told = ", ".join(f"{relation}: {'unknown' if one is None else one}" for relation, one in versions.items())
            raise DataError(
                f"{self.path} holds records of more than one version of the stage {stage} ({told}), which may differ "
                f"in what they mean; they are made alike by: {self.command(stage)} --force"
            )
        for shard in self._run.shards(stage):
            path = self._run.record(stage, shard)
            if self._run.noted(stage, shard) is not None:
                part = pd.read_parquet(path, partitioning=None)
                if why := _foreign(part, stage, shard):
                    raise DataError(f"{path} {why}; it is made again by: {self.command(stage)} --force")
                parts.append(part)
            elif self._run.damaged(stage, shard):
                raise DataError(f"{path} is damaged; it is made again by: {self.command(stage)}")
        if not parts:
            return None
        records = pd.concat(parts, ignore_index=True)
        apart = RECORDS.get(stage, ("",))[0].split()
        if apart and records.duplicated(apart).any():
            raise DataError(
                f"{self.path}: the records of stage {stage} tell of some facts twice; some are of another run. "
                f"They are made again by: {self.command(stage)} --force"
            )
        return records

    def versions(self, stage: str) -> dict[str, int | None]:
        """Return the versions of a stage that its undamaged records are of, by shard; None where none was noted."""
        noted = {shard.name: self._run.noted(stage, shard) for shard in self._run.shards(stage)}
        return {name: one.get("version") for name, one in noted.items() if one is not None}

    def is_complete(self, stage: str, relations: Sequence[str]) -> bool:
        """Return whether the records of a stage are there for these relations, in all its parts."""
        shards = [shard for shard in self._run.shards(stage) if self._run.noted(stage, shard) is not None]
        there = {(shard.relation, shard.part) for shard in shards}
        parts = {shard.part for shard in shards}
        return bool(shards) and ((ALL, "") in there or {(one, part) for one in relations for part in parts} <= there)

    def tables(self) -> "dict[str, pd.DataFrame]":
        """Return the run's tables by name.

        Raises:
            DataError: one cannot be read, or holds something else where numbers belong.
        """
        tables = {}
        for path in sorted((self.path / "tables").glob("*.csv")):
            table = read_table(path)
            for name in table:
                try:
                    table[name] = _numbers(table[name])
                except ValueError as error:
                    raise DataError(
                        f"{path} holds something else than numbers in its column {name} ({_short(error)}); "
                        f"the tables are written anew by: {self.command()}"
                    ) from None
            tables[path.stem] = table
        return tables

    def command(self, *stages: str) -> str:
        """Return the command that takes the run up again, for some of its stages."""
        config = self.config
        if "neurons" in config:
            files = [word for name in config["neurons"] for word in ("--neurons", name)]
            return shlex.join(["kn-lens", "reproduce", *files, "--out", str(self.path)])
        words = ["kn-lens", "reproduce"]
        for name in OPTIONS:
            value = config.get(name)
            if value and value != {"preset": "kn_lens", "split": "all"}.get(name):
                words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
        preset = config.get("preset", "kn_lens")
        usual = Settings.of(preset).as_dict() if preset in PRESETS else {}
        for name, value in usual.items():
            here = config.get(name)
            if name not in (*OPTIONS, "texts_digest", "syntax_digest") and here != value:
                words += ["--set", f"{name}={here if isinstance(here, str) else json.dumps(here)}"]
        words += ["--out", str(self.path)]
        return shlex.join(words + (["--stages", ",".join(stages)] if stages else []))


def _foreign(records: "pd.DataFrame", stage: str, shard: Shard) -> str:
    """Return why records that are what was written are not those of a shard; empty where they may be."""
    lacking = set(" ".join(RECORDS.get(stage, ())).split()) - set(records)
    if lacking:
        return f"holds no records of stage {stage}: it lacks {', '.join(sorted(lacking))}"
    if shard.relation != ALL and "relation" in records and (records["relation"] != shard.relation).any():
        return "holds records of another relation"
    return ""


def read_table(path: Path) -> "pd.DataFrame":
    """Return a table of a run as it is written: all cells are texts.

    Raises:
        DataError: it is no table.
    """
    import pandas as pd

    try:
        text = read_whole(path).decode("utf-8-sig")
        if text.partition("\n")[0].endswith("\r"):  # an editor has put these in
            text = text.replace("\r\n", "\n")
        # Names of relations may hold what else ends a line.
        table = pd.read_csv(StringIO(text), keep_default_na=False, dtype=str, lineterminator="\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table: {_short(error)}") from None
    # pandas takes what is too much for names of rows, and what is missing for NaN.
    if not isinstance(table.index, pd.RangeIndex) or table.isna().any(axis=None):
        raise DataError(f"{path} cannot be read as a table: some rows have more or fewer cells than the first.")
    return table


def checked_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file or directory that need not be there.

    Raises:
        ArgumentError: none can have this name.
    """
    path = Path(path)
    try:
        path.resolve().exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long; a null character; links in a circle
        why = getattr(error, "strerror", None) or error
        raise ArgumentError(f"{_short(path)} can be no file or directory: {why}.") from None
    return path


def _config(text: str) -> dict[str, Any]:
    """Return the settings, of which all that is read here has the type it was written with."""
    config = completed(from_toml(text))
    _check_depth(config)
    for name, kind in (("model", str), ("facts", str), ("preset", str), ("neurons", list), ("relations", list)):
        value = config.get(name, kind())
        if not isinstance(value, kind) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{name} is {_short(repr(value))}")
    return config


def _provenance(text: str) -> dict[str, Any]:
    """Return what a run was made from, likewise."""
    provenance = json.loads(text)
    if not isinstance(provenance, dict):
        raise ValueError("it is no object")
    _check_depth(provenance)
    _check_entries(provenance, ENTRIES)
    tags = provenance.get("tags", {})
    if not isinstance(tags, dict):
        raise ValueError("tags is no object")
    for name, tag in tags.items():
        if not isinstance(tag, (str, int, float)):
            raise ValueError(f"tags.{name} is {_short(repr(tag))}")
    return provenance


def _check_entries(value: Mapping[str, Any], kinds: Mapping[str, Any], path: str = "") -> None:
    """Raise where an entry that is there is not what it should be."""
    for name, kind in kinds.items():
        if name not in value:
            continue
        inner = value[name]
        if isinstance(kind, dict):
            if not isinstance(inner, dict):
                raise ValueError(f"{path}{name} is no object")
            _check_entries(inner, kind, f"{path}{name}.")
        elif not (isinstance(inner, int) and inner in kind if isinstance(kind, range) else isinstance(inner, kind)):
            raise ValueError(f"{path}{name} is {_short(repr(inner))}")


def _lacking(value: Mapping[str, Any], kinds: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, kind in kinds.items():
        if isinstance(kind, dict):
            yield from _lacking(value.get(name, {}), kind, f"{path}{name}.")
        elif name not in value:
            yield f"{path}{name}"


def _check_depth(value: Any, levels: int = DEEPEST) -> None:
    """Raise where values are nested deeper than what is written; what comes after goes through them recursively."""
    if not levels:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, levels - 1)


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _numbers(column: "pd.Series") -> "pd.Series":
    """Return a column of texts as numbers where it holds numbers; an empty cell then is NaN.

    Raises:
        ValueError: it does not, and must.
    """
    if column.name in LABELS or not len(column):
        return column
    try:
        return column.where(column != "", "nan").astype(float)
    except ValueError:
        if column.name in NUMBERS:
            raise
        return column
