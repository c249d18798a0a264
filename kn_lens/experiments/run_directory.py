"""A directory of results that survives whatever stops the run that writes it.

    run/config.toml            the settings, resolved
    run/provenance.json        what the results were made from: versions, model, data, device
    run/records/STAGE/S.parquet   the records of one shard (usually a relation) of a stage
    run/records/STAGE/_S.json     the digest of that file, and of all that it was made from (its inputs); the version
                                  of the stage
    run/tables/*.csv           what the records say, summed up
    run/scratch/               what is being written; emptied at the start
    run/lock                   held by the process that writes

Every file is written elsewhere, brought to the disk and then renamed, so that it is there whole or not at all. A record
counts only while its file has the digest that was noted beside it *and* its inputs are those of today; otherwise it is
made again. So nothing has to be cleaned up after a crash, a full disk or a damaged file, and a run that was resumed
ends with the records of one that ran through.

The lock is the kernel's (``flock``): it ends with its process, however that ends. Windows has none such: there runs
can be read and not written.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, unquote

from kn_lens._whole_files import check_regular, opened, read_whole
from kn_lens.errors import ArgumentError, DataError

CONFIG, PROVENANCE = "config.toml", "provenance.json"


@dataclass(frozen=True, order=True)
class Shard:
    """A part of a stage that is computed, written and skipped as one.

    Attributes:
        relation: whose facts it is about; ``ALL`` where it is about all of them together.
        part: which part, where a stage has several for a relation.

    >>> Shard("P36", "x2").name, Shard("a/b").name
    ('P36+x2', 'a%2Fb')
    """

    relation: str
    part: str = ""

    @property
    def name(self) -> str:
        """The name of its file: percent-encoded, so that different shards have different ones."""
        return "+".join(quote(one, safe="") for one in (self.relation, self.part) if one)

    @classmethod
    def named(cls, name: str) -> "Shard":
        """Return the shard of that name.

        >>> Shard.named("a%2Fb+x2")
        Shard(relation='a/b', part='x2')
        """
        return cls(*map(unquote, name.split("+", 1)))


def _unnoticed(path: Path) -> None:
    """Do nothing about a file that has taken its place."""


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run; see ``open_run``.

    Attributes:
        path: the directory.
        settled: called with each file that has taken its place.
    """

    path: Path
    settled: Callable[[Path], None] = _unnoticed
    _checked: dict[Path, dict[str, Any] | None] = field(default_factory=dict, repr=False)

    def record(self, stage: str, shard: Shard) -> Path:
        """Return where the records of a shard are."""
        return self.path / "records" / stage / f"{shard.name}.parquet"

    def shards(self, stage: str) -> list[Shard]:
        """Return the shards of a stage that have been written, undamaged or not, by name."""
        return [Shard.named(path.stem) for path in sorted((self.path / "records" / stage).glob("*.parquet"))]

    def noted(self, stage: str, shard: Shard) -> dict[str, Any] | None:
        """Return what is noted of a shard, None where its file is missing or damaged.

        Its digests, ``sha256`` and ``inputs``, and the ``version`` of the stage that made it, as ``writing`` was told.
        """
        path = self.record(stage, shard)
        if path not in self._checked:
            self._checked[path] = _noted(path)
        return self._checked[path]

    def is_current(self, stage: str, shard: Shard, inputs: str, version: int) -> bool:
        """Return whether the records are there, undamaged and made from these inputs by this version of the stage."""
        noted = self.noted(stage, shard)
        return noted is not None and (noted["inputs"], noted.get("version")) == (inputs, version)

    def damaged(self, stage: str, shard: Shard) -> bool:
        """Return whether something is there that is not what was written."""
        return self.noted(stage, shard) is None and _note(self.record(stage, shard)).exists()

    @contextmanager
    def writing(self, stage: str, shard: Shard, inputs: str, version: int) -> Iterator[Path]:
        """Yield a path to write the records of a shard to; they take their place when the block is left without error.

        Args:
            stage: name of the stage.
            shard: of it.
            inputs: digest of what they are made from.
            version: of the stage.

        Raises:
            DataError: they cannot be written, the disk being full for instance.
        """
        path, scratch = self.record(stage, shard), self.path / "scratch" / f"{stage}+{shard.name}"
        with _explained(path):
            self._make_folder(path.parent)
            try:
                yield scratch
                noted = {"sha256": digest_of(scratch), "inputs": inputs, "version": version}
                _settle(scratch, path)
            finally:
                scratch.unlink(missing_ok=True)
            self.settled(path)
            self.write_text(_note(path).relative_to(self.path), json.dumps(noted) + "\n")
        self._checked[path] = noted

    def write_text(self, path: Path | str, text: str) -> None:
        """Write a file of the run, whole or not at all, unless it holds this text already.

        Args:
            path: where in the run.
            text: what it is to hold.

        Raises:
            DataError: it cannot be written.
        """
        path = self.path / path
        with _explained(path):
            self._make_folder(path.parent)
            if path.is_file() and not path.is_symlink() and read_whole(path) == text.encode():
                return
            scratch = self.path / "scratch" / f"{path.parent.name}+{path.name}"
            try:
                scratch.write_text(text, encoding="utf-8")
                _settle(scratch, path)
            finally:
                scratch.unlink(missing_ok=True)
            self.settled(path)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of the run, unless it is there; not where a link would lead out of the run."""
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() != self.path.resolve() / folder.relative_to(self.path):
            raise OSError(errno.ELOOP, "a link takes the place of one of its directories", str(folder))


@contextmanager
def locked(path: str | os.PathLike[str], settled: Callable[[Path], None] = _unnoticed) -> Iterator[RunDirectory]:
    """Have a directory for this process alone.

    Args:
        path: the directory; made if need be.
        settled: called with each file that is written.

    Raises:
        ArgumentError: the directory is something else's.
        DataError: another process has it, or it cannot be written.
    """
    path = Path(path)
    _check_ours(path)
    flock = _flock()
    with _explained(path):
        path.mkdir(parents=True, exist_ok=True)
    with _explained(path / "lock"):
        lock = _opened_lock(path / "lock")
    with lock:
        with _explained(path):
            _lock(flock, lock, path)
            if (path / "scratch").is_symlink():
                (path / "scratch").unlink()
            shutil.rmtree(path / "scratch", ignore_errors=True)
            (path / "scratch").mkdir(exist_ok=True)
        yield RunDirectory(path, settled)
        shutil.rmtree(path / "scratch", ignore_errors=True)


@contextmanager
def open_run(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    force: bool = False,
    settled: Callable[[Path], None] = _unnoticed,
) -> Iterator[RunDirectory]:
    """Open a run directory for this process alone, new or to be taken up again.

    Args:
        path: the directory; made if need be.
        config: the settings: texts, numbers, truth values and lists of them. None is left out. ``model`` and ``facts``
            are names; what they stand for is in the provenance.
        provenance: what else the results depend on, as JSON.
        force: take up a directory of other settings; what they change is made again, and what they do not is kept.
        settled: called with each file that is written.

    Raises:
        ArgumentError: the directory is something else's.
        DataError: another process has it, it was made with other settings or from something else (the differences are
            named), or it cannot be written.
    """
    with locked(path, settled) as run:
        if not force:
            check_same(run.path, config, provenance)
        else:
            shutil.rmtree(run.path / "tables", ignore_errors=True)  # of records that may be others now
        for name, text in _texts(config, provenance).items():
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
    """Return the SHA-256 of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def as_toml(config: Mapping[str, Any]) -> str:
    """Return settings as TOML, one a line.

    >>> print(as_toml({"seed": 0, "relations": ["P36"], "limit": None}), end="")
    seed = 0
    relations = ["P36"]
    """
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in config.items() if value is not None)


