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
from unifygeo_ros.core.settings import check_settings, setting
from unifygeo_ros.core.time import s_from_ns
from unifygeo_ros.motion.samples import MotionBuffer, OdometrySample

UNIFORM_YAW_VARIANCE = math.pi**2 / 3
"""Variance of an angle of which nothing is known."""


_ACTS = "mode sequence or prior_source last_fix"


@dataclass(frozen=True)
class MotionNoise:
    """How wrong the odometry is, and what may happen without it: settings of the group `odometry`.

    The error of scale is a coordinate of the belief. In addition position and yaw drift as random walks along the way,
    so that variances add up however a path is cut into steps. `unifygeo_ros.tracking.filter.predict` applies it.
    """

    scale: float = setting(
        0.02,
        "error of the odometry's scale, standard deviation in metres per metre",
        minimum=0.0,
        maximum=1.0,
        acts=_ACTS,
    )
    walk: float = setting(
        0.01,
        "drift of the odometry's position in addition to its scale error, standard deviation in metres per √metre",
        minimum=0.0,
        maximum=10.0,
        acts=_ACTS,
    )
    yaw_walk: float = setting(
        0.001,
        "drift of the odometry's yaw, standard deviation in radians per √metre; more for wheels without a gyroscope",
        minimum=0.0,
        maximum=1.0,
        acts=_ACTS,
    )
    turn_scale: float = setting(
        0.02,
        "error of the odometry's turns, standard deviation in radians per radian",
        minimum=0.0,
        maximum=1.0,
        advanced=True,
    )
    speed_m_s: float = setting(
        10.0,
        "speed assumed while there is no odometry, standard deviation",
        minimum=0.1,
        maximum=100.0,
        advanced=True,
    )
    turn_rad_s: float = setting(
        0.3,
        "turn rate assumed while there is no odometry, standard deviation",
        minimum=0.0,
        maximum=10.0,
        advanced=True,
    )

    scale_persistence_m: float = 1000.0
    """Distance over which an error of the odometry's scale stays the same. No parameter: tyres and loads change more
    slowly than a track learns their effect."""

    def __post_init__(self) -> None:
        check_settings(self)

    def scale_persistence(self, distance_m: float) -> float:
        """Correlation of the scale's errors that far apart (a Gauss–Markov process)."""
        return math.exp(-distance_m / self.scale_persistence_m)


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

    def reversed(self) -> Motion:
        """The motion back, from the second pose to the first, in the axes of the second."""
        back, by_pose = self.pose.inverse(), self.pose.inverse_jacobian()
        covariance = by_pose @ self.covariance @ by_pose.T
        return replace(self, forward_m=back.x_m, left_m=back.y_m, turn_rad=back.yaw_rad, covariance=covariance)


def share_new(way_m: float, correlation_m: float) -> float:
    """The share of what is correlated over a distance that is new after the way: from 0 to 1."""
    return 1.0 - math.exp(-way_m / correlation_m)


NO_MOTION = Motion(0.0, 0.0, 0.0, 0.0, np.zeros((3, 3)))


def motion_of(samples: Sequence[OdometrySample], noise: MotionNoise) -> Motion:
    """The motion from the first sample to the last (drifting odometry, one frame, at least one sample)."""
    distance = turned = 0.0
    for a, b in itertools.pairwise(samples):
        distance += math.hypot(b.x_m - a.x_m, b.y_m - a.y_m)
        turned += abs(wrap_angle(b.yaw_rad - a.yaw_rad))
    return measured_motion(samples[0].pose.between(samples[-1].pose), distance, turned, noise)


def measured_motion(pose: Pose2, distance_m: float, turned_rad: float, noise: MotionNoise) -> Motion:
    """The motion to a pose along a path of that length, on which the vehicle turned by that much in total."""
    position = noise.walk**2 * distance_m
    turn = noise.yaw_walk**2 * distance_m + (noise.turn_scale * turned_rad) ** 2
    return Motion(pose.x_m, pose.y_m, pose.yaw_rad, distance_m, np.diag([position, position, turn]))


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
