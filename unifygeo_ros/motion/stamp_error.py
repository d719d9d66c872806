"""How late the images are stamped, found from the motion: a Kalman filter over the places that images show.

An image that was exposed τ before its stamp shows base_link where it was τ earlier: v τ behind. While the velocity v
stays the same, that looks like a place further back. When the speed changes, or the direction in a turn, the distance
from where the odometry leads changes in proportion, and that is what the filter sees. It compares the images' clock
with the odometry's and cannot tell which of them is wrong.

The state:

    east, north, yaw of base_link at the stamp · the odometry's error of scale · τ · the error of the camera's position
    in base_link (forward, left)

The last two are there so that a position measured badly is not taken for a late stamp. An image measures

    (east, north) + R(yaw) (error of the position − u τ),      u: velocity of the camera in base_link's axes.

Source: M. Li and A. Mourikis, "Online temporal calibration for camera–IMU systems", IJRR 33(7), 2014, who estimate τ in
the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.covariance import chi2_quantile, symmetric
from unifygeo_ros.core.se2 import Pose2, rotate, rotation_derivative, rotation_matrix
from unifygeo_ros.core.time import s_from_ns
from unifygeo_ros.motion.increments import Motion, MotionNoise, share_new
from unifygeo_ros.motion.samples import OdometrySample

SCALE, LATE, LEVER = 3, 4, slice(5, 7)
"""Places in the state after east, north and yaw."""
SIZE = 7

SIGNIFICANT = 4.0
"""Standard deviations by which an estimate must differ from what is configured to be named."""

LEAST_LATE_S = 0.07
"""A smaller error is not named: fixes allow for more (`SessionConfig.stamp_sigma_s`), and the images of one
long drive with exact stamps looked 0.05 to 0.06 s late, with a standard deviation of 0.01 s."""

LEAST_IMAGES = 10
"""An estimate from fewer images is not named."""

GATE = chi2_quantile(0.999)
"""Places further from the prediction, in squared standard deviations, are taken for wrong ones and not used."""

GATED_IN_A_ROW = 5
"""After so many of them the pose is taken from the next image; what was learnt about the rest stays."""

CORRELATION_M = 1.0
"""Images this far apart have independent errors, as `TrackerConfig.accuracy_correlation_m` says of the tracker's."""

LEAST_NEW = 0.05
"""Least share of an image's information that is new: taken at the same place, it still has noise of its own."""

MAP_WALK_M = 0.02
"""Drift of the places that images show against the odometry's, m per √m: the imagery's georeference."""


CORRECTED_WALK_S = 0.003
"""Drift of the delay once the stamps were corrected, s per √m: a driver that starts again may have another delay, and
the correction must follow. 0.03 s in 100 m."""


@dataclass(frozen=True)
class Velocity:
    """Of base_link, in its own axes."""

    forward_m_s: float
    left_m_s: float
    yaw_rate_rad_s: float

    @property
    def vector(self) -> Float64:
        """float64 (3,)."""
        return np.array([self.forward_m_s, self.left_m_s, self.yaw_rate_rad_s])


@dataclass(frozen=True)
class StampDoubt:
    """How wrong the stamp of one image may be."""

    second_moment_s2: float
    """Mean square of the stamp's error, as `StampError.second_moment_s2`."""
    velocity: Velocity | None
    """At the stamp; None: not known."""
    covariance: Float64
    """As `Query.stamp_covariance`."""


def mean_velocity(samples: Sequence[OdometrySample]) -> Velocity:
    """The mean velocity from the first sample to the last, which is later, in the axes half-way."""
    first, last = samples[0], samples[-1]
    time_s = s_from_ns(last.stamp_ns - first.stamp_ns)
    motion = first.pose.between(last.pose)
    forward, left = rotate(-motion.yaw_rad / 2, motion.x_m, motion.y_m) / time_s
    return Velocity(float(forward), float(left), motion.yaw_rad / time_s)


@dataclass(frozen=True)
class Place:
    """Where an image alone shows base_link."""

    east_m: float
    north_m: float
    covariance_m2: Float64
    """float64 (2, 2)."""
    yaw_rad: float
    """Used where the filter begins."""
    yaw_variance_rad2: float


