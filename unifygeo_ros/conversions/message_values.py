"""Numbers and texts of outgoing ROS messages, without ROS: the node and the replay publish the same ones.

A fix says nothing of height, roll and pitch. Their variances are large, but stay well within what robot_localization
takes without a warning (1e3), and every covariance is finite and positive definite.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.covariance import semi_axes
from unifygeo_ros.core.records import Fix, Rejection, RejectionReason
from unifygeo_ros.core.time import parts_from_stamp

UNKNOWN_HEIGHT_VARIANCE_M2 = 100.0
UNKNOWN_TILT_VARIANCE_RAD2 = 1.0

LEVEL_OK = 0
LEVEL_WARN = 1
LEVEL_ERROR = 2
"""Levels of diagnostic_msgs/DiagnosticStatus."""

_FAULTS = frozenset(
    {
        RejectionReason.BAD_IMAGE,
        RejectionReason.BLACK_IMAGE,
        RejectionReason.FROZEN_IMAGE,
        RejectionReason.BAD_STAMP,
        RejectionReason.BAD_PRIOR,
        RejectionReason.NO_HEADING,
    }
)
"""Rejections caused by a fault that needs intervention; the others only say that this image gives no fix."""


def quaternion_of_yaw(yaw_rad: float) -> tuple[float, float, float, float]:
    """x, y, z, w of a rotation about the vertical."""
    return 0.0, 0.0, math.sin(yaw_rad / 2), math.cos(yaw_rad / 2)


def pose_covariance(covariance_m2: Float64, yaw_variance_rad2: float) -> Float64:
    """geometry_msgs/PoseWithCovariance: float64 (36,), row-major x, y, z, about x, about y, about z."""
    matrix = np.diag(
        [
            0.0,
            0.0,
            UNKNOWN_HEIGHT_VARIANCE_M2,
            UNKNOWN_TILT_VARIANCE_RAD2,
            UNKNOWN_TILT_VARIANCE_RAD2,
            yaw_variance_rad2,
        ]
    )
    matrix[:2, :2] = covariance_m2
    return matrix.ravel()


def navsatfix_covariance(covariance_m2: Float64) -> Float64:
    """sensor_msgs/NavSatFix: float64 (9,), row-major east, north, up."""
    matrix = np.diag([0.0, 0.0, UNKNOWN_HEIGHT_VARIANCE_M2])
    matrix[:2, :2] = covariance_m2
    return matrix.ravel()


class DiagnosticText(NamedTuple):
    """What a diagnostic_msgs/DiagnosticStatus says of one image: level, message, and keys with values."""

    level: int
    message: str
    values: tuple[tuple[str, str], ...]


def outcome_diagnostic(outcome: Fix | Rejection) -> DiagnosticText:
    """The part that depends on the image alone; latencies and counters are the node's to add."""
    seconds, nanoseconds = parts_from_stamp(outcome.stamp_ns)
    values = [("stamp", f"{seconds}.{nanoseconds:09d}")]
    if isinstance(outcome, Rejection):
        level = LEVEL_ERROR if outcome.reason in _FAULTS else LEVEL_WARN
        message = f"{outcome.reason.value}: {outcome.detail}"
        values.append(("reason", outcome.reason.value))
    else:
        level = LEVEL_OK
        major, minor = semi_axes(outcome.covariance_m2)
        message = f"fix, σ {major:.2f} m"
        values += [
            ("east_m", f"{outcome.east_m:.3f}"),
            ("north_m", f"{outcome.north_m:.3f}"),
            ("sigma_major_m", f"{major:.3f}"),
            ("sigma_minor_m", f"{minor:.3f}"),
            ("yaw_deg", f"{math.degrees(outcome.yaw_rad):.2f}"),
            ("tile", str(outcome.tile_id)),
            ("score", f"{outcome.score:.4f}"),
            ("ambiguity", f"{outcome.ambiguity:.4f}"),
        ]
        if outcome.integrity is not None:
            values.append(("integrity", f"{outcome.integrity:.4f}"))
    values.append(("hypotheses", str(len(outcome.hypotheses))))
    return DiagnosticText(level, message, tuple(values))
