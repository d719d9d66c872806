"""Where a panorama's ground lies in the aerial imagery: the camera's place, heading and tilt, to a few centimetres.

The ground near the vehicle is seen from the street and from above. Rays of the camera that meet a flat ground are fixed
in the image. Position, heading, tilt and height of the camera say where they meet it, and the imagery says which grey
values to expect there. Gauss-Newton finds the pose at which both agree best, together with the gain and the offset of
the brightness. Tukey's weights leave out what stands on the ground, and what changed since the flight.

This is direct image alignment (S. Baker and I. Matthews, "Lucas-Kanade 20 years on", IJCV 56(3), 2004) of a plane. It
needs no network, but a start within about a metre and a few degrees, and a flat ground with something on it: marks,
kerbs, joints. The camera's height is estimated with the rest, since an error of it looks like a zoom.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Callable

import cv2
import numpy as np

from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.core.arrays import Bool, Float32, Float64
from unifygeo_ros.core.geodesy import azimuth_from_yaw, map_from_tile, tile_from_map, wrap_angle
from unifygeo_ros.core.records import CameraImage, Prior
from unifygeo_ros.core.robust import MAD_TO_SIGMA, tukey_weights
from unifygeo_ros.core.se2 import rotation_matrix
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.panorama import body_mask, camera_from_level

RANGES = (1.5, 6.5)
"""Distances on the ground at which it is looked at, in heights of the camera. Nearer the vehicle hides it; further the
rays meet it too flatly, and houses stand on it."""

RINGS, AZIMUTHS = 18, 144
"""Rays. Distances grow by the same factor from ring to ring."""

BLURS_M = (2.0, 1.0, 0.4)
"""Standard deviations of the Gaussians that image and imagery are blurred with: first coarse, for the reach."""

STEPS = 12
"""Gauss-Newton steps at each blur, at most."""

CELL_M = 0.15
"""Cell of the picture from above that the image's ground is blurred in."""

LEAST_RAYS = 0.25
"""Share of the rays that must see the ground, inside the imagery."""

PARAMETERS = ("east_m", "north_m", "yaw_rad", "pitch_rad", "roll_rad", "log_height")
"""Of the state: the camera's place, the mount's angles, the logarithm of the height over the guess's."""

POSE = slice(0, 3)
TILT = slice(3, 6)

START_SIGMAS = np.array([1.0, 1.0, 0.05, 0.05, 0.05, 0.15])
"""How far from the start the state may be expected, in the units of `PARAMETERS`."""

START_WEIGHT = 0.01
"""Share of the rays that the start counts for: it holds what the ground does not show, and hardly moves the rest."""

REACH = 3 * START_SIGMAS
"""Further from the start nothing is believed."""

CONVERGED = np.array([2e-3, 2e-3, 1e-4, 1e-4, 1e-4, 1e-3])
"""A smaller step is the last one, in the units of `PARAMETERS`."""

_ANGLE_STEP = 1e-4


@dataclass(frozen=True)
class CameraGuess:
    """Where the camera is, about."""

    east_m: float
    north_m: float
    yaw_rad: float
    """Of base_link in the map."""
    height_m: float
    """Of the camera above the ground."""


@dataclass(frozen=True)
class Alignment:
    """What one image shows of its camera."""

    state: Float64
    """float64 (6,), as `PARAMETERS` says. The yaw is the `camera.yaw_rad` that fits if base_link's yaw is the
    guess's."""
    information: Float64
    """float64 (6, 6), of the state if the rays were independent. They are not: only its shape is to be believed."""
    height_m: float
    """Of the camera above the ground."""
    correlation: float
    """Of image and imagery along the rays that have weight, −1 … 1."""

    def pose_with_tilt(self, tilt: Float64) -> Float64:
        """Position and yaw, float64 (3,), if pitch, roll and log height are known to be float64 (3,)."""
        pose: Float64 = self.state[POSE] + self.by_tilt @ (tilt - self.state[TILT])
        return pose

    @property
    def by_tilt(self) -> Float64:
        """∂(position, yaw) / ∂(pitch, roll, log height), float64 (3, 3): how the best pose follows a known tilt."""
        return -np.asarray(np.linalg.solve(self.information[POSE, POSE], self.information[POSE, TILT]), np.float64)


