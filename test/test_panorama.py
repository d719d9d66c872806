"""Panoramas: where a mark at a known direction lands, worked by hand; what is refused."""

import dataclasses
import math
import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.geodesy import yaw_from_azimuth
from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource, RejectionReason
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.panorama import (
    FILL_RGB,
    check_image,
    check_seen,
    how_much_is_seen,
    prepare_panorama,
    sharpness,
)

DEG = math.pi / 180
FULL = GroundSpec(180, 360, 90 * DEG, -90 * DEG, 12)  # one pixel a degree
MIDDLE = GroundSpec(90, 360, 45 * DEG, -45 * DEG, 12)
LEVEL = CameraMount()


def image_with_mark(azimuth_deg, elevation_deg, scale=4, radius_deg=3.0):
    """A black full sphere of `scale` pixels a degree with a white disc in a direction relative to the camera."""
    height, width = 180 * scale, 360 * scale
    azimuth = (np.arange(width) + 0.5) / scale - 180
    elevation = 90 - (np.arange(height) + 0.5) / scale
    a, e = np.radians(azimuth)[None], np.radians(elevation)[:, None]
    a0, e0 = math.radians(azimuth_deg), math.radians(elevation_deg)
    cosine = np.sin(e) * math.sin(e0) + np.cos(e) * math.cos(e0) * np.cos(a - a0)
    mark = (cosine > math.cos(math.radians(radius_deg))).astype(np.uint8) * 255
    return np.repeat(mark[..., None], 3, axis=2)


def mark_direction(panorama, ground):
    """Azimuth and elevation (degrees) of the mark's centre, from pixel values and the convention alone."""
    weight = panorama.pixels[..., 0].astype(float)
    assert weight.sum() > 0, "the mark is not in the panorama"
    azimuth = (np.arange(ground.width) + 0.5) / ground.width * 2 * np.pi - np.pi
    field = ground.elevation_top_rad - ground.elevation_bottom_rad
    elevation = ground.elevation_top_rad - (np.arange(ground.height) + 0.5) / ground.height * field
    weight = weight * np.cos(elevation)[:, None]  # solid angle
    vector = np.array(
        [
            (weight * np.cos(elevation)[:, None] * np.cos(azimuth)).sum(),
            (weight * np.cos(elevation)[:, None] * np.sin(azimuth)).sum(),
            (weight * np.sin(elevation)[:, None]).sum(),
        ]
    )
    x, y, z = vector / np.linalg.norm(vector)
    return math.degrees(math.atan2(y, x)), math.degrees(math.asin(z))


def facing(azimuth_deg):
    return Heading(float(yaw_from_azimuth(math.radians(azimuth_deg))), 1e-4, HeadingSource.CONSTANT)


def assert_direction(got, azimuth_deg, elevation_deg, tolerance=0.3):
    assert (got[0] - azimuth_deg + 180) % 360 - 180 == pytest.approx(0, abs=tolerance)
    assert got[1] == pytest.approx(elevation_deg, abs=tolerance)


# (vehicle's azimuth, camera's yaw on the vehicle, mark relative to the camera) → the mark's azimuth from north
CASES = [
    (0, 0, (0, 0), (0, 0)),  # facing north, mark ahead: centre
    (0, 0, (90, 10), (90, 10)),  # mark to the right of a camera that faces north: east
    (90, 0, (0, -20), (90, -20)),  # facing east, mark ahead: east
    (90, 0, (-90, 0), (0, 0)),  # facing east, mark to the left: north
    (-135, 0, (100, 30), (-35, 30)),  # facing south-west, 100° to the right: 35° west of north
    (0, 90, (0, 0), (-90, 0)),  # the camera looks to the vehicle's left, the vehicle north: west
    (200, -30, (-170, 5), (60, 5)),  # 200 + 30 − 170
    (10.37, 0, (0, 0), (10.37, 0)),  # a turn of no whole number of columns
]


