"""Do the images turn as the truth says? Their time offset, and whether the camera is mirrored, without any network.

When the vehicle turns to the left by an angle, everything in a panorama moves to the right by that angle. The shift
between two panoramas, found by correlating their rows, is therefore the vehicle's turn as the camera saw it, whatever
the place looks like. If the truth comes late by τ, the images' turns fit the truth's turns between stamps that are τ
later; a mirrored camera sees every turn the other way round.

Near objects move by parallax, too, and repetitive ones correlate with each other, so single shifts may be wrong: the
sum over many of the absolute difference, cut at `LARGEST_RAD`, does not care.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from unifygeo_ros.core.arrays import Array, Float64, Int64, UInt8
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import Rejection
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.evaluation.recordings.truth import Truth
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.panorama import prepare_panorama
from unifygeo_training.drives.recorded import Recording

HORIZON = GroundSpec(60, 720, math.radians(20.0), math.radians(-10.0), 1)
"""What is compared: houses and trees, half a degree a column. The road below looks the same in all directions."""
INTERVAL_S = (0.35, 1.2)
"""Time between the two images of a pair."""
LEAST_TURN_RAD = math.radians(3.0)
"""Pairs between which the vehicle turns less say nothing about time."""
MOST_PAIRS = 300
LARGEST_RAD = 0.15
"""Differences are cut here: such a shift was not found right."""
REACH_S = 2.0
"""Offsets up to this are searched."""
STEP_S = 0.05
LEAST_PAIRS = 12
"""Of fewer turning pairs nothing is concluded."""
LEAST_EVIDENCE = 3.0
"""How clearly an offset must fit better than none (`Turns.evidence`): a drive that turns evenly fits any offset."""


@dataclass(frozen=True)
class Turns:
    """What the comparison found."""

    pairs: int
    """Pairs of images between which the vehicle turns."""
    offset_s: float
    """Time by which the truth's stamps are late against the images'; NaN where too few pairs turn."""
    evidence: float
    """Mean improvement of the pairs' differences by that offset, over its standard error."""
    misfit_rad: float
    """Mean cut difference at that offset."""
    mirrored_misfit_rad: float
    """The same for a camera that is mirrored."""
    unrelated_rad: float
    """The same for turns that have nothing to do with each other: the truth's, in another order."""

    @property
    def judged(self) -> bool:
        """Whether the drive turns enough, and the images follow one of the two explanations."""
        return self.pairs >= LEAST_PAIRS and min(self.misfit_rad, self.mirrored_misfit_rad) < 0.75 * self.unrelated_rad

    @property
    def tells_time(self) -> bool:
        """Whether the offset is certainly another one than none."""
        return self.judged and self.evidence >= LEAST_EVIDENCE

    @property
    def mirrored(self) -> bool:
        return self.judged and self.mirrored_misfit_rad < self.misfit_rad


def compare_turns(recording: Recording) -> Turns:
    """Decode the images of the pairs in which the vehicle turns most and compare."""
    yaw = _Yaw.of(recording.truth)
    stamps = [image.stamp_ns or 0 for image in recording.images()]
    first, second = _turning_pairs(np.array(stamps, np.int64), yaw)
    wanted = set(first.tolist()) | set(second.tolist())
    views: dict[int, UInt8] = {}
    for number, image in enumerate(recording.images()):
        if number in wanted:
            pixels = image.decoded(HORIZON)
            if not isinstance(pixels, Rejection):
                views[number] = prepare_panorama(pixels, HORIZON, recording.mount, None).pixels
    pairs = [(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True) if a in views and b in views]
    if not pairs:
        return Turns(0, math.nan, math.nan, math.nan, math.nan, math.nan)
    seen = np.array([turn_between(views[a], views[b]) for a, b in pairs])
    start, end = (np.array([stamps[pair[side]] for pair in pairs], np.int64) for side in (0, 1))
    return fit_turns(seen, start, end, yaw)


def turn_between(first: UInt8, second: UInt8) -> float:
    """The turn to the left (rad, −π … π) that moves one panorama onto the other. Both uint8 (H, W, 3)."""
    spectra = [np.fft.rfft(_structure(image), axis=1) for image in (first, second)]
    width = first.shape[1]
    correlation = np.fft.irfft((np.conj(spectra[0]) * spectra[1]).sum(axis=0), n=width)
    peak = int(correlation.argmax())
    left, middle, right = correlation[[peak - 1, peak, (peak + 1) % width]]
    curvature = left - 2 * middle + right
    shift = peak + (0.5 * (left - right) / curvature if curvature < 0 else 0.0)
    return float(wrap_angle(shift / width * 2 * math.pi))


