"""A run directory: records, settings and tables that survive whatever interrupts the process that writes them.

    run/config.toml                the settings, resolved
    run/provenance.json            what the records were made from: versions, model, data; and on which machine
    run/records/STAGE/SHARD.parquet   the records of one shard (usually a relation) of a stage
    run/records/STAGE/_SHARD.json     its manifest: the digests of that file and of its inputs, the stage's version
    run/tables/*.csv               summaries of the records
    run/scratch/                   files being written; emptied when the directory is opened
    run/lock                       locked by the process that writes

Every file is written to ``scratch``, flushed to the disk, and renamed, so it exists as a whole or not at all. Records
count only while their file has the digest in its manifest *and* their inputs are unchanged; otherwise they are computed
again. So a crash, a full disk or a damaged file leaves nothing to clean up, and a resumed run ends with the same bytes
as an uninterrupted one.

The lock is the kernel's (``flock``): it ends with its process, however that ends. Windows has none, so there runs can
be read but not written.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, unquote

from kn_lens._core.atomic import check_regular, opened, read_whole, replace_durably
from kn_lens._core.toml import as_toml, from_toml
from kn_lens.errors import ArgumentError, DataError

CONFIG, PROVENANCE = "config.toml", "provenance.json"

ALL = "all"
"""The relation of a shard that covers all relations."""

NAMES = ("model", "facts", "format", "templates", "split")
"""Settings that only name what the provenance identifies; a different name is no difference."""

FORMER_DEFAULTS: Mapping[str, Any] = {
    "update_signed": False,
    "start": "auto",
    "side": "decoder",
    "editors": [],
    "editor_facts": 3,
    "editor_wordings": 4,
    "editor_others": 20,
    "memit_layers": [],
}
"""Settings that earlier versions did not have, and so do not name in ``config.toml``, at the values they stood for."""

MOST_DIFFERENCES = 8
"""Differences that an error message lists."""


@dataclass(frozen=True, order=True)
class Shard:
    """A part of a stage that is computed, written and skipped as one.

    Attributes:
        relation: the relation of its facts; ``ALL`` for all relations together.
        part: the part, where a stage has several for a relation.

    >>> Shard("P36", "x2").name, Shard("a/b").name
    ('P36+x2', 'a%2Fb')
    """

    relation: str
    part: str = ""

    @property
    def name(self) -> str:
        """The stem of its files; percent-encoded, so that different shards have different names."""
        return "+".join(quote(part, safe="") for part in (self.relation, self.part) if part)

    @classmethod
    def named(cls, name: str) -> "Shard":
        """Return the shard with this name.

        >>> Shard.named("a%2Fb+x2")
        Shard(relation='a/b', part='x2')
        """
        return cls(*map(unquote, name.split("+", 1)))


OnWritten = Callable[[Path], None]
"""Called with each file once it is whole and in its place."""


def _ignore(path: Path) -> None:
    pass


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run; see ``open_run``.

    Attributes:
        path: the directory.
        on_written: called with each file that is written.
    """

    path: Path
    on_written: OnWritten = _ignore
    _manifests: dict[Path, dict[str, Any] | None] = field(default_factory=dict, repr=False)

    def record_path(self, stage: str, shard: Shard) -> Path:
        """Return the path of a shard's records."""
        return self.path / "records" / stage / f"{shard.name}.parquet"

    def shards(self, stage: str) -> list[Shard]:
        """Return the shards of a stage that have been written, intact or not, by name."""
        paths = sorted((self.path / "records" / stage).glob("*.parquet"))
        return [Shard.named(path.stem) for path in paths]

    def manifest(self, stage: str, shard: Shard) -> dict[str, Any] | None:
        """Return the manifest of a shard's records; None where the records are missing or damaged.

        It has the digests ``sha256`` and ``inputs``, and the ``version`` of the stage, as given to ``writing``.
        """
        path = self.record_path(stage, shard)
        if path not in self._manifests:
            self._manifests[path] = _read_manifest(path)
        return self._manifests[path]

    def is_current(self, stage: str, shard: Shard, inputs: str, version: int) -> bool:
        """Return whether the records exist, are intact, and were made from these inputs by this version."""
        manifest = self.manifest(stage, shard)
        if manifest is None:
            return False
        return manifest["inputs"] == inputs and manifest.get("version") == version

    def is_damaged(self, stage: str, shard: Shard) -> bool:
        """Return whether records were written whose file is now missing or changed."""
        if self.manifest(stage, shard) is not None:
            return False
        return _manifest_path(self.record_path(stage, shard)).exists()

    @contextmanager
    def writing(self, stage: str, shard: Shard, inputs: str, version: int) -> Iterator[Path]:
        """Yield a path to write the records of a shard to; they take their place if the block ends without error.

        Args:
            stage: name of the stage.
            shard: the shard.
            inputs: digest of its inputs.
            version: version of the stage.

        Raises:
            DataError: a file cannot be written, for instance because the disk is full.
        """
        path = self.record_path(stage, shard)
        scratch = self.path / "scratch" / f"{stage}+{shard.name}"
        with _explain_write_errors(path):
            self._make_folder(path.parent)
            try:
                yield scratch
                manifest = {"sha256": digest_of(scratch), "inputs": inputs, "version": version}
                replace_durably(scratch, path)
            finally:
                scratch.unlink(missing_ok=True)
            self.on_written(path)
            self.write_text(_manifest_path(path).relative_to(self.path), json.dumps(manifest) + "\n")
        self._manifests[path] = manifest

    def write_text(self, path: Path | str, text: str) -> None:
        """Write a text file of the run, whole or not at all, unless it already has this content.

        Args:
            path: relative to the run directory.
            text: the content.

        Raises:
            DataError: the file cannot be written.
        """
        path = self.path / path
        with _explain_write_errors(path):
            self._make_folder(path.parent)
            if path.is_file() and not path.is_symlink() and read_whole(path) == text.encode():
                return
            scratch = self.path / "scratch" / f"{path.parent.name}+{path.name}"
            try:
                scratch.write_text(text, encoding="utf-8")
                replace_durably(scratch, path)
            finally:
                scratch.unlink(missing_ok=True)
            self.on_written(path)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder of the run; refuse one that a link leads out of the run."""
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() != self.path.resolve() / folder.relative_to(self.path):
            raise OSError(errno.ELOOP, "a link takes the place of one of its directories", str(folder))


@contextmanager
def locked(path: str | os.PathLike[str], on_written: OnWritten = _ignore) -> Iterator[RunDirectory]:
    """Lock a directory for this process.

    Args:
        path: the directory; created if need be.
        on_written: called with each file that is written.

    Raises:
        ArgumentError: the directory holds something else.
        DataError: another process has locked it, or it cannot be written.
    """
    path = Path(path)
    _check_is_run_or_empty(path)
    flock = _flock()
    with _explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with _explain_write_errors(path / "lock"):
        lock = _open_lock(path / "lock")
    scratch = path / "scratch"
    with lock:
        with _explain_write_errors(path):
            _take_lock(flock, lock, path)
            if scratch.is_symlink():
                scratch.unlink()
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(exist_ok=True)
        yield RunDirectory(path, on_written)
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def open_run(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    force: bool = False,
    on_written: OnWritten = _ignore,
) -> Iterator[RunDirectory]:
    """Open a run directory for this process, new or to be resumed.

    Args:
        path: the directory; created if need be.
        config: the settings: strings, numbers, booleans and lists of them. None is left out. ``model`` and ``facts``
            are names; the provenance identifies what they stand for.
        provenance: what else the records depend on, as JSON.
        force: resume a directory of other settings. Records that the change affects are computed again; others stay.
        on_written: called with each file that is written.

    Raises:
        ArgumentError: the directory holds something else.
        DataError: another process has locked it, it was made with other settings or from other inputs (the message
            names the differences), or it cannot be written.
    """
    with locked(path, on_written) as run:
        if not force:
            check_same(run.path, config, provenance)
        else:
            shutil.rmtree(run.path / "tables", ignore_errors=True)  # their records may change now
        for name, text in _description_files(config, provenance).items():
            if force or not (run.path / name).exists():
                run.write_text(name, text)
        yield run


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with opened(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def with_former_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a ``config.toml``, with those that its version did not have yet.

    >>> with_former_defaults({"preset": "kn_lens", "start": "mean"})["start"]
    'mean'
    >>> with_former_defaults({"preset": "kn_lens", "seed": 3})["start"]
    'auto'
    """
    defaults = FORMER_DEFAULTS if "preset" in config else {}
    return {**defaults, **config}


