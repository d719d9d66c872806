"""What the node publishes at the odometry's rate: ~/pose, and map → odom where publish_tf asks for it (REP 105).

Threads: `follow` belongs to the worker, everything else to the executor's thread; `MapToOdom` is the lock between them.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message

from unifygeo_ros.conversions.from_messages import stamp_ns
from unifygeo_ros.conversions.sensor_frames import frame_name
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.records import Fix
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.localization.fixes import with_imagery_error
from unifygeo_ros.motion.samples import OdometrySample
from unifygeo_ros.parameters.settings import Settings
from unifygeo_ros.ros.to_messages import pose_now_message, transform_message
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.tracking.map_to_odom import MapToOdom
from unifygeo_ros.tracking.region import Region

SILENT_S = 1.0
"""Without odometry for so long, nothing is published, and the diagnostics say so."""

RIVAL_SHOWN_S = 5.0
"""How long a map → odom from another node is shown as a warning."""


class PoseOutput:
    """The publishers of a configured node in mode sequence."""

    def __init__(self, node: LifecycleNode, settings: Settings, region: Region) -> None:
        """Raises ConfigurationError where publish_tf is asked for and tf2_ros is not installed."""
        self._node = node
        self._map_frame = settings.node.map_frame
        self._odom_frame: str | None = None
        self._odometry_s = time.monotonic()
        """When odometry came last."""
        self._map_to_odom = MapToOdom(settings.map_to_odom, settings.session.buffer_limits, settings.odometry, region)
        self._imagery_sigma_m = settings.localizer.imagery_sigma_m
        self._transform = MapToOdomTransform(node, self._map_frame) if settings.node.publish_tf else None
        self._publisher = node.create_lifecycle_publisher(PoseWithCovarianceStamped, "~/pose", 10)

    def close(self) -> None:
        """Withdraw the publishers."""
        self._node.destroy_lifecycle_publisher(self._publisher)
        if self._transform is not None:
            self._transform.close()

    def reconfigure(self, settings: Settings) -> None:
        """Use other live settings from now on."""
        self._map_to_odom.config = settings.map_to_odom
        self._imagery_sigma_m = settings.localizer.imagery_sigma_m

    def reset(self) -> None:
        """Forget the drive: nothing is published until the next fix."""
        self._map_to_odom.reset()

    def follow(self, outcome: Outcome) -> None:
        """Take in what an image said. Called by the worker's thread."""
        if outcome.query is not None:
            result = outcome.result
            self._map_to_odom.image(result.stamp_ns, fixed=isinstance(result, Fix), track=outcome.track)

    def on_odometry(self, sample: OdometrySample, odom_frame: str) -> None:
        """Publish the pose at a sample. odom_frame: in which the sample is."""
        self._odometry_s = time.monotonic()
        if odom_frame != self._odom_frame:
            if self._odom_frame is not None:
                self._node.get_logger().warning(
                    f"The odometry's frame changed from {self._odom_frame!r} to {odom_frame!r}; ~/pose waits for a fix"
                )
                self._map_to_odom.reset()
            self._odom_frame = odom_frame
        now = self._map_to_odom.odometry(sample)
        if now is None:
            return
        if self._transform is not None:
            ahead_ns = ns_from_s(self._map_to_odom.config.tolerance_s)
            self._transform.send(now.map_to_odom, now.stamp_ns + ahead_ns, odom_frame)
        if self._publisher.get_subscription_count():
            now = replace(now, covariance=with_imagery_error(now.covariance, self._imagery_sigma_m))
            self._publisher.publish(pose_now_message(now, self._map_frame))

    def report(self, name: str) -> DiagnosticStatus:
        """The diagnostic "pose". name: of the node."""
        status = self._map_to_odom.status()
        level = DiagnosticStatus.WARN if status.state == "lost" else DiagnosticStatus.OK
        when_lost = self._map_to_odom.config.when_lost
        text = f"lost ({when_lost}): {status.reason}" if status.state == "lost" else status.state
        silence_s = time.monotonic() - self._odometry_s
        if status.state != "no fix yet" and silence_s > SILENT_S:
            level = DiagnosticStatus.WARN
            text = f"no odometry for {silence_s:.1f} s: ~/pose and map → odom stand still; {text}"
        values = {
            "publish_tf": str(self._transform is not None).lower(),
            "fix_age_s": "unknown" if status.fix_age_s is None else f"{status.fix_age_s:.2f}",
            "jumps": str(status.jumps),
        }
        rival = self._transform.rival(self._odom_frame) if self._transform is not None else ""
        if rival:
            level, text = DiagnosticStatus.ERROR, f"{rival}; {text}"
        keys = [KeyValue(key=key, value=value) for key, value in values.items()]
        return DiagnosticStatus(level=level, name=f"{name}: pose", message=text, hardware_id=name, values=keys)


