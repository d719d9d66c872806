"""Lens models: directions in a camera's optical frame → pixels, and back.

The optical frame is that of REP-103: x right, y down, z forward. Pixel coordinates follow OpenCV and `CameraInfo`:
integer values are pixel centres, (0, 0) is the centre of the upper left pixel.

Every model is also defined some way beyond its image, because tables of pixels are interpolated over the image's edge:
`project` says where the model is valid, and `margin` how far inside the picture a pixel lies.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import numpy as np

from unifygeo_ros.core.arrays import Bool, Float32, Float64
from unifygeo_ros.core.errors import ConfigurationError

UNPROJECT_STEPS = 60
"""Of the iteration that inverts a pinhole's distortion; far fewer do for most lenses."""
MAX_SIZE = 32_768
"""Largest width and height of an image, pixels: larger than any camera's, small enough for OpenCV's remap."""


_Focal = TypeVar("_Focal", bound="_FocalLens")


class Lens(Protocol):
    """How one camera maps directions to pixels."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def is_continuous(self) -> bool:
        """Whether neighbouring directions lie beside each other in the image, so that positions may be interpolated.

        Where not, the image is a whole turn: its left and right edge show the same.
        """
        ...

    def project(self, directions: Float64) -> tuple[Float64, Bool]:
        """Pixels of directions.

        Args:
            directions: float64 (..., 3), optical frame, any length above 0.

        Returns:
            float64 (..., 2), column and row; finite where valid. bool (...), whether the model is valid there.
        """
        ...

    def unproject(self, pixels: Float64) -> tuple[Float64, Bool]:
        """Directions of pixels: the inverse of `project`.

        Args:
            pixels: float64 (..., 2), column and row.

        Returns:
            float64 (..., 3), unit vectors in the optical frame. bool (...), whether the lens shows anything there.
        """
        ...

    def scaled(self, scale: float) -> Lens:
        """The same lens with smaller or larger images: `scale` times as many columns and rows, rounded."""
        ...

    def margin(self, column: Float32, row: Float32) -> Float32:
        """How far a pixel lies from the edge of what the lens shows, as a share of half its size.

        Args:
            column: of the pixels, float32, any shape.
            row: the same.

        Returns:
            1 in the middle, 0 on the edge, negative beyond it; NaN where column or row is.
        """
        ...

    def rad_per_pixel(self) -> float:
        """Angle that a pixel at the image's centre covers, radians."""
        ...


def _rectangle_margin(width: int, height: int, column: Float32, row: Float32) -> Float32:
    # In place where it can be: this is computed for every pixel of every moved image.
    across, down = np.abs(column - np.float32((width - 1) / 2)), np.abs(row - np.float32((height - 1) / 2))
    across *= np.float32(2 / width)
    down *= np.float32(2 / height)
    np.maximum(across, down, out=across)
    return np.asarray(np.float32(1) - across, np.float32)


def _check_image(name: str, width: int, height: int) -> None:
    if not (1 <= width <= MAX_SIZE and 1 <= height <= MAX_SIZE):
        raise ConfigurationError(f"{name}: image size {width}x{height}, must be 1x1 to {MAX_SIZE}x{MAX_SIZE}")


def _check_finite(name: str, **values: float) -> None:
    for key, value in values.items():
        if not math.isfinite(value):
            raise ConfigurationError(f"{name}: {key} is {value}, must be a finite number")


def _scaled_size(width: int, height: int, scale: float) -> tuple[int, int]:
    return max(1, round(width * scale)), max(1, round(height * scale))


def _scaled_place(place: float, scale: float) -> float:
    """A pixel coordinate in an image of another size. Pixel centres lie at whole numbers, edges half a pixel away."""
    return (place + 0.5) * scale - 0.5


