"""Large JPEGs are decoded at a fraction of their size: what the network gets, and what the checks of images say."""

import dataclasses
import functools
import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from worlds import colour_world

from unifygeo_ros.conversions.from_messages import camera_image
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource, RejectionReason
from unifygeo_ros.images.files import decode_image
from unifygeo_ros.inference.bundle import GroundSpec, load_bundle
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.panorama import check_image, enough_columns, prepare_panorama, sharpness

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared/data/panoramas/R0014760.JPG"
SMALL = GroundSpec(96, 320, math.pi / 4, -math.pi / 4, 10)
LARGE = GroundSpec(384, 768, math.pi / 2, -math.pi / 2, 24)


def jpeg(pixels, quality=90):
    return cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@functools.cache
def rendered():
    """JPEG of 7680×3840 pixels: patches of half a metre, each sharp to the pixel."""
    return jpeg(colour_world(patch_m=0.5, metres_per_pixel=0.03).panorama(3.0, 4.0, 0.3, height=3840))


@functools.cache
def real():
    if not REAL.exists():
        pytest.skip("no shared/data")
    return REAL.read_bytes()


def random_jpeg(width, height):
    return jpeg(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((2048, 1024), 1024, (1024, 512)),
        ((2048, 1024), 1025, (2048, 1024)),
        ((2048, 1024), 256, (256, 128)),
        ((2048, 1024), 8, (256, 128)),  # libjpeg stops at an eighth
        ((2048, 1024), None, (2048, 1024)),
        ((2044, 1022), 256, (1022, 511)),  # a quarter of 1022 rows is no whole number: the last row would be narrower
        ((2046, 1023), 256, (2046, 1023)),
    ],
)
def test_jpeg_is_reduced_as_far_as_the_width_and_whole_blocks_allow(size, least, expected):
    width, height = size
    pixels = decode_image(random_jpeg(width, height), "a.jpg", least)
    assert (pixels.shape[1], pixels.shape[0]) == expected


def test_png_and_a_raw_image_keep_their_size_and_a_cut_jpeg_is_refused():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    png = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_image(png, "a.png", 16), pixels)
    header = SimpleNamespace(stamp=SimpleNamespace(sec=1, nanosec=0))
    raw = SimpleNamespace(
        header=header, data=pixels.tobytes(), encoding="rgb8", height=64, width=128, step=384, is_bigendian=0
    )
    np.testing.assert_array_equal(camera_image(raw, 16).pixels, pixels)
    with pytest.raises(InputError, match="copy or send the whole image again"):
        decode_image(jpeg(pixels)[:-9], "topic", 16)


def test_each_reduced_pixel_is_about_the_mean_of_its_block():
    """Smooth and without chroma, so that the means of the full image are an exact oracle."""
    smooth = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (512, 1024), np.uint8), (0, 0), 4.0)
    data = jpeg(np.repeat(smooth[..., None], 3, axis=2), 98)
    full = decode_image(data, "a.jpg").astype(float)
    for factor in (2, 4, 8):
        means = full.reshape(512 // factor, factor, 1024 // factor, factor, 3).mean(axis=(1, 3))
        reduced = decode_image(data, "a.jpg", 1024 // factor)
        assert np.abs(reduced - means).mean() < 0.6  # rounding alone: 0.25


@pytest.mark.parametrize("ground", [SMALL, LARGE], ids=["320 columns", "768 columns"])
@pytest.mark.parametrize("image", [real, rendered])
@pytest.mark.parametrize("tilt_rad", [0.0, 0.1])
def test_panorama_that_reaches_the_network_hardly_changes(image, ground, tilt_rad):
    """Grey values of 255: mean below 1, 99.9% below 20 (an edge that is sharp to the pixel; most are far below)."""
    data = image()
    full, reduced = decode_image(data, "a.jpg"), decode_image(data, "a.jpg", enough_columns(ground))
    assert reduced.shape[0] < full.shape[0]
    made = [
        prepare_panorama(
            CameraImage(pixels, 1, tilt_rad, tilt_rad / 2),
            ground,
            CameraMount(yaw_rad=0.2),
            Heading(0.3, 0.01, HeadingSource.CONSTANT),
        ).pixels.astype(int)
        for pixels in (full, reduced)
    ]
    difference = np.abs(made[0] - made[1])
    assert difference.mean() < 1.0
    assert np.quantile(difference, 0.999) < 20


@pytest.mark.parametrize("image", [real, rendered])
def test_checks_of_an_image_say_the_same_of_a_reduced_one(image):
    data = image()
    full, reduced = decode_image(data, "a.jpg"), decode_image(data, "a.jpg", enough_columns(SMALL))
    # At 960 columns, nearly twice the 512 at which it is measured, it is lower by up to a fifth.
    assert sharpness(reduced) == pytest.approx(sharpness(full), rel=0.25)
    for pixels in (full, reduced):
        assert check_image(CameraImage(pixels, 1), CameraMount(), LocalizerConfig()) is None
    small = cv2.resize(full, (24, 12), interpolation=cv2.INTER_AREA)  # 15° a pixel
    blurred = jpeg(cv2.resize(small, (full.shape[1] // 4, full.shape[0] // 4), interpolation=cv2.INTER_CUBIC))
    for least_width in (None, full.shape[1] // 16):
        shown = CameraImage(decode_image(blurred, "a.jpg", least_width), 1)
        assert check_image(shown, CameraMount(), LocalizerConfig()).reason is RejectionReason.BLURRED_IMAGE


def test_demo_s_images_are_not_reduced():
    ground = load_bundle(ROOT / "models/towns-photo").manifest.ground
    assert enough_columns(ground) == 960
    assert decode_image(random_jpeg(768, 384), "demo", enough_columns(ground)).shape == (384, 768, 3)


def test_rows_count_where_the_model_has_more_of_them_a_degree():
    tall = dataclasses.replace(SMALL, height=320)  # 320 rows for 90°: 1280 for a whole turn
    assert enough_columns(tall) == 2 * 1280
