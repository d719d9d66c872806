"""Dead reckoning: a belief carried on from an image to the newest odometry."""

from __future__ import annotations

import math

from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.time import s_from_ns
from unifygeo_ros.motion.increments import NO_MOTION, Motion, MotionNoise, measured_motion, unmeasured_motion
from unifygeo_ros.motion.samples import MotionBuffer, OdometrySample
from unifygeo_ros.tracking.belief import Belief
from unifygeo_ros.tracking.filter import predict


class DeadReckoning:
    """Predicts a belief as the tracker would; the cost of a sample does not grow with the time since the image.

    Not safe for use from two threads at once.
    """

    def __init__(self, odometry: MotionBuffer[OdometrySample], noise: MotionNoise) -> None:
        """Follow the odometry: the owner adds each sample to it and then calls `follow`."""
        self._odometry = odometry
        self._noise = noise
        self._start: Belief | None = None
        self._before = NO_MOTION
        self._run_start: OdometrySample
        self._distance_m = self._turned_rad = 0.0
        self.newest: OdometrySample
        """The sample to which `belief` belongs; there is none before `start`."""

    def start(self, stamp_ns: int, belief: Belief) -> bool:
        """Start from a belief at a stamp that the odometry reaches. Returns False, and goes on as before, where not."""
        first = self._odometry.at(stamp_ns)
        if first is None:
            return False
        self._start, self._before = belief, NO_MOTION
        self._begin_run(first)
        for sample in self._odometry.after(stamp_ns):
            self.follow(sample)
        return True

    def stop(self) -> None:
        """Forget the belief."""
        self._start = None

    def follow(self, sample: OdometrySample) -> None:
        """Take the motion up to a sample into account. Samples that are not newer change nothing."""
        if self._start is None or sample.stamp_ns <= self.newest.stamp_ns:
            return
        last = self.newest
        if not self._odometry.connected(last, sample):
            gap = unmeasured_motion(s_from_ns(sample.stamp_ns - last.stamp_ns), self._noise)
            self._before = self._motion().then(gap)
            self._begin_run(sample)
            return
        self._distance_m += math.hypot(sample.x_m - last.x_m, sample.y_m - last.y_m)
        self._turned_rad += abs(wrap_angle(sample.yaw_rad - last.yaw_rad))
        self.newest = sample

    def belief(self) -> Belief | None:
        """At the newest sample; None before `start`."""
        return None if self._start is None else predict(self._start, self._motion(), self._noise)

    def _begin_run(self, sample: OdometrySample) -> None:
        self._run_start = self.newest = sample
        self._distance_m = self._turned_rad = 0.0

    def _motion(self) -> Motion:
        way = self._run_start.pose.between(self.newest.pose)
        return self._before.then(measured_motion(way, self._distance_m, self._turned_rad, self._noise))