def fit_turns(seen_rad: Float64, start_ns: Int64, end_ns: Int64, yaw: _Yaw) -> Turns:
    """Fit the turns that n pairs of images show to the truth's. All (n,)."""
    offsets = np.arange(-round(REACH_S / STEP_S), round(REACH_S / STEP_S) + 1) * STEP_S
    truth = np.array([yaw.turns(start_ns, end_ns, float(offset)) for offset in offsets])  # (m, n), NaN in gaps
    usable = np.isfinite(truth).all(axis=0)
    truth, seen = truth[:, usable], seen_rad[usable]
    if not len(seen):
        return Turns(0, math.nan, math.nan, math.nan, math.nan, math.nan)

    def differences(turns: Float64) -> Float64:
        return np.minimum(np.abs(wrap_angle(turns - truth)), LARGEST_RAD)  # (m, n)

    own, mirrored = differences(seen), differences(-seen)
    fitting = own if own.mean(axis=1).min() <= mirrored.mean(axis=1).min() else mirrored
    misfits = np.asarray(fitting.mean(axis=1), np.float64)
    best = int(misfits.argmin())
    gained = fitting[len(offsets) // 2] - fitting[best]
    spread = float(gained.std()) / math.sqrt(len(gained))
    order = np.random.default_rng(0).permutation(len(seen))
    return Turns(
        pairs=len(seen),
        offset_s=_lowest(offsets, misfits, best),
        evidence=float(gained.mean()) / spread if spread > 0 else 0.0,
        misfit_rad=float(own.mean(axis=1).min()),
        mirrored_misfit_rad=float(mirrored.mean(axis=1).min()),
        unrelated_rad=float(differences(seen[order]).mean(axis=1).min()),
    )


def _lowest(offsets: Array, values: Float64, best: int) -> float:
    """The minimum between the steps, by a parabola."""
    if not 0 < best < len(offsets) - 1:
        return float(offsets[best])
    left, middle, right = values[best - 1 : best + 2]
    curvature = left - 2 * middle + right
    return float(offsets[best] + (0.5 * (left - right) / curvature * STEP_S if curvature > 0 else 0.0))


def _structure(image: UInt8) -> Float64:
    """Grey values without what changes slowly along a row, every row equally strong: float64 (H, W)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    width = grey.shape[1]
    around = cv2.blur(np.hstack([grey, grey, grey]), (width // 16 | 1, 1))[:, width : 2 * width]
    detail = grey - around
    return detail / (np.sqrt((detail**2).mean(axis=1, keepdims=True)) + 2.0)


@dataclass(frozen=True)
class _Yaw:
    """The vehicle's yaw over time, from the truth: its orientation, or its course where it has none."""

    stamps_ns: Int64
    yaw_rad: Float64
    """Unwrapped."""
    largest_gap_ns: int

    @classmethod
    def of(cls, truth: Truth) -> _Yaw:
        stamps, yaw = truth.stamps_ns, truth.yaw_rad
        known = np.isfinite(yaw)
        if not known.any():
            course = [pose.course_rad if pose is not None else None for pose in map(truth.at, stamps.tolist())]
            yaw = np.array([math.nan if value is None else value for value in course])
            known = np.isfinite(yaw)
        return cls(stamps[known], np.unwrap(yaw[known]), truth.max_gap_ns)

    def turns(self, start_ns: Int64, end_ns: Int64, offset_s: float) -> Float64:
        """Turn from each start to its end, both later by an offset: float64 (n,), NaN across a gap."""
        if not len(self.stamps_ns):
            return np.full(len(start_ns), np.nan)
        offset = ns_from_s(offset_s)
        return self._at(end_ns + offset) - self._at(start_ns + offset)

    def _at(self, stamps_ns: Int64) -> Float64:
        after = np.clip(np.searchsorted(self.stamps_ns, stamps_ns), 1, max(len(self.stamps_ns) - 1, 1))
        if len(self.stamps_ns) < 2:
            return np.full(len(stamps_ns), np.nan)
        gap = self.stamps_ns[after] - self.stamps_ns[after - 1]
        share = (stamps_ns - self.stamps_ns[after - 1]) / np.maximum(gap, 1)
        inside = (share >= 0) & (share <= 1) & (gap <= self.largest_gap_ns)
        value = self.yaw_rad[after - 1] + share * (self.yaw_rad[after] - self.yaw_rad[after - 1])
        return np.where(inside, value, np.nan)


def _turning_pairs(stamps_ns: Int64, yaw: _Yaw) -> tuple[Int64, Int64]:
    """Numbers of the first and the second image of the pairs in which the vehicle turns most, at any offset."""
    shortest, longest = (ns_from_s(value) for value in INTERVAL_S)
    order = np.argsort(stamps_ns, kind="stable")
    rising = stamps_ns[order]
    chain = []  # pairs that do not overlap, so that each tells something of its own
    first = 0
    while first < len(rising):
        second = int(np.searchsorted(rising, rising[first] + shortest))
        if second == len(rising):
            break
        if rising[second] - rising[first] <= longest:
            chain.append((first, second))
        first = second
    if not chain:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    first_of, second_of = np.array(chain).T
    # Whether the truth is late is not known yet: the turn may lie before or after.
    turn = np.zeros(len(chain))
    for offset_s in (-REACH_S, -1.0, -0.5, 0.0, 0.5, 1.0, REACH_S):
        turns = np.abs(yaw.turns(rising[first_of], rising[second_of], offset_s))
        turn = np.maximum(turn, np.nan_to_num(turns))
    chosen = np.argsort(-turn, kind="stable")[:MOST_PAIRS]
    chosen = np.sort(chosen[turn[chosen] >= LEAST_TURN_RAD])
    return order[first_of[chosen]], order[second_of[chosen]]