@dataclass(frozen=True)
class _FocalLens:
    """What pinholes and fisheyes have in common: K of a `CameraInfo`."""

    is_continuous: ClassVar[bool] = True

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def rad_per_pixel(self) -> float:
        """See `Lens.rad_per_pixel`."""
        return 1 / max(self.fx, self.fy)

    def scaled(self: _Focal, scale: float) -> _Focal:
        """See `Lens.scaled`."""
        width, height = _scaled_size(self.width, self.height, scale)
        x, y = width / self.width, height / self.height
        return dataclasses.replace(
            self,
            width=width,
            height=height,
            fx=self.fx * x,
            fy=self.fy * y,
            cx=_scaled_place(self.cx, x),
            cy=_scaled_place(self.cy, y),
        )

    def _check(self, name: str) -> None:
        _check_image(name, self.width, self.height)
        _check_finite(name, fx=self.fx, fy=self.fy, cx=self.cx, cy=self.cy)
        # A focal length under a twentieth of the image would be a field of over 168°, which no pinhole has.
        for key, value, size in (("fx", self.fx, self.width), ("fy", self.fy, self.height)):
            if not value >= 0.05 * size:
                raise ConfigurationError(
                    f"{name}: focal length {key} is {value:g} pixels, must be at least {0.05 * size:g} for {size} "
                    "pixels; an uncalibrated camera sends 0: calibrate it"
                )
        if not (-self.width <= self.cx <= 2 * self.width and -self.height <= self.cy <= 2 * self.height):
            raise ConfigurationError(
                f"{name}: principal point {self.cx:g}, {self.cy:g} is far outside the image of "
                f"{self.width}x{self.height}; check the calibration"
            )


@dataclass(frozen=True)
class Pinhole(_FocalLens):
    """Pinhole with the distortion of `sensor_msgs/CameraInfo`: plumb_bob (5 values) or rational_polynomial (8).

    x' = x/z, r² = x'² + y'², radial factor (1 + k1 r² + k2 r⁴ + k3 r⁶) / (1 + k4 r² + k5 r⁴ + k6 r⁶), tangential p1, p2
    (OpenCV, `calib3d`).
    """

    distortion: tuple[float, ...] = ()
    """k1, k2, p1, p2[, k3[, k4, k5, k6]]; empty: none."""

    def __post_init__(self) -> None:
        name = "pinhole camera"
        self._check(name)
        if len(self.distortion) not in (0, 4, 5, 8):
            raise ConfigurationError(
                f"{name}: {len(self.distortion)} distortion values, must be 0, 4, 5 (plumb_bob) or 8 "
                "(rational_polynomial)"
            )
        for i, value in enumerate(self.distortion):
            _check_finite(name, **{f"distortion {i}": value})
        # Up to the image's nearest corner at least the model must be one-to-one, or the calibration is broken.
        if self._largest_radius < 0.5 * min(self.width / self.fx, self.height / self.fy) / 2:
            raise ConfigurationError(
                f"{name}: distortion {list(self.distortion)} folds the image over itself well inside its edge; "
                "calibrate it again"
            )

    def _coefficients(self) -> tuple[float, ...]:
        return tuple(self.distortion) + (0.0,) * (8 - len(self.distortion))

    def _radial(self, r2: Float64) -> Float64:
        k1, k2, _p1, _p2, k3, k4, k5, k6 = self._coefficients()
        return np.asarray((1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6))))

    @functools.cached_property
    def _largest_radius(self) -> float:
        """Radius (tan of the angle) up to which the distorted radius still grows. Beyond it the model folds back."""
        radii = np.linspace(0.0, 4.0, 2001)
        distorted = radii * self._radial(radii**2)
        falling = np.flatnonzero(~(np.diff(distorted) > 0))
        return float(radii[falling[0]]) if falling.size else 4.0

    def project(self, directions: Float64) -> tuple[Float64, Bool]:
        """See `Lens.project`. Valid in front of the camera, where the distortion does not fold back."""
        z = directions[..., 2]
        length = np.linalg.norm(directions, axis=-1)
        front = z > 0.05 * length
        safe = np.where(front, z, length)
        x, y = directions[..., 0] / safe, directions[..., 1] / safe
        r2 = x * x + y * y
        valid = front & (r2 < self._largest_radius**2)
        _k1, _k2, p1, p2 = self._coefficients()[:4]
        radial = self._radial(r2)
        distorted_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        distorted_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        return np.stack([self.fx * distorted_x + self.cx, self.fy * distorted_y + self.cy], axis=-1), valid

    def unproject(self, pixels: Float64) -> tuple[Float64, Bool]:
        """See `Lens.unproject`. By iteration; a pixel that it does not reach has no direction."""
        wanted = (pixels - np.array([self.cx, self.cy])) / np.array([self.fx, self.fy])
        p1, p2 = self._coefficients()[2:4]
        place = wanted
        for _ in range(UNPROJECT_STEPS):
            x, y = place[..., 0], place[..., 1]
            r2 = np.minimum(x * x + y * y, self._largest_radius**2)
            tangential = np.stack([2 * p1 * x * y + p2 * (r2 + 2 * x * x), p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], -1)
            before, place = place, (wanted - tangential) / self._radial(r2)[..., None]
            if np.abs(place - before).max() < 1e-9:
                break
        found = np.concatenate([place, np.ones((*place.shape[:-1], 1))], axis=-1)
        there, valid = self.project(found)
        reached = valid & (np.hypot(*np.moveaxis(there - pixels, -1, 0)) < 0.1)
        return found / np.linalg.norm(found, axis=-1, keepdims=True), np.asarray(reached)

    def margin(self, column: Float32, row: Float32) -> Float32:
        """See `Lens.margin`."""
        return _rectangle_margin(self.width, self.height, column, row)


