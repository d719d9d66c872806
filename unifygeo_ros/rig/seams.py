"""How well the cameras of a rig fit together where two of them see the same: matched features in the overlaps."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Mapping, Sequence

import cv2
import numpy as np

from unifygeo_ros.core.arrays import Bool, Float64, UInt8
from unifygeo_ros.rig.composer import CameraView, Composer
from unifygeo_ros.rig.strips import Strip, common_columns

MAX_OFFSET_DEG = 6.0
"""Features further apart than this are not taken for the same point."""
RATIO = 0.75
"""Lowe's ratio test: the best match must be this much nearer than the second one."""
LEAST_MATCHES = 8
"""Overlaps with fewer matches are not judged."""
MARGIN_DEG = 1.0
"""Features nearer than this to the edge of an overlap are not used."""


@dataclass(frozen=True)
class Seam:
    """Features that two cameras see, and where each of them puts them."""

    first: str
    second: str
    azimuth_deg: Float64
    """float64 (n,): where the first camera puts each in the panorama, clockwise from base_link's x axis."""
    elevation_deg: Float64
    """float64 (n,): see `azimuth_deg`."""
    right_deg: Float64
    """float64 (n,): how much further right the second camera puts each, degrees on the sphere."""
    up_deg: Float64
    """float64 (n,): how much further up."""

    def __len__(self) -> int:
        return len(self.right_deg)

    @property
    def offset_deg(self) -> tuple[float, float]:
        """Median offset of the second camera against the first, right and up; NaN without matches."""
        if not len(self):
            return math.nan, math.nan
        return float(np.median(self.right_deg)), float(np.median(self.up_deg))

    @property
    def median_deg(self) -> float:
        """Median length of the offsets; NaN without matches."""
        return float(np.median(np.hypot(self.right_deg, self.up_deg))) if len(self) else math.nan


def match_seams(composer: Composer, views: Mapping[str, CameraView]) -> list[Seam]:
    """Match features in each overlap of two cameras, for the distance that the rig assumes.

    Args:
        composer: Of the rig; its columns limit the accuracy: 2048 are 0.18° each.
        views: The images, as `Composer.compose` takes them.

    Returns:
        As `match_strips`.
    """
    return match_strips(composer.strips(views), composer.width)


def match_strips(strips: Mapping[str, Strip], width: int) -> list[Seam]:
    """Match features where two strips of a panorama of `width` columns overlap.

    Returns:
        One seam for each pair of cameras that overlap, also where nothing could be matched.
    """
    found: dict[tuple[str, str], list[Seam]] = {}
    for (first, a), (second, b) in itertools.combinations(strips.items(), 2):
        for left, right, columns in common_columns(a, b, width):
            top = max(a.first_row, b.first_row)
            bottom = min(a.first_row + len(a.weight), b.first_row + len(b.weight))
            if min(bottom - top, columns) < 16:
                continue
            part_a = slice(top - a.first_row, bottom - a.first_row), slice(left, left + columns)
            part_b = slice(top - b.first_row, bottom - b.first_row), slice(right, right + columns)
            both = np.asarray((a.weight[part_a] > 0.02) & (b.weight[part_b] > 0.02))
            if both.sum() >= 400:
                greys = _grey(a.pixels[part_a]), _grey(b.pixels[part_b])
                seam = _match(first, second, greys, both, (top, a.first_column + left), width)
                found.setdefault((first, second), []).append(seam)
    return [joined(seams) for seams in found.values()]


def joined(seams: Sequence[Seam]) -> Seam:
    """Seams of the same two cameras as one: of several sets, or the two ends of their overlap."""
    first = seams[0]
    return Seam(
        first.first,
        first.second,
        *(
            np.concatenate([getattr(seam, name) for seam in seams])
            for name in ("azimuth_deg", "elevation_deg", "right_deg", "up_deg")
        ),
    )


