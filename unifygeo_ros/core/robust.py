"""Estimates that a few wrong values do not spoil."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Float64

TUKEY = 4.685
"""Standard deviations beyond which a value has no weight: 95% efficiency for Gaussian noise."""


MAD_TO_SIGMA = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""


def tukey_weights(deviations: npt.ArrayLike) -> Float64:
    """Tukey's biweight, 0 … 1, of residuals in (robust) standard deviations."""
    share = np.asarray(deviations, np.float64) / TUKEY
    return np.where(np.abs(share) < 1, (1 - share**2) ** 2, 0.0)


def spread(values: npt.ArrayLike) -> float:
    """Standard deviation of a Gaussian with these values' median absolute deviation."""
    array = np.asarray(values, np.float64)
    return MAD_TO_SIGMA * float(np.median(np.abs(array - np.median(array))))


def robust_mean(values: npt.ArrayLike, steps: int = 10) -> tuple[float, Float64]:
    """The mean with Tukey's weights about itself, from the median on.

    Args:
        values: (n,), at least one.
        steps: of the iteration.

    Returns:
        The mean, and the weights, float64 (n,).
    """
    array = np.asarray(values, np.float64)
    mean, scale = float(np.median(array)), spread(array)
    weights = np.ones(len(array))
    for _ in range(steps if scale > 0 else 0):
        weights = tukey_weights((array - mean) / scale)
        mean = float(np.average(array, weights=weights))
    return mean, weights
