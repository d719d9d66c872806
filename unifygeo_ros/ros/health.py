"""What the node counts while it runs, and the diagnostics made from it.

Everything may be called from any thread. Levels: OK means that the thing works, WARN that it works but not with the
last input, ERROR that no fix can come until somebody acts.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from unifygeo_ros.conversions.message_values import outcome_diagnostic
from unifygeo_ros.core.records import Fix, Rejection
from unifygeo_ros.tracking.tracker import TrackStatus

REFUSAL_SHOWN_S = 5.0
"""How long a refused odometry, IMU or pose message is shown as a warning."""

LATENCY_WINDOW = 300
"""Frames over which latencies are summed up: ten seconds at 30 Hz."""


@dataclass
class _Counts:
    """Numbers since the node was started. reasons: last sentence by rejection reason."""

    images: int = 0
    ignored: int = 0
    dropped: int = 0
    lost: int = 0
    fixes: int = 0
    rejections: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
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
        self._last_outcome: Fix | Rejection | str | None = None
        self._last_image_s: float | None = None
        self._track: TrackStatus | None = None
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
            self._last_outcome = None if state == "active" else self._last_outcome
            self._incompatible.clear()

    def image_arrived(self, *, ignored: bool) -> None:
        with self._lock:
            self._last_image_s = time.monotonic()
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

    def localized(self, result: Fix | Rejection, timings_ms: Mapping[str, float]) -> None:
        with self._lock:
            self._last_outcome = result
            if isinstance(result, Fix):
                self._counts.fixes += 1
            else:
                self._counts.rejections[result.reason.value] += 1
                self._counts.reasons[result.reason.value] = result.detail
            for stage, milliseconds in timings_ms.items():
                self._latencies_ms.setdefault(stage, deque(maxlen=LATENCY_WINDOW)).append(milliseconds)

    def tracked(self, track: TrackStatus | None) -> None:
        """How the tracker stands (mode sequence); None in mode single."""
        with self._lock:
            self._track = track

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

    def report(self, name: str, *, enabled: bool, image_timeout_s: float) -> list[DiagnosticStatus]:
        """The diagnostics of the period since the last report. name: of the node."""
        with self._lock:
            now_s = time.monotonic()
            before_s, images, fixes = self._reported
            period_s = max(now_s - before_s, 1e-3)
            rates = ((self._counts.images - images) / period_s, (self._counts.fixes - fixes) / period_s)
            self._reported = (now_s, self._counts.images, self._counts.fixes)
            return [
                self._node_status(name),
                self._camera_status(name, rates[0], self._silence_s(now_s), image_timeout_s),
                self._localization_status(name, rates[1], enabled),
                self._inputs_status(name, now_s),
            ]

    def _node_status(self, name: str) -> DiagnosticStatus:
        level = DiagnosticStatus.OK if self._problem is None else DiagnosticStatus.ERROR
        values = {"state": self._state, **self._model, "clock_jumps": self._counts.clock_jumps}
        return _status(f"{name}: node", level, self._problem or self._state, values)

    def _camera_status(self, name: str, rate_hz: float, silence_s: float | None, timeout_s: float) -> DiagnosticStatus:
        level, text = DiagnosticStatus.OK, "images arrive" if silence_s is not None else "not listening"
        if silence_s is not None and silence_s > timeout_s:
            level, text = DiagnosticStatus.ERROR, f"no image for {silence_s:.1f} s, image_timeout_s is {timeout_s:g}"
        if self._incompatible:
            topic, policy = next(iter(self._incompatible.items()))
            level = DiagnosticStatus.ERROR if level == DiagnosticStatus.ERROR else DiagnosticStatus.WARN
            text = f"a publisher on {topic} offers an incompatible {policy}; set the parameter reliability; {text}"
        values = {
            "rate_hz": f"{rate_hz:.2f}",
            "images": self._counts.images,
            "ignored_while_disabled": self._counts.ignored,
            "dropped_for_newer": self._counts.dropped,
            "lost_in_transport": self._counts.lost,
            **{f"incompatible_qos.{topic}": policy for topic, policy in self._incompatible.items()},
        }
        return _status(f"{name}: camera", level, text, values)

    def _localization_status(self, name: str, rate_hz: float, enabled: bool) -> DiagnosticStatus:
        level, text = DiagnosticStatus.OK, "no image yet"
        last: tuple[tuple[str, str], ...] = ()
        if isinstance(self._last_outcome, str):
            level, text = DiagnosticStatus.ERROR, self._last_outcome
        elif self._last_outcome is not None:
            outcome = outcome_diagnostic(self._last_outcome)
            level, text, last = bytes([outcome.level]), outcome.message, outcome.values
            last += (("weights", ", ".join(f"{place.weight:.2f}" for place in self._last_outcome.hypotheses)),)
        values: dict[str, object] = {
            "enabled": enabled,
            "fix_rate_hz": f"{rate_hz:.2f}",
            "fixes": self._counts.fixes,
            "rejections": sum(self._counts.rejections.values()),
            "fixes_not_published": self._counts.unpublished,
            "failures": self._counts.failures,
        }
        values |= {f"last.{key}": value for key, value in last}
        if self._track is not None:
            values |= {
                "track": self._track.state.value,
                "track.reason": self._track.reason,
                "track.hypotheses": self._track.hypotheses,
                "track.belief_elsewhere": f"{self._track.elsewhere:.2e}",
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
        return _status(f"{name}: localization", level, text if enabled else f"disabled; {text}", values)

    def _inputs_status(self, name: str, now_s: float) -> DiagnosticStatus:
        level, text = DiagnosticStatus.OK, "nothing refused lately"
        if self._last_refusal is not None and now_s - self._last_refusal[0] < REFUSAL_SHOWN_S:
            level, text = DiagnosticStatus.WARN, f"refused {self._last_refusal[1]}"
        values = {f"refused.{reason}": count for reason, count in sorted(self._counts.refused_inputs.items())}
        return _status(f"{name}: inputs", level, text, values)


def _status(name: str, level: bytes, text: str, values: Mapping[str, object]) -> DiagnosticStatus:
    status = DiagnosticStatus(level=level, name=name, message=text, hardware_id=name.split(":")[0])
    status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return status
