"""The camera's pictures, small enough for a page."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, Protocol

import cv2

from unifygeo_ros.conversions.from_messages import camera_image
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.evaluation.recordings.bags import Bag

WIDTH = 1024
RECENT_NS = 500_000_000
"""The images of a rig that make a panorama arrive within this time."""
KEPT = 600
"""Pictures that a running node's page can scroll back to: 40 MB."""


def small_jpeg(message: Any) -> bytes:
    """A sensor_msgs/Image or CompressedImage as JPEG, at most WIDTH wide. Raises InputError."""
    pixels = camera_image(message, WIDTH).pixels
    height, width = pixels.shape[:2]
    if width > WIDTH:
        pixels = cv2.resize(pixels, (WIDTH, max(1, round(height * WIDTH / width))), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])[1])


class Pictures(Protocol):
    """Where the page's pictures come from; called from any thread."""

    def picture(self, number: int) -> bytes | None:
        """JPEG of a picture, None if there is none of that number (any more)."""


class LastPictures:
    """The last pictures of a running node."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._number = 0

    def add(self, jpeg: bytes) -> int:
        """Keep a picture. Returns its number."""
        with self._lock:
            self._number += 1
            self._kept[self._number] = jpeg
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._number

    def picture(self, number: int) -> bytes | None:
        """See `Pictures`."""
        with self._lock:
            return self._kept.get(number)


class BagPictures:
    """The pictures of a recorded drive."""

    def __init__(self, bag: Path, topic: str, log_times_ns: dict[int, int]) -> None:
        """log_times_ns: when the image of each number was recorded. Raises InputError for a bag that cannot be read."""
        self._bag = Bag(bag)
        self._topic = topic
        self._log_times_ns = log_times_ns
        self._kept: OrderedDict[int, bytes | None] = OrderedDict()
        self._lock = threading.Lock()

    def picture(self, number: int) -> bytes | None:
        """See `Pictures`."""
        with self._lock:
            if number not in self._kept and number in self._log_times_ns:
                self._kept[number] = self._read(self._log_times_ns[number])
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return self._kept.get(number)

    def _read(self, log_time_ns: int) -> bytes | None:
        """The last image at a frame's time. A rig's frame has the time of the image that completed it."""
        recent = self._bag.messages([self._topic], start_ns=log_time_ns - RECENT_NS, stop_ns=log_time_ns + 1)
        last = next(iter(deque(recent, maxlen=1)), None)
        if last is None:
            return None
        try:
            return small_jpeg(self._bag.deserialize(last))
        except InputError:
            return None  # the replay's own rejection of it says why
