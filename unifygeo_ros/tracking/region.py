"""The region that an index covers, as the tracker sees it."""

from __future__ import annotations

from dataclasses import dataclass

from unifygeo_ros.aerial.index import TileIndex
from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.geodesy import LocalFrame


@dataclass(frozen=True)
class Region:
    """What the tracker knows of the index."""

    frame: LocalFrame
    area_m2: float
    """Area that the index covers."""
    tile_side_m: float
    centres_m: Float64
    """float64 (n, 2), east and north of the tiles' centres."""


def region_of(index: TileIndex) -> Region:
    """Each tile adds its stride² to the area; tiles that lie as a data set has them are taken as half overlapping."""
    side_m = index.manifest.side_m
    stride_m = index.manifest.stride_m or side_m / 2
    return Region(index.frame, len(index) * stride_m**2, side_m, index.centres_m)
