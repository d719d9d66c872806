"""What the cameras of a rig see of a town: rays from each camera's own place, through its lens.

The town's renderer takes rays by azimuth and elevation. So a camera's part of the sphere is rendered from where the
camera is, and its image samples that part where each pixel looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import cv2
import numpy as np

from unifygeo_ros.core.arrays import Bool, Float32, Float64, UInt8
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.geodesy import azimuth_from_yaw
from unifygeo_ros.rig.composer import shortest_arc
from unifygeo_ros.rig.rig import RigCamera
from unifygeo_training.towns.panorama import LitStage, develop, render_light

NEAREST_POLE_RAD = math.radians(0.05)
"""Rays nearer to the zenith or the nadir are moved away by so much: an azimuth says nothing there."""


@dataclass(frozen=True)
class CameraPose:
    """Where base_link is when a camera exposes: town coordinates, yaw by REP-103."""

    x_m: float
    y_m: float
    yaw_rad: float


class CameraRenderer:
    """Renders the images of one camera. What depends on the lens and the mount alone is computed once."""

    def __init__(self, camera: RigCamera, ground_z_m: float = 0.0) -> None:
        """Prepare the camera's part of the sphere.

        Args:
            camera: Its lens says how large the images are.
            ground_z_m: Height of the ground in base_link.

        Raises:
            ConfigurationError: The lens shows nothing.
        """
        self.camera = camera
        self._height_m = float(camera.position_m[2] - ground_z_m)
        lens = camera.lens
        grid = np.stack(np.meshgrid(np.arange(lens.width), np.arange(lens.height)), axis=-1).astype(np.float64)
        optical, shown = lens.unproject(grid)
        if not shown.any():
            raise ConfigurationError(f"camera {camera.name}: its lens shows nothing; check it")
        self.shown: Bool = shown
        """bool (H, W): the pixels inside the lens' field."""
        directions = optical @ camera.base_from_optical.T
        azimuth = -np.arctan2(directions[..., 1], directions[..., 0])  # clockwise from base_link's x axis
        elevation = np.arctan2(directions[..., 2], np.hypot(directions[..., 0], directions[..., 1]))
        step = lens.rad_per_pixel()
        limit = math.pi / 2 - NEAREST_POLE_RAD
        top = min(float(elevation[shown].max()) + step, limit)
        bottom = max(float(elevation[shown].min()) - step, -limit)
        rows = max(2, math.ceil((top - bottom) / step) + 1)
        self._elevations = np.linspace(top, bottom, rows)
        self._azimuths, column = _columns(azimuth, shown, step)
        row = (top - elevation) / (top - bottom) * (rows - 1)
        self._maps: tuple[Float32, Float32] = column.astype(np.float32), row.astype(np.float32)

    def place(self, pose: CameraPose) -> tuple[float, float]:
        """Town coordinates of the camera."""
        forward, left = self.camera.position_m[:2]
        cos, sin = math.cos(pose.yaw_rad), math.sin(pose.yaw_rad)
        return pose.x_m + forward * cos - left * sin, pose.y_m + forward * sin + left * cos

    def image(self, lit: LitStage, pose: CameraPose, noise_seed: int | Sequence[int]) -> UInt8:
        """What the camera sees: uint8 (H, W, 3) RGB, black outside the lens' field."""
        azimuths = self._azimuths + float(azimuth_from_yaw(pose.yaw_rad))
        light = render_light(lit, *self.place(pose), self._height_m, azimuths, self._elevations)
        colour = cv2.remap(light, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        pixels = develop(colour, lit.appearance, noise_seed)
        pixels[~self.shown] = 0
        return pixels


def _columns(azimuth: Float64, shown: Bool, step: float) -> tuple[Float64, Float64]:
    """Azimuths to render, rising, about `step` apart, and each pixel's place among them."""
    bins = 720
    hits = np.zeros(bins, bool)
    hits[(np.floor((azimuth[shown] / (2 * np.pi)) % 1 * bins).astype(int)) % bins] = True
    start, count = shortest_arc(hits)
    if count >= bins - 8:  # all around: one more column than the circle has, so that its ends can be interpolated
        columns = math.ceil(2 * np.pi / step)
        azimuths = np.asarray(np.arange(columns + 1) * (2 * np.pi / columns), np.float64)
        return azimuths, (azimuth % (2 * np.pi)) / (2 * np.pi) * columns
    first = (start - 1) / bins * 2 * np.pi
    columns = max(2, math.ceil((count + 2) / bins * 2 * np.pi / step) + 1)
    azimuths = np.asarray(first + np.arange(columns) * step, np.float64)
    return azimuths, ((azimuth - first) % (2 * np.pi)) / step
