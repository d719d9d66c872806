"""Camera image → panorama: the one preprocessing of training and runtime.

Convention
----------
Column c of W looks, at its centre, ``(c + 0.5)/W · 2π − π`` clockwise (seen from above: to the right) of the centre
column; row r of H looks at the elevation ``top − (r + 0.5)/H · (top − bottom)``. This holds for the camera's image
(elevations of `CameraMount`, azimuths relative to the camera) and for the panorama made from it (elevations of
`GroundSpec`, azimuths relative to north, or to base_link's x axis where the heading is not known).
docs/explanation/panoramas.md draws it.

Two ways lead from the one to the other, and both average over the area that an output pixel covers:

* *level* (neither vehicle nor camera tilted, and the model's elevations on whole rows of the image, the usual case):
  crop, roll the columns, average. A roll by a fraction of a column first mixes neighbouring columns; else the areas are
  exact.
* *general*: the image is averaged down to twice the panorama's resolution, sampled there bilinearly along the rotated
  directions, and averaged in twos.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import cv2
import numpy as np

from unifygeo_ros.core.arrays import Bool, Float32, Float64, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import azimuth_from_yaw
from unifygeo_ros.core.records import CameraImage, Heading, Panorama, Rejection, RejectionReason, Seen
from unifygeo_ros.images.files import read_image
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.camera_checks import projection_problem
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig

ASPECT_TOLERANCE = 0.01
"""Largest relative deviation of width / height from what the mount's elevations say (2 for a full sphere)."""

FILL_RGB = (124, 116, 104)
"""What stands where the image shows nothing of the world: under the body mask and beyond its vertical field. It is the
mean colour of ImageNet, near 0 after the networks' normalisation; the training's dropout paints the same."""

MIN_TILT_RAD = 2e-3
"""Smaller tilts are not corrected: a quarter of a row of the largest ground input, 384 rows for 180°."""

_WHOLE_ROWS = 0.02
"""The shortcut for level images needs elevations within this many rows of a whole row; 2% of a row is invisible."""
_WHOLE_COLUMNS = 1 / 64
"""A shift within this many columns of a whole number is made as a whole number of columns."""
LEAST_OF_AZIMUTH = 0.1
"""Share of the network's elevations from which on an azimuth counts as seen."""

_SHARPNESS_WIDTH = 512
_LEAST_DECODED = 960
"""Columns to which an image may be decoded for sharpness and `camera_checks`: so a camera of 1920 columns is decoded at
half of its size. Of photographs with 1920 columns the sharpness is then a fifth lower, far above the default limit."""
_MASK_WIDTH = 1024


def enough_columns(ground: GroundSpec) -> int:
    """Columns of a full turn beyond which an image adds nothing visible to the panorama: JPEGs are decoded no larger.

    Twice the panorama's resolution, along or across, which is what the general way averages down to; and nearly twice
    what sharpness and `camera_checks` look at. benchmarks/decode.py measures what the panorama loses.
    """
    rows_of_a_turn = 2 * math.pi / (ground.elevation_top_rad - ground.elevation_bottom_rad) * ground.height
    return max(2 * ground.width, 2 * math.ceil(rows_of_a_turn), _LEAST_DECODED)


def composed_columns(ground: GroundSpec) -> int:
    """Columns of a panorama that is composed from several cameras: the network's resolution, along or across."""
    rows_of_a_turn = 2 * math.pi / (ground.elevation_top_rad - ground.elevation_bottom_rad) * ground.height
    return math.ceil(max(ground.width, rows_of_a_turn, 32) / 8) * 8


