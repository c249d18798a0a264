"""Files that appear whole or not at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all; texts as UTF-8.

    Raises:
        OSError: it cannot be written, or is a device or the like, which the file would take the place of.
        ValueError: a name with a null character, or a text with half of a surrogate pair.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EEXIST, "it is no regular file", str(path))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    finally:
        with suppress(OSError):  # where it could not be made either
            part.unlink(missing_ok=True)
