"""A session that localizes each image for itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.records import CameraImage, Fix, Prior, Query, Rejection
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.core.time import s_from_ns
from unifygeo_ros.localization.fixes import stamp_error_m2
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.stamp_error import Place
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.image_localizer import ImageLocalizer
from unifygeo_ros.sessions.inputs import Reading
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.sessions.session import LocalizationSession
from unifygeo_ros.tracking.belief import Belief, hypothesis
from unifygeo_ros.tracking.filter import predict


@dataclass(frozen=True)
class _Anchor:
    """What the next prior starts from: the last fix or an initial pose."""

    stamp_ns: int
    """Of that fix or pose."""
    belief: Belief
    """One hypothesis about where base_link is now: carried on from image to image."""


class SingleImageSession(LocalizationSession):
    """Each image for itself; the last fix may serve as the next one's prior."""

    def __init__(self, localizer: ImageLocalizer, config: SessionConfig, noise: MotionNoise) -> None:
        super().__init__(localizer, config, noise)
        self._forget()

    def _initial_pose_problem(self) -> str | None:
        source = self._config.prior_source
        return None if source == "last_fix" else f"of no use with prior_source {source} in mode single"

    def _forget(self) -> None:
        self._anchor: _Anchor | None = None
        self._failures = 0

    def _localize(self, image: CameraImage, config: SessionConfig, known: Fix | Rejection | None) -> Outcome:
        reading = self._inputs.read(image.stamp_ns)
        pose = reading.initial_pose
        if pose is not None:
            start_ns = self._start_from(pose, image.stamp_ns)
            self._anchor, self._failures = self._anchor_at(start_ns, pose.pose, pose.covariance), 0
        motion, stamp = self._follow_motion(image.stamp_ns, config)
        if self._anchor is not None:
            self._anchor = replace(self._anchor, belief=predict(self._anchor.belief, motion, self._noise))
        image, heading = self._oriented(image, reading, config)
        query = Query(self._prior(image.stamp_ns, reading, config), heading, stamp_covariance=stamp.covariance)
        if known is not None:
            return Outcome(known, image, query)
        start_s = time.thread_time()
        observed = self._localizer.observe(image, query)
        if isinstance(observed, Rejection):
            return Outcome(observed, image, query, localizer_cpu_ms=(time.thread_time() - start_s) * 1e3)
        result = self._localizer.decide(observed, query)
        return Outcome(result, image, query, observed, localizer_cpu_ms=(time.thread_time() - start_s) * 1e3)

    def _prior(self, stamp_ns: int, reading: Reading, config: SessionConfig) -> Prior | None:
        pose, anchor = reading.map_odometry, self._anchor
        if config.prior_source == "odometry" and pose is not None:
            floor = config.prior_sigma_m**2 * np.eye(2)
            return Prior(pose.x_m, pose.y_m, pose.covariance[:2, :2] + floor)
        if config.prior_source == "last_fix" and anchor is not None:
            young = s_from_ns(stamp_ns - anchor.stamp_ns) <= config.last_fix_age_s
            # No hypothesis is left where the error has grown beyond the Earth.
            if young and self._failures < config.last_fix_failures and len(anchor.belief):
                (east_m, north_m), covariance = anchor.belief.means[0, :2], anchor.belief.covariances[0, :2, :2]
                return Prior(float(east_m), float(north_m), covariance)
        return None

    def _remember(self, result: Fix | Rejection) -> None:
        if isinstance(result, Rejection):
            self._failures += 1
            return
        covariance = np.zeros((3, 3))
        covariance[:2, :2], covariance[2, 2] = result.covariance_m2, result.yaw_variance_rad2
        pose = Pose2(result.east_m, result.north_m, result.yaw_rad)
        self._anchor = self._anchor_at(result.stamp_ns, pose, covariance)
        self._failures = 0

    def _place_seen(self, outcome: Outcome) -> Place | None:
        result, query = outcome.result, outcome.query
        if isinstance(result, Rejection):
            return None
        # The imagery's error is the same in all images: what they are compared for does not see it. That of the stamps
        # is what they are compared for.
        covariance_m2 = result.covariance_m2 - self._localizer.config.imagery_sigma_m**2 * np.eye(2)
        if query is not None and query.stamp_covariance is not None:
            covariance_m2 -= stamp_error_m2(query.stamp_covariance, result.yaw_rad)
        return Place(result.east_m, result.north_m, covariance_m2, result.yaw_rad, result.yaw_variance_rad2)

    def _anchor_at(self, stamp_ns: int, pose: Pose2, covariance: Float64) -> _Anchor:
        return _Anchor(stamp_ns, hypothesis(pose, covariance, self._noise.scale))
