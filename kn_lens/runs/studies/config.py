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
        for what, entries in (("model", self.models), ("fact set", self.facts), ("seed", self.seeds)):
            if not entries:
                raise ArgumentError(f"A study needs a {what}; there is none.")
        _once("model", [(one.name, one.name) for one in self.models])
        _once("model", [(one.loaded_as, one.name) for one in self.models])
        _once("fact set", [(one.name, one.name) for one in self.facts])
        _once("seed", [(one, str(one)) for one in self.seeds])
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
        changed = {name: tuple(value) if isinstance(value, list) else value for name, value in self.settings.items()}
        return Settings.of(self.preset, **changed, seed=seed)


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
    path = Path(path)
    try:
        table = tomllib.loads(read_whole(path).decode())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no TOML in UTF-8: {error}") from error
    try:
        _check("", table, _TOP)
        models = [_model(path.parent, one) for one in _entries("models", table, _MODEL)]
        given: dict[str, Any] = {**table, "models": models}
        if "facts" in table:
            given["facts"] = [_facts(path.parent, one) for one in _entries("facts", table, _FACTS)]
        settings = table.get("settings", {})
        places = {name: _place(path.parent, str(settings[name])) for name in PATHS if name in settings}
        given["settings"] = {**settings, **places}
        config = StudyConfig(**given)
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
    resolved = config.settings_for(config.seeds[0]).as_dict()
    derived = ("preset", "seed", *(f"{name}_digest" for name in PATHS))
    settings = {name: value for name, value in resolved.items() if name not in derived}
    lines = _lines({name: getattr(config, name) for name in ("preset", "stages", "seeds", "threads", "memory")})
    lines += ["", "[settings]", *_lines(settings)]
    for heading, entries in (("models", config.models), ("facts", config.facts)):
        for entry in entries:
            lines += ["", f"[[{heading}]]", *_lines({one.name: getattr(entry, one.name) for one in fields(entry)})]
    return "\n".join(lines) + "\n"


def differences(there: StudyConfig, now: StudyConfig) -> list[str]:
    """Return what has changed in a study or is missing from it; models, fact sets, seeds and stages may be added.

    The paths of models and facts are not compared: their contents identify them.
    """
    found = [
        f"{name}: {getattr(there, name)}, now {getattr(now, name)}"
        for name in ("preset", "threads")
        if getattr(there, name) != getattr(now, name)
    ]
    old, new = (config.settings_for(0).as_dict() for config in (there, now))
    found += [
        f"{name}: {old.get(name)}, now {new[name]}" for name in new if name not in PATHS and old.get(name) != new[name]
    ]
    entries: Iterable[tuple[str, Sequence[Any], Sequence[Any], str]] = (
        ("model", there.models, now.models, "model tags"),
        ("facts", there.facts, now.facts, "source templates"),
    )
    for what, before, after, told in entries:
        by_name = {entry.name: entry for entry in after}
        for entry in before:
            if entry.name not in by_name:
                found.append(f"{what} {entry.name}: there, now missing")
                continue
            for one in fields(entry):
                values = [getattr(side, one.name) for side in (entry, by_name[entry.name])]
                if one.name not in told.split() and values[0] != values[1]:
                    found.append(f"{one.name} of {what} {entry.name}: {values[0]}, now {values[1]}")
    return found + [f"seed {seed}: there, now missing" for seed in there.seeds if seed not in now.seeds]


# --- reading --------------------------------------------------------------------------------------------------------

_TEXT, _COUNT, _NUMBER, _TABLE, _LIST = "a text", "a whole number", "a number", "a table", "a list"
_IS: Mapping[str, Callable[[Any], bool]] = {
    _TEXT: lambda value: isinstance(value, str) and bool(value.strip()),
    _COUNT: lambda value: isinstance(value, int) and not isinstance(value, bool),
    _NUMBER: lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    _TABLE: lambda value: isinstance(value, dict),
    _LIST: lambda value: isinstance(value, list),
    f"{_LIST} of texts": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    f"{_LIST} of whole numbers": lambda value: isinstance(value, list) and all(map(_IS[_COUNT], value)),
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
_FACTS = {one.name: _TEXT for one in fields(FactsEntry)}


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
    given = dict(table)
    step = given.pop("checkpoint", None)
    if given.get("dtype", DTYPES[0]) not in DTYPES:
        raise ArgumentError(
            f"dtype is {given['dtype']!r}; expected one of {', '.join(DTYPES)}.{did_you_mean(given['dtype'], DTYPES)}"
        )
    for tag, value in given.get("tags", {}).items():
        if not (_IS[_NUMBER](value) or isinstance(value, str)):
            raise ArgumentError(f"tag {tag} is {value!r}; expected a text or a number.")
    place = _place(folder, given["model"])
    entry = ModelEntry(**{"name": Path(place).name, **given, "model": place})
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
    places = [Path(entry.model, name.format(step)) for name in STEP_DIRECTORIES]
    for place in places:
        if place.is_dir():
            return replace(found, model=str(place))
    raise ArgumentError(f"{entry.name}: there is no checkpoint {step}; expected a directory {places[0]}.")


def _facts(folder: Path, table: Mapping[str, Any]) -> FactsEntry:
    given = {"source": WORLD, **table}
    for name in ("source", "templates"):
        if name in given:
            given[name] = _place(folder, given[name])
    return FactsEntry(**{"name": Path(given["source"]).stem, **given})


def _place(folder: Path, name: str) -> str:
    """Return the absolute path of a name that exists relative to the file's folder; any other name unchanged."""
    place = folder / os.path.expanduser(name)
    return str(place.resolve()) if os.path.exists(place) and name not in (WORLD, OWN_TEMPLATES) else name


def _once(what: str, named: Iterable[tuple[Any, str]]) -> None:
    names: dict[Any, str] = {}
    for key, name in named:
        if key in names:
            both = name if names[key] == name else f"{names[key]} and {name}"
            raise ArgumentError(f"a {what} twice: {both}.")
        names[key] = name


# --- writing --------------------------------------------------------------------------------------------------------


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items() if value is not None and value != {}]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_value(key)} = {toml_value(one)}" for key, one in value.items()) + "}"
    return toml_value(value)
