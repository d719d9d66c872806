"""The camera on the vehicle: its mount from a transform, and where it is when base_link is known.

Only the plane is looked at: a camera mounted at height z above base_link moves by z · sin(tilt) when the vehicle tilts,
9 cm for 1 m and 5°, which is inside the position floor. The mount therefore has no height.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.se2 import Pose2, rotation_derivative
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.motion.samples import roll_pitch_yaw
from unifygeo_ros.rig.rig import Rig

OPTICAL_TOLERANCE_RAD = 0.17
"""A frame turned this nearly as an optical frame (z forward, x right) is taken for one."""


def mount_from_transform(camera: CameraMount, transform: object, camera_frame: str) -> CameraMount:
    """Take a camera's position and orientation from a transform: live TF's or a recorded one.

    Args:
        camera: Whose other settings stay.
        transform: geometry_msgs/Transform of the camera in base_link.
        camera_frame: Its name, for the message.

    Raises:
        ConfigurationError: The transform is not finite, or the frame is an optical one.
    """
    q, t = transform.rotation, transform.translation  # type: ignore[attr-defined]
    roll, pitch, yaw = roll_pitch_yaw(q.x, q.y, q.z, q.w)
    if not all(map(math.isfinite, (roll, pitch, yaw, t.x, t.y))):
        raise ConfigurationError(
            f"the transform of {camera_frame} is not finite or its quaternion is zero; publish a valid one"
        )
    if max(abs(roll + math.pi / 2), abs(pitch)) < OPTICAL_TOLERANCE_RAD:
        raise ConfigurationError(
            f"{camera_frame} is turned as an optical frame is (roll {math.degrees(roll):.1f}°, pitch "
            f"{math.degrees(pitch):.1f}°); name a frame with x through the image's centre column and z up, not an "
            "optical frame, or set camera.roll_rad and the other camera parameters if the camera does lie on its side"
        )
    upside_down = abs(roll) > math.pi / 2
    if upside_down:
        roll -= math.copysign(math.pi, roll)
    return dataclasses.replace(
        camera, x_m=t.x, y_m=t.y, yaw_rad=yaw, pitch_rad=pitch, roll_rad=roll, upside_down=upside_down
    )


def rig_mount(camera: CameraMount, rig: Rig) -> CameraMount:
    """The mount of the panorama that is composed from a rig: it is seen from the rig's centre, along base_link's axes.

    Args:
        camera: The configured mount; of it only the mask counts.
        rig: The cameras.

    Raises:
        ConfigurationError: The mount says more than that, and that would be ignored.
    """
    changed = [
        item.name
        for item in dataclasses.fields(camera)
        if item.name != "mask_path" and getattr(camera, item.name) != item.default
    ]
    if changed:
        raise ConfigurationError(
            f"camera.{changed[0]} is set, but a rig's mounts are in the rig file or in TF; leave out camera.* but "
            "mask_path"
        )
    x_m, y_m, _ = rig.centre_m.tolist()
    return dataclasses.replace(camera, x_m=x_m, y_m=y_m)


def camera_offset_m(mount: CameraMount, yaw_rad: float) -> Float64:
    """Camera minus base_link in the map frame: float64 (2,), east and north.

    Args:
        mount: of the camera.
        yaw_rad: of base_link, REP-103.
    """
    return np.array(Pose2(0.0, 0.0, yaw_rad).apply(mount.x_m, mount.y_m))


def camera_offset_covariance_m2(mount: CameraMount, yaw_rad: float, yaw_variance_rad2: float) -> Float64:
    """What the yaw's error adds to the offset: float64 (2, 2), first order, along the derivative of the offset."""
    derivative = rotation_derivative(camera_offset_m(mount, yaw_rad))
    return yaw_variance_rad2 * np.outer(derivative, derivative)
