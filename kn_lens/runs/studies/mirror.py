"""A mirror stores a local directory at an address that fsspec knows, file by file.

Each file is stored as a whole or not at all, as far as the store can do that (object stores can; elsewhere fsspec's
transactions write to another name and rename), and records before the manifest that makes them count. So the store
always holds what a local directory would hold after a kill. Stores have no locks: nothing keeps two processes from
using one address at a time.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from kn_lens._core.atomic import part_folder, writing_whole
from kn_lens._core.redact import without_secrets
from kn_lens.errors import ArgumentError, DataError


@dataclass(frozen=True)
class Mirror:
    """Stores the files of a local directory; does nothing if that directory is the destination itself.

    Attributes:
        local: the local directory.
        store_at: a file system of fsspec and a path in it; None stores nothing.
    """

    local: Path
    store_at: tuple[Any, str] | None = None

    def fetch(self, name: str) -> None:
        """Copy a file, or all files of a directory, from the store to the local directory.

        Raises:
            DataError: the store cannot be read, or holds a name that leads out of the directory.
        """
        if self.store_at is None:
            return
        fs, root = self.store_at
        with _explained(fs, f"{root}/{name}", "read"):
            for stored in fs.find(f"{root}/{name}"):
                path = self._local_path(str(stored), root)
                path.parent.mkdir(parents=True, exist_ok=True)
                with fs.open(stored, "rb") as source, writing_whole(path) as target:
                    shutil.copyfileobj(source, target)

    def _local_path(self, stored: str, root: str) -> Path:
        """Return the path of a stored file in the local directory.

        Raises:
            DataError: it would lie outside.
        """
        name = stored.removeprefix("/").removeprefix(f"{root.removeprefix('/')}/")
        path = self.local / name
        if not path.resolve().is_relative_to(self.local.resolve()):  # keys of a store can be any text
            raise DataError(f"The name of {stored} leads out of {root}; expected files of a study alone.")
        return path

    def fetch_run(self, name: str) -> None:
        """Copy a run directory from the store, and mark it as a run."""
        self.fetch(name)
        if self.store_at is not None:
            (self.local / name).mkdir(parents=True, exist_ok=True)
            (self.local / name / "lock").touch()

    def store(self, path: Path) -> None:
        """Store a file of the local directory.

        Raises:
            DataError: it cannot be stored.
        """
        if self.store_at is None:
            return
        fs, root = self.store_at
        stored = f"{root}/{path.relative_to(self.local).as_posix()}"
        with _explained(fs, stored, "written"):
            fs.makedirs(stored.rpartition("/")[0], exist_ok=True)
            with path.open("rb") as source, fs.transaction, fs.open(stored, "wb") as target:
                shutil.copyfileobj(source, target)

    def remove(self, name: str) -> None:
        """Remove a file from the store, if it exists."""
        if self.store_at is None:
            return
        fs, root = self.store_at
        with _explained(fs, f"{root}/{name}", "removed"):
            if fs.exists(f"{root}/{name}"):
                fs.rm(f"{root}/{name}")


@contextmanager
def working_copy(out: str | Path, mark: str) -> Iterator[tuple[Path, Mirror]]:
    """Yield a local directory to work in, and the mirror that stores its files at a path or address.

    Args:
        out: the path or address.
        mark: a file that every directory of this kind has.

    Raises:
        ArgumentError: fsspec knows no such address, lacks the package for it, or it holds something else.
        DataError: the store cannot be read.
    """
    text = str(out)
    if "://" not in text:
        yield Path(out), Mirror(Path(out))
        return
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(text)
    except (ValueError, ImportError) as error:
        raise ArgumentError(without_secrets(f"--out {text}: {error}.")) from error
    except Exception as error:  # some stores are contacted at once, and each has errors of its own
        raise DataError(without_secrets(f"--out {text} cannot be opened: {error}.")) from error
    if "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol):
        yield Path(root), Mirror(Path(root))
        return
    root = root.rstrip("/")
    with _explained(fs, root, "read"):
        others = not fs.exists(f"{root}/{mark}") and fs.find(root)
    if others:
        raise ArgumentError(
            f"--out {without_secrets(text)} holds other files; expected a new directory, or one with a {mark}."
        )
    with part_folder(gettempdir(), 0o700) as folder:
        (folder / "lock").touch()  # by which run directories are recognised
        yield folder, Mirror(folder, (fs, root))


@contextmanager
def _explained(fs: Any, name: str, done: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # every store has errors of its own
        raise DataError(
            without_secrets(f"{name} cannot be {done} at {type(fs).__name__}: {error}.")
            + " Everything before it is kept: give the same command again."
        ) from error
