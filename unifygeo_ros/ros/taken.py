"""A subscription whose messages are taken when they are wanted, not as they arrive."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import Any, Callable

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.subscription import Subscription

EVENTS_EACH = 10
"""A subscription's events, such as a publisher whose QoS does not fit, are looked for in one of so many periods: with
Fast DDS, waiting for them is waiting for messages, too."""


class NotAwaited(ReentrantCallbackGroup):  # type: ignore[misc]  # rclpy brings no types
    """The executor does not wait for messages of this group's subscriptions, and for their events now and then.

    rclpy prepares every wait in Python, from all that the node has: half a millisecond each time. An IMU at 100 Hz took
    most of the node's own processor time so.
    """

    events = True
    """Whether the executor waits for the subscriptions' events now."""

    def can_execute(self, entity: Any) -> bool:
        """Whether the executor waits for it."""
        return self.events and not isinstance(entity, Subscription)


class TakenMessages:
    """What a subscription of the group `NotAwaited` has received. Its methods may be called from any thread.

    The middleware keeps as many messages as the subscription's depth says.
    """

    def __init__(self, use: Callable[[Any], None], settled: Callable[[Any], bool]) -> None:
        """Nothing is taken yet.

        Args:
            use: Takes one message after the other, in one thread at a time.
            settled: Whether a message may be used in any thread. Others wait for `take` of the executor's thread.
        """
        self.group = NotAwaited()
        self._periods = itertools.count(1)
        self._use, self._settled = use, settled
        self._lock = threading.Lock()
        self._subscription: Subscription | None = None
        self._taken: deque[Any] = deque()

    def open(self, subscription: Subscription) -> None:
        """Take from this subscription, which was created with `group`."""
        self._subscription = subscription

    def close(self) -> None:
        """Take no more; afterwards the subscription may be destroyed."""
        with self._lock:
            self._subscription = None
            self._taken.clear()

    def period(self) -> None:
        """To be called by a timer of the executor: use all that has arrived, and look for events now and then."""
        self.group.events = next(self._periods) % EVENTS_EACH == 0
        self.take(executor=True)

    def take(self, *, executor: bool) -> None:
        """Use all that has arrived, in order. executor: whether this is the executor's thread."""
        with self._lock:
            subscription = self._subscription
            if subscription is None:
                return
            with subscription.handle:
                while (found := subscription.handle.take_message(subscription.msg_type, subscription.raw)) is not None:
                    self._taken.append(found[0])
            while self._taken and (executor or self._settled(self._taken[0])):
                self._use(self._taken.popleft())
