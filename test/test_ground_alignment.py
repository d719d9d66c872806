"""Alignment of a panorama's ground with imagery, against a ground and cameras that are known."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import pytest
from flat_town import HEIGHT_M, Ground

from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.core.robust import robust_mean, spread
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.ground_alignment import CameraGuess, align


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground(1)


VEHICLE = (0.02, -0.015, 2.1)  # roll, pitch, yaw
MOUNT = (-0.02, 0.03, 1.2)
PLACE = (11.3, -7.8)


def taken(ground: Ground, **changes: object) -> CameraImage:
    pixels = ground.panorama(PLACE, VEHICLE, MOUNT)
    return dataclasses.replace(CameraImage(pixels, 1, roll_rad=VEHICLE[0], pitch_rad=VEHICLE[1]), **changes)  # type: ignore[arg-type]


def near(mount: CameraMount | None = None) -> tuple[CameraMount, CameraGuess]:
    """A start that is off by 0.5 m, 2° of yaw, 1° of tilt and 10% of the height."""
    start = mount or CameraMount(yaw_rad=MOUNT[2] + 0.035, pitch_rad=MOUNT[1] - 0.017, roll_rad=MOUNT[0] + 0.017)
    return start, CameraGuess(PLACE[0] + 0.4, PLACE[1] - 0.3, VEHICLE[2], 0.9 * HEIGHT_M)


@pytest.mark.parametrize("tile_yaw_rad", [0.0, 0.1])
def test_place_yaw_tilt_and_height_are_found_from_a_start_that_is_off(tile_yaw_rad: float) -> None:
    ground = Ground(1, tile_yaw_rad=tile_yaw_rad)
    mount, guess = near()
    found = align(taken(ground), mount, ground, guess)  # type: ignore[arg-type]
    assert found is not None
    np.testing.assert_allclose(found.state[:2], PLACE, atol=0.03)
    np.testing.assert_allclose(found.state[2:5], MOUNT[::-1], atol=math.radians(0.1))
    assert found.height_m == pytest.approx(HEIGHT_M, rel=0.01)
    assert found.correlation > 0.95


def test_what_stands_on_the_ground_does_not_count(ground: Ground) -> None:
    image = taken(ground)
    pixels = image.pixels.copy()
    pixels[96:150, 40:90] = 250  # a lorry, over a seventh of the horizon
    mount, guess = near()
    found = align(dataclasses.replace(image, pixels=pixels), mount, ground, guess)  # type: ignore[arg-type]
    assert found is not None
    np.testing.assert_allclose(found.state[:2], PLACE, atol=0.06)
    np.testing.assert_allclose(found.state[2:5], MOUNT[::-1], atol=math.radians(0.25))


def test_a_camera_upside_down_is_aligned_as_one_that_stands(ground: Ground) -> None:
    # Half a turn about the viewing axis turns the picture by half a turn.
    image = taken(ground)
    turned = dataclasses.replace(image, pixels=np.ascontiguousarray(image.pixels[::-1, ::-1]))
    mount, guess = near()
    upright = align(image, mount, ground, guess)  # type: ignore[arg-type]
    hanging = align(turned, dataclasses.replace(mount, upside_down=True), ground, guess)  # type: ignore[arg-type]
    assert upright is not None
    assert hanging is not None
    np.testing.assert_allclose(hanging.state, upright.state, atol=1e-9)


def test_pose_follows_a_known_tilt_to_first_order(ground: Ground) -> None:
    mount, guess = near()
    found = align(taken(ground), mount, ground, guess)  # type: ignore[arg-type]
    assert found is not None
    wrong = found.state[3:] + np.array([0.01, 0.0, 0.0])
    moved = found.pose_with_tilt(wrong) - found.state[:3]
    # Pitched down by 0.01 rad, points at 1.5 to 6.5 heights seem 0.01 (r² + h²)/h nearer: mostly a shift backwards,
    # along the camera's forward axis. Its yaw in the map is the vehicle's and the mount's.
    forward = np.array([math.cos(VEHICLE[2] + MOUNT[2]), math.sin(VEHICLE[2] + MOUNT[2])])
    shift = float(moved[:2] @ forward)
    assert 0.01 * HEIGHT_M * 2 < abs(shift) < 0.01 * HEIGHT_M * 40
    assert abs(float(moved[:2] @ [-forward[1], forward[0]])) < 0.3 * abs(shift)


def test_no_imagery_about_the_place_no_alignment(ground: Ground) -> None:
    mount, guess = near()
    far = dataclasses.replace(guess, east_m=5000.0)
    assert align(taken(ground), mount, ground, far) is None  # type: ignore[arg-type]


def test_hidden_ground_no_alignment(ground: Ground) -> None:
    seen = np.zeros((192, 384), bool)
    seen[:96] = True
    mount, guess = near()
    assert align(taken(ground, seen=seen), mount, ground, guess) is None  # type: ignore[arg-type]


def test_another_ground_does_not_correlate(ground: Ground) -> None:
    mount, guess = near()
    found = align(taken(ground), mount, Ground(2), guess)  # type: ignore[arg-type]
    assert found is None or found.correlation < 0.7


def test_a_grey_image_gives_nothing_or_no_correlation(ground: Ground) -> None:
    mount, guess = near()
    grey = taken(ground, pixels=np.full((192, 384, 3), 128, np.uint8))
    found = align(grey, mount, ground, guess)  # type: ignore[arg-type]
    assert found is None or abs(found.correlation) < 0.7


def test_larger_images_give_the_same(ground: Ground) -> None:
    mount, guess = near()
    image = taken(ground)
    larger = cv2.resize(image.pixels, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    first = align(image, mount, ground, guess)  # type: ignore[arg-type]
    second = align(dataclasses.replace(image, pixels=np.asarray(larger, np.uint8)), mount, ground, guess)  # type: ignore[arg-type]
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first.state[:2], second.state[:2], atol=0.03)
    np.testing.assert_allclose(first.state[2:5], second.state[2:5], atol=2e-3)


def test_robust_mean_leaves_out_what_is_far() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(3.0, 0.1, 80), rng.uniform(5, 50, 20)])
    mean, weights = robust_mean(values)
    assert mean == pytest.approx(3.0, abs=0.04)
    assert (weights[80:] == 0).all()
    assert spread(rng.normal(0, 2.0, 4000)) == pytest.approx(2.0, rel=0.06)
    assert robust_mean([4.0, 4.0, 4.0])[0] == 4.0