def check_image(image: CameraImage, mount: CameraMount, config: LocalizerConfig) -> Rejection | None:
    """Why an image is of no use, or None.

    It may have the wrong type or aspect or a tilt that is not finite, be black or blurred, or be no equirectangular
    panorama (`camera_checks`). Brightness is the mean over every eighth pixel. Sharpness is the variance of the
    Laplacian of the grey image averaged down to 512 columns: there it hardly depends on the camera's resolution, and
    counts the detail that the network can see. Pixels that are not seen (`CameraImage.seen`) count in neither.
    """

    def rejection(reason: RejectionReason, detail: str) -> Rejection:
        return Rejection(image.stamp_ns, reason, detail)

    pixels = image.pixels
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3):
        got = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {getattr(pixels, 'shape', '')}"
        return rejection(RejectionReason.BAD_IMAGE, f"image is {got}, must be uint8 (height, width, 3) RGB; convert it")
    height, width = pixels.shape[:2]
    if problem := _aspect_problem(height, width, mount):
        return rejection(RejectionReason.BAD_IMAGE, f"image {problem}")
    for name, angle in (("roll", image.roll_rad), ("pitch", image.pitch_rad)):
        if angle is not None and not math.isfinite(angle):
            return rejection(RejectionReason.BAD_IMAGE, f"{name} is {angle} rad, must be finite or not given")
    if image.seen is not None and not image.seen.any():
        return rejection(RejectionReason.BAD_IMAGE, "no pixel shows anything of the world; check the cameras")
    some = pixels[::8, ::8] if image.seen is None else pixels[::8, ::8][image.seen[::8, ::8]]
    brightness = float(some.mean()) if some.size else float(pixels[image.seen].mean())
    if brightness < config.minimum_brightness:
        return rejection(
            RejectionReason.BLACK_IMAGE,
            f"mean brightness {brightness:.1f} of 255 is under minimum_brightness {config.minimum_brightness:g}; "
            "check the lens cap and the exposure",
        )
    small = _small_grey(pixels) if config.minimum_sharpness > 0.0 or config.check_projection else None
    if small is not None and config.minimum_sharpness > 0.0:
        value = _detail(small, image.seen)
        if value < config.minimum_sharpness:
            return rejection(
                RejectionReason.BLURRED_IMAGE,
                f"sharpness {value:.2f} is under minimum_sharpness {config.minimum_sharpness:g}; "
                "check focus, dirt on the lens and motion blur",
            )
    if small is not None and config.check_projection:
        body = body_mask(mount) < 128 if mount.mask_path else None
        if image.seen is not None:
            rows, columns = image.seen.shape
            hidden = None if body is None else cv2.resize(body.astype(np.uint8), (columns, rows)) > 0
            body = ~image.seen if hidden is None else hidden | ~image.seen
        top, bottom = mount.elevation_top_rad, mount.elevation_bottom_rad
        if problem := projection_problem(small, top, bottom, body):
            return rejection(
                RejectionReason.BAD_IMAGE,
                f"not an equirectangular image: {problem}; stitch the camera's images first, or mask or crop what is "
                "drawn over them (mask_path, elevation_top_rad, elevation_bottom_rad)",
            )
    return None


def check_seen(image: CameraImage, seen: Seen, config: LocalizerConfig) -> Rejection | None:
    """Reject an image that shows too little of what the network takes in. seen: `how_much_is_seen` of it."""
    if seen.share >= config.minimum_seen:
        return None
    return Rejection(
        image.stamp_ns,
        RejectionReason.TOO_LITTLE_SEEN,
        f"{seen.share:.1%} of what the network takes in is seen, minimum_seen is {config.minimum_seen:.1%}; check "
        "which cameras are missing, and mask_path",
    )


def how_much_is_seen(image: CameraImage, mount: CameraMount, ground: GroundSpec) -> Seen:
    """In which of the azimuths and elevations that the network takes in the image shows the world."""
    if image.seen is None and not mount.mask_path:
        return _seen_by_field(mount, ground)
    return _seen(image.seen, mount, ground)


@functools.lru_cache(maxsize=4)
def _seen_by_field(mount: CameraMount, ground: GroundSpec) -> Seen:
    """`how_much_is_seen` of all images of which nothing is hidden."""
    return _seen(None, mount, ground)


