"""Play a rosbag2 over DDS without a ROS installation: `ros2 bag play --clock` where rosbag2 is not installed.

Messages are published as the bag holds them, byte for byte; nothing is decoded.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Callable, Collection, Iterator

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, qos_profile_system_default
from rosbags.highlevel import AnyReader
from rosgraph_msgs.msg import Clock

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.time import ns_from_s, parts_from_stamp, s_from_ns

CLOCK_PERIOD_S = 0.01
"""/clock ticks 100 times a second of wall time, so that timers on simulated time do not stutter."""

ARRIVAL_S = 5.0
"""Longer than a message takes to arrive on a busy machine."""

MessageHook = Callable[[str, bytes], None]


def _nothing(topic: str, data: bytes) -> None:
    pass


class BagPlayer:
    """Publishes a bag's topics and /clock from a node that belongs to the caller."""

    def __init__(self, node: Node, bag: Path, *, rate: float = 1.0, without: Collection[str] = ()) -> None:
        """rate: seconds of the bag a second of wall time. without: topics that are not played.

        Raises ConfigurationError for a rate that is not above 0, InputError for a bag that cannot be read or a message
        type that is not installed.
        """
        if not rate > 0:
            raise ConfigurationError(f"rate is {rate}, must be above 0; 1 plays in real time")
        self.node = node
        self.rate = rate
        try:
            self._reader = AnyReader([bag])
            self._reader.open()
        except Exception as error:  # the reader's many exceptions have no common base below Exception
            raise InputError(f"{bag}: cannot be opened as a bag ({error}); give a rosbag2 folder or file") from error
        self._connections = [c for c in self._reader.connections if c.topic not in without]
        qos = QoSProfile(depth=50)
        self._publishers: dict[str, Publisher] = {
            c.topic: node.create_publisher(_message_class(c.msgtype), c.topic, qos) for c in self._connections
        }
        self._clock = node.create_publisher(Clock, "/clock", qos_profile_system_default)

    @property
    def duration_s(self) -> float:
        """Length of the bag in its own time."""
        return s_from_ns(self._reader.end_time - self._reader.start_time)

    def wait_for_subscribers(
        self, topic: str, timeout_s: float, while_waiting: Callable[[], None] = lambda: None
    ) -> None:
        """Return as soon as a topic has a subscriber. Raises ConfigurationError after timeout_s.

        while_waiting: called repeatedly; an error that it raises ends the waiting.
        """
        if topic not in self._publishers:
            raise ConfigurationError(f"the bag does not hold {topic}, only {', '.join(sorted(self._publishers))}")
        deadline = time.monotonic() + timeout_s
        while self._publishers[topic].get_subscription_count() == 0:
            while_waiting()
            if time.monotonic() > deadline:
                raise ConfigurationError(f"{topic} had no subscriber within {timeout_s:g} s; is the node active?")
            time.sleep(0.02)

    def play(self, before: MessageHook = _nothing, after: MessageHook = _nothing) -> None:
        """Publish everything at the recorded pace; return when reliable subscribers have it, or after ARRIVAL_S.

        before, after: called around the publication of each message with its topic and serialized bytes.
        """
        start_wall = time.monotonic()
        start_ns = self._reader.start_time
        for topic, stamp_ns, data in self._messages():
            due = start_wall + s_from_ns(stamp_ns - start_ns) / self.rate
            while (left := due - time.monotonic()) > 0:
                self._tick(min(start_ns + ns_from_s((time.monotonic() - start_wall) * self.rate), stamp_ns))
                time.sleep(min(left, CLOCK_PERIOD_S))
            self._tick(stamp_ns)
            before(topic, data)
            self._publishers[topic].publish(data)
            after(topic, data)
        deadline = time.monotonic() + ARRIVAL_S
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=max(deadline - time.monotonic(), 0.0)))

    def close(self) -> None:
        """Close the bag and withdraw the publishers; what no subscriber has received yet is lost."""
        self._reader.close()
        for publisher in (*self._publishers.values(), self._clock):
            self.node.destroy_publisher(publisher)

    def _messages(self) -> Iterator[tuple[str, int, bytes]]:
        for connection, stamp_ns, data in self._reader.messages(self._connections):
            yield connection.topic, stamp_ns, bytes(data)

    def _tick(self, stamp_ns: int) -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = parts_from_stamp(stamp_ns)
        self._clock.publish(message)


def _message_class(name: str) -> type:
    """The Python class of "package/msg/Type". Raises InputError where the package is not installed."""
    package, _, kind = name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        raise InputError(f"the bag's message type {name} is not installed ({error}); leave its topic out") from error
