"""What the node listens to while it is active: images for the worker, samples for the session."""

from __future__ import annotations

import functools
import time
from typing import Any, Callable, Sequence

from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, Imu

from unifygeo_ros.conversions.from_messages import imu_sample, initial_pose, odometry_sample, stamp_ns
from unifygeo_ros.conversions.sensor_frames import frame_name
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.motion.samples import MAP_FRAME, OdometrySample
from unifygeo_ros.parameters.settings import Settings
from unifygeo_ros.ros.frames import TfFrames
from unifygeo_ros.ros.health import Health
from unifygeo_ros.ros.sources import (
    IMU,
    MAP_ODOMETRY,
    ODOMETRY,
    SourceReport,
    SourceWatch,
    TimeRules,
    configured_sources,
)
from unifygeo_ros.sessions.session import LocalizationSession

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

IMAGE_QUEUE = 5
"""The inbox keeps one image; the queue lets the executor receive and count the others."""
MOTION_QUEUE = 200
"""One second of a fast IMU, for when the executor is late."""
INITIAL_POSE = "initial pose"


class Inputs:
    """The subscriptions of an active node. Belongs to the executor's thread; `watch` may be used from any."""

    def __init__(
        self,
        node: Node,
        settings: Settings,
        session: LocalizationSession,
        health: Health,
        on_image: Callable[[str, Any], None],
        image_topics: Sequence[str] = (),
        on_odometry: Callable[[OdometrySample, str], None] | None = None,
    ) -> None:
        """Subscribe to everything.

        Args:
            node: That listens.
            settings: Of the node.
            session: Takes the samples.
            health: Counts what is refused.
            on_image: Takes a topic and a sensor_msgs/Image or CompressedImage of it, and must not wait.
            image_topics: Of a rig; those that end in /compressed bring CompressedImage. None: that of the panoramas.
            on_odometry: Takes each accepted sample of drifting odometry with the name of its frame; None: nobody does.
        """
        self._node = node
        self._map_frame = settings.node.map_frame
        self._session = session
        self._health = health
        self._on_drifting_odometry = on_odometry
        self._frames = TfFrames(node, settings.node.base_frame, settings.node.input_frames)
        self._reliable = settings.node.reliability == "reliable"
        self._subscriptions: list[Subscription] = []
        config = settings.session
        self.watch = SourceWatch(
            configured_sources(settings, node.resolve_topic_name("imu"), node.resolve_topic_name("odometry")),
            TimeRules(
                config.extrapolation_s, config.sample_gap_s, config.buffer_age_s, ns_from_s(config.stamp_offset_s)
            ),
            time.monotonic(),
        )
        compressed = settings.node.image_transport == "compressed"
        for topic in image_topics or ["image/compressed" if compressed else "image"]:
            kind = CompressedImage if topic.endswith("/compressed") else Image
            self._listen(kind, topic, functools.partial(on_image, topic), IMAGE_QUEUE)
        self._listen(Odometry, "odometry", self._on_odometry, MOTION_QUEUE)
        self._listen(Imu, "imu", self._on_imu, MOTION_QUEUE)
        self._listen(PoseWithCovarianceStamped, "initial_pose", self._on_initial_pose, 1)

    def close(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._frames.close()

    def reports(self) -> list[SourceReport]:
        """How each configured source stands."""
        topics = {source.topic for source in self.watch.sources}
        publishers = {topic: self._node.count_publishers(topic) for topic in topics}
        return self.watch.reports(time.monotonic(), publishers)

    def frames(self) -> dict[str, str]:
        """Where the sensors sit whose frames were looked up in TF."""
        return self._frames.known()

    def _listen(self, kind: type, topic: str, callback: Callable[[Any], None], depth: int) -> None:
        reliability = ReliabilityPolicy.RELIABLE if self._reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=depth, reliability=reliability)
        resolved = self._node.resolve_topic_name(topic)

        def incompatible(event: Any) -> None:
            policy = qos_policy_name_from_kind(event.last_policy_kind)
            self._health.incompatible_qos(resolved, policy)
            self._node.get_logger().warning(
                f"A publisher on {resolved} offers an incompatible {policy}, nothing will arrive from it; "
                "set the parameter reliability"
            )

        def lost(event: Any) -> None:
            if kind in (CompressedImage, Image):
                self._health.images_lost(event.total_count_change)

        try:
            events = SubscriptionEventCallbacks(incompatible_qos=incompatible, message_lost=lost)
            subscription = self._node.create_subscription(kind, topic, callback, qos, event_callbacks=events)
        except UnsupportedEventTypeError:
            self._node.get_logger().info(f"This middleware does not report incompatible or lost messages on {resolved}")
            subscription = self._node.create_subscription(kind, topic, callback, qos)
        self._subscriptions.append(subscription)

    def _on_odometry(self, message: Odometry) -> None:
        in_map = frame_name(message.header.frame_id) == self._map_frame
        try:
            sample = odometry_sample(message, self._map_frame, self._frames.pose(message.child_frame_id))
        except InputError as error:
            self._take(MAP_ODOMETRY if in_map else ODOMETRY, stamp_ns(message.header), str(error))
            return
        refusal = self._session.add_odometry(sample)
        self._take(MAP_ODOMETRY if sample.frame == MAP_FRAME else ODOMETRY, sample.stamp_ns, refusal)
        if refusal is None and sample.frame != MAP_FRAME and self._on_drifting_odometry is not None:
            self._on_drifting_odometry(sample, frame_name(message.header.frame_id))

    def _on_imu(self, message: Imu) -> None:
        try:
            sample = imu_sample(message, self._frames.pose(message.header.frame_id))
        except InputError as error:
            self._take(IMU, stamp_ns(message.header), str(error))
            return
        self._take(IMU, sample.stamp_ns, self._session.add_imu(sample))

    def _on_initial_pose(self, message: PoseWithCovarianceStamped) -> None:
        frame = frame_name(message.header.frame_id)
        if frame != self._map_frame:
            refusal: str | None = f"in frame {frame!r}, must be {self._map_frame!r}"
        else:
            refusal = self._session.set_initial_pose(initial_pose(message))
        self._take(INITIAL_POSE, stamp_ns(message.header), refusal)

    def _take(self, source: str, stamp_ns: int, refusal: str | None) -> None:
        self.watch.heard(source, stamp_ns, time.monotonic(), refusal)
        if refusal is not None:
            # Both odometries arrive on one topic, so they are one source here.
            name = ODOMETRY if source == MAP_ODOMETRY else source
            self._health.input_refused(f"{name}: {refusal}")
            self._node.get_logger().warning(f"Refused {name}: {refusal}", throttle_duration_sec=5.0)
