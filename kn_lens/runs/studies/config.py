"""The configuration of a study, ``study.toml``, read and checked before any model is loaded.

    preset = "kn_lens"                 # as in kn-lens reproduce
    stages = ["neurons", "effects"]    # and those that they need; default: all
    seeds = [0]                        # a run each
    threads = 1                        # of each process that runs a model
    memory = 4.0                       # GiB for the passes of each; half of what is free, unless given

    [settings]                         # as --set
    limit = 20

    [[models]]                         # one or more
    model = "checkpoints/small-0"      # embedded, a Hugging Face name, or a directory
    name = "small-0"                   # the model's last part, unless given
    revision = "main"                  # of a Hugging Face name
    checkpoint = 3000                  # a step of training: revision step3000, or a directory in the model's
    dtype = "float32"
    device = "cpu"                     # CUDA where there is one, unless given
    tags = { size = "small", seed = 0 }   # what kn-lens compare tells models apart by

    [[facts]]                          # the embedded ones, unless given
    source = "world"                   # as --facts
    name = "world"
    split = "all"                      # and format, templates: as in kn-lens reproduce

Paths are relative to the file. There is a run for each model, fact set and seed.
"""

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from kn_lens._core import defaults
from kn_lens._core.atomic import read_whole
from kn_lens._core.checks import check_kind, check_path, is_list_of, wrong_kind
from kn_lens._core.names import DTYPES, OWN_TEMPLATES
from kn_lens._core.redact import without_secrets
from kn_lens._core.toml import toml_value
from kn_lens.errors import ArgumentError, DataError, did_you_mean
from kn_lens.runs.settings import Settings

STEP_DIRECTORIES = ("step{}", "checkpoint-{}", "step_{}")
"""Names of the directories in which a model may keep its checkpoints, by step of training."""

MEMORY_AT_MOST = 2**30
"""GiB; more is a typing error."""

PATHS = ("texts", "syntax")
"""Settings that are paths; each has a setting with the digest of the files."""

WORLD = "world"
"""The embedded facts."""

Tag = str | int | float
Entry = TypeVar("Entry", "ModelEntry", "FactsEntry")


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model of a study.

    Attributes:
        name: its unique name in the study.
        model: what ``load_model`` takes: a name or a directory.
        revision: of a Hugging Face name.
        dtype: to load the weights in.
        device: to load them on.
        tags: properties such as size, seed and step of training.
    """

    name: str
    model: str
    revision: str | None = None
    dtype: str = defaults.DTYPE
    device: str | None = None
    tags: Mapping[str, Tag] = field(default_factory=dict)

    @property
    def loaded_as(self) -> tuple[str | None, ...]:
        """The arguments of ``load_model``; two entries of one model have the same."""
        return (self.model, self.revision, self.dtype, self.device)


@dataclass(frozen=True, kw_only=True)
class FactsEntry:
    """A fact set of a study; see ``kn-lens reproduce`` for what its values mean."""

    name: str
    source: str = WORLD
    format: str | None = None
    templates: str | None = None
    split: str = defaults.SPLIT


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study: every model with every fact set and seed.

    Attributes:
        models: one or more.
        facts: one or more.
        stages: names; empty for all.
        seeds: one or more.
        preset: see ``Settings``.
        settings: changes to the preset.
        threads: torch threads of each process that runs a model. The last bits of sums depend on this number; as it is
            fixed, all engines give the same records.
        memory: GiB that passes may take in each process; None for half of what is free.
    """

    models: Sequence[ModelEntry]
    facts: Sequence[FactsEntry] = (FactsEntry(name=WORLD),)
    stages: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    preset: str = "kn_lens"
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    memory: float | None = None

    def __post_init__(self) -> None:
        """Check for duplicates, missing entries and values out of range."""
        for kind, entries in (("model", self.models), ("fact set", self.facts), ("seed", self.seeds)):
            if isinstance(entries, str):
                raise wrong_kind(entries, f"a list: [{kind}]", f"{kind}s")
            if not entries:
                raise ArgumentError(f"A study needs a {kind}; there is none.")
        for model in self.models:
            check_kind(model, ModelEntry, "a kn_lens.runs.ModelEntry(name='bert', model='world-bert')", "model")
        for entry in self.facts:
            check_kind(entry, FactsEntry, "a kn_lens.runs.FactsEntry(name='world')", "fact set")
        model_names = _Names("model")
        models = _Names("model")
        fact_sets = _Names("fact set")
        seeds = _Names("seed")
        for model in self.models:
            model_names.add(model.name, model.name)
            models.add(model.loaded_as, model.name)
        for entry in self.facts:
            fact_sets.add(entry.name, entry.name)
        for seed in self.seeds:
            seeds.add(seed, str(seed))
        if "seed" in self.settings or "preset" in self.settings:
            raise ArgumentError("seeds and preset stand beside the settings, not among them.")
        fitting = self.memory is None or 0 < self.memory <= MEMORY_AT_MOST
        if self.threads < 1 or not fitting or min(self.seeds) < 0:
            raise ArgumentError(
                f"threads={self.threads}, memory={self.memory}, seeds={list(self.seeds)}; expected positive numbers of "
                "threads and GiB, and seeds that are not negative."
            )
        self.settings_for(self.seeds[0])

    def settings_for(self, seed: int) -> Settings:
        """Return the settings of the runs with a seed."""
        return Settings.of(self.preset, **self.settings, seed=seed)


