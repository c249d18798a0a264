"""A run directory read back, without the model: its settings, records and tables, and what is not there yet."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.errors import ArgumentError, DataError
from kn_lens.experiments.run_directory import CONFIG, PROVENANCE, RunDirectory, from_toml
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
        path = Path(path)
        if not (path / CONFIG).is_file() or not (path / PROVENANCE).is_file():
            what = "is no run directory: it has no config.toml and provenance.json" if path.exists() else "is not there"
            raise ArgumentError(f"{path} {what}. 'kn-lens reproduce --out {shlex.quote(str(path))}' makes one.")
        read = []
        for name, parse in ((CONFIG, _config), (PROVENANCE, _provenance)):
            try:
                read.append(parse((path / name).read_text(encoding="utf-8")))
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path / name} is damaged ({error}); 'kn-lens reproduce --force' with the settings of the run "
                    "writes it anew and keeps the records."
                ) from None
        return cls(path, *read)

    def relations(self) -> list[str]:
        """Return the relations that have facts the model was asked for, as far as the run has come."""
        asked = self.records("facts")
        return [] if asked is None else list(dict.fromkeys(asked.loc[asked["asked"], "relation"]))

    def records(self, stage: str) -> "pd.DataFrame | None":
        """Return the records of a stage's shards that are there; None where there are none.

        Raises:
            DataError: a file of records is not what was written, or they are of two versions of the stage.
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
                parts.append(pd.read_parquet(path, partitioning=None))
            elif self._run.damaged(stage, shard):
                raise DataError(f"{path} is damaged; it is made again by: {self.command(stage)}")
        return pd.concat(parts, ignore_index=True) if parts else None

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
            DataError: one cannot be read.
        """
        import pandas as pd

        tables = {}
        for path in sorted((self.path / "tables").glob("*.csv")):
            try:
                table = pd.read_csv(path, keep_default_na=False, dtype=str)
            except ValueError as error:
                raise DataError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from None
            tables[path.stem] = table.apply(_numbers)
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
                words += [f"--{name}", ",".join(value) if isinstance(value, list) else str(value)]
        preset = config.get("preset", "kn_lens")
        usual = Settings.of(preset).as_dict() if preset in PRESETS else {}
        for name, value in usual.items():
            here = config.get(name)
            if name not in (*OPTIONS, "texts_digest", "syntax_digest") and here != value:
                words += ["--set", f"{name}={here if isinstance(here, str) else json.dumps(here)}"]
        words += ["--out", str(self.path)]
        return shlex.join(words + (["--stages", ",".join(stages)] if stages else []))


def _config(text: str) -> dict[str, Any]:
    """Return the settings, of which all that is read here has the type it was written with."""
    config = from_toml(text)
    for name, kind in (("model", str), ("facts", str), ("preset", str), ("neurons", list), ("relations", list)):
        value = config.get(name, kind())
        if not isinstance(value, kind) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{name} is {value!r}")
    return config


def _provenance(text: str) -> dict[str, Any]:
    """Return what a run was made from, likewise."""
    provenance = json.loads(text)
    if not isinstance(provenance, dict):
        raise ValueError("it is no object")
    for name in ("made_from", "model"):
        if not isinstance(provenance.get(name, {}), dict):
            raise ValueError(f"{name} is no object")
    return provenance


def _numbers(column: "pd.Series") -> "pd.Series":
    """Return a column of texts as numbers where it holds numbers; an empty cell then is NaN."""
    if column.name in LABELS:
        return column
    try:
        return column.where(column != "", "nan").astype(float)
    except ValueError:
        return column
