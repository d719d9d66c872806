"""The aerial imagery under a drive: north-up tiles with any centre, out of an index or out of imagery files."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from unifygeo_ros.aerial.imagery import TileImage
from unifygeo_ros.aerial.index import TileIndex, open_index
from unifygeo_ros.aerial.raster import RasterTiles
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.aerial.sources import open_imagery
from unifygeo_ros.core.arrays import Float64, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.inference.bundle import AerialSpec

RESOLUTION_TOLERANCE = 0.01
"""Relative difference between an index's metres per pixel and the network's that does not matter."""
CACHED_TILES = 512
"""Tiles of an index that stay decoded."""


class Ground(Protocol):
    """Imagery of one region in one map frame. Tiles may be cut by several processes."""

    @property
    def name(self) -> str:
        """For messages; equal for drives over the same imagery."""
        ...

    @property
    def frame(self) -> LocalFrame: ...

    @property
    def aerial(self) -> AerialSpec:
        """Size of the tiles."""
        ...

    def snapped(self, centre_m: Float64) -> Float64:
        """The nearest centre, float64 (2,), at which a tile needs no resampling."""
        ...

    def cut(self, centre_m: Float64) -> TileImage:
        """The tile with a centre that `snapped` gave."""
        ...


class ImageryGround:
    """Imagery files, cut by the code that builds indexes."""

    def __init__(self, sources: Sequence[Path], aerial: AerialSpec) -> None:
        """Raises InputError for imagery that is missing, too coarse, or has tiles of its own (VIGOR)."""
        imagery = open_imagery(sources)
        self.name = ", ".join(str(source) for source in sources)
        self.frame = LocalFrame(Datum(*imagery.centre_deg()))
        self.aerial = aerial
        tiles = imagery.tiles(self.frame, aerial, 1.0)
        if not isinstance(tiles, RasterTiles):
            raise InputError(
                f"{self.name}: its tiles come ready and cannot be cut anywhere; give GeoTIFFs or web tiles"
            )
        self._tiles = tiles

    def snapped(self, centre_m: Float64) -> Float64:
        return np.asarray(centre_m, np.float64)

    def cut(self, centre_m: Float64) -> TileImage:
        return self._tiles.at(*np.asarray(centre_m, np.float64).tolist())


class IndexGround:
    """The tiles of an index, laid beside each other."""

    def __init__(self, folder: Path, aerial: AerialSpec | None) -> None:
        """Open the imagery that drives are learnt on.

        With aerial None, the network takes whatever the index holds. Raises InputError where they differ, and
        IndexFormatError for a damaged index.
        """
        index = open_index(folder)
        own = AerialSpec(index.tile_size, index.metres_per_pixel)
        if aerial is not None and (
            own.size != aerial.size or abs(own.metres_per_pixel / aerial.metres_per_pixel - 1) > RESOLUTION_TOLERANCE
        ):
            raise InputError(
                f"{folder}: tiles of {own.size} pixels at {own.metres_per_pixel:.4g} m, the network takes "
                f"{aerial.size} at {aerial.metres_per_pixel:.4g} m; give the imagery in place of the index"
            )
        self.name, self.frame, self.aerial = str(folder), index.frame, own
        self._index = index

    def snapped(self, centre_m: Float64) -> Float64:
        """A whole number of pixels from the nearest tile of the index."""
        centre = np.asarray(centre_m, np.float64)
        nearest = self._index.centres_m[np.abs(self._index.centres_m - centre).max(axis=1).argmin()]
        pixel_m = self.aerial.metres_per_pixel
        return np.asarray(nearest + np.rint((centre - nearest) / pixel_m) * pixel_m)

    def cut(self, centre_m: Float64) -> TileImage:
        """Where tiles overlap, the one with the nearest centre counts."""
        size, pixel_m = self.aerial.size, self.aerial.metres_per_pixel
        away = self._index.centres_m - np.asarray(centre_m, np.float64)  # (n, 2)
        distance = np.abs(away).max(axis=1)
        touching = np.flatnonzero(distance < size * pixel_m)
        pixels, valid = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.bool_)
        for tile in touching[np.argsort(distance[touching], kind="stable")].tolist():
            right, up = np.rint(away[tile] / pixel_m).astype(int).tolist()
            ours, theirs = _overlap(-up, right, size)
            source = _tile_pixels(self._index, tile)[theirs]
            new = ~valid[ours] & source.any(axis=2)  # black where the imagery knows nothing
            pixels[ours][new] = source[new]
            valid[ours] |= new
            if valid.all():
                break
        return TileImage(pixels, valid)


def open_ground(index: Path | None, imagery: Sequence[Path], aerial: AerialSpec | None) -> Ground:
    """The ground of a drive. aerial: of the network; needed for imagery files, which have no tiles yet."""
    if index is not None:
        return IndexGround(index, aerial)
    if aerial is None:
        raise InputError(
            f"{imagery[0]}: say how large the network's tiles are by --model BUNDLE or --network FILE.yaml"
        )
    return ImageryGround(imagery, aerial)


def is_known(tile: TileImage) -> bool:
    """Whether enough of a tile is known for an index to hold it."""
    return float(tile.valid.mean()) >= BuildSettings().minimum_coverage


@functools.lru_cache(maxsize=CACHED_TILES)
def _tile_pixels(index: TileIndex, tile: int) -> UInt8:
    return index.tile_pixels(tile)


def _overlap(down: int, right: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """What a tile shares with another of the same size that lies some pixels down and right of it: in both."""

    def spans(shift: int) -> tuple[slice, slice]:
        return slice(max(0, shift), min(size, size + shift)), slice(max(0, -shift), min(size, size - shift))

    rows, columns = spans(down), spans(right)
    return (rows[0], columns[0]), (rows[1], columns[1])