def read_study(path: str | Path) -> StudyConfig:
    r"""Read a ``study.toml``.

    Raises:
        DataError: it does not exist, is not TOML, or has an unknown key or an invalid value; the message names the
            nearest valid one.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "study.toml")
    >>> _ = path.write_text("[[models]]\nmodel = 'world-bert'\ntags = {size = 'small'}")
    >>> read_study(path).models[0].tags
    {'size': 'small'}
    """
    check_path(path)
    path = Path(path)
    try:
        table = tomllib.loads(read_whole(path).decode())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no TOML in UTF-8: {error}") from error
    try:
        _check("", table, _TOP)
        folder = path.parent
        values: dict[str, Any] = {**table}
        values["models"] = [_model(folder, entry) for entry in _entries("models", table, _MODEL)]
        if "facts" in table:
            values["facts"] = [_facts(folder, entry) for entry in _entries("facts", table, _FACTS)]
        settings = dict(table.get("settings", {}))
        for name in PATHS:
            if name in settings:
                settings[name] = _resolved_path(folder, str(settings[name]))
        values["settings"] = settings
        config = StudyConfig(**values)
        if as_toml(config) != without_secrets(as_toml(config)):
            raise ArgumentError(
                "it holds an address with a password or key, or a token, and would be copied into the results. "
                "Expected none: stores and Hugging Face take them from the environment or from their own configuration."
            )
        return config
    except ArgumentError as error:
        raise DataError(f"{path}: {error}") from error


def as_toml(config: StudyConfig) -> str:
    """Return a study as ``read_study`` reads it, its settings resolved.

    >>> print(as_toml(StudyConfig(models=[ModelEntry(name="a", model="b", tags={"seed": 1})])))
    preset = "kn_lens"
    ...
    [[models]]
    name = "a"
    model = "b"
    dtype = "float32"
    tags = {"seed" = 1}
    ...
    """
    settings = config.settings_for(config.seeds[0]).as_dict()
    for name in ("preset", "seed"):
        del settings[name]
    for name in PATHS:
        del settings[f"{name}_digest"]
    names = ("preset", "stages", "seeds", "threads", "memory")
    lines = _lines(_values(config, names))
    lines += ["", "[settings]", *_lines(settings)]
    for heading, entries in (("models", config.models), ("facts", config.facts)):
        for entry in entries:
            lines += ["", f"[[{heading}]]", *_lines(_values(entry, _field_names(entry)))]
    return "\n".join(lines) + "\n"


def differences(earlier: StudyConfig, later: StudyConfig) -> list[str]:
    """Return what has changed in a study or is missing from it; models, fact sets, seeds and stages may be added.

    The paths of models and facts are not compared: their contents identify them.
    """
    names = ("preset", "threads")
    found = _changes(_values(earlier, names), _values(later, names))
    earlier_settings = earlier.settings_for(0).as_dict()
    later_settings = later.settings_for(0).as_dict()
    for name in PATHS:
        del later_settings[name]
    found += _changes(earlier_settings, later_settings)
    found += _entry_differences("model", earlier.models, later.models, not_compared=("model", "tags"))
    found += _entry_differences("facts", earlier.facts, later.facts, not_compared=("source", "templates"))
    for seed in earlier.seeds:
        if seed not in later.seeds:
            found.append(f"seed {seed}: there, now missing")
    return found


def _entry_differences(
    kind: str, earlier: Sequence[Entry], later: Sequence[Entry], *, not_compared: tuple[str, ...]
) -> list[str]:
    """Return which entries are missing from the later ones, and the changed fields of the others."""
    by_name: dict[str, Entry] = {}
    for entry in later:
        by_name[entry.name] = entry
    found = []
    for entry in earlier:
        if entry.name not in by_name:
            found.append(f"{kind} {entry.name}: there, now missing")
            continue
        for name in _field_names(entry):
            before, after = getattr(entry, name), getattr(by_name[entry.name], name)
            if name not in not_compared and before != after:
                found.append(f"{name} of {kind} {entry.name}: {before}, now {after}")
    return found


