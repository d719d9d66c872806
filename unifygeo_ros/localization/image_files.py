"""JPEG and PNG bytes ↔ RGB arrays, with damaged files refused instead of half decoded.

libjpeg fills the missing rest of a truncated file with grey and calls that success, so the structure is checked
before the pixels are decoded: a JPEG must run to its end marker, a PNG's chunks must have the right check sums.
Metadata is not used: an EXIF orientation is ignored (a panorama has none that makes sense), and so are GPano crops,
GPS positions and compass directions; the camera's geometry is `unifygeo_ros.config.CameraMount`, nothing else.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import cv2
import numpy as np

from unifygeo_ros.errors import InputError
from unifygeo_ros.records import UInt8

MAX_PIXELS = 1 << 28
"""Largest image decoded, 16384 × 16384: a header that promises more is taken for damage, not for a reason to
allocate gigabytes."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8"
# In the entropy-coded data 0xFF is followed by a stuffed 0x00 or a restart marker; anything else is the next marker.
_JPEG_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


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
    if data.startswith(_JPEG_START):
        height, width = _jpeg_size(data, source)
    elif data.startswith(_PNG_SIGNATURE):
        height, width = _png_size(data, source)
    else:
        raise InputError(
            f"{source}: starts with {data[:4].hex(' ') or 'nothing'}, which is neither JPEG nor PNG; convert the image"
        )
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


def _truncated(source: str, size: int) -> InputError:
    return InputError(f"{source}: ends after {size} bytes in the middle of the image; copy or record the file again")


def _jpeg_size(data: bytes, source: str) -> tuple[int, int]:
    """Height and width of a JPEG that runs from its start to its end marker. Raises InputError."""
    size: tuple[int, int] | None = None
    at = 2
    while True:
        if at + 2 > len(data):
            raise _truncated(source, len(data))
        if data[at] != 0xFF:
            raise InputError(f"{source}: no JPEG marker at byte {at}; the file is damaged, copy or record it again")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xD9:  # end of image; what cameras append after it (previews, metadata) is not ours
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if at + 4 > len(data) or at + 2 + length > len(data):
            raise _truncated(source, len(data))
        if length < 2:
            raise InputError(f"{source}: a JPEG segment at byte {at} has length {length}; the file is damaged")
        if marker in _JPEG_FRAME_MARKERS:
            if length < 8:
                raise InputError(f"{source}: a JPEG frame header of {length} bytes; the file is damaged")
            size = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + length
        if marker == 0xDA:  # start of scan: skip its entropy-coded data
            following = _JPEG_MARKER_AFTER_SCAN.search(data, at)
            if following is None:
                raise _truncated(source, len(data))
            at = following.start()
    if size is None:
        raise InputError(f"{source}: a JPEG without a frame header; the file is damaged, copy or record it again")
    return size


def _png_size(data: bytes, source: str) -> tuple[int, int]:
    """Height and width of a PNG whose chunks are whole and have the right check sums. Raises InputError."""
    size: tuple[int, int] | None = None
    at = len(_PNG_SIGNATURE)
    view = memoryview(data)
    while True:
        if at + 12 > len(data):
            raise _truncated(source, len(data))
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            raise _truncated(source, len(data))
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise InputError(f"{source}: wrong check sum in the PNG chunk at byte {at}; copy or record the file again")
        if size is None:
            if kind != b"IHDR" or length != 13:
                raise InputError(f"{source}: the first PNG chunk is not a header; the file is damaged")
            size = int.from_bytes(data[at + 12 : at + 16], "big"), int.from_bytes(data[at + 8 : at + 12], "big")
        if kind == b"IEND":
            return size
        at = end
