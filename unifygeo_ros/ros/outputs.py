"""What the node publishes about images: fixes, and what explains them."""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from nav_msgs.msg import OccupancyGrid
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, NavSatFix, PointCloud2
from std_msgs.msg import Bool, Float64MultiArray
from visualization_msgs.msg import MarkerArray

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.core.records import CameraImage, Fix, Rejection
from unifygeo_ros.parameters.settings import NodeConfig
from unifygeo_ros.ros.debug_image import draw_debug_image
from unifygeo_ros.ros.image_conversion import ImageConversion
from unifygeo_ros.ros.orthophoto import Orthophoto
from unifygeo_ros.ros.pose_output import PoseOutput
from unifygeo_ros.ros.to_messages import (
    heatmap_message,
    hypotheses_cloud_message,
    hypotheses_message,
    navsat_message,
    outcome_message,
    pose_message,
    weights_message,
)
from unifygeo_ros.ros.track_markers import TrackMarkers
from unifygeo_ros.sessions.outcome import Outcome


class Outlet(Protocol):
    """Where the worker's results go; called by the worker's thread."""

    def follow(self, outcome: Outcome) -> None:
        """Take in what an image said of the vehicle's pose; its fix, if there is one, passed the guard."""

    def publish_fix(self, fix: Fix) -> None:
        """Publish a fix that passed the guard."""

    def publish_outcome(self, outcome: Fix | Rejection) -> None:
        """Publish what became of an image."""

    def publish_visualization(self, image: CameraImage, outcome: Outcome) -> None:
        """Publish what explains the result: hypotheses, heatmap, debug image."""


class Outputs:
    """The publishers of a configured node. They are silent until the node is activated.

    Threads: the worker publishes fixes and visualization; the executor's thread everything else.
    """

    def __init__(
        self,
        node: LifecycleNode,
        config: NodeConfig,
        index: MapIndex,
        datum_height_m: float,
        conversion: ImageConversion,
        pose: PoseOutput | None,
    ) -> None:
        """pose: what is published between images; None: nothing is."""
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._node = node
        self._config = config
        self._index = index
        self._datum_height_m = datum_height_m
        self._conversion = conversion
        self._pose = pose
        self._publishers: list[Any] = []
        self._fix = self._create(PoseWithCovarianceStamped, "~/fix", 10)
        self._navsat = self._create(NavSatFix, "~/navsat", 10)
        self._localized = self._create(Bool, "~/localized", latched)
        self._hypotheses = self._create(PoseArray, "~/hypotheses", 10)
        self._cloud = self._create(PointCloud2, "~/hypotheses/cloud", 10)
        self._weights = self._create(Float64MultiArray, "~/hypotheses/weights", 10)
        self._outcome = self._create(DiagnosticArray, "~/outcome", 10)
        self._track = self._create(MarkerArray, "~/track", 1)
        self._track_markers = TrackMarkers(config.map_frame)
        self._heatmap = self._create(OccupancyGrid, "~/heatmap", 1)
        self._debug_image = self._create(CompressedImage, "~/debug_image/compressed", 1)
        self._orthophoto = Orthophoto(node, index, config.map_frame)
        self._next_heatmap_s = self._next_debug_image_s = 0.0
        self._lock = threading.Lock()
        self._is_localized: bool | None = None

    def _create(self, kind: type, topic: str, qos: int | QoSProfile) -> Any:
        publisher = self._node.create_lifecycle_publisher(kind, topic, qos)
        self._publishers.append(publisher)
        return publisher

    def close(self) -> None:
        """Withdraw the publishers."""
        self._orthophoto.close()
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

    def reconfigure(self, config: NodeConfig) -> None:
        """Use other live settings from now on."""
        self._config = config

    def tend(self) -> None:
        """Go on with what is published beside the images; called by the executor's thread from time to time."""
        self._orthophoto.tend()

    def set_localized(self, localized: bool) -> None:
        """Publish whether there was a fix since activation or the last reset, where that changed."""
        if not localized:
            self._track_markers.clear()
        with self._lock:
            if localized != self._is_localized:
                self._is_localized = localized
                self._localized.publish(Bool(data=localized))

    def follow(self, outcome: Outcome) -> None:
        """See `Outlet`."""
        if self._pose is not None:
            self._pose.follow(outcome)

    def publish_fix(self, fix: Fix) -> None:
        """See `Outlet`."""
        self._fix.publish(pose_message(fix, self._config.map_frame))
        self._navsat.publish(navsat_message(fix, self._config.base_frame, self._datum_height_m))
        self._orthophoto.place_m = (fix.east_m, fix.north_m)
        self.set_localized(True)

    def publish_outcome(self, outcome: Fix | Rejection) -> None:
        """See `Outlet`."""
        self._outcome.publish(outcome_message(outcome, self._node.get_fully_qualified_name().lstrip("/")))
        self._track_markers.see(outcome)
        if self._track.get_subscription_count():
            self._track.publish(self._track_markers.message())

    def publish_visualization(self, image: CameraImage, outcome: Outcome) -> None:
        """See `Outlet`."""
        config, result, observation = self._config, outcome.result, outcome.observation
        yaw_rad = result.yaw_rad if isinstance(result, Fix) else observation.heading.yaw_rad if observation else 0.0
        if result.hypotheses:
            message = hypotheses_message(result.hypotheses, result.stamp_ns, yaw_rad, config.map_frame)
            self._hypotheses.publish(message)
            self._cloud.publish(hypotheses_cloud_message(result.hypotheses, result.stamp_ns, config.map_frame))
            self._weights.publish(weights_message(result.hypotheses))
        now_s = time.monotonic()
        if observation and config.heatmap_period_s > 0 and now_s >= self._next_heatmap_s:
            self._next_heatmap_s = now_s + config.heatmap_period_s
            self._heatmap.publish(heatmap_message(observation.distributions[0], result.stamp_ns, config.map_frame))
        due = config.debug_image_period_s > 0 and now_s >= self._next_debug_image_s
        if due and self._debug_image.get_subscription_count():
            self._next_debug_image_s = now_s + config.debug_image_period_s
            pixels = draw_debug_image(image, result, observation, self._index)
            self._debug_image.publish(self._conversion.jpeg(pixels, result.stamp_ns, config.base_frame))
