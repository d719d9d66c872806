"""Descriptors have unit length: the one home of that check and of its tolerance."""

from __future__ import annotations

import numpy as np

from unifygeo_ros.core.arrays import Float32

UNIT_LENGTH_TOLERANCE = 1e-3
"""How far a descriptor's length may be from 1: float16 arithmetic inside an engine errs by about 5e-4."""


def wrong_length(descriptors: Float32) -> tuple[int, float] | None:
    """The row whose length is farthest from 1 (NaN counts as farthest), if it is out of tolerance.

    Args:
        descriptors: float32 (n, C).

    Returns:
        (row, length), or None where every row is within the tolerance.
    """
    if not len(descriptors):
        return None
    lengths = np.linalg.norm(descriptors, axis=1)
    errors = np.where(np.isnan(lengths), np.inf, np.abs(lengths - 1))
    worst = int(np.argmax(errors))
    return None if errors[worst] <= UNIT_LENGTH_TOLERANCE else (worst, float(lengths[worst]))
