"""Image files → RGB or RGBA arrays. Damaged files are refused instead of half decoded.

An EXIF orientation is ignored: it makes no sense for a panorama. Other metadata is read by
`unifygeo_ros.images.metadata`, and only where a user asks for it.
"""

from __future__ import annotations

import stat
from pathlib import Path

import cv2
import numpy as np

from unifygeo_ros.core.arrays import Bool, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.images.container import JPEG_START, encoded_image_size

MAX_PIXELS = 1 << 28
"""Most pixels of an image that is decoded, 16384 × 16384. A header that announces more is taken for damage, so that no
gigabytes are allocated for it."""

MAX_TILE_PIXELS = 1 << 24
"""The same for one tile of aerial imagery, 4096 × 4096. Web tiles have 256 or 512 pixels a side, VIGOR's 640."""

MAX_FILE_BYTES = 1 << 30
"""Most bytes of an image file. MAX_PIXELS pixels without compression would take 0.75 GiB."""

_REDUCED_FLAGS = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}

_OPAQUE = 0.5
"""Share of the largest alpha value from which a pixel counts as known."""


def read_bytes(path: Path | str, remedy: str) -> bytes:
    """The content of an image file.

    Args:
        path: a regular file, or a link to one.
        remedy: the end of the error message.

    Raises:
        InputError: it is missing, larger than MAX_FILE_BYTES, or no regular file (reading a pipe or a device would
            never end).
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is no regular file; {remedy}")
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: has {status.st_size} bytes, an image file at most {MAX_FILE_BYTES}; {remedy}")
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); {remedy}") from error


def read_image(path: Path | str) -> UInt8:
    """Pixels of a JPEG or PNG file: uint8 (H, W, 3) RGB. Raises InputError."""
    return decode_image(read_bytes(path, "give a JPEG or PNG file"), str(path))


def decode_image(data: bytes, source: str, least_width: int | None = None) -> UInt8:
    """Pixels of an encoded panorama or camera image; grey is repeated, alpha dropped, 16 bits reduced to 8.

    Args:
        data: a whole JPEG or PNG.
        source: the file's or topic's name, for messages.
        least_width: A JPEG is decoded at a half, a quarter or an eighth of its size, for less work, where it stays at
            least so wide and both sides divide. Each pixel is then about the mean of a block. None: full size.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        InputError: the image is damaged, too large, or of another format.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = _decode(data, source, flags, MAX_PIXELS, webp=False, least_width=least_width)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr), np.uint8)


def decode_alpha(data: bytes, source: str) -> Bool | None:
    """Where an image with an alpha channel is opaque.

    Args:
        data: a whole JPEG or PNG.
        source: the file's name, for messages.

    Returns:
        bool (H, W), True where alpha is at least half; None for an image without transparent pixels, as any JPEG.

    Raises:
        InputError: as for `decode_image`.
    """
    if data.startswith(JPEG_START):
        return None
    image = _decode(data, source, cv2.IMREAD_UNCHANGED, MAX_PIXELS, webp=False)
    if image.ndim == 2 or image.shape[2] not in (2, 4):
        return None
    opaque = np.asarray(image[..., -1] >= _OPAQUE * np.iinfo(image.dtype).max)
    return None if opaque.all() else opaque


def decode_rgba(data: bytes, source: str) -> UInt8:
    """Pixels of one tile of aerial imagery, and which of them are known.

    Args:
        data: a whole PNG, JPEG or WebP of 8 bits a sample.
        source: the tile's name, for messages.

    Returns:
        uint8 (H, W, 4): RGB, and 255 where alpha is at least half or there is none; all 0 elsewhere.

    Raises:
        InputError: the image is damaged, larger than MAX_TILE_PIXELS, or of another format.
    """
    image = _decode(data, source, cv2.IMREAD_UNCHANGED, MAX_TILE_PIXELS, webp=True)
    if image.dtype != np.uint8:
        raise InputError(f"{source}: {image.dtype} pixels, must be 8 bit; convert the file")
    if image.ndim == 2:
        image = image[..., None]
    channels = image.shape[2]
    rgba = np.empty((*image.shape[:2], 4), np.uint8)
    rgba[..., :3] = image[..., 2::-1] if channels >= 3 else image[..., :1]  # BGR → RGB
    rgba[..., 3] = 255
    if channels in (2, 4):
        rgba[image[..., -1] < 128] = 0
    return rgba


def _reduction(data: bytes, height: int, width: int, least_width: int | None) -> int:
    """The largest of 8, 4, 2, 1 by which a JPEG may be reduced; 1 for other formats, which gain nothing."""
    if least_width is None or not data.startswith(JPEG_START):
        return 1
    fitting = (n for n in _REDUCED_FLAGS if width % n == height % n == 0 and width // n >= least_width)
    return next(fitting, 1)


def _decode(
    data: bytes, source: str, flags: int, most_pixels: int, *, webp: bool, least_width: int | None = None
) -> UInt8:
    """OpenCV's array for an image that is whole and not too large. webp: whether this format may be used."""
    height, width = encoded_image_size(data, source, webp=webp)
    if not 0 < height * width <= most_pixels:
        raise InputError(
            f"{source}: is {width}x{height} pixels, at least 1 and at most {most_pixels} in all can be read; resize it"
        )
    reduction = _reduction(data, height, width, least_width)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | _REDUCED_FLAGS.get(reduction, 0))
    except cv2.error as error:
        raise InputError(f"{source}: cannot be decoded ({error}); write the image again") from error
    if image is None or image.shape[:2] != (height // reduction, width // reduction):
        raise InputError(
            f"{source}: {width}x{height} pixels are announced but cannot be decoded; write the image again"
        )
    return np.asarray(image)
