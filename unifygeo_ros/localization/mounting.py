"""The camera's place on the vehicle out of a transform: live TF's or a recorded one."""

from __future__ import annotations

import dataclasses
import math

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.motion.samples import roll_pitch_yaw

TILT_LIMIT_RAD = 0.05
"""A camera frame that leans further than this cannot be described by `CameraMount`, which knows level and upside
down only."""


def mount_from_transform(camera: CameraMount, transform: object, camera_frame: str) -> CameraMount:
    """transform: geometry_msgs/Transform of the camera in base_link. Raises ConfigurationError for a leaning frame."""
    q, t = transform.rotation, transform.translation  # type: ignore[attr-defined]
    roll, pitch, yaw = roll_pitch_yaw(q.x, q.y, q.z, q.w)
    upside_down = abs(roll) > math.pi / 2
    lean = max(abs(math.pi - abs(roll) if upside_down else roll), abs(pitch))
    if not lean <= TILT_LIMIT_RAD:  # also for NaN
        raise ConfigurationError(
            f"{camera_frame} leans by {math.degrees(lean):.1f}° against the base frame, at most "
            f"{math.degrees(TILT_LIMIT_RAD):.1f}° can be used; name a frame with x through the image's centre column "
            "and z up (not an optical frame)"
        )
    return dataclasses.replace(camera, x_m=t.x, y_m=t.y, yaw_rad=yaw, upside_down=upside_down)
