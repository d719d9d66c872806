"""The images of a rig → one equirectangular panorama, and which of its pixels a camera saw.

For each camera: the image is averaged down to about half the panorama's pixel, sampled at twice the panorama's
resolution in each direction, and averaged in twos. So every pixel is the mean over the area that it covers, as long as
the lens' resolution changes little over the image.

The sampling positions are computed for every image of a camera that exposed at another instant than the panorama's,
because the vehicle turned and moved meanwhile; those of the others are computed once. They are computed exactly on a
grid of every `GRID`-th pixel and interpolated between (error below 0.02° for a 120° pinhole). For an equirectangular
image of a whole turn, whose two ends show the same, the directions are interpolated instead. Cameras are blended one
after the other with 8 bits, each by its weight against that of those before.

A ray meets the ground plane, or `Rig.distance_m`, whichever comes first. So the road and what stands at that distance
fit together across cameras of different positions, and across the way that the vehicle moved meanwhile. What stands at
other distances is moved together where two cameras overlap (`unifygeo_ros.rig.parallax`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Mapping, NamedTuple

import cv2
import numpy as np

from unifygeo_ros.core.arrays import Bool, Float32, Float64, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.se2 import Pose2, rotation_matrix
from unifygeo_ros.rig.parallax import SeenStrip, aligned
from unifygeo_ros.rig.rig import Rig, RigCamera
from unifygeo_ros.rig.strips import Strip, directions

GRID = 8
"""Pixels of the doubled panorama between two exactly computed sampling positions."""
FEATHER = 0.15
"""Share of an image's half width over which its weight rises from its edge: seams are blended over that."""
LEAST_WEIGHT = 0.01
"""Of a pixel that is seen: blending divides by the sum of the weights."""
MAX_GAIN = 1.5
"""Largest exposure correction of a camera, and its inverse the smallest."""
MIN_OVERLAP_PIXELS = 50
"""Overlaps smaller than this say nothing about exposures."""


