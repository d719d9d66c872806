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
from typing import Iterator

from unifygeo_ros.errors import EngineError

logger = logging.getLogger(__name__)

FORMAT = "unifygeo-engine-1"


@dataclass(frozen=True)
class EngineKey:
    """All that a compiled engine depends on.

    gpu: the GPU's name, or "any" for an engine that runs on every GPU of its compute capability. options: the build's
    own choices (batches, workspace), so that a release with other choices builds anew. part: "engine" or what belongs
    to it.
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
                header = stream.readline(65536)
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
