"""A session that follows a drive with the tracker."""

from __future__ import annotations

import dataclasses
import time

from unifygeo_ros.core.records import CameraImage, Fix, Observation, Rejection
from unifygeo_ros.motion.stamp_error import Place
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.image_localizer import ImageLocalizer
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.sessions.session import LocalizationSession
from unifygeo_ros.tracking.tracker import Tracker


class SequenceSession(LocalizationSession):
    """A filter over the whole drive."""

    def __init__(self, localizer: ImageLocalizer, config: SessionConfig, tracker: Tracker) -> None:
        super().__init__(localizer, config, tracker.noise)
        self._tracker = tracker

    @property
    def tracker(self) -> Tracker:
        """For tests and measurements; it belongs to the thread that calls `locate`."""
        return self._tracker

    def _initial_pose_problem(self) -> str | None:
        return None

    def _forget(self) -> None:
        self._tracker.reset()

    def _localize(self, image: CameraImage, config: SessionConfig, known: Fix | Rejection | None) -> Outcome:
        tracker, stamp_ns = self._tracker, image.stamp_ns
        reading = self._inputs.read(stamp_ns)
        image, heading = self._oriented(image, reading, config)
        pose = reading.initial_pose
        if pose is not None:
            self._start_from(pose, stamp_ns)
            tracker.set_initial_pose(pose)
        motion, stamp = self._follow_motion(stamp_ns, config)
        start_s = time.perf_counter()
        plan = tracker.plan(motion, heading, self._localizer.config, stamp)
        planning_s = time.perf_counter() - start_s
        cpu_start_s = time.thread_time()
        observed = self._localizer.observe(image, plan.query)
        cpu_ms = (time.thread_time() - cpu_start_s) * 1e3
        if isinstance(observed, Rejection):
            return Outcome(tracker.skip(plan, observed), image, plan.query, None, tracker.status, cpu_ms)
        start_s = time.perf_counter()
        result = tracker.update(plan, observed)
        tracker_ms = (planning_s + time.perf_counter() - start_s) * 1e3
        return Outcome(_timed(result, observed, tracker_ms), image, plan.query, observed, tracker.status, cpu_ms)

    def _remember(self, result: Fix | Rejection) -> None:
        """The tracker remembers."""

    def _place_seen(self, outcome: Outcome) -> Place | None:
        return self._tracker.measured if isinstance(outcome.result, Fix) else None


def _timed(result: Fix | Rejection, observation: Observation, tracker_ms: float) -> Fix | Rejection:
    timings = {**observation.timings_ms, "tracker": tracker_ms}
    timings["total"] = timings.get("total", 0.0) + tracker_ms
    return dataclasses.replace(result, timings_ms=timings)
