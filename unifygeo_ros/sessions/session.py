"""One drive: what the node and the replay share between the messages and the localizer.

A session keeps the recent odometry and IMU samples, finds each image's tilt and heading from the configured sources at
the image's own stamp, keeps the rules about time, and calls the localizer. It is deterministic: the same calls in the
same order give the same fixes. What it does with an image is up to its kind: `SingleImageSession` or `SequenceSession`.

Threads: `add_odometry`, `add_imu`, `set_initial_pose`, `reset`, `reconfigure` and `status` may be called from any
thread and never wait for an image being localized. `locate` belongs to one thread at a time and holds no lock while
the localizer works.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import threading
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import Mapping

import numpy as np

from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import (
    CameraImage,
    Fix,
    Heading,
    HeadingSource,
    Rejection,
    RejectionReason,
)
from unifygeo_ros.core.settings import check_only_live_changed
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.motion.imu_offset import ImuOffsetEstimator
from unifygeo_ros.motion.increments import Motion, MotionNoise
from unifygeo_ros.motion.samples import ImuSample, InitialPose, OdometrySample
from unifygeo_ros.motion.stamp_error import Place, StampDoubt, StampErrorFilter, Velocity
from unifygeo_ros.sessions.camera_check import CameraCheck
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.corrections import NO_CORRECTIONS
from unifygeo_ros.sessions.familiarity_watch import FamiliarityWatch
from unifygeo_ros.sessions.image_localizer import ImageLocalizer
from unifygeo_ros.sessions.image_rules import ImageRules
from unifygeo_ros.sessions.inputs import Reading, SessionInputs
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.tracking.track import TrackStatus

_LOG = logging.getLogger(__name__)

FREE_YAW_SIGMA_RAD = 0.15
"""Standard deviation of the yaw that the drive's own begins with where it comes from the IMU that is judged by it."""


@dataclass(frozen=True)
class SessionStatus:
    """For the diagnostics."""

    refused: Mapping[str, int]
    """How many inputs were refused, by "source: reason"."""
    outcomes: Mapping[str, int]
    """How many images ended as "fix" or as which rejection."""
    resets: int
    """How often the session was restarted."""
    odometry_ns: int | None
    """Newest stamp in the buffers."""
    imu_ns: int | None
    track: TrackStatus | None = None
    """Of the tracker after the last image; None in mode single, and while no image has been localized."""
    warnings: tuple[str, ...] = ()
    """As in `Outcome`, after the last image."""