@pytest.mark.parametrize(("vehicle", "camera_yaw", "mark", "expected"), CASES)
@pytest.mark.parametrize("ground", [FULL, MIDDLE], ids=["full", "middle"])
def test_prepare_puts_a_mark_where_the_convention_says(vehicle, camera_yaw, mark, expected, ground):
    image = CameraImage(image_with_mark(*mark), 7)
    mount = CameraMount(yaw_rad=camera_yaw * DEG)
    panorama = prepare_panorama(image, ground, mount, facing(vehicle))
    assert panorama.pixels.shape == (ground.height, ground.width, 3)
    assert panorama.pixels.dtype == np.uint8
    assert panorama.azimuth_rad == 0.0
    assert panorama.stamp_ns == 7
    assert_direction(mark_direction(panorama, ground), *expected)


def test_prepare_maps_single_pixels_worked_by_hand():
    # 8 x 16: column c looks at (c + 0.5)·22.5° − 180°, row r at 90° − (r + 0.5)·22.5°. Facing east rolls by 4 columns.
    ground = GroundSpec(8, 16, math.pi / 2, -math.pi / 2, 4)
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[3, 8] = 255  # ahead and to the right by 11.25°
    panorama = prepare_panorama(CameraImage(pixels, 0), ground, LEVEL, facing(90))
    assert np.argwhere(panorama.pixels[..., 0]).tolist() == [[3, 12]]  # 12.5·22.5 − 180 = 101.25°
    panorama = prepare_panorama(CameraImage(pixels, 0), ground, LEVEL, facing(180))
    assert np.argwhere(panorama.pixels[..., 0]).tolist() == [[3, 0]]  # −168.75°
    # The model's field is cut, not squeezed: rows 2 … 5 are ±45°.
    cut = prepare_panorama(CameraImage(pixels, 0), GroundSpec(4, 16, math.pi / 4, -math.pi / 4, 4), LEVEL, facing(0))
    assert np.argwhere(cut.pixels[..., 0]).tolist() == [[1, 8]]


def test_without_heading_the_centre_faces_base_link_x():
    image = CameraImage(image_with_mark(-40, 0), 0)
    panorama = prepare_panorama(image, MIDDLE, CameraMount(yaw_rad=30 * DEG), None)
    assert panorama.azimuth_rad is None
    assert_direction(mark_direction(panorama, MIDDLE), -70, 0)  # 40° right of a camera turned 30° left, mirrored: −70°


def test_upside_down_changes_both_signs():
    image = CameraImage(image_with_mark(50, 20), 0)
    panorama = prepare_panorama(image, MIDDLE, CameraMount(upside_down=True), facing(0))
    assert_direction(mark_direction(panorama, MIDDLE), -50, -20)
    both = CameraMount(upside_down=True, yaw_rad=90 * DEG)
    assert_direction(mark_direction(prepare_panorama(image, MIDDLE, both, facing(0)), MIDDLE), -140, -20)


@pytest.mark.parametrize(
    ("roll", "pitch", "mark", "expected"),
    [
        (0, 20, (0, 0), (0, -20)),  # nose 20° down: what is ahead in the image lies 20° below the horizon
        (0, 20, (180, 0), (180, 20)),
        (0, 20, (90, 10), (90 + math.degrees(math.atan2(0, 1)), 10)),  # near the axis: turned about it, see below
        (15, 0, (90, 0), (90, -15)),  # leaning to the right: what is right in the image lies below the horizon
        (15, 0, (-90, 0), (-90, 15)),
        (15, 0, (0, 0), (0, 0)),
    ],
)
def test_prepare_removes_tilt(roll, pitch, mark, expected):
    image = CameraImage(image_with_mark(*mark), 0, roll * DEG, pitch * DEG)
    got = mark_direction(prepare_panorama(image, FULL, LEVEL, facing(0)), FULL)
    if mark == (90, 10):  # x = 0, y = −cos 10°, z = sin 10° in base_link; pitched by 20° about y
        z = math.sin(10 * DEG)
        expected = (
            math.degrees(math.atan2(math.cos(10 * DEG), z * math.sin(20 * DEG))),
            math.degrees(math.asin(z * math.cos(20 * DEG))),
        )
    assert_direction(got, *expected, tolerance=0.4)


