"""Images of several cameras, paired by time into sets, with a bounded wait.

One source paces: the first one in the rig's order that delivers. Each of its images opens a set at its stamp, and every
other source gives the image that is nearest to that stamp, within `window_s`. So cameras of different rates fit: a
faster one gives its nearest image, a slower one takes part in the sets that it has an image for. Where an image of the
source that paces is lost, the next source in the rig's order opens the set instead.

A set is finished when it cannot get better: every source has an image at or after its stamp, or its next one, by its
usual interval, will be no nearer. It is finished at the latest `wait_s` after it was opened. Sources that are silent,
or whose stamps lie behind or far from the others', are not waited for, and do not pace.

Two clocks are used. Stamps decide what belongs together. The time of arrival, any monotonic clock in seconds, decides
how long to wait; a replay gives the times of recording, so that it pairs as the live node did.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

from unifygeo_ros.core.time import NS_PER_S, ns_from_s, s_from_ns
from unifygeo_ros.rig.config import RigConfig

SILENT_S = 1.0
"""A source that was not heard for so long, or for `SILENT_PERIODS` of its intervals, is not waited for."""
SILENT_PERIODS = 3.0
BEHIND_PERIODS = 2.5
"""A source whose newest stamp lies so many of its intervals behind the others' is not waited for and does not pace."""
ASTRAY_NS = NS_PER_S
"""Stamps further than this from the median of all sources are of another clock. A stamp that lies back by more than
this against the same source's last one says that its clock was set back."""
MOST_HELD = 16
"""Images of one source that are kept, at most: a raw one may have 6 MB."""
INTERVALS = 9
"""A source's usual interval is the median of its last ones."""


@dataclass(frozen=True)
class StampedImage:
    """One image of a set."""

    stamp_ns: int
    image: Any
    """As it was handed in, usually a message that is not decoded yet."""


@dataclass(frozen=True)
class ImageSet:
    """Images that belong together."""

    stamp_ns: int
    """Of the source that paces."""
    images: Mapping[str, StampedImage]
    """By source."""
    missing: Mapping[str, str]
    """Why the other sources are not in it."""


@dataclass
class _Source:
    held: list[StampedImage] = field(default_factory=list)
    newest_ns: int = 0
    heard_s: float | None = None
    intervals_ns: deque[int] = field(default_factory=lambda: deque(maxlen=INTERVALS))
    refused: int = 0

    @property
    def period_ns(self) -> float | None:
        return statistics.median(self.intervals_ns) if self.intervals_ns else None


@dataclass(frozen=True)
class _Opened:
    stamp_ns: int
    deadline_s: float


