"""The inputs other than images: odometry, IMU, an initial pose. One monitor that owns its lock.

Every method may be called from any thread and holds the lock for well under a millisecond.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import Mapping

from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.core.time import NS_PER_S
from unifygeo_ros.motion.increments import NO_MOTION, Motion, MotionNoise, motion_between
from unifygeo_ros.motion.samples import (
    MAP_FRAME,
    BufferLimits,
    ImuSample,
    InitialPose,
    MotionBuffer,
    OdometrySample,
)
from unifygeo_ros.motion.stamp_error import Velocity, mean_velocity

VELOCITY_SPAN_NS = NS_PER_S // 5
"""Time over which velocities are measured: long against the odometry's interval, short against the vehicle's."""


@dataclass(frozen=True)
class Reading:
    """What is known at one stamp; None: no sample that reaches it."""

    imu: ImuSample | None
    map_odometry: OdometrySample | None
    initial_pose: InitialPose | None
    """One that was set since the last reading."""


@dataclass(frozen=True)
class InputStatus:
    """For the diagnostics."""

    refused: Mapping[str, int]
    """How many inputs were refused, by "source: reason"."""
    generation: int
    """How often the session was restarted."""
    odometry_ns: int | None
    """Newest stamp in the buffers."""
    imu_ns: int | None


class SessionInputs:
    """The samples of a session, shared between the threads that receive them and the one that localizes."""

    def __init__(self, limits: BufferLimits, noise: MotionNoise) -> None:
        """Start with empty buffers.

        Args:
            limits: of the buffers.
            noise: of the motion that `take_motion` gives.
        """
        self._lock = threading.Lock()
        self._map_odometry: MotionBuffer[OdometrySample] = MotionBuffer(limits)
        self._odometry: MotionBuffer[OdometrySample] = MotionBuffer(limits)
        self._imu: MotionBuffer[ImuSample] = MotionBuffer(limits)
        self._initial_pose: InitialPose | None = None
        self._generation = 0
        self._refused: Counter[str] = Counter()
        self._noise = noise
        self._motion = NO_MOTION
        self._followed_to_ns: int | None = None  # up to which stamp `_motion` reaches; None: it is not followed

    @property
    def generation(self) -> int:
        """How often the session was restarted: results of an earlier generation are dropped."""
        with self._lock:
            return self._generation

    def add_odometry(self, sample: OdometrySample) -> str | None:
        """Returns why the sample was refused (and counts that), or None."""
        with self._lock:
            buffer = self._map_odometry if sample.frame == MAP_FRAME else self._odometry
            problem = buffer.add(sample)
            self._keep_up()
            return self._counted("odometry", problem)

    def add_imu(self, sample: ImuSample) -> str | None:
        """Returns why the sample was refused (and counts that), or None."""
        with self._lock:
            return self._counted("imu", self._imu.add(sample))

    def set_initial_pose(self, pose: InitialPose, problem: str | None) -> str | None:
        """Keep a pose for the next reading, unless there is a problem. Returns why it was refused, or None."""
        with self._lock:
            problem = pose.fault() or problem
            if problem is None:
                self._initial_pose = pose
            return self._counted("initial pose", problem)

    def reset(self) -> None:
        """Forget the samples; a new generation begins."""
        with self._lock:
            for buffer in (self._map_odometry, self._odometry, self._imu):
                buffer.clear()
            self._initial_pose = None
            self._generation += 1

    def jump_back(self, last_ns: int) -> int:
        """Time was set back: forget the samples after a stamp. Returns the new generation."""
        with self._lock:
            for buffer in (self._map_odometry, self._odometry, self._imu):
                buffer.drop_after(last_ns)
            self._generation += 1
            return self._generation

    def read(self, stamp_ns: int) -> Reading:
        """What is known at a stamp. The initial pose is given once."""
        with self._lock:
            pose, self._initial_pose = self._initial_pose, None
            return Reading(self._imu.at(stamp_ns), self._map_odometry.at(stamp_ns), pose)

    def span(self, first_ns: int, last_ns: int) -> list[OdometrySample]:
        """The drifting odometry from one stamp to another (`MotionBuffer.span`)."""
        with self._lock:
            return self._odometry.span(first_ns, last_ns)

    def velocity(self, stamp_ns: int) -> Velocity | None:
        """The mean velocity of base_link in the time before a stamp; None where the odometry does not reach it.

        From the odometry's poses, since many drivers leave the twist at 0.
        """
        with self._lock:
            for buffer in (self._odometry, self._map_odometry):
                samples = buffer.span(stamp_ns - VELOCITY_SPAN_NS, stamp_ns)
                if samples:
                    return mean_velocity(samples)
        return None

    def moved(self, first_ns: int, last_ns: int) -> Pose2 | None:
        """The pose of base_link at one stamp in its axes at another, earlier or later, by the drifting odometry.

        None where the odometry does not reach both.
        """
        with self._lock:
            span = self._odometry.span(min(first_ns, last_ns), max(first_ns, last_ns))
        if not span:
            return None
        early, late = span[0].pose, span[-1].pose
        return early.between(late) if first_ns <= last_ns else late.between(early)

    def follow_from(self, stamp_ns: int | None) -> None:
        """Add up the odometry's motion from a stamp on, however long that takes. None: do not follow it."""
        with self._lock:
            self._motion, self._followed_to_ns = NO_MOTION, stamp_ns

    def take_motion(self, stamp_ns: int) -> Motion:
        """The motion since `follow_from` or since the last call; it is followed from this stamp on."""
        with self._lock:
            if self._followed_to_ns is not None and stamp_ns > self._followed_to_ns:
                self._follow_to(stamp_ns)
            motion = self._motion
            self._motion, self._followed_to_ns = NO_MOTION, stamp_ns
            return motion

    def status(self) -> InputStatus:
        with self._lock:
            newest = [buffer.newest for buffer in (self._odometry, self._map_odometry)]
            stamps = [sample.stamp_ns for sample in newest if sample is not None]
            imu = self._imu.newest
            return InputStatus(
                refused=MappingProxyType(dict(self._refused)),
                generation=self._generation,
                odometry_ns=max(stamps, default=None),
                imu_ns=None if imu is None else imu.stamp_ns,
            )

    # -- with the lock held ---------------------------------------------------------------------------------------

    def _keep_up(self) -> None:
        """Take in the motion before the buffer drops its samples: images may stay away for longer than it reaches."""
        newest = self._odometry.newest
        if newest is not None and self._followed_to_ns is not None:
            behind = newest.stamp_ns - self._followed_to_ns
            if behind > self._odometry.limits.age // 2:
                self._follow_to(newest.stamp_ns - self._odometry.limits.age // 4)

    def _follow_to(self, stamp_ns: int) -> None:
        assert self._followed_to_ns is not None
        later = motion_between(self._odometry, self._followed_to_ns, stamp_ns, self._noise)
        self._motion = self._motion.then(later)
        self._followed_to_ns = stamp_ns

    def _counted(self, source: str, problem: str | None) -> str | None:
        if problem is not None:
            self._refused[f"{source}: {problem}"] += 1
        return problem
