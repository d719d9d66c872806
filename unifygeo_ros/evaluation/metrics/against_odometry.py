"""Fixes of single images judged without ground truth: two of them and the odometry between them must agree.

For fixes at i and j, with the displacement u that the odometry measured in the axes of base_link at i, the innovation

    ν = p_j − p_i − R(yaw_i) u,    S = P_i + P_j + R Q Rᵀ + σ²_yaw (R u)⊥ (R u)⊥ᵀ                                  (O1)

has the covariance S if the fixes' covariances P are right and their errors independent. Q is the odometry's. Fixes of
single images know nothing of each other, and their errors are independent once the way between them is long beside
`tracker.correlation_m`. So νᵀ S⁻¹ ν is to be χ² with two degrees of freedom, and a fix at a wrong place contradicts
most of the others around it. What all fixes of a stretch have in common, such as imagery that is shifted, cancels in ν
and cannot be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unifygeo_ros.core.arrays import Bool, Float64
from unifygeo_ros.core.covariance import chi2_quantile
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.se2 import rotation_matrix
from unifygeo_ros.evaluation.metrics import definitions as metrics
from unifygeo_ros.evaluation.metrics.drive import Drive
from unifygeo_ros.motion.increments import MotionNoise

REACH = 6.0
"""Fixes at most so many correlation lengths apart are compared, those at least one apart vote on each other, …"""
INDEPENDENT = 2.0
"""… and those at least so many apart count as independent."""
LEAST_VOTES = 3
"""A fix with fewer others around it is not judged."""


@dataclass(frozen=True)
class Agreement:
    """How n images' fixes agree with the odometry."""

    judged: Bool
    """bool (n,): fixes with enough others around them."""
    contradicted: Bool
    """bool (n,): more than half of the others contradict the fix, by more than the alert limit and 99.9% of S."""
    ambiguity: Float64
    """float64 (n,): the fixes' own probability of a wrong place; NaN where there is no fix."""
    squared: Float64
    """νᵀ S⁻¹ ν of pairs of independent fixes that nothing contradicts, in order of time, each fix in one pair."""

    def contradicted_among_surest(self, count: int) -> int:
        """How many of the `count` judged fixes of least ambiguity are contradicted."""
        order = np.argsort(np.where(self.judged, self.ambiguity, np.inf), kind="stable")
        return int(self.contradicted[order[:count]].sum())


def against_odometry(drive: Drive, noise: MotionNoise, *, correlation_m: float, alert_limit_m: float) -> Agreement:
    """Judge the fixes of a replay in mode single.

    Args:
        drive: The replay.
        noise: Of the odometry.
        correlation_m: Way after which the errors of two images are independent (`tracker.correlation_m`).
        alert_limit_m: Error that the vehicle's task does not tolerate.
    """
    count = len(drive)
    known = np.isfinite(drive.odometry).all(axis=1)
    way_m = np.full(count, np.nan)
    way_m[known] = np.r_[0.0, np.cumsum(np.hypot(*np.diff(drive.odometry[known, :2], axis=0).T))][: known.sum()]
    fixes = np.flatnonzero(known & drive.fixed)
    votes, against = np.zeros(count, np.int64), np.zeros(count, np.int64)
    limit = chi2_quantile(metrics.FALSE_FIX_PROBABILITY)
    later: dict[int, tuple[np.ndarray, Float64]] = {}  # of each fix: independent later ones, and their νᵀ S⁻¹ ν
    for i in fixes.tolist():
        apart_m = way_m[fixes] - way_m[i]
        others = fixes[(apart_m >= correlation_m) & (apart_m <= REACH * correlation_m)]
        if not len(others):
            continue
        innovations, squared = _innovations(drive, i, others, way_m[others] - way_m[i], noise)
        wrong = (np.hypot(*innovations.T) > alert_limit_m) & (squared > limit)
        votes[i] += len(others)
        votes[others] += 1
        against[i] += wrong.sum()
        against[others] += wrong
        free = way_m[others] - way_m[i] >= INDEPENDENT * correlation_m
        later[i] = others[free], squared[free]
    judged = votes >= LEAST_VOTES
    contradicted = judged & (2 * against > votes)
    found, free_fix = [], judged & ~contradicted  # each fix in one pair at most, so that the pairs are independent
    for i, (others, squared) in later.items():
        good = np.flatnonzero(free_fix[others])
        if free_fix[i] and len(good):
            found.append(float(squared[good[0]]))
            free_fix[[i, others[good[0]]]] = False
    return Agreement(judged, contradicted, drive.ambiguity, np.array(found, np.float64))


def _innovations(
    drive: Drive, first: int, others: np.ndarray, way_m: Float64, noise: MotionNoise
) -> tuple[Float64, Float64]:
    """(O1) between one fix and k later ones: ν float64 (k, 2), and νᵀ S⁻¹ ν float64 (k,)."""
    start = drive.odometry[first]
    moved = (drive.odometry[others, :2] - start[:2]) @ rotation_matrix(float(start[2]))  # into base_link's axes
    turned = np.abs(wrap_angle(drive.odometry[others, 2] - start[2]))
    turn = rotation_matrix(float(drive.yaw_rad[first]))
    moved_map = moved @ turn.T
    innovations = drive.fix_m[others] - drive.fix_m[first] - moved_map
    across = np.stack([-moved_map[:, 1], moved_map[:, 0]], axis=1)
    # Along the way the odometry's yaw drifts, by a third of its final variance in the mean.
    yaw_variance = drive.yaw_variance_rad2[first] + noise.yaw_walk**2 * way_m / 3 + (noise.turn_scale * turned) ** 2 / 3
    total = (
        drive.covariance_m2[first]
        + drive.covariance_m2[others]
        + (noise.walk**2 * way_m)[:, None, None] * np.eye(2)
        + noise.scale**2 * moved_map[:, :, None] * moved_map[:, None, :]
        + yaw_variance[:, None, None] * across[:, :, None] * across[:, None, :]
    )
    return innovations, metrics.normalised_squared_errors(innovations, total)
