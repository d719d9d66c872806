"""The index: everything that the localizer knows of the region, mapped from disk.

`open_index` verifies the manifest and the tile table and maps the other files without reading them. What is mapped is
verified by the CRC-32 of its tile when it is first used, so a flipped byte is refused before it can reach a fix and a
region of any size opens at once. `verify=True` (`unifygeo index info --verify`) reads and checks everything.

The map is a local tangent plane and tiles are squares of it, north-up to the accuracy that `unifygeo_ros.core.geodesy`
states for its range.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import mmap
import threading
import zlib
from pathlib import Path
from typing import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.manifest import (
    DESCRIPTORS,
    MANIFEST,
    MATCH_MAPS,
    PIXELS,
    SEARCH,
    TILE_DTYPE,
    TILES,
    IndexManifest,
    cell_key,
    cell_keys,
    read_manifest,
)
from unifygeo_ros.aerial.search import DescriptorSearch, nearest_among, open_search, wants_gpu
from unifygeo_ros.core.arrays import Array, Float32, Float64, Int64, UInt8
from unifygeo_ros.core.errors import IndexFormatError, InputError
from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_ros.core.records import Candidates
from unifygeo_ros.core.unit_length import UNIT_LENGTH_TOLERANCE, wrong_length
from unifygeo_ros.inference.bundle import ModelBundle, sha256_of_file

_REMEDY = "copy the index again or build it again"

RESIDENT_BYTES = 8 << 20
"""About as much of each mapped file stays in the process's memory after tiles were taken from it one by one."""

_FAULT_BYTES = 1 << 16
"""Linux maps up to so much around the page that is read."""


class _MappedFile:
    """A file mapped for reading, of which little stays in the process.

    Pages that were read are given back to the system from time to time: on a long drive the resident memory would grow
    to the size of the file. They are read again from the system's cache, or the disk.
    """

    def __init__(self, path: Path, dtype: str | type, shape: tuple[int, ...] | None = None) -> None:
        mapped = np.memmap(path, dtype, mode="r", shape=shape)
        self._map: mmap.mmap | None = mapped.base if isinstance(mapped.base, mmap.mmap) else None
        self._touched = 0
        self.array = np.asarray(mapped)

    def touch(self, pieces: int, piece_bytes: int) -> None:
        """Note that so many pieces are about to be read."""
        if self._touched > RESIDENT_BYTES and self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        self._touched += pieces * max(piece_bytes, _FAULT_BYTES)


class VerifiedRows:
    """A mapped array with one row a tile, each row checked against its CRC-32 when it is first taken."""

    def __init__(self, file: _MappedFile, checksums: npt.NDArray[np.uint32], name: str) -> None:
        self._file = file
        self._rows = rows = file.array
        self._checksums = checksums
        self.verified = np.zeros(len(rows), np.bool_)
        """Which rows were checked."""
        self._name = name
        self.shape = rows.shape
        self.dtype = rows.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, tile_ids: int | np.integer | slice | Sequence[int] | Int64) -> Array:
        """Rows of the tiles: the mapped row for one id or a slice, a copy for several. Raises IndexFormatError."""
        self.verify(np.atleast_1d(np.arange(len(self))[tile_ids] if isinstance(tile_ids, slice) else tile_ids))
        return np.asarray(self._rows[tile_ids])

    def verify(self, tile_ids: npt.ArrayLike | None = None) -> Array:
        """Check the rows of some tiles, of all by default, that were not checked before.

        Returns:
            The whole mapped array.

        Raises:
            IndexFormatError: a row is damaged.
        """
        ids = np.arange(len(self)) if tile_ids is None else np.asarray(tile_ids, np.int64)
        self._file.touch(len(ids), self._rows.strides[0])
        for tile_id in ids[~self.verified[ids]].tolist():
            if zlib.crc32(self._rows[tile_id].data) != self._checksums[tile_id]:
                raise IndexFormatError(f"{self._name}: tile {tile_id} does not match its checksum; {_REMEDY}")
            self.verified[tile_id] = True
        return self._rows


