"""Folders that appear under their names only when all of them is written, and locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from unifygeo_ros.core.files import sync


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process works on `path`, then hold it.

    The lock is the file `.NAME.lock` in the same folder, and ends with its process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with lock.open("wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if not _is_named(stream, lock):  # removed by the process that held it before
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder `.NAME.part` that becomes `path` at the end. To be called under `locked(path)`.

    What a killed process left there is removed first; after an error nothing is left.
    """
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.iterdir():
            sync(file)
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync(path.parent)


def _is_named(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
