"""The index while it is being written: OUTPUT.partial, renamed to OUTPUT when complete.

Each shard of tiles is appended to the four tile files, flushed to the disk, and then recorded as one line of a journal
with the files' lengths and running SHA-256 and a checksum of the line itself. The state on disk is always that of the
last whole line: a resumed build cuts the files back to it, compares them with its checksums, and continues. The
finished bytes do not depend on where a build was interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Iterator, Mapping

import numpy as np

from unifygeo_ros.aerial.manifest import (
    DESCRIPTORS,
    MANIFEST,
    MATCH_MAPS,
    PIXELS,
    SEARCH,
    TILE_DTYPE,
    TILE_FILES,
    TILES,
    FileRecord,
    IndexManifest,
    cell_keys,
)
from unifygeo_ros.aerial.search import write_inverted_file
from unifygeo_ros.core.arrays import Float16, Float32, Float64
from unifygeo_ros.core.errors import ConfigurationError, IndexFormatError, UnifyGeoError
from unifygeo_ros.core.files import sync, sync_stream
from unifygeo_ros.inference.bundle import sha256_of_file

PLAN = "plan.json"
JOURNAL = "journal.jsonl"
_WORKING_FILES = (PLAN, JOURNAL)


@dataclass(frozen=True)
class Shard:
    """The encoded tiles of one stretch of the plan, empty ones left out."""

    centres_m: Float64
    """float64 (n, 2)."""
    descriptors: Float32
    """float32 (n, C)."""
    match_maps: Float16
    """float16 (n, S, S, C_0)."""
    pngs: tuple[bytes, ...]
    """n encoded tiles."""
    skipped: int
    """Tiles of the stretch that were left out."""


@dataclass
class _State:
    """The last whole line of the journal."""

    shards: int = 0
    tiles: int = 0
    skipped: int = 0


class PartialIndex:
    """Writes OUTPUT.partial and turns it into OUTPUT. One process at a time; a context manager.

    plan: everything that decides the bytes of the index. An interrupted build resumes only under the same plan.
    """

    def __init__(self, output: Path, plan: Mapping[str, Any]) -> None:
        self._output = output
        self._folder = output.with_name(output.name + ".partial")
        if output.exists():
            raise ConfigurationError(f"{output}: is there already; choose another output or remove it first")
        with _disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._folder, os.O_RDONLY)
            try:
                self._take_lock()
                self._check_plan(json.dumps(plan, indent=2, sort_keys=True, allow_nan=False) + "\n")
                self._state = _State()
                self._hashes = {name: hashlib.sha256() for name in TILE_FILES}
                self._lengths = dict.fromkeys(TILE_FILES, 0)
                self._files: dict[str, BinaryIO] = {}
                self._restore()
            except BaseException:
                os.close(self._lock)
                raise

    def __enter__(self) -> PartialIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk was reported when it was met
                file.close()
        if error is not None and self._state.tiles == 0:
            shutil.rmtree(self._folder, ignore_errors=True)  # nothing in it is worth going on with
        os.close(self._lock)

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def shards(self) -> int:
        """Shards that are safely on disk."""
        return self._state.shards

    @property
    def tiles(self) -> int:
        return self._state.tiles

    @property
    def skipped(self) -> int:
        return self._state.skipped

    def append(self, shard: Shard, side_m: float) -> None:
        """Write the next shard and make it durable. side_m: of a tile."""
        count = len(shard.pngs)
        table = np.zeros(count, TILE_DTYPE)
        table["east_m"], table["north_m"] = shard.centres_m.T
        table["cell"] = cell_keys(shard.centres_m, side_m)
        sizes = np.array([len(png) for png in shard.pngs], np.int64)
        table["pixels_bytes"] = sizes
        table["pixels_offset"] = self._lengths[PIXELS] + np.cumsum(sizes) - sizes
        descriptors = np.ascontiguousarray(shard.descriptors, "<f4")
        match_maps = np.ascontiguousarray(shard.match_maps, "<f2")
        table["descriptor_crc"] = [zlib.crc32(row.data) for row in descriptors]
        table["match_map_crc"] = [zlib.crc32(row.data) for row in match_maps]
        table["pixels_crc"] = [zlib.crc32(png) for png in shard.pngs]
        content = {
            TILES: table.tobytes(),
            DESCRIPTORS: descriptors.tobytes(),
            MATCH_MAPS: match_maps.tobytes(),
            PIXELS: b"".join(shard.pngs),
        }
        with _disk_errors(self._folder):
            for name, data in content.items():
                self._files[name].write(data)
                sync_stream(self._files[name])
                self._hashes[name].update(data)
                self._lengths[name] += len(data)
            state = _State(self._state.shards + 1, self._state.tiles + count, self._state.skipped + shard.skipped)
            line = {
                **vars(state),
                "bytes": self._lengths,
                "sha256": {name: digest.hexdigest() for name, digest in self._hashes.items()},
            }
            with (self._folder / JOURNAL).open("ab") as journal:
                journal.write((json.dumps({**line, "crc32": _line_checksum(line)}) + "\n").encode())
                sync_stream(journal)
            self._state = state

    def finish(self, manifest: IndexManifest) -> None:
        """Make the search file if the manifest names one, complete the manifest's file records, rename the folder."""
        with _disk_errors(self._folder):
            records = {name: FileRecord(self._lengths[name], self._hashes[name].hexdigest()) for name in TILE_FILES}
            if manifest.search == "ivfpq":
                path = self._folder / SEARCH
                shape = (manifest.tiles, manifest.descriptor_dim)
                descriptors = np.memmap(self._folder / DESCRIPTORS, "<f4", mode="r", shape=shape)
                write_inverted_file(np.asarray(descriptors), path)
                sync(path)
                records[SEARCH] = FileRecord(path.stat().st_size, sha256_of_file(path))
            text = dataclasses.replace(manifest, files=records).to_json()
            temporary = self._folder / (MANIFEST + ".new")
            temporary.write_text(text, encoding="utf-8", newline="")
            sync(temporary)
            temporary.rename(self._folder / MANIFEST)
            sync(self._folder)
        finish_rename(self._output)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"{self._folder}: another build is writing it; wait for it or choose another output"
            ) from None

    def _check_plan(self, text: str) -> None:
        path = self._folder / PLAN
        if path.exists():
            if path.read_bytes() == text.encode():
                return
            if (self._folder / JOURNAL).exists():
                raise ConfigurationError(
                    f"{self._folder}: an interrupted build with other imagery, model or settings; finish it with those "
                    "(plan.json), or remove the folder to start again"
                )
        known = {PLAN, PLAN + ".new", *TILE_FILES}
        strangers = sorted(item.name for item in self._folder.iterdir() if item.name not in known)
        if strangers:
            raise ConfigurationError(
                f"{self._folder}: holds {strangers[0]}, which is no part of an interrupted build; remove the folder or "
                "choose another output"
            )
        temporary = self._folder / (PLAN + ".new")
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.rename(path)
        sync(self._folder)

    def _restore(self) -> None:
        """Go back to the last whole line of the journal."""
        line, journal_bytes = _last_line(self._folder / JOURNAL)
        wanted: Mapping[str, str] = {}
        if line is not None:
            self._state = _State(line["shards"], line["tiles"], line["skipped"])
            self._lengths = {name: int(line["bytes"][name]) for name in TILE_FILES}
            wanted = line["sha256"]
        for name in TILE_FILES:
            path = self._folder / name
            file = path.open("r+b" if path.exists() else "w+b")
            self._files[name] = file
            left = self._lengths[name]
            while left:
                block = file.read(min(left, 1 << 20))
                if not block:
                    break
                self._hashes[name].update(block)
                left -= len(block)
            if left or (wanted and self._hashes[name].hexdigest() != wanted[name]):
                raise IndexFormatError(
                    f"{path}: does not match the journal of the interrupted build, the disk lost or changed it; "
                    f"remove {self._folder} and build again"
                )
            file.truncate(self._lengths[name])
            file.seek(self._lengths[name])
        if journal_bytes is not None:
            os.truncate(self._folder / JOURNAL, journal_bytes)