@dataclass(frozen=True)
class Fisheye(_FocalLens):
    """Kannala–Brandt fisheye, `equidistant` in `sensor_msgs/CameraInfo`.

    θ_d = θ (1 + k1 θ² + k2 θ⁴ + k3 θ⁶ + k4 θ⁸), θ the angle from the optical axis (OpenCV, `fisheye`).
    """

    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    """k1, k2, k3, k4."""
    field_rad: float = 2 * math.pi
    """Full angle of the lens' image circle; beyond it nothing is seen."""

    def __post_init__(self) -> None:
        name = "fisheye camera"
        self._check(name)
        if len(self.distortion) != 4:
            raise ConfigurationError(f"{name}: {len(self.distortion)} distortion values, must be 4 (k1 to k4)")
        for i, value in enumerate(self.distortion):
            _check_finite(name, **{f"distortion {i}": value})
        _check_field(name, self.field_rad)
        if self._largest_angle < math.radians(20):
            raise ConfigurationError(
                f"{name}: distortion {list(self.distortion)} folds the image over itself "
                f"{math.degrees(self._largest_angle):.0f}° from its axis; calibrate it again"
            )

    def _distorted(self, theta: Float64) -> Float64:
        k1, k2, k3, k4 = self.distortion
        t2 = theta * theta
        return np.asarray(theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4)))))

    def _continued(self, theta: Float64) -> Float64:
        """θ_d, which goes on growing evenly beyond the angle where the model folds back."""
        last = self._largest_angle
        slope = float(self._distorted(np.array(last))) / last
        return np.asarray(self._distorted(np.minimum(theta, last)) + slope * np.maximum(theta - last, 0))

    @functools.cached_property
    def _largest_angle(self) -> float:
        """Angle from the axis up to which θ_d still grows."""
        angles = np.linspace(0.0, math.pi, 2001)
        falling = np.flatnonzero(~(np.diff(self._distorted(angles)) > 0))
        return float(angles[falling[0]]) if falling.size else math.pi

    def project(self, directions: Float64) -> tuple[Float64, Bool]:
        """See `Lens.project`. Valid to a little beyond the field; beyond it lies outside the picture (`margin`).

        A calibration may fold back just inside the field. Were directions beyond that not valid, what is interpolated
        with them would be lost, too: a staircase along the picture's edge.
        """
        theta, unit = _from_axis(directions)
        scale = self._continued(theta)[..., None] * unit
        pixels = scale * np.array([self.fx, self.fy]) + np.array([self.cx, self.cy])
        return pixels, np.asarray(theta <= _beyond(min(self.field_rad, 2 * self._largest_angle)))

    def unproject(self, pixels: Float64) -> tuple[Float64, Bool]:
        """See `Lens.unproject`. By a table of the distortion, 0.04° apart; the error is below a thousandth of that."""
        place = (pixels - np.array([self.cx, self.cy])) / np.array([self.fx, self.fy])
        distorted = np.hypot(place[..., 0], place[..., 1])
        angles = np.linspace(0.0, min(self.field_rad / 2, self._largest_angle), 4097)
        table = self._distorted(angles)
        return _at_angle(np.interp(distorted, table, angles), place), np.asarray(distorted <= table[-1])

    def margin(self, column: Float32, row: Float32) -> Float32:
        """See `Lens.margin`. The picture ends at the image's edge or at the field's, whichever comes first."""
        edge = float(self._distorted(np.array(min(self.field_rad / 2, self._largest_angle))))
        distorted = np.hypot((column - self.cx) * (1 / self.fx), (row - self.cy) * (1 / self.fy))
        rectangle = _rectangle_margin(self.width, self.height, column, row)
        return np.asarray(np.minimum(rectangle, 1 - distorted * (1 / edge)), np.float32)