class MapToOdomTransform:
    """Broadcasts map → odom, and listens whether another node does."""

    def __init__(self, node: LifecycleNode, map_frame: str) -> None:
        try:
            from tf2_msgs.msg import TFMessage
            from tf2_ros import TransformBroadcaster
        except ImportError as error:
            raise ConfigurationError(
                f"publish_tf is true and tf2_ros cannot be imported ({error}); install ros-*-tf2-ros-py, or set "
                "publish_tf to false"
            ) from error
        self._node = node
        self._map_frame = map_frame
        self._odom_frame: str | None = None
        self._message_type = TFMessage
        self._broadcaster = TransformBroadcaster(node)
        self._sent_ns: deque[int] = deque(maxlen=1000)
        self._rival_s: float | None = None
        self._static_children: set[str] = set()
        """Frames that hang below the map frame by /tf_static."""
        # Serialized: to decode what a whole vehicle sends on /tf would cost more than all else that this thread does.
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._subscriptions = [
            node.create_subscription(TFMessage, "/tf", self._on_transforms, QoSProfile(depth=100), raw=True),
            node.create_subscription(TFMessage, "/tf_static", self._on_static_transforms, latched),
        ]

    def close(self) -> None:
        """Withdraw publisher and subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._node.destroy_publisher(self._broadcaster.pub_tf)

    def send(self, pose: Any, stamp: int, odom_frame: str) -> None:
        """Broadcast the pose of the odometry's frame. An odometry without a frame's name cannot be in TF."""
        if not odom_frame:
            self._node.get_logger().warning(
                "The odometry has no frame_id, so map → odom cannot be published; let its driver name its frame",
                throttle_duration_sec=10.0,
            )
            return
        self._odom_frame = odom_frame
        self._sent_ns.append(stamp)
        self._broadcaster.sendTransform(transform_message(pose, stamp, self._map_frame, odom_frame))

    def rival(self, odom_frame: str | None) -> str:
        """A sentence about another publisher of map → odom seen lately; empty where there is none."""
        lately = self._rival_s is not None and time.monotonic() - self._rival_s <= RIVAL_SHOWN_S
        if not lately and odom_frame not in self._static_children:
            return ""
        own = (self._node.get_name(), self._node.get_namespace())
        others = {
            f"{info.node_namespace.rstrip('/')}/{info.node_name}"
            for topic in ("/tf", "/tf_static")
            for info in self._node.get_publishers_info_by_topic(topic)
            if (info.node_name, info.node_namespace) != own
        }
        return (
            f"another node publishes {self._map_frame} → {odom_frame}, too: one of {', '.join(sorted(others))}; TF "
            "jumps between the two. Stop it, or set publish_tf to false"
        )

    def _on_static_transforms(self, message: Any) -> None:
        for transform in message.transforms:
            if frame_name(transform.header.frame_id) == self._map_frame:
                self._static_children.add(frame_name(transform.child_frame_id))

    def _on_transforms(self, serialized: bytes) -> None:
        if self._odom_frame is None or not all(
            f"{frame}\0".encode() in serialized for frame in (self._map_frame, self._odom_frame)
        ):
            return
        for transform in deserialize_message(serialized, self._message_type).transforms:
            frames = frame_name(transform.header.frame_id), frame_name(transform.child_frame_id)
            if frames == (self._map_frame, self._odom_frame) and stamp_ns(transform.header) not in self._sent_ns:
                self._rival_s = time.monotonic()
                self._node.get_logger().warning(self.rival(self._odom_frame), throttle_duration_sec=10.0)
