"""The tiles of an index whose features need not be computed again."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from unifygeo_ros.aerial.index import TileIndex
from unifygeo_ros.core.arrays import Float16, Float32, Float64, Int64, UInt8


class KnownTiles:
    """The tiles of an index, by their numbers in a new plan. Safe for use from several threads."""

    def __init__(self, index: TileIndex, centres_m: Float64) -> None:
        """centres_m: float64 (n, 2), the plan's tile centres, in the map frame of the index."""
        self._index = index
        known, wanted = (np.ascontiguousarray(centres).view(np.complex128).ravel()
                         for centres in (np.asarray(index.centres_m), centres_m))  # fmt: skip
        order = np.argsort(known, kind="stable")
        places = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
        self._tile_ids = np.where(known[places] == wanted, places, -1)

    @property
    def tile_ids(self) -> Int64:
        """int64 (k,): the index's tiles at whose places the plan has tiles."""
        return np.asarray(self._tile_ids[self._tile_ids >= 0], np.int64)

    def find(self, number: int, pixels: UInt8) -> int | None:
        """The index's tile with the place of tile `number` of the plan and with these pixels, uint8 (L, L, 3).

        None where it has none. Raises IndexFormatError.
        """
        tile_id = int(self._tile_ids[number])
        if tile_id < 0 or not np.array_equal(self._index.tile_pixels(tile_id), pixels):
            return None
        return tile_id

    def features(self, tile_ids: Sequence[int]) -> tuple[Float32, Float16]:
        """Descriptors, float32 (n, C), and match maps, float16 (n, S, S, C_0). Raises IndexFormatError."""
        return (
            np.asarray(self._index.descriptors[tile_ids], np.float32),
            np.asarray(self._index.match_maps[tile_ids], np.float16),
        )
