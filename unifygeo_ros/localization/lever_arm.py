"""Where the camera is when base_link is known, and the reverse.

Only the plane is looked at: a camera mounted at height z above base_link moves by z · sin(tilt) when the vehicle tilts,
9 cm for 1 m and 5°, which is inside the position floor. The mount therefore has no height.
"""

from __future__ import annotations

import math

import numpy as np

from unifygeo_ros.core.records import Float64
from unifygeo_ros.localization.config import CameraMount


def camera_offset_m(mount: CameraMount, yaw_rad: float) -> Float64:
    """Camera minus base_link in the map frame: float64 (2,), east and north. yaw_rad: of base_link, REP-103."""
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    return np.array([cos * mount.x_m - sin * mount.y_m, sin * mount.x_m + cos * mount.y_m])


def camera_offset_covariance_m2(mount: CameraMount, yaw_rad: float, yaw_variance_rad2: float) -> Float64:
    """What the yaw's error adds to the offset: float64 (2, 2), first order, along the derivative of the offset."""
    east, north = camera_offset_m(mount, yaw_rad)
    derivative = np.array([-north, east])
    return yaw_variance_rad2 * np.outer(derivative, derivative)
