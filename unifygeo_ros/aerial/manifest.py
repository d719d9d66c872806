"""The manifest of an index, and the layout of its files (docs/reference/index_format.md)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from unifygeo_ros.core.arrays import Float64, Int64
from unifygeo_ros.core.errors import IndexFormatError
from unifygeo_ros.core.geodesy import Datum
from unifygeo_ros.core.manifests import ManifestFormat

FORMAT = ManifestFormat("unifygeo-index", 1, "`unifygeo index build`", "build the index again", IndexFormatError)

MANIFEST = "manifest.json"
TILES = "tiles.bin"
DESCRIPTORS = "descriptors.f32"
MATCH_MAPS = "match_maps.f16"
PIXELS = "pixels.bin"
SEARCH = "search.faiss"
TILE_FILES = (TILES, DESCRIPTORS, MATCH_MAPS, PIXELS)
"""The files that grow by one record a tile. They have no header, so that they can be written as a stream and hashed on
the way; shapes and types are in the manifest. All numbers are little-endian."""

TILE_DTYPE = np.dtype(
    [
        ("east_m", "<f8"),
        ("north_m", "<f8"),
        ("cell", "<i8"),  # of the coarse grid, see cell_keys; the table is sorted by it
        ("pixels_offset", "<u8"),  # of the tile's PNG in pixels.bin
        ("pixels_bytes", "<u4"),
        ("descriptor_crc", "<u4"),  # CRC-32 of the tile's bytes in each file
        ("match_map_crc", "<u4"),
        ("pixels_crc", "<u4"),
    ]
)


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file of the index."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class IndexManifest:
    """The manifest of an index."""

    model: str
    """Name of the bundle that made the index."""
    weights_sha256: str
    """Checksum of the weights of the bundle that made the index."""
    encoder: str
    """Backend and precision."""
    datum: Datum
    """Origin of the map frame."""
    tiles: int
    skipped: int
    """Tiles left out as empty."""
    tile_size: int
    """Rows = columns."""
    metres_per_pixel: float
    stride_m: float | None
    """Distance of neighbouring tile centres, None where they lie as the data set has them."""
    minimum_coverage: float
    descriptor_dim: int
    match_size: int
    match_channels: int
    imagery: Mapping[str, Any]
    """The source's own words (kind, files, CRS, metres per pixel)."""
    search: str
    """The search: "exact" or "ivfpq"."""
    files: Mapping[str, FileRecord]
    format: str = FORMAT.name
    format_version: int = FORMAT.version

    @property
    def side_m(self) -> float:
        """Side of a tile, metres."""
        return self.tile_size * self.metres_per_pixel

    @property
    def attributions(self) -> tuple[str, ...]:
        """What the providers of the imagery ask to be named with, and the licences, as far as it is known."""
        stated = []
        for raster in self.imagery.get("rasters", [self.imagery]):
            texts = [str(raster[name]) for name in ("attribution", "licence") if raster.get(name)]
            stated += [", ".join(texts)] if texts else []
        return tuple(dict.fromkeys(stated))

    def to_json(self) -> str:
        """The text of manifest.json, with its checksum."""
        return FORMAT.text_of(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str) -> IndexManifest:
        """Parse and check. source: the file's name, for messages. Raises IndexFormatError."""
        raw = FORMAT.parse(text, source)
        FORMAT.check_fields(raw, cls, source)
        try:
            raw["datum"] = Datum(**raw["datum"])
            raw["files"] = {name: FileRecord(**record) for name, record in raw["files"].items()}
            manifest = cls(**raw)
            manifest._check()
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise IndexFormatError(f"{source}: malformed ({error}); build the index again") from error
        return manifest

    def _check(self) -> None:
        """Raises ValueError where the entries contradict each other."""
        if min(self.tiles, self.tile_size, self.descriptor_dim, self.match_size, self.match_channels) < 1:
            raise ValueError("a size or number of tiles below 1")
        if not (math.isfinite(self.metres_per_pixel) and self.metres_per_pixel > 0):
            raise ValueError(f"metres_per_pixel {self.metres_per_pixel}")
        if self.search not in ("exact", "ivfpq"):
            raise ValueError(f"search {self.search!r}")
        expected = {*TILE_FILES, *((SEARCH,) if self.search == "ivfpq" else ())}
        if set(self.files) != expected:
            raise ValueError(f"files {sorted(self.files)} instead of {sorted(expected)}")
        sizes = {
            TILES: TILE_DTYPE.itemsize * self.tiles,
            DESCRIPTORS: 4 * self.descriptor_dim * self.tiles,
            MATCH_MAPS: 2 * self.match_size**2 * self.match_channels * self.tiles,
        }
        for name, size in sizes.items():
            if self.files[name].bytes != size:
                raise ValueError(f"{name} of {self.files[name].bytes} bytes, {self.tiles} tiles take {size}")


def read_manifest(folder: Path) -> IndexManifest:
    """The manifest of an index folder. Raises IndexFormatError."""
    path = folder / MANIFEST
    return IndexManifest.from_json(FORMAT.read(path), str(path))


def cell_keys(centres_m: Float64, side_m: float) -> Int64:
    """Key of the coarse cell (one tile side wide) in which each centre (n, 2) lies.

    Keys grow with the cell's row (north), then its column (east), so that the tiles of a stretch of one row of cells
    are neighbours in the table. |row|, |column| < 2³¹.
    """
    column, row = np.floor(np.asarray(centres_m).T / side_m).astype(np.int64)
    return np.asarray(cell_key(row, column), np.int64)


def cell_key(row: Any, column: Any) -> Any:
    """Key of the cell (row, column); integers or int64 arrays."""
    return row * 2**32 + column
