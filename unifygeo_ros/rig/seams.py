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
    detected: tuple[int, int] = (0, 0)
    """How many features either camera shows in the overlap, matched or not."""

    def __len__(self) -> int:
        return len(self.right_deg)

    @property
    def offset_deg(self) -> tuple[float, float]:
        """Median offset of the second camera against the first, right and up; NaN without matches."""
        if not len(self):
            return math.nan, math.nan
        return float(np.median(self.right_deg)), float(np.median(self.up_deg))

    @property
    def directions(self) -> Float64:
        """float64 (n, 3): where the first camera puts each, unit vectors in base_link's axes."""
        azimuth, elevation = np.radians(self.azimuth_deg), np.radians(self.elevation_deg)
        level = np.cos(elevation)
        return np.stack([level * np.cos(azimuth), -level * np.sin(azimuth), np.sin(elevation)], axis=-1)

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
    azimuth, elevation, right, up = (
        np.concatenate([getattr(seam, name) for seam in seams])
        for name in ("azimuth_deg", "elevation_deg", "right_deg", "up_deg")
    )
    detected = sum(seam.detected[0] for seam in seams), sum(seam.detected[1] for seam in seams)
    return Seam(first.first, first.second, azimuth, elevation, right, up, detected)


def camera_turns(seams: Sequence[Seam]) -> dict[str, Float64]:
    """How each camera is turned against its calibration, by what its seams show.

    Small rotations Δ of two cameras move what the second one shows at direction d by d × (Δ₂ − Δ₁) against the first.
    The sum of the lengths that remain is made small, not that of their squares, each seam counting the same: one
    camera that is off explains all its seams, and its neighbours stay at 0.

    Returns:
        float64 (3,) by camera: the axis in base_link's axes times the angle in degrees. Cameras without a judged seam
        are left out.
    """
    judged = [seam for seam in seams if len(seam) >= LEAST_MATCHES]
    names = list(dict.fromkeys(name for seam in judged for name in (seam.first, seam.second)))
    parts = [(names.index(seam.first), names.index(seam.second), *_equations(seam)) for seam in judged]
    turns = np.zeros((len(names), 3))
    for _ in range(60):  # reweighted least squares
        pull = 0.05 / np.maximum(np.linalg.norm(turns, axis=1), 1e-3)
        system, wanted = np.diag(np.repeat(pull, 3)), np.zeros(3 * len(names))
        for first, second, moves, seen in parts:
            left = seen - moves @ (turns[second] - turns[first])
            weights = 1 / np.maximum(np.linalg.norm(left, axis=1), 1e-3) / len(left)
            own = np.einsum("nij,n,nik->jk", moves, weights, moves)
            value = np.einsum("nij,n,ni->j", moves, weights, seen)
            a, b = slice(3 * first, 3 * first + 3), slice(3 * second, 3 * second + 3)
            for row, column, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
                system[row, column] += sign * own
            wanted[a] -= value
            wanted[b] += value
        turns = np.asarray(np.linalg.solve(system, wanted), np.float64).reshape(-1, 3)
    return dict(zip(names, turns, strict=True))


def _equations(seam: Seam) -> tuple[Float64, Float64]:
    """(n, 2, 3): how a turn moves each feature right and up. (n, 2): how far the second camera puts it right and up."""
    azimuth, there = np.radians(seam.azimuth_deg), seam.directions
    right = np.stack([-np.sin(azimuth), -np.cos(azimuth), np.zeros_like(azimuth)], axis=-1)
    up = np.cross(right, there)
    moves = np.stack([np.cross(right, there), np.cross(up, there)], axis=1)
    return moves, np.stack([seam.right_deg, seam.up_deg], axis=-1)


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
    detected = len(points_a), len(points_b)
    none = np.zeros(0)
    nothing = Seam(first, second, none, none, none, none, detected)
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
    return Seam(first, second, azimuth_deg[near], elevation_deg[near], right[near], up[near], detected)