@dataclass(frozen=True)
class StampError:
    """How late the images are stamped, as far as it is known."""

    late_s: float
    """Stamp minus exposure, by the odometry's clock; negative for images that are stamped early."""
    sigma_s: float
    """Its standard deviation."""
    images: int
    """How many images it was estimated from."""

    @property
    def significant(self) -> bool:
        """Whether the stamps are clearly wrong."""
        return self.images >= LEAST_IMAGES and abs(self.late_s) > max(SIGNIFICANT * self.sigma_s, LEAST_LATE_S)

    def second_moment_s2(self, assumed_sigma_s: float) -> float:
        """Mean square of the stamps' error, in s².

        From the product of two Gaussians: this estimate, and the assumption that the error is 0 with a standard
        deviation.
        """
        if not self.images or assumed_sigma_s <= 0:
            return assumed_sigma_s**2
        share = assumed_sigma_s**2 / (assumed_sigma_s**2 + self.sigma_s**2)
        return (share * self.late_s) ** 2 + share * self.sigma_s**2

    @property
    def text(self) -> str:
        """For the diagnostics."""
        return f"{self.late_s:.3f} ± {self.sigma_s:.3f}" if self.images else "unknown"

    def warning(self, stamp_offset_s: float) -> str | None:
        """What to do about it, in words, or None where nothing is certain.

        Args:
            stamp_offset_s: the session's, already in the stamps that the estimate is made from.
        """
        if not self.significant:
            return None
        word = "late" if self.late_s > 0 else "early"
        return (
            f"the images are stamped {abs(self.late_s):.2f} ± {self.sigma_s:.2f} s {word}, compared with the odometry; "
            f"set session.stamp_offset_s: {stamp_offset_s - self.late_s:.2f} (if the odometry's stamps are right, and "
            "camera.x_m)"
        )


UNKNOWN = StampError(0.0, math.inf, 0)


@dataclass(frozen=True)
class PriorSigmas:
    """Standard deviations before the first image."""

    late_s: float = 0.3
    camera_m: float = 0.3
    """Of the camera's position in base_link, along each axis. With 0.1, a camera.x_m that is wrong by 1 m was taken
    for a late stamp on three to five of six drives, with 0.3 on none; 0.25 s late is found as soon."""