def _seen(image_seen: Bool | None, mount: CameraMount, ground: GroundSpec) -> Seen:
    rows, columns = 180, 360
    shown = np.ones((rows, columns), np.float32)
    for layer in (image_seen, body_mask(mount) >= 128 if mount.mask_path else None):
        if layer is not None:
            small = cv2.resize(layer.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
            shown = np.minimum(shown, small)
    top, bottom = mount.elevation_top_rad, mount.elevation_bottom_rad
    elevation = top - (np.arange(rows) + 0.5) / rows * (top - bottom)
    if mount.upside_down:
        elevation = -elevation
    inside = (elevation < ground.elevation_top_rad) & (elevation > ground.elevation_bottom_rad)
    taken_in = (ground.elevation_top_rad - ground.elevation_bottom_rad) / (top - bottom) * rows
    by_azimuth = np.minimum(shown[inside].sum(axis=0) / taken_in, 1.0)
    some = by_azimuth >= LEAST_OF_AZIMUTH
    return Seen(float(some.mean()), float(by_azimuth[some].mean()) if some.any() else 0.0)


def sharpness(pixels: UInt8, seen: Bool | None = None) -> float:
    """Variance of the Laplacian (grey values²) after averaging down to 512 columns.

    Args:
        pixels: uint8 (H, W, 3), RGB.
        seen: bool (H, W), the pixels that count, with at least one; None: all.
    """
    return _detail(_small_grey(pixels), seen)


def _small_grey(pixels: UInt8) -> UInt8:
    """Grey values, averaged down to the columns that sharpness and projection are judged on: uint8 (rows, columns)."""
    height, width = pixels.shape[:2]
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if width > _SHARPNESS_WIDTH:
        # Averaging in whole blocks first is several times faster; to not much more than the goal, it would blur.
        factor = max(1, width // (4 * _SHARPNESS_WIDTH))
        if factor > 1:
            grey = cv2.resize(grey, (width // factor, max(1, height // factor)), interpolation=cv2.INTER_AREA)
        rows = max(1, round(height * _SHARPNESS_WIDTH / width))
        grey = cv2.resize(grey, (_SHARPNESS_WIDTH, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(grey, np.uint8)


def _detail(grey: UInt8, seen: Bool | None) -> float:
    """Variance of the Laplacian of a small grey image. seen: as in `sharpness`."""
    second = cv2.Laplacian(grey, cv2.CV_16S)  # exact: −1020 … 1020
    if seen is not None:
        # The edge of what is seen is no detail of the world.
        rows, columns = grey.shape
        share = cv2.resize(seen.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
        inside = cv2.erode((share > 0.999).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        second = second[inside] if inside.any() else second
    # In a fifth of the time of cv2.meanStdDev.
    return float(cv2.norm(second, cv2.NORM_L2SQR) / second.size - cv2.mean(second)[0] ** 2)


def with_mask_as_seen(image: CameraImage, mount: CameraMount) -> tuple[CameraImage, CameraMount]:
    """The same image and mount, with the mount's body mask in what the image says is seen.

    Raises:
        InputError: the mask cannot be used.
    """
    if not mount.mask_path:
        return image, mount
    height, width = image.pixels.shape[:2]
    seen = cv2.resize(body_mask(mount), (width, height), interpolation=cv2.INTER_AREA) >= 128
    if image.seen is not None:
        seen &= image.seen
    return dataclasses.replace(image, seen=seen), dataclasses.replace(mount, mask_path="")


def check_mask(mount: CameraMount) -> None:
    """Read the mount's body mask, if it has one. Raises InputError where it cannot be used."""
    if mount.mask_path:
        body_mask(mount)


def prepare_panorama(image: CameraImage, ground: GroundSpec, mount: CameraMount, heading: Heading | None) -> Panorama:
    """The panorama that the ground encoder takes.

    Args:
        image: one that `check_image` lets pass. The tilt is taken out when the image brings both of its angles.
        ground: what the encoder takes.
        mount: of the camera.
        heading: the panorama then faces north; None: base_link's x axis.

    Raises:
        InputError: the image has the wrong aspect, or the mask cannot be used.
    """
    if problem := _aspect_problem(image.pixels.shape[0], image.pixels.shape[1], mount):
        raise InputError(f"image {problem}")
    vehicle_azimuth_rad = 0.0 if heading is None else azimuth_from_yaw(heading.yaw_rad)
    roll_rad, pitch_rad = image.roll_rad or 0.0, image.pitch_rad or 0.0
    if image.roll_rad is None or image.pitch_rad is None or math.hypot(roll_rad, pitch_rad) < MIN_TILT_RAD:
        roll_rad = pitch_rad = 0.0
    geometry = mount, ground, vehicle_azimuth_rad, roll_rad, pitch_rad
    pixels, seen = _resample(image.pixels, *geometry)
    masks = [body_mask(mount)] if mount.mask_path else []
    if image.seen is not None:
        masks.append(np.where(image.seen, 255, 0).astype(np.uint8))
    for mask in masks:
        world, _ = _resample(mask, *geometry)
        seen = (world > 250) if seen is None else seen & (world > 250)  # up to 2% of a pixel may be hidden
    if seen is not None:
        pixels[~seen] = FILL_RGB
    return Panorama(pixels, image.stamp_ns, None if heading is None else 0.0)


def _aspect_problem(height: int, width: int, mount: CameraMount) -> str | None:
    """What is wrong with an image's size, or None."""
    if min(height, width) < 8:
        return f"is {width}x{height} pixels, at least 8x8 are needed"
    expected = 2 * math.pi / (mount.elevation_top_rad - mount.elevation_bottom_rad)
    if abs(width / height / expected - 1) <= ASPECT_TOLERANCE:
        return None
    return (
        f"is {width}x{height}, aspect {width / height:.3f}; a 360° image of elevations "
        f"{math.degrees(mount.elevation_bottom_rad):g}° … {math.degrees(mount.elevation_top_rad):g}° has "
        f"{expected:.3f} ± {ASPECT_TOLERANCE:.0%}; give an equirectangular image, or its elevations in the camera mount"
    )


def _resample(
    pixels: UInt8,
    mount: CameraMount,
    ground: GroundSpec,
    vehicle_azimuth_rad: float,
    roll_rad: float,
    pitch_rad: float,
) -> tuple[UInt8, Bool | None]:
    """Image → panorama. The pixels are uint8 (H, W) or (H, W, 3).

    Returns:
        uint8 (ground.height, ground.width[, 3]), and where it shows something of the image, None for everywhere.
    """
    top, bottom = mount.elevation_top_rad, mount.elevation_bottom_rad
    if mount.upside_down:  # half a turn about the viewing axis: azimuth and elevation change sign
        pixels, top, bottom = np.asarray(cv2.flip(pixels, -1), np.uint8), -bottom, -top
    rows_per_rad = pixels.shape[0] / (top - bottom)
    first = (top - ground.elevation_top_rad) * rows_per_rad  # row edges of the model's field
    last = (top - ground.elevation_bottom_rad) * rows_per_rad
    whole = abs(first - round(first)) < _WHOLE_ROWS and abs(last - round(last)) < _WHOLE_ROWS
    inside = round(first) >= 0 and round(last) <= pixels.shape[0]
    enough = pixels.shape[1] >= ground.width and round(last) - round(first) >= ground.height
    level = roll_rad == pitch_rad == 0.0 and math.hypot(mount.roll_rad, mount.pitch_rad) < MIN_TILT_RAD
    if level and whole and inside and enough:
        turn_rad = mount.yaw_rad - vehicle_azimuth_rad
        return _resample_level(pixels[round(first) : round(last)], ground, turn_rad), None
    camera_from_panorama = camera_from_level(mount, vehicle_azimuth_rad, roll_rad, pitch_rad)
    return _resample_general(pixels, top, bottom, ground, camera_from_panorama)


def camera_from_level(mount: CameraMount, vehicle_azimuth_rad: float, roll_rad: float, pitch_rad: float) -> Float64:
    """Rotation from directions with x north, y west and z up into the camera's axes.

    Those have x through the image's centre column, y left, z up; of a camera that hangs upside down they are the axes
    of the image turned by half a turn.

    Args:
        mount: yaw, pitch and roll count.
        vehicle_azimuth_rad: of base_link's x axis, clockwise from north.
        roll_rad: of the vehicle.
        pitch_rad: of the vehicle.

    Returns:
        float64 (3, 3).
    """
    base_from_camera = _rotation_z(mount.yaw_rad) @ _rotation_y(mount.pitch_rad) @ _rotation_x(mount.roll_rad)
    rotation: Float64 = (
        base_from_camera.T
        @ _rotation_x(roll_rad).T
        @ _rotation_y(pitch_rad).T
        @ _rotation_z(vehicle_azimuth_rad)  # azimuth is clockwise, z is up: minus twice
    )
    return rotation


def _resample_level(pixels: UInt8, ground: GroundSpec, turn_rad: float) -> UInt8:
    """Rows of just the model's elevations, rolled to the left by turn_rad and averaged down."""
    width = pixels.shape[1]
    shift = (turn_rad / (2 * math.pi) * width) % width
    whole = round(shift) if abs(shift - round(shift)) < _WHOLE_COLUMNS else math.floor(shift)
    fraction = shift - whole
    whole %= width
    if abs(fraction) < _WHOLE_COLUMNS:
        rolled = np.concatenate([pixels[:, whole:], pixels[:, :whole]], axis=1)
    else:
        wrapped = np.concatenate([pixels[:, whole:], pixels[:, : whole + 1]], axis=1)
        rolled = np.asarray(cv2.addWeighted(wrapped[:, :-1], 1 - fraction, wrapped[:, 1:], fraction, 0.0), np.uint8)
    if rolled.shape[:2] == (ground.height, ground.width):
        return rolled
    return np.asarray(cv2.resize(rolled, (ground.width, ground.height), interpolation=cv2.INTER_AREA), np.uint8)


def _resample_general(
    pixels: UInt8, top_rad: float, bottom_rad: float, ground: GroundSpec, camera_from_panorama: Float64
) -> tuple[UInt8, Bool | None]:
    """Any rotation. pixels: the whole image, whose rows cover top_rad … bottom_rad."""
    height, width = pixels.shape[:2]
    rows_per_rad = height / (top_rad - bottom_rad)
    # Only the rows that can be needed: the model's field widened by the tilt of its axis, and two for interpolation.
    tilt_rad = math.acos(min(1.0, max(-1.0, float(camera_from_panorama[2, 2]))))
    first = max(0, math.floor((top_rad - ground.elevation_top_rad - tilt_rad) * rows_per_rad) - 2)
    last = min(height, math.ceil((top_rad - ground.elevation_bottom_rad + tilt_rad) * rows_per_rad) + 2)
    if last <= first:
        raise InputError(
            f"the image's elevations {math.degrees(bottom_rad):.0f}° … {math.degrees(top_rad):.0f}° share nothing with "
            "the model's; check the elevations in the camera's mount"
        )
    field_rad = ground.elevation_top_rad - ground.elevation_bottom_rad
    reduction = min(1.0, 2 * ground.height / field_rad / rows_per_rad)
    rows = max(1, round((last - first) * reduction))
    columns = min(width, 2 * ground.width)
    averaged = np.ascontiguousarray(pixels[first:last])
    if (rows, columns) != averaged.shape[:2]:
        averaged = cv2.resize(averaged, (columns, rows), interpolation=cv2.INTER_AREA)

    x, y, z = camera_from_panorama.astype(np.float32) @ _directions(ground)
    azimuth_rad = np.arctan2(-y, x)
    elevation_rad = np.arcsin(np.clip(z, -1.0, 1.0))
    shape = 2 * ground.height, 2 * ground.width
    column = ((azimuth_rad / (2 * math.pi) + 0.5) * columns - 0.5).astype(np.float32).reshape(shape)
    row_edge = (top_rad - elevation_rad) * rows_per_rad
    row = ((row_edge - first) * (rows / (last - first)) - 0.5).astype(np.float32).reshape(shape)
    sampled = cv2.remap(
        averaged, column, np.clip(row, 0.0, rows - 1.0), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )  # the wrap is that of the columns; rows are clipped
    panorama = np.asarray(cv2.resize(sampled, (ground.width, ground.height), interpolation=cv2.INTER_AREA), np.uint8)
    outside = (row_edge < -0.5) | (row_edge > height + 0.5)
    if not outside.any():
        return panorama, None
    return panorama, ~outside.reshape(ground.height, 2, ground.width, 2).any((1, 3))


@functools.lru_cache(maxsize=4)
def _directions(ground: GroundSpec) -> Float32:
    """float32 (3, 2H·2W): unit vectors x (the centre column), y (left), z (up) at twice the panorama's resolution."""
    height, width = 2 * ground.height, 2 * ground.width
    azimuth = (np.arange(width) + 0.5) / width * 2 * np.pi - np.pi
    field = ground.elevation_top_rad - ground.elevation_bottom_rad
    elevation = (ground.elevation_top_rad - (np.arange(height) + 0.5) / height * field)[:, None]
    vectors = np.stack(
        [
            np.cos(elevation) * np.cos(azimuth),
            -np.cos(elevation) * np.sin(azimuth),
            np.broadcast_to(np.sin(elevation), (height, width)),
        ]
    )
    return vectors.reshape(3, -1).astype(np.float32)


@functools.lru_cache(maxsize=4)
def body_mask(mount: CameraMount) -> UInt8:
    """uint8 (H, W): 255 where the image shows the world, 0 where the vehicle. Read once; raises InputError."""
    grey = read_image(Path(mount.mask_path))[:, :, 1]
    if problem := _aspect_problem(grey.shape[0], grey.shape[1], mount):
        raise InputError(f"{mount.mask_path}: the mask {problem}")
    mask = np.where(grey < 128, 0, 255).astype(np.uint8)
    if mask.shape[1] > _MASK_WIDTH:
        rows = round(mask.shape[0] * _MASK_WIDTH / mask.shape[1])
        mask = np.asarray(cv2.resize(mask, (_MASK_WIDTH, rows), interpolation=cv2.INTER_AREA), np.uint8)
    return mask


def _rotation_x(angle_rad: float) -> Float64:
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def _rotation_y(angle_rad: float) -> Float64:
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def _rotation_z(angle_rad: float) -> Float64:
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
