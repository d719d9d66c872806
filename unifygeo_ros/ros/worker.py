"""The thread that localizes: newest image in, messages out."""

from __future__ import annotations

import threading
import time
import traceback
from typing import Any, Callable, Mapping

from unifygeo_ros.core.errors import InputError, UnifyGeoError
from unifygeo_ros.core.records import CameraImage, Fix, Rejection, RejectionReason
from unifygeo_ros.ros.health import Health
from unifygeo_ros.ros.inbox import Frame, Inbox
from unifygeo_ros.ros.outputs import Outlet
from unifygeo_ros.ros.sources import SourceWatch
from unifygeo_ros.ros.to_messages import PublicationError, check_fix
from unifygeo_ros.sessions.session import LocalizationSession

FUTURE_STAMP_S = 0.5
"""An image stamped further than this ahead of the node's clock is rejected. A simulated clock ticks coarsely, by up to
0.1 s, and clocks that are kept in step by NTP are closer than that."""


class Worker:
    """Takes the newest frame, localizes it and hands the result over, until it is stopped. No error ends it."""

    def __init__(
        self,
        session: LocalizationSession,
        outlet: Outlet,
        health: Health,
        watch: SourceWatch,
        decode: Callable[[Any], CameraImage | Rejection],
        log: Any,
        shutting_down: Callable[[], bool],
    ) -> None:
        """Start the thread.

        Args:
            session: What localizes.
            outlet: Where results go.
            health: Counts every image.
            watch: Judges the age of the other sources when an image is localized.
            decode: An image message to pixels, or why there are none; raises InputError.
            log: An rclpy logger.
            shutting_down: Whether errors are the middleware going away.
        """
        self.inbox = Inbox()
        self._session = session
        self._watch = watch
        self._decode_message = decode
        self._outlet = outlet
        self._health = health
        self._log = log
        self._shutting_down = shutting_down
        self._last_fix: tuple[int, int] | None = None  # session's resets, stamp
        # A daemon, so that an inference call that never returns cannot keep the process alive.
        self._thread = threading.Thread(target=self._run, name="localizer", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Finish the image in work and end the thread. Returns whether it ended in time."""
        self.inbox.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (frame := self.inbox.take()) is not None:
            try:
                self._process(frame)
            except Exception as error:  # one image's failure must not end the node; it is reported and counted
                if self._shutting_down():
                    return
                self._health.failed(f"{type(error).__name__}: {error}")
                self._log.error(str(error) if isinstance(error, UnifyGeoError) else traceback.format_exc())

    def _process(self, frame: Frame) -> None:
        taken_s, drive = time.monotonic(), self._health.drive
        image = self._refuse_future(frame) or self._decode(frame)
        decoded_s = time.monotonic()
        cpu_s = time.thread_time()
        if isinstance(image, Rejection):
            self._health.rejected(image)
            self._outlet.publish_outcome(image)
            return
        self._watch.image(image.stamp_ns)
        outcome = self._session.locate(image)
        result = outcome.result
        located_s = time.monotonic()
        if isinstance(result, Fix) and not self._publish(result):
            return
        self._outlet.follow(outcome)
        published_s = time.monotonic()
        self._outlet.publish_outcome(result)
        self._outlet.publish_visualization(image, outcome)
        end_s = time.monotonic()
        own_cpu_s = time.thread_time() - cpu_s - outcome.localizer_cpu_ms / 1e3
        self._health.localized(
            outcome,
            _prefixed("localizer.", outcome.timings_ms)
            | {
                "transport": frame.transport_s * 1e3,
                "queue": (taken_s - frame.arrived_s) * 1e3,
                "decode": (decoded_s - taken_s) * 1e3,
                "publish": (published_s - located_s) * 1e3,
                "visualization": (end_s - published_s) * 1e3,
                "own_cpu": own_cpu_s * 1e3,
                "arrival_to_fix": (published_s - frame.arrived_s) * 1e3,
            },
            drive,
        )

    def _refuse_future(self, frame: Frame) -> Rejection | None:
        if frame.transport_s >= -FUTURE_STAMP_S:
            return None
        detail = (
            f"stamped {-frame.transport_s:.3f} s ahead of the node's clock, more than {FUTURE_STAMP_S:g} s; "
            "synchronise the clocks (with use_sim_time, see that /clock is published)"
        )
        return Rejection(frame.stamp_ns, RejectionReason.BAD_STAMP, detail)

    def _decode(self, frame: Frame) -> CameraImage | Rejection:
        try:
            return self._decode_message(frame.message)
        except InputError as error:
            return Rejection(frame.stamp_ns, RejectionReason.BAD_IMAGE, str(error))

    def _publish(self, fix: Fix) -> bool:
        """Let a fix out if the guard lets it pass. Returns whether it did."""
        # After time has gone back the session has restarted, so an earlier stamp is valid.
        epoch = self._session.status().resets
        last_ns = self._last_fix[1] if self._last_fix is not None and self._last_fix[0] == epoch else None
        try:
            check_fix(fix, last_ns)
        except PublicationError as error:
            self._health.not_published(str(error))
            self._log.error(f"A fix was not published: {error}")
            return False
        self._last_fix = (epoch, fix.stamp_ns)
        self._outlet.publish_fix(fix)
        return True


def _prefixed(prefix: str, timings_ms: Mapping[str, float]) -> dict[str, float]:
    return {prefix + stage: milliseconds for stage, milliseconds in timings_ms.items()}
