"""A region: several indexes as one, in one map frame, of which only those near the vehicle are open.

Every index was built in a map frame of its own, about its own datum. A region has one datum, and its map frame is the
plane about it. Centres of tiles are brought there through WGS84, exactly. What is left is that the tiles of an index
are turned in the region's map, by the angle between the norths of the two datums: `tile_yaw_rad`, which the localizer
takes into account. Lengths in the plane are shorter than on the ground by d²/2R², at most 0.11% at `REGION_RANGE_M`.

The positions of all tiles are in memory, 16 bytes each. Descriptors, match maps and pixels are mapped while their index
is open. An index is opened when a search comes within `AHEAD_M` of it, or when one of its tiles is asked for; beyond
`MOST_OPEN`, or as many as are near the last search, the one used longest ago is closed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import yaml

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.index import TileIndex, checked_descriptor, open_index
from unifygeo_ros.aerial.manifest import MANIFEST, IndexManifest
from unifygeo_ros.aerial.map_index import MapIndex, TileRows
from unifygeo_ros.aerial.search import ExactSearch, nearest_among
from unifygeo_ros.aerial.settings import SEARCH_DEVICES
from unifygeo_ros.core.arrays import Array, Float32, Float64, Int64, UInt8
from unifygeo_ros.core.errors import ConfigurationError, IndexFormatError, InputError
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.core.records import Candidates
from unifygeo_ros.inference.bundle import ModelBundle

logger = logging.getLogger(__name__)

REGION_RANGE_M = 300_000.0
"""Largest distance of a tile from the datum of a region."""

AHEAD_M = 1000.0
"""An index this near to the place of a search is opened: before the vehicle reaches it."""

MOST_OPEN = 4
"""Indexes that are open at a time, where no more are near the place of the last search."""

_BLOCK = 4096
"""Tiles that a search of the whole region compares at once."""


@dataclass(frozen=True)
class _Part:
    """One index of a region."""

    path: Path
    first: int
    """Number in the region of its first tile."""
    count: int
    box_m: tuple[float, float, float, float]
    """West, south, east and north of its tiles' squares, in the region's map."""
    yaw_rad: float
    """Yaw of its tiles' eastward axis in the region's map."""


class RegionIndex:
    """Several indexes as one `MapIndex`. Tiles are numbered through, index by index."""

    def __init__(
        self, path: Path, paths: Sequence[Path], datum: Datum | None, reopen: Callable[[Path], TileIndex]
    ) -> None:
        """Look into each index once.

        Args:
            path: Where the region is described.
            paths: Folders of its indexes, at least one.
            datum: None: the first index's.
            reopen: Opens an index, now and later.

        Raises:
            ConfigurationError: The indexes do not fit together.
            IndexFormatError: One is damaged.
        """
        self.path = path
        self._reopen = reopen
        self._open: OrderedDict[int, TileIndex] = OrderedDict()
        self._near = 0  # indexes near the place of the last search
        self._lock = threading.RLock()
        self._verified: dict[int, Any] = {}  # which descriptors of an index were verified, while it is closed
        manifests: list[IndexManifest] = []
        centres: list[Float64] = []
        parts: list[_Part] = []
        checksums: list[str] = []
        self.area_m2 = 0.0
        for folder in paths:
            index = reopen(folder)  # one at a time: there may be more of them than files may be open
            if not manifests:
                datum = datum or index.manifest.datum
                self.frame = LocalFrame(datum, REGION_RANGE_M)
            else:
                _check_alike(paths[0], manifests[0], folder, index.manifest)
            manifests.append(index.manifest)
            centres.append(self._to_map(index))
            parts.append(self._part(index, centres[-1], sum(part.count for part in parts)))
            checksums.append(index.checksum)
            self.area_m2 += index.area_m2
        first = manifests[0]
        self._parts = tuple(parts)
        self._firsts = np.array([part.first for part in parts], np.int64)
        self._boxes_m = np.array([part.box_m for part in parts])
        self.centres_m: Float64 = np.concatenate(centres)
        self.centres_m.setflags(write=False)
        self.checksum = hashlib.sha256("\n".join([repr(datum), *checksums]).encode()).hexdigest()
        self._kinds = " and ".join(sorted({manifest.search for manifest in manifests}))
        strides = {manifest.stride_m for manifest in manifests}
        self.manifest = dataclasses.replace(
            first,
            encoder=", ".join(dict.fromkeys(manifest.encoder for manifest in manifests)),
            datum=self.frame.datum,
            tiles=len(self.centres_m),
            skipped=sum(manifest.skipped for manifest in manifests),
            stride_m=first.stride_m if len(strides) == 1 else None,
            imagery={
                "rasters": [
                    raster for manifest in manifests for raster in manifest.imagery.get("rasters", [manifest.imagery])
                ]
            },
            search="exact",
            files={},
        )
        size = first.match_size
        self.descriptors = _RegionRows(self, (first.descriptor_dim,), lambda index: index.descriptors)
        self.match_maps = _RegionRows(self, (size, size, first.match_channels), lambda index: index.match_maps)

    def __len__(self) -> int:
        return len(self.centres_m)

    @property
    def indexes(self) -> tuple[Path, ...]:
        """Folders of the indexes."""
        return tuple(part.path for part in self._parts)

    @property
    def open_indexes(self) -> tuple[Path, ...]:
        """Folders of those that are open."""
        with self._lock:
            return tuple(self._parts[number].path for number in self._open)

    @property
    def tile_size(self) -> int:
        return self.manifest.tile_size

    @property
    def metres_per_pixel(self) -> float:
        return self.manifest.metres_per_pixel

    @property
    def search_description(self) -> str:
        return f"{self._kinds}, index by index ({len(self._parts)}), CPU"

    def tile_yaw_rad(self, tile_id: int) -> float:
        return self._parts[self._number_of(tile_id)].yaw_rad

    def yaw_at_rad(self, east_m: float, north_m: float) -> float:
        place = np.array([east_m, north_m])
        outside = np.maximum(self._boxes_m[:, :2] - place, place - self._boxes_m[:, 2:])
        return self._parts[int(np.maximum(outside, 0.0).max(axis=-1).argmin())].yaw_rad

    def tile_pixels(self, tile_id: int) -> UInt8:
        number = self._number_of(tile_id)
        return self._opened(number).tile_pixels(tile_id - self._parts[number].first)

    def tiles_within(self, gate: Gate) -> Int64:
        mean = np.array([gate.prior.east_m, gate.prior.north_m])
        side = self.manifest.side_m
        reach = np.array(gate.half_extents_m) + side / 2 * (1 + 1e-9)
        found = [np.empty(0, np.int64)]
        for number in self._parts_near(mean, np.array(gate.half_extents_m)):
            part = self._parts[number]
            centres = self.centres_m[part.first : part.first + part.count]
            near = np.flatnonzero(np.all(np.abs(centres - mean) <= reach, axis=1))
            found.append(part.first + near[gate.touches(centres[near], side)])
        return np.concatenate(found)

    def search(self, descriptor: npt.ArrayLike, k: int, gate: Gate | None = None) -> Candidates:
        query = checked_descriptor(descriptor, k, self.manifest.descriptor_dim)
        if gate is None:
            return self._search_all(query, k)
        self._open_ahead(np.array([gate.prior.east_m, gate.prior.north_m]))
        tile_ids = self.tiles_within(gate)
        found = nearest_among(np.asarray(self.descriptors[tile_ids], np.float32), np.arange(len(tile_ids)), query, k)
        return Candidates(tile_ids[found.tile_ids], found.similarities)

    def open_gpu_search(self) -> None:
        """Nothing: a region is searched on the CPU, index by index."""

    def prepare_search(self) -> None:
        """Nothing: its indexes are read block by block, and closed again."""

    def close_search(self) -> None:
        """Close all indexes."""
        with self._lock:
            self._open.clear()

    def verify(self) -> None:
        """Read every file of every index and compare it with the manifests. Raises IndexFormatError."""
        for number in range(len(self._parts)):
            self._opened(number).verify()

    def _search_all(self, query: Float32, k: int) -> Candidates:
        tile_ids, similarities = np.empty(0, np.int64), np.empty(0, np.float32)
        for number, part in enumerate(self._parts):
            for found in _searched(self._opened(number), query, k):
                tile_ids = np.concatenate([tile_ids, part.first + found.tile_ids])
                similarities = np.concatenate([similarities, found.similarities])
                best = np.argsort(-similarities, kind="stable")[:k]
                tile_ids, similarities = tile_ids[best], similarities[best]
        return Candidates(tile_ids, similarities)

    def _number_of(self, tile_id: int) -> int:
        if not 0 <= tile_id < len(self):
            raise IndexError(f"tile {tile_id} of {len(self)}")
        return int(np.searchsorted(self._firsts, tile_id, side="right")) - 1

    def _parts_near(self, mean_m: Float64, reach_m: Float64) -> list[int]:
        """Indexes whose box touches a box."""
        low, high = mean_m - reach_m, mean_m + reach_m
        touched = np.all((self._boxes_m[:, :2] <= high) & (low <= self._boxes_m[:, 2:]), axis=1)
        return [int(number) for number in np.flatnonzero(touched)]

    def _open_ahead(self, mean_m: Float64) -> None:
        near = self._parts_near(mean_m, np.full(2, AHEAD_M))
        with self._lock:
            self._near = len(near)
            for number in near:
                self._opened(number)

    def _opened(self, number: int) -> TileIndex:
        with self._lock:
            if number not in self._open:
                while len(self._open) >= max(MOST_OPEN, self._near):
                    _, oldest = self._open.popitem(last=False)
                    logger.info("%s: closed", oldest.path)
                index = self._reopen(self._parts[number].path)
                if len(index) != self._parts[number].count:
                    raise IndexFormatError(f"{index.path}: is another index than at the start; start again")
                logger.info("%s: opened", index.path)
                index.descriptors.verified = self._verified.setdefault(number, index.descriptors.verified)
                self._open[number] = index
            self._open.move_to_end(number)
            return self._open[number]

    def _to_map(self, index: TileIndex) -> Float64:
        """Centres of an index's tiles in the region's map. Raises ConfigurationError beyond its range."""
        if index.manifest.datum == self.frame.datum:
            return np.array(index.centres_m)
        geodetic = index.frame.geodetic_from_map(index.centres_m[:, 0], index.centres_m[:, 1])
        centres = self.frame.map_from_geodetic(geodetic[:, 0], geodetic[:, 1])
        farthest = float(np.max(np.hypot(*centres.T)))
        if not farthest <= REGION_RANGE_M:
            datum = self.frame.datum
            raise ConfigurationError(
                f"{index.path}: reaches {farthest / 1e3:.0f} km from the region's datum ({datum.latitude_deg:.5f}, "
                f"{datum.longitude_deg:.5f}), the map of a region {REGION_RANGE_M / 1e3:.0f} km; give the region "
                "a datum in its middle, or make two regions"
            )
        return centres

    def _part(self, index: TileIndex, centres_m: Float64, first: int) -> _Part:
        half = index.manifest.side_m / 2
        low, high = centres_m.min(axis=0) - half, centres_m.max(axis=0) + half
        yaw = 0.0
        if index.manifest.datum != self.frame.datum:
            east_m, north_m = index.centres_m[len(index) // 2]
            geodetic = index.frame.geodetic_from_map([east_m - half, east_m + half], [north_m, north_m])
            east, north = np.diff(self.frame.map_from_geodetic(geodetic[:, 0], geodetic[:, 1]), axis=0)[0]
            yaw = float(np.arctan2(north, east))
        box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        return _Part(index.path, first, len(index), box, yaw)


def _searched(index: TileIndex, query: Float32, k: int) -> Iterator[Candidates]:
    """The nearest tiles of an index, by its own kind of search.

    One that is searched exactly is read block by block, so that no more than a block of descriptors is in memory.
    """
    if index.manifest.search == "ivfpq":
        yield index.search(query, k)
        return
    for start in range(0, len(index), _BLOCK):
        rows = np.asarray(index.descriptors[start : start + _BLOCK], np.float32)
        found = ExactSearch(rows).nearest(query, min(k, len(rows)))
        yield Candidates(start + found.tile_ids, found.similarities)


class _RegionRows:
    """Rows of tiles of any of the indexes."""

    def __init__(self, region: RegionIndex, shape: tuple[int, ...], rows_of: Callable[[TileIndex], TileRows]) -> None:
        """shape: of a row."""
        self._region = region
        self._shape = shape
        self._rows_of = rows_of

    def __getitem__(self, tile_ids: int | np.integer | Sequence[int] | Int64) -> Array:
        ids = np.asarray(tile_ids, np.int64)
        if ids.ndim == 0:
            return np.asarray(self[ids[None]][0])
        found: Array | None = None
        region = self._region
        numbers = np.searchsorted(region._firsts, ids, side="right") - 1
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            rows = self._rows_of(region._opened(number))[ids[places] - region._parts[number].first]
            if found is None:
                found = np.empty((len(ids), *rows.shape[1:]), rows.dtype)
            found[places] = rows
        return np.empty((0, *self._shape), np.float32) if found is None else found


def open_map(
    path: Path | str,
    *,
    bundle: ModelBundle | None = None,
    verify: bool = False,
    search_device: str = "auto",
    gpu: int = 0,
) -> MapIndex:
    """Open an index, or a region of several.

    Args:
        path: Folder of an index; folder of folders of indexes, whose datum is that of the first by name; or a YAML file
            with `datum: [latitude, longitude]` or `[latitude, longitude, height]` and `indexes`, a list of folders or
            patterns, relative to the file.
        bundle: The bundle that they must have been made with; None: any.
        verify: Read and check every file now, not when it is first used.
        search_device: "auto", "cpu" or "gpu": where a single index is searched; a region is searched on the CPU.
        gpu: Number of the GPU.

    Raises:
        ConfigurationError: The region is described wrongly, or its indexes do not fit together.
        IndexFormatError: An index is damaged, or was made with other weights than the bundle's.
    """
    folder = Path(path)
    if (folder / MANIFEST).exists() or not folder.exists():
        return open_index(folder, bundle=bundle, verify=verify, search_device=search_device, gpu=gpu)
    datum, paths = _read_region(folder) if folder.is_file() else (None, list(_indexes_in(folder)))
    if not paths:
        return open_index(folder, bundle=bundle)  # for its error
    if search_device not in SEARCH_DEVICES or search_device == "gpu":
        raise ConfigurationError(
            f"index_search is {search_device!r}: a region is searched on the CPU; choose auto or cpu"
        )

    def reopen(index: Path) -> TileIndex:
        return open_index(index, bundle=bundle, search_device="cpu")

    region = RegionIndex(folder, paths, datum, reopen)
    if verify:
        region.verify()
    return region


def _indexes_in(folder: Path) -> Iterator[Path]:
    try:
        for item in sorted(folder.iterdir()):
            if item.suffix != ".partial" and (item / MANIFEST).exists():
                yield item
    except OSError as error:
        raise ConfigurationError(f"{folder}: cannot be looked through ({error}); give a folder that can") from error


def _read_region(path: Path) -> tuple[Datum | None, list[Path]]:
    """Datum and folders of a region's YAML file."""
    form = "it must hold `datum: [latitude, longitude]` and `indexes: [folder, …]`"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: cannot be read ({' '.join(str(error).split())}); {form}") from error
    if not isinstance(content, dict) or set(content) - {"datum", "indexes"} or not content.get("indexes"):
        raise ConfigurationError(f"{path}: is no region; {form}")
    paths: list[Path] = []
    for name in content["indexes"]:
        found = sorted(path.parent.glob(str(name))) if not Path(str(name)).is_absolute() else [Path(str(name))]
        if not found:
            raise ConfigurationError(f"{path}: there is no index {name} beside it; check the name")
        paths.extend(index for index in found if index not in paths)
    try:
        datum = Datum(*map(float, content["datum"])) if "datum" in content else None
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}: its datum is {content['datum']!r}; {form}") from error
    except InputError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return datum, paths


def _check_alike(one: Path, manifest: IndexManifest, other: Path, its_manifest: IndexManifest) -> None:
    for name in ("weights_sha256", "tile_size", "metres_per_pixel"):
        values = [getattr(manifest, name), getattr(its_manifest, name)]
        if values[0] != values[1]:
            raise ConfigurationError(
                f"{one} and {other} are no region: {name} is {values[0]} and {values[1]}; build both with one model"
            )
