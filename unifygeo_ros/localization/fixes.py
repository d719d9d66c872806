"""From an estimate of the pose to a fix: what single images and sequences have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.covariance import semi_major_sigma, symmetric
from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_ros.core.records import Fix, Hypothesis, Rejection, RejectionReason
from unifygeo_ros.core.se2 import rotation_matrix
from unifygeo_ros.localization.config import LocalizerConfig


@dataclass(frozen=True)
class PoseEstimate:
    """Where base_link is, before the gate on its accuracy. Fields as in `Fix`."""

    east_m: float
    north_m: float
    covariance_m2: Float64
    yaw_rad: float
    yaw_variance_rad2: float
    tile_id: int
    score: float
    ambiguity: float
    hypotheses: tuple[Hypothesis, ...]
    integrity: float | None = None


def with_stamp_error(
    covariance_m2: Float64, yaw_variance_rad2: float, stamp_covariance: Float64 | None, yaw_rad: float
) -> tuple[Float64, float]:
    """A pose's covariance and yaw variance, with what the uncertainty of its stamp adds.

    Args:
        covariance_m2: float64 (2, 2), east and north.
        yaw_variance_rad2: of the yaw.
        stamp_covariance: as in `Query`.
        yaw_rad: of base_link in the map.
    """
    if stamp_covariance is None:
        return covariance_m2, yaw_variance_rad2
    covariance = covariance_m2 + stamp_error_m2(stamp_covariance, yaw_rad)
    return symmetric(covariance), yaw_variance_rad2 + float(stamp_covariance[2, 2])


def stamp_error_m2(stamp_covariance: Float64, yaw_rad: float) -> Float64:
    """What the uncertainty of a stamp adds to a position's covariance: float64 (2, 2), east and north."""
    turned = rotation_matrix(yaw_rad)
    return np.asarray(turned @ stamp_covariance[:2, :2] @ turned.T)


def with_imagery_error(covariance: Float64, imagery_sigma_m: float) -> Float64:
    """A pose's covariance relative to the imagery, made one on the earth.

    Args:
        covariance: float64 (n, n), n ≥ 2, east and north first, metres.
        imagery_sigma_m: as in `LocalizerConfig`.
    """
    added = np.zeros_like(covariance)
    added[:2, :2] = imagery_sigma_m**2 * np.eye(2)
    return np.asarray(covariance + added)


def build_fix(stamp_ns: int, estimate: PoseEstimate, frame: LocalFrame, gates: LocalizerConfig) -> Fix | Rejection:
    """A fix of the estimate, or UNCERTAIN where its standard deviation along the long axis is above the gate.

    Args:
        stamp_ns: of the image.
        estimate: relative to the imagery. The imagery's own error is added here, after all that compares images with
            each other, in which it cancels.
        frame: of the map.
        gates: gate_sigma_m and imagery_sigma_m are used.
    """
    covariance_m2 = with_imagery_error(estimate.covariance_m2, gates.imagery_sigma_m)
    sigma_m = semi_major_sigma(covariance_m2)
    if sigma_m > gates.gate_sigma_m:
        return Rejection(
            stamp_ns,
            RejectionReason.UNCERTAIN,
            f"standard deviation {sigma_m:.1f} m along the long axis, above gate_sigma_m {gates.gate_sigma_m:g}",
            estimate.hypotheses,
        )
    latitude_deg, longitude_deg = frame.geodetic_from_map(estimate.east_m, estimate.north_m)
    return Fix(
        stamp_ns=stamp_ns,
        east_m=estimate.east_m,
        north_m=estimate.north_m,
        latitude_deg=float(latitude_deg),
        longitude_deg=float(longitude_deg),
        covariance_m2=covariance_m2,
        yaw_rad=estimate.yaw_rad,
        yaw_variance_rad2=estimate.yaw_variance_rad2,
        tile_id=estimate.tile_id,
        score=estimate.score,
        ambiguity=estimate.ambiguity,
        hypotheses=estimate.hypotheses,
        integrity=estimate.integrity,
    )
