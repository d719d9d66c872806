"""JPEG and PNG bytes ↔ RGB arrays, with damaged files refused instead of half decoded.

Metadata is not used: an EXIF orientation is ignored (a panorama has none that makes sense), and so are GPano crops,
GPS positions and compass directions; the camera's geometry is `CameraMount` in `unifygeo_ros.localization.config`,
nothing else.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import UInt8
from unifygeo_ros.images.container import whole_image_size

MAX_PIXELS = 1 << 28
"""Largest image decoded, 16384 × 16384: a header that promises more is taken for damage, not for a reason to
allocate gigabytes."""


def read_image(path: Path | str) -> UInt8:
    """Pixels of a JPEG or PNG file: uint8 (H, W, 3) RGB. Raises InputError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); give a JPEG or PNG file") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, source: str) -> UInt8:
    """Pixels of an encoded image: uint8 (H, W, 3) RGB; grey is repeated, alpha dropped, 16 bits reduced to 8.

    data: a whole JPEG or PNG. source: the file's or topic's name, for messages. Raises InputError.
    """
    height, width = whole_image_size(data, source)
    if not 0 < height * width <= MAX_PIXELS:
        raise InputError(
            f"{source}: is {width}x{height} pixels, at least 1 and at most {MAX_PIXELS} in all can be read; resize it"
        )
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise InputError(f"{source}: cannot be decoded ({error}); write the image again") from error
    if bgr is None or bgr.shape[:2] != (height, width):
        raise InputError(
            f"{source}: {width}x{height} pixels are announced but cannot be decoded; write the image again"
        )
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr), np.uint8)
