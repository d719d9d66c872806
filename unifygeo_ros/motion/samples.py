"""What a vehicle knows of its motion without the camera: samples, their checks, interpolation at an image's stamp."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.covariance import covariance_problem
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.core.time import s_from_ns

MAP_FRAME = "map"
ODOM_FRAME = "odom"

POSITION_LIMIT_M = 1e8
"""Two and a half times round the Earth: no frame of a vehicle reaches further. Far beyond it squares overflow."""

SPEED_LIMIT_M_S = 1e4
"""No vehicle is faster."""

RESTART_M, RESTART_M_S = 1.0, 100.0
"""Odometry that moves further than this from one sample to the next, a distance and a speed, was restarted."""

ANGLE_LIMIT_RAD = 1e6
"""Angles count turns and are wrapped; beyond this they have lost the digits that matter."""


@dataclass(frozen=True)
class OdometrySample:
    """Pose and velocity of base_link at one time."""

    stamp_ns: int
    """Time of the pose."""
    frame: str
    """Gives the sample one of two roles.

    * ``"map"``: the pose is absolute (east, north; REP-103 yaw), as from an EKF in the map frame. It can serve as prior
      and as heading. It is never used as motion between images: such a filter jumps when it takes in a fix.
    * ``"odom"``: the pose is continuous but drifts and starts anywhere (wheel or visual odometry, the odom EKF). Only
      the motion between two stamps is used.
    """
    x_m: float
    """Along the frame's x axis."""
    y_m: float
    yaw_rad: float
    """Counter-clockwise from the frame's x axis."""
    forward_m_s: float = 0.0
    """Velocity in base_link, as the next two."""
    left_m_s: float = 0.0
    yaw_rate_rad_s: float = 0.0
    covariance: Float64 = dataclasses.field(default_factory=lambda: np.zeros((3, 3)))
    """float64 (3, 3) of x (m), y (m), yaw (rad) in the frame, zeros where the source brings none."""

    def fault(self) -> str | None:
        """Why the sample must not be used, in a few words that stay the same from sample to sample, or None."""
        if self.frame not in (MAP_FRAME, ODOM_FRAME):
            return "unknown frame"
        velocity = self.forward_m_s, self.left_m_s
        if not all(map(math.isfinite, (self.x_m, self.y_m, self.yaw_rad, *velocity, self.yaw_rate_rad_s))):
            return "not finite"
        if max(abs(self.x_m), abs(self.y_m)) > POSITION_LIMIT_M:
            return f"position beyond {POSITION_LIMIT_M:g} m"
        if max(map(abs, velocity)) > SPEED_LIMIT_M_S:
            return f"speed above {SPEED_LIMIT_M_S:g} m/s"
        if max(abs(self.yaw_rad), abs(self.yaw_rate_rad_s)) > ANGLE_LIMIT_RAD:
            return f"yaw or yaw rate beyond {ANGLE_LIMIT_RAD:g} rad"
        return None if covariance_problem(self.covariance, 3, definite=False) is None else "bad covariance"

    @property
    def pose(self) -> Pose2:
        """In the sample's frame."""
        return Pose2(self.x_m, self.y_m, self.yaw_rad)

    def continues_in(self, later: OdometrySample) -> bool:
        """False where the odometry started afresh before the later sample: its pose has jumped, most often to 0."""
        time_s = s_from_ns(later.stamp_ns - self.stamp_ns)
        return math.hypot(later.x_m - self.x_m, later.y_m - self.y_m) <= RESTART_M + RESTART_M_S * time_s

    def between(self, later: OdometrySample, stamp_ns: int) -> OdometrySample:
        """The sample at a stamp between this one and a later one.

        Linear, with the yaw along the shorter arc and the larger of the covariances.
        """
        share = (stamp_ns - self.stamp_ns) / (later.stamp_ns - self.stamp_ns)
        wider = self if np.trace(self.covariance) >= np.trace(later.covariance) else later
        return OdometrySample(
            stamp_ns,
            self.frame,
            _mix(self.x_m, later.x_m, share),
            _mix(self.y_m, later.y_m, share),
            _turn(self.yaw_rad, later.yaw_rad, share),
            _mix(self.forward_m_s, later.forward_m_s, share),
            _mix(self.left_m_s, later.left_m_s, share),
            _mix(self.yaw_rate_rad_s, later.yaw_rate_rad_s, share),
            wider.covariance,
        )

    def continued(self, stamp_ns: int) -> OdometrySample:
        """The sample at a later stamp if the velocity stays as it is, to first order in the turn."""
        time_s = s_from_ns(stamp_ns - self.stamp_ns)
        middle_yaw_rad = self.yaw_rad + 0.5 * self.yaw_rate_rad_s * time_s
        x_m_s, y_m_s = Pose2(0.0, 0.0, middle_yaw_rad).apply(self.forward_m_s, self.left_m_s)
        return dataclasses.replace(
            self,
            stamp_ns=stamp_ns,
            x_m=self.x_m + x_m_s * time_s,
            y_m=self.y_m + y_m_s * time_s,
            yaw_rad=wrap_angle(self.yaw_rad + self.yaw_rate_rad_s * time_s),
        )


