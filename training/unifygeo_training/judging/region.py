"""A small part of a data set as a robot meets it: neighbouring tiles, and the panoramas taken on them."""

from __future__ import annotations

import numpy as np

from unifygeo_ros.core.arrays import Float64, Int64, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_training.judging.evaluation_set import JudgedSplit


class Region:
    """An `EvaluationSet`: the tiles of one city that are nearest to a random query's positive, and queries on them.

    rows, queries: int64 (m,), (n,), the numbers of its tiles and queries in the whole split.
    """

    def __init__(self, data: JudgedSplit, *, tiles: int, queries: int, seed: int) -> None:
        """queries: at most so many, drawn at random. Raises InputError where the split tells no positions."""
        split = data.split
        if not (np.isfinite(data.offsets_m).all() and np.isfinite(split.gallery_lat_lon).all()):
            raise InputError(f"{data.name} tells no positions: nothing can be calibrated on it; use VIGOR or towns")
        rng = np.random.default_rng(seed)
        centre = int(split.positives[rng.integers(len(split.positives))])
        of_city = np.array([file.parent == split.gallery[centre].parent for file in split.gallery])
        apart_m = np.hypot(*data.displacement_m(np.full(len(of_city), centre), np.arange(len(of_city))).T)
        self.data = data
        self.rows = np.sort(np.argsort(np.where(of_city, apart_m, np.inf), kind="stable")[: min(tiles, of_city.sum())])
        inside = np.flatnonzero(np.isin(split.positives, self.rows))
        self.queries = np.sort(rng.permutation(inside)[:queries])
        new_row = np.full(len(of_city) + 1, -1)  # the last entry is NO_TILE's
        new_row[self.rows] = np.arange(len(self.rows))
        self._tiles = new_row[data.tiles[self.queries]]
        self._centre_deg = split.gallery_lat_lon[centre]

    @property
    def name(self) -> str:
        latitude, longitude = self._centre_deg
        return (
            f"{self.data.name}, {len(self.queries)} queries on the {len(self.rows)} tiles around "
            f"{latitude:.4f}, {longitude:.4f}"
        )

    @property
    def tiles(self) -> Int64:
        return self._tiles

    @property
    def offsets_m(self) -> Float64:
        return self.data.offsets_m[self.queries]

    @property
    def side_m(self) -> Float64:
        return self.data.side_m[self.rows]

    def ground_image(self, query: int) -> UInt8:
        return self.data.ground_image(int(self.queries[query]))

    def aerial_image(self, tile: int) -> UInt8:
        return self.data.aerial_image(int(self.rows[tile]))

    def displacement_m(self, start: Int64, end: Int64) -> Float64:
        return self.data.displacement_m(self.rows[start], self.rows[end])
