"""Panorama files → camera images, with the geometry that the file itself states."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unifygeo_ros.core.arrays import Bool, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import wrap_angle, yaw_from_azimuth
from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.images.files import MAX_PIXELS, decode_alpha, decode_image, read_bytes
from unifygeo_ros.images.metadata import Crop, PanoramaMetadata, read_metadata
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.panorama import FILL_RGB

_SCALE_TOLERANCE = 0.01
"""Largest relative difference between the scales of the two axes of a resized image."""


@dataclass(frozen=True)
class PanoramaFile:
    """A panorama as its file holds it."""

    image: CameraImage
    """With `seen` where the file is transparent or cropped; its stamp is 0 and its tilt not known."""
    metadata: PanoramaMetadata


@dataclass(frozen=True)
class Attitude:
    """How the vehicle stood, REP-103: rotations about base_link's axes, yaw counter-clockwise from east."""

    roll_rad: float
    pitch_rad: float
    yaw_rad: float


def read_panorama(path: Path, mount: CameraMount, least_width: int | None = None) -> PanoramaFile:
    """Read a JPEG or PNG.

    Transparent pixels are marked as not seen. A panorama whose GPano metadata says that it is a part of the full sphere
    is put into its place there, unless the mount gives elevations: then these say what the image shows.

    Args:
        path: the file.
        mount: says whether the image is the full sphere.
        least_width: columns of a full turn beyond which the localizer needs no more: a larger JPEG is decoded reduced
            (`decode_image`). None: full size.

    Raises:
        InputError: the file cannot be read, or its metadata contradicts its pixels.
    """
    data = read_bytes(path, "give a JPEG or PNG file")
    stated = b"GPano" in data or b"Exif" in data or b"eXIf" in data
    metadata = read_metadata(data, str(path)) if stated else PanoramaMetadata()
    full_sphere = (mount.elevation_top_rad, mount.elevation_bottom_rad) == (math.pi / 2, -math.pi / 2)
    crop = None if metadata.crop is None or metadata.crop.is_full or not full_sphere else metadata.crop
    if crop is not None and least_width is not None:
        least_width = math.ceil(least_width * crop.width / crop.full_width)
    pixels, seen = decode_image(data, str(path), least_width), decode_alpha(data, str(path))
    if crop is not None:
        pixels, seen = _in_full_sphere(pixels, seen, crop, path)
    if seen is not None:
        pixels[~seen] = FILL_RGB
    return PanoramaFile(CameraImage(pixels, stamp_ns=0, seen=seen), metadata)


def vehicle_attitude(metadata: PanoramaMetadata, azimuth_rad: float, mount: CameraMount) -> Attitude:
    """The vehicle's attitude from that of its camera.

    Args:
        metadata: its pitch and roll. If it states neither, the vehicle is taken as level.
        azimuth_rad: where the camera's middle column faces, clockwise from north. Roll and pitch do not depend on it.
        mount: how the camera is turned on the vehicle; not upside down.
    """
    yaw_rad = yaw_from_azimuth(azimuth_rad)
    if metadata.pitch_deg is None and metadata.roll_deg is None:
        return Attitude(0.0, 0.0, wrap_angle(yaw_rad - mount.yaw_rad))
    # The camera's x axis looks along its middle column, z is up: GPano's pitch raises x, REP-103's lowers it.
    pitch_rad, roll_rad = -math.radians(metadata.pitch_deg or 0.0), math.radians(metadata.roll_deg or 0.0)
    from scipy.spatial.transform import Rotation  # slow to import: see `unifygeo_ros.tracking.region`

    map_from_camera = Rotation.from_euler("ZYX", [yaw_rad, pitch_rad, roll_rad])
    base_from_camera = Rotation.from_euler("ZYX", [mount.yaw_rad, mount.pitch_rad, mount.roll_rad])
    yaw, pitch, roll = (map_from_camera * base_from_camera.inv()).as_euler("ZYX").tolist()
    return Attitude(roll, pitch, yaw)


def _in_full_sphere(pixels: UInt8, seen: Bool | None, crop: Crop, path: Path) -> tuple[UInt8, Bool]:
    """The whole sphere with the image in its place, and where it is. A resized image is placed at its own scale."""
    height, width = pixels.shape[:2]
    scale = width / crop.width
    if abs(height / crop.height / scale - 1) > _SCALE_TOLERANCE:
        raise InputError(
            f"{path}: is {width}x{height} pixels, its GPano metadata says {crop.width}x{crop.height}; correct the "
            "metadata, or give the elevations of the image's edges (--elevation-top-rad, --elevation-bottom-rad)"
        )
    full_height, full_width = round(crop.full_height * scale), round(crop.full_width * scale)
    if full_height * full_width > MAX_PIXELS:
        raise InputError(
            f"{path}: is part of a sphere of {full_width}x{full_height} pixels, at most {MAX_PIXELS} in all can be "
            "used; resize it"
        )
    top = min(round(crop.top * scale), full_height - height)
    left = min(round(crop.left * scale), full_width - width)
    canvas = np.full((full_height, full_width, 3), FILL_RGB, np.uint8)
    shown = np.zeros((full_height, full_width), np.bool_)
    canvas[top : top + height, left : left + width] = pixels
    shown[top : top + height, left : left + width] = True if seen is None else seen
    return canvas, shown
