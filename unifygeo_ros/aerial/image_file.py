"""PNG and JPEG bytes → RGBA, refusing what is cut off or damaged instead of returning the part that was there."""

from __future__ import annotations

import zlib

import cv2
import numpy as np

from unifygeo_ros.errors import InputError
from unifygeo_ros.records import UInt8

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"


def decode_rgba(encoded: bytes, name: str) -> UInt8:
    """uint8 (H, W, 4): RGB, and 255 where alpha is at least half or there is none; all 0 elsewhere.

    name: of the file, for messages. Raises InputError for anything that is not one whole image.
    """
    damage = _damage(encoded)
    if damage:
        raise InputError(f"{name}: {damage}; get the file again")
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise InputError(f"{name}: cannot be decoded as an image; get the file again")
    if image.dtype != np.uint8:
        raise InputError(f"{name}: {image.dtype} pixels, must be 8 bit; convert the file")
    if image.ndim == 2:
        image = image[..., None]
    colour = image.shape[2] >= 3
    known = image[..., -1] >= 128 if image.shape[2] in (2, 4) else np.ones(image.shape[:2], np.bool_)
    rgb = image[..., 2::-1] if colour else np.repeat(image[..., :1], 3, axis=-1)  # BGR → RGB
    return np.concatenate([np.where(known[..., None], rgb, 0), np.where(known, 255, 0)[..., None]], -1).astype(np.uint8)


def _damage(encoded: bytes) -> str | None:
    """What is wrong with the container. Decoders fill what is missing with grey and only warn."""
    if encoded.startswith(_PNG):
        return _png_damage(encoded)
    if encoded.startswith(_JPEG):
        # The end-of-image marker, behind which some writers pad.
        return None if encoded.rstrip(b"\x00").endswith(b"\xff\xd9") else "a JPEG that is cut off"
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        stated = int.from_bytes(encoded[4:8], "little") + 8
        return None if len(encoded) >= stated else f"a WebP of {len(encoded)} bytes that should have {stated}"
    return f"neither PNG, JPEG nor WebP ({len(encoded)} bytes)"


def _png_damage(encoded: bytes) -> str | None:
    place = len(_PNG)
    while place + 12 <= len(encoded):
        length = int.from_bytes(encoded[place : place + 4], "big")
        end = place + 12 + length
        if end > len(encoded):
            break
        if zlib.crc32(encoded[place + 4 : end - 4]) != int.from_bytes(encoded[end - 4 : end], "big"):
            return f"a PNG whose chunk at byte {place} does not match its checksum"
        if encoded[place + 4 : place + 8] == b"IEND":
            return None
        place = end
    return "a PNG that is cut off"
