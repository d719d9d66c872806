"""The decoder's logits → where in a tile the camera is."""

from __future__ import annotations

import numpy as np

from unifygeo_ros.core.arrays import Float32
from unifygeo_ros.core.softmax import softmax


def probabilities(logits: Float32, temperature: float) -> Float32:
    """D = softmax over all pixels of logits / temperature.

    Args:
        logits: float32 (P, P), finite.
        temperature: of the calibration.

    Returns:
        float32 (P, P).
    """
    return softmax(logits, temperature).astype(np.float32)