class LocalizationSession(abc.ABC):
    """Fixes of one drive, image by image. See the module's docstring for the rules about threads."""

    def __init__(self, localizer: ImageLocalizer, config: SessionConfig, noise: MotionNoise) -> None:
        """Start a session without inputs.

        Args:
            localizer: asked for each image.
            config: of the session.
            noise: of the odometry's motion between images.
        """
        self._localizer = localizer
        self._config = config
        self.apply_estimates = False
        """Whether to correct what the drive shows beyond doubt (`corrections`). May be set from any thread."""
        self._inputs = SessionInputs(config.buffer_limits, noise)
        self._generation = 0
        self._noise = noise
        self._velocity: Velocity | None = None  # at the stamp of the image being localized
        self._begin_drive()
        self._lock = threading.Lock()  # of those below
        self._warnings: tuple[str, ...] = ()
        self._track: TrackStatus | None = None
        self._outcomes: Counter[str] = Counter()

    def _begin_drive(self) -> None:
        """What the images of a drive have shown: nothing yet."""
        self._rules = ImageRules()
        self._corrections = NO_CORRECTIONS
        self._camera = CameraCheck(self._localizer, self._config.camera_check_images)
        self._familiarity = FamiliarityWatch()
        self._logged: set[str] = set()  # kinds of warnings of this drive
        mount = self._localizer.mount
        self._stamp_error = StampErrorFilter(self._noise, (mount.x_m, mount.y_m))
        self._imu_offset = ImuOffsetEstimator()
        self._way_m = 0.0  # driven so far, by the odometry

    # -- inputs, from any thread ----------------------------------------------------------------------------------

    def add_odometry(self, sample: OdometrySample) -> str | None:
        """Take in odometry. Returns why it was refused (and counts that), or None."""
        return self._inputs.add_odometry(sample)

    def add_imu(self, sample: ImuSample) -> str | None:
        """Take in an IMU sample. Returns why it was refused (and counts that), or None."""
        return self._inputs.add_imu(sample)

    def set_initial_pose(self, pose: InitialPose) -> str | None:
        """Start from a pose with the next image. Returns why it was refused (and counts that), or None."""
        return self._inputs.set_initial_pose(pose, self._initial_pose_problem())

    @property
    def inputs(self) -> SessionInputs:
        """Odometry and IMU. The rig's images are moved to one instant by it."""
        return self._inputs

    def reset(self) -> None:
        """Forget the drive: samples, last fix, last image, track. The result of an image being localized is dropped."""
        with self._lock:
            self._inputs.reset()
            self._track, self._warnings = None, ()

    def reconfigure(self, config: SessionConfig) -> None:
        """Use other live settings from the next image on. The others must be as they were."""
        check_only_live_changed(self._config, config, "session")
        self._config = config

    def status(self) -> SessionStatus:
        """Counts and newest stamps."""
        inputs = self._inputs.status()
        with self._lock:
            return SessionStatus(
                refused=inputs.refused,
                outcomes=MappingProxyType(dict(self._outcomes)),
                resets=inputs.generation,
                odometry_ns=inputs.odometry_ns,
                imu_ns=inputs.imu_ns,
                track=self._track,
                warnings=self._warnings,
            )

    # -- images, from one thread ----------------------------------------------------------------------------------

    def locate(self, image: CameraImage) -> Outcome:
        """Localize the next image of the drive. The result carries the stamp of exposure: the image's + the offset."""
        return self._next(image, None)

    def recall(self, image: CameraImage, result: Fix | Rejection) -> Outcome:
        """Take the session past an image whose result is known, as `locate` would leave it.

        In mode single the image is not localized again. In mode sequence it is, since the belief follows from the
        observation.
        """
        return self._next(image, result)

    def _next(self, image: CameraImage, known: Fix | Rejection | None) -> Outcome:
        camera_ns = image.stamp_ns
        config = self._corrections.applied_to(self._config)
        image = dataclasses.replace(image, stamp_ns=camera_ns + ns_from_s(config.stamp_offset_s))
        generation = self._inputs.generation
        if generation == self._generation and self._rules.jumped_back(image.stamp_ns, config):
            with self._lock:
                generation = self._inputs.jump_back(image.stamp_ns + ns_from_s(config.time_jump_s))
                self._track, self._warnings = None, ()
        if generation != self._generation:
            self._generation = generation
            self._inputs.follow_from(None)
            self._begin_drive()
            self._forget()
            config = self._config
            image = dataclasses.replace(image, stamp_ns=camera_ns + ns_from_s(config.stamp_offset_s))
        refusal = self._rules.refusal(image, self._inputs, config)
        if refusal is not None:
            outcome = Outcome(refusal, image)
        else:
            outcome = self._committed(self._camera.checked(self._localize(image, config, known)))
        late, imu, corrections = self._stamp_error.estimate, self._imu_offset.estimate, self._corrections
        if outcome.query is not None:
            self._correct(outcome.image.stamp_ns)
        by_kind = self._warnings_now(self._corrections.applied_to(self._config))
        for kind, warning in by_kind.items():
            if kind not in self._logged:
                _LOG.warning(warning)
        self._logged |= by_kind.keys()
        warnings = tuple(by_kind.values())
        with self._lock:
            self._warnings = warnings
            result = outcome.result
            self._outcomes["fix" if isinstance(result, Fix) else result.reason.value] += 1
            return dataclasses.replace(
                outcome,
                track=self._track,
                stamp_error=late,
                imu_offset=imu,
                corrections=corrections,
                warnings=warnings,
            )

    def _correct(self, stamp_ns: int) -> None:
        """Set the corrections for the images to come. stamp_ns: of the last image, which the motion was followed to."""
        late, imu, wanted = self._stamp_error.estimate, self._imu_offset.estimate, self.apply_estimates
        config, before = self._config, self._corrections
        after = before.after(late, imu, config) if wanted else NO_CORRECTIONS
        if after == before:
            return
        self._corrections = after
        was, now = before.applied_to(config), after.applied_to(config)
        why = {
            "stamp_offset_s": f"the images were {late.late_s:.2f} ± {late.sigma_s:.2f} s late",
            "imu_yaw_offset_rad": f"the IMU's offset is {imu.offset_rad:.3f} ± {imu.sigma_rad:.3f} rad",
        }
        for name, reason in why.items():
            old, new = getattr(was, name), getattr(now, name)
            if new != old:
                reason = reason if wanted else "apply_estimates is false"
                _LOG.warning(
                    f"session.{name} is {new:.3f} from now on, was {old:.3f}: {reason}. The parameter still says "
                    f"{getattr(config, name):.3f}, which the next drive begins with"
                )
        moved_s = now.stamp_offset_s - was.stamp_offset_s
        if moved_s:
            # What the last image showed was true at another time. The pose is kept, and gets that time.
            self._rules.restamp(ns_from_s(moved_s))
            self._inputs.follow_from(stamp_ns + ns_from_s(moved_s))
            self._stamp_error.restamp(moved_s)

    def _warnings_now(self, config: SessionConfig) -> dict[str, str]:
        """What the drive so far shows to be set up wrongly: sentences by kind.

        The sentences hold numbers that change from image to image; each kind is logged once in a drive.
        """
        estimate, imu = self._stamp_error.estimate, self._imu_offset.estimate
        late = "stamps late" if estimate.late_s > 0 else "stamps early"
        found = {
            late: estimate.warning(config.stamp_offset_s),
            **self._camera.warnings,
            "imu offset": imu.warning(config.imu_yaw_offset_rad),
            **self._familiarity.warnings,
        }
        return {kind: warning for kind, warning in found.items() if warning is not None}

    def _committed(self, outcome: Outcome) -> Outcome:
        """The outcome, remembered for the images to come, unless a reset came while it was made."""
        with self._lock:
            if self._inputs.generation != self._generation:
                detail = "the session was reset while the image was localized"
                return Outcome(Rejection(outcome.image.stamp_ns, RejectionReason.RESET, detail), outcome.image)
            self._track = outcome.track
        if outcome.observation is not None and outcome.observation.distances is not None:
            self._familiarity.see(outcome.observation.distances)
        self._remember(outcome.result)
        place = self._place_seen(outcome)
        if place is not None and self._velocity is not None:
            self._estimate(place, self._velocity, None if outcome.query is None else outcome.query.heading)
        return outcome

    def _estimate(self, place: Place, velocity: Velocity, heading: Heading | None) -> None:
        """Take in where an image shows the vehicle. heading: that it was looked at with."""
        from_imu = heading is not None and heading.source is HeadingSource.IMU
        if from_imu:
            variance_rad2 = max(place.yaw_variance_rad2, FREE_YAW_SIGMA_RAD**2)
            place = dataclasses.replace(place, yaw_variance_rad2=variance_rad2)
        self._stamp_error.see(place, velocity)
        yaw = self._stamp_error.yaw
        if from_imu and heading is not None and yaw is not None:
            offset_rad = self._corrections.applied_to(self._config).imu_yaw_offset_rad
            self._imu_offset.see(*yaw, wrap_angle(heading.yaw_rad - offset_rad), self._way_m)

    def _follow_motion(self, stamp_ns: int, config: SessionConfig) -> tuple[Motion, StampDoubt]:
        """The motion since the last image, and how far its stamp may be wrong."""
        motion = self._inputs.take_motion(stamp_ns)
        self._stamp_error.move(motion)
        self._way_m += motion.distance_m
        self._camera.moved(motion)
        self._velocity = velocity = self._inputs.velocity(stamp_ns)
        moment_s2 = self._stamp_error.estimate.second_moment_s2(config.stamp_sigma_s)
        if velocity is None:
            speed_m_s, turn_rad_s = self._noise.speed_m_s, self._noise.turn_rad_s
            squares = np.diag(np.square([speed_m_s, speed_m_s, turn_rad_s]))
        else:
            squares = np.outer(velocity.vector, velocity.vector)
        return motion, StampDoubt(moment_s2, velocity, moment_s2 * squares)

    def _oriented(
        self, image: CameraImage, reading: Reading, config: SessionConfig
    ) -> tuple[CameraImage, Heading | None]:
        """The image with its tilt, and its heading."""
        imu, pose = reading.imu, reading.map_odometry
        if imu is not None and config.use_tilt:
            image = dataclasses.replace(image, roll_rad=imu.roll_rad, pitch_rad=imu.pitch_rad)
        assumed = self._localizer.config.heading_sigma_rad**2  # where the source brings no variance, but 0
        heading = None
        if config.heading_source == "constant":
            heading = Heading(config.heading_constant_rad, assumed, HeadingSource.CONSTANT)
        elif config.heading_source == "odometry" and pose is not None:
            heading = Heading(pose.yaw_rad, float(pose.covariance[2, 2]) or assumed, HeadingSource.ODOMETRY)
        elif config.heading_source == "imu" and imu is not None:
            yaw = wrap_angle(imu.yaw_rad + config.imu_yaw_offset_rad)
            heading = Heading(yaw, imu.yaw_variance_rad2 or assumed, HeadingSource.IMU)
        return image, heading

    def _start_from(self, pose: InitialPose, image_ns: int) -> int:
        """Follow the odometry from when an initial pose holds, at the latest the image's stamp. Returns that time."""
        start_ns = image_ns if pose.stamp_ns == 0 else min(pose.stamp_ns, image_ns)
        self._inputs.follow_from(start_ns)
        self._stamp_error.lose_pose()
        return start_ns

    # -- what the kinds of session differ in ----------------------------------------------------------------------

    @abc.abstractmethod
    def _initial_pose_problem(self) -> str | None:
        """Why an initial pose is of no use, or None."""

    @abc.abstractmethod
    def _localize(self, image: CameraImage, config: SessionConfig, known: Fix | Rejection | None) -> Outcome:
        """Localize an image that the rules let pass. known: its result, where that is known."""

    @abc.abstractmethod
    def _remember(self, result: Fix | Rejection) -> None:
        """Take in the result of an image."""

    @abc.abstractmethod
    def _place_seen(self, outcome: Outcome) -> Place | None:
        """Where the image that gave the outcome shows base_link by itself, if it is sure of that."""

    @abc.abstractmethod
    def _forget(self) -> None:
        """Forget all images."""
