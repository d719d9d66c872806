"""The index's imagery for RViz, while somebody looks at it: squares of it as markers with a texture.

RViz has no display for coloured maps, but its markers take a picture since Humble. A square is published once, when
the vehicle comes near; RViz keeps it. It must not be sent again: RViz adds the texture to those that the marker has,
and the picture gets darker.
"""

from __future__ import annotations

import itertools
import math
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
from geometry_msgs.msg import Point
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray, UVCoordinate

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.aerial.mosaic import Extent, mosaic
from unifygeo_ros.core.errors import UnifyGeoError

SQUARE_M = 512.0
"""Side of a square."""

SQUARE_PIXELS = 1024
"""At most so many pixels a side: 4 MB in RViz's graphics memory, some 200 kB in the message."""

NEAR_M = 768.0
"""Squares that touch the square of this half width around the vehicle are published."""

KEPT = 16
"""Squares that an RViz that starts later still gets. At most 16 are near the vehicle."""

_BELOW_M = 0.1
"""Of the map's plane, so that the heatmap lies on the imagery."""

_FAR_M = 10_000.0
"""The marker's origin is so far below its corners: RViz draws transparent things in the order of their origins, the
farthest first, and takes everything with a texture for transparent."""

Cell = tuple[int, int]
"""Column and row of a square: it begins at (column, row) · SQUARE_M."""


class Orthophoto:
    """Publishes the squares near the vehicle. All methods are called by the executor's thread."""

    def __init__(self, node: Node, index: MapIndex, map_frame: str) -> None:
        """index: its middle is shown until there is a fix."""
        qos = QoSProfile(depth=KEPT, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._node = node
        self._index = index
        self._map_frame = map_frame
        self._publisher = node.create_publisher(MarkerArray, "~/orthophoto", qos)
        # RViz keeps the squares of an earlier configuration, whose index may have had another datum.
        self._publisher.publish(MarkerArray(markers=[Marker(action=Marker.DELETEALL)]))
        self._maker = ThreadPoolExecutor(1, "orthophoto")
        self._made: set[Cell] = set()
        self._work: Future[MarkerArray | None] | None = None
        half = index.manifest.side_m / 2
        self._low, self._high = index.centres_m.min(axis=0) - half, index.centres_m.max(axis=0) + half
        middle = (self._low + self._high) / 2
        self.place_m = (float(middle[0]), float(middle[1]))
        """East and north of the vehicle. Other threads may set it."""

    def close(self) -> None:
        """Withdraw the publisher; waits for the square in work, some tenths of a second."""
        self._maker.shutdown(wait=True, cancel_futures=True)
        self._node.destroy_publisher(self._publisher)

    def tend(self) -> None:
        """Publish a square that is ready, and begin the next one. To be called from time to time."""
        if self._work is not None:
            if not self._work.done():
                return
            work, self._work = self._work, None
            try:
                message = work.result()
            except UnifyGeoError as error:
                self._node.get_logger().warning(f"no imagery for RViz: {error}")
                return
            if message is not None:
                self._publisher.publish(message)
        if not self._publisher.get_subscription_count():
            return
        cell = self._next_cell()
        if cell is not None:
            self._made.add(cell)
            self._work = self._maker.submit(self._make, cell)

    def _next_cell(self) -> Cell | None:
        """The nearest square that is near enough and was not made."""
        place = np.array(self.place_m)
        low = np.floor(np.maximum(place - NEAR_M, self._low) / SQUARE_M).astype(int)
        high = np.ceil(np.minimum(place + NEAR_M, self._high) / SQUARE_M).astype(int)
        cells = itertools.product(range(low[0], high[0]), range(low[1], high[1]))
        wanted = [cell for cell in cells if cell not in self._made]

        def distance_m(cell: Cell) -> float:
            east_m, north_m = ((part + 0.5) * SQUARE_M for part in cell)
            return math.hypot(east_m - place[0], north_m - place[1])

        return min(wanted, key=distance_m, default=None)

    def _make(self, cell: Cell) -> MarkerArray | None:
        """The message of a square; None where the index holds nothing of it."""
        side = min(SQUARE_PIXELS, round(SQUARE_M / self._index.metres_per_pixel))
        west, north = cell[0] * SQUARE_M, (cell[1] + 1) * SQUARE_M
        pixels = mosaic(Extent(west, north, side, side, SQUARE_M / side), self._index, empty=0)
        if not pixels.any():
            return None
        return orthophoto_message(pixels, cell, self._map_frame)


def orthophoto_message(pixels: np.ndarray, cell: Cell, map_frame: str) -> MarkerArray:
    """A square of imagery as two triangles with a texture.

    Args:
        pixels: uint8 (S, S, 3) RGB, north up.
        cell: which square.
        map_frame: frame of the marker.
    """
    marker = Marker(ns="orthophoto", id=_number(cell), type=Marker.TRIANGLE_LIST, action=Marker.ADD)
    marker.header.frame_id = map_frame  # stamp 0: the newest transform
    west, south = cell[0] * SQUARE_M, cell[1] * SQUARE_M
    marker.pose.position.x, marker.pose.position.y = west, south
    marker.pose.position.z = -_FAR_M
    marker.pose.orientation.w = 1.0
    marker.scale.x = marker.scale.y = marker.scale.z = 1.0
    marker.color = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
    # Counter-clockwise from above, which is the side that is lit. A texture's v grows downwards from the first row.
    for u, v in ((0, 1), (1, 1), (1, 0), (0, 1), (1, 0), (0, 0)):
        marker.points.append(Point(x=u * SQUARE_M, y=(1 - v) * SQUARE_M, z=_FAR_M - _BELOW_M))
        marker.uv_coordinates.append(UVCoordinate(u=float(u), v=float(v)))
    marker.texture_resource = f"embedded://orthophoto{marker.id}"
    encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    marker.texture = CompressedImage(format="jpeg", data=encoded.tobytes())
    return MarkerArray(markers=[marker])


def _number(cell: Cell) -> int:
    """A number of its own for each square within 32,000 squares of the datum, as int32 has it."""
    column, row = cell
    return row * (1 << 16) + column + (1 << 15)
