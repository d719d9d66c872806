"""A session that localizes each image for itself."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.records import CameraImage, Fix, Prior, Query, Rejection
from unifygeo_ros.core.se2 import Pose2, rotation_derivative
from unifygeo_ros.core.time import s_from_ns
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.samples import InitialPose, OdometrySample
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.inputs import Reading
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.sessions.session import ImageLocalizer, LocalizationSession


@dataclass(frozen=True)
class _Anchor:
    """A pose of base_link that the next prior can start from: the last fix or an initial pose."""

    stamp_ns: int
    pose: Pose2
    covariance: Float64
    """float64 (3, 3), east (m), north (m), yaw (rad)."""


class SingleImageSession(LocalizationSession):
    """Each image for itself; the last fix may serve as the next one's prior."""

    def __init__(self, localizer: ImageLocalizer, config: SessionConfig) -> None:
        super().__init__(localizer, config, MotionNoise())
        self._forget()

    def _initial_pose_problem(self) -> str | None:
        source = self._config.prior_source
        return None if source == "last_fix" else f"of no use with prior_source {source} in mode single"

    def _forget(self) -> None:
        self._anchor: _Anchor | None = None
        self._failures = 0

    def _localize(self, image: CameraImage, config: SessionConfig, known: Fix | Rejection | None) -> Outcome:
        reading = self._inputs.read(image.stamp_ns)
        if reading.initial_pose is not None:
            self._anchor, self._failures = _anchor_of_pose(reading.initial_pose, image.stamp_ns), 0
        image, heading = self._oriented(image, reading, config)
        query = Query(self._prior(image.stamp_ns, reading, config), heading)
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
            age_s = s_from_ns(stamp_ns - anchor.stamp_ns)
            if 0 <= age_s <= config.last_fix_age_s and self._failures < config.last_fix_failures:
                return _propagated(anchor, self._inputs.span(anchor.stamp_ns, stamp_ns), age_s, config)
        return None

    def _remember(self, result: Fix | Rejection) -> None:
        if isinstance(result, Rejection):
            self._failures += 1
            return
        covariance = np.zeros((3, 3))
        covariance[:2, :2], covariance[2, 2] = result.covariance_m2, result.yaw_variance_rad2
        self._anchor = _Anchor(result.stamp_ns, Pose2(result.east_m, result.north_m, result.yaw_rad), covariance)
        self._failures = 0


def _anchor_of_pose(pose: InitialPose, image_ns: int) -> _Anchor:
    stamp_ns = image_ns if pose.stamp_ns == 0 else pose.stamp_ns
    return _Anchor(stamp_ns, Pose2(pose.east_m, pose.north_m, pose.yaw_rad), np.asarray(pose.covariance))


def _propagated(anchor: _Anchor, motion: list[OdometrySample], age_s: float, config: SessionConfig) -> Prior:
    """The prior that an anchor becomes after some motion (odometry in its own frame, both ends included; empty: none).

    The odometry's displacement is rotated from its frame into the map by the anchor's yaw; that yaw's error moves the
    end sideways by distance × error.
    """
    pose, covariance = anchor.pose, np.array(anchor.covariance[:2, :2])
    if not motion:
        spread = config.speed_sigma_m_s * age_s
        return Prior(pose.x_m, pose.y_m, covariance + spread**2 * np.eye(2))
    first, last = motion[0], motion[-1]
    odometry_to_map = Pose2(0.0, 0.0, pose.yaw_rad - first.yaw_rad)
    east, north = odometry_to_map.apply(last.x_m - first.x_m, last.y_m - first.y_m)
    length = sum(math.hypot(b.x_m - a.x_m, b.y_m - a.y_m) for a, b in itertools.pairwise(motion))
    by_yaw = rotation_derivative(np.array([east, north]))
    covariance += (config.odometry_growth * length) ** 2 * np.eye(2)
    covariance += anchor.covariance[2, 2] * np.outer(by_yaw, by_yaw)
    return Prior(pose.x_m + east, pose.y_m + north, covariance)
