"""Whether a camera's image shows anything: black and white ones must not be composed as if they were the world."""

from __future__ import annotations

import cv2
import numpy as np

from unifygeo_ros.core.arrays import UInt8
from unifygeo_ros.core.records import RejectionReason
from unifygeo_ros.rig.lenses import Lens

WHITE = 250.0
"""An image whose darkest quarter is brighter than this, in the mean, is overexposed: nothing can be told apart."""
PARTS = 16
"""An image is looked at in so many parts across and down."""
WHOLE = 0.1
"""Parts whose middle is no further inside the lens' field, as a share of half the image, may lie across its edge."""


def image_problem(pixels: UInt8, lens: Lens, minimum_brightness: float) -> tuple[RejectionReason, str] | None:
    """Why a camera's image shows nothing, or None.

    Only the parts wholly inside the lens' field count: a fisheye shows nothing beyond its circle. Of them the brightest
    quarter decides whether the image is black, so that a street lamp at night is enough, and the darkest quarter
    whether it is white.

    Args:
        pixels: uint8 (H, W, 3), the lens' image or a smaller one of its shape.
        lens: Of the camera.
        minimum_brightness: Mean grey value under which an image is black.
    """
    step = max(1, min(pixels.shape[:2]) // (8 * PARTS))
    parts = cv2.resize(pixels[::step, ::step], (PARTS, PARTS), interpolation=cv2.INTER_AREA).mean(axis=2)
    centres = (np.arange(PARTS, dtype=np.float32) + 0.5) / PARTS
    column, row = np.meshgrid(centres * lens.width - 0.5, centres * lens.height - 0.5)
    shown = lens.margin(column.astype(np.float32), row.astype(np.float32)) > WHOLE
    values = np.sort(parts[shown] if shown.any() else parts.ravel())
    quarter = max(1, len(values) // 4)
    brightness, darkest = float(values[-quarter:].mean()), float(values[:quarter].mean())
    if brightness < minimum_brightness:
        return RejectionReason.BLACK_IMAGE, (
            f"black, mean brightness {brightness:.1f} of 255, minimum_brightness is {minimum_brightness:g}"
        )
    if darkest > WHITE:
        return RejectionReason.BAD_IMAGE, (
            f"white, mean brightness of its darkest quarter {darkest:.1f} of 255, limit {WHITE:g}; check the exposure"
        )
    return None