@dataclass(frozen=True)
class ImuSample:
    """Orientation of base_link from an IMU whose axes are base_link's."""

    stamp_ns: int
    roll_rad: float
    """About base_link's x and y (REP-103)."""
    pitch_rad: float
    """About base_link's x and y (REP-103)."""
    yaw_rad: float
    """REP-103, as absolute as the IMU is; the session's imu_yaw_offset_rad is added to it."""
    yaw_variance_rad2: float = 0.0
    """0 where the source brings none. All three angles NaN where the IMU gives no orientation (a message whose
    orientation_covariance starts with −1): refused, and counted as such."""

    def fault(self) -> str | None:
        """As `OdometrySample.fault`."""
        angles = (self.roll_rad, self.pitch_rad, self.yaw_rad)
        if all(map(math.isnan, angles)):
            return "no orientation"
        if not all(map(math.isfinite, angles)):
            return "not finite"
        if max(map(abs, angles)) > ANGLE_LIMIT_RAD:
            return f"angle beyond {ANGLE_LIMIT_RAD:g} rad"
        if not (math.isfinite(self.yaw_variance_rad2) and self.yaw_variance_rad2 >= 0):
            return "bad covariance"
        return None

    def continues_in(self, later: ImuSample) -> bool:
        """As `OdometrySample.continues_in`: an orientation may change at any rate."""
        return True

    def between(self, later: ImuSample, stamp_ns: int) -> ImuSample:
        """As `OdometrySample.between`."""
        share = (stamp_ns - self.stamp_ns) / (later.stamp_ns - self.stamp_ns)
        return ImuSample(
            stamp_ns,
            _turn(self.roll_rad, later.roll_rad, share),
            _turn(self.pitch_rad, later.pitch_rad, share),
            _turn(self.yaw_rad, later.yaw_rad, share),
            max(self.yaw_variance_rad2, later.yaw_variance_rad2),
        )

    def continued(self, stamp_ns: int) -> ImuSample:
        """The sample at a later stamp if the orientation stays as it is."""
        return dataclasses.replace(self, stamp_ns=stamp_ns)


@dataclass(frozen=True)
class InitialPose:
    """Where an operator says base_link is: map frame, metres, REP-103 yaw."""

    stamp_ns: int
    """When that holds; 0: from the next image on."""
    east_m: float
    north_m: float
    yaw_rad: float
    covariance: Float64
    """float64 (3, 3) of east (m), north (m), yaw (rad), positive definite."""

    @property
    def pose(self) -> Pose2:
        """In the map frame."""
        return Pose2(self.east_m, self.north_m, self.yaw_rad)

    def fault(self) -> str | None:
        """As `OdometrySample.fault`."""
        if not all(map(math.isfinite, (self.east_m, self.north_m, self.yaw_rad))):
            return "not finite"
        if max(abs(self.east_m), abs(self.north_m)) > POSITION_LIMIT_M:
            return f"position beyond {POSITION_LIMIT_M:g} m"
        if abs(self.yaw_rad) > ANGLE_LIMIT_RAD:
            return f"yaw beyond {ANGLE_LIMIT_RAD:g} rad"
        return None if covariance_problem(self.covariance, 3) is None else "bad covariance"


def roll_pitch_yaw(x: float, y: float, z: float, w: float) -> tuple[float, float, float]:
    """Angles (rad) of a quaternion: R = Rz(yaw) · Ry(pitch) · Rx(roll), the convention of REP-103.

    Any non-zero length is accepted. A zero or non-finite quaternion gives NaNs, which the samples' checks refuse.
    """
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    if not (math.isfinite(norm) and norm > 1e-6):
        return math.nan, math.nan, math.nan
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = math.asin(max(-1.0, min(1.0, 2 * (w * y - z * x))))
    yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return roll, pitch, yaw


def _mix(first: float, second: float, share: float) -> float:
    return first + share * (second - first)


def _turn(first_rad: float, second_rad: float, share: float) -> float:
    return wrap_angle(first_rad + share * wrap_angle(second_rad - first_rad))