def align(
    image: CameraImage, mount: CameraMount, index: MapIndex, guess: CameraGuess, *, close: bool = False
) -> Alignment | None:
    """Align one image with the index's imagery.

    Args:
        image: one that `panorama.check_image` lets pass. Its tilt is taken out where it brings both angles.
        mount: where yaw, pitch and roll start.
        index: of the region.
        guess: where the rest starts.
        close: the start is known to some decimetres and tenths of a degree, and the coarsest blur is left out.

    Returns:
        None where the index holds no imagery about the place, the image shows no ground there, or nothing is found
        near the start.
    """
    tile = _nearest_tile(index, guess)
    if tile is None:
        return None
    tilted = image.roll_rad is not None and image.pitch_rad is not None
    roll, pitch = (image.roll_rad or 0.0, image.pitch_rad or 0.0) if tilted else (0.0, 0.0)
    vehicle = azimuth_from_yaw(guess.yaw_rad), roll, pitch
    ground = _ground_of(image, mount, guess.height_m, vehicle)

    def level_from_camera(angles: Float64) -> Float64:
        yaw, pitch, roll = angles.tolist()
        turned = dataclasses.replace(mount, yaw_rad=wrap_angle(yaw), pitch_rad=pitch, roll_rad=roll)
        return np.transpose(camera_from_level(turned, *vehicle))

    def points(state: Float64) -> tuple[Float64, Float64]:
        """Where the rays meet the ground, float64 (2, n), east and north; its Jacobian, float64 (6, 2, n)."""
        north, west, up = level_from_camera(state[2:5]) @ ground.directions
        down = np.maximum(-up, 1e-3)
        length = guess.height_m * math.exp(state[5]) / down
        offset = np.stack([-west, north]) * length
        jacobian = np.zeros((len(PARAMETERS), 2, len(length)))
        jacobian[0, 0] = jacobian[1, 1] = 1.0
        for angle in range(3):
            change = np.zeros(3)
            change[angle] = _ANGLE_STEP
            by_angle = level_from_camera(state[2:5] + change) - level_from_camera(state[2:5] - change)
            d_north, d_west, d_up = by_angle @ ground.directions / (2 * _ANGLE_STEP)
            jacobian[2 + angle] = np.stack([-d_west, d_north]) * length + offset * (d_up / down)
        jacobian[5] = offset
        return state[:2, None] + offset, jacobian

    start = np.array([guess.east_m, guess.north_m, mount.yaw_rad, mount.pitch_rad, mount.roll_rad, 0.0])
    found: _Agreement | None = None
    for blur_m in BLURS_M[1:] if close else BLURS_M:
        state = start if found is None else found.state
        values = ground.values(blur_m)
        found = _best_agreement(tile.blurred(blur_m), blur_m, points, values, ground.valid, start, state)
        if found is None:
            return None
    assert found is not None
    return Alignment(
        found.state, found.information, guess.height_m * math.exp(float(found.state[5])), found.correlation
    )


# -- the imagery ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    """Grey imagery with its place."""

    pixels: Float32
    """float32 (L, L)."""
    east_m: float
    """Of its centre."""
    north_m: float
    metres_per_pixel: float
    yaw_rad: float = 0.0
    """In the map, of its eastward axis."""

    def blurred(self, sigma_m: float) -> _Picture:
        pixels = cv2.GaussianBlur(self.pixels, (0, 0), sigma_m / self.metres_per_pixel)
        return dataclasses.replace(self, pixels=pixels)

    def rows_and_columns(self, points_m: Float64) -> Float64:
        """float64 (n, 2) of map points float64 (2, n)."""
        east_m, north_m = self.from_map @ (points_m - np.array([[self.east_m], [self.north_m]]))
        return tile_from_map(east_m, north_m, 0.0, 0.0, len(self.pixels), self.metres_per_pixel)

    @property
    def from_map(self) -> Float64:
        """float64 (2, 2), from the map's axes to the picture's, east and north."""
        return rotation_matrix(-self.yaw_rad)


