"""Where sensors sit on the vehicle, from TF: each frame is looked up once, while the node runs."""

from __future__ import annotations

import time
from typing import Any

from rclpy.node import Node
from rclpy.time import Time

from unifygeo_ros.conversions.from_messages import frame_name
from unifygeo_ros.conversions.sensor_frames import SensorPose
from unifygeo_ros.core.errors import InputError

LOOKUP_PERIOD_S = 0.2
"""A transform that is not there yet is asked for again after this; a fast IMU must not cost a look-up a message."""


class SensorFrames:
    """Poses of the frames that messages name, in base_frame. Belongs to the executor's thread.

    The first frame that is not base_frame starts a TF listener on the node; it ends when every frame is known.
    """

    def __init__(self, node: Node, base_frame: str, source: str) -> None:
        """source: the parameter input_frames, "tf" or "base"."""
        self._node = node
        self._base_frame = base_frame
        self._ask_tf = source == "tf"
        self._poses: dict[str, SensorPose | None] = {}
        self._faults: dict[str, str] = {}
        self._next_lookup_s: dict[str, float] = {}
        self._buffer: Any = None
        self._listener: Any = None

    def pose(self, frame_id: str) -> SensorPose | None:
        """Pose of a message's frame in base_frame; None where it is base_frame, or not named.

        Raises:
            InputError: TF does not connect the frames (yet), or cannot be asked.
        """
        frame = frame_name(frame_id)
        if not self._ask_tf or frame in ("", self._base_frame):
            return None
        if frame not in self._poses:
            self._look_up(frame)
        return self._poses[frame]

    def known(self) -> dict[str, str]:
        """What was looked up so far, for the diagnostics: frame → where it sits."""
        return {frame: _text(pose) for frame, pose in self._poses.items()} | self._faults

    def close(self) -> None:
        """End the TF listener."""
        if self._listener is not None:
            self._listener.unregister()
        self._listener = self._buffer = None

    def _look_up(self, frame: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_lookup_s.get(frame, 0.0):
            self._next_lookup_s[frame] = now_s + LOOKUP_PERIOD_S
            if fault := self._ask(frame):
                self._faults[frame] = fault
            else:
                self._faults.pop(frame, None)
                if not self._faults:
                    self.close()
        if frame in self._faults:
            raise InputError(self._faults[frame])

    def _ask(self, frame: str) -> str | None:
        """Look a frame up in TF. Returns why that failed, in words that stay the same from try to try."""
        remedy = "publish that static transform, or set input_frames to base if the axes are base_frame's"
        if self._listener is None:
            try:
                import tf2_ros
            except ImportError:
                return f"frame {frame!r} is not {self._base_frame!r} and tf2_ros is not installed; {remedy}"
            self._buffer = tf2_ros.Buffer()
            self._listener = tf2_ros.TransformListener(self._buffer, self._node)
        if not self._buffer.can_transform(self._base_frame, frame, Time()):
            return f"frame {frame!r}: TF has no transform to {self._base_frame!r}; {remedy}"
        transform = self._buffer.lookup_transform(self._base_frame, frame, Time()).transform
        try:
            self._poses[frame] = SensorPose.from_transform(transform)
        except InputError as error:
            return f"frame {frame!r}: {error}"
        self._node.get_logger().info(f"{frame} on {self._base_frame} from TF: {_text(self._poses[frame])}")
        return None


def _text(pose: SensorPose | None) -> str:
    if pose is None:
        return "the same frame"
    x, y, z = pose.position_m.tolist()
    yaw, pitch, roll = pose.rotation.as_euler("ZYX", degrees=True).tolist()
    return f"x {x:.2f} m, y {y:.2f} m, z {z:.2f} m, roll {roll:.1f}°, pitch {pitch:.1f}°, yaw {yaw:.1f}°"
