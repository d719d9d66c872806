"""Decoding of ROS images against pixels laid out by hand."""

import cv2
import numpy as np
import pytest

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.images.encodings import decode_compressed_image, decode_raw_image


def colours(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("encoding", "samples"),
    [
        ("rgb8", lambda rgb: rgb),
        ("bgr8", lambda rgb: rgb[..., ::-1]),
        ("rgba8", lambda rgb: np.concatenate([rgb, rgb[..., :1]], axis=-1)),
        ("bgra8", lambda rgb: np.concatenate([rgb[..., ::-1], rgb[..., :1]], axis=-1)),
    ],
)
@pytest.mark.parametrize("padding", [0, 5])
def test_colour_order_and_row_padding(encoding, samples, padding):
    rgb = colours()
    rows = samples(rgb).reshape(rgb.shape[0], -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    decoded = decode_raw_image(padded.tobytes(), encoding, 6, 8, padded.shape[1])
    np.testing.assert_array_equal(decoded, rgb)
    assert decoded.dtype == np.uint8


def test_last_row_may_lack_its_padding():
    rgb = colours()
    data = np.pad(rgb.reshape(6, -1), ((0, 0), (0, 4))).tobytes()[:-4]
    np.testing.assert_array_equal(decode_raw_image(data, "rgb8", 6, 8, 28), rgb)


@pytest.mark.parametrize(("big", "order"), [(False, "<u2"), (True, ">u2")])
def test_sixteen_bits_keep_the_upper_byte(big, order):
    rgb = colours().astype(np.uint16) * 256 + 77
    decoded = decode_raw_image(rgb.astype(order).tobytes(), "rgb16", 6, 8, 48, big)
    np.testing.assert_array_equal(decoded, rgb >> 8)


def test_grey():
    grey = colours()[..., 0]
    decoded = decode_raw_image(grey.tobytes(), "mono8", 6, 8, 8)
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=-1))


@pytest.mark.parametrize(("encoding", "order"), [("uyvy", "UYVY"), ("yuyv", "YUYV"), ("yuv422_yuy2", "YUYV")])
def test_interleaved_yuv(encoding, order):
    # A flat orange, BT.601 video range: Y = 16 + 65.738 R/256 + 129.057 G/256 + 25.064 B/256, and so on.
    rgb = np.array([230.0, 120.0, 30.0])
    y = 16 + rgb @ [65.738, 129.057, 25.064] / 256
    u = 128 + rgb @ [-37.945, -74.494, 112.439] / 256
    v = 128 + rgb @ [112.439, -94.154, -18.285] / 256
    samples = {"Y": round(y), "U": round(u), "V": round(v)}
    data = np.tile(np.array([samples[letter] for letter in order], np.uint8), 4 * 6)
    decoded = decode_raw_image(data.tobytes(), encoding, 6, 8, 16)
    assert np.abs(decoded.astype(int) - rgb).max() <= 3


@pytest.mark.parametrize(("encoding", "chroma"), [("nv12", "UV"), ("nv21", "VU")])
def test_two_plane_yuv(encoding, chroma):
    rgb = np.array([230.0, 120.0, 30.0])
    y = 16 + rgb @ [65.738, 129.057, 25.064] / 256
    values = {
        "U": round(128 + rgb @ [-37.945, -74.494, 112.439] / 256),
        "V": round(128 + rgb @ [112.439, -94.154, -18.285] / 256),
    }
    luma = np.full((6, 8), round(y), np.uint8)
    planes = np.concatenate([luma, np.tile(np.array([values[c] for c in chroma], np.uint8), (3, 4))])
    decoded = decode_raw_image(planes.tobytes(), encoding, 6, 8, 8)
    assert np.abs(decoded.astype(int) - rgb).max() <= 3


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns(pattern):
    rgb = dict(zip("rgb", (210, 100, 20), strict=True))
    cell = np.array([rgb[letter] for letter in pattern], np.uint8).reshape(2, 2)
    decoded = decode_raw_image(np.tile(cell, (4, 4)).tobytes(), f"bayer_{pattern}8", 8, 8, 8)
    np.testing.assert_array_equal(decoded[2:-2, 2:-2], np.broadcast_to([210, 100, 20], (4, 4, 3)))


def test_png_is_exact_and_jpeg_close():
    rgb = cv2.resize(colours(), (64, 32), interpolation=cv2.INTER_CUBIC)
    _, png = cv2.imencode(".png", rgb[..., ::-1])
    np.testing.assert_array_equal(decode_compressed_image(png.tobytes(), "rgb8; png compressed bgr8"), rgb)
    _, jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    assert np.abs(decode_compressed_image(jpeg, "jpeg").astype(int) - rgb).mean() < 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("32FC1", 6, 8, 32), "32FC1"),
        (("rgb8", 6, 8, 20), "step 20"),
        (("rgb8", 7, 8, 24), "144 bytes"),
        (("uyvy", 6, 7, 14), "even"),
        (("rgb8", 0, 8, 24), "8x0"),
    ],
)
def test_inconsistent_messages_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        decode_raw_image(colours().tobytes(), *arguments)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0 not a jpeg"])
def test_damaged_compressed_image_is_refused(data):
    with pytest.raises(InputError, match="jpeg"):
        decode_compressed_image(data, "jpeg")


def test_depth_is_refused():
    with pytest.raises(InputError, match="depth"):
        decode_compressed_image(b"1234", "16UC1; compressedDepth png")
