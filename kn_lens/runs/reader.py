"""The reader of a run directory: its settings, records and tables, without the model."""

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kn_lens._core import defaults
from kn_lens._core.atomic import read_whole
from kn_lens._core.checks import check_path, is_list_of
from kn_lens._core.toml import from_toml
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts.relations import relation_name
from kn_lens.runs.directory import ALL, CONFIG, PROVENANCE, RunDirectory, Shard, with_former_defaults
from kn_lens.runs.settings import PRESETS, Settings

if TYPE_CHECKING:
    import pandas as pd

OPTIONS = (
    "model",
    "facts",
    "format",
    "templates",
    "split",
    "preset",
    "seed",
    "limit",
)
"""Settings with command-line options of their own name, beside ``--relation``; others are given with ``--set``."""
DEFAULT_OPTIONS = {"preset": Settings.preset, "split": defaults.SPLIT}
"""Values of such settings that need no option."""
DERIVED = ("texts_digest", "syntax_digest")
"""Settings that follow from others."""
LABELS = frozenset(
    "relation key text texts word why neuron_set scope statistic measure varied question end subject object "
    "expert".split()
)
"""Columns of tables that hold names, even where all of them look like numbers."""
NUMBERS = frozenset("factor layer size value low high n control paper n_pairs largest_gap above_tolerance".split())
"""Columns of tables that hold nothing but numbers."""

FORMER_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "coverage": {
        "facts": "n_facts",
        "facts_asked": "n_queried",
        "pairs": "n_templates",
        "prompts_asked": "n_prompts",
        "rows": "n_rows",
    },
    "erased": {"neurons": "n_neurons"},
    "facts": {"asked": "queried"},
    "syntax_coverage": {
        "pairs": "n_pairs",
        "forms": "n_forms",
        "forms_asked": "n_queried_forms",
        "pairs_asked": "n_queried_pairs",
    },
    "updated": {
        "asked": "n_queried",
        "known": "n_known",
        "updated": "n_updated",
        "disturbing": "n_disturbing",
        "left_out": "n_left_out",
    },
}
"""The current names of columns in the records of a stage, or in a table, of earlier runs."""
FORMER_COLUMNS_ELSEWHERE = {"neurons": "neuron_set", "facts": "scope", "asked": "question"}
"""The current names of columns in all other records and tables of earlier runs."""

RECORDS = {
    "facts": ("key", "relation subject object queried n_prompts"),
    "answers": ("key", "n_right n_prompts"),
    "neurons": ("neuron_set key", "relation layer expert index"),
    "effects": ("factor scope neuron_set key", "before after"),
    "predictions": ("", "key text before after rank_before rank_after top_before top_after"),
    "neuron_scores": ("key layer expert index", "score low high share n_prompts"),
    "readouts": ("layer expert index", "tokens logits"),
    "texts": ("", "key texts text word found"),
}
"""The stages whose records are read without their models: columns that tell their rows apart, and others."""

ENTRIES: Mapping[str, Any] = {
    "made_from": {
        "versions": {"kn_lens": str},
        "model": {"architecture": str, "dtype": str, "device": str},
    },
    "model": {
        "kind": str,
        "n_layers": range(1, 10_000),
        "d_mlp": range(1, 2**31),
        "n_params": range(1, 2**63),
    },
    "n_relations": range(1, 2**31),
}
"""Entries read from the provenance of a run on a model: texts that are not empty, and whole numbers in the range that
models have."""
DEEPEST = 20
"""Largest depth of nesting in settings and provenance; those written have five levels."""


