"""Is a JPEG or PNG whole? Asked before it is decoded.

libjpeg fills the missing rest of a truncated file with grey and calls that success, so the structure is checked: a JPEG
must run to its end marker, a PNG's chunks must have the right check sums.
"""

from __future__ import annotations

import re
import zlib

from unifygeo_ros.core.errors import InputError

JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"

_REMEDY = "get the file again"
# In the entropy-coded data 0xFF is followed by a stuffed 0x00 or a restart marker; anything else is the next marker.
_JPEG_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


def whole_image_size(encoded: bytes, name: str) -> tuple[int, int]:
    """Height and width that a whole JPEG or PNG announces. name: of the file or topic, for messages.

    Raises InputError for damage and for other formats.
    """
    if encoded.startswith(JPEG_START):
        return _jpeg_size(encoded, name)
    if encoded.startswith(PNG_START):
        return _png_size(encoded, name)
    raise InputError(
        f"{name}: starts with {encoded[:4].hex(' ') or 'nothing'}, which is neither JPEG nor PNG; convert the image"
    )


def _jpeg_size(encoded: bytes, name: str) -> tuple[int, int]:
    """Height and width of a JPEG that runs from its start to its end marker. Raises InputError."""
    size: tuple[int, int] | None = None
    at = 2
    while True:
        if at + 2 > len(encoded):
            raise InputError(f"{name}: a JPEG that is cut off after {len(encoded)} bytes; {_REMEDY}")
        if encoded[at] != 0xFF:
            raise InputError(f"{name}: a JPEG without a marker at byte {at}; {_REMEDY}")
        marker = encoded[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xD9:  # end of image; what cameras append after it (previews, metadata) is not ours
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            at += 2
            continue
        length = int.from_bytes(encoded[at + 2 : at + 4], "big")
        if at + 4 > len(encoded) or at + 2 + length > len(encoded):
            raise InputError(f"{name}: a JPEG that is cut off after {len(encoded)} bytes; {_REMEDY}")
        if length < 2:
            raise InputError(f"{name}: a JPEG segment at byte {at} has length {length}; {_REMEDY}")
        if marker in _JPEG_FRAME_MARKERS:
            if length < 8:
                raise InputError(f"{name}: a JPEG frame header of {length} bytes; {_REMEDY}")
            size = int.from_bytes(encoded[at + 5 : at + 7], "big"), int.from_bytes(encoded[at + 7 : at + 9], "big")
        at += 2 + length
        if marker == 0xDA:  # start of scan: skip its entropy-coded data
            following = _JPEG_MARKER_AFTER_SCAN.search(encoded, at)
            if following is None:
                raise InputError(f"{name}: a JPEG that is cut off after {len(encoded)} bytes; {_REMEDY}")
            at = following.start()
    if size is None:
        raise InputError(f"{name}: a JPEG without a frame header; {_REMEDY}")
    return size


def _png_size(encoded: bytes, name: str) -> tuple[int, int]:
    """Height and width of a PNG whose chunks are whole and have the right check sums. Raises InputError."""
    size: tuple[int, int] | None = None
    at = len(PNG_START)
    view = memoryview(encoded)
    while True:
        if at + 12 > len(encoded):
            raise InputError(f"{name}: a PNG that is cut off after {len(encoded)} bytes; {_REMEDY}")
        length = int.from_bytes(encoded[at : at + 4], "big")
        kind = encoded[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(encoded):
            raise InputError(f"{name}: a PNG that is cut off after {len(encoded)} bytes; {_REMEDY}")
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(encoded[end - 4 : end], "big"):
            raise InputError(f"{name}: a PNG whose chunk at byte {at} does not match its check sum; {_REMEDY}")
        if size is None:
            if kind != b"IHDR" or length != 13:
                raise InputError(f"{name}: a PNG whose first chunk is not a header; {_REMEDY}")
            size = int.from_bytes(encoded[at + 12 : at + 16], "big"), int.from_bytes(encoded[at + 8 : at + 12], "big")
        if kind == b"IEND":
            return size
        at = end