@dataclass(frozen=True)
class FisheyeCircle:
    """One image circle of a dual-fisheye camera, with the distance from its centre proportional to the angle.

    Both circles may lie on one image, beside each other.
    """

    is_continuous: ClassVar[bool] = True

    width: int
    height: int
    centre_column: float
    centre_row: float
    radius: float
    """Pixels from the centre to the circle's edge, at half the field."""
    field_rad: float
    """Full angle that the circle shows."""

    def __post_init__(self) -> None:
        name = "fisheye circle"
        _check_image(name, self.width, self.height)
        _check_finite(name, centre_column=self.centre_column, centre_row=self.centre_row, radius=self.radius)
        if not 8 <= self.radius <= MAX_SIZE:
            raise ConfigurationError(f"{name}: radius {self.radius:g} pixels, must be 8 to {MAX_SIZE}")
        if not (-0.5 <= self.centre_column <= self.width - 0.5 and -0.5 <= self.centre_row <= self.height - 0.5):
            raise ConfigurationError(
                f"{name}: centre {self.centre_column:g}, {self.centre_row:g} is outside the image of "
                f"{self.width}x{self.height}"
            )
        _check_field(name, self.field_rad)

    def project(self, directions: Float64) -> tuple[Float64, Bool]:
        """See `Lens.project`. Valid to a little beyond the field."""
        theta, unit = _from_axis(directions)
        pixels = (theta / (self.field_rad / 2) * self.radius)[..., None] * unit
        return pixels + np.array([self.centre_column, self.centre_row]), np.asarray(theta <= _beyond(self.field_rad))

    def unproject(self, pixels: Float64) -> tuple[Float64, Bool]:
        """See `Lens.unproject`."""
        place = (pixels - np.array([self.centre_column, self.centre_row])) / self.radius
        share = np.hypot(place[..., 0], place[..., 1])
        return _at_angle(share * (self.field_rad / 2), place), np.asarray(share <= 1)

    def scaled(self, scale: float) -> FisheyeCircle:
        """See `Lens.scaled`."""
        width, height = _scaled_size(self.width, self.height, scale)
        x, y = width / self.width, height / self.height
        return FisheyeCircle(
            width,
            height,
            _scaled_place(self.centre_column, x),
            _scaled_place(self.centre_row, y),
            self.radius * math.sqrt(x * y),
            self.field_rad,
        )

    def margin(self, column: Float32, row: Float32) -> Float32:
        """See `Lens.margin`. The picture ends at the circle or at the image's edge, whichever comes first."""
        away = np.hypot(column - self.centre_column, row - self.centre_row)
        rectangle = _rectangle_margin(self.width, self.height, column, row)
        return np.asarray(np.minimum(rectangle, 1 - away * (1 / self.radius)), np.float32)

    def rad_per_pixel(self) -> float:
        """See `Lens.rad_per_pixel`."""
        return self.field_rad / 2 / self.radius