@dataclass(frozen=True)
class RunRecords:
    """The files of a run.

    Attributes:
        path: its directory.
        config: its settings, with the names of model and facts.
        provenance: the models, data, libraries and machine it was made with.
    """

    path: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    _run: RunDirectory = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_run", RunDirectory(self.path))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "RunRecords":
        """Open the directory of a run, complete or not.

        Raises:
            ArgumentError: it is no run directory.
            DataError: ``config.toml`` or ``provenance.json`` is damaged.
        """
        path = checked_path(path)
        if not (path / CONFIG).is_file() or not (path / PROVENANCE).is_file():
            reason = "is not there"
            if path.exists():
                reason = "is no run directory: it has no config.toml and provenance.json"
            raise ArgumentError(f"{path} {reason}. 'kn-lens reproduce --out {shlex.quote(str(path))}' makes one.")
        config = _parsed(path / CONFIG, _config)
        provenance = _parsed(path / PROVENANCE, _provenance)
        return cls(path, config, provenance)

    def lacking(self) -> list[str]:
        """Return the dotted paths of provenance entries that a run on a model has and this one lacks."""
        return list(_lacking(self.provenance, ENTRIES))

    def relations(self) -> list[str]:
        """Return the relations with facts that the model is queried for, as far as they are written."""
        facts = self.records("facts")
        if facts is None:
            return []
        return list(dict.fromkeys(facts.loc[facts["queried"], "relation"]))

    def relation_names(self) -> dict[str, str]:
        """Return each relation with its name in tables and figures, ``capital (P36)``; runs of old have no labels."""
        facts = self.records("facts")
        if facts is None or "relation_label" not in facts:
            return {}
        names = {}
        for relation, label in zip(facts["relation"], facts["relation_label"].fillna(""), strict=True):
            if label or relation not in names:
                names[relation] = relation_name(relation, label)
        return names

    def records(self, stage: str) -> "pd.DataFrame | None":
        """Return the records of a stage's shards that are there; None where there are none.

        Raises:
            DataError: a file of records is not what was written, or is another's, or they are of two versions of the
                stage.
        """
        import pandas as pd

        self._check_one_version(stage)
        parts = []
        for shard in self._run.shards(stage):
            path = self._run.record_path(stage, shard)
            if self._run.manifest(stage, shard) is not None:
                part = read_records(path, stage)
                reason = _foreign(part, stage, shard)
                if reason:
                    raise DataError(f"{path} {reason}; it is made again by: {self.command(stage)} --force")
                parts.append(part)
            elif self._run.is_damaged(stage, shard):
                raise DataError(f"{path} is damaged; it is made again by: {self.command(stage)}")
        if not parts:
            return None
        records = pd.concat(parts, ignore_index=True)
        keys, _ = RECORDS.get(stage, ("", ""))
        if keys and records.duplicated(keys.split()).any():
            raise DataError(
                f"{self.path}: the records of stage {stage} tell of some facts twice; some are of another run. "
                f"They are made again by: {self.command(stage)} --force"
            )
        return records

    def versions(self, stage: str) -> dict[str, int | None]:
        """Return the version of the stage that wrote each intact shard, by its name; None where none was recorded."""
        versions = {}
        for shard, manifest in self._intact_shards(stage):
            versions[shard.name] = manifest.get("version")
        return versions

    def is_complete(self, stage: str, relations: Sequence[str]) -> bool:
        """Return whether a stage has intact records of these relations, in all its parts."""
        found = set()
        parts = set()
        for shard, _ in self._intact_shards(stage):
            found.add((shard.relation, shard.part))
            parts.add(shard.part)
        if not found:
            return False
        return (ALL, "") in found or found.issuperset(product(relations, parts))

    def _intact_shards(self, stage: str) -> Iterator[tuple[Shard, Mapping[str, Any]]]:
        """Yield the shards of a stage whose records are intact, with their manifests."""
        for shard in self._run.shards(stage):
            manifest = self._run.manifest(stage, shard)
            if manifest is not None:
                yield shard, manifest

    def _check_one_version(self, stage: str) -> None:
        """Raise ``DataError`` where the records of a stage were written by several versions of it."""
        versions = self.versions(stage)
        if len(set(versions.values())) <= 1:
            return
        texts = []
        for relation, version in versions.items():
            texts.append(f"{relation}: {'unknown' if version is None else version}")
        raise DataError(
            f"{self.path} holds records of more than one version of the stage {stage} ({', '.join(texts)}), which may "
            f"differ in what they mean; they are made alike by: {self.command(stage)} --force"
        )

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
                    table[name] = _numbers(cast("pd.Series", table[name]))
                except ValueError as error:
                    raise DataError(
                        f"{path} holds something else than numbers in its column {name} ({_short(error)}); "
                        f"the tables are written anew by: {self.command()}"
                    ) from None
            tables[path.stem] = table
        return tables

    def command(self, *stages: str) -> str:
        """Return the command that resumes the run, for some of its stages."""
        config = self.config
        words = ["kn-lens", "reproduce"]
        if "neurons" in config:
            for name in config["neurons"]:
                words += ["--neurons", name]
            return shlex.join([*words, "--out", str(self.path)])
        for name in OPTIONS:
            value = config.get(name)
            if value and value != DEFAULT_OPTIONS.get(name):
                words += [f"--{name}", str(value)]
        for relation in config.get("relations") or ():
            words += ["--relation", relation]
        preset = config.get("preset", DEFAULT_OPTIONS["preset"])
        settings = Settings.of(preset).as_dict() if preset in PRESETS else {}
        for name, value in settings.items():
            changed = config.get(name)
            if name not in (*OPTIONS, "relations", *DERIVED) and changed != value:
                text = changed if isinstance(changed, str) else json.dumps(changed)
                words += ["--set", f"{name}={text}"]
        words += ["--out", str(self.path)]
        for stage in stages:
            words += ["--stage", stage]
        return shlex.join(words)


