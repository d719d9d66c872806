"""Motion of base_link between two images, with its uncertainty."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Sequence

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.core.time import s_from_ns
from unifygeo_ros.motion.samples import MotionBuffer, OdometrySample

UNIFORM_YAW_VARIANCE = math.pi**2 / 3
"""Variance of an angle of which nothing is known."""


@dataclass(frozen=True)
class MotionNoise:
    """How wrong the odometry is. All are standard deviations, except the persistence.

    The error of scale is a coordinate of the belief. In addition position and yaw drift as random walks along the way,
    so that variances add up however a path is cut into steps.
    """

    scale: float = 0.02
    """Error of scale, metres per metre."""
    scale_persistence_m: float = 1000.0
    """Distance over which the error of scale stays much the same."""
    walk: float = 0.01
    """Drift of the position, m per √m."""
    yaw_walk: float = 0.002
    """Drift of the yaw, rad per √m."""
    turn_scale: float = 0.02
    """Error of each turn, rad per rad."""
    speed_m_s: float = 10.0
    """Without odometry base_link moves this fast, in a direction that is not known."""
    turn_rad_s: float = 0.3
    """Without odometry it turns this fast."""


@dataclass(frozen=True)
class Motion:
    """From one pose of base_link to another, in the axes of the first."""

    forward_m: float
    left_m: float
    turn_rad: float
    distance_m: float
    """Length of the path."""
    covariance: Float64
    """float64 (3, 3) of forward, left (m), turn (rad), without the error of scale."""
    measured: bool = True
    """False where odometry missed some of it."""
    duration_s: float = 0.0

    @property
    def pose(self) -> Pose2:
        """The second pose in the axes of the first."""
        return Pose2(self.forward_m, self.left_m, self.turn_rad)

    def then(self, later: Motion) -> Motion:
        """This motion and another one after it."""
        pose = self.pose.compose(later.pose)
        by_first, by_second = self.pose.compose_jacobians(later.pose)
        covariance = by_first @ self.covariance @ by_first.T + by_second @ later.covariance @ by_second.T
        return Motion(
            pose.x_m,
            pose.y_m,
            pose.yaw_rad,
            self.distance_m + later.distance_m,
            covariance,
            self.measured and later.measured,
            self.duration_s + later.duration_s,
        )


NO_MOTION = Motion(0.0, 0.0, 0.0, 0.0, np.zeros((3, 3)))


def motion_of(samples: Sequence[OdometrySample], noise: MotionNoise) -> Motion:
    """The motion from the first sample to the last (drifting odometry, one frame, at least one sample)."""
    pose = samples[0].pose.between(samples[-1].pose)
    distance = turned = 0.0
    for a, b in itertools.pairwise(samples):
        distance += math.hypot(b.x_m - a.x_m, b.y_m - a.y_m)
        turned += abs(wrap_angle(b.yaw_rad - a.yaw_rad))
    position = noise.walk**2 * distance
    turn = noise.yaw_walk**2 * distance + (noise.turn_scale * turned) ** 2
    return Motion(
        pose.x_m,
        pose.y_m,
        pose.yaw_rad,
        distance,
        np.diag([position, position, turn]),
    )


def unmeasured_motion(time_s: float, noise: MotionNoise) -> Motion:
    """What may have happened in a time without odometry. Its distance is not known and given as 0."""
    position = (noise.speed_m_s * time_s) ** 2
    turn = min((noise.turn_rad_s * time_s) ** 2, UNIFORM_YAW_VARIANCE)
    return Motion(0.0, 0.0, 0.0, 0.0, np.diag([position, position, turn]), measured=False)


def motion_between(odometry: MotionBuffer[OdometrySample], first_ns: int, last_ns: int, noise: MotionNoise) -> Motion:
    """The motion from one stamp to another: measured where there is odometry, `unmeasured_motion` in its gaps."""
    motion, reached_ns = NO_MOTION, first_ns
    for run in odometry.runs(first_ns, last_ns):
        if run[0].stamp_ns > reached_ns:
            motion = motion.then(unmeasured_motion(s_from_ns(run[0].stamp_ns - reached_ns), noise))
        motion = motion.then(motion_of(run, noise))
        reached_ns = run[-1].stamp_ns
    if last_ns > reached_ns:
        motion = motion.then(unmeasured_motion(s_from_ns(last_ns - reached_ns), noise))
    return replace(motion, duration_s=s_from_ns(last_ns - first_ns))
