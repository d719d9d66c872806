"""What the vehicle's sources deliver, judged against the images: rate, age, and what a missing one costs.

Imports no ROS, and reads no clock: the caller passes monotonic seconds.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Iterable, Mapping

from unifygeo_ros.core.time import NS_PER_S
from unifygeo_ros.parameters.settings import Settings

IMU, ODOMETRY, MAP_ODOMETRY = "imu", "odometry", "map odometry"

SILENCE_REPORTED_S = 1.0
"""A source that was not heard for so long after activation is reported: with one report a second, within two."""

RATE_WINDOW_S = 5.0
"""Rates are means over so long."""


@dataclass(frozen=True)
class Source:
    """One input of motion, as the settings ask for it."""

    name: str
    topic: str
    required: bool
    """Whether the settings need it. The others are used where they are there."""
    consequence: str
    """What happens without it."""
    frame: str = ""
    """Odometry only: the frame that its messages must be in; "" where any will do."""


@dataclass(frozen=True)
class TimeRules:
    """Those of the session: see `SessionConfig`."""

    extrapolation_s: float
    gap_s: float
    age_s: float
    stamp_offset_ns: int = 0
    """Added to an image's stamp to get its exposure."""


@dataclass(frozen=True)
class SourceReport:
    """How one source stands."""

    source: Source
    rate_hz: float
    age_s: float | None
    """How much older than the last image its newest message was; negative if newer. None before both were there."""
    problem: str
    """Empty where there is none."""


def configured_sources(settings: Settings, imu_topic: str, odometry_topic: str) -> tuple[Source, ...]:
    """The sources of motion that these settings use, and what each is for."""
    session, map_frame = settings.session, settings.node.map_frame
    no_heading = "the heading is searched" if settings.localizer.heading_search else "every image is rejected"
    heading_by_imu = session.heading_source == "imu"
    imu = Source(IMU, imu_topic, heading_by_imu, no_heading if heading_by_imu else "the panorama is not levelled")
    sources = [imu] if heading_by_imu or session.use_tilt else []
    lost = []
    if session.heading_source == "odometry":
        lost.append(no_heading)
    if session.prior_source == "odometry":
        lost.append("the whole index is searched")
    if lost:
        sources.append(Source(MAP_ODOMETRY, odometry_topic, True, " and ".join(lost), map_frame))
    if session.mode == "sequence":
        sources.append(Source(ODOMETRY, odometry_topic, True, "motion is guessed from odometry.speed_m_s"))
    elif session.prior_source == "last_fix":
        sources.append(Source(ODOMETRY, odometry_topic, False, "motion is guessed from odometry.speed_m_s"))
    elif settings.rig:
        sources.append(Source(ODOMETRY, odometry_topic, False, "the rig's cameras are not moved to one instant"))
    return tuple(sources)


@dataclass
class _Record:
    arrivals_s: deque[float] = field(default_factory=lambda: deque(maxlen=2000))
    accepted: int = 0
    refused: int = 0
    last_refusal: tuple[float, str] | None = None
    newest_ns: int | None = None
    age_ns: int | None = None


class SourceWatch:
    """Counts messages by source from activation on. May be used from any thread."""

    def __init__(self, sources: Iterable[Source], rules: TimeRules, activated_s: float) -> None:
        self.sources = tuple(sources)
        self._rules = rules
        self._activated_s = activated_s
        self._lock = threading.Lock()
        self._records: dict[str, _Record] = {}

    def heard(self, name: str, stamp_ns: int, now_s: float, refusal: str | None = None) -> None:
        """Count a message. refusal: why it was not used."""
        with self._lock:
            record = self._records.setdefault(name, _Record())
            record.arrivals_s.append(now_s)
            if refusal is None:
                record.accepted += 1
                record.newest_ns = stamp_ns
            else:
                record.refused += 1
                record.last_refusal = now_s, refusal

    def image(self, stamp_ns: int) -> None:
        """An image is localized now: note how much older the newest sample of each source is."""
        exposure_ns = stamp_ns + self._rules.stamp_offset_ns
        with self._lock:
            for record in self._records.values():
                record.age_ns = None if record.newest_ns is None else exposure_ns - record.newest_ns

    def reports(self, now_s: float, publishers: Mapping[str, int]) -> list[SourceReport]:
        """How each configured source stands. publishers: how many there are, by topic."""
        with self._lock:
            return [self._report(source, now_s, publishers.get(source.topic)) for source in self.sources]

    def _report(self, source: Source, now_s: float, publishers: int | None) -> SourceReport:
        record = self._records.get(source.name, _Record())
        recent = [at for at in record.arrivals_s if now_s - at < RATE_WINDOW_S]
        rate_hz = len(recent) / min(RATE_WINDOW_S, max(now_s - self._activated_s, 1e-3))
        age_s = None if record.age_ns is None else record.age_ns / NS_PER_S
        problem = self._problem(source, record, rate_hz, age_s, now_s, publishers)
        return SourceReport(source, rate_hz, age_s, f"{problem}: {source.consequence}" if problem else "")

    def _problem(
        self,
        source: Source,
        record: _Record,
        rate_hz: float,
        age_s: float | None,
        now_s: float,
        publishers: int | None,
    ) -> str:
        name, rules = source.name, self._rules
        since_s = now_s - self._activated_s
        if not record.arrivals_s:
            if not source.required or since_s < SILENCE_REPORTED_S:
                return ""
            other = ODOMETRY if name == MAP_ODOMETRY else MAP_ODOMETRY if name == ODOMETRY else ""
            if other in self._records:
                wanted = f"in the frame {source.frame!r}" if source.frame else "in a frame other than map_frame"
                return f"no odometry {wanted} since activation, only in another, on {source.topic}"
            known = {None: "", 0: " (no publisher)"}.get(publishers, f" ({publishers} publishers)")
            return f"no {name} since activation on {source.topic}{known}"
        if not record.accepted:
            assert record.last_refusal is not None
            return f"every {name} message is refused, {record.last_refusal[1]}"
        silence_s = now_s - record.arrivals_s[-1]
        if silence_s > max(SILENCE_REPORTED_S, rules.gap_s):
            return f"no {name} for {silence_s:.1f} s on {source.topic}"
        if age_s is not None and abs(age_s) > rules.age_s:
            order = "older" if age_s > 0 else "newer"
            return f"newest {name} is {abs(age_s):.1f} s {order} than the image, check the clocks"
        if age_s is not None and age_s > rules.extrapolation_s:
            return f"newest {name} is {age_s:.2f} s older than the image, extrapolation_s is {rules.extrapolation_s:g}"
        if since_s > RATE_WINDOW_S and rate_hz * rules.gap_s < 1.0:
            return f"{name} comes {rate_hz:.1f} times a second, sample_gap_s {rules.gap_s:g} needs {1 / rules.gap_s:g}"
        return ""