class Pairing:
    """Pairs the images of one rig. For one thread."""

    def __init__(self, sources: Sequence[str], config: RigConfig) -> None:
        """Wait for the images of some sources.

        Args:
            sources: their names, the one that should pace first.
            config: the limits of time.
        """
        self._config = config
        self._window_ns = ns_from_s(config.window_s)
        self._sources = {name: _Source() for name in sources}
        self._opened: deque[_Opened] = deque()
        self._last_ns: int | None = None  # stamp of the last set that was opened
        self._pace_ns = 0.0  # when the pacing source exposed for it, or should have
        self._opener: str | None = None  # the source that paced it; None: its image did not come
        self._started_s: float | None = None

    def add(self, source: str, stamp_ns: int, now_s: float, image: Any) -> list[ImageSet]:
        """Take in an image that has just arrived. Returns the sets that it finished, oldest first."""
        record = self._sources[source]
        self._started_s = now_s if self._started_s is None else self._started_s
        record.heard_s = now_s
        if stamp_ns <= 0:
            record.refused += 1
            return self.poll(now_s)
        back_ns = record.newest_ns - stamp_ns
        if back_ns > ASTRAY_NS:
            record.held.clear()
            record.intervals_ns.clear()
        elif back_ns >= 0:
            record.refused += 1
            return self.poll(now_s)
        elif record.newest_ns:
            record.intervals_ns.append(-back_ns)
        record.newest_ns = stamp_ns
        record.held.append(StampedImage(stamp_ns, image))
        self._open_without_pacing(now_s)
        if self._delivering(now_s)[:1] == [source] and self._opens(source, stamp_ns):
            self._open(stamp_ns, now_s, pace_ns=stamp_ns, opener=source)
        finished = self.poll(now_s)
        self._drop_old(now_s)
        return finished

    def poll(self, now_s: float) -> list[ImageSet]:
        """The sets that are finished by now, oldest first; to be called every few hundredths of a second."""
        finished = []
        while self._opened and (now_s >= self._opened[0].deadline_s or self._settled(self._opened[0].stamp_ns, now_s)):
            finished.append(self._set_at(self._opened.popleft().stamp_ns, now_s))
        return finished

    def flush(self, now_s: float) -> list[ImageSet]:
        """All sets that are still waiting: nothing more will arrive."""
        finished = [self._set_at(opened.stamp_ns, now_s) for opened in self._opened]
        self._opened.clear()
        return finished

    def reset(self) -> None:
        """Forget everything."""
        self._sources = {name: _Source() for name in self._sources}
        self._opened.clear()
        self._last_ns = self._started_s = None
        self._pace_ns, self._opener = 0.0, None

    def problems(self, now_s: float) -> dict[str, str]:
        """The sources that do not deliver usable images, each with the reason."""
        heard = {name: record for name, record in self._sources.items() if not self._silent(record, now_s)}
        stamps_ns = [record.newest_ns for record in heard.values() if record.newest_ns]
        # With two sources there is no majority: the one that is first in order is believed.
        middle_ns = statistics.median_low(stamps_ns) if len(stamps_ns) > 2 else next(iter(stamps_ns), 0)
        found = {}
        for name, record in self._sources.items():
            away_ns = record.newest_ns - middle_ns
            if name not in heard:
                since_s = record.heard_s
                found[name] = "no image yet" if since_s is None else f"no image for {now_s - since_s:.1f} s"
            elif record.heard_s is not None and not record.newest_ns:
                found[name] = "its images bring no stamp"
            elif record.newest_ns and abs(away_ns) > ASTRAY_NS:
                side = "ahead of" if away_ns > 0 else "behind"
                found[name] = f"its stamps are {abs(away_ns) / NS_PER_S:.1f} s {side} the other cameras'"
        return found

    @property
    def refused(self) -> Mapping[str, int]:
        """Images by source that were not taken: without a stamp, or with one that is not after the one before."""
        return {name: record.refused for name, record in self._sources.items()}

    # -- which sources count ------------------------------------------------------------------------------------------

    def _silent(self, record: _Source, now_s: float) -> bool:
        since_s = self._started_s if record.heard_s is None else record.heard_s
        if since_s is None:
            return False
        return now_s - since_s > max(SILENT_S, SILENT_PERIODS * (record.period_ns or 0.0) / NS_PER_S)

    def _delivering(self, now_s: float) -> list[str]:
        """The sources without a problem, in the rig's order, whose newest image is not an old one.

        A source with one image or none so far is among them: it may be a slow one, or one that starts a little later.
        """
        problems = self.problems(now_s)
        sound = {name: record for name, record in self._sources.items() if name not in problems}
        newest_ns = max((record.newest_ns for record in sound.values()), default=0)
        return [
            name
            for name, record in sound.items()
            if record.period_ns is None
            or newest_ns - record.newest_ns <= max(BEHIND_PERIODS * record.period_ns, self._window_ns)
        ]

    def _opens(self, source: str, stamp_ns: int) -> bool:
        """Whether an image of the pacing source opens a set: its stamp is new, or the clock was set back."""
        if self._last_ns is None or self._last_ns - stamp_ns > ASTRAY_NS:
            return True
        if source != self._opener and stamp_ns - self._pace_ns <= (self._sources[source].period_ns or 0.0) / 2:
            return False  # it belongs to the set that another source has opened
        return stamp_ns > self._last_ns

    def _open(self, stamp_ns: int, now_s: float, *, pace_ns: float, opener: str | None) -> None:
        self._last_ns, self._pace_ns, self._opener = stamp_ns, pace_ns, opener
        self._opened.append(_Opened(stamp_ns, now_s + self._config.wait_s))

    def _open_without_pacing(self, now_s: float) -> None:
        """Open a set at another source's image, where stamps show that the pacing source's next image was lost."""
        delivering = self._delivering(now_s)
        period_ns = self._sources[delivering[0]].period_ns if delivering else None
        if period_ns is None or self._last_ns is None:
            return
        due_ns, over_ns = self._pace_ns + period_ns, self._pace_ns + 1.5 * period_ns
        if max(self._sources[name].newest_ns for name in delivering) < over_ns:
            return
        for name in delivering:
            stamps_ns = [held.stamp_ns for held in self._sources[name].held if held.stamp_ns > self._last_ns]
            nearest_ns = min(stamps_ns, key=lambda stamp_ns: abs(stamp_ns - due_ns), default=None)
            if nearest_ns is not None and abs(nearest_ns - due_ns) <= min(self._window_ns, period_ns / 2):
                self._open(nearest_ns, now_s, pace_ns=due_ns, opener=None)
                return

    # -- sets ---------------------------------------------------------------------------------------------------------

    def _settled(self, stamp_ns: int, now_s: float) -> bool:
        """Whether waiting cannot bring a nearer image."""
        for name in self._delivering(now_s):
            record = self._sources[name]
            if record.newest_ns < stamp_ns and not self._next_is_no_nearer(record, stamp_ns):
                return False
        return True

    def _next_is_no_nearer(self, record: _Source, stamp_ns: int) -> bool:
        """Whether a source whose newest image lies before a stamp will bring none that is nearer to it."""
        period_ns = record.period_ns
        if period_ns is None:
            return False
        behind_ns, ahead_ns = stamp_ns - record.newest_ns, record.newest_ns + period_ns - stamp_ns
        return ahead_ns > self._window_ns or behind_ns <= min(ahead_ns, self._window_ns)

    def _set_at(self, stamp_ns: int, now_s: float) -> ImageSet:
        images, missing, problems = {}, {}, self.problems(now_s)
        for name, record in self._sources.items():
            best = min(record.held, key=lambda held: abs(held.stamp_ns - stamp_ns), default=None)
            if best is not None and abs(best.stamp_ns - stamp_ns) <= self._window_ns:
                images[name] = best
                continue
            missing[name] = problems.get(name) or (
                "no image in time"
                if best is None
                else f"no image in time, its nearest one is {s_from_ns(abs(best.stamp_ns - stamp_ns)):.3f} s away"
            )
        return ImageSet(stamp_ns, images, missing)

    def _drop_old(self, now_s: float) -> None:
        """Keep what a set that is open, or one that may be opened next, can use."""
        coming_ns = [self._sources[name].newest_ns for name in self._delivering(now_s)]
        for record in self._sources.values():
            needed_ns = min([record.newest_ns, *coming_ns, *(opened.stamp_ns for opened in self._opened)])
            kept = [held for held in record.held if held.stamp_ns >= needed_ns - self._window_ns]
            record.held = kept[-MOST_HELD:]