class StampErrorFilter:
    """The estimate of one drive. For each image: `move`, then `see` where it showed a place."""

    def __init__(self, noise: MotionNoise, camera_m: tuple[float, float], prior: PriorSigmas | None = None) -> None:
        """Start with the prior.

        Args:
            noise: of the odometry.
            camera_m: position of the camera in base_link, forward and left, as configured.
            prior: of what is estimated; None: the defaults.
        """
        prior = prior or PriorSigmas()
        self._noise = noise
        self._camera_m = camera_m
        self._started = False
        self._images = self._gated = 0
        self._late_walk = 0.0
        self._travelled_m = math.inf  # since the last image that was seen
        self._mean = np.zeros(SIZE)
        sigmas = [0.0, 0.0, 0.0, noise.scale, prior.late_s, prior.camera_m, prior.camera_m]
        self._covariance = np.diag(np.square(sigmas))

    @property
    def estimate(self) -> StampError:
        if not self._images:
            return UNKNOWN
        return StampError(float(self._mean[LATE]), math.sqrt(float(self._covariance[LATE, LATE])), self._images)

    @property
    def yaw(self) -> tuple[float, float] | None:
        """Of base_link at the last stamp, and its standard deviation; None where the pose is lost."""
        return (float(self._mean[2]), math.sqrt(float(self._covariance[2, 2]))) if self._started else None

    def restamp(self, moved_s: float) -> None:
        """The images' stamps are moved by so much from now on: they are later, or less late. The pose is lost."""
        self._mean[LATE] += moved_s
        self._late_walk = CORRECTED_WALK_S
        self.lose_pose()

    def lose_pose(self) -> None:
        """The vehicle is somewhere else now; what was learnt about the stamps stays."""
        self._started = False

    def move(self, motion: Motion) -> None:
        """From the last image's stamp to the next one's. A gap of the odometry loses the pose."""
        if not motion.measured:
            self.lose_pose()
        if not self._started:
            return
        self._travelled_m += motion.distance_m
        pose, scale = Pose2(*map(float, self._mean[:3])), float(self._mean[SCALE])
        step = Pose2((1 + scale) * motion.forward_m, (1 + scale) * motion.left_m, motion.turn_rad)
        by_pose, by_step = pose.compose_jacobians(step)
        persistence = self._noise.scale_persistence(motion.distance_m)
        by_state = np.eye(SIZE)
        by_state[:3, :3] = by_pose
        by_state[:3, SCALE] = by_step @ [motion.forward_m, motion.left_m, 0.0]
        by_state[SCALE, SCALE] = persistence
        moved = pose.compose(step)
        self._mean[:3] = moved.x_m, moved.y_m, moved.yaw_rad
        self._mean[SCALE] = persistence * scale
        covariance = by_state @ self._covariance @ by_state.T
        covariance[:3, :3] += by_step @ motion.covariance @ by_step.T
        covariance[:2, :2] += MAP_WALK_M**2 * motion.distance_m * np.eye(2)
        covariance[LATE, LATE] += self._late_walk**2 * motion.distance_m
        covariance[SCALE, SCALE] += (1 - persistence**2) * self._noise.scale**2
        self._covariance = symmetric(covariance)

    def see(self, place: Place, velocity: Velocity) -> None:
        """Take in what an image showed; the velocity is that at its stamp."""
        new_share = max(share_new(self._travelled_m, CORRELATION_M), LEAST_NEW)
        measured = np.array([place.east_m, place.north_m])
        covariance = place.covariance_m2 / new_share
        if not self._started:
            self._begin(measured, covariance, place, velocity)
            return
        offset, by_state = self._offset(velocity)
        innovation = measured - self._mean[:2] - offset
        total = by_state @ self._covariance @ by_state.T + covariance
        if float(innovation @ np.linalg.solve(total, innovation)) > GATE:
            self._gated += 1
            self._started = self._gated < GATED_IN_A_ROW
            return
        gain = np.linalg.solve(total, by_state @ self._covariance).T
        self._mean += gain @ innovation
        left = np.eye(SIZE) - gain @ by_state
        # Joseph's form, which stays positive definite whatever is rounded.
        self._covariance = symmetric(left @ self._covariance @ left.T + gain @ covariance @ gain.T)
        self._images, self._gated, self._travelled_m = self._images + 1, 0, 0.0

    def _begin(self, measured: Float64, covariance: Float64, place: Place, velocity: Velocity) -> None:
        """The pose from this image alone: (east, north) = measured − offset, and the offset's error is the state's."""
        self._mean[:3] = 0.0, 0.0, place.yaw_rad
        self._covariance[:3], self._covariance[:, :3] = 0.0, 0.0
        self._covariance[2, 2] = place.yaw_variance_rad2
        offset, by_state = self._offset(velocity)
        self._mean[:2] = measured - offset
        others = by_state[:, 2:] @ self._covariance[2:, 2:]
        self._covariance[:2, 2:], self._covariance[2:, :2] = -others, -others.T
        self._covariance[:2, :2] = covariance + others @ by_state[:, 2:].T
        self._started, self._gated, self._travelled_m = True, 0, 0.0

    def _offset(self, velocity: Velocity) -> tuple[Float64, Float64]:
        """Where an image shows base_link minus where it is.

        Returns:
            float64 (2,), and the Jacobian of what an image measures, float64 (2, SIZE).
        """
        yaw, late, turn = float(self._mean[2]), float(self._mean[LATE]), velocity.yaw_rate_rad_s
        forward, left = self._camera_m
        camera_velocity = np.array([velocity.forward_m_s - turn * left, velocity.left_m_s + turn * forward])
        offset = rotate(yaw, *(self._mean[LEVER] - late * camera_velocity))
        by_state = np.zeros((2, SIZE))
        by_state[:, :2] = np.eye(2)
        by_state[:, 2] = rotation_derivative(offset)
        by_state[:, LATE] = -rotate(yaw, *camera_velocity)
        by_state[:, LEVER] = rotation_matrix(yaw)
        return offset, by_state