def finish_rename(output: Path) -> bool:
    """The last step of a build: OUTPUT.partial, complete with its manifest, becomes OUTPUT.

    Also called at the start of a build, for one that was killed between the two. Returns whether there was anything to
    do.
    """
    folder = output.with_name(output.name + ".partial")
    if output.exists() or not (folder / MANIFEST).exists():
        return False
    with _disk_errors(folder):
        for name in _WORKING_FILES:
            (folder / name).unlink(missing_ok=True)
        sync(folder)
        folder.rename(output)
        sync(output.parent)
    return True


def _last_line(path: Path) -> tuple[dict[str, Any] | None, int | None]:
    """The last line that was written whole, and where it ends; a line cut off by a kill does not count."""
    if not path.exists():
        return None, None
    whole, newline, _ = path.read_bytes().rpartition(b"\n")
    if not newline:
        return None, 0
    try:
        line = dict(json.loads(whole.rpartition(b"\n")[2]))
        stated = line.pop("crc32", None)
        if stated != _line_checksum(line):
            raise ValueError("its last line does not match its checksum")
    except (ValueError, TypeError, RecursionError) as error:
        raise IndexFormatError(f"{path}: damaged ({error}); remove {path.parent} and build again") from error
    return line, len(whole) + 1


def _line_checksum(line: Mapping[str, Any]) -> int:
    """CRC-32 of the entries of a line of the journal, in canonical JSON."""
    return zlib.crc32(json.dumps(line, sort_keys=True).encode())


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except UnifyGeoError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            parent = next(path for path in (folder, *folder.parents) if path.exists())
            free = shutil.disk_usage(parent).free / 1e6
            raise ConfigurationError(
                f"{folder}: the disk is full ({error.strerror}, {free:.0f} MB free); free space and start the same "
                "build again, it resumes where it stopped"
            ) from error
        raise ConfigurationError(
            f"{folder}: cannot be written ({error}); give an output in a folder that can"
        ) from error
