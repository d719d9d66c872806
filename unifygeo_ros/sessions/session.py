"""One drive: what the node and the replay share between the messages and the localizer.

A session keeps the recent odometry and IMU samples, builds each image's prior, heading and tilt from the configured
sources at the image's own stamp, keeps the rules about time, and calls the localizer. It is deterministic: the same
calls in the same order give the same fixes.

Threads: `add_odometry`, `add_imu`, `set_initial_pose`, `reset`, `reconfigure` and `status` may be called from any
thread and never wait for an image being localized. `locate` belongs to one thread at a time and holds no lock while
the localizer works; it works on what had arrived when it was called.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import Mapping, Protocol

import numpy as np

from unifygeo_ros.aerial.index import TileIndex
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import (
    CameraImage,
    Fix,
    Heading,
    HeadingSource,
    Observation,
    Prior,
    Query,
    Rejection,
    RejectionReason,
)
from unifygeo_ros.core.settings import check_only_live_changed, check_settings, setting
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.motion.increments import NO_MOTION, Motion, MotionNoise, motion_between
from unifygeo_ros.motion.samples import (
    MAP_FRAME,
    NS_PER_S,
    ODOM_FRAME,
    BufferLimits,
    Float64,
    ImuSample,
    InitialPose,
    MotionBuffer,
    OdometrySample,
    roll_pitch_yaw,
)
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.tracker import Tracker, TrackStatus, region_of

__all__ = [
    "MAP_FRAME",
    "ODOM_FRAME",
    "ImageLocalizer",
    "ImuSample",
    "InitialPose",
    "LocalizationSession",
    "OdometrySample",
    "SessionConfig",
    "SessionStatus",
    "roll_pitch_yaw",
]


@dataclass(frozen=True)
class SessionConfig:
    """Settings of a session: where prior and heading come from, and the rules about time."""

    mode: str = setting(
        "single",
        "single: each image for itself; sequence: a filter over the whole drive",
        choices=("single", "sequence"),
    )
    prior_source: str = setting(
        "none",
        "what limits the search: none (the whole index), odometry (its pose in the map frame), "
        "last_fix (the last fix, or an initial pose, carried on by odometry where there is some)",
        choices=("none", "odometry", "last_fix"),
        acts="mode single",
    )
    heading_source: str = setting(
        "none",
        "what orients the panorama: none (searched for), odometry (its yaw in the map frame), imu, constant",
        choices=("none", "odometry", "imu", "constant"),
    )
    heading_constant_rad: float = setting(
        0.0,
        "yaw of base_link in the map frame for heading_source constant, counter-clockwise from east",
        minimum=-math.pi,
        maximum=math.pi,
        acts="heading_source constant",
    )
    imu_yaw_offset_rad: float = setting(
        0.0,
        "added to the IMU's yaw to make it counter-clockwise from true east (declination, mounting)",
        minimum=-math.pi,
        maximum=math.pi,
        acts="heading_source imu",
    )
    use_tilt: bool = setting(
        True, "level the panorama by the IMU's roll and pitch where there is an IMU", acts="with an IMU"
    )
    prior_sigma_m: float = setting(
        5.0,
        "standard deviation added in quadrature to each axis of the odometry's position, since a filter's own "
        "covariance is optimistic",
        minimum=0.1,
        maximum=10_000.0,
        acts="prior_source odometry",
    )
    odometry_growth: float = setting(
        0.05,
        "error of the odometry per distance, standard deviation in metres per metre",
        minimum=0.0,
        maximum=1.0,
        acts="prior_source last_fix",
    )
    speed_sigma_m_s: float = setting(
        10.0,
        "speed assumed for a vehicle without usable odometry, standard deviation",
        minimum=0.1,
        maximum=100.0,
        advanced=True,
    )
    last_fix_age_s: float = setting(
        30.0, "age at which the last fix is no longer a prior", minimum=0.1, maximum=3600.0, advanced=True
    )
    last_fix_failures: int = setting(
        3,
        "images rejected in a row after which the last fix is no longer a prior",
        minimum=1,
        maximum=1000,
        advanced=True,
    )
    stamp_offset_s: float = setting(
        0.0,
        "added to the images' stamps to get the time of exposure; a driver that stamps late needs a negative one",
        minimum=-10.0,
        maximum=10.0,
    )
    minimum_interval_s: float = setting(
        0.0, "images closer than this to the last one localized are passed over", minimum=0.0, maximum=3600.0, live=True
    )
    time_jump_s: float = setting(
        1.0,
        "an image whose stamp lies back by more than this starts the session anew",
        minimum=0.01,
        maximum=60.0,
        advanced=True,
    )
    buffer_age_s: float = setting(
        30.0, "odometry and IMU samples are kept this long", minimum=1.0, maximum=600.0, advanced=True
    )
    sample_gap_s: float = setting(
        0.5,
        "samples further apart are a gap: nothing is interpolated across it",
        minimum=0.01,
        maximum=10.0,
        advanced=True,
    )
    extrapolation_s: float = setting(
        0.2,
        "how far an image may be ahead of the newest sample for it still to be used",
        minimum=0.0,
        maximum=10.0,
        acts="with odometry or IMU",
    )
    frozen_distance_m: float = setting(
        0.5,
        "an image repeated pixel by pixel while the odometry moved this far is frozen",
        minimum=0.01,
        maximum=100.0,
        advanced=True,
    )
    frozen_repeats: int = setting(
        3,
        "without odometry, repetitions of an image after which it is frozen",
        minimum=1,
        maximum=10_000,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.mode == "sequence" and self.prior_source != "none":
            raise ConfigurationError(
                f"prior_source is {self.prior_source} in mode sequence, which carries its own prior; set it to none"
            )

    @property
    def buffer_limits(self) -> BufferLimits:
        def ns(seconds: float) -> int:
            return round(seconds * NS_PER_S)

        return BufferLimits(
            ns(self.buffer_age_s), ns(self.sample_gap_s), ns(self.extrapolation_s), ns(self.time_jump_s)
        )


class ImageLocalizer(Protocol):
    """What a session needs of `unifygeo_ros.localization.localizer.Localizer`."""

    @property
    def config(self) -> LocalizerConfig: ...

    @property
    def index(self) -> TileIndex: ...

    @property
    def bundle(self) -> ModelBundle: ...

    @property
    def mount(self) -> CameraMount: ...

    def observe(self, image: CameraImage, query: Query) -> Observation | Rejection: ...

    def decide(self, observation: Observation, query: Query) -> Fix | Rejection: ...


@dataclass(frozen=True)
class SessionStatus:
    """For the diagnostics.

    refused: how many inputs were refused, by "source: reason". outcomes: how many images ended as "fix" or as which
    rejection. resets: how often the session started anew. odometry_ns, imu_ns: newest stamps in the buffers or None.
    track: of the tracker in mode sequence, as after the last image.
    """

    refused: Mapping[str, int]
    outcomes: Mapping[str, int]
    resets: int
    odometry_ns: int | None
    imu_ns: int | None
    track: TrackStatus | None = None


@dataclass(frozen=True)
class _Anchor:
    """A pose of base_link that the next prior can start from. covariance: float64 (3, 3), east (m), north (m), yaw."""

    stamp_ns: int
    east_m: float
    north_m: float
    yaw_rad: float
    covariance: Float64


class _Inputs:
    """The samples, shared between threads under one lock; the lock is held for well under a millisecond only."""

    def __init__(self, limits: BufferLimits, noise: MotionNoise) -> None:
        self.lock = threading.Lock()
        self.map_odometry: MotionBuffer[OdometrySample] = MotionBuffer(limits)
        self.odometry: MotionBuffer[OdometrySample] = MotionBuffer(limits)
        self.imu: MotionBuffer[ImuSample] = MotionBuffer(limits)
        self.initial_pose: InitialPose | None = None
        self.generation = 0
        self.refused: Counter[str] = Counter()
        self._noise = noise
        self._motion, self._followed_s = NO_MOTION, 0.0
        self._reached_ns: int | None = None  # up to which time `_motion` goes; None: nobody follows the motion

    def follow_from(self, stamp_ns: int | None) -> None:
        """Add up the odometry's motion from a stamp on, however long that takes."""
        self._motion, self._followed_s, self._reached_ns = NO_MOTION, 0.0, stamp_ns

    def motion_to(self, stamp_ns: int) -> tuple[Motion, float]:
        """The motion since `follow_from` and its duration in seconds, which go on from here."""
        if self._reached_ns is not None and stamp_ns > self._reached_ns:
            self._follow_to(stamp_ns)
        motion, time_s = self._motion, self._followed_s
        self._motion, self._followed_s = NO_MOTION, 0.0
        return motion, time_s

    def keep_up(self) -> None:
        """Take in the motion before the buffer drops its samples: images may stay away for longer than it reaches."""
        newest = self.odometry.newest
        if newest is not None and self._reached_ns is not None:
            behind = newest.stamp_ns - self._reached_ns
            if behind > self.odometry.limits.age // 2:
                self._follow_to(newest.stamp_ns - self.odometry.limits.age // 4)

    def _follow_to(self, stamp_ns: int) -> None:
        assert self._reached_ns is not None
        later = motion_between(self.odometry, self._reached_ns, stamp_ns, self._noise)
        self._motion = self._motion.then(later)
        self._followed_s += (stamp_ns - self._reached_ns) / NS_PER_S
        self._reached_ns = stamp_ns


class LocalizationSession:
    """Fixes of one drive, image by image. See the module's docstring for the rules about threads."""

    def __init__(
        self, localizer: ImageLocalizer, config: SessionConfig, tracker_config: TrackerConfig | None = None
    ) -> None:
        """tracker_config: for mode sequence."""
        self._localizer = localizer
        self._config = config
        tracker_config = tracker_config or TrackerConfig()
        self._inputs = _Inputs(config.buffer_limits, tracker_config.noise)
        self._tracker: Tracker | None = None
        if config.mode == "sequence":
            manifest, mount = localizer.bundle.manifest, localizer.mount
            region = region_of(localizer.index)
            lever_m = (mount.x_m, mount.y_m)
            self._tracker = Tracker(region, manifest.calibration, localizer.config, tracker_config, lever_m)
        self._track: TrackStatus | None = None
        self._outcomes: Counter[str] = Counter()
        self._generation = 0
        self._start_anew()

    # -- inputs, from any thread ----------------------------------------------------------------------------------

    def add_odometry(self, sample: OdometrySample) -> str | None:
        """Take in odometry. Returns why it was refused (and counts that), or None."""
        with self._inputs.lock:
            buffer = self._inputs.map_odometry if sample.frame == MAP_FRAME else self._inputs.odometry
            fault = buffer.add(sample)
            self._inputs.keep_up()
            return self._count_refusal("odometry", fault)

    def add_imu(self, sample: ImuSample) -> str | None:
        """Take in an IMU sample. Returns why it was refused (and counts that), or None."""
        with self._inputs.lock:
            return self._count_refusal("imu", self._inputs.imu.add(sample))

    def set_initial_pose(self, pose: InitialPose) -> str | None:
        """Start from a pose with the next image. Returns why it was refused (and counts that), or None."""
        with self._inputs.lock:
            fault = pose.fault()
            if fault is None and self._tracker is None and self._config.prior_source != "last_fix":
                fault = f"of no use with prior_source {self._config.prior_source} in mode single"
            if fault is None:
                self._inputs.initial_pose = pose
            return self._count_refusal("initial pose", fault)

    def reset(self) -> None:
        """Forget the drive: samples, last fix, last image. The result of an image being localized is dropped."""
        with self._inputs.lock:
            for buffer in (self._inputs.map_odometry, self._inputs.odometry, self._inputs.imu):
                buffer.clear()
            self._inputs.initial_pose = None
            self._inputs.generation += 1
            self._track = None

    def reconfigure(self, config: SessionConfig) -> None:
        """Use other live settings from the next image on. The others must be as they were."""
        check_only_live_changed(self._config, config, "session")
        self._config = config

    def status(self) -> SessionStatus:
        with self._inputs.lock:
            newest = [b.newest for b in (self._inputs.odometry, self._inputs.map_odometry)]
            stamps = [sample.stamp_ns for sample in newest if sample is not None]
            imu = self._inputs.imu.newest
            return SessionStatus(
                refused=MappingProxyType(dict(self._inputs.refused)),
                outcomes=MappingProxyType(dict(self._outcomes)),
                resets=self._inputs.generation,
                odometry_ns=max(stamps, default=None),
                imu_ns=None if imu is None else imu.stamp_ns,
                track=self._track,
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
        config = self._config
        image = dataclasses.replace(image, stamp_ns=image.stamp_ns + round(config.stamp_offset_s * NS_PER_S))
        refusal = self._refuse_by_time(image, config) or self._refuse_frozen(image, config)
        if refusal is not None:
            outcome = Outcome(refusal, image)
        elif self._tracker is not None:
            outcome = self._commit(self._follow(self._tracker, image, config))
        else:
            image, query = self._prepare(image, config)
            outcome = Outcome(known, image, query) if known is not None else self._localize(image, query)
            outcome = self._commit(outcome)
        with self._inputs.lock:
            result = outcome.result
            self._outcomes["fix" if isinstance(result, Fix) else result.reason.value] += 1
            return dataclasses.replace(outcome, track=self._track)

    def _localize(self, image: CameraImage, query: Query) -> Outcome:
        start_s = time.thread_time()
        observed = self._localizer.observe(image, query)
        result = observed if isinstance(observed, Rejection) else self._localizer.decide(observed, query)
        cpu_ms = (time.thread_time() - start_s) * 1e3
        return Outcome(
            result, image, query, None if isinstance(observed, Rejection) else observed, localizer_cpu_ms=cpu_ms
        )

    def _start_anew(self) -> None:
        self._last_stamp_ns: int | None = None
        self._last_located_ns: int | None = None
        self._anchor: _Anchor | None = None
        self._failures = 0
        self._last_image: tuple[int, int] | None = None  # checksum, stamp of its first appearance
        self._repeats = 0
        self._inputs.follow_from(None)
        if self._tracker is not None:
            self._tracker.reset()

    def _refuse_by_time(self, image: CameraImage, config: SessionConfig) -> Rejection | None:
        stamp = image.stamp_ns
        with self._inputs.lock:
            if self._inputs.generation != self._generation:
                self._generation = self._inputs.generation
                self._start_anew()
            if stamp <= 0:
                return Rejection(stamp, RejectionReason.BAD_STAMP, f"stamp {stamp} ns is not after 0; stamp the images")
            last = self._last_stamp_ns
            if last is not None and stamp <= last:
                back_s = (last - stamp) / NS_PER_S
                if back_s <= config.time_jump_s:
                    return Rejection(
                        stamp, RejectionReason.BAD_STAMP, f"stamp {back_s:.3f} s before the last image's; it is dropped"
                    )
                self._inputs.generation += 1
                self._generation = self._inputs.generation
                for buffer in (self._inputs.map_odometry, self._inputs.odometry, self._inputs.imu):
                    buffer.drop_after(stamp + round(config.time_jump_s * NS_PER_S))
                self._start_anew()
                self._track = None
        self._last_stamp_ns = stamp
        if self._last_located_ns is not None:
            interval_s = (stamp - self._last_located_ns) / NS_PER_S
            if interval_s < config.minimum_interval_s:
                return Rejection(
                    stamp,
                    RejectionReason.RATE_LIMIT,
                    f"{interval_s:.3f} s after the last image, minimum_interval_s is {config.minimum_interval_s:g}",
                )
        self._last_located_ns = stamp
        return None

    def _refuse_frozen(self, image: CameraImage, config: SessionConfig) -> Rejection | None:
        """An image whose pixels are those of the one before, while the vehicle moved or too often in a row."""
        # Every eighth row and column is enough: the noise of a live sensor changes some of them.
        checksum = zlib.crc32(image.pixels[::8, ::8].tobytes())
        if self._last_image is None or self._last_image[0] != checksum:
            self._last_image = (checksum, image.stamp_ns)
            self._repeats = 0
            return None
        self._repeats += 1
        with self._inputs.lock:
            motion = self._inputs.odometry.span(self._last_image[1], image.stamp_ns)
        if motion:
            moved_m = math.hypot(motion[-1].x_m - motion[0].x_m, motion[-1].y_m - motion[0].y_m)
            if moved_m < config.frozen_distance_m:
                return None
            detail = f"same pixels after {moved_m:.1f} m of odometry, frozen_distance_m is {config.frozen_distance_m:g}"
        elif self._repeats < config.frozen_repeats:
            return None
        else:
            detail = f"same pixels {self._repeats + 1} times in a row, frozen_repeats is {config.frozen_repeats}"
        return Rejection(image.stamp_ns, RejectionReason.FROZEN_IMAGE, detail)

    def _follow(self, tracker: Tracker, image: CameraImage, config: SessionConfig) -> Outcome:
        """One image of a sequence."""
        stamp = image.stamp_ns
        with self._inputs.lock:
            image, heading = self._oriented(image, config)
            pose, self._inputs.initial_pose = self._inputs.initial_pose, None
            if pose is not None:
                self._inputs.follow_from(min(pose.stamp_ns or stamp, stamp))
            motion, time_s = self._inputs.motion_to(stamp)
            self._inputs.follow_from(stamp)
        if pose is not None:
            tracker.set_initial_pose(pose)
        tracker.gates = self._localizer.config
        tracker.predict(motion, time_s)
        query = tracker.request(heading)
        start_s = time.thread_time()
        observed = self._localizer.observe(image, query)
        cpu_ms = (time.thread_time() - start_s) * 1e3
        if isinstance(observed, Rejection):
            return Outcome(tracker.missed(observed), image, query, None, tracker.status, cpu_ms)
        return Outcome(tracker.update(observed), image, query, observed, tracker.status, cpu_ms)

    def _prepare(self, image: CameraImage, config: SessionConfig) -> tuple[CameraImage, Query]:
        """What is known at the image's stamp: the image with its tilt, the prior, the heading."""
        with self._inputs.lock:
            pose = self._inputs.map_odometry.at(image.stamp_ns)
            image, heading = self._oriented(image, config)
            if self._inputs.initial_pose is not None:
                self._anchor = _anchor_of_pose(self._inputs.initial_pose, image.stamp_ns)
                self._inputs.initial_pose, self._failures = None, 0
            motion = [] if self._anchor is None else self._inputs.odometry.span(self._anchor.stamp_ns, image.stamp_ns)
        prior = None
        if config.prior_source == "odometry" and pose is not None:
            floor = config.prior_sigma_m**2 * np.eye(2)
            prior = Prior(pose.x_m, pose.y_m, pose.covariance[:2, :2] + floor)
        elif config.prior_source == "last_fix" and self._anchor is not None:
            age_s = (image.stamp_ns - self._anchor.stamp_ns) / NS_PER_S
            if 0 <= age_s <= config.last_fix_age_s and self._failures < config.last_fix_failures:
                prior = _carry_on(self._anchor, motion, age_s, config)
        return image, Query(prior, heading)

    def _oriented(self, image: CameraImage, config: SessionConfig) -> tuple[CameraImage, Heading | None]:
        """The image with its tilt, and its heading, from the samples at its stamp. Called with the lock held."""
        imu = self._inputs.imu.at(image.stamp_ns)
        pose = self._inputs.map_odometry.at(image.stamp_ns)
        if imu is not None and config.use_tilt:
            image = dataclasses.replace(image, roll_rad=imu.roll_rad, pitch_rad=imu.pitch_rad)
        assumed = self._localizer.config.heading_sigma_rad**2
        heading = None
        if config.heading_source == "constant":
            heading = Heading(config.heading_constant_rad, assumed, HeadingSource.CONSTANT)
        elif config.heading_source == "odometry" and pose is not None:
            heading = Heading(pose.yaw_rad, float(pose.covariance[2, 2]) or assumed, HeadingSource.ODOMETRY)
        elif config.heading_source == "imu" and imu is not None:
            yaw = wrap_angle(imu.yaw_rad + config.imu_yaw_offset_rad)
            heading = Heading(yaw, imu.yaw_variance_rad2 or assumed, HeadingSource.IMU)
        return image, heading

    def _commit(self, outcome: Outcome) -> Outcome:
        """Remember the result for the images to come, unless a reset came while it was made."""
        result = outcome.result
        with self._inputs.lock:
            if self._inputs.generation != self._generation:
                detail = "the session was reset while the image was localized"
                return Outcome(Rejection(result.stamp_ns, RejectionReason.RESET, detail), outcome.image)
            self._track = outcome.track
        if isinstance(result, Fix):
            covariance = np.zeros((3, 3))
            covariance[:2, :2], covariance[2, 2] = result.covariance_m2, result.yaw_variance_rad2
            self._anchor = _Anchor(result.stamp_ns, result.east_m, result.north_m, result.yaw_rad, covariance)
            self._failures = 0
        else:
            self._failures += 1
        return outcome

    def _count_refusal(self, source: str, reason: str | None) -> str | None:
        if reason is not None:
            self._inputs.refused[f"{source}: {reason}"] += 1
        return reason


def _anchor_of_pose(pose: InitialPose, image_ns: int) -> _Anchor:
    return _Anchor(pose.stamp_ns or image_ns, pose.east_m, pose.north_m, pose.yaw_rad, np.asarray(pose.covariance))


def _carry_on(anchor: _Anchor, motion: list[OdometrySample], age_s: float, config: SessionConfig) -> Prior:
    """The prior that an anchor becomes after some motion (odometry in its own frame, both ends included; empty: none).

    The odometry's displacement is turned from its frame into the map by the anchor's yaw; that yaw's error moves the
    end sideways by distance × error.
    """
    covariance = np.array(anchor.covariance[:2, :2])
    if not motion:
        spread = config.speed_sigma_m_s * age_s
        return Prior(anchor.east_m, anchor.north_m, covariance + spread**2 * np.eye(2))
    turn = anchor.yaw_rad - motion[0].yaw_rad
    cos, sin = math.cos(turn), math.sin(turn)
    dx, dy = motion[-1].x_m - motion[0].x_m, motion[-1].y_m - motion[0].y_m
    east, north = cos * dx - sin * dy, sin * dx + cos * dy
    length = sum(math.hypot(b.x_m - a.x_m, b.y_m - a.y_m) for a, b in itertools.pairwise(motion))
    sideways = np.array([-north, east])
    covariance += (config.odometry_growth * length) ** 2 * np.eye(2)
    covariance += anchor.covariance[2, 2] * np.outer(sideways, sideways)
    return Prior(anchor.east_m + east, anchor.north_m + north, covariance)