def toml_value(value: Any) -> str:
    """Return a text, a number, a truth value or a list of them as TOML, which but for NaN and infinities is JSON too.

    >>> toml_value(["Zürich", 1e999, True])
    '["Zürich", inf, true]'
    """
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    # TOML takes no pairs of surrogates, and neither lone ones (file names can have them) nor DEL as they are.
    return re.sub("[\x7f\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def from_toml(text: str) -> dict[str, Any]:
    """Return the settings that ``as_toml`` wrote.

    >>> from_toml(as_toml({"seed": 0, "relations": ["P36"], "limit": None}))
    {'seed': 0, 'relations': ['P36']}
    """
    entries = (line.partition(" = ") for line in text.split("\n") if line)  # texts may hold what else ends a line
    return {key: json.loads(value) for key, _, value in entries}


BEFORE_THERE_WAS_A_CHOICE: Mapping[str, Any] = {"update_signed": False}
"""What settings were in runs of versions that did not have them yet; their ``config.toml`` does not name them."""


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run noted, with those that its version did not have yet as they were in it.

    >>> completed({"preset": "kn_lens", "seed": 3})
    {'update_signed': False, 'preset': 'kn_lens', 'seed': 3}
    """
    return {**(BEFORE_THERE_WAS_A_CHOICE if "preset" in config else {}), **config}


NAMES = ("model", "facts", "format", "templates", "split")
"""Settings that name what the provenance describes; two names of one thing are no difference."""


def _texts(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, str]:
    return {CONFIG: as_toml(config), PROVENANCE: json.dumps(provenance, indent=2, ensure_ascii=False) + "\n"}


def check_same(path: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Raise when the directory was made from something else; see ``open_run``.

    Raises:
        DataError: naming the differences, or the file that is damaged.
    """
    differing: list[str] = []
    for name, text in _texts(config, provenance).items():
        if not (path / name).exists():
            continue
        try:
            there = read_whole(path / name).decode()
            before, now = (_flat(name, one) for one in (there, text))
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path / name} is damaged ({error}). --force writes it anew and keeps every record that was made with "
                "the settings given now."
            ) from None
        for key in dict.fromkeys([*before, *now]):
            if key not in NAMES and before.get(key) != now.get(key):
                differing.append(f"{key}: {_shown(before.get(key))}, now {_shown(now.get(key))}")
    if differing:
        raise DataError(
            f"{path} was made with other settings ({'; '.join(differing[:8])}{'; ...' if differing[8:] else ''}). Give "
            "those, or another directory; --force keeps what the change does not touch and makes the rest again."
        )