class TileIndex:
    """An opened index. Safe for reading from several threads.

    manifest: the description stored in the index. frame: the map frame. centres_m: float64 (n, 2), east and north of
    the tile centres, mapped, read-only. descriptors: float32 (n, C). match_maps: float16 (n, S, S, C_0), unit length
    along the last axis. Both are taken by tile ids and verified when they are.
    """

    def __init__(self, path: Path, manifest: IndexManifest, search_device: str = "auto", gpu: int = 0) -> None:
        self.path = path
        self.manifest = manifest
        self.frame = LocalFrame(manifest.datum)
        count = manifest.tiles
        self._table = np.memmap(path / TILES, TILE_DTYPE, mode="r", shape=(count,))
        self._cells = self._table["cell"]
        self.centres_m: Float64 = np.ndarray(
            (count, 2), np.dtype("<f8"), buffer=self._table, strides=(TILE_DTYPE.itemsize, 8)
        )
        self.descriptors = VerifiedRows(
            _MappedFile(path / DESCRIPTORS, "<f4", (count, manifest.descriptor_dim)),
            self._table["descriptor_crc"],
            str(path / DESCRIPTORS),
        )
        shape = (count, manifest.match_size, manifest.match_size, manifest.match_channels)
        self.match_maps = VerifiedRows(
            _MappedFile(path / MATCH_MAPS, "<f2", shape),
            self._table["match_map_crc"],
            str(path / MATCH_MAPS),
        )
        self._pixels = _MappedFile(path / PIXELS, np.uint8)
        self._search_device = search_device
        self._gpu = gpu
        self._search: DescriptorSearch | None = None
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return self.manifest.tiles

    @property
    def tile_size(self) -> int:
        """Rows = columns of a tile, pixels."""
        return self.manifest.tile_size

    @property
    def metres_per_pixel(self) -> float:
        return self.manifest.metres_per_pixel

    @property
    def area_m2(self) -> float:
        """Each tile adds its stride²; tiles that lie as a data set has them are taken as half overlapping."""
        return len(self) * (self.manifest.stride_m or self.manifest.side_m / 2) ** 2

    @property
    def checksum(self) -> str:
        """SHA-256 of manifest.json, which holds those of the other files."""
        return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()

    def tile_yaw_rad(self, tile_id: int) -> float:
        """Yaw in the map of a tile's eastward axis: all tiles are aligned with the map."""
        return 0.0

    def yaw_at_rad(self, east_m: float, north_m: float) -> float:
        """`tile_yaw_rad` of the tiles at a place."""
        return 0.0

    def tile_png(self, tile_id: int) -> bytes:
        """A tile as it is stored. Raises IndexFormatError."""
        return self._verified_png(tile_id).tobytes()

    def tile_pixels(self, tile_id: int) -> UInt8:
        """The pixels that the aerial encoder saw: uint8 (L, L, 3) RGB, north up. Raises IndexFormatError."""
        image = cv2.imdecode(self._verified_png(tile_id), cv2.IMREAD_COLOR)
        if image is None or image.shape != (self.tile_size, self.tile_size, 3):
            raise IndexFormatError(f"{self.path / PIXELS}: tile {tile_id} cannot be decoded; {_REMEDY}")
        return np.asarray(image[:, :, ::-1])  # BGR → RGB

    def _verified_png(self, tile_id: int) -> UInt8:
        entry = self._table[tile_id]
        start, length = int(entry["pixels_offset"]), int(entry["pixels_bytes"])
        self._pixels.touch(1, length)
        encoded = self._pixels.array[start : start + length]
        if len(encoded) != length or zlib.crc32(encoded.data) != entry["pixels_crc"]:
            raise IndexFormatError(f"{self.path / PIXELS}: tile {tile_id} does not match its checksum; {_REMEDY}")
        return encoded

    def tiles_within(self, gate: Gate) -> Int64:
        """The tiles inside the gate, int64, rising.

        Only tiles near the ellipse are looked at: one binary search for each row of cells that the box around it
        crosses.
        """
        side = self.manifest.side_m
        mean = np.array([gate.prior.east_m, gate.prior.north_m])
        # A tile touches the box if its centre is at most half a side outside; a hair more against rounding.
        reach = np.array(gate.half_extents_m) + side / 2 * (1 + 1e-9)
        low, high = np.clip(np.floor(np.stack([mean - reach, mean + reach]) / side), -(2.0**30), 2.0**30).astype(int)
        first_row, last_row = self._row_range()
        spans = []
        for row in range(max(int(low[1]), first_row), min(int(high[1]), last_row) + 1):
            # bisect reads some twenty entries of the mapped column; numpy's searchsorted would copy all of it.
            start = bisect.bisect_left(self._cells, cell_key(row, int(low[0])))
            end = bisect.bisect_right(self._cells, cell_key(row, int(high[0])), lo=start)
            if start < end:
                spans.append(np.arange(start, end, dtype=np.int64))
        if not spans:
            return np.empty(0, np.int64)
        near = np.concatenate(spans)
        return near[gate.touches(self.centres_m[near], side)]

    def search(self, descriptor: npt.ArrayLike, k: int, gate: Gate | None = None) -> Candidates:
        """The most similar tiles, of those inside the gate if there is one.

        Args:
            descriptor: float32 (C,), unit length.
            k: how many; there are fewer where the gate holds fewer.
            gate: where the camera may be; None: anywhere.

        Raises:
            InputError: the descriptor does not fit the index.
            IndexFormatError: a file of the index is damaged.
        """
        query = checked_descriptor(descriptor, k, self.manifest.descriptor_dim)
        if gate is not None:
            tile_ids = self.tiles_within(gate)
            return nearest_among(self._verified_descriptors(tile_ids), tile_ids, query, k)
        return self._opened_search().nearest(query, min(k, len(self)))

    def verify(self) -> None:
        """Read every file and compare it with the manifest. Raises IndexFormatError."""
        for name in self.manifest.files:
            _verify_file(self.path, self.manifest, name)

    @property
    def search_description(self) -> str:
        """How the whole index is searched."""
        return f"{self.manifest.search}, CPU" if self._search is None else self._search.description

    def open_gpu_search(self) -> None:
        """Open and try the search of the whole index now, if it is to be on a GPU.

        One on the CPU is opened when it is first used: a session with a position prior never uses it, and opening it
        reads all descriptors.

        Raises:
            ConfigurationError: the search was to be on a GPU and cannot be.
            IndexFormatError: a file of the index is damaged.
        """
        if self._search is None and wants_gpu(self.manifest.search, self._search_device, self._gpu):
            self._search = self._open_search()

    def prepare_search(self) -> None:
        """Open the search of the whole index in the background; a search that comes earlier waits for it.

        For who will search without a gate soon: all descriptors are read and verified, 3 s for a million tiles. What
        goes wrong, the first search raises.
        """
        threading.Thread(target=self._prepare, name="index search", daemon=True).start()

    def close_search(self) -> None:
        """Free what the search of the whole index holds, such as a GPU's memory. A later search opens it again."""
        self._search = None

    def _prepare(self) -> None:
        with contextlib.suppress(Exception):  # the first search meets it again
            self._opened_search()

    def _opened_search(self) -> DescriptorSearch:
        with self._opening:
            if self._search is None:
                self._search = self._open_search()
            return self._search

    def _open_search(self) -> DescriptorSearch:
        """The search of the whole index, its files verified.

        All descriptors for an exact one, which reads them all anyway; the inverted lists for IVF-PQ.
        """
        if self.manifest.search == "ivfpq":
            _verify_file(self.path, self.manifest, SEARCH)
            descriptors = self._verified_descriptors(np.empty(0, np.int64))
        else:
            descriptors = self._verified_descriptors(None)
        return open_search(self.manifest.search, descriptors, self.path / SEARCH, self._search_device, self._gpu)

    def _verified_descriptors(self, tile_ids: Int64 | None) -> Float32:
        return self.descriptors.verify(tile_ids).view(np.float32)

    def _row_range(self) -> tuple[int, int]:
        """First and last row of cells that hold tiles: the table is sorted by rows."""
        rows = (cell_keys(self.centres_m[[0, -1]], self.manifest.side_m) + 2**31) >> 32
        return int(rows[0]), int(rows[1])


