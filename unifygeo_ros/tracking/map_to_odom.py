"""The pose of base_link now, and map → odom as REP 105 defines it, from the track and the odometry.

    image ─► fix ─► the track's pose at the image's stamp ─┐
                                                           ├─► pose now ─► corrections faded in ─► map → odom
    odometry ───────────────────────────────────────────── ┘

Between images the pose follows the odometry as the tracker's own prediction does, with the odometry's estimated scale.
A new fix corrects the past, and with it the present: `MapToOdom` fades the correction in, so that a controller sees no
step, unless it is so large that the vehicle was somewhere else.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.covariance import symmetric
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.core.settings import check_settings, setting
from unifygeo_ros.core.time import s_from_ns
from unifygeo_ros.motion.increments import UNIFORM_YAW_VARIANCE, MotionNoise
from unifygeo_ros.motion.samples import BufferLimits, MotionBuffer, OdometrySample
from unifygeo_ros.tracking.belief import Belief
from unifygeo_ros.tracking.clusters import Cluster
from unifygeo_ros.tracking.dead_reckoning import DeadReckoning
from unifygeo_ros.tracking.region import Region
from unifygeo_ros.tracking.track import TrackState, TrackStatus

JUMP_RAD = 0.5
"""A correction of the yaw beyond this is made at once, as one beyond `MapToOdomConfig.jump_m` is."""

NO_OFFSET = Pose2(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class MapToOdomConfig:
    """Settings of ~/pose and of map → odom."""

    when_lost: str = setting(
        "widen",
        "what becomes of ~/pose and map → odom while the track is lost: hold (odometry alone carries them on), widen "
        "(the same, and the covariance of ~/pose is that of the whole belief), stop (both end until the next fix)",
        choices=("hold", "widen", "stop"),
        live=True,
    )
    lost_after_s: float = setting(
        10.0,
        "the track counts as lost after this long without a fix",
        minimum=0.1,
        maximum=3600.0,
        live=True,
        advanced=True,
    )
    smoothing_s: float = setting(
        0.5,
        "time constant with which map → odom takes in a correction; 0: at once",
        minimum=0.0,
        maximum=60.0,
        live=True,
        acts="publish_tf",
        advanced=True,
    )
    jump_m: float = setting(
        5.0,
        "a correction further than this is made at once: the vehicle was somewhere else",
        minimum=0.0,
        maximum=1e6,
        live=True,
        acts="publish_tf",
        advanced=True,
    )
    tolerance_s: float = setting(
        0.0,
        "map → odom is stamped this far ahead of the odometry, as AMCL's transform_tolerance: for users of TF who ask "
        "for the present and do not wait",
        minimum=0.0,
        maximum=10.0,
        live=True,
        acts="publish_tf",
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class PoseNow:
    """Where base_link is at the stamp of an odometry sample."""

    stamp_ns: int
    pose: Pose2
    """In the map frame: the best estimate, which steps with each correction."""
    covariance: Float64
    """float64 (3, 3) of east (m), north (m), yaw (rad)."""
    map_to_odom: Pose2
    """The pose of the odometry's frame in the map frame: smooth."""


@dataclass(frozen=True)
class PoseStatus:
    """For the diagnostics."""

    state: str
    """no fix yet, tracking or lost."""
    reason: str
    """Why it is lost; empty where it is not."""
    fix_age_s: float | None
    """From the last fix's image to the newest odometry; None before the first fix."""
    jumps: int
    """Corrections that were made at once."""


