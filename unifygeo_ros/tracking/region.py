"""The region that an index covers, as the tracker sees it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.core.arrays import Bool, Float64
from unifygeo_ros.core.geodesy import LocalFrame

if TYPE_CHECKING:
    from scipy.spatial import cKDTree


@dataclass(frozen=True)
class Region:
    """What the tracker knows of the index."""

    frame: LocalFrame
    area_m2: float
    """Area that the index covers."""
    tile_side_m: float
    centres_m: Float64
    """float64 (n, 2), east and north of the tiles' centres."""

    def covers(self, positions_m: Float64) -> Bool:
        """Which positions, float64 (N, 2), lie on a tile: bool (N,)."""
        distance_m, _ = self._centres.query(positions_m, p=np.inf, distance_upper_bound=self.tile_side_m / 2)
        return np.asarray(np.isfinite(distance_m))

    def prepare(self) -> None:
        """Do now what the first `covers` would do, which takes a second of its image otherwise."""
        _ = self._centres

    @functools.cached_property
    def _centres(self) -> cKDTree:
        # Half a second of processor time, with what SciPy imports of NumPy: for who follows a track alone.
        from scipy.spatial import cKDTree

        return cKDTree(np.asarray(self.centres_m, np.float64))

    @functools.cached_property
    def moments(self) -> tuple[Float64, Float64]:
        """Mean, float64 (2,), and covariance, float64 (2, 2), of a position of which only the region is known."""
        centres = np.asarray(self.centres_m, np.float64)
        offsets = centres - centres.mean(0)
        within_tile = self.tile_side_m**2 / 12 * np.eye(2)
        return centres.mean(0), offsets.T @ offsets / len(centres) + within_tile

    @property
    def border_rate_per_m(self) -> float:
        """How often a vehicle that may be anywhere in the region crosses its border, per metre: perimeter / (π · area).

        So it is for a straight way through a convex region (Cauchy and Crofton), here a square.
        """
        return 4 / (math.pi * math.sqrt(self.area_m2))


def region_of(index: MapIndex) -> Region:
    """What the tracker needs of an index or a region of several."""
    return Region(index.frame, index.area_m2, index.manifest.side_m, index.centres_m)
