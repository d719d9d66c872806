"""A rig: the cameras of a vehicle, each with its lens and its pose on base_link."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.rig.lenses import Lens

BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Axes of an optical frame (x right, y down, z forward) in a body frame (x forward, y left, z up), REP-103."""

MAX_DISTANCE_M = 50.0
"""Cameras further than this from base_link are a mistake of units or frames."""

DISTANCE_M = 30.0
"""Default of `Rig.distance_m`: houses along a street are 10 m to 60 m away."""

VIEW_HEIGHT_M = 2.0
"""Height from which a rig file's panorama is seen, where the file says nothing else: that of the cameras of the towns,
from which networks learn. Seen from 0.8 m, a road is so low that the network does not find its place."""


@dataclass(frozen=True)
class RigCamera:
    """One camera of a rig."""

    name: str
    lens: Lens
    base_from_optical: Float64
    """float64 (3, 3): rotation of the optical frame's axes into base_link's."""
    position_m: Float64
    """float64 (3,): the camera in base_link."""

    def __post_init__(self) -> None:
        rotation, position = np.asarray(self.base_from_optical, np.float64), np.asarray(self.position_m, np.float64)
        if rotation.shape != (3, 3) or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4):
            raise ConfigurationError(f"camera {self.name}: its rotation {rotation.tolist()} is not a rotation matrix")
        if np.linalg.det(rotation) < 0:
            raise ConfigurationError(f"camera {self.name}: its rotation mirrors; swap no axes")
        if position.shape != (3,) or not np.isfinite(position).all() or np.abs(position).max() > MAX_DISTANCE_M:
            raise ConfigurationError(
                f"camera {self.name}: position {position.tolist()} m in base_link, must be three numbers within "
                f"±{MAX_DISTANCE_M:g}"
            )


@dataclass(frozen=True)
class Rig:
    """The cameras of a vehicle, at least one, with different names."""

    cameras: tuple[RigCamera, ...]
    ground_z_m: float = 0.0
    """Height of the ground in base_link: 0 where base_link lies on the ground, −0.3 where it lies 0.3 m above it."""

    distance_m: float = DISTANCE_M
    """How far away what stands above the ground is taken to be. Cameras at different places see it in one direction at
    this distance, and off by (their distance) × (1/d − 1/distance_m) radians at the distance d."""

    view_height_m: float | None = None
    """Height above the ground from which the composed panorama is seen; None: the mean of the cameras' heights."""

    def __post_init__(self) -> None:
        names = [camera.name for camera in self.cameras]
        if not names:
            raise ConfigurationError("a rig without cameras; name at least one")
        if len(set(names)) < len(names):
            raise ConfigurationError(f"two cameras of one name in {', '.join(names)}; give each a name of its own")
        if not 1.0 <= self.distance_m <= 1e6:
            raise ConfigurationError(f"distance_m {self.distance_m:g}, must be 1 to 1e6 m; 30 suits streets")
        if self.view_height_m is not None and not 0.1 <= self.view_height_m <= 2000.0:
            raise ConfigurationError(
                f"view_height_m {self.view_height_m:g}, must be 0.1 to 2000 m; take the height of the cameras that the "
                f"network learned from, {VIEW_HEIGHT_M:g} m of the shipped one"
            )
        if min(camera.position_m[2] for camera in self.cameras) <= self.ground_z_m:
            raise ConfigurationError(
                f"ground_z_m {self.ground_z_m:g} is not below every camera; it is the ground's height in base_link"
            )

    @property
    def centre_m(self) -> Float64:
        """The point from which the composed panorama is seen, float64 (3,): amid the cameras, at `view_height_m`."""
        forward, left, height = np.mean([camera.position_m for camera in self.cameras], axis=0)
        if self.view_height_m is not None:
            height = self.ground_z_m + self.view_height_m
        return np.array([forward, left, height], np.float64)


def rotation_from_mount(roll_rad: float, pitch_rad: float, yaw_rad: float) -> Float64:
    """base_from_optical of a camera from the roll, pitch and yaw of its body frame (x along the view, z up), REP-103.

    Returns:
        float64 (3, 3).
    """
    from scipy.spatial.transform import Rotation  # slow to import: see `unifygeo_ros.tracking.region`

    body = Rotation.from_euler("ZYX", [yaw_rad, pitch_rad, roll_rad]).as_matrix()
    return np.asarray(body @ BODY_FROM_OPTICAL)
