"""Lenses from `sensor_msgs/CameraInfo`, by the message's fields alone: no ROS is imported."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.rig.lenses import Fisheye, Lens, Pinhole

PINHOLE_MODELS = ("plumb_bob", "rational_polynomial")
FISHEYE_MODELS = ("equidistant", "fisheye")
"""`fisheye` is what some drivers call OpenCV's fisheye model, which ROS names `equidistant`."""


class InfoLens(NamedTuple):
    """What a CameraInfo says of its images."""

    lens: Lens
    optical_from_image: Float64
    """float64 (3, 3): the axes that the lens model is given in, in those of the message's frame. Rectified images are
    turned by R against it, others are not."""


def lens_of_camera_info(info: Any, name: str, *, rectified: bool = False) -> InfoLens:
    """The lens that a calibration describes.

    Args:
        info: sensor_msgs/CameraInfo, or anything with its fields (`k` or `K`, as ROS 2 and ROS 1 name them).
        name: The camera's name, for messages.
        rectified: Whether the images are rectified (`image_rect`): P and R then count, and no distortion.

    Returns:
        The lens of the images as they are sent, after region of interest and binning.

    Raises:
        ConfigurationError: The camera is not calibrated, or the calibration cannot be.
    """
    where = f"camera {name}"
    width, height = int(info.width), int(info.height)
    matrix = _values(info, "k", 9, where).reshape(3, 3)
    turn = np.eye(3)
    coefficients = [float(value) for value in _field(info, "d")]
    model = str(info.distortion_model)
    if rectified:
        matrix = _values(info, "p", 12, where).reshape(3, 4)[:, :3]
        rotation = _values(info, "r", 9, where).reshape(3, 3)
        turn = rotation.T if rotation.any() else turn
        model, coefficients = "plumb_bob", []
    fx, fy, cx, cy = (float(matrix[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    width, height, (x, y), (bx, by) = _part_of_sensor(info, width, height, where)
    # Pixel centres lie at whole numbers, so that scaling goes by the pixels' edges.
    fx, fy = fx / bx, fy / by
    cx, cy = (cx - x + 0.5) / bx - 0.5, (cy - y + 0.5) / by - 0.5
    with_name = _named(where)
    if not model and not any(coefficients):
        return InfoLens(with_name(lambda: Pinhole(width, height, fx, fy, cx, cy)), turn)
    if model in PINHOLE_MODELS:
        values = coefficients[:8]
        if len(coefficients) > 8 and any(coefficients[8:]):
            raise ConfigurationError(
                f"{where}: {len(coefficients)} distortion values, of {model} up to 8 can be used (no thin prism, no "
                "tilted sensor); calibrate with 5 or 8"
            )
        return InfoLens(with_name(lambda: Pinhole(width, height, fx, fy, cx, cy, tuple(values))), turn)
    if model in FISHEYE_MODELS:
        return InfoLens(with_name(lambda: Fisheye(width, height, fx, fy, cx, cy, tuple(coefficients))), turn)
    raise ConfigurationError(
        f"{where}: distortion_model {model!r} is not known; known are {', '.join((*PINHOLE_MODELS, *FISHEYE_MODELS))}. "
        "Calibrate the camera with one of them, or describe its lens in the rig file"
    )


def _part_of_sensor(
    info: Any, width: int, height: int, where: str
) -> tuple[int, int, tuple[int, int], tuple[int, int]]:
    """Size of the images, offset of the region of interest on the sensor, and binning."""
    binning = max(1, int(getattr(info, "binning_x", 0))), max(1, int(getattr(info, "binning_y", 0)))
    roi = getattr(info, "roi", None)
    offset = (0, 0)
    if roi is not None and (roi.width or roi.height):
        offset = int(roi.x_offset), int(roi.y_offset)
        if not (0 < roi.width <= width - offset[0] and 0 < roi.height <= height - offset[1]):
            raise ConfigurationError(
                f"{where}: region of interest {roi.width}x{roi.height} at {offset[0]}, {offset[1]} is not inside the "
                f"sensor of {width}x{height}; correct roi in the CameraInfo"
            )
        width, height = int(roi.width), int(roi.height)
    return width // binning[0], height // binning[1], offset, binning


def _field(info: Any, name: str) -> Any:
    """A field by its name in ROS 2 (small letters) or ROS 1 (capitals)."""
    return getattr(info, name) if hasattr(info, name) else getattr(info, name.upper())


def _values(info: Any, name: str, count: int, where: str) -> Float64:
    values = np.asarray(_field(info, name), np.float64).ravel()
    if values.size != count or not np.isfinite(values).all():
        bad = "not finite" if values.size == count else f"{values.size} values, must be {count}"
        raise ConfigurationError(f"{where}: {name.upper()} of its CameraInfo is {bad}; calibrate the camera")
    return values


def _named(where: str) -> Callable[[Callable[[], Lens]], Lens]:
    """Put the camera's name in front of what its lens refuses."""

    def make(lens: Callable[[], Lens]) -> Lens:
        try:
            return lens()
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from None

    return make