def _flat(name: str, text: str) -> dict[str, Any]:
    """Return the entries to compare; those of the provenance by their paths, without what is only told."""
    if name == CONFIG:
        return completed(from_toml(text))
    return dict(_leaves(json.loads(text)["made_from"], ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{path}.{key}" if path else key)


def _shown(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _check_ours(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ArgumentError(f"--out {path} is a file; expected a directory, new or of an earlier run.")
    if path.is_dir() and not (path / "lock").exists() and any(path.iterdir()):
        raise ArgumentError(f"--out {path} holds other files; expected a new directory, or one of an earlier run.")


def _flock() -> Callable[[Any], None]:
    """Return what locks a file for this process, or raises BlockingIOError where another has it."""
    try:
        import fcntl
    except ImportError as error:
        raise DataError(
            "A run is written under a lock of the system's, which Windows does not have; expected Linux (on Windows: "
            "WSL) or macOS. Runs that are there can be read."
        ) from error
    return lambda lock: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _opened_lock(path: Path) -> TextIO:
    """Open the file that is locked: one of this directory alone, since it is written to.

    Raises:
        OSError: it is a link, another name of a file elsewhere, or no regular file.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link", str(path))
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        found = os.fstat(number)
        check_regular(found, path)
        if found.st_nlink > 1:
            raise OSError(errno.EMLINK, "it is the name of a file elsewhere too", str(path))
    except OSError:
        os.close(number)
        raise
    return os.fdopen(number, "r+")


def _lock(flock: Callable[[Any], None], lock: Any, path: Path) -> None:
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


def _note(path: Path) -> Path:
    return path.with_name(f"_{path.stem}.json")


def _noted(path: Path) -> dict[str, Any] | None:
    try:
        noted = json.loads(read_whole(_note(path)))
        is_whole = isinstance(noted["inputs"], str) and isinstance(noted.get("version"), (int, type(None)))
        return noted if is_whole and noted["sha256"] == digest_of(path) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _settle(scratch: Path, path: Path) -> None:
    """Bring a file to the disk, and to its place."""
    for place in (scratch, path.parent):
        number = os.open(place, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
        if place == scratch:
            scratch.replace(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say which file could not be written, and that it costs nothing to try again."""
    try:
        yield
    except OSError as error:
        cure = "make room" if error.errno == errno.ENOSPC else "mend that"
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}. What was written before is kept: {cure}, and give "
            "the same command again."
        ) from error
