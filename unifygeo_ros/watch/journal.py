"""What has happened, as entries that any number of pages read at their own pace."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import Any, Mapping

MAX_ENTRIES = 100_000
"""About six hours of a drive with two images and two poses a second; the oldest are dropped."""


class Journal:
    """Entries with rising numbers. May be used from any thread."""

    def __init__(self, limit: int = MAX_ENTRIES) -> None:
        self._entries: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=limit)
        self._numbers = itertools.count(1)
        self._grown = threading.Condition()
        self._closed = False

    def add(self, entry: Mapping[str, Any]) -> None:
        """entry: what JSON knows, without NaN."""
        with self._grown:
            self._entries.append((next(self._numbers), entry))
            self._grown.notify_all()

    def close(self) -> None:
        """Wake all that wait; nothing is added any more."""
        with self._grown:
            self._closed = True
            self._grown.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def after(self, number: int, timeout_s: float = 0.0) -> list[tuple[int, Mapping[str, Any]]]:
        """The entries with higher numbers; where there are none, wait that long for one."""
        with self._grown:
            if not self._closed and not self._newer(number):
                self._grown.wait(timeout_s)
            return self._newer(number)

    def _newer(self, number: int) -> list[tuple[int, Mapping[str, Any]]]:
        newer = list(itertools.takewhile(lambda entry: entry[0] > number, reversed(self._entries)))
        return newer[::-1]