STANDING = Pose2(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class CameraView:
    """One camera's image for a panorama."""

    pixels: UInt8
    """uint8 (H, W, 3), RGB; H and W are the lens' or, for a reduced decoding, a whole fraction of them."""
    motion: Pose2 = STANDING
    """base_link at the panorama's instant relative to base_link at this image's exposure, in the axes of the latter."""


@dataclass(frozen=True)
class Composed:
    """A panorama of the whole sphere in base_link's axes, its centre column along x."""

    pixels: UInt8
    """uint8 (H, 2H, 3), RGB. Black where no camera saw anything."""
    seen: Bool
    """bool (H, 2H): where at least one camera saw something."""
    gains: Mapping[str, float]
    """Factor by which each camera's brightness was multiplied."""


class Composer:
    """Composes the panoramas of one rig at one resolution. Not safe for use from two threads at once."""

    def __init__(self, rig: Rig, width: int) -> None:
        """Prepare the panorama's size.

        Args:
            rig: The cameras.
            width: Columns of the panorama, a multiple of 8; it has half as many rows.
        """
        if width < 32 or width % 8:
            raise InputError(f"panorama width {width}, must be a multiple of 8 and at least 32")
        self.rig = rig
        self.width, self.height = width, width // 2
        self._tables = {camera.name: _Table(camera, rig, width) for camera in rig.cameras}

    def least_width(self, name: str) -> int:
        """Columns of a camera's image that are enough: smaller ones would show in the panorama."""
        table = self._tables[name]
        return max(8, table.camera.lens.width // table.reduction(1.0))

    def check(self, name: str, pixels: UInt8) -> None:
        """Check that an image has its lens' shape. Raises InputError."""
        self._tables[name].scale(pixels)

    def compose(self, views: Mapping[str, CameraView]) -> Composed:
        """Compose one panorama.

        Args:
            views: The images by camera name. A camera that is missing leaves its sector unseen.

        Raises:
            InputError: An image of a camera that the rig does not have, or of another size than its lens'.
        """
        strips, gains = self.aligned(views)
        pixels = np.zeros((self.height, self.width, 3), np.uint8)
        weight = np.zeros((self.height, self.width), np.float32)
        for name, strip in strips.items():
            evened = strip.pixels if gains[name] == 1.0 else cv2.LUT(strip.pixels, _brightness_table(gains[name]))
            for rows, source, target in strip.parts(self.width):
                before, own = weight[rows, target], strip.weight[:, source]
                pixels[rows, target] = cv2.blendLinear(pixels[rows, target], evened[:, source], before, own)
                before += own
        return Composed(pixels, np.asarray(weight > 0), gains)

    def aligned(self, views: Mapping[str, CameraView]) -> tuple[dict[str, Strip], dict[str, float]]:
        """The strips with the parallax taken out where two cameras overlap, and each camera's exposure correction.

        See `unifygeo_ros.rig.parallax`; otherwise as `compose`.
        """
        strips = self.strips(views)
        gains = dict(zip(strips, _gains(list(strips.values()), self.width), strict=True))
        seen = [
            SeenStrip(strip, gains[name], self._tables[name].position_m(views[name].motion))
            for name, strip in strips.items()
        ]
        rig = self.rig
        found = aligned(seen, rig.centre_m, rig.ground_z_m, rig.distance_m, self.width)
        return dict(zip(strips, found, strict=True)), gains

    def strips(self, views: Mapping[str, CameraView]) -> dict[str, Strip]:
        """What each camera contributes, before its parallax is taken out and all are blended; as `compose`."""
        unknown = set(views) - set(self._tables)
        if unknown:
            raise InputError(f"no camera {', '.join(sorted(unknown))} in the rig, which has {', '.join(self._tables)}")
        return {name: self._tables[name].strip(view) for name, view in views.items()}


class _Table:
    """Where one camera's pixels go."""

    def __init__(self, camera: RigCamera, rig: Rig, width: int) -> None:
        self.camera = camera
        self._centre_m, self._ground_z_m, self._distance_m = rig.centre_m, rig.ground_z_m, rig.distance_m
        self._width, self._height = width, width // 2
        # A block of panorama pixels that holds all that the camera sees, with room for the vehicle's turn meanwhile.
        block = directions(width // 4, np.arange(width // 8), np.arange(width // 4))
        pixels, valid = camera.lens.project(self._rays(self._points(block), STANDING))
        column, row = pixels[..., 0].astype(np.float32), pixels[..., 1].astype(np.float32)
        seen: Bool = valid & (camera.lens.margin(column, row) > 0)
        if not seen.any():
            raise InputError(f"camera {camera.name} sees nothing of the panorama; check its pose and its lens")
        rows = np.flatnonzero(seen.any(1))
        self._first_row = max(0, int(rows[0]) * 4 - 8)
        self._last_row = min(self._height, int(rows[-1]) * 4 + 12)
        start, count = shortest_arc(np.asarray(seen.any(0)))
        self._first_column = start * 4 - 16
        self._columns = min(width, count * 4 + 32)
        at_row = _grid_positions(2 * self._first_row, 2 * (self._last_row - self._first_row))
        at_column = _grid_positions(2 * self._first_column, 2 * self._columns)
        self._points_m = self._points(directions(2 * width, at_row, at_column))
        self._standing: dict[tuple[float, float], _Maps] = {}

    def _points(self, rays: Float64) -> Float64:
        """What directions (..., 3) from the rig's centre meet, in base_link: the ground, or a place at `distance_m`."""
        height = self._centre_m[2] - self._ground_z_m
        reach = np.minimum(height / np.maximum(-rays[..., 2], 1e-9), self._distance_m)
        return np.asarray(self._centre_m + rays * reach[..., None])

    def _rays(self, points_m: Float64, motion: Pose2) -> Float64:
        """Directions to points (..., 3) in base_link at the panorama's instant, after this motion since the exposure.

        Returns:
            float64 (..., 3), in the optical frame.
        """
        turn = np.eye(3)
        turn[:2, :2] = rotation_matrix(motion.yaw_rad)
        shift = np.array([motion.x_m, motion.y_m, 0.0]) - self.camera.position_m
        axes = self.camera.base_from_optical
        return np.asarray(points_m @ (turn.T @ axes) + shift @ axes)

    def position_m(self, motion: Pose2) -> Float64:
        """Where the camera was, in base_link's axes at the panorama's instant, after this motion since the exposure."""
        x, y, z = self.camera.position_m
        at = rotation_matrix(motion.yaw_rad).T @ np.array([x - motion.x_m, y - motion.y_m])
        return np.array([*at, z])

    def scale(self, pixels: UInt8) -> tuple[float, float]:
        """Size of an image in that of its lens, across and down. Raises InputError where their shapes differ."""
        lens = self.camera.lens
        height, width = pixels.shape[:2]
        scale_x, scale_y = width / lens.width, height / lens.height
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or abs(scale_x / scale_y - 1) > 0.02 or scale_x > 1:
            raise InputError(
                f"camera {self.camera.name}: image of {width}x{height}, its calibration is for "
                f"{lens.width}x{lens.height}; send that size, or calibrate at the size that is sent"
            )
        return scale_x, scale_y

    def reduction(self, scale: float) -> int:
        """By how much an image of this scale is averaged down: to about one doubled pixel of the panorama."""
        return max(1, math.floor(math.pi / self._width / (self.camera.lens.rad_per_pixel() / scale)))

    def _maps(self, motion: Pose2, shrink: tuple[float, float]) -> _Maps:
        """Where each doubled pixel of the strip looks in an image that is so much smaller than the lens'."""
        if motion == STANDING and shrink in self._standing:
            return self._standing[shrink]
        size = 2 * self._columns, 2 * (self._last_row - self._first_row)
        rays = self._rays(self._points_m, motion)
        if self.camera.lens.is_continuous:
            pixels, valid = self.camera.lens.project(rays)
            # Where the lens model is not valid there is NaN, which spreads to all that would be interpolated with it.
            column, row = (
                _upsample(np.where(valid, pixels[..., axis], np.nan).astype(np.float32), size) for axis in (0, 1)
            )
        else:
            rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
            fine = np.stack([_upsample(rays[..., axis].astype(np.float32), size) for axis in range(3)], axis=-1)
            pixels, _ = self.camera.lens.project(fine.astype(np.float64))
            column, row = (pixels[..., axis].astype(np.float32) for axis in (0, 1))
        margin = self.camera.lens.margin(column, row)
        # The smallest of each four: a pixel is seen if all of it is.
        smallest = np.minimum(margin[0::2], margin[1::2])
        smallest = np.minimum(smallest[:, 0::2], smallest[:, 1::2]) * np.float32(1 / FEATHER)
        cv2.patchNaNs(smallest, 0.0)
        weight = np.where(smallest > 0, np.clip(smallest, LEAST_WEIGHT, 1), np.float32(0))
        if (
            not self.camera.lens.is_continuous
        ):  # sampling goes on from the last column to the first, but not so the rows
            edge = 0.5 / shrink[1]
            np.clip(row, edge - 0.5, self.camera.lens.height - 0.5 - edge, out=row)
        for positions, factor in ((column, shrink[0]), (row, shrink[1])):
            positions *= np.float32(factor)
            positions += np.float32(0.5 * factor - 0.5)
            cv2.patchNaNs(positions, -1e4)
        if motion != STANDING:
            return _Maps(column, row, weight)
        maps = _Maps(*cv2.convertMaps(column, row, cv2.CV_16SC2), weight)
        self._standing = {shrink: maps}
        return maps

    def strip(self, view: CameraView) -> Strip:
        """This camera's part of a panorama."""
        scale_x, scale_y = self.scale(view.pixels)
        height, width = view.pixels.shape[:2]
        # Average down first: sampling would alias otherwise.
        reduction = min(self.reduction(scale_x), width // 8, height // 8)
        source = view.pixels
        if reduction > 1:  # by whole blocks, for which OpenCV is many times faster; the last few rows are no loss
            size = width // reduction, height // reduction
            source = source[: size[1] * reduction, : size[0] * reduction]
            source = cv2.resize(source, size, interpolation=cv2.INTER_AREA)
        maps = self._maps(view.motion, (scale_x / reduction, scale_y / reduction))
        border = cv2.BORDER_REPLICATE if self.camera.lens.is_continuous else cv2.BORDER_WRAP
        sampled = cv2.remap(source, maps.first, maps.second, cv2.INTER_LINEAR, borderMode=border)
        half = self._columns, self._last_row - self._first_row
        return Strip(
            self._first_row, self._first_column, cv2.resize(sampled, half, interpolation=cv2.INTER_AREA), maps.weight
        )


class _Maps(NamedTuple):
    """Where a strip's doubled pixels are sampled, as OpenCV's `remap` takes it, and the strip's weights."""

    first: Any
    """Columns, float32 (2 rows, 2 columns), or columns and rows as `cv2.convertMaps` gives them."""
    second: Any
    """Rows, or the fractions of `cv2.convertMaps`."""
    weight: Float32
    """float32 (rows, columns)."""


def _grid_positions(first: int, count: int) -> Float64:
    """The middles of blocks of GRID pixels, over `count` pixels from `first` on, with one more block on either side.

    OpenCV's resize interpolates between such positions without a shift.
    """
    return np.asarray(first + GRID * np.arange(-1.0, -(-count // GRID) + 1) + (GRID - 1) / 2)


def _upsample(grid: Float32, size: tuple[int, int]) -> Float32:
    """Linear interpolation of values at `_grid_positions` to every pixel. size: columns and rows of what comes out."""
    whole = cv2.resize(grid, None, fx=GRID, fy=GRID, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(whole[GRID : GRID + size[1], GRID : GRID + size[0]])


def _brightness_table(gain: float) -> UInt8:
    """For `cv2.LUT`: every grey value times a factor."""
    return np.asarray(np.clip(np.arange(256) * gain + 0.5, 0, 255), np.uint8)


def shortest_arc(seen: Bool) -> tuple[int, int]:
    """First index and length of the shortest run (it may wrap) that holds every True."""
    size = len(seen)
    hits = np.flatnonzero(seen)
    gaps = np.diff(np.concatenate([hits, hits[:1] + size]))
    widest = int(np.argmax(gaps))
    count = size - int(gaps[widest]) + 1
    return int(hits[(widest + 1) % len(hits)]), min(count, size)


def _gains(strips: list[Strip], width: int) -> list[float]:
    """Brightness factors that make overlapping cameras agree best, their geometric mean 1.

    Least squares on the logarithms: for each overlap, log g_i + log m_i = log g_j + log m_j with m the mean brightness
    of either camera there; a weak pull to 1 keeps cameras without overlap as they are.
    """
    count = len(strips)
    if count < 2:
        return [1.0] * count
    # Every second row and column are enough for a mean.
    luma, weights = (
        np.zeros((count, width // 4, width // 2), np.float32),
        np.zeros((count, width // 4, width // 2), bool),
    )
    for i, strip in enumerate(strips):
        for rows, source, target in strip.parts(width):
            first, at = -rows.start % 2, -target.start % 2
            some = (slice(first, None, 2), slice(source.start + at, source.stop, 2))
            window = (
                i,
                slice((rows.start + 1) // 2, (rows.stop + 1) // 2),
                slice((target.start + 1) // 2, (target.stop + 1) // 2),
            )
            luma[window] = strip.pixels[..., 1][some]
            weights[window] = strip.weight[some] > 0.05
    equations, values = [0.05 * np.eye(count)], [np.zeros(count)]
    for i in range(count):
        for j in range(i + 1, count):
            both = weights[i] & weights[j]
            pixels = int(both.sum())
            if pixels < MIN_OVERLAP_PIXELS:
                continue
            mean_i, mean_j = (float(luma[k][both].mean()) for k in (i, j))
            if min(mean_i, mean_j) < 4:
                continue  # black: a dead camera must not darken its neighbours
            row = np.zeros((1, count))
            row[0, i], row[0, j] = 1.0, -1.0
            equations.append(row)
            values.append(np.array([math.log(mean_j / mean_i)]))
    solved = np.linalg.lstsq(np.concatenate(equations), np.concatenate(values), rcond=None)[0]
    limit = math.log(MAX_GAIN)
    return [float(np.exp(np.clip(value, -limit, limit))) for value in solved - solved.mean()]