def checked_descriptor(descriptor: npt.ArrayLike, k: int, width: int) -> Float32:
    """The query of a search for k tiles: float32 (width,), contiguous. Raises InputError for one that cannot be."""
    if k < 1:
        raise InputError(f"{k} candidates asked for, must be at least 1")
    query = np.ascontiguousarray(descriptor, np.float32)
    if query.shape != (width,):
        raise InputError(
            f"descriptor of shape {query.shape}, the index holds width {width}; use the model that made the index"
        )
    wrong = wrong_length(query[None])
    if wrong is not None:
        raise InputError(
            f"descriptor of length {wrong[1]}, must be finite and 1 to within {UNIT_LENGTH_TOLERANCE}; "
            "the image or the model is damaged"
        )
    return query


def open_index(
    path: Path | str,
    *,
    bundle: ModelBundle | None = None,
    verify: bool = False,
    search_device: str = "auto",
    gpu: int = 0,
) -> TileIndex:
    """Open an index folder.

    Args:
        path: The folder.
        bundle: The bundle that it must have been made with; None: any.
        verify: Read and check every file now, not when it is first used.
        search_device: "auto", "cpu" or "gpu": where the whole index is searched (`open_search`).
        gpu: Number of the GPU.

    Raises:
        IndexFormatError: the index is damaged, or was made with other weights than the bundle's.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if bundle is not None and bundle.manifest.weights_sha256 != manifest.weights_sha256:
        raise IndexFormatError(
            f"{folder}: made with the weights {manifest.weights_sha256[:12]}… of {manifest.model}, but the model is "
            f"{bundle.manifest.name} with {bundle.manifest.weights_sha256[:12]}…; give the index's model, or build the "
            "index again"
        )
    for name, record in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise IndexFormatError(f"{folder / name}: cannot be read ({error}); {_REMEDY}") from error
        if size != record.bytes:
            raise IndexFormatError(f"{folder / name}: {size} bytes, the manifest says {record.bytes}; {_REMEDY}")
    _verify_file(folder, manifest, TILES)
    index = TileIndex(folder, manifest, search_device, gpu)
    if verify:
        index.verify()
    return index


def _verify_file(folder: Path, manifest: IndexManifest, name: str) -> None:
    try:
        digest = sha256_of_file(folder / name)
    except OSError as error:
        raise IndexFormatError(f"{folder / name}: cannot be read ({error}); {_REMEDY}") from error
    if digest != manifest.files[name].sha256:
        raise IndexFormatError(
            f"{folder / name}: SHA-256 is {digest[:12]}…, the manifest says {manifest.files[name].sha256[:12]}…; "
            f"{_REMEDY}"
        )