@given(
    st.floats(-180, 180), st.floats(-180, 180), st.floats(-25, 25), st.floats(-25, 25), st.floats(-180, 180),
    st.floats(-50, 50), st.booleans(), st.floats(-60, 60), st.floats(-40, 40),
)  # fmt: skip
@settings(max_examples=40)
def test_prepare_of_any_geometry_agrees_with_rotation_matrices(
    vehicle, camera_yaw, roll, pitch, azimuth, elevation, down, camera_roll, camera_pitch
):
    def rotation(axis, degrees):
        c, s = math.cos(degrees * DEG), math.sin(degrees * DEG)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        matrix = np.eye(3)
        matrix[i, i] = matrix[j, j] = c
        matrix[i, j], matrix[j, i] = -s, s
        return matrix

    a, e = azimuth * DEG, elevation * DEG
    camera = np.array([math.cos(e) * math.cos(a), -math.cos(e) * math.sin(a), math.sin(e)])
    base = rotation(2, camera_yaw) @ rotation(1, camera_pitch) @ rotation(0, camera_roll + 180 * down) @ camera
    world = rotation(2, 90 - vehicle) @ rotation(1, pitch) @ rotation(0, roll) @ base  # east, north, up
    image = CameraImage(image_with_mark(azimuth, elevation, scale=3), 0, roll * DEG, pitch * DEG)
    mount = CameraMount(
        yaw_rad=camera_yaw * DEG, pitch_rad=camera_pitch * DEG, roll_rad=camera_roll * DEG, upside_down=down
    )
    got_azimuth, got_elevation = mark_direction(prepare_panorama(image, FULL, mount, facing(vehicle)), FULL)
    ga, ge = got_azimuth * DEG, got_elevation * DEG
    got = np.array([math.cos(ge) * math.sin(ga), math.cos(ge) * math.cos(ga), math.sin(ge)])
    assert math.degrees(math.acos(min(1.0, float(got @ world)))) < 0.5


@pytest.mark.parametrize(("roll", "pitch"), [(0.1, 0.0), (0.0, -0.3), (0.2, 0.4), (-1.5, 0.0)])
def test_levelled_image_of_a_tilted_camera_equals_a_level_one(roll, pitch):
    """What a tilted camera sees is rendered by turning the sphere itself, not by the code under test."""
    height = 240
    azimuth = ((np.arange(2 * height) + 0.5) / (2 * height) * 2 * np.pi - np.pi)[None, :]
    elevation = (np.pi / 2 - (np.arange(height) + 0.5) / height * np.pi)[:, None]
    one = np.ones((height, 2 * height))
    rays = np.stack(
        [np.cos(elevation) * np.cos(azimuth), -np.cos(elevation) * np.sin(azimuth), np.sin(elevation) * one], axis=-1
    )

    def seen(directions):
        """A sphere whose colour is a smooth function of the direction in base_link."""
        return (127 + 60 * directions + 50 * np.sin(3 * directions[..., [1, 2, 0]])).astype(np.uint8)

    turned = Rotation.from_euler("ZYX", [0.0, pitch, roll]).apply(rays.reshape(-1, 3)).reshape(rays.shape)
    level = prepare_panorama(CameraImage(seen(rays), 0), MIDDLE, LEVEL, facing(0)).pixels
    mount = CameraMount(roll_rad=roll, pitch_rad=pitch)
    tilted = prepare_panorama(CameraImage(seen(turned), 0), MIDDLE, mount, facing(0)).pixels
    assert np.abs(level.astype(int) - tilted).max() <= 4


def smooth_image(height=480, seed=0, harmonics=6):
    """A full sphere without an edge at ±180° and with detail that survives averaging down."""
    rng = np.random.default_rng(seed)
    azimuth = (np.arange(2 * height) + 0.5) / (2 * height) * 2 * np.pi
    elevation = np.linspace(-1, 1, height)[:, None]
    image = np.zeros((height, 2 * height, 3))
    for k in range(1, harmonics):
        phase, tilt = rng.uniform(0, 2 * np.pi, 3), rng.uniform(-3, 3, 3)
        image += np.sin(k * azimuth[None, :, None] + tilt * elevation[..., None] + phase)
    return (127 + 120 * image / harmonics).astype(np.uint8)


def test_general_projection_agrees_with_the_level_shortcut():
    pixels = smooth_image()
    level = prepare_panorama(CameraImage(pixels, 0), MIDDLE, LEVEL, facing(33.3)).pixels
    nearly = prepare_panorama(CameraImage(pixels, 0, 0.00205, 0.0), MIDDLE, LEVEL, facing(33.3)).pixels
    assert np.abs(level.astype(int) - nearly).max() <= 2


