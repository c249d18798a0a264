"""Files that appear whole or not at all, and files that are read, in directories that others may have made.

What is written is written beside, under a name that nobody has, and renamed when it is on the disk. A process that is
killed leaves it there: the next one on this machine that writes to the directory removes it. Whether somebody still
writes to it, a lock of the system's tells, which ends with its process. (What other machines left stays: not every
shared file system tells one of the locks of another.)
"""

import errno
import hashlib
import os
import platform
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where nothing that was left is removed
    fcntl = None

_HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_PREFIX = f".kn-lens-{_HERE}-"
_NONBLOCK = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe is not waited for


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: it is not there, or is a directory, a pipe, a device or a socket, of which nothing is read.
        ValueError: a name with a null character.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | _NONBLOCK), "rb", closefd=True)
    try:
        check_regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def read_whole(path: str | os.PathLike[str]) -> bytes:
    """Return what a regular file holds; see `opened`."""
    with opened(path) as file:
        return file.read()


def check_regular(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Raise unless a file is a regular one.

    Raises:
        OSError: saying what it is.
    """
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all; texts as UTF-8.

    Raises:
        OSError: it cannot be written, or is a device or the like, which the file would take the place of.
        ValueError: a name with a null character, or a text with half of a surrogate pair.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing_whole(path) as file:
        file.write(data)


@contextmanager
def writing_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to, which takes the place of ``path`` when the block is left without error.

    Raises:
        OSError: as `write_whole`.
        ValueError: a name with a null character.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EEXIST, "it is no regular file", str(path))
    part, number = _new(path.parent, 0o666, of_file=True)
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # what is open keeps its name on Windows
            part.replace(path)
    finally:
        with suppress(OSError):  # it has taken its place
            part.unlink(missing_ok=True)


@contextmanager
def part_folder(within: str | os.PathLike[str], mode: int = 0o777) -> Iterator[Path]:
    """Yield a new directory in another, for what is to be moved from there; it is removed with what is left in it.

    Args:
        within: the other.
        mode: who may do what with it, before the process's mask.

    Raises:
        OSError: it cannot be made.
    """
    part, number = _new(Path(within), mode, of_file=False)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(number)


def abandoned(within: Path) -> Iterator[Path]:
    """Yield what processes of this machine were writing to a directory when they ended; none writes to it now."""
    for part in within.glob(f"{_PREFIX}*.part"):
        with suppress(OSError):  # of another user, or gone by now
            number = os.open(part, os.O_RDONLY | _NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
            try:
                left = _locked(number)
            finally:
                os.close(number)
            if left:
                yield part


def _new(within: Path, mode: int, *, of_file: bool) -> tuple[Path, int]:
    """Make a file or a directory that is this process's, and return it opened; before, remove what is abandoned."""
    for part in list(abandoned(within)):
        with suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    while True:
        part = within / f"{_PREFIX}{secrets.token_hex(4)}.part"
        if of_file:
            number = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        else:
            part.mkdir(mode)
            number = os.open(part if fcntl else os.devnull, os.O_RDONLY)
        if not _locked(number) or part.exists():  # else it was taken for abandoned between the two
            return part, number
        os.close(number)


def _locked(number: int) -> bool:
    """Return whether an open file could be locked for this process; the lock ends when it is closed."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody has it; or the file system has no locks, and nothing is removed there
        return False
    return True
