"""What every data set becomes: queries, a gallery, and where each query lies on its tiles."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unifygeo_ros.core.arrays import Float64, Int64
from unifygeo_ros.core.errors import InputError

NO_TILE = -1
"""Place-holder in `CrossViewSplit.tiles` where a query has fewer semi-positives than others."""
METRES_PER_DEGREE = 111_320.0
"""Of latitude, and of longitude on the equator: the sphere that VIGOR's coordinates are compared on."""


@dataclass(frozen=True)
class CrossViewSplit:
    """One split of a cross-view data set: n queries against a gallery of m tiles."""

    name: str
    ground: tuple[Path, ...]
    """n panorama files, centre column facing north."""
    gallery: tuple[Path, ...]
    """m aerial files, north up, square."""
    tiles: Int64
    """int64 (n, 1 + s), gallery rows; column 0 the positive, the others the semi-positives or NO_TILE."""
    offsets_px: Float64
    """float64 (n, 1 + s, 2), the camera relative to the centre of each of those tiles as (down, right), in pixels of
    tile_size; NaN where the tile is NO_TILE. A camera may lie outside a tile that is labelled semi-positive."""
    tile_size: int
    """Rows = columns of the aerial files."""
    metres_per_pixel: Float64
    """float64 (m,), at tile_size; NaN where unknown."""
    gallery_lat_lon: Float64
    """float64 (m, 2) degrees, tile centres."""
    ground_lat_lon: Float64
    """float64 (n, 2); NaN where unknown."""
    ground_top_rad: float = math.pi / 2
    """Elevations of the upper and lower edge of the panorama files."""
    ground_bottom_rad: float = -math.pi / 2
    """Elevations of the upper and lower edge of the panorama files."""

    @property
    def positives(self) -> Int64:
        """int64 (n,): gallery row of each query's positive."""
        return self.tiles[:, 0]

    @property
    def semi_positives(self) -> Int64:
        """int64 (n, s): gallery rows of each query's semi-positives, NO_TILE where there is none."""
        return self.tiles[:, 1:]

    def without_missing(self) -> CrossViewSplit:
        """The same without the queries whose panorama or positive is not on disk, and without missing tiles.

        A missing semi-positive becomes NO_TILE. The name tells how many are left out. Raises InputError if nothing is
        left.
        """
        tile_exists = np.array([file.is_file() for file in self.gallery], bool)
        kept = np.array([file.is_file() for file in self.ground], bool) & tile_exists[self.positives]
        queries, tiles = len(kept) - int(kept.sum()), len(tile_exists) - int(tile_exists.sum())
        if not queries and not tiles:
            return self
        if not kept.any():
            raise InputError(f"{self.name}: no query has both its images; complete the data set")
        new_row = np.append(np.where(tile_exists, np.cumsum(tile_exists) - 1, NO_TILE), NO_TILE)
        renamed = new_row[self.tiles[kept]]  # NO_TILE, −1, is the last entry
        return dataclasses.replace(
            self,
            name=f"{self.name}, without {queries} queries and {tiles} tiles that are missing",
            ground=tuple(itertools.compress(self.ground, kept)),
            gallery=tuple(itertools.compress(self.gallery, tile_exists)),
            tiles=renamed,
            offsets_px=np.where(renamed[..., None] == NO_TILE, np.nan, self.offsets_px[kept]),
            metres_per_pixel=self.metres_per_pixel[tile_exists],
            gallery_lat_lon=self.gallery_lat_lon[tile_exists],
            ground_lat_lon=self.ground_lat_lon[kept],
        )
