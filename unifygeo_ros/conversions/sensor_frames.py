"""Poses of sensors on the vehicle, and what their messages say of base_link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import InputError

MIN_TURN_RAD = 1e-6
MIN_OFFSET_M = 1e-6
"""A sensor that sits closer than this to base_link is taken for base_link."""


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
        q, t = transform.rotation, transform.translation
        position_m = np.array([t.x, t.y, t.z], np.float64)
        quaternion = np.array([q.x, q.y, q.z, q.w], np.float64)
        if not (np.isfinite(position_m).all() and np.isfinite(quaternion).all() and np.linalg.norm(quaternion) > 1e-6):
            raise InputError(
                f"translation {position_m.tolist()} and quaternion {quaternion.tolist()} are no transform; publish one "
                "with finite numbers and a quaternion of length 1"
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
        if not np.isfinite(quaternion).all() or np.linalg.norm(quaternion) < 1e-6:
            return quaternion
        x, y, z, w = (Rotation.from_quat(quaternion) * self.rotation.inv()).as_quat().tolist()
        return x, y, z, w

    def base_in_sensor_m(self) -> Float64:
        """Origin of base_link in the sensor's axes: float64 (3,)."""
        return np.asarray(-self.rotation.inv().apply(self.position_m), np.float64)
