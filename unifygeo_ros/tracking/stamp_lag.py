"""How far a track lies behind where the vehicle is, for images that are stamped late.

An image that was exposed τ before its stamp shows base_link v τ behind. The track takes over a part of that from each
image and follows the odometry for the rest: behind a bend it still lies off along the street before the bend. The lag

    b = −∂(state) / ∂τ,      b ← (I − K H) F b + K H h,      I − K H = P⁺ P⁻⁻¹,      h = (R(yaw) v, ω, 0)

is the sensitivity of the filter to a parameter that it considers and does not estimate. With E[τ²] from
`motion.stamp_error`, E[τ²] b bᵀ is what the doubt about the stamps adds to a fix's covariance.

Source: S. F. Schmidt, "Application of state-space methods to navigation problems", Advances in Control Systems 3, 1966.
"""

from __future__ import annotations

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.se2 import rotate
from unifygeo_ros.motion.stamp_error import Velocity

LEAST_VARIANCE = 1e-18
"""Of the largest one of a covariance: directions with less are known exactly, and no image moves them."""


def fresh_lag(yaw_rad: float, velocity: Velocity, *, measures_yaw: bool) -> Float64:
    """h: the lag of a place that one image shows, float64 (4,): m/s east and north, rad/s, 1/s.

    Args:
        yaw_rad: of base_link in the map.
        velocity: of base_link.
        measures_yaw: whether the image shows the yaw, too; a sensor's heading holds at the stamp.
    """
    turn_rad_s = velocity.yaw_rate_rad_s if measures_yaw else 0.0
    return np.array([*rotate(yaw_rad, velocity.forward_m_s, velocity.left_m_s), turn_rad_s, 0.0])


def lag_after_image(lag: Float64, fresh: Float64, before: Float64, after: Float64) -> Float64:
    """b once an image was taken in.

    Args:
        lag: after the motion, F b, float64 (4,).
        fresh: h.
        before: covariance of the state without the image, P⁻, float64 (4, 4).
        after: with it, P⁺. Where it is the larger one, the image moved nothing in that direction.
    """
    variances, axes = np.linalg.eigh(before)
    moved = variances > LEAST_VARIANCE * variances[-1]
    root, inverse = axes[:, moved] * np.sqrt(variances[moved]), axes[:, moved] / np.sqrt(variances[moved])
    left, directions = np.linalg.eigh(inverse.T @ after @ inverse)
    gain = root @ (directions * (1 - np.clip(left, 0.0, 1.0))) @ directions.T @ inverse.T
    return np.asarray(lag + gain @ (fresh - lag))
