"""A view of the region: the index's tiles put together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.core.arrays import Float64, UInt8
from unifygeo_ros.core.records import Prior


@dataclass(frozen=True)
class Extent:
    """A square-pixelled view of the map."""

    east_m: float
    """Its upper left corner."""
    north_m: float
    """Its upper left corner."""
    width: int
    height: int
    metres_per_pixel: float
    """Scale of the image."""

    @property
    def mark(self) -> float:
        """Radius of a dot, pixels: the same on every page, however large the view is."""
        return self.width / 300

    def pixels(self, points_m: Float64) -> Float64:
        """Image coordinates (x, y) of map points (n, 2): float64 (n, 2)."""
        points = np.asarray(points_m, np.float64).reshape(-1, 2)
        corner = np.array([self.east_m, self.north_m])
        return np.asarray((points - corner) * [1, -1] / self.metres_per_pixel)


def mosaic(extent: Extent, index: MapIndex, empty: int = 205) -> UInt8:
    """uint8 (H, W, 3) RGB of the tiles inside; a grey of that brightness where there is none."""
    canvas = np.full((extent.height, extent.width, 3), empty, np.uint8)
    centre = np.array(
        [
            extent.east_m + extent.width * extent.metres_per_pixel / 2,
            extent.north_m - extent.height * extent.metres_per_pixel / 2,
        ]
    )
    reach = (np.array([extent.width, extent.height]) * extent.metres_per_pixel / 2) ** 2
    # The ellipse through the corners of the view: √2 of the half extents.
    tiles = index.tiles_within(Gate(Prior(float(centre[0]), float(centre[1]), np.diag(reach)), math.sqrt(2)))
    half = np.array([-1.0, 1.0]) * index.manifest.side_m / 2
    painted = np.zeros(canvas.shape[:2], np.bool_)
    for tile in tiles.tolist():
        corners = extent.pixels(np.stack([index.centres_m[tile] + half, index.centres_m[tile] - half]))
        (left, top), (right, bottom) = np.round(corners).astype(int).tolist()
        inside = np.s_[
            max(top, 0) : max(min(bottom, extent.height), 0), max(left, 0) : max(min(right, extent.width), 0)
        ]
        # Tiles overlap: most need not be read.
        if painted[inside].all():
            continue
        size = (right - left, bottom - top)
        method = cv2.INTER_AREA if size[0] < index.tile_size else cv2.INTER_LINEAR
        pixels = cv2.resize(index.tile_pixels(tile), size, interpolation=method)
        canvas[inside] = pixels[
            inside[0].start - top : inside[0].stop - top, inside[1].start - left : inside[1].stop - left
        ]
        painted[inside] = True
    return canvas