class MapToOdom:
    """Takes images' outcomes and odometry, each from any thread, and gives the pose at each odometry sample."""

    def __init__(self, config: MapToOdomConfig, limits: BufferLimits, noise: MotionNoise, region: Region) -> None:
        self.config = config
        self._region = region
        self._lock = threading.Lock()
        self._odometry: MotionBuffer[OdometrySample] = MotionBuffer(limits)
        self._track = DeadReckoning(self._odometry, noise)
        self._whole = DeadReckoning(self._odometry, noise)
        """The whole belief, followed for when_lost: widen."""
        self._jumps = 0
        self._fix_ns: int | None = None
        self._lost_reason = ""
        self._offset = NO_OFFSET
        """What map → odom has not taken in yet: the pose that it gives minus the best estimate, each coordinate."""
        self._map_to_odom: Pose2 | None = None
        self._faded_ns: int | None = None
        self._given_ns = 0

    def reset(self) -> None:
        """Forget the drive: nothing is given until the next fix."""
        with self._lock:
            self._odometry.clear()
            self._forget()

    def image(self, stamp_ns: int, *, fixed: bool, track: TrackStatus | None) -> None:
        """Take in what an image said.

        Args:
            stamp_ns: Time of exposure.
            fixed: Whether it gave a fix: only then the track's pose has passed all gates.
            track: Of the tracker after the image; None: there was none.
        """
        if track is None:
            return
        with self._lock:
            self._lost_reason = "" if track.state is TrackState.TRACKING else track.reason
            self._whole.start(stamp_ns, track.belief)
            if fixed and track.cluster is not None and self._track.start(stamp_ns, _belief_of(track.cluster)):
                self._fix_ns = stamp_ns
                self._correct()

    def odometry(self, sample: OdometrySample) -> PoseNow | None:
        """The pose at a sample of drifting odometry.

        None before the first fix, while stopped, and for a sample that is refused or not newer than the last.
        """
        with self._lock:
            before = self._odometry.newest
            if self._odometry.add(sample) is not None:
                return None
            if before is not None and sample.stamp_ns <= before.stamp_ns:
                self._forget()  # time was set back, and the buffer has forgotten its samples, too
                return None
            for reckoning in (self._track, self._whole):
                reckoning.follow(sample)
            belief = self._track.belief()
            if belief is None or not len(belief):  # it may have grown wider than the Earth
                return None
            at, lost = self._track.newest, bool(self._why_lost())
            if lost and self.config.when_lost == "stop":
                self._map_to_odom = None
                return None
            pose = _pose_of(belief)
            self._fade(at.stamp_ns)
            self._map_to_odom = _shifted(pose, self._offset).compose(at.pose.inverse())
            if at.stamp_ns <= self._given_ns:
                return None
            self._given_ns = at.stamp_ns
            covariance = belief.covariances[0, :3, :3]
            if lost and self.config.when_lost == "widen" and (whole := self._whole.belief()) is not None:
                covariance = _spread_about(pose, whole, self._region)
            return PoseNow(at.stamp_ns, pose, symmetric(covariance), self._map_to_odom)

    def status(self) -> PoseStatus:
        with self._lock:
            if self._fix_ns is None:
                return PoseStatus("no fix yet", "", None, self._jumps)
            reason = self._why_lost()
            return PoseStatus("lost" if reason else "tracking", reason, self._fix_age_s(), self._jumps)

    # -- with the lock held ---------------------------------------------------------------------------------------

    def _forget(self) -> None:
        for reckoning in (self._track, self._whole):
            reckoning.stop()
        self._fix_ns = self._map_to_odom = self._faded_ns = None
        self._lost_reason, self._offset, self._given_ns = "", NO_OFFSET, 0

    def _fix_age_s(self) -> float:
        newest = self._odometry.newest
        return 0.0 if newest is None or self._fix_ns is None else s_from_ns(newest.stamp_ns - self._fix_ns)

    def _why_lost(self) -> str:
        """In words; empty where it is not lost."""
        age_s, limit_s = self._fix_age_s(), self.config.lost_after_s
        return self._lost_reason or (
            f"no fix for {age_s:.1f} s, lost_after_s is {limit_s:g}" if age_s > limit_s else ""
        )

    def _correct(self) -> None:
        """The estimate has changed: the offset is what keeps map → odom where it was."""
        belief = self._track.belief()
        self._offset = NO_OFFSET
        if self._map_to_odom is None or belief is None or not len(belief):
            return
        given = self._map_to_odom.compose(self._track.newest.pose)
        best = _pose_of(belief)
        offset = Pose2(given.x_m - best.x_m, given.y_m - best.y_m, wrap_angle(given.yaw_rad - best.yaw_rad))
        if math.hypot(offset.x_m, offset.y_m) > self.config.jump_m or abs(offset.yaw_rad) > JUMP_RAD:
            self._jumps += 1
        else:
            self._offset = offset

    def _fade(self, stamp_ns: int) -> None:
        time_s = 0.0 if self._faded_ns is None else s_from_ns(stamp_ns - self._faded_ns)
        self._faded_ns = stamp_ns
        kept = math.exp(-time_s / self.config.smoothing_s) if self.config.smoothing_s > 0 else 0.0
        offset = self._offset
        self._offset = replace(offset, x_m=kept * offset.x_m, y_m=kept * offset.y_m, yaw_rad=kept * offset.yaw_rad)


def _belief_of(cluster: Cluster) -> Belief:
    """The cluster as the only hypothesis."""
    return Belief(
        np.ones(1),
        cluster.mean[None],
        cluster.covariance[None],
        np.array([cluster.support]),
        np.array([cluster.tile_id]),
        0.0,
    )


def _pose_of(belief: Belief) -> Pose2:
    east_m, north_m, yaw_rad = (float(value) for value in belief.means[0, :3])
    return Pose2(east_m, north_m, yaw_rad)


def _shifted(pose: Pose2, offset: Pose2) -> Pose2:
    return Pose2(pose.x_m + offset.x_m, pose.y_m + offset.y_m, wrap_angle(pose.yaw_rad + offset.yaw_rad))


def _spread_about(pose: Pose2, belief: Belief, region: Region) -> Float64:
    """Second moments about a pose, float64 (3, 3): the covariance of an estimate that stays there whatever is true."""
    offsets = belief.means[:, :3] - np.array([pose.x_m, pose.y_m, pose.yaw_rad])
    offsets[:, 2] = wrap_angle(offsets[:, 2])
    each = belief.covariances[:, :3, :3] + offsets[:, :, None] * offsets[:, None, :]
    mean_m, covariance_m2 = region.moments
    away_m = mean_m - np.array([pose.x_m, pose.y_m])
    anywhere = np.zeros((3, 3))
    anywhere[:2, :2] = covariance_m2 + np.outer(away_m, away_m)
    anywhere[2, 2] = UNIFORM_YAW_VARIANCE
    spread = np.einsum("n,nij->ij", belief.weights, each) + belief.uniform_weight * anywhere
    return np.asarray(spread / belief.total)