def _nearest_tile(index: MapIndex, guess: CameraGuess) -> _Picture | None:
    """The tile whose centre is nearest to the camera. A mosaic would place tiles to whole pixels only."""
    near = index.tiles_within(Gate(Prior(guess.east_m, guess.north_m, 1e-6 * np.eye(2)), 1.0))
    if not len(near):
        return None
    away_m = np.abs(index.centres_m[near] - [guess.east_m, guess.north_m]).max(axis=1)
    tile_id = int(near[away_m.argmin()])
    east_m, north_m = map(float, index.centres_m[tile_id])
    grey = cv2.cvtColor(index.tile_pixels(tile_id), cv2.COLOR_RGB2GRAY)
    yaw_rad = index.tile_yaw_rad(tile_id)
    return _Picture(grey.astype(np.float32), east_m, north_m, index.metres_per_pixel, yaw_rad)


# -- the image --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ground:
    """The ground that an image shows: seen from above under the guess, north up, the camera in the middle."""

    picture: _Picture
    points_m: Float64
    """float64 (2, n): east and north of the rays' points under the guess, from the camera."""
    directions: Float64
    """float64 (3, n): the rays in the camera's axes, of any length."""
    valid: Bool
    """bool (n,): rays that see the world."""

    def values(self, blur_m: float) -> Float64:
        """Grey values of the rays, float64 (n,)."""
        blurred = self.picture.blurred(blur_m)
        return _sampled(blurred.pixels, blurred.rows_and_columns(self.points_m))


@functools.lru_cache(maxsize=1)
def _polar_grid() -> Float64:
    """float64 (2, n): east and north of the rays' points, in heights of the camera."""
    ranges = np.geomspace(*RANGES, RINGS)[:, None]
    azimuths = np.arange(AZIMUTHS) * (2 * np.pi / AZIMUTHS)
    return np.stack([(ranges * np.sin(azimuths)).ravel(), (ranges * np.cos(azimuths)).ravel()])


def _ground_of(image: CameraImage, mount: CameraMount, height_m: float, vehicle: tuple[float, float, float]) -> _Ground:
    """vehicle: azimuth, roll, pitch, as `camera_from_level` takes them."""
    grey = np.asarray(cv2.cvtColor(image.pixels, cv2.COLOR_RGB2GRAY), np.uint8)
    world = np.full(grey.shape, 255, np.uint8)
    if image.seen is not None:
        world[~image.seen] = 0
    if mount.mask_path:
        world = np.minimum(world, cv2.resize(body_mask(mount), grey.shape[::-1], interpolation=cv2.INTER_NEAREST))
    top_rad, bottom_rad = mount.elevation_top_rad, mount.elevation_bottom_rad
    if mount.upside_down:  # as in `panorama`: half a turn about the viewing axis
        grey, world = np.asarray(cv2.flip(grey, -1), np.uint8), np.asarray(cv2.flip(world, -1), np.uint8)
        top_rad, bottom_rad = -bottom_rad, -top_rad
    rows, columns = grey.shape
    camera = camera_from_level(mount, *vehicle)

    def directions(points_m: Float64) -> Float64:
        east, north = points_m
        return np.asarray(camera @ np.stack([north, -east, np.full(north.shape, -height_m)]), np.float64)

    def at(directions: Float64) -> Float64:
        """Rows and columns of directions float64 (3, n) in the image, by the convention of `panorama`: (n, 2)."""
        x, y, z = directions
        row = (top_rad - np.arctan2(z, np.hypot(x, y))) / (top_rad - bottom_rad) * rows - 0.5
        column = (np.arctan2(-y, x) / (2 * np.pi) + 0.5) * columns - 0.5
        return np.stack([row, column], axis=-1)

    half = math.ceil(RANGES[1] * height_m / CELL_M) + 8
    cells = np.arange(2 * half + 1)
    grid = map_from_tile(cells[:, None], cells[None], 0.0, 0.0, len(cells), CELL_M)
    places = np.clip(at(directions(grid.reshape(-1, 2).T)), [0, -1], [rows - 1, columns]).reshape(grid.shape)
    picture = _Picture(_sampled(grey.astype(np.float32), places, wrap=True).astype(np.float32), 0.0, 0.0, CELL_M)
    points_m = height_m * _polar_grid()
    rays = directions(points_m)
    places = at(rays)
    valid = (places[:, 0] >= 0) & (places[:, 0] <= rows - 1)
    places[:, 0] = np.clip(places[:, 0], 0, rows - 1)
    return _Ground(picture, points_m, rays, valid & (_sampled(world.astype(np.float32), places, wrap=True) > 250))


