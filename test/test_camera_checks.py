"""Equirectangular or not: a world of blobs seen through an equirectangular, a fisheye and a pinhole camera, each
written out from its own geometry; and real images of either kind."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from unifygeo_ros.core.records import CameraImage, RejectionReason
from unifygeo_ros.localization import camera_checks
from unifygeo_ros.localization.camera_checks import projection_problem
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.panorama import check_image

HALF_PI = math.pi / 2
REAL = Path(__file__).parents[2] / "shared" / "data"
if not REAL.exists():
    REAL = Path(__file__).parents[1] / "shared" / "data"


def world(x, y, z):
    """Grey values seen in unit directions: blobs of a few degrees, everywhere on the sphere."""
    rng = np.random.default_rng(4)
    total = np.zeros_like(x)
    for _ in range(24):
        a, b, c = rng.normal(0, 30, 3)
        total += np.sin(a * x + b * y + c * z + rng.uniform(0, 6))
    return np.clip(128 + 25 * total, 10, 255).astype(np.uint8)


def equirectangular(rows=384, top=HALF_PI, bottom=-HALF_PI, tilt=0.0):
    columns = round(rows * 2 * math.pi / (top - bottom))
    azimuth = (np.arange(columns) + 0.5) / columns * 2 * math.pi - math.pi
    elevation = (top - (np.arange(rows) + 0.5) / rows * (top - bottom))[:, None]
    x = np.cos(elevation) * np.cos(azimuth)
    y = -np.cos(elevation) * np.sin(azimuth)
    z = np.broadcast_to(np.sin(elevation), x.shape)
    x, z = math.cos(tilt) * x + math.sin(tilt) * z, -math.sin(tilt) * x + math.cos(tilt) * z
    return world(x, y, z)


def fisheye(size=384, field_deg=190.0, forward=1):
    """An equidistant circle, black beyond."""
    v, u = (np.mgrid[:size, :size] + 0.5 - size / 2) / (size / 2)
    radius = np.hypot(u, v)
    angle = radius * math.radians(field_deg) / 2
    across = np.sin(angle) / np.maximum(radius, 1e-9)
    image = world(forward * np.cos(angle), -forward * across * u, -across * v)
    return np.where(radius <= 1, image, 0).astype(np.uint8)


def pinhole(rows=384, field_deg=110.0):
    columns = 2 * rows
    focal = columns / 2 / math.tan(math.radians(field_deg) / 2)
    v, u = np.mgrid[:rows, :columns] + 0.5
    left, up = -(u - columns / 2) / focal, -(v - rows / 2) / focal
    length = np.sqrt(1 + left**2 + up**2)
    return world(1 / length, left / length, up / length)


def problem(grey, top=HALF_PI, bottom=-HALF_PI, body=None):
    return projection_problem(np.ascontiguousarray(grey), top, bottom, body)


def with_a_logo(grey):
    marked = grey.copy()
    cv2.putText(marked, "2024-05-05 10:00", (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 255)
    return marked


def without_a_sector(grey):
    dark = grey.copy()
    dark[:, -50:] = dark[:, :70] = 0
    return dark


@pytest.mark.parametrize(
    "image",
    [
        equirectangular(),
        equirectangular(128),
        equirectangular(60),
        equirectangular(tilt=0.6),
        equirectangular()[:, ::-1],
        equirectangular()[::-1, ::-1],
        np.roll(equirectangular(), 300, axis=1),
        with_a_logo(equirectangular()),
        without_a_sector(equirectangular()),
        cv2.imdecode(cv2.imencode(".jpg", equirectangular(), [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 0),
        np.full((384, 768), 90, np.uint8),
        np.random.default_rng(0).integers(0, 255, (64, 128), np.uint8),
    ],
    ids=["whole", "small", "tiny", "tilted", "mirrored", "down", "turned", "logo", "sector", "jpeg", "blank", "noise"],
)
def test_equirectangular_image_and_one_that_shows_nothing_pass(image):
    assert problem(image) is None


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.hstack([fisheye(), fisheye(forward=-1)]), "edge, which is one point"),
        (pinhole(), "edge"),
        (equirectangular()[96:288, :384], "edge"),  # a quarter of a panorama
    ],
    ids=["dual fisheye", "pinhole", "quarter"],
)
def test_other_projections_are_refused_with_value_and_limit(image, words):
    found = problem(image)
    assert found is not None
    assert words in found
    assert "limit" in found


def test_seam_that_does_not_close_is_refused_where_no_pole_is_in_the_image():
    top, bottom = math.radians(45), math.radians(-45)
    assert problem(equirectangular(192, top, bottom), top, bottom) is None
    half = cv2.resize(equirectangular(192, top, bottom)[:, :300], (768, 192))
    found = problem(half, top, bottom)
    assert found is not None
    assert "left and right edges" in found


def test_two_lenses_of_different_exposure_still_make_a_panorama():
    image = equirectangular().astype(float)
    image[:, :384] *= 0.75
    assert problem(image.astype(np.uint8)) is None


def test_mask_covers_drawings_over_a_pole():
    image = equirectangular()
    image[:24] = image[-24:] = pinhole()[:24]
    assert problem(image) is not None
    body = np.zeros((96, 192), bool)
    body[:7] = body[-7:] = True
    assert problem(image, body=body) is None


def test_rejection_names_the_fault_and_the_check_can_be_switched_off():
    dual = np.repeat(np.hstack([fisheye(), fisheye(forward=-1)])[..., None], 3, axis=2)
    rejection = check_image(CameraImage(dual, 7), CameraMount(), LocalizerConfig())
    assert rejection is not None
    assert (rejection.reason, rejection.stamp_ns) == (RejectionReason.BAD_IMAGE, 7)
    assert rejection.detail.startswith("not an equirectangular image: near the ")
    assert check_image(CameraImage(dual, 7), CameraMount(), LocalizerConfig(check_projection=False)) is None


def real(*names):
    files = [REAL / name for name in names]
    if not all(file.exists() for file in files):
        pytest.skip("the real images are not here")
    return [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files]


@pytest.mark.parametrize("name", ["R0014760.JPG", "equirectangular_image_001.jpg", "equirectangular_image_002.jpg"])
def test_real_panoramas_pass_also_small_noisy_and_hard_compressed(name):
    (image,) = real(f"panoramas/{name}")
    small = cv2.resize(image, (768, 384), interpolation=cv2.INTER_AREA)
    noisy = np.clip(small + np.random.default_rng(0).normal(0, 4, small.shape), 0, 255).astype(np.uint8)
    hard = cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 20])[1], 0)
    assert [problem(picture) for picture in (image, small, noisy, hard)] == [None] * 4


def test_real_dual_fisheye_is_refused_at_every_size():
    front, back = real("rigs/gopro_fusion/GF075169.JPG", "rigs/gopro_fusion/GB075169.JPG")
    for size in ((1920, 960), (960, 480), (768, 384)):
        dual = cv2.resize(np.hstack([front, back]), size, interpolation=cv2.INTER_AREA)
        assert problem(dual) is not None


@pytest.mark.parametrize("name", ["front", "back", "left", "right"])
def test_real_fisheye_images_are_refused(name):
    (image,) = real(f"rigs/four_fisheyes/{name}.png")
    assert problem(image[80:560]) is not None


@pytest.mark.parametrize(("rows", "columns"), [(256, 512), (17, 16), (33, 16), (17, 48)])
def test_noise_energy_is_the_tenth_percentile_of_the_blocks(rows, columns):
    """By numpy's quantile of block means that are written out; 1, 2 and 3 blocks, too."""
    image = np.random.default_rng(rows).integers(0, 256, (rows, columns)).astype(np.float32)
    across = np.diff(image.astype(float), axis=0) ** 2
    height, width = across.shape[0] // 16, columns // 16
    blocks = across[: height * 16].reshape(height, 16, width, 16).mean(axis=(1, 3))
    assert camera_checks._noise_energy(image) == pytest.approx(np.quantile(blocks, 0.1), rel=1e-5)
