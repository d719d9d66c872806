"""Compiled engines on disk: never a stale or a damaged one.

A file is named after its graph and the hash of everything the engine depends on, and begins with one line of JSON that
repeats those facts beside the SHA-256 of what follows. A file that does not say exactly what is wanted, or whose bytes
do not have that hash, is as good as absent.
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
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Collection, Iterator, Mapping

from unifygeo_ros.core.errors import EngineError

logger = logging.getLogger(__name__)

FORMAT = "unifygeo-engine-1"
PARTS = ("engine", "runtime", "timing")
"""What a file holds: an engine, kernels that tensorrt_rtx compiled for one, measurements of tensorrt's builds."""

HEADER_BYTES = 65536
"""No header line is longer."""


@dataclass(frozen=True)
class EngineKey:
    """All that a compiled engine depends on.

    gpu: the GPU's name, or "any" for an engine that runs on every GPU of its compute capability. options: the build's
    own choices (batches, workspace), so that a release with other choices builds anew. part: one of PARTS.
    """

    graph: str
    precision: str
    weights_sha256: str
    graph_sha256: str
    backend: str
    version: str
    gpu: str
    compute_capability: str
    options: str
    machine: str = platform.machine()
    part: str = "engine"

    @property
    def file_name(self) -> str:
        digest = hashlib.sha256(self._facts().encode()).hexdigest()
        return f"{self.graph}-{self.precision}-{digest[:16]}.{self.part}"

    def _facts(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, sort_keys=True)


def _serves(facts: Mapping[str, object], key: EngineKey) -> bool:
    """Whether what a file's header says makes it an engine's own, its kernels or timings for its build."""
    own = dataclasses.asdict(key)
    compared = (
        ("backend", "version", "compute_capability", "machine")
        if facts.get("part") == "timing"
        else own.keys() - {"part", "gpu"}
    )
    return facts.get("format") == FORMAT and all(facts.get(name) == own[name] for name in compared)


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/unifygeo/engines, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "unifygeo" / "engines"


class EngineCache:
    """A folder of compiled engines, shared by processes."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_cache_dir()

    def path(self, key: EngineKey) -> Path:
        return self.folder / key.file_name

    def load(self, key: EngineKey) -> bytes | None:
        """The content stored under the key, or None where there is none that can be trusted."""
        path = self.path(key)
        try:
            with path.open("rb") as stream:
                header = stream.readline(HEADER_BYTES)
                content = stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EngineError(
                f"{path}: cannot be read ({error}); mend its permissions or give another cache"
            ) from error
        try:
            found = json.loads(header)
        except ValueError:
            found = None
        if found != self._header(key, content):
            logger.warning("%s is damaged or not what its name says; it will be built again", path)
            return None
        return content

    def store(self, key: EngineKey, content: bytes) -> Path:
        """Write under a temporary name and rename, so that a reader sees all of it or nothing."""
        path = self.path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(json.dumps(self._header(key, content), sort_keys=True).encode() + b"\n")
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise EngineError(f"{path}: cannot be written ({error}); free space or give another cache") from error
        return path

    def prune(self, kept: Collection[EngineKey]) -> tuple[Path, ...]:
        """Remove everything that is of no use to the engines kept, and return what that was.

        Kernels compiled at run time go with their engine; timings stay while the library and the compute capability are
        those of an engine kept. What names a GPU stays for all GPUs.
        """
        removed = []
        with self.lock():
            for path in sorted(path for part in PARTS for path in self.folder.glob(f"*.{part}")):
                if not any(_serves(self._facts_of(path), key) for key in kept):
                    try:
                        path.unlink()
                    except OSError as error:
                        raise EngineError(f"{path}: cannot be removed ({error}); mend its permissions") from error
                    removed.append(path)
        return tuple(removed)

    @staticmethod
    def _facts_of(path: Path) -> dict[str, object]:
        """What a file's first line says of it; nothing where it cannot be told."""
        try:
            with path.open("rb") as stream:
                facts = json.loads(stream.readline(HEADER_BYTES))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held while building. One lock for the folder: two builds on one GPU would disturb each other's timing."""
        path = self.folder / "build.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stream = path.open("a")
        except OSError as error:
            raise EngineError(f"{path}: cannot be opened ({error}); give another cache") from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("Another process is building engines in %s; waiting for it", self.folder)
                fcntl.flock(stream, fcntl.LOCK_EX)
            for part in ("engine", "timing"):  # both are stored under the lock: what is left is of a killed build
                for leftover in self.folder.glob(f".*.{part}.*"):
                    leftover.unlink(missing_ok=True)
            yield  # closing the file gives the lock back, also when the process is killed

    @staticmethod
    def _header(key: EngineKey, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        return {"format": FORMAT, "sha256": digest, "bytes": len(content), **dataclasses.asdict(key)}
