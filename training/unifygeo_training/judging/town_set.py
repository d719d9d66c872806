"""A cached town as an evaluation set: half-overlapping tiles of its orthophoto against all its panoramas."""

from __future__ import annotations

import numpy as np

from unifygeo_ros.core.arrays import Float64, Int64, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_training.model import NetworkConfig
from unifygeo_training.towns.pairs import CachedTown

SEMI_POSITIVES = 3
"""A camera lies on up to four half-overlapping tiles."""


class TownImages:
    """An `EvaluationSet` of procedural towns.

    The gallery is a square grid of tiles half a side apart, row by row from the north-west (256 tiles of 70 m for a
    town of 600 m). The positive is the tile whose centre is nearest to the camera, in the larger of the two axes; the
    semi-positives are the other tiles that hold the camera.
    """

    def __init__(self, town: CachedTown, config: NetworkConfig) -> None:
        town.check_view(config.ground_height, config.ground_width)
        self.width = config.ground_width
        self.town, self.size, self.side = town, config.aerial_size, config.aerial.side_m
        stride = self.side / 2
        count = int((town.record.size_m - self.side) / stride + 1e-9) + 1
        along = self.side / 2 + stride * np.arange(count)
        # Row 0 of the grid is the northern one.
        self.centres = np.stack(np.meshgrid(along, along[::-1]), axis=-1).reshape(-1, 2)
        distance = np.abs(town.positions[:, None] - self.centres).max(axis=2)  # (n, m), Chebyshev
        self._tiles = np.argsort(distance, axis=1, kind="stable")[:, : 1 + SEMI_POSITIVES]
        outside = np.take_along_axis(distance, self._tiles, axis=1) > self.side / 2
        if outside[:, 0].any():
            raise InputError(f"town {town.record.seed}: {int(outside[:, 0].sum())} cameras lie on no tile of the grid")
        self._tiles[outside] = -1

    @property
    def name(self) -> str:
        return f"town {self.town.record.seed}"

    @property
    def tiles(self) -> Int64:
        return self._tiles

    @property
    def offsets_m(self) -> Float64:
        return self.town.positions - self.centres[self._tiles[:, 0]]

    @property
    def side_m(self) -> Float64:
        return np.full(len(self.centres), self.side)

    def ground_image(self, query: int) -> UInt8:
        return self.town.panorama(query, self.width)

    def aerial_image(self, tile: int) -> UInt8:
        east_m, north_m = self.centres[tile]
        return self.town.tile(0, east_m, north_m, self.size, self.side)

    def displacement_m(self, start: Int64, end: Int64) -> Float64:
        return self.centres[end] - self.centres[start]
