"""The images of a `CrossViewSplit`, cut and resized for a network: the same pixels for training and for judging."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from unifygeo_ros.core.arrays import UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.images.files import read_image
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.panorama import prepare_panorama
from unifygeo_training.data.split import CrossViewSplit
from unifygeo_training.model.config import NetworkConfig

Resize = Literal["area", "bilinear"]
INTERPOLATIONS = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR_EXACT}


class SplitImages:
    """Images are read when they are asked for."""

    def __init__(self, split: CrossViewSplit, config: NetworkConfig, *, resize: Resize = "area") -> None:
        """Open the images of a split.

        With resize "area", each pixel is the average over its area, as the robot does it; "bilinear" takes the four
        nearest pixels, without averaging: the published weights were trained and judged so. Raises InputError where the
        panoramas do not reach the elevations that the network sees.
        """
        ground = config.ground
        tolerance = 1e-6
        if (
            split.ground_top_rad < ground.elevation_top_rad - tolerance
            or split.ground_bottom_rad > ground.elevation_bottom_rad + tolerance
        ):
            have, want = (
                np.degrees([split.ground_bottom_rad, split.ground_top_rad]),
                np.degrees([ground.elevation_bottom_rad, ground.elevation_top_rad]),
            )
            raise InputError(
                f"{split.name}: its panoramas show elevations {have[0]:.1f}° to {have[1]:.1f}°, the network wants "
                f"{want[0]:.1f}° to {want[1]:.1f}°; use a network config for this data set"
            )
        self.split, self._interpolation = split, INTERPOLATIONS[resize]
        self.config = config
        self._mount = CameraMount(elevation_top_rad=split.ground_top_rad, elevation_bottom_rad=split.ground_bottom_rad)

    def ground_image(self, query: int) -> UInt8:
        """uint8 (H, W, 3) RGB of the network's ground size, centre column facing north."""
        ground = self.config.ground
        image = read_image(self.split.ground[query])
        if self._interpolation == cv2.INTER_AREA:
            # The robot's own preprocessing, for a camera that looks north.
            return prepare_panorama(CameraImage(image, 0), ground, self._mount, None).pixels
        field = self.split.ground_top_rad - self.split.ground_bottom_rad
        top, bottom = (
            round((self.split.ground_top_rad - elevation) / field * len(image))
            for elevation in (ground.elevation_top_rad, ground.elevation_bottom_rad)
        )
        return cv2.resize(image[top:bottom], (ground.width, ground.height), interpolation=self._interpolation)

    def aerial_image(self, tile: int) -> UInt8:
        """uint8 (L, L, 3) RGB of the network's aerial size."""
        size = self.config.aerial_size
        return cv2.resize(read_image(self.split.gallery[tile]), (size, size), interpolation=self._interpolation)
