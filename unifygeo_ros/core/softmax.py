"""Softmax with a temperature."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Float64


def softmax(scores: npt.ArrayLike, temperature: float) -> Float64:
    """exp(score / temperature), normalised to the sum 1 over all axes.

    Args:
        scores: any shape, not empty, finite.
        temperature: above 0.

    Returns:
        float64 of the same shape.
    """
    values = np.asarray(scores, np.float64)
    weights = np.exp((values - values.max()) / temperature)
    return np.asarray(weights / weights.sum())
