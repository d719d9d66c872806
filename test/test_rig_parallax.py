"""Things in the overlap of two cameras that are not at the distance which the rig assumes are shown in one place.

A ball around the rig is painted with blobs, and each camera sees it from its own place. From the rig's centre, every
point of it lies in a direction that is known without the code under test.
"""

import math

import cv2
import numpy as np
import pytest

from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.rig import parallax
from unifygeo_ros.rig.composer import CameraView, Composer
from unifygeo_ros.rig.lenses import Pinhole
from unifygeo_ros.rig.rig import Rig, RigCamera, rotation_from_mount

WIDTH = 768
LENS = Pinhole(640, 480, 320.0, 320.0, 319.5, 239.5)
CENTRE_M = np.array([0.0, 0.0, 1.5])
PICTURE = cv2.resize(
    np.random.default_rng(5).integers(0, 256, (64, 128), np.uint8), (2048, 1024), interpolation=cv2.INTER_CUBIC
)
"""Blobs of 3°: grey values by azimuth and elevation."""


def painted(directions: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(directions / np.linalg.norm(directions, axis=-1, keepdims=True), -1, 0)
    column = (np.arctan2(-y, x) / (2 * np.pi) + 0.5) * 2048 - 0.5
    row = (0.5 - np.arcsin(z) / np.pi) * 1024 - 0.5
    return cv2.remap(PICTURE, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR)


def cameras(apart_m: float) -> tuple[RigCamera, RigCamera]:
    """Two cameras that look 20° to either side, each 90° across: 50° of overlap ahead."""
    return tuple(
        RigCamera(
            name,
            LENS,
            rotation_from_mount(0, 0, math.radians(side * 20)),
            CENTRE_M + np.array([0.0, side * apart_m / 2, 0.0]),
        )
        for name, side in (("left", 1), ("right", -1))
    )


def seen(camera: RigCamera, ball_m: float, moved_m: float = 0.0) -> np.ndarray:
    """The ball, where the camera was so far ahead of its place."""
    u, v = np.meshgrid(np.arange(LENS.width), np.arange(LENS.height))
    rays = np.stack([(u - LENS.cx) / LENS.fx, (v - LENS.cy) / LENS.fy, np.ones(u.shape)], axis=-1)
    rays = rays @ camera.base_from_optical.T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    start = camera.position_m + np.array([moved_m, 0.0, 0.0]) - CENTRE_M
    along = rays @ start
    reach = -along + np.sqrt(along**2 - start @ start + ball_m**2)
    return painted(start + reach[..., None] * rays)[..., None].repeat(3, -1)


def overlap_error(composed) -> float:
    """Mean difference from the ball as the centre sees it, 15° to either side of straight ahead."""
    azimuth = np.radians(np.arange(-15, 15, 0.5))
    elevation = np.radians(np.arange(-8, 20, 0.5))[:, None]
    directions = np.stack(
        np.broadcast_arrays(
            np.cos(elevation) * np.cos(azimuth), -np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
        ),
        axis=-1,
    )
    column = (azimuth / (2 * np.pi) + 0.5) * WIDTH - 0.5
    row = (0.5 - elevation / np.pi) * WIDTH / 2 - 0.5
    grid = np.broadcast_arrays(column[None].astype(np.float32), row.astype(np.float32))
    ours = cv2.remap(composed.pixels[..., 0], *map(np.ascontiguousarray, grid), cv2.INTER_LINEAR)
    return float(np.abs(ours.astype(float) - painted(directions)).mean())


@pytest.mark.parametrize("ball_m", [12.0, 20.0, 1000.0])
def test_things_nearer_and_farther_than_assumed_are_composed_in_one_place(monkeypatch, ball_m):
    pair = cameras(1.0)
    rig = Rig(pair, -1000.0)  # no ground; the rig assumes 30 m
    views = {camera.name: CameraView(seen(camera, ball_m)) for camera in pair}
    composer = Composer(rig, WIDTH)
    found = overlap_error(composer.compose(views))
    known = {camera.name: CameraView(seen(camera, 30.0)) for camera in pair}
    monkeypatch.setattr(parallax, "LEAST_BASELINE_M", 1e9)
    blurred, best = overlap_error(composer.compose(views)), overlap_error(composer.compose(known))
    assert found < 0.5 * blurred
    assert found < best + 3.0  # what sampling leaves where the assumed distance is the true one


def test_way_since_the_exposure_counts_as_parallax(monkeypatch):
    """Both cameras at one place, but the right one exposed 1 m before the panorama's instant: things beside the way."""
    left, right = cameras(0.0)
    rig = Rig((left, right), -1000.0)
    views = {
        "left": CameraView(seen(left, 12.0)),
        "right": CameraView(seen(right, 12.0, moved_m=-1.0), Pose2(1.0, 0.0, 0.0)),
    }
    composer = Composer(rig, WIDTH)
    found = overlap_error(composer.compose(views))
    monkeypatch.setattr(parallax, "LEAST_BASELINE_M", 1e9)
    assert found < 0.7 * overlap_error(composer.compose(views))


def test_cameras_at_one_place_and_plain_walls_are_left_as_they_are():
    pair = cameras(0.0)
    views = {camera.name: CameraView(seen(camera, 12.0)) for camera in pair}
    composer = Composer(Rig(pair, -1000.0), WIDTH)
    for name, strip in composer.aligned(views)[0].items():
        assert np.array_equal(strip.pixels, composer.strips(views)[name].pixels)
    apart = cameras(1.0)
    plain = {camera.name: CameraView(np.full((480, 640, 3), 90, np.uint8)) for camera in apart}
    composer = Composer(Rig(apart, -1000.0), WIDTH)
    for name, strip in composer.aligned(plain)[0].items():
        assert np.array_equal(strip.pixels, composer.strips(plain)[name].pixels)


def test_near_ground_stays_where_it_is_though_a_mount_is_wrong():
    """Road marks below two cameras that look down; the right one is 0.3 m lower than the rig says, so they disagree.

    The ground is no further away than its plane but for SLOPE_RAD: 1° / 1.5 m × 0.5 m is 0.33°, or 0.7 pixels.
    """

    def road(camera: RigCamera, height_m: float) -> np.ndarray:
        u, v = np.meshgrid(np.arange(LENS.width), np.arange(LENS.height))
        rays = np.stack([(u - LENS.cx) / LENS.fx, (v - LENS.cy) / LENS.fy, np.ones(u.shape)], axis=-1)
        rays = rays @ camera.base_from_optical.T
        down = np.maximum(-rays[..., 2], 1e-3)
        x, y = (camera.position_m[axis] + rays[..., axis] / down * height_m for axis in (0, 1))
        return np.round(128 + 100 * np.sin(4 * x) * np.sin(4 * y)).astype(np.uint8)[..., None].repeat(3, -1)

    pair = tuple(
        RigCamera(name, LENS, rotation_from_mount(0, 0.9, side * 0.3), np.array([0.0, side * 0.5, 1.5]))
        for name, side in (("left", 1), ("right", -1))
    )
    views = {camera.name: CameraView(road(camera, height)) for camera, height in zip(pair, (1.5, 1.2), strict=True)}
    composer = Composer(Rig(pair), WIDTH)
    before = composer.strips(views)
    for name, strip in composer.aligned(views)[0].items():
        was = before[name].pixels[..., 0].astype(np.uint8)
        lowest, highest = cv2.erode(was, np.ones((5, 5), np.uint8)), cv2.dilate(was, np.ones((5, 5), np.uint8))
        kept = (strip.pixels[..., 0] >= lowest) & (strip.pixels[..., 0] <= highest)
        assert kept[before[name].weight > 0.1].mean() > 0.999


def test_images_that_have_nothing_in_common_are_not_torn():
    """Two cameras that show different things: the correction stays within what NEAREST_M allows, and is smooth."""
    pair = cameras(1.0)
    rng = np.random.default_rng(0)
    noise = {c.name: cv2.resize(rng.integers(0, 256, (24, 32), np.uint8), (640, 480)) for c in pair}
    views = {name: CameraView(grey[..., None].repeat(3, -1)) for name, grey in noise.items()}
    composer = Composer(Rig(pair, -1000.0), WIDTH)
    most = math.degrees(0.5 * (1 / parallax.NEAREST_M - 1 / 30.0)) / 360 * WIDTH
    for name, strip in composer.aligned(views)[0].items():
        before = composer.strips(views)[name].pixels[..., 0].astype(np.uint8)
        reach = 2 * math.ceil(most) + 3
        lowest = cv2.erode(before, np.ones((reach, reach), np.uint8))
        highest = cv2.dilate(before, np.ones((reach, reach), np.uint8))
        after = strip.pixels[..., 0]
        assert ((after >= lowest) & (after <= highest)).all()  # every pixel shows what was near it
        assert np.array_equal(strip.weight, composer.strips(views)[name].weight)