@dataclass(frozen=True)
class BufferLimits:
    """How far a buffer reaches. All in nanoseconds."""

    age: int
    """Samples older than this before the newest are dropped."""
    gap: int
    """Two samples further apart are not interpolated between."""
    extrapolation: int
    """How far beyond the newest sample its velocity is followed."""
    time_jump: int
    """a stamp that lies further back than this clears the buffer (the clock or the driver was restarted)."""


SampleT = TypeVar("SampleT", OdometrySample, ImuSample)


class MotionBuffer(Generic[SampleT]):
    """The newest samples of one source in order of their stamps. Not safe for use from two threads at once."""

    def __init__(self, limits: BufferLimits) -> None:
        self.limits = limits
        self._samples: list[SampleT] = []

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def newest(self) -> SampleT | None:
        return self._samples[-1] if self._samples else None

    def add(self, sample: SampleT) -> str | None:
        """Take in a sample. Returns why it was refused, or None."""
        fault = sample.fault()
        if fault is not None:
            return fault
        if sample.stamp_ns <= 0:
            return "no stamp"
        newest = self.newest
        if newest is not None and sample.stamp_ns <= newest.stamp_ns:
            if newest.stamp_ns - sample.stamp_ns <= self.limits.time_jump:
                return "not newer than the one before"
            self._samples.clear()
        self._samples.append(sample)
        self._drop_before(sample.stamp_ns - self.limits.age)
        return None

    def clear(self) -> None:
        self._samples.clear()

    def drop_after(self, stamp_ns: int) -> None:
        """Forget the samples newer than a stamp: what a clock that was set back leaves behind."""
        del self._samples[bisect.bisect_right(self._samples, stamp_ns, key=lambda s: s.stamp_ns) :]

    def after(self, stamp_ns: int) -> list[SampleT]:
        """The samples newer than a stamp."""
        return self._samples[bisect.bisect_right(self._samples, stamp_ns, key=lambda s: s.stamp_ns) :]

    def connected(self, sample: SampleT, later: SampleT) -> bool:
        """Whether the motion from one sample to the next was measured: no gap, and no restart of the odometry."""
        return later.stamp_ns - sample.stamp_ns <= self.limits.gap and sample.continues_in(later)

    def at(self, stamp_ns: int) -> SampleT | None:
        """The sample at a stamp: interpolated between its neighbours, or the newest one continued.

        None where a limit is exceeded, never a guess.
        """
        after = bisect.bisect_left(self._samples, stamp_ns, key=lambda s: s.stamp_ns)
        if after < len(self._samples) and self._samples[after].stamp_ns == stamp_ns:
            return self._samples[after]
        if after == 0:
            return None
        earlier = self._samples[after - 1]
        if after == len(self._samples):
            if stamp_ns - earlier.stamp_ns > self.limits.extrapolation:
                return None
            return earlier.continued(stamp_ns)
        later = self._samples[after]
        if not self.connected(earlier, later):
            return None
        return earlier.between(later, stamp_ns)

    def span(self, first_ns: int, last_ns: int) -> list[SampleT]:
        """The motion from one stamp to another: interpolated ends and every sample between; empty across a gap."""
        first, last = self.at(first_ns), self.at(last_ns)
        if first is None or last is None or last_ns < first_ns:
            return []
        begin = bisect.bisect_right(self._samples, first_ns, key=lambda s: s.stamp_ns)
        end = bisect.bisect_left(self._samples, last_ns, key=lambda s: s.stamp_ns)
        samples: list[SampleT] = [first]
        samples += self._samples[begin:end]
        samples.append(last)
        if not all(self.connected(a, b) for a, b in itertools.pairwise(samples)):
            return []
        return samples

    def runs(self, first_ns: int, last_ns: int) -> list[list[SampleT]]:
        """The motion from one stamp to another, in one list for each stretch between gaps.

        As `span`, but no list is longer than what was measured.
        """
        samples: list[SampleT] = []
        first, last = self.at(first_ns), self.at(last_ns)
        if first is not None:
            samples.append(first)
        begin = bisect.bisect_right(self._samples, first_ns, key=lambda s: s.stamp_ns)
        end = bisect.bisect_left(self._samples, last_ns, key=lambda s: s.stamp_ns)
        samples += self._samples[begin:end]
        if last is not None:
            samples.append(last)
        runs: list[list[SampleT]] = []
        for sample in samples:
            if runs and self.connected(runs[-1][-1], sample):
                runs[-1].append(sample)
            else:
                runs.append([sample])
        return runs

    def _drop_before(self, stamp_ns: int) -> None:
        first = bisect.bisect_left(self._samples, stamp_ns, key=lambda s: s.stamp_ns)
        # Dropping in blocks keeps the cost of a sample constant; memory stays within twice the age.
        if first > 64 and 2 * first > len(self._samples):
            del self._samples[:first]
