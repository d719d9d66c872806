"""PNG, JPEG and WebP bytes → RGBA, refusing what is cut off or damaged instead of returning the part that was there."""

from __future__ import annotations

import cv2
import numpy as np

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import UInt8
from unifygeo_ros.images.container import whole_image_size


def decode_rgba(encoded: bytes, name: str) -> UInt8:
    """uint8 (H, W, 4): RGB, and 255 where alpha is at least half or there is none; all 0 elsewhere.

    name: of the file, for messages. Raises InputError for anything that is not one whole image.
    """
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        stated = int.from_bytes(encoded[4:8], "little") + 8
        if len(encoded) < stated:
            raise InputError(f"{name}: a WebP of {len(encoded)} bytes that should have {stated}; get the file again")
    else:
        whole_image_size(encoded, name)
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
