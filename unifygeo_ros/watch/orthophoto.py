"""The index's imagery as map tiles: squares of 256 pixels in levels of halved resolution, made when they are asked for.

Tile (x, y) of a level covers the square from x · S to (x + 1) · S east and y · S to (y + 1) · S north, where S is 256
pixels of that level.
"""

from __future__ import annotations

import functools
import math
import secrets
import threading
from typing import Any

import cv2
import numpy as np

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.aerial.mosaic import Extent, mosaic
from unifygeo_ros.core.errors import IndexFormatError

TILE_PIXELS = 256
DEEPEST_WIDTH_M = 6000.0
"""A wider map tile would read thousands of the index's tiles; the page shows no imagery there."""

CACHED_TILES = 512
"""Of 20 kB each."""

SAME_DATUM_DEG = 1e-6
"""0.1 m: the diagnostics have seven decimals."""


class Orthophoto:
    """Map tiles of one index, as JPEG. Safe for use from several threads."""

    def __init__(self, index: MapIndex) -> None:
        self._index = index
        self.key = secrets.token_hex(4)
        """Differs from map to map: the page adds it to the tiles' addresses, which the browser keeps for an hour."""
        self._lock = threading.Lock()
        self._tile = functools.lru_cache(CACHED_TILES)(self._encoded)
        half = index.manifest.side_m / 2
        low, high = np.asarray(index.centres_m).min(0) - half, np.asarray(index.centres_m).max(0) + half
        self.bounds_m = [float(value) for value in (*low, *high)]
        """West, south, east, north."""
        deepest = math.log2(DEEPEST_WIDTH_M / (TILE_PIXELS * index.metres_per_pixel))
        self.levels = max(1, int(deepest) + 1)

    def description(self) -> dict[str, Any]:
        """For the page."""
        manifest = self._index.manifest
        return {
            "key": self.key,
            "bounds": self.bounds_m,
            "tile_pixels": TILE_PIXELS,
            "metres_per_pixel": self._index.metres_per_pixel,
            "levels": self.levels,
            "datum": [manifest.datum.latitude_deg, manifest.datum.longitude_deg],
            "tiles": len(self._index),
            "name": self._index.path.name,
            "attributions": list(manifest.attributions),
        }

    def misplaced(self, node_datum: str) -> str:
        """A sentence where the map does not lie under the node's fixes; empty where it does, or nothing is known.

        node_datum: of the node's index, as its diagnostics have it: "latitude, longitude, height".
        """
        if not node_datum:
            return ""
        latitude, longitude = (float(part) for part in node_datum.split(",")[:2])
        datum = self._index.manifest.datum
        if max(abs(latitude - datum.latitude_deg), abs(longitude - datum.longitude_deg)) <= SAME_DATUM_DEG:
            return ""
        return (
            f"the map is not that of the node's index: its datum is {datum.latitude_deg:.7f}, "
            f"{datum.longitude_deg:.7f}, the node's {latitude:.7f}, {longitude:.7f}"
        )

    def tile(self, level: int, x: int, y: int) -> bytes | None:
        """JPEG of a map tile; None where the index holds no imagery, or no such level is made.

        Raises IndexFormatError where the index's files are damaged or gone.
        """
        if not 0 <= level < self.levels:
            return None
        side_m = self._index.metres_per_pixel * 2**level * TILE_PIXELS
        west, south, east, north = self.bounds_m
        if not (west < (x + 1) * side_m and x * side_m < east and south < (y + 1) * side_m and y * side_m < north):
            return None
        with self._lock:  # one at a time: a page asks for thirty at once, and the localizer needs the machine, too
            return self._tile(level, x, y)

    def _encoded(self, level: int, x: int, y: int) -> bytes:
        scale = self._index.metres_per_pixel * 2**level
        side_m = scale * TILE_PIXELS
        extent = Extent(x * side_m, (y + 1) * side_m, TILE_PIXELS, TILE_PIXELS, scale)
        pixels = mosaic(extent, self._index, empty=24)
        encoded, jpeg = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
        if not encoded:
            raise IndexFormatError(f"{self._index.path}: map tile {level}/{x}/{y} cannot be encoded as JPEG")
        return bytes(jpeg)
