"""Poses of sensors on the vehicle, and what their messages say of base_link.

The node looks them up in TF, the replay in the bag's static transforms; which frames are looked up, and what is said
where that fails, is the same.
"""

from __future__ import annotations

import abc
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import InputError

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

MIN_TURN_RAD = 1e-6
MIN_OFFSET_M = 1e-6
"""A sensor that sits closer than this to base_link is taken for base_link."""


REMEDY = "publish that static transform, or set input_frames to base if the axes are base_frame's"
"""What to do where a frame has no transform."""


def frame_name(frame_id: str) -> str:
    """A frame's name without the leading slash of ROS 1."""
    return frame_id.lstrip("/")


@dataclass(frozen=True)
class SensorPose:
    """Pose of a sensor's frame in base_link, as TF gives it."""

    rotation: Rotation
    """Turns a vector given in the sensor's axes into base_link's."""
    position_m: Float64
    """float64 (3,): the sensor's origin in base_link."""

    @classmethod
    def from_transform(cls, transform: Any) -> SensorPose | None:
        """Read a geometry_msgs/Transform of the sensor in base_link; None where both frames are the same.

        Raises:
            InputError: The transform is not finite, or its quaternion is zero.
        """
        from scipy.spatial.transform import Rotation  # slow to import: see `unifygeo_ros.tracking.region`

        q, t = transform.rotation, transform.translation
        position_m = np.array([t.x, t.y, t.z], np.float64)
        quaternion = np.array([q.x, q.y, q.z, q.w], np.float64)
        if not (np.isfinite(position_m).all() and np.isfinite(quaternion).all() and np.linalg.norm(quaternion) > 1e-6):
            raise InputError(
                f"translation {position_m.tolist()} and quaternion {quaternion.tolist()} are not a valid transform; "
                "publish one with finite numbers and a quaternion of length 1"
            )
        rotation = Rotation.from_quat(quaternion)
        if rotation.magnitude() < MIN_TURN_RAD and np.linalg.norm(position_m) < MIN_OFFSET_M:
            return None
        return cls(rotation, position_m)

    def base_rotation(self, quaternion: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Convert the orientation of the sensor's frame to that of base_link, in the same parent frame.

        Args:
            quaternion: x, y, z, w of any length. Zero or not finite: returned as it is, for the samples' own check.
        """
        from scipy.spatial.transform import Rotation

        if not np.isfinite(quaternion).all() or np.linalg.norm(quaternion) < 1e-6:
            return quaternion
        x, y, z, w = (Rotation.from_quat(quaternion) * self.rotation.inv()).as_quat().tolist()
        return x, y, z, w

    def base_in_sensor_m(self) -> Float64:
        """Origin of base_link in the sensor's axes: float64 (3,)."""
        return np.asarray(-self.rotation.inv().apply(self.position_m), np.float64)

    def __str__(self) -> str:
        x, y, z = self.position_m.tolist()
        yaw, pitch, roll = self.rotation.as_euler("ZYX", degrees=True).tolist()
        return f"x {x:.2f} m, y {y:.2f} m, z {z:.2f} m, roll {roll:.1f}°, pitch {pitch:.1f}°, yaw {yaw:.1f}°"


class SensorFrames(abc.ABC):
    """Poses of the frames that messages name, in base_frame. For one thread.

    A frame is looked up until it is found, then never again: its transform must be static.
    """

    def __init__(self, base_frame: str, input_frames: str, retry_s: float) -> None:
        """Look up nothing yet.

        Args:
            base_frame: The frame that the samples are wanted in.
            input_frames: The parameter of that name: "tf", or "base" to take every frame for base_frame.
            retry_s: A frame that was not found is looked up again after this.
        """
        self.base_frame = base_frame
        self._look_ups = input_frames == "tf"
        self._retry_s = retry_s
        self._poses: dict[str, SensorPose | None] = {}
        self._faults: dict[str, str] = {}
        self._next_look_up_s: dict[str, float] = {}

    def pose(self, frame_id: str) -> SensorPose | None:
        """Pose of a message's frame in base_frame; None where it is base_frame, or not named.

        Raises:
            InputError: No transform connects the frames (yet), or it cannot be used.
        """
        frame = frame_name(frame_id)
        if not self._look_ups or frame in ("", self.base_frame):
            return None
        if frame not in self._poses:
            self._look_up(frame)
        return self._poses[frame]

    def known(self) -> dict[str, str]:
        """What was looked up so far, for people: frame → where it is, or why that is not known."""
        return {frame: self._text(frame) for frame in self._poses} | self._faults

    @abc.abstractmethod
    def _transform(self, frame: str) -> Any | None:
        """geometry_msgs/Transform of a frame in base_frame; None where nothing connects them. Raises InputError."""

    def _found(self, frame: str) -> None:  # noqa: B027  a hook that may stay empty
        """Called once for each frame, as soon as its pose is known."""

    def _text(self, frame: str) -> str:
        pose = self._poses[frame]
        return "the same frame" if pose is None else str(pose)

    def _look_up(self, frame: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_look_up_s.get(frame, -math.inf):
            self._next_look_up_s[frame] = now_s + self._retry_s
            try:
                transform = self._transform(frame)
                if transform is None:
                    raise InputError(f"TF has no transform to {self.base_frame!r}; {REMEDY}")
                self._poses[frame] = SensorPose.from_transform(transform)
            except InputError as error:
                self._faults[frame] = f"frame {frame!r}: {error}"
            else:
                self._faults.pop(frame, None)
                self._found(frame)
        if frame in self._faults:
            raise InputError(self._faults[frame])