def camera_offsets(seams: Sequence[Seam]) -> dict[str, tuple[float, float]]:
    """How much further right and up each camera looks than its calibration says, in degrees, by what its seams show.

    A camera that looks further right than the rig file says puts what it sees too far left.

    The sum of the absolute values that remain is made small, not that of their squares: one camera that is off explains
    two seams, and its neighbours stay at 0. Cameras with one judged seam or none are left out: which of the two is
    off cannot be said there.
    """
    judged = [seam for seam in seams if len(seam) >= LEAST_MATCHES]
    names = list(dict.fromkeys(name for seam in judged for name in (seam.first, seam.second)))
    if len(judged) < 2:
        return {}
    differences = np.zeros((len(judged), len(names)))
    for row, seam in enumerate(judged):
        differences[row, names.index(seam.first)], differences[row, names.index(seam.second)] = -1.0, 1.0
    wanted = -np.array([seam.offset_deg for seam in judged])
    offsets = np.stack([_least_absolute(differences, wanted[:, axis]) for axis in (0, 1)], axis=1)
    degree = np.abs(differences).sum(0)
    return {name: (float(offsets[i, 0]), float(offsets[i, 1])) for i, name in enumerate(names) if degree[i] >= 2}


def _least_absolute(differences: Float64, wanted: Float64) -> Float64:
    """The smallest offsets whose differences are those wanted: least absolute values, by reweighted least squares."""
    count = differences.shape[1]
    offsets = np.zeros(count)
    for _ in range(60):
        weights = 1 / np.maximum(np.abs(differences @ offsets - wanted), 1e-3)
        pull = 0.05 / np.maximum(np.abs(offsets), 1e-3)
        system = (differences.T * weights) @ differences + np.diag(pull)
        offsets = np.linalg.solve(system, (differences.T * weights) @ wanted)
    return np.asarray(offsets)


def _grey(pixels: UInt8) -> UInt8:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.createCLAHE(3.0, (8, 8)).apply(grey), np.uint8)


def _match(
    first: str, second: str, greys: tuple[UInt8, UInt8], both: Bool, corner: tuple[int, int], width: int
) -> Seam:
    """corner: row and column of the panorama where the overlap begins."""
    degrees = 360 / width
    margin = max(1, round(MARGIN_DEG / degrees))
    inside = cv2.erode(both.astype(np.uint8), np.ones((margin, margin), np.uint8), borderType=cv2.BORDER_CONSTANT)
    sift = cv2.SIFT.create(contrastThreshold=0.02)
    (points_a, words_a), (points_b, words_b) = (sift.detectAndCompute(grey, inside) for grey in greys)
    nothing = Seam(first, second, *(np.zeros(0) for _ in range(4)))
    if words_a is None or words_b is None or len(points_a) < 2 or len(points_b) < 2:
        return nothing
    forward = cv2.BFMatcher().knnMatch(words_a, words_b, k=2)
    backward = {m.queryIdx: m.trainIdx for (m,) in cv2.BFMatcher().knnMatch(words_b, words_a, k=1)}
    good = [
        best
        for best, other in forward
        if best.distance < RATIO * other.distance and backward[best.trainIdx] == best.queryIdx
    ]
    if not good:
        return nothing
    at_a = np.array([points_a[m.queryIdx].pt for m in good], np.float64)
    at_b = np.array([points_b[m.trainIdx].pt for m in good], np.float64)
    azimuth_deg = (at_a[:, 0] + corner[1] + 0.5) * degrees - 180
    elevation_deg = 90 - (at_a[:, 1] + corner[0] + 0.5) * degrees
    right = (at_b[:, 0] - at_a[:, 0]) * degrees * np.cos(np.radians(elevation_deg))
    up = (at_a[:, 1] - at_b[:, 1]) * degrees
    near = np.hypot(right, up) <= MAX_OFFSET_DEG
    kept = (np.asarray(values[near], np.float64) for values in (azimuth_deg, elevation_deg, right, up))
    return Seam(first, second, *kept)
