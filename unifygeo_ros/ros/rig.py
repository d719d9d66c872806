"""A rig in the node: its description completed by CameraInfo and TF, and its images paired into sets."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any, Callable, Mapping

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo

from unifygeo_ros.conversions.from_messages import stamp_ns
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.paths import home_path
from unifygeo_ros.parameters.settings import Settings
from unifygeo_ros.rig.config import RigConfig
from unifygeo_ros.rig.description import CameraDescription, FramePose, RigDescription, read_rig
from unifygeo_ros.rig.pairing import ImageSet, Pairing
from unifygeo_ros.rig.rig import Rig
from unifygeo_ros.ros.camera_mount import look_up_node
from unifygeo_ros.sessions.rig_panorama import RigPanoramas

COMPRESSED = "/compressed"
POLL_PERIOD_S = 0.02
"""How often sets are looked for whose wait has ended."""
SPIN_S = 0.1


@dataclass(frozen=True)
class LiveRig:
    """A rig, and where its images are published."""

    rig: Rig
    sources: Mapping[str, tuple[str, ...]]
    """Names of the cameras by the topic of their images; a name that ends in /compressed brings CompressedImage."""


def describe_rig(settings: Settings, resolve: Callable[[str], str]) -> RigDescription:
    """The rig of the parameters, with full names of topics.

    Args:
        settings: Of the node.
        resolve: The node's `resolve_topic_name`: namespace and remappings.

    Raises:
        ConfigurationError: The rig file cannot be used.
    """
    config = settings.rig
    if config.file:
        description = read_rig(home_path(config.file))
    else:
        named = (CameraDescription(name, f"{name}/image", f"{name}/camera_info") for name in config.camera_names)
        description = RigDescription(tuple(named), source="rig.cameras")
    description.topics()  # raises where one is missing
    ending = COMPRESSED if settings.node.image_transport == "compressed" else ""
    return description.with_topics(
        lambda topic: resolve(topic if topic.endswith(COMPRESSED) else topic + ending), resolve
    )


def live_rig(settings: Settings, resolve: Callable[[str], str], give_up: Callable[[], bool]) -> LiveRig:
    """Complete the rig by CameraInfo and TF, as soon as they are published. May be called from any thread.

    Args:
        settings: Of the node.
        resolve: The node's `resolve_topic_name`.
        give_up: Asked while waiting.

    Raises:
        ConfigurationError: Something is missing after `tf_timeout_s`, or cannot be used; the message names the camera.
    """
    if settings.node.camera_frame:
        raise ConfigurationError(
            f"both a rig and camera_frame ({settings.node.camera_frame}) are given; a rig's mounts are in the rig file "
            "or in TF"
        )
    description = describe_rig(settings, resolve)
    if description.is_complete:
        return LiveRig(description.rig(), description.topics())
    infos: dict[str, Any] = {}
    with look_up_node("unifygeo_rig") as (node, executor):
        pose = _poses(node, settings.node.base_frame, description)
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        for topic in {camera.info_topic for camera in description.cameras} - {""}:
            node.create_subscription(CameraInfo, topic, functools.partial(infos.__setitem__, topic), qos)
        deadline_s = time.monotonic() + settings.node.tf_timeout_s
        while True:
            try:
                return LiveRig(description.rig(infos.get, pose), description.topics())
            except ConfigurationError as error:
                if give_up() or time.monotonic() > deadline_s:
                    raise ConfigurationError(f"{error} (after {settings.node.tf_timeout_s:g} s)") from None
            executor.spin_once(timeout_sec=SPIN_S)


def _poses(node: Node, base_frame: str, description: RigDescription) -> Callable[[str], FramePose | None]:
    """Poses of frames from TF; without tf2_ros where every mount is in the rig file. Raises ConfigurationError."""
    if all(camera.pose is not None for camera in description.cameras):
        return lambda frame: None
    try:
        import tf2_ros
    except ImportError as error:
        raise ConfigurationError(
            f"{description.source}: tf2_ros cannot be imported ({error}), which finds the cameras' mounts; install "
            "ros-*-tf2-ros-py, or give the mount of each camera in a rig file"
        ) from error
    buffer = tf2_ros.Buffer()
    listener = tf2_ros.TransformListener(buffer, node, spin_thread=False)

    def pose(frame: str, _listener: Any = listener) -> FramePose | None:
        if not buffer.can_transform(base_frame, frame, Time()):
            return None
        return FramePose.of_transform(buffer.lookup_transform(base_frame, frame, Time()).transform)

    return pose


class RigSets:
    """Pairs the images of an active node. Belongs to the executor's thread."""

    def __init__(
        self, node: Node, rig: LiveRig, config: RigConfig, panoramas: RigPanoramas, on_set: Callable[[ImageSet], None]
    ) -> None:
        """Start to look for sets whose wait has ended. on_set takes each set, and must not wait."""
        self._node = node
        self._rig = rig
        self._panoramas = panoramas
        self._on_set = on_set
        self._pairing = Pairing(tuple(rig.sources), config)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # the wait goes on while a simulated clock stands still
        self._timer = node.create_timer(POLL_PERIOD_S, self._poll, clock=steady)

    def take(self, source: str, message: Any) -> None:
        """An image has arrived."""
        self._pass_on(self._pairing.add(source, stamp_ns(message.header), time.monotonic(), message))

    def close(self) -> None:
        """End the timer."""
        self._node.destroy_timer(self._timer)

    def problems(self) -> dict[str, str]:
        """The cameras that are missing in the panoramas now, each with the reason."""
        state = self._panoramas.state
        found = {} if state is None else dict(state.faults)
        for source, problem in self._pairing.problems(time.monotonic()).items():
            found.update(dict.fromkeys(self._rig.sources[source], problem))
        return found

    def values(self) -> dict[str, str]:
        """For the diagnostics: what each camera gives."""
        state = self._panoramas.state
        if state is None:
            return {}
        problems = self.problems()
        values = {
            f"camera.{name}": problems.get(name) or f"seen, brightness × {state.gains.get(name, 1.0):.2f}"
            for names in self._rig.sources.values()
            for name in names
        }
        if state.without_motion:
            values["not_moved_to_one_instant"] = ", ".join(state.without_motion)
        refused = {name: count for name, count in self._pairing.refused.items() if count}
        return {**values, "seen": f"{state.seen:.2f}", **{f"bad_stamps.{name}": str(n) for name, n in refused.items()}}

    def _poll(self) -> None:
        self._pass_on(self._pairing.poll(time.monotonic()))

    def _pass_on(self, sets: list[ImageSet]) -> None:
        for images in sets:
            self._on_set(images)