def _changes(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """Describe the values that have changed."""
    found = []
    for name, value in later.items():
        if earlier.get(name) != value:
            found.append(f"{name}: {earlier.get(name)}, now {value}")
    return found


def _values(value: object, names: Iterable[str]) -> dict[str, Any]:
    """Return some attributes by name."""
    return {name: getattr(value, name) for name in names}


def _field_names(entry: ModelEntry | FactsEntry | type[FactsEntry]) -> list[str]:
    return [field.name for field in fields(entry)]


# --- reading --------------------------------------------------------------------------------------------------------

_TEXT, _COUNT, _NUMBER, _TABLE, _LIST = "a text", "a whole number", "a number", "a table", "a list"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_IS: Mapping[str, Callable[[Any], bool]] = {
    _TEXT: lambda value: isinstance(value, str) and bool(value.strip()),
    _COUNT: _is_count,
    _NUMBER: lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    _TABLE: lambda value: isinstance(value, dict),
    _LIST: lambda value: isinstance(value, list),
    f"{_LIST} of texts": lambda value: is_list_of(str, value),
    f"{_LIST} of whole numbers": lambda value: isinstance(value, list) and all(map(_is_count, value)),
}
_TOP = {
    "preset": _TEXT,
    "stages": f"{_LIST} of texts",
    "seeds": f"{_LIST} of whole numbers",
    "threads": _COUNT,
    "memory": _NUMBER,
    "settings": _TABLE,
    "models": _LIST,
    "facts": _LIST,
}
_MODEL = {
    "name": _TEXT,
    "model": _TEXT,
    "revision": _TEXT,
    "checkpoint": _COUNT,
    "dtype": _TEXT,
    "device": _TEXT,
    "tags": _TABLE,
}
_FACTS = dict.fromkeys(_field_names(FactsEntry), _TEXT)


def _check(where: str, table: Mapping[str, Any], known: Mapping[str, str]) -> None:
    for key, value in table.items():
        if key not in known:
            near = did_you_mean(key, known) or f" Expected some of {', '.join(known)}."
            raise ArgumentError(f"unknown key {key!r}{where}.{near}")
        if not _IS[known[key]](value):
            raise ArgumentError(f"{key}{where} is {value!r}; expected {known[key]}.")


def _entries(heading: str, table: Mapping[str, Any], known: Mapping[str, str]) -> list[dict[str, Any]]:
    entries = table.get(heading, [])
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise ArgumentError(f"{heading} holds {entry!r}; expected tables: [[{heading}]].")
        _check(f" in [[{heading}]] number {number}", entry, known)
    return entries


def _model(folder: Path, table: Mapping[str, Any]) -> ModelEntry:
    if "model" not in table:
        raise ArgumentError(f'[[models]] {dict(table)} names no model; expected model = "a name or a directory".')
    values = dict(table)
    step = values.pop("checkpoint", None)
    dtype = values.get("dtype", defaults.DTYPE)
    if dtype not in DTYPES:
        near = did_you_mean(dtype, DTYPES)
        raise ArgumentError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.{near}")
    for tag, value in values.get("tags", {}).items():
        if not (_IS[_NUMBER](value) or isinstance(value, str)):
            raise ArgumentError(f"tag {tag} is {value!r}; expected a text or a number.")
    path = _resolved_path(folder, values["model"])
    entry = ModelEntry(**{"name": Path(path).name, **values, "model": path})
    return entry if step is None else _at_step(entry, step, named="name" in table)


def _at_step(entry: ModelEntry, step: int, *, named: bool) -> ModelEntry:
    """Return the entry of a model's checkpoint after ``step`` steps of training."""
    if entry.revision is not None:
        raise ArgumentError(f"{entry.name}: checkpoint = {step} stands for a revision; expected one of them.")
    found = replace(
        entry,
        name=entry.name if named else f"{entry.name}-step{step}",
        tags={"step": step, **entry.tags},
    )
    if not os.path.isdir(entry.model):  # unlike Path's, false for names that cannot be
        return replace(found, revision=f"step{step}")
    for name in STEP_DIRECTORIES:
        path = Path(entry.model, name.format(step))
        if path.is_dir():
            return replace(found, model=str(path))
    expected = Path(entry.model, STEP_DIRECTORIES[0].format(step))
    raise ArgumentError(f"{entry.name}: there is no checkpoint {step}; expected a directory {expected}.")


def _facts(folder: Path, table: Mapping[str, Any]) -> FactsEntry:
    values = {"source": WORLD, **table}
    for name in ("source", "templates"):
        if name in values:
            values[name] = _resolved_path(folder, values[name])
    return FactsEntry(**{"name": Path(values["source"]).stem, **values})


def _resolved_path(folder: Path, name: str) -> str:
    """Return the absolute path of a name that exists relative to the file's folder; any other name unchanged."""
    if name in (WORLD, OWN_TEMPLATES):
        return name
    path = folder / os.path.expanduser(name)
    return str(path.resolve()) if os.path.exists(path) else name


class _Names:
    """The names of entries of a kind, by what identifies them."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._names: dict[Any, str] = {}

    def add(self, key: Any, name: str) -> None:
        """Add an entry.

        Raises:
            ArgumentError: there is one with this key.
        """
        if key in self._names:
            earlier = self._names[key]
            both = name if earlier == name else f"{earlier} and {name}"
            raise ArgumentError(f"a {self._kind} twice: {both}.")
        self._names[key] = name


# --- writing --------------------------------------------------------------------------------------------------------


def _lines(table: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in table.items():
        if value is not None and value != {}:
            lines.append(f"{key} = {_value(value)}")
    return lines


def _value(value: Any) -> str:
    if not isinstance(value, Mapping):
        return toml_value(value)
    entries = [f"{toml_value(key)} = {toml_value(inner)}" for key, inner in value.items()]
    return "{" + ", ".join(entries) + "}"
