"""A drive played to a running node: what was published, what came back, and how long it took."""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Collection, Mapping

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile

from unifygeo_ros.conversions.from_messages import stamp_ns
from unifygeo_ros.core.time import stamp_from_parts
from unifygeo_ros.demo.node_process import NodeProcess
from unifygeo_ros.demo.player import BagPlayer
from unifygeo_ros.parameters.settings import NODE_NAME

START_TIMEOUT_S = 60.0
SETTLE_S = 1.0
"""A writer that knows a reader may not yet be known to it, and a best-effort reader misses what comes before that."""

QUIET_S = 2.0
"""After the last image, silence for this long means that nothing further will come."""


@dataclass(frozen=True)
class LiveFix:
    """A fix as it came over DDS, in the map frame."""

    stamp_ns: int
    east_m: float
    north_m: float
    latency_s: float
    """Wall time from the publication of the image to the arrival of the fix."""


@dataclass(frozen=True)
class LiveDrive:
    """What a node answered to a drive that was played to it."""

    images: int
    """Number of published images."""
    fixes: Mapping[int, LiveFix]
    """By the stamp of their image."""
    localized: Collection[int]
    """Stamps of the images that became a fix or a rejection. The others were dropped for newer ones, or lost."""


def play_to_node(
    bag: Path,
    image_topic: str,
    motion_topics: Collection[str],
    node_process: NodeProcess,
    *,
    rate: float,
    without: tuple[str, ...] = (),
    progress: Callable[[int, int], None] = lambda images, fixes: None,
) -> LiveDrive:
    """Play a bag to the node as soon as it listens to the images and the motion, and collect its fixes.

    without: topics of the bag that the node must not see (ground truth). progress: called after each image with the
    number of images published and fixes received. Raises EngineError if the node dies.
    """
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("drive_player", context=context)
    player = BagPlayer(node, bag, rate=rate, without=without)
    published_s: dict[int, float] = {}
    fixes: dict[int, LiveFix] = {}
    localized: set[int] = set()
    arrived = threading.Event()

    def take(message: PoseWithCovarianceStamped) -> None:
        stamp, position = stamp_ns(message.header), message.pose.pose.position
        latency_s = time.monotonic() - published_s.get(stamp, float("nan"))
        fixes[stamp] = LiveFix(stamp, position.x, position.y, latency_s)
        arrived.set()

    def take_outcome(message: DiagnosticArray) -> None:
        localized.add(stamp_ns(message.header))
        arrived.set()

    node.create_subscription(PoseWithCovarianceStamped, f"/{NODE_NAME}/fix", take, QoSProfile(depth=100))
    node.create_subscription(DiagnosticArray, f"/{NODE_NAME}/outcome", take_outcome, QoSProfile(depth=100))
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    try:
        for topic in (image_topic, *motion_topics):
            player.wait_for_subscribers(topic, START_TIMEOUT_S, node_process.check_alive)
        time.sleep(SETTLE_S)

        def before(topic: str, data: bytes) -> None:
            if topic == image_topic:
                published_s[_header_stamp_ns(data)] = time.monotonic()

        def after(topic: str, data: bytes) -> None:
            if topic == image_topic:
                node_process.check_alive()
                progress(len(published_s), len(fixes))

        player.play(before, after)
        while arrived.wait(QUIET_S):
            arrived.clear()
        progress(len(published_s), len(fixes))
        return LiveDrive(len(published_s), dict(fixes), frozenset(localized))
    finally:
        executor.shutdown()
        thread.join()
        player.close()
        node.destroy_node()
        context.try_shutdown()


def _header_stamp_ns(data: bytes) -> int:
    """Stamp of a serialized message that starts with a Header: CDR, little-endian, after 4 bytes that say so."""
    seconds, nanoseconds = struct.unpack_from("<iI", data, 4)
    return stamp_from_parts(seconds, nanoseconds)
