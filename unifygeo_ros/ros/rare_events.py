"""Events of publishers and subscriptions, looked at from time to time instead of in every wait.

Each publisher and subscription has two or three events (incompatible quality of service, incompatible types, lost
messages), which rclpy's executor adds to the set that it waits for, one by one and in Python, again for every message:
with the node's 38 of them a message took twice the processor time. None of them is urgent, and the middleware keeps
them until they are taken.
"""

from __future__ import annotations

import time
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup

try:
    from rclpy.event_handler import EventHandler
except ImportError:  # Humble
    from rclpy.qos_event import QoSEventHandler as EventHandler

__all__ = ["EventHandler", "RareEvents"]

OPEN_S = 0.05
"""How long events are taken after each `open`: more than the executor needs to come round to them."""


class RareEvents(ReentrantCallbackGroup):  # type: ignore[misc]  # rclpy brings no types
    """Lets its callbacks run for OPEN_S after each `open`. Belongs to the executor's thread."""

    def __init__(self) -> None:
        super().__init__()
        self._until_s = 0.0

    def open(self) -> None:
        """Take what has happened since the last time."""
        self._until_s = time.monotonic() + OPEN_S

    def can_execute(self, entity: Any) -> bool:
        return time.monotonic() < self._until_s
