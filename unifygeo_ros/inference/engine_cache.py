"""Compiled engines on disk: neither a stale nor a damaged one is ever loaded, nor one that a stranger may have written.

A file is named after its graph and the hash of everything the engine depends on. It begins with one line of JSON that
repeats those facts together with the SHA-256 of the rest. A file that does not state exactly what is wanted, or whose
bytes do not have that hash, is treated as missing.

An engine is code: the GPU runs it, and a library that was not made for hostile input reads it. The checksum protects
against damage only, since anyone who can write a file can write its checksum. So folder and files must belong to the
user (or to root) and must not be writable by others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import platform
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Collection, Iterator, Mapping

from unifygeo_ros.core.errors import EngineError
from unifygeo_ros.core.files import new_file
from unifygeo_ros.core.paths import home_path

logger = logging.getLogger(__name__)

FORMAT = "unifygeo-engine-2"
PARTS = ("engine", "runtime", "timing")
"""Content of a file: an engine, kernels that tensorrt_rtx compiled for one, timings of tensorrt's builds."""

HEADER_BYTES = 65536
"""No header line is longer."""


@dataclass(frozen=True)
class EngineKey:
    """All that a compiled engine depends on."""

    graph: str
    precision: str
    weights_sha256: str
    graph_sha256: str
    backend: str
    version: str
    """Of the library that built it."""
    cuda: str
    """The CUDA runtime that the library was built for."""
    driver: str
    """The GPU's driver, or "any" for an engine that every driver runs."""
    gpu: str
    """The GPU's model, or "any" for an engine that runs on every GPU of its compute capability."""
    compute_capability: str
    options: str
    """The build's own choices (batches, workspace): a release with other choices builds again."""
    machine: str = platform.machine()
    part: str = "engine"
    """One of PARTS."""

    @property
    def file_name(self) -> str:
        digest = hashlib.sha256(self._facts().encode()).hexdigest()
        return f"{self.graph}-{self.precision}-{digest[:16]}.{self.part}"

    def _facts(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, sort_keys=True)


def _serves(facts: Mapping[str, object], key: EngineKey) -> bool:
    """Whether the facts in a file's header are those of an engine, of its kernels, or of timings for its build."""
    own = dataclasses.asdict(key)
    compared = {
        "engine": own.keys() - {"part", "gpu"},
        "runtime": own.keys() - {"part", "gpu", "driver"},  # "any" in the key of its engine
        "timing": {"backend", "version", "cuda", "driver", "compute_capability", "machine"},
    }.get(str(facts.get("part")), own.keys())
    return facts.get("format") == FORMAT and all(facts.get(name) == own[name] for name in compared)


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/unifygeo/engines, by default below ~/.cache."""
    return home_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "unifygeo" / "engines"


class EngineCache:
    """A folder of compiled engines, shared by the processes of one user."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_cache_dir()

    def path(self, key: EngineKey) -> Path:
        return self.folder / key.file_name

    def load(self, key: EngineKey) -> bytes | None:
        """The content stored under the key, or None where there is none that is whole.

        Raises:
            EngineError: the file cannot be read, or others than the user can write it or its folder.
        """
        path = self.path(key)
        self._check_folder()
        try:
            with path.open("rb") as stream:
                _check_trust(path, os.fstat(stream.fileno()))
                header = stream.readline(HEADER_BYTES)
                content = stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EngineError(f"{path}: cannot be read ({error}); fix its permissions or give another cache") from error
        try:
            found = json.loads(header)
        except (ValueError, RecursionError):
            found = None
        if found != self._header(key, content):
            logger.warning("%s is damaged or not what its name says; it will be built again", path)
            return None
        return content

    def store(self, key: EngineKey, content: bytes) -> Path:
        """Write under a temporary name and rename, so that a reader sees all of it or nothing."""
        path = self.path(key)
        try:
            make_trusted_folder(self.folder)
            with new_file(path, shared=True) as stream:
                stream.write(json.dumps(self._header(key, content), sort_keys=True).encode() + b"\n")
                stream.write(content)
        except OSError as error:
            raise EngineError(f"{path}: cannot be written ({error}); free space or give another cache") from error
        return path

    def prune(self, kept: Collection[EngineKey]) -> tuple[Path, ...]:
        """Remove every file that the engines kept cannot use.

        Kernels compiled at run time go with their engine; timings stay while library, driver and compute capability are
        those of an engine kept. Files of other GPUs of that capability stay.

        Returns:
            The files removed.
        """
        removed = []
        with self.lock():
            for path in sorted(path for part in PARTS for path in self.folder.glob(f"*.{part}")):
                if not any(_serves(self._facts_of(path), key) for key in kept):
                    try:
                        path.unlink()
                    except OSError as error:
                        raise EngineError(f"{path}: cannot be removed ({error}); fix its permissions") from error
                    removed.append(path)
        return tuple(removed)

    @staticmethod
    def _facts_of(path: Path) -> dict[str, object]:
        """The facts in a file's first line; none where it cannot be read."""
        try:
            with path.open("rb") as stream:
                facts = json.loads(stream.readline(HEADER_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return facts if isinstance(facts, dict) else {}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held while building. One lock for the folder: two builds on one GPU would disturb each other's timing."""
        path = self.folder / "build.lock"
        try:
            make_trusted_folder(self.folder)
            stream = path.open("a")
        except OSError as error:
            raise EngineError(f"{path}: cannot be opened ({error}); give another cache") from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("Another process is building engines in %s; waiting for it", self.folder)
                fcntl.flock(stream, fcntl.LOCK_EX)
            for part in ("engine", "timing"):  # both are stored under the lock: leftovers are of a killed build
                for leftover in self.folder.glob(f".*.{part}.*"):
                    leftover.unlink(missing_ok=True)
            yield  # closing the file releases the lock, also when the process is killed

    def _check_folder(self) -> None:
        try:
            status = self.folder.stat()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise EngineError(f"{self.folder}: cannot be read ({error}); give another cache") from error
        _check_trust(self.folder, status)

    @staticmethod
    def _header(key: EngineKey, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        return {"format": FORMAT, "sha256": digest, "bytes": len(content), **dataclasses.asdict(key)}


def make_trusted_folder(folder: Path, *, private: bool = False) -> None:
    """Make a folder of compiled engines for the user alone, regardless of the umask, or check the one that is there.

    Args:
        folder: The folder.
        private: Close one that is there to everybody else, because its files are written with the umask's mode.

    Raises:
        EngineError: it cannot be made, or others than the user can write it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
        _check_trust(folder, status)
        if private and status.st_uid == os.geteuid():
            folder.chmod(0o700)
    except OSError as error:
        raise EngineError(f"{folder}: cannot be used ({error}); give another cache") from error


def _check_trust(path: Path, status: os.stat_result) -> None:
    """Refuse a folder or file that others than the user can write. Raises EngineError."""
    if status.st_uid not in (os.geteuid(), 0):
        raise EngineError(
            f"{path}: belongs to user {status.st_uid}, not to this one ({os.geteuid()}), and an engine is code; remove "
            "it, or give another cache (--cache, the node's cache_dir)"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EngineError(
            f"{path}: others can write it (mode {stat.S_IMODE(status.st_mode):04o}), and an engine is code; "
            f"`chmod go-w {path}`, or give another cache (--cache, the node's cache_dir)"
        )
