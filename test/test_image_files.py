"""JPEG and PNG: whole files are read exactly, damaged ones are refused, nothing else ever happens."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.images.files import decode_image, read_image

PANORAMAS = Path(__file__).parents[2] / "shared" / "data" / "panoramas"


def encoded(extension, height=64, width=128, options=()):
    """A smooth colour ramp with some structure, RGB, and its file."""
    row, column = np.mgrid[:height, :width]
    rgb = np.stack([row * 255 // height, column * 255 // width, (row * column) % 256], axis=-1).astype(np.uint8)
    return rgb, cv2.imencode(extension, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), list(options))[1].tobytes()


PROGRESSIVE = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTS = (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
FILES = {
    "jpeg": encoded(".jpg")[1],
    "progressive": encoded(".jpg", options=PROGRESSIVE)[1],
    "restarts": encoded(".jpg", options=RESTARTS)[1],
    "png": encoded(".png")[1],
}


def test_png_is_exact_and_rgb():
    rgb, data = encoded(".png")
    np.testing.assert_array_equal(decode_image(data, "a.png"), rgb)


@pytest.mark.parametrize("options", [(), PROGRESSIVE, RESTARTS], ids=["baseline", "progressive", "restarts"])
def test_jpeg_is_rgb(options):
    rgb, data = encoded(".jpg", options=(cv2.IMWRITE_JPEG_QUALITY, 95, *options))
    red_and_green = decode_image(data, "a.jpg")[..., :2].astype(int) - rgb[..., :2]
    assert np.abs(red_and_green).mean() < 12  # the third channel is too busy for JPEG


def test_grey_and_sixteen_bits_become_rgb():
    grey = np.arange(0, 256, 2, dtype=np.uint8).reshape(8, 16)
    decoded = decode_image(cv2.imencode(".png", grey)[1].tobytes(), "grey.png")
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=2))
    deep = cv2.imencode(".png", grey.astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode_image(deep, "deep.png"), decoded)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_refused(name):
    data = FILES[name]
    for size in {*range(0, len(data), max(1, len(data) // 200)), len(data) - 1, len(data) - 2}:
        with pytest.raises(InputError, match=r"cut\.img"):
            decode_image(data[:size], "cut.img")


def test_bytes_after_the_end_are_ignored():
    for data in FILES.values():
        np.testing.assert_array_equal(decode_image(data + b"preview" * 9, "a"), decode_image(data, "a"))


@given(st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4), st.data())
@settings(max_examples=300)
def test_damaged_file_is_refused_or_gives_an_image_of_its_size(name, changes, data):
    changed = bytearray(FILES[name])
    for place, value in changes:
        changed[int(place * (len(changed) - 1))] = value
    cut = data.draw(st.integers(0, len(changed)))
    for candidate in (bytes(changed), bytes(changed[cut:]), bytes(changed[:cut])):
        try:
            image = decode_image(candidate, "fuzz.img")
        except InputError:
            continue
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xda\x00\x02"]))
@settings(max_examples=200)
def test_noise_is_refused(noise, start):
    with pytest.raises(InputError):
        decode_image(start + noise, "noise.img")


def test_flipped_byte_in_a_png_is_found():
    data = bytearray(FILES["png"])
    data[len(data) // 2] ^= 1
    with pytest.raises(InputError, match="checksum"):
        decode_image(bytes(data), "flipped.png")


def test_header_that_declares_gigabytes_is_refused():
    import zlib

    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    end = b"IEND"
    data = b"\x89PNG\r\n\x1a\n"
    for length, chunk in ((13, header), (0, end)):
        data += length.to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    with pytest.raises(InputError, match="100000x100000"):
        decode_image(data, "bomb.png")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jpg: cannot be read"):
        read_image(tmp_path / "none.jpg")


@pytest.mark.skipif(not PANORAMAS.is_dir(), reason="the real panoramas are not here")
@pytest.mark.parametrize(
    ("name", "shape"),
    [("equirectangular_image_001.jpg", (960, 1920, 3)), ("R0014760.JPG", (2688, 5376, 3))],
)
def test_real_panoramas_are_read_and_their_halves_are_not(name, shape):
    data = (PANORAMAS / name).read_bytes()
    assert decode_image(data, name).shape == shape
    with pytest.raises(InputError, match="cut off after"):
        decode_image(data[: len(data) * 2 // 3], name)
