"""No fix before the drive has confirmed the camera's mount: which images are compared, and what follows from it."""

from __future__ import annotations

import dataclasses
import math
import time

from unifygeo_ros.core.records import Fix, Heading, HeadingSource, Rejection, RejectionReason
from unifygeo_ros.localization.camera_alternatives import CORRELATION_M, LEAST_NEW, LEAST_TELLING, CameraWatch
from unifygeo_ros.motion.increments import Motion, share_new
from unifygeo_ros.sessions.image_localizer import ImageLocalizer
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.tracking.track import TrackState

_LOOKED_AT = frozenset(
    {
        RejectionReason.LOW_SCORE,
        RejectionReason.AMBIGUOUS,
        RejectionReason.UNCERTAIN,
        RejectionReason.PRIOR_CONFLICT,
        RejectionReason.SEARCHING,
        RejectionReason.LOST,
        RejectionReason.CAMERA_MISMATCH,
    }
)
"""Rejections of images that are as they should be."""


class CameraCheck:
    """The camera's mount on one drive (`unifygeo_ros.localization.camera_alternatives`). For one thread."""

    def __init__(self, localizer: ImageLocalizer, every: int) -> None:
        """Begin a drive. every: as of `CameraWatch`."""
        self._localizer = localizer
        self._every = every
        self._begin()

    def _begin(self) -> None:
        self._watch = CameraWatch(self._every)
        self._by_track = False  # images were compared under the heading of a track
        self._uncompared_m = math.inf  # driven since an image was compared

    def moved(self, motion: Motion) -> None:
        """Take in the way to the next image."""
        self._uncompared_m += motion.distance_m
        if not motion.measured:  # as far as the vehicle may have driven in the gaps
            self._uncompared_m += math.sqrt(float(motion.covariance[0, 0]))

    def checked(self, outcome: Outcome) -> Outcome:
        """The outcome, without its fix where the drive has not confirmed the camera's mount, or contradicts it."""
        result = outcome.result
        heading = None if outcome.query is None else outcome.query.heading
        state = None if outcome.track is None else outcome.track.state
        given_up = state is TrackState.LOST or (heading is None and state is not TrackState.TRACKING)
        if given_up and self._by_track:  # the next place may have another heading
            self._begin()
        if heading is None or not (isinstance(result, Fix) or result.reason in _LOOKED_AT):
            return outcome
        by_track = heading.source is HeadingSource.TRACK
        if by_track and given_up:
            return outcome
        # An image that shows too little is not compared. It does not end what images that showed more have said.
        telling = outcome.observation is None or outcome.observation.seen.azimuth >= LEAST_TELLING
        self._by_track |= by_track and telling
        if telling:
            result = self._compared(outcome, heading)
        problem = self._watch.problem if telling else self._watch.warning
        if isinstance(result, Fix) and problem is not None:
            reason = RejectionReason.CAMERA_MISMATCH
            result = Rejection(result.stamp_ns, reason, problem, result.hypotheses, result.timings_ms)
        return dataclasses.replace(outcome, result=result)

    def _compared(self, outcome: Outcome, heading: Heading) -> Fix | Rejection:
        """The result, with the time that the comparison took, if the image shows enough that is new."""
        result, observation = outcome.result, outcome.observation
        new_share = share_new(self._uncompared_m, CORRELATION_M)
        alternatives = self._watch.due(outcome.image, self._localizer.mount) if new_share >= LEAST_NEW else ()
        if not alternatives:
            return result
        start_s = time.perf_counter()
        features = None if observation is None else observation.features
        prior = None if outcome.query is None else outcome.query.prior
        log_odds = self._localizer.camera_fits(outcome.image, heading, alternatives, features, prior)
        self._watch.compared(log_odds, new_share)
        self._uncompared_m = 0.0
        elapsed_ms = (time.perf_counter() - start_s) * 1e3
        total_ms = result.timings_ms.get("total", 0.0) + elapsed_ms
        return dataclasses.replace(
            result, timings_ms={**result.timings_ms, "camera_check": elapsed_ms, "total": total_ms}
        )

    @property
    def warnings(self) -> dict[str, str]:
        """What the camera looks like instead, in words; none, or one by its kind."""
        found, warning = self._watch.verdict, self._watch.warning
        if found is None or warning is None:
            return {}
        if self._by_track and found.turn_rad:
            return {}  # it is the track whose heading is wrong
        return {f"camera {found.words}": warning}
