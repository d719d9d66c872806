"""The hand-over of images from the executor to the worker: the newest one only."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Frame:
    """An image message, or the paired ones of a rig, as it arrived."""

    message: Any
    stamp_ns: int
    arrived_s: float
    """Monotonic clock, seconds."""
    transport_s: float
    """From the stamp to the arrival by the node's clock, negative where the stamp is ahead of it."""


class Inbox:
    """Room for one frame. Putting never waits; a frame that was not taken in time is replaced and counted."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._frame: Frame | None = None
        self._closed = False

    def put(self, frame: Frame) -> bool:
        """Leave a frame for the worker. Returns whether one that had not been taken was dropped for it."""
        with self._condition:
            dropped = self._frame is not None
            self._frame = frame
            self._condition.notify()
            return dropped

    def take(self) -> Frame | None:
        """Wait for a frame and take it out. None once the inbox is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or self._frame is not None)
            frame, self._frame = self._frame, None
            return None if self._closed else frame

    def clear(self) -> None:
        with self._condition:
            self._frame = None

    def close(self) -> None:
        """Wake the worker and give it nothing more."""
        with self._condition:
            self._closed = True
            self._frame = None
            self._condition.notify_all()