@dataclass(frozen=True)
class Equirectangular:
    """An equirectangular image: a panoramic camera among others, or the part of a turn that a camera itself stitches.

    Columns are even steps of azimuth to the right, rows even steps of elevation downwards. The middle column looks
    along the optical axis.
    """

    width: int
    height: int
    field_rad: float = 2 * math.pi
    """From the left edge to the right one."""
    elevation_top_rad: float = math.pi / 2
    """Of the upper edge; π/2 is the camera's zenith."""
    elevation_bottom_rad: float = -math.pi / 2
    """Of the lower edge."""

    def __post_init__(self) -> None:
        name = "equirectangular camera"
        _check_image(name, self.width, self.height)
        _check_field(name, self.field_rad)
        top, bottom = self.elevation_top_rad, self.elevation_bottom_rad
        if not -math.pi / 2 - 1e-9 <= bottom < top <= math.pi / 2 + 1e-9:
            raise ConfigurationError(
                f"{name}: elevations of {math.degrees(top):.1f}° (upper edge) and {math.degrees(bottom):.1f}° (lower "
                "edge), must be within ±90°, the upper one above the lower one"
            )
        across, down = self.field_rad / self.width, (top - bottom) / self.height
        if not 0.98 < across / down < 1.02:
            raise ConfigurationError(
                f"{name}: image of {self.width}x{self.height} for {math.degrees(self.field_rad):.1f}° across and "
                f"{math.degrees(top - bottom):.1f}° down, so its pixels are not square; check field and elevations"
            )

    @property
    def is_continuous(self) -> bool:
        """See `Lens.is_continuous`."""
        return self.field_rad < 2 * math.pi - 1e-9

    def project(self, directions: Float64) -> tuple[Float64, Bool]:
        """See `Lens.project`. Valid everywhere; a part of a turn up to half of what it leaves out, 15° at most."""
        x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
        azimuth, elevation = np.arctan2(x, z), np.arctan2(-y, np.hypot(x, z))
        column = (azimuth / self.field_rad + 0.5) * self.width - 0.5
        field = self.elevation_top_rad - self.elevation_bottom_rad
        row = (self.elevation_top_rad - elevation) / field * self.height - 0.5
        if self.is_continuous:
            reach = self.field_rad / 2 + min(math.radians(15), (2 * math.pi - self.field_rad) / 4)
            valid = np.abs(azimuth) <= reach
        else:
            valid = np.ones(azimuth.shape, bool)
        return np.stack([column, row], axis=-1), np.asarray(valid)

    def unproject(self, pixels: Float64) -> tuple[Float64, Bool]:
        """See `Lens.unproject`."""
        azimuth = ((pixels[..., 0] + 0.5) / self.width - 0.5) * self.field_rad
        field = self.elevation_top_rad - self.elevation_bottom_rad
        elevation = self.elevation_top_rad - (pixels[..., 1] + 0.5) / self.height * field
        cos = np.cos(elevation)
        found = np.stack([cos * np.sin(azimuth), -np.sin(elevation), cos * np.cos(azimuth)], axis=-1)
        inside = (np.abs(azimuth) <= self.field_rad / 2) & (elevation <= self.elevation_top_rad)
        return found, np.asarray(inside & (elevation >= self.elevation_bottom_rad))

    def scaled(self, scale: float) -> Equirectangular:
        """See `Lens.scaled`."""
        width, height = _scaled_size(self.width, self.height, scale)
        return dataclasses.replace(self, width=width, height=height)

    def margin(self, column: Float32, row: Float32) -> Float32:
        """See `Lens.margin`. A whole turn has no edge at its sides, and a pole is no edge."""
        nearest = np.where(np.isnan(column) | np.isnan(row), np.float32(np.nan), np.float32(1))
        if self.is_continuous:
            nearest = np.minimum(nearest, np.minimum(column + 0.5, self.width - 0.5 - column) * (2 / self.width))
        if self.elevation_top_rad < math.pi / 2 - 1e-9:
            nearest = np.minimum(nearest, (row + 0.5) * (2 / self.height))
        if self.elevation_bottom_rad > -math.pi / 2 + 1e-9:
            nearest = np.minimum(nearest, (self.height - 0.5 - row) * (2 / self.height))
        return np.asarray(nearest, np.float32)

    def rad_per_pixel(self) -> float:
        """See `Lens.rad_per_pixel`."""
        return self.field_rad / self.width


def _check_field(name: str, field_rad: float) -> None:
    if not math.radians(20) <= field_rad <= 2 * math.pi:
        raise ConfigurationError(f"{name}: field {math.degrees(field_rad):.1f}°, must be 20° to 360°")


def _beyond(field_rad: float) -> float:
    """Angle from the axis, a little more than half the field, up to which pixels are computed.

    Straight behind the camera neighbouring directions lie on opposite sides of the image, and a table interpolated
    between them would run through its middle.
    """
    return min(field_rad / 2 + math.radians(15), math.radians(165))


def _from_axis(directions: Float64) -> tuple[Float64, Float64]:
    """Angle from the optical axis (...), and the unit vector in the image plane (..., 2), zero on the axis."""
    across = np.hypot(directions[..., 0], directions[..., 1])
    theta = np.arctan2(across, directions[..., 2])
    unit = directions[..., :2] / np.where(across > 0, across, 1.0)[..., None]
    return np.asarray(theta), np.asarray(unit)


def _at_angle(theta: Float64, place: Float64) -> Float64:
    """Unit vectors (..., 3) at an angle (...) from the optical axis, towards a place in the image plane (..., 2)."""
    away = np.hypot(place[..., 0], place[..., 1])
    unit = place / np.where(away > 0, away, 1.0)[..., None]
    return np.asarray(np.concatenate([np.sin(theta)[..., None] * unit, np.cos(theta)[..., None]], axis=-1))
