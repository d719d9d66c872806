"""Files that appear under their names only when all of them is written, and is on the disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO


@contextlib.contextmanager
def new_file(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """A stream whose content replaces the file `path` at the end, on the disk before it has the name.

    After an error the old file is there and nothing else. A kill leaves the old or the new file, and a temporary file
    in the same folder.

    Args:
        path: In a folder that exists.
        shared: Whether several processes may write it at the same time. Each then has a temporary file of its own, and
            the file can be read by its user alone. Otherwise the temporary file is `.NAME.part`, which the next call
            overwrites.

    Raises:
        OSError: It cannot be written.
    """
    if shared:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        part = Path(name)
    else:
        part = path.with_name(f".{path.name}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            sync_stream(stream)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file by `new_file`, in UTF-8. Makes its folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as stream:
        stream.write(text.encode())


def sync_stream(stream: IO[bytes]) -> None:
    """Wait until what was written is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