def _foreign(records: "pd.DataFrame", stage: str, shard: Shard) -> str:
    """Explain why an intact file does not belong to this shard; return an empty string where it may."""
    missing = set(" ".join(RECORDS.get(stage, ())).split()) - set(records)
    if missing:
        return f"holds no records of stage {stage}: it lacks {', '.join(sorted(missing))}"
    if shard.relation == ALL or "relation" not in records:
        return ""
    others = set(records["relation"]) - {shard.relation}
    return "holds records of another relation" if others else ""


def read_records(path: Path, stage: str) -> "pd.DataFrame":
    """Return the records of one shard of a stage, whichever version of the library wrote them."""
    import pandas as pd

    records = with_current_names(pd.read_parquet(path, partitioning=None), stage)
    if {"layer", "index"} <= set(records) and "expert" not in records:  # of a version without experts
        if stage == "neurons":
            records["expert"] = [[None] * len(layers) for layers in records["layer"]]
        else:
            records["expert"] = float("nan")
    return records


def with_current_names(table: "pd.DataFrame", name: str) -> "pd.DataFrame":
    """Return the records or the table of an earlier run with the columns' names of today.

    Args:
        table: the records, or the table.
        name: the stage of the records, or the name of the table.

    >>> import pandas as pd
    >>> list(with_current_names(pd.DataFrame({"neurons": ["found"], "facts": ["own"], "value": [0.5]}), "figures4_5"))
    ['neuron_set', 'scope', 'value']
    >>> list(with_current_names(pd.DataFrame({"relation": ["P36"], "facts": [10], "facts_asked": [8]}), "coverage"))
    ['relation', 'n_facts', 'n_queried']
    """
    return table.rename(columns=FORMER_COLUMNS.get(name, FORMER_COLUMNS_ELSEWHERE))


def read_table(path: Path) -> "pd.DataFrame":
    """Return a table of a run with all cells as strings, whichever version of the library wrote it.

    Raises:
        DataError: the file is not a table.
    """
    import pandas as pd

    try:
        text = read_whole(path).decode("utf-8-sig")
        if text.partition("\n")[0].endswith("\r"):  # an editor has put these in
            text = text.replace("\r\n", "\n")
        # Names of relations may hold other line separators.
        table = pd.read_csv(StringIO(text), keep_default_na=False, dtype=str, lineterminator="\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table: {_short(error)}") from None
    # pandas takes what is too much for names of rows, and what is missing for NaN.
    if not isinstance(table.index, pd.RangeIndex) or table.isna().any(axis=None):
        raise DataError(f"{path} cannot be read as a table: some rows have more or fewer cells than the first.")
    return with_current_names(table, path.stem)


def checked_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file or directory that need not exist.

    Raises:
        ArgumentError: no file can have this name.
    """
    check_path(path)
    path = Path(path)
    try:
        path.resolve().exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long; a null character; links in a circle
        why = getattr(error, "strerror", None) or error
        raise ArgumentError(f"{_short(path)} can be no file or directory: {why}.") from None
    return path


def _parsed(path: Path, parse: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Return the content of a file of the run.

    Raises:
        DataError: it is damaged.
    """
    try:
        return parse(read_whole(path).decode())
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({error}); 'kn-lens reproduce --force' with the settings of the run writes it anew and "
            "keeps the records."
        ) from None


def _config(text: str) -> dict[str, Any]:
    """Return the settings, once the types of those read here are checked."""
    config = with_former_defaults(from_toml(text))
    _check_depth(config)
    for name in ("model", "facts", "preset"):
        if not isinstance(config.get(name, ""), str):
            raise ValueError(f"{name} is {_short(repr(config[name]))}")
    for name in ("neurons", "relations"):
        value = config.get(name, [])
        if not is_list_of(str, value):
            raise ValueError(f"{name} is {_short(repr(value))}")
    return config


def _provenance(text: str) -> dict[str, Any]:
    """Return the provenance, once the types of what is read here are checked."""
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
    """Raise ``ValueError`` where an existing entry has the wrong type or range."""
    for name, kind in kinds.items():
        if name not in value:
            continue
        inner = value[name]
        if isinstance(kind, dict):
            if not isinstance(inner, dict):
                raise ValueError(f"{path}{name} is no object")
            _check_entries(inner, kind, f"{path}{name}.")
        elif not _fits(inner, kind):
            raise ValueError(f"{path}{name} is {_short(repr(inner))}")


def _fits(value: object, kind: type | range) -> bool:
    """Return whether a value is of a type and no empty text, or a whole number in a range."""
    if isinstance(kind, range):
        return isinstance(value, int) and value in kind
    return isinstance(value, kind) and value != ""


def _lacking(value: Mapping[str, Any], kinds: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, kind in kinds.items():
        if isinstance(kind, dict):
            yield from _lacking(value.get(name, {}), kind, f"{path}{name}.")
        elif name not in value:
            yield f"{path}{name}"


def _check_depth(value: Any, levels: int = DEEPEST) -> None:
    """Raise ``ValueError`` where values are nested too deep for the recursive functions that read them."""
    if not levels:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
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
