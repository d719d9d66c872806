"""~/track: the way of the fixes as a line, and the last outcome in words beside the vehicle, for RViz and Foxglove."""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque

from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from unifygeo_ros.conversions.message_values import outcome_diagnostic
from unifygeo_ros.core.records import Fix, Rejection

STEP_M = 2.0
"""Fixes closer together are one point of the line."""

APART_M = 100.0
"""Fixes further apart are not connected: between them the vehicle was lost or carried."""

KEPT = 500
"""Points of the line; the oldest are dropped. At least a kilometre."""

LINE_WIDTH_M = 0.6
TEXT_HEIGHT_M = 3.0

_LINE, _WORDS = 0, 1
_FIXED, _REJECTED = ColorRGBA(r=0.24, g=0.86, b=0.57, a=1.0), ColorRGBA(r=1.0, g=0.8, b=0.3, a=1.0)


class TrackMarkers:
    """Made by the worker's thread; any thread may clear it."""

    def __init__(self, map_frame: str) -> None:
        self._map_frame = map_frame
        self._lock = threading.Lock()
        self._points: deque[Point] = deque(maxlen=KEPT)
        self._words = ""
        self._colour = _REJECTED
        self._place: Point | None = None

    def clear(self) -> None:
        """A new drive begins."""
        with self._lock:
            self._points.clear()
            self._place, self._words = None, ""

    def see(self, outcome: Fix | Rejection) -> None:
        """Take in what became of an image."""
        with self._lock:
            self._words = outcome_diagnostic(outcome).message
            self._colour = _FIXED if isinstance(outcome, Fix) else _REJECTED
            if not isinstance(outcome, Fix):
                return
            self._place = Point(x=outcome.east_m, y=outcome.north_m, z=0.0)
            if not self._points or _distance_m(self._points[-1], self._place) >= STEP_M:
                self._points.append(self._place)

    def message(self) -> MarkerArray:
        """The line, and the words where the last fix was; before the first fix there is nothing to show them at."""
        with self._lock:
            markers = []
            ends = [
                end
                for first, second in itertools.pairwise(self._points)
                if _distance_m(first, second) <= APART_M
                for end in (first, second)
            ]
            line = self._marker(_LINE, Marker.LINE_LIST, Marker.ADD if ends else Marker.DELETE)
            line.points, line.scale.x, line.color = ends, LINE_WIDTH_M, _FIXED
            markers.append(line)
            words = self._marker(_WORDS, Marker.TEXT_VIEW_FACING, Marker.DELETE if self._place is None else Marker.ADD)
            if self._place is not None:
                words.pose.position = Point(x=self._place.x, y=self._place.y + 2 * TEXT_HEIGHT_M, z=1.0)
                words.text, words.scale.z, words.color = self._words, TEXT_HEIGHT_M, self._colour
            markers.append(words)
            return MarkerArray(markers=markers)

    def _marker(self, number: int, kind: int, action: int) -> Marker:
        marker = Marker(ns="track", id=number, type=kind, action=action)
        marker.header.frame_id = self._map_frame  # stamp 0: the newest transform
        marker.pose.orientation.w = 1.0
        return marker


def _distance_m(first: Point, second: Point) -> float:
    return math.hypot(second.x - first.x, second.y - first.y)
