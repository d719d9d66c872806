"""Motion of base_link between two images, with its uncertainty."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.motion.samples import NS_PER_S, MotionBuffer, OdometrySample

Float64 = npt.NDArray[np.float64]

UNIFORM_YAW_VARIANCE = math.pi**2 / 3
"""Variance of an angle of which nothing is known."""


@dataclass(frozen=True)
class MotionNoise:
    """How wrong the odometry is.

    Its scale is wrong by `scale` (metres per metre), much the same for `scale_persistence_m`: a coordinate of the
    belief. Beside that the position drifts as `walk` (m per √m), so that variances add up however a path is cut into
    steps. Yaw drifts as `yaw_walk` (rad per √m) and by `turn_scale` of each turn. Without odometry base_link moves at
    `speed_m_s` and turns at `turn_rad_s` in directions not known. All are standard deviations.
    """

    scale: float = 0.02
    scale_persistence_m: float = 1000.0
    walk: float = 0.01
    yaw_walk: float = 0.002
    turn_scale: float = 0.02
    speed_m_s: float = 10.0
    turn_rad_s: float = 0.3


@dataclass(frozen=True)
class Motion:
    """From one pose of base_link to another, in the axes of the first.

    forward_m, left_m, turn_rad: the second pose. distance_m: length of the path. covariance: float64 (3, 3) of
    forward, left (m), turn (rad), without the error of scale. measured: False where odometry missed some of it.
    """

    forward_m: float
    left_m: float
    turn_rad: float
    distance_m: float
    covariance: Float64
    measured: bool = True

    def then(self, later: Motion) -> Motion:
        """This motion and another one after it."""
        cos, sin = math.cos(self.turn_rad), math.sin(self.turn_rad)
        forward = cos * later.forward_m - sin * later.left_m
        left = sin * later.forward_m + cos * later.left_m
        by_first = np.array([[1.0, 0.0, -left], [0.0, 1.0, forward], [0.0, 0.0, 1.0]])
        by_second = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        covariance = by_first @ self.covariance @ by_first.T + by_second @ later.covariance @ by_second.T
        return Motion(
            self.forward_m + forward,
            self.left_m + left,
            wrap_angle(self.turn_rad + later.turn_rad),
            self.distance_m + later.distance_m,
            covariance,
            self.measured and later.measured,
        )


NO_MOTION = Motion(0.0, 0.0, 0.0, 0.0, np.zeros((3, 3)))


def motion_of(samples: Sequence[OdometrySample], noise: MotionNoise) -> Motion:
    """The motion from the first sample to the last (drifting odometry, one frame, at least one sample)."""
    first, last = samples[0], samples[-1]
    cos, sin = math.cos(first.yaw_rad), math.sin(first.yaw_rad)
    dx, dy = last.x_m - first.x_m, last.y_m - first.y_m
    distance = turned = 0.0
    for a, b in itertools.pairwise(samples):
        distance += math.hypot(b.x_m - a.x_m, b.y_m - a.y_m)
        turned += abs(wrap_angle(b.yaw_rad - a.yaw_rad))
    position = noise.walk**2 * distance
    turn = noise.yaw_walk**2 * distance + (noise.turn_scale * turned) ** 2
    return Motion(
        cos * dx + sin * dy,
        -sin * dx + cos * dy,
        wrap_angle(last.yaw_rad - first.yaw_rad),
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
            motion = motion.then(unmeasured_motion((run[0].stamp_ns - reached_ns) / NS_PER_S, noise))
        motion = motion.then(motion_of(run, noise))
        reached_ns = run[-1].stamp_ns
    if last_ns > reached_ns:
        motion = motion.then(unmeasured_motion((last_ns - reached_ns) / NS_PER_S, noise))
    return motion