def check_same(path: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Check that a directory, as far as it exists, has these settings and this provenance; see ``open_run``.

    Raises:
        DataError: with the differences, or with the file that is damaged.
    """
    differences: list[str] = []
    for name, text in _description_files(config, provenance).items():
        if not (path / name).exists():
            continue
        try:
            before = _compared_entries(name, read_whole(path / name).decode())
            now = _compared_entries(name, text)
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path / name} is damaged ({error}). --force writes it anew and keeps every record that was made with "
                "the settings given now."
            ) from None
        for key in dict.fromkeys([*before, *now]):
            if key not in NAMES and before.get(key) != now.get(key):
                differences.append(f"{key}: {_shorten(before.get(key))}, now {_shorten(now.get(key))}")
    if differences:
        listed = "; ".join(differences[:MOST_DIFFERENCES])
        more = "; ..." if len(differences) > MOST_DIFFERENCES else ""
        raise DataError(
            f"{path} was made with other settings ({listed}{more}). Give those, or another directory; --force keeps "
            "what the change does not touch and makes the rest again."
        )


def _description_files(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the contents of ``config.toml`` and ``provenance.json``, by name."""
    return {
        CONFIG: as_toml(config),
        PROVENANCE: json.dumps(provenance, indent=2, ensure_ascii=False) + "\n",
    }


def _compared_entries(name: str, text: str) -> dict[str, Any]:
    """Return the entries of a file that are compared; of the provenance only ``made_from``, by dotted paths."""
    if name == CONFIG:
        return with_former_defaults(from_toml(text))
    return dict(_leaves(json.loads(text)["made_from"], ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the (dotted path, value) pairs of nested objects."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{path}.{key}" if path else key)


def _shorten(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _check_is_run_or_empty(path: Path) -> None:
    """Raise where a path is a file, or a directory with other files than a run's."""
    if path.exists() and not path.is_dir():
        raise ArgumentError(f"--out {path} is a file; expected a directory, new or of an earlier run.")
    if path.is_dir() and not (path / "lock").exists() and any(path.iterdir()):
        raise ArgumentError(f"--out {path} holds other files; expected a new directory, or one of an earlier run.")


def _flock() -> Callable[[Any], None]:
    """Return a function that locks a file for this process, or raises BlockingIOError where another has locked it."""
    try:
        import fcntl
    except ImportError as error:
        raise DataError(
            "A run is written under a lock of the system's, which Windows does not have; expected Linux (on Windows: "
            "WSL) or macOS. Runs that are there can be read."
        ) from error
    return lambda lock: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open_lock(path: Path) -> TextIO:
    """Open the lock file. It is written to, so it must be a file of this directory alone.

    Raises:
        OSError: it is a symbolic link, a hard link to a file elsewhere, or no regular file.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link", str(path))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        status = os.fstat(descriptor)
        check_regular(status, path)
        if status.st_nlink > 1:
            raise OSError(errno.EMLINK, "it is the name of a file elsewhere too", str(path))
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "r+")


def _take_lock(flock: Callable[[Any], None], lock: Any, path: Path) -> None:
    """Lock the lock file, and write the number of this process to it."""
    try:
        flock(lock)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        raise DataError(
            f"{path} is being written by another process (number {owner}); wait for it, or name another directory."
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()


def _manifest_path(path: Path) -> Path:
    return path.with_name(f"_{path.stem}.json")


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a file of records; None where either is missing or damaged."""
    try:
        manifest = json.loads(read_whole(_manifest_path(path)))
        version = manifest.get("version")
        is_valid = isinstance(manifest["inputs"], str) and (version is None or isinstance(version, int))
        return manifest if is_valid and manifest["sha256"] == digest_of(path) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


@contextmanager
def _explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into a message that names the file and the way on."""
    try:
        yield
    except OSError as error:
        remedy = "make room" if error.errno == errno.ENOSPC else "mend that"
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}. What was written before is kept: {remedy}, and give "
            "the same command again."
        ) from error
