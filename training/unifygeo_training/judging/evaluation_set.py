"""What can be judged: queries, a gallery of tiles, the truth, and images of the network's size."""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np
import pyproj

from unifygeo_ros.core.arrays import Float64, Int64, UInt8
from unifygeo_training.data.split_images import SplitImages


class EvaluationSet(Protocol):
    """n queries against m north-up tiles.

    tiles: int64 (n, 1 + s): the positive, then semi-positives or −1. offsets_m: float64 (n, 2), the camera east and
    north of its positive's centre; NaN where the data set does not tell, and then nothing metric is judged.
    side_m: float64 (m,), length of the tiles' sides.
    """

    @property
    def name(self) -> str: ...
    @property
    def tiles(self) -> Int64: ...
    @property
    def offsets_m(self) -> Float64: ...
    @property
    def side_m(self) -> Float64: ...

    def ground_image(self, query: int) -> UInt8:
        """uint8 (H, W, 3) RGB of the network's ground size, centre column facing north."""
        ...

    def aerial_image(self, tile: int) -> UInt8:
        """uint8 (L, L, 3) RGB of the network's aerial size."""
        ...

    def displacement_m(self, start: Int64, end: Int64) -> Float64:
        """East and north from the centres of tiles to the centres of others: int64 (n,) each → float64 (n, 2)."""
        ...


class JudgedSplit(SplitImages):
    """A `CrossViewSplit` on disk as an `EvaluationSet`."""

    @property
    def name(self) -> str:
        return self.split.name

    @property
    def tiles(self) -> Int64:
        return self.split.tiles

    @functools.cached_property
    def offsets_m(self) -> Float64:
        down_right = self.split.offsets_px[:, 0] * self.split.metres_per_pixel[self.split.positives, None]
        return np.stack([down_right[:, 1], -down_right[:, 0]], axis=1)

    @property
    def side_m(self) -> Float64:
        return self.split.metres_per_pixel * self.split.tile_size

    def displacement_m(self, start: Int64, end: Int64) -> Float64:
        a, b = self.split.gallery_lat_lon[start], self.split.gallery_lat_lon[end]
        azimuth_deg, _, distance_m = pyproj.Geod(ellps="WGS84").inv(a[:, 1], a[:, 0], b[:, 1], b[:, 0])
        azimuth = np.radians(azimuth_deg)
        return np.stack([np.sin(azimuth), np.cos(azimuth)], axis=1) * np.asarray(distance_m)[:, None]
