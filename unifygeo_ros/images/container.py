"""Is an encoded image whole, and how large is it? Asked before it is decoded.

libjpeg fills the missing rest of a truncated file with grey and reports success, so the structure is checked here: a
JPEG must run to its end marker, a PNG's chunks must match their checksums, a WebP must be as long as it states.
Pillow's `verify()` does not replace this: it checks nothing of a JPEG, and a full decoding by Pillow beside OpenCV's
would double the cost of every image.
"""

from __future__ import annotations

import re
import zlib

from unifygeo_ros.core.errors import InputError

JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"

_REMEDY = "copy or send the whole image again"
_JPEG_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""In the entropy-coded data 0xFF is followed by a stuffed 0x00 or a restart marker; anything else is a new marker."""
_JPEG_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


def encoded_image_size(encoded: bytes, name: str, *, webp: bool = False) -> tuple[int, int]:
    """Height and width that a whole JPEG or PNG announces.

    Args:
        encoded: the file's content.
        name: of the file or topic, for messages.
        webp: whether WebP may be used, too.

    Raises:
        InputError: the file is damaged or of another format.
    """
    if encoded.startswith(JPEG_START):
        return _jpeg_size(encoded, name)
    if encoded.startswith(PNG_START):
        return _png_size(encoded, name)
    if webp and encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return _webp_size(encoded, name)
    raise InputError(
        f"{name}: starts with {encoded[:4].hex(' ') or 'nothing'}, which is neither JPEG nor PNG"
        f"{' nor WebP' if webp else ''}; convert the image"
    )


def _webp_size(encoded: bytes, name: str) -> tuple[int, int]:
    """Height and width of a WebP that is as long as its header states. Raises InputError."""
    stated = int.from_bytes(encoded[4:8], "little") + 8
    if len(encoded) < stated:
        raise InputError(f"{name}: a WebP of {len(encoded)} bytes that should have {stated}; {_REMEDY}")
    kind, head = encoded[12:16], encoded[20:30]
    if kind == b"VP8X" and len(head) == 10:  # extended: sizes less 1, 24 bits each
        return int.from_bytes(head[7:10], "little") + 1, int.from_bytes(head[4:7], "little") + 1
    if kind == b"VP8L" and len(head) >= 5:  # lossless: sizes less 1, 14 bits each, behind a signature byte
        bits = int.from_bytes(head[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 " and len(head) == 10:  # lossy: 14 bits each, behind the frame's tag and start code
        return int.from_bytes(head[8:10], "little") & 0x3FFF, int.from_bytes(head[6:8], "little") & 0x3FFF
    raise InputError(f"{name}: a WebP without an image header; {_REMEDY}")


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
        if marker == 0xD9:  # end of image; what cameras append after it (previews, metadata) is ignored
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
    """Height and width of a PNG whose chunks are whole and have the right checksums. Raises InputError."""
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
            raise InputError(f"{name}: a PNG whose chunk at byte {at} does not match its checksum; {_REMEDY}")
        if size is None:
            if kind != b"IHDR" or length != 13:
                raise InputError(f"{name}: a PNG whose first chunk is not a header; {_REMEDY}")
            size = int.from_bytes(encoded[at + 12 : at + 16], "big"), int.from_bytes(encoded[at + 8 : at + 12], "big")
        if kind == b"IEND":
            return size
        at = end
