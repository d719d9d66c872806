"""The aerial pyramids of the tiles used last: what the decoder needs of a tile, kept where the engine made it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Mapping

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.inference.bundle import PYRAMID
from unifygeo_ros.inference.engine import Engine, ResidentArray

Pyramid = Mapping[str, ResidentArray]
"""The decoder's inputs pyramid0 … pyramid3, batch size 1."""


class PyramidCache:
    """Encodes tiles of an index and keeps the pyramids of the `capacity` tiles used last."""

    def __init__(self, index: MapIndex, aerial_encoder: Engine, capacity: int) -> None:
        self._index = index
        self._aerial_encoder = aerial_encoder
        self._capacity = capacity
        self._pyramids: OrderedDict[int, Pyramid] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pyramids)

    def __contains__(self, tile_id: int) -> bool:
        return tile_id in self._pyramids

    def pyramid(self, tile_id: int) -> Pyramid:
        """The pyramid of a tile, from the cache or by one aerial encoding."""
        if tile_id in self._pyramids:
            self._pyramids.move_to_end(tile_id)
            return self._pyramids[tile_id]
        image = self._index.tile_pixels(tile_id)[None]
        _, pyramid = self._aerial_encoder.run_resident({"image": image}, PYRAMID, ())
        self._pyramids[tile_id] = pyramid
        if len(self._pyramids) > self._capacity:
            self._pyramids.popitem(last=False)
        return pyramid
