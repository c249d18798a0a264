"""Files and folders that appear whole or not at all, and the reading of regular files alone, whatever their origin.

A file is written beside its place under a unique name, flushed to the disk, renamed, and the rename is flushed too. A
folder is made in the same way, with all that it holds. A killed process leaves its unfinished file behind: the next
process on this machine that writes to the directory removes it. A file lock of the system, which ends with its process,
shows whether an unfinished file is still being written. (Unfinished files of other machines stay: not every shared file
system shares locks.)
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
except ImportError:  # Windows, where unfinished files stay
    fcntl = None

_HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_PREFIX = f".kn-lens-{_HERE}-"
_NONBLOCK = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe is not waited for


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: it does not exist, or is a directory, a pipe, a device or a socket: these are not read.
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
    """Return the content of a regular file; errors as of `opened`."""
    with opened(path) as file:
        return file.read()


def check_regular(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Raise unless a file is a regular one.

    Raises:
        OSError: with the reason.
    """
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all; texts as UTF-8.

    Raises:
        OSError: it cannot be written, or the path is a device or a pipe, which the file would replace.
        ValueError: a name with a null character, or a text with an unpaired surrogate.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing_whole(path) as file:
        file.write(data)


@contextmanager
def writing_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to, which replaces ``path`` when the block ends without an error.

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
            _flush_directory(path.parent)
    finally:
        with suppress(OSError):  # it has taken its place
            part.unlink(missing_ok=True)


def replace_durably(part: Path, path: Path) -> None:
    """Flush a finished file to the disk and rename it to ``path``; a crash leaves the one file there or the other.

    Raises:
        OSError: it cannot be flushed or renamed.
    """
    _flush_file(part)
    part.replace(path)
    _flush_directory(path.parent)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill, which becomes ``path`` when the block ends without an error.

    Raises:
        OSError: a file or a folder with content is at ``path``, or the folder cannot be written.
    """
    with part_folder(path.parent) as part:
        yield part
        _flush_content(part)
        part.rename(path)
        _flush_directory(path.parent)


@contextmanager
def part_folder(within: str | os.PathLike[str], mode: int = 0o777) -> Iterator[Path]:
    """Yield a new directory inside another, for files that will be moved from it; it is removed with its content.

    Args:
        within: the directory around it.
        mode: its permissions, before the mask of the process.

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
    """Yield the unfinished files and directories that ended processes of this machine left in a directory."""
    for part in within.glob(f"{_PREFIX}*.part"):
        with suppress(OSError):  # of another user, or gone by now
            number = os.open(part, os.O_RDONLY | _NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
            try:
                left = _locked(number)
            finally:
                os.close(number)
            if left:
                yield part


def _flush_content(folder: Path) -> None:
    """Flush a folder with all files and folders in it to the disk."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue
        if path.is_dir():
            _flush_directory(path)
        else:
            _flush_file(path)
    _flush_directory(folder)


def _flush_file(path: Path) -> None:
    """Flush the content of a file to the disk."""
    number = os.open(path, os.O_RDONLY if fcntl else os.O_RDWR)  # Windows flushes what may be written alone
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _flush_directory(path: Path) -> None:
    """Flush the names of the files of a directory to the disk, where the system can."""
    if fcntl is None:  # Windows opens no directories
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot flush directories
            raise
    finally:
        os.close(number)


def _new(within: Path, mode: int, *, of_file: bool) -> tuple[Path, int]:
    """Remove abandoned parts, then create a file or a directory, locked by this process; return it opened."""
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
    """Lock an open file for this process and return whether that was possible; the lock ends when it is closed."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody has it; or the file system has no locks, and nothing is removed there
        return False
    return True
