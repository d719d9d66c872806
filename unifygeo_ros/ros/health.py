"""What the node counts while it runs, and the diagnostics made from it.

Not with diagnostic_updater: it is not on PyPI, and would replace only the few lines of `_status`.

Everything may be called from any thread. Levels: OK means that the thing works, WARN that it works but not with the
last input, ERROR that no fix can come until the fault is repaired.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Mapping, Sequence

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from unifygeo_ros.conversions.message_values import outcome_diagnostic
from unifygeo_ros.core.covariance import semi_major_sigma
from unifygeo_ros.core.records import Fix, Rejection, RejectionReason
from unifygeo_ros.motion.imu_offset import UNKNOWN_OFFSET
from unifygeo_ros.motion.stamp_error import UNKNOWN
from unifygeo_ros.ros.sources import RATE_WINDOW_S, SourceReport
from unifygeo_ros.sessions.corrections import NO_CORRECTIONS
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.tracking.track import TrackStatus

REFUSAL_SHOWN_S = 5.0
"""How long a refused odometry, IMU or pose message is shown as a warning."""

LATENCY_WINDOW = 300
"""Images over which latencies are summed up: ten seconds at 30 Hz."""

MIN_LATENCIES = 10
"""Latencies of fewer images are not judged: the first ones of a busy machine are slow."""

_IMAGE = "_image"
FAULTY_IMAGES = {
    reason: reason.value.removesuffix(_IMAGE) for reason in RejectionReason if reason.value.endswith(_IMAGE)
}
"""Rejections caused by the camera, found by their names, and the word for such images: black_image, "black"."""


@dataclass
class _Counts:
    """Numbers since the node was started."""

    images: int = 0
    ignored: int = 0
    dropped: int = 0
    lost: int = 0
    fixes: int = 0
    rejections: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    """Last sentence by rejection reason."""
    refused_inputs: Counter[str] = field(default_factory=Counter)
    unpublished: int = 0
    failures: int = 0
    clock_jumps: int = 0


class Health:
    """Counters, recent latencies and the last thing that went wrong, summed up once a period."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = _Counts()
        self._latencies_ms: dict[str, deque[float]] = {}
        self._drive = 0
        self._last_outcome: Fix | Rejection | str | None = None
        self._last_query: Mapping[str, str] = {}
        self._faulty_images_s: dict[RejectionReason, deque[float]] = {
            reason: deque(maxlen=1000) for reason in FAULTY_IMAGES
        }
        self._arrivals_s: deque[float] = deque(maxlen=1000)
        self._last_image_s: float | None = None
        self._track: TrackStatus | None = None
        self._warnings: tuple[str, ...] = ()
        self._stamp_error, self._imu_offset, self._corrections = UNKNOWN, UNKNOWN_OFFSET, NO_CORRECTIONS
        self._listening_since_s: float | None = None
        self._incompatible: dict[str, str] = {}
        self._state = "unconfigured"
        self._problem: str | None = None
        self._model: Mapping[str, str] = {}
        self._reported = (time.monotonic(), 0, 0)
        self._last_refusal: tuple[float, str] | None = None

    # -- events -----------------------------------------------------------------------------------------------------

    def state(self, state: str, problem: str | None = None, model: Mapping[str, str] | None = None) -> None:
        """The node's state changed. problem: why it cannot go on. model: what is loaded, for the report."""
        with self._lock:
            self._state, self._problem = state, problem
            self._model = self._model if model is None else model
            self._listening_since_s = time.monotonic() if state == "active" else None
            if state in ("active", "unconfigured"):
                self._forget()
            self._incompatible.clear()

    @property
    def drive(self) -> int:
        """Number of the drive: what is said of an image of an earlier one is counted, but not shown."""
        with self._lock:
            return self._drive

    def drive_forgotten(self) -> None:
        """The session was reset: what was said of the last image and the track is no longer true."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._last_outcome, self._track, self._last_query = None, None, {}
        self._warnings = ()
        self._stamp_error, self._imu_offset, self._corrections = UNKNOWN, UNKNOWN_OFFSET, NO_CORRECTIONS
        self._drive += 1

    def image_arrived(self, *, ignored: bool) -> None:
        with self._lock:
            self._last_image_s = time.monotonic()
            self._arrivals_s.append(self._last_image_s)
            self._counts.images += 1
            self._counts.ignored += ignored

    def image_dropped(self) -> None:
        with self._lock:
            self._counts.dropped += 1

    def images_lost(self, count: int) -> None:
        """Images that the middleware announced but did not deliver."""
        with self._lock:
            self._counts.lost += count

    def input_refused(self, reason: str) -> None:
        """A message of odometry, IMU or initial pose could not be used. reason: "source: why"."""
        with self._lock:
            self._counts.refused_inputs[reason] += 1
            self._last_refusal = time.monotonic(), reason

    def incompatible_qos(self, topic: str, policy: str) -> None:
        with self._lock:
            self._incompatible[topic] = policy

    def clock_jumped(self) -> None:
        with self._lock:
            self._counts.clock_jumps += 1

    def localized(self, outcome: Outcome, timings_ms: Mapping[str, float], drive: int) -> None:
        """An image was localized or rejected by the session. drive: `Health.drive` when it was taken."""
        query, observation = outcome.query, outcome.observation
        heading = observation.heading if observation else query.heading if query else None
        prior = query.prior if query else None
        with self._lock:
            self._count(outcome.result)
            if drive == self._drive:
                self._last_outcome, self._track = outcome.result, outcome.track
                self._warnings, self._corrections = outcome.warnings, outcome.corrections
                self._stamp_error, self._imu_offset = outcome.stamp_error, outcome.imu_offset
                self._last_query = {
                    "heading_source": heading.source.value if heading else "none",
                    "prior": f"σ {semi_major_sigma(prior.covariance_m2):.1f} m" if prior else "none",
                }
            for stage, milliseconds in timings_ms.items():
                self._latencies_ms.setdefault(stage, deque(maxlen=LATENCY_WINDOW)).append(milliseconds)

    def rejected(self, rejection: Rejection) -> None:
        """An image was rejected before the session saw it."""
        with self._lock:
            self._count(rejection)
            self._last_outcome, self._last_query = rejection, {}

    def _count(self, result: Fix | Rejection) -> None:
        if isinstance(result, Fix):
            self._counts.fixes += 1
            return
        self._counts.rejections[result.reason.value] += 1
        self._counts.reasons[result.reason.value] = result.detail
        if result.reason in FAULTY_IMAGES:
            self._faulty_images_s[result.reason].append(time.monotonic())

    def not_published(self, reason: str) -> None:
        """A fix that the last guard held back."""
        with self._lock:
            self._counts.unpublished += 1
            self._last_outcome = f"fix not published: {reason}"

    def failed(self, reason: str) -> None:
        """The localizer raised an error with an image."""
        with self._lock:
            self._counts.failures += 1
            self._last_outcome = reason

    # -- report -----------------------------------------------------------------------------------------------------

    @property
    def seconds_since_image(self) -> float | None:
        """Time without an image: since the last one or since activation. None where none is expected."""
        with self._lock:
            return self._silence_s(time.monotonic())

    def _silence_s(self, now_s: float) -> float | None:
        if self._listening_since_s is None:
            return None
        return now_s - max(self._listening_since_s, self._last_image_s or 0.0)

    def report(
        self,
        name: str,
        *,
        enabled: bool,
        image_timeout_s: float,
        filter_history_s: float = math.inf,
        sources: Sequence[SourceReport] = (),
        frames: Mapping[str, str] = MappingProxyType({}),
        missing_cameras: Mapping[str, str] = MappingProxyType({}),
        rig: Mapping[str, str] = MappingProxyType({}),
    ) -> list[DiagnosticStatus]:
        """The diagnostics of the period since the last report.

        Args:
            name: Of the node, with its namespace.
            enabled: Whether images are localized.
            image_timeout_s: No image for so long is an error.
            filter_history_s: A fix later than this is a warning.
            sources: The configured sources of motion.
            frames: Where the sensors sit whose frames were looked up in TF.
            missing_cameras: Of a rig, those that are not in its panoramas, each with the reason.
            rig: More about the rig's cameras.
        """
        with self._lock:
            now_s = time.monotonic()
            before_s, images, fixes = self._reported
            period_s = max(now_s - before_s, 1e-3)
            rates = ((self._counts.images - images) / period_s, (self._counts.fixes - fixes) / period_s)
            self._reported = (now_s, self._counts.images, self._counts.fixes)
            return [
                self._node_status(name),
                self._camera_status(name, rates[0], now_s, image_timeout_s, missing_cameras, rig),
                self._localization_status(name, rates[1], enabled, filter_history_s),
                self._inputs_status(name, now_s, sources, frames),
            ]

    def _node_status(self, name: str) -> DiagnosticStatus:
        level = DiagnosticStatus.OK if self._problem is None else DiagnosticStatus.ERROR
        values = {"state": self._state, **self._model, "clock_jumps": self._counts.clock_jumps}
        return _status(f"{name}: node", level, self._problem or self._state, values)

    def _camera_status(
        self,
        name: str,
        rate_hz: float,
        now_s: float,
        timeout_s: float,
        missing: Mapping[str, str],
        rig: Mapping[str, str],
    ) -> DiagnosticStatus:
        silence_s = self._silence_s(now_s)
        level, text = DiagnosticStatus.OK, "images arrive" if silence_s is not None else "not listening"
        faulty = {FAULTY_IMAGES[reason]: _recent(times, now_s) for reason, times in self._faulty_images_s.items()}
        if silence_s is not None and silence_s > timeout_s:
            level, text = DiagnosticStatus.ERROR, f"no image for {silence_s:.1f} s, image_timeout_s is {timeout_s:g}"
        elif silence_s is not None and any(faulty.values()):
            level = DiagnosticStatus.WARN
            listed = ", ".join(f"{count} {word}" for word, count in faulty.items() if count)
            text = f"of {_recent(self._arrivals_s, now_s)} images in {RATE_WINDOW_S:g} s: {listed}"
        if missing:
            level = max(level, DiagnosticStatus.WARN)
            listed = "; ".join(f"{camera}: {why}" for camera, why in missing.items())
            text = f"cameras missing in the panorama: {listed}" + ("" if text == "images arrive" else f"; {text}")
        if self._warnings:
            level = max(level, DiagnosticStatus.WARN)
            text = "; ".join((text, *self._warnings))
        if self._corrections.stamp_offset_s:
            text += f"; their stamps are corrected by {self._corrections.stamp_offset_s:.3f} s (apply_estimates)"
        if self._incompatible:
            topic, policy = next(iter(self._incompatible.items()))
            level = max(level, DiagnosticStatus.WARN)
            text = f"a publisher on {topic} offers an incompatible {policy}; set the parameter reliability; {text}"
        values = {
            "rate_hz": f"{rate_hz:.2f}",
            **{f"{word}_rate_hz": f"{count / RATE_WINDOW_S:.2f}" for word, count in faulty.items()},
            "images": self._counts.images,
            "ignored_while_disabled": self._counts.ignored,
            "dropped_for_newer": self._counts.dropped,
            "lost_in_transport": self._counts.lost,
            "stamps_late_s": self._stamp_error.text,
            "stamps_corrected_s": f"{self._corrections.stamp_offset_s:.3f}",
            **rig,
            **{f"incompatible_qos.{topic}": policy for topic, policy in self._incompatible.items()},
        }
        return _status(f"{name}: camera", level, text, values)

    def _localization_status(
        self, name: str, rate_hz: float, enabled: bool, filter_history_s: float
    ) -> DiagnosticStatus:
        level, text = DiagnosticStatus.OK, "no image yet"
        last: tuple[tuple[str, str], ...] = ()
        if isinstance(self._last_outcome, str):
            level, text = DiagnosticStatus.ERROR, self._last_outcome
        elif self._last_outcome is not None:
            outcome = outcome_diagnostic(self._last_outcome)
            level, text, last = bytes([outcome.level]), outcome.message, outcome.values
            last += (("weights", ", ".join(f"{one.weight:.2f}" for one in self._last_outcome.hypotheses)),)
        values: dict[str, object] = {
            "enabled": enabled,
            "fix_rate_hz": f"{rate_hz:.2f}",
            "fixes": self._counts.fixes,
            "rejections": sum(self._counts.rejections.values()),
            "fixes_not_published": self._counts.unpublished,
            "failures": self._counts.failures,
        }
        values |= {f"last.{key}": value for key, value in (*last, *self._last_query.items())}
        if self._track is not None:
            values |= {
                "track": self._track.state.value,
                "track.reason": self._track.reason,
                "track.hypotheses": self._track.hypotheses,
                "track.belief_elsewhere": f"{self._track.uniform_weight:.2e}",
                "track.on_map": f"{self._track.on_map:.3f}",
                "track.whole_searches": f"{self._track.whole_searches} of {self._track.images} images",
            }
            if self._track.odometry_scale is not None:
                scale, sigma = self._track.odometry_scale
                values["track.odometry_scale"] = f"{scale:.4f} ± {sigma:.4f}"
        for reason, count in sorted(self._counts.rejections.items()):
            values[f"rejected.{reason}"] = count
            values[f"rejected.{reason}.last"] = self._counts.reasons[reason]
        for stage, window in self._latencies_ms.items():
            p50, p95, p99 = np.percentile(window, (50, 95, 99))
            values[f"latency_ms.{stage}"] = f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f}"
        delay_s = self._delay_s()
        if delay_s is not None:
            values["delay_s"] = f"{delay_s:.2f}"
            if delay_s > filter_history_s and isinstance(self._last_outcome, Fix):
                level = max(level, DiagnosticStatus.WARN)
                text += (
                    f"; fixes arrive {delay_s:.2f} s after the exposure (95%), filter_history_s is "
                    f"{filter_history_s:g}: a filter that cannot go back so far applies them to the present"
                )
        return _status(f"{name}: localization", level, text if enabled else f"disabled; {text}", values)

    def _delay_s(self) -> float | None:
        """95% of the delays from exposure to fix. None before there are enough."""
        transport, processing = (self._latencies_ms.get(stage, ()) for stage in ("transport", "arrival_to_fix"))
        if len(transport) < MIN_LATENCIES:
            return None
        return float(np.quantile(np.add(transport, processing), 0.95)) / 1e3

    def _inputs_status(
        self, name: str, now_s: float, sources: Sequence[SourceReport], frames: Mapping[str, str]
    ) -> DiagnosticStatus:
        problems = [report.problem for report in sources if report.problem]
        if self._last_refusal is not None and now_s - self._last_refusal[0] < REFUSAL_SHOWN_S:
            why = self._last_refusal[1]
            if not any(why.partition(": ")[2] in problem for problem in problems):
                problems.append(f"refused {why}")
        values: dict[str, object] = {}
        for report in sources:
            key = report.source.name.replace(" ", "_")
            values[f"{key}.topic"] = report.source.topic
            values[f"{key}.rate_hz"] = f"{report.rate_hz:.1f}"
            values[f"{key}.age_s"] = "unknown" if report.age_s is None else f"{report.age_s:.2f}"
            values[f"{key}.verdict"] = report.problem or "ok"
        if self._imu_offset.images:
            values["imu.yaw_offset_deg"] = self._imu_offset.text
            values["imu.yaw_offset_corrected_deg"] = f"{math.degrees(self._corrections.imu_yaw_offset_rad):.2f}"
        values |= {f"frame.{frame}": text for frame, text in frames.items()}
        values |= {f"refused.{reason}": count for reason, count in sorted(self._counts.refused_inputs.items())}
        level = DiagnosticStatus.WARN if problems else DiagnosticStatus.OK
        return _status(f"{name}: inputs", level, "; ".join(problems) or "no problem seen", values)


def _recent(times_s: deque[float], now_s: float) -> int:
    return sum(now_s - at <= RATE_WINDOW_S for at in times_s)


def _status(name: str, level: bytes, text: str, values: Mapping[str, object]) -> DiagnosticStatus:
    status = DiagnosticStatus(level=level, name=name, message=text, hardware_id=name.split(":")[0])
    status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return status