def test_heading_rolls_the_panorama_without_a_seam():
    pixels = smooth_image()
    north = prepare_panorama(CameraImage(pixels, 0), MIDDLE, LEVEL, facing(0)).pixels
    for degrees in (1, 90, 180, 271):
        turned = prepare_panorama(CameraImage(pixels, 0), MIDDLE, LEVEL, facing(degrees)).pixels
        np.testing.assert_allclose(turned, np.roll(north, degrees, axis=1), atol=1)
    half = prepare_panorama(CameraImage(pixels, 0), MIDDLE, LEVEL, facing(0.5)).pixels.astype(float)
    np.testing.assert_allclose(half, (north.astype(float) + np.roll(north, 1, axis=1)) / 2, atol=2)


def test_fine_stripes_average_out_instead_of_aliasing():
    pixels = np.zeros((960, 1920, 3), np.uint8)
    pixels[:, ::2] = 200
    for tilt, tolerance in ((None, 3), (0.1, 8)):  # of an amplitude of 100; the nearest column would give 100
        image = CameraImage(pixels, 0, tilt, tilt)
        panorama = prepare_panorama(image, GroundSpec(96, 320, 45 * DEG, -45 * DEG, 10), LEVEL, facing(12.3)).pixels
        assert np.abs(panorama.astype(int) - 100).max() <= tolerance


def test_small_image_is_enlarged():
    panorama = prepare_panorama(CameraImage(smooth_image(60), 0), MIDDLE, LEVEL, facing(0)).pixels.astype(int)
    exact = prepare_panorama(CameraImage(smooth_image(720), 0), MIDDLE, LEVEL, facing(0)).pixels
    assert np.abs(panorama - exact).mean() < 4


def test_partial_vertical_field_is_padded_and_must_be_declared():
    whole = smooth_image(480)
    band = CameraImage(whole[160:320], 0)  # ±30°, 960 x 160
    with pytest.raises(InputError, match=r"aspect 6\.000.*2\.000"):
        prepare_panorama(band, MIDDLE, LEVEL, facing(0))
    mount = CameraMount(elevation_top_rad=30 * DEG, elevation_bottom_rad=-30 * DEG)
    assert check_image(band, mount, LocalizerConfig(minimum_sharpness=0.0)) is None
    padded = prepare_panorama(band, MIDDLE, mount, facing(20)).pixels
    expected = prepare_panorama(CameraImage(whole, 0), MIDDLE, LEVEL, facing(20)).pixels
    np.testing.assert_allclose(padded[16:-16].astype(int), expected[16:-16], atol=3)
    assert (padded[:15] == FILL_RGB).all()
    assert (padded[-15:] == FILL_RGB).all()
    below = CameraMount(elevation_top_rad=-50 * DEG, elevation_bottom_rad=-90 * DEG)
    with pytest.raises(InputError, match="share nothing"):
        prepare_panorama(CameraImage(whole[:107], 0), MIDDLE, below, facing(0))


def test_body_mask_moves_with_the_image(tmp_path):
    mask = np.full((180, 360), 255, np.uint8)
    mask[120:, 170:190] = 0  # below −30°, ±10° about the image's centre
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    pixels = np.full((720, 1440, 3), 200, np.uint8)
    mount = CameraMount(mask_path=str(tmp_path / "mask.png"), yaw_rad=90 * DEG)  # the camera looks left
    panorama = prepare_panorama(CameraImage(pixels, 0), MIDDLE, mount, facing(0)).pixels
    filled = (panorama == FILL_RGB).all(axis=2)
    rows, columns = np.nonzero(filled)
    assert (rows.min(), rows.max()) == (75, 89)  # elevations −30° … −45°
    assert (columns.min(), columns.max()) == (80, 99)  # azimuth −90° ± 10°
    assert filled.sum() == 15 * 20
    assert (panorama[~filled] == 200).all()
    tilted = prepare_panorama(CameraImage(pixels, 0, 0.05, 0.05), MIDDLE, mount, facing(0)).pixels
    assert 150 < (tilted == FILL_RGB).all(axis=2).sum() < 500

    cv2.imwrite(str(tmp_path / "square.png"), mask[:, :180])
    with pytest.raises(InputError, match=r"square\.png: the mask is 180x180"):
        prepare_panorama(CameraImage(pixels, 0), MIDDLE, CameraMount(mask_path=str(tmp_path / "square.png")), None)
    with pytest.raises(InputError, match="cannot be read"):
        prepare_panorama(CameraImage(pixels, 0), MIDDLE, CameraMount(mask_path=str(tmp_path / "none.png")), None)


