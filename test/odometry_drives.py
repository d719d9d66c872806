"""Drives as arrays, with fixes and odometry whose errors are those of their covariances, and the track of a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from unifygeo_ros.evaluation.metrics.against_odometry import Agreement, against_odometry
from unifygeo_ros.evaluation.metrics.drive import Drive, gather
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.motion.increments import MotionNoise

NOISE = MotionNoise(scale=0.01, walk=0.01, yaw_walk=0.001, turn_scale=0.01)
LIMIT_M = 10.0
SIGMA_M, YAW_SIGMA_RAD = 1.0, 0.02


def path(images: int, step_m: float = 2.0) -> np.ndarray:
    """float64 (n, 3): x, y, yaw of a winding way."""
    yaw = 1.5 * np.sin(np.arange(images) * step_m / 60.0)
    steps = step_m * np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    return np.column_stack([np.cumsum(steps, axis=0), yaw])


def driven(images: int, *, fixes: float = 1.0, seed: int = 0) -> Drive:
    """A drive with independent errors. fixes: share of the images."""
    rng = np.random.default_rng(seed)
    poses = path(images)
    empty = gather([], CameraMount())
    values: dict[str, Any] = {name: getattr(empty, name) for name in Drive.__dataclass_fields__}
    fixed = rng.random(images) < fixes
    steps = np.diff(poses[:, :2], axis=0, prepend=poses[:1, :2]) * (1 + rng.normal(0, NOISE.scale))
    odometry = np.cumsum(steps + rng.normal(0, NOISE.walk, (images, 2)), axis=0)
    values |= {
        "stamps_ns": np.arange(1, images + 1),
        "fixed": fixed,
        "fix_m": np.where(fixed[:, None], poses[:, :2] + rng.normal(0, SIGMA_M, (images, 2)), np.nan),
        "covariance_m2": np.tile(SIGMA_M**2 * np.eye(2), (images, 1, 1)),
        "yaw_rad": poses[:, 2] + rng.normal(0, YAW_SIGMA_RAD, images),
        "yaw_variance_rad2": np.full(images, YAW_SIGMA_RAD**2),
        "odometry": np.column_stack([odometry, poses[:, 2]]),
        "ambiguity": np.where(fixed, rng.uniform(0, 0.1, images), np.nan),
    }
    return Drive(**values)


def judged(drive: Drive) -> Agreement:
    return against_odometry(drive, NOISE, correlation_m=10.0, alert_limit_m=LIMIT_M)


def summary_against(drive: Drive, track_m: np.ndarray, known: np.ndarray, name: str = "drive") -> dict[str, Any]:
    """What `read_summary` would give of a replay judged against a track (n, 2), which is certain where `known`."""
    judged_fixes = drive.fixed & known
    errors = np.where(judged_fixes[:, None], drive.fix_m - track_m, np.nan)
    nees = np.einsum("ni,nij,nj->n", errors, np.linalg.inv(drive.covariance_m2), errors)

    def column(values: np.ndarray) -> list[float | None]:
        return [float(value) if judge else None for value, judge in zip(values, judged_fixes, strict=True)]

    return {
        "identity": {"bag": {"name": name, "fingerprint": name}, "session": {"stamp_offset_s": 0.0}},
        "criteria": {"alert_limit_m": LIMIT_M},
        "per_image": {
            "stamp_ns": drive.stamps_ns.tolist(),
            "outcome": ["fix" if fixed else "uncertain" for fixed in drive.fixed],
            "has_truth": known.tolist(),
            "error_m": column(np.hypot(*errors.T)),
            "nees": column(nees),
        },
        "covariance": {"position": {"common": 0.0}},
    }
