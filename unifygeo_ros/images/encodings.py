"""Pixels out of ROS image messages, without ROS: the node and the bag replay decode with the same code."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from unifygeo_ros.core.arrays import UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.images.files import decode_image


class _Layout(NamedTuple):
    """How an encoding lies in memory."""

    channels: int
    """Samples of a pixel."""
    bits: int
    """Bits of a sample."""
    to_rgb: int | None
    """The OpenCV conversion."""


_PACKED = {
    "rgb8": _Layout(3, 8, None),
    "bgr8": _Layout(3, 8, cv2.COLOR_BGR2RGB),
    "8UC3": _Layout(3, 8, cv2.COLOR_BGR2RGB),
    "rgba8": _Layout(4, 8, cv2.COLOR_RGBA2RGB),
    "bgra8": _Layout(4, 8, cv2.COLOR_BGRA2RGB),
    "8UC4": _Layout(4, 8, cv2.COLOR_BGRA2RGB),
    "mono8": _Layout(1, 8, cv2.COLOR_GRAY2RGB),
    "8UC1": _Layout(1, 8, cv2.COLOR_GRAY2RGB),
    "rgb16": _Layout(3, 16, None),
    "bgr16": _Layout(3, 16, cv2.COLOR_BGR2RGB),
    "mono16": _Layout(1, 16, cv2.COLOR_GRAY2RGB),
    "uyvy": _Layout(2, 8, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422": _Layout(2, 8, cv2.COLOR_YUV2RGB_UYVY),
    "yuyv": _Layout(2, 8, cv2.COLOR_YUV2RGB_YUYV),
    "yuv422_yuy2": _Layout(2, 8, cv2.COLOR_YUV2RGB_YUYV),
    "bayer_rggb8": _Layout(1, 8, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": _Layout(1, 8, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": _Layout(1, 8, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": _Layout(1, 8, cv2.COLOR_BayerGB2RGB),
}
"""REP-118 and sensor_msgs/image_encodings.hpp. OpenCV names a Bayer pattern by its second row, so the names cross."""

_TWO_PLANES = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
"""A full-size luma plane, then half as many rows of interleaved chroma."""

ENCODINGS = (*_PACKED, *_TWO_PLANES)


def decode_raw_image(
    data: bytes | bytearray | memoryview | UInt8,
    encoding: str,
    height: int,
    width: int,
    step: int,
    is_bigendian: bool = False,
) -> UInt8:
    """Pixels of a sensor_msgs/Image.

    Args:
        data: of the message, as the other arguments are.
        encoding: one of `sensor_msgs/image_encodings.hpp`.
        height: rows.
        width: columns.
        step: bytes from one row to the next, padding included.
        is_bigendian: of 16-bit samples.

    Returns:
        uint8 (height, width, 3), RGB; 16-bit samples keep their upper byte.

    Raises:
        InputError: names what does not fit.
    """
    check_raw_image(data, encoding, height, width, step)
    if encoding in _TWO_PLANES:
        rows = _rows(data, height * 3 // 2, width, step)
        return _as_rgb(np.ascontiguousarray(rows), _TWO_PLANES[encoding])
    channels, bits, to_rgb = _PACKED[encoding]
    rows = _rows(data, height, width * channels * bits // 8, step)
    if bits == 16:
        # The upper byte is the second one in little-endian order.
        rows = rows[:, (0 if is_bigendian else 1) :: 2]
    pixels = np.ascontiguousarray(rows).reshape(height, width, channels)
    return pixels if to_rgb is None else _as_rgb(pixels, to_rgb)


def check_raw_image(
    data: bytes | bytearray | memoryview | UInt8, encoding: str, height: int, width: int, step: int
) -> None:
    """Check that a sensor_msgs/Image holds the pixels that it says. Raises InputError naming what does not fit."""
    if height < 1 or width < 1:
        raise InputError(f"image size {width}x{height}, must be at least 1x1; check the camera driver")
    if encoding in _TWO_PLANES:
        if height % 2 or width % 2:
            raise InputError(f"image size {width}x{height} with encoding {encoding}, both must be even")
        _check_rows(data, height * 3 // 2, width, step, encoding)
        return
    if encoding not in _PACKED:
        raise InputError(
            f"image encoding {encoding!r} is not known; the driver must publish one of {', '.join(ENCODINGS)}"
        )
    channels, bits, _ = _PACKED[encoding]
    if channels == 2 and width % 2:
        raise InputError(f"image width {width} with encoding {encoding}, must be even")
    _check_rows(data, height, width * channels * bits // 8, step, encoding)


def decode_compressed_image(
    data: bytes | bytearray | memoryview | UInt8, format: str, least_width: int | None = None
) -> UInt8:
    """Pixels of a sensor_msgs/CompressedImage (JPEG or PNG): uint8 (H, W, 3), RGB, without turning them by EXIF.

    Args:
        data: The message's field.
        format: The message's field, used for error messages and to refuse depth images.
        least_width: See `decode_image`: large JPEGs are decoded smaller, but not narrower than this.

    Raises:
        InputError: The image is unreadable.
    """
    if "compressedDepth" in format:
        raise InputError(
            f"compressed image of format {format!r} holds depth, not colour; give the colour image's topic"
        )
    return decode_image(bytes(data), f"compressed image of format {format!r}", least_width)


def _check_rows(
    data: bytes | bytearray | memoryview | UInt8, rows: int, row_bytes: int, step: int, encoding: str
) -> None:
    needed, size = (rows - 1) * step + row_bytes, np.frombuffer(data, np.uint8).size
    if step < row_bytes or size < needed:
        raise InputError(
            f"image of {rows} rows, encoding {encoding}, step {step} and {size} bytes; a row takes {row_bytes} "
            f"bytes and all of them {needed}; the driver's message is inconsistent"
        )


def _rows(data: bytes | bytearray | memoryview | UInt8, rows: int, row_bytes: int, step: int) -> UInt8:
    """View of the samples without the padding: uint8 (rows, row_bytes)."""
    samples = np.frombuffer(data, np.uint8)
    return np.lib.stride_tricks.as_strided(samples, (rows, row_bytes), (step, 1), writeable=False)


def _as_rgb(pixels: UInt8, conversion: int) -> UInt8:
    return np.asarray(cv2.cvtColor(pixels, conversion), np.uint8)