def _sampled(pixels: Float32, at: Float64, *, wrap: bool = False) -> Float64:
    """Bilinear, float64 (…), at rows and columns float64 (…, 2) of one or two axes. wrap: the columns go round."""
    row, column = at[..., 0].astype(np.float32), at[..., 1].astype(np.float32)
    border = cv2.BORDER_WRAP if wrap else cv2.BORDER_REPLICATE
    return np.asarray(cv2.remap(pixels, column, row, cv2.INTER_LINEAR, borderMode=border), np.float64).reshape(
        row.shape
    )


# -- Gauss-Newton -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Agreement:
    state: Float64
    information: Float64
    correlation: float


def _best_agreement(
    imagery: _Picture,
    blur_m: float,
    points: Callable[[Float64], tuple[Float64, Float64]],
    values: Float64,
    valid: Bool,
    start: Float64,
    state: Float64,
) -> _Agreement | None:
    """The state near the start at which values ≈ offset + gain · imagery(points(state))."""
    pixels, scale = imagery.pixels, imagery.metres_per_pixel
    by_row, by_column = (np.asarray(slope, np.float32) for slope in np.gradient(pixels))
    size = len(pixels)
    state = state.copy()
    weights: Float64 = np.zeros(len(values))
    prior = np.concatenate([START_WEIGHT * len(values) / START_SIGMAS**2, [1e-9, 1e-9]])
    jacobian = np.empty((len(values), len(state) + 2))
    for _ in range(STEPS):
        points_m, by_state = points(state)
        at = imagery.rows_and_columns(points_m)
        usable = valid & ((at >= 1) & (at <= size - 2)).all(axis=1)
        if usable.sum() < LEAST_RAYS * len(values):
            return None
        weights = np.where(usable, weights if np.any(usable * weights) else 1.0, 0.0)
        expected = _sampled(pixels, at)
        offset, gain = _line(expected, values, weights)
        residuals = values - (offset + gain * expected)
        spread = MAD_TO_SIGMA * float(np.median(np.abs(residuals[usable]))) + 1e-6
        weights = usable * tukey_weights(residuals / spread)
        slopes = gain / scale * np.stack([_sampled(by_column, at), -_sampled(by_row, at)])
        jacobian[:, :-2] = np.einsum("in,ij,kjn->nk", slopes, imagery.from_map, by_state)
        jacobian[:, -2], jacobian[:, -1] = 1.0, expected
        weighted = jacobian * (weights / spread**2)[:, None]
        normal, gradient = weighted.T @ jacobian, weighted.T @ residuals
        gradient[: len(state)] += prior[: len(state)] * (start - state)
        change = np.linalg.solve(normal + np.diag(prior), gradient)[: len(state)]
        state += change
        if not np.all(np.abs(state - start) <= REACH):  # False for NaN, too
            return None
        if np.all(np.abs(change) < blur_m / BLURS_M[-1] * CONVERGED):
            break
    # Offset and gain are nuisances: their part is taken out (Schur complement).
    information = normal[:-2, :-2] - normal[:-2, -2:] @ np.linalg.solve(
        normal[-2:, -2:] + np.diag(prior[-2:]), normal[-2:, :-2]
    )
    return _Agreement(state, information, _correlation(expected, values, weights))


def _line(x: Float64, y: Float64, weights: Float64) -> tuple[float, float]:
    """Offset and slope of the weighted regression of y on x."""
    mean_x, mean_y = np.average(x, weights=weights), np.average(y, weights=weights)
    slope = np.average((x - mean_x) * (y - mean_y), weights=weights) / max(
        float(np.average((x - mean_x) ** 2, weights=weights)), 1e-9
    )
    return float(mean_y - slope * mean_x), float(slope)


def _correlation(x: Float64, y: Float64, weights: Float64) -> float:
    x, y = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
    size = math.sqrt(float(weights @ x**2) * float(weights @ y**2))
    return float(weights @ (x * y)) / size if size > 0 else 0.0