GOOD = np.random.default_rng(1).integers(0, 255, (64, 128, 3), np.uint8)


def sector(width_deg, top_deg=90, bottom_deg=-90):
    """What is seen: so many degrees of azimuth around the middle, between two elevations; one pixel a degree."""
    seen = np.zeros((180, 360), bool)
    seen[90 - top_deg : 90 - bottom_deg, 180 - width_deg // 2 : 180 + width_deg // 2] = True
    return seen


@pytest.mark.parametrize(
    ("seen", "ground", "share"),
    [
        (None, FULL, 1.0),
        (sector(90), FULL, 0.25),
        (sector(90), MIDDLE, 0.25),
        (sector(90, 45, 0), MIDDLE, 0.125),
        (sector(360, 90, 45), MIDDLE, 0.0),  # above all that the network takes in
        (sector(52, 15, -15), MIDDLE, 52 / 360 * 30 / 90),  # the front camera of a car alone
    ],
)
def test_share_that_is_seen_is_that_of_what_the_network_takes_in(seen, ground, share):
    image = CameraImage(np.full((180, 360, 3), 90, np.uint8), 3, seen=seen)
    assert how_much_is_seen(image, LEVEL, ground).share == pytest.approx(share, abs=0.002)
    rejection = check_seen(image, how_much_is_seen(image, LEVEL, ground), LocalizerConfig())
    assert (rejection is not None) == (share < 0.1)
    if rejection is not None:
        assert (rejection.reason, rejection.stamp_ns) == (RejectionReason.TOO_LITTLE_SEEN, 3)
        assert f"{share:.1%} of what the network takes in is seen, minimum_seen is 10.0%" in rejection.detail


def test_what_is_seen_is_told_by_azimuth_and_by_elevation():
    """Of -45° … 45°: all round but low; a quarter at full height; a quarter at half height."""
    parts = ((sector(360, 20, -25), (1.0, 0.5)), (sector(90), (0.25, 1.0)), (sector(90, 45, 0), (0.25, 0.5)))
    for mask, expected in parts:
        image = CameraImage(np.full((180, 360, 3), 90, np.uint8), 3, seen=mask)
        seen = how_much_is_seen(image, LEVEL, MIDDLE)
        assert (seen.azimuth, seen.elevation) == pytest.approx(expected, abs=0.005)
    thin = CameraImage(np.full((180, 360, 3), 90, np.uint8), 3, seen=sector(360, 4, 0))
    assert how_much_is_seen(thin, LEVEL, MIDDLE).share == 0.0  # less than a tenth of each azimuth


def test_share_that_is_seen_counts_mask_elevations_and_a_camera_that_hangs_upside_down(tmp_path):
    mask = np.full((180, 360), 255, np.uint8)
    mask[:, :180] = 0
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    image = CameraImage(np.full((180, 360, 3), 90, np.uint8), 3, seen=sector(180))
    assert how_much_is_seen(image, CameraMount(mask_path=str(tmp_path / "mask.png")), FULL).share == pytest.approx(
        0.25, abs=0.01
    )
    band = CameraImage(np.full((45, 360, 3), 90, np.uint8), 3)
    below = CameraMount(elevation_top_rad=0.0, elevation_bottom_rad=-45 * DEG)
    assert how_much_is_seen(band, below, MIDDLE).share == pytest.approx(0.5, abs=0.01)
    up = GroundSpec(90, 360, 90 * DEG, 0.0, 12)
    assert how_much_is_seen(band, below, up).share == 0.0
    assert how_much_is_seen(band, dataclasses.replace(below, upside_down=True), up).share == pytest.approx(
        0.5, abs=0.01
    )


@pytest.mark.parametrize(
    ("image", "reason", "words"),
    [
        (CameraImage(GOOD[:, :100], 3), RejectionReason.BAD_IMAGE, r"100x64, aspect 1\.562.*2\.000 ± 1%"),
        (CameraImage(GOOD[:1, :2], 3), RejectionReason.BAD_IMAGE, "at least 8x8"),
        (CameraImage(GOOD.astype(np.float32), 3), RejectionReason.BAD_IMAGE, "float32"),
        (CameraImage(GOOD[..., 0], 3), RejectionReason.BAD_IMAGE, r"\(64, 128\)"),
        (CameraImage(GOOD, 3, math.nan, 0.0), RejectionReason.BAD_IMAGE, "roll is nan"),
        (CameraImage(GOOD // 40, 3), RejectionReason.BLACK_IMAGE, "mean brightness 2.* minimum_brightness 8"),
        (CameraImage(np.full_like(GOOD, 128), 3), RejectionReason.BLURRED_IMAGE, "sharpness 0.00"),
    ],
)
def test_useless_images_are_rejected_with_value_and_limit(image, reason, words):
    rejection = check_image(image, LEVEL, LocalizerConfig())
    assert rejection is not None
    assert (rejection.reason, rejection.stamp_ns) == (reason, 3)
    assert re.search(words, rejection.detail), rejection.detail


def test_blur_check_depends_on_detail_not_resolution():
    fine = np.random.default_rng(2).integers(0, 255, (240, 480, 3), np.uint8)
    config = LocalizerConfig(check_projection=False)  # noise is no panorama
    for factor in (2, 4):
        sharp = cv2.resize(fine, (480 * factor, 240 * factor), interpolation=cv2.INTER_NEAREST)
        assert check_image(CameraImage(sharp, 0), LEVEL, config) is None
        blurred = cv2.GaussianBlur(sharp, (0, 0), 8.0 * factor)
        rejection = check_image(CameraImage(blurred, 0), LEVEL, config)
        assert rejection is not None
        assert rejection.reason is RejectionReason.BLURRED_IMAGE


def test_good_image_passes():
    assert check_image(CameraImage(GOOD, 0), LEVEL, LocalizerConfig()) is None
    wide = CameraImage(np.repeat(GOOD, 1, axis=0)[:, :127], 0)  # 1.984: within 1%
    assert check_image(wide, LEVEL, LocalizerConfig()) is None


def test_elevations_in_the_wrong_order_are_a_configuration_error():
    with pytest.raises(ConfigurationError, match="upper one first"):
        CameraMount(elevation_top_rad=-0.5, elevation_bottom_rad=0.5)
    assert dataclasses.replace(LEVEL, elevation_top_rad=0.5).elevation_top_rad == 0.5


@given(
    st.integers(8, 150),
    st.integers(1, 60),
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(-1.5, 1.5),
    st.floats(-math.pi, math.pi),
    st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4)),
    st.booleans(),
)
@settings(max_examples=100)
def test_grey_sphere_stays_grey_for_every_size_and_direction(rows, height, columns, sector, edge, yaw, tilt, down):
    top, bottom = max(edge, -edge, 0.1), -max(edge, -edge, 0.1) / 2
    ground = GroundSpec(height, columns * sector, top, bottom, columns)
    image = CameraImage(np.full((rows, 2 * rows, 3), 77, np.uint8), 0, *tilt)
    pixels = prepare_panorama(
        image, ground, CameraMount(yaw_rad=yaw, upside_down=down), Heading(yaw / 2, 0.1, HeadingSource.CONSTANT)
    ).pixels
    assert pixels.shape == (ground.height, ground.width, 3)
    assert (pixels == 77).all()


def test_sharpness_is_the_variance_of_the_laplacian():
    """Written out: at 512 columns nothing is averaged. OpenCV mirrors the image at its edge."""
    grey = np.random.default_rng(0).integers(0, 256, (256, 512), np.uint8)
    values = np.pad(grey.astype(float), 1, mode="reflect")
    inner = values[1:-1, 1:-1]
    second = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * inner
    assert sharpness(np.repeat(grey[..., None], 3, axis=2)) == pytest.approx(second.var(), rel=1e-9)
