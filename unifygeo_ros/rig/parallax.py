"""Where two cameras of a rig overlap, how far away is what they see? Then both can show it in one place.

A panorama is composed for one distance of all that stands above the ground. A camera at b from the panorama's centre
shows what is at the distance d, in place of the assumed D, displaced by b · (1/D − 1/d) radians across the line of
sight. Two cameras displace it differently, so it appears twice where they overlap. The only unknown is 1/d. It is found
for each direction by the method of Lucas and Kanade (1981), with the displacement bound to that one line. The steps go
from a coarse resolution to a finer one and from wide windows to narrow ones. Each is a least squares fit to the
difference of the two images, with an offset of the brightness as a second unknown. Where the images do not agree better
than before, D stays.

All overlaps lie side by side on one canvas, so that each step is taken for all of them at once. Nothing is remembered
from one panorama to the next.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Sequence

import cv2
import numpy as np

from unifygeo_ros.core.arrays import Float32, Float64, UInt8
from unifygeo_ros.rig.strips import Strip, common_columns

WORKING_COLUMNS = 768
"""Distances are looked for at about this resolution: panoramas of more columns are averaged down for it."""
COARSE_COLUMNS = 384
"""The first steps are taken at about this resolution."""
COARSE_WINDOWS = (15, 11, 9, 7)
"""Sides of the windows of the first steps, pixels."""
FINE_WINDOWS = (9,)
"""The same of the steps at the working resolution, where it is finer."""
PRIOR = 5000.0
"""Added to the squared change of the grey value with 1/d, in (grey values · m)²: plain areas keep the assumed distance.
A weak edge of 5 grey values a pixel at a baseline of 0.5 m changes by 300 grey values · m at 768 columns."""
NEAREST_M = 5.0
"""Nothing is looked for nearer than this."""
SLOPE_RAD = math.radians(1.0)
"""The road may fall away from the plane of the ground by this angle. Otherwise nothing is further away than that plane:
what is seen below the horizon stands on the ground or is the ground."""
LEAST_BASELINE_M = 0.05
"""Cameras nearer to each other have no parallax."""
LEAST_PIXELS = 50
"""Smaller overlaps are left as they are."""
FADE_RAD = math.radians(4.0)
"""Beyond an overlap the correction fades out over so much: a camera's image has no step where its neighbour's ends."""


@dataclass(frozen=True)
class SeenStrip:
    """What one camera contributes to a panorama, and where it was when it saw it."""

    strip: Strip
    gain: float
    """Factor on its brightness."""
    position_m: Float64
    """float64 (3,): in base_link's axes at the panorama's instant."""


def aligned(
    seen: Sequence[SeenStrip], centre_m: Float64, ground_z_m: float, distance_m: float, width: int
) -> list[Strip]:
    """The strips, displaced in their overlaps so that both cameras show things in one place.

    Args:
        seen: The cameras.
        centre_m: float64 (3,), the point from which the panorama is seen, in base_link.
        ground_z_m: Height of the ground in base_link.
        distance_m: What the strips were composed for above the ground.
        width: Columns of the panorama.
    """
    canvas = _Canvas.of(seen, width)
    if canvas is None:
        return [camera.strip for camera in seen]
    level = canvas.level(seen, centre_m, ground_z_m, distance_m)
    coarse = level.half if canvas.is_fine else level
    nothing = np.zeros_like(coarse.both)
    found = coarse.refined(nothing, COARSE_WINDOWS)
    better = (coarse.disagreement(found) < coarse.disagreement(nothing)).astype(np.float32)
    found *= better
    if canvas.is_fine:
        shape = level.both.shape
        found = level.refined(canvas.enlarged(found, shape), FINE_WINDOWS) * (canvas.enlarged(better, shape) > 0.5)
    found *= level.both
    return canvas.displaced(seen, centre_m, found, level)


_Region = tuple[int, int, int, int]
"""First row, rows, first column and columns of a part of a strip, which may reach beyond it."""
_Part = tuple[slice, slice]


@dataclass(frozen=True)
class _Slot:
    """Where an overlap of two cameras lies on the canvas, with a margin around it."""

    cameras: tuple[int, int]
    start: int
    """Its first column on the canvas."""
    columns: int
    at: tuple[int, int]
    """Its first column in either camera's strip; may lie before it."""


@dataclass(frozen=True)
class _Canvas:
    """Overlaps side by side, with the same rows of the panorama."""

    slots: tuple[_Slot, ...]
    first_row: int
    rows: int
    columns: int
    width: int
    """Columns of the panorama."""
    reduction: int
    """Pixels of the panorama along one of the working resolution."""

    @classmethod
    def of(cls, seen: Sequence[SeenStrip], width: int) -> _Canvas | None:
        """Lay out the overlaps; None: there is none with parallax."""
        reduction = max(1, round(width / WORKING_COLUMNS))
        step, margin = 2 * reduction, _fade_columns(width)
        slots, top, bottom, start = [], width, 0, 0
        for i, first in enumerate(seen):
            for j in range(i + 1, len(seen)):
                if np.linalg.norm(first.position_m - seen[j].position_m) < LEAST_BASELINE_M:
                    continue
                for left, right, count in common_columns(first.strip, seen[j].strip, width):
                    box = _common_box(first.strip, seen[j].strip, left, right, count)
                    if box is None:
                        continue
                    low, high, before, after = box
                    top, bottom = min(top, low), max(bottom, high)
                    columns = -(-(after - before + 2 * margin) // step) * step
                    slots.append(_Slot((i, j), start, columns, (left + before - margin, right + before - margin)))
                    start += columns
        if not slots:
            return None
        above = 2 * step
        rows = -(-(bottom - top + 2 * above) // step) * step
        return cls(tuple(slots), top - above, rows, start, width, reduction)

    @property
    def is_fine(self) -> bool:
        """Whether the working resolution is finer than that of the first steps."""
        return self.width / self.reduction > 1.5 * COARSE_COLUMNS

    def level(self, seen: Sequence[SeenStrip], centre_m: Float64, ground_z_m: float, distance_m: float) -> _Level:
        """The overlaps at the working resolution."""
        greys = np.empty((2, self.rows, self.columns), np.float32)
        masks = np.zeros((2, self.rows, self.columns), np.float32)
        for slot in self.slots:
            for side, camera in enumerate(slot.cameras):
                strip, gain = seen[camera].strip, np.float32(seen[camera].gain)
                region = self._region(slot, side, strip)
                green = _nearest(strip.pixels[..., 1], region)
                np.multiply(green, gain, out=greys[side, :, slot.start : slot.start + slot.columns])
                on_strip, on_canvas = _inside(strip, region, slot.start)
                masks[side][on_canvas] = strip.weight[on_strip] > 0
        both = np.minimum(masks[0], masks[1])
        shape = self.rows // self.reduction, self.columns // self.reduction
        both = self._reduced(both, shape)
        height_m = centre_m[2] - ground_z_m
        ground = np.maximum(-np.sin(self._elevations(self.reduction)), 1e-9)[:, None] / height_m
        assumed = np.maximum(ground, 1 / distance_m)
        shifts = [self._shift(seen, centre_m, side, self.reduction) for side in (0, 1)]
        return _Level(
            self._reduced(greys[0], shape),
            self._reduced(greys[1], shape),
            (both > 0.99).astype(np.float32),
            shifts[0],
            shifts[1],
            np.minimum(assumed - 1 / NEAREST_M, 0).astype(np.float32),
            np.where(ground > 1 / distance_m, SLOPE_RAD / height_m, assumed).astype(np.float32),
        )

    def displaced(self, seen: Sequence[SeenStrip], centre_m: Float64, inverse: Float32, level: _Level) -> list[Strip]:
        """The strips as they are if things are there; around the overlaps the correction fades out.

        inverse: 1/D − 1/d, at the working resolution; 0 beyond the overlaps.
        """
        known = level.both
        reach = max(1, _fade_columns(self.width) // self.reduction)
        side = 2 * reach + 1
        share = _mean(known, side)  # a half at the edge of an overlap, 0 `reach` beyond it
        fade = np.minimum(1, 2 * share)
        around = _mean(inverse, side) / np.maximum(share, np.float32(0.5))
        shape = self.rows, self.columns
        fade, inverse = (
            self.enlarged(values, shape)
            for values in (np.where(known > 0, np.float32(1), fade), np.where(known > 0, inverse, around))
        )
        row, column = _grid(shape)
        pixels = [camera.strip.pixels for camera in seen]
        strength: list[Float32 | None] = [None] * len(seen)
        for number in (0, 1):
            shift = (level.first_shift, level.second_shift)[number]
            to_right, downwards = shift if self.reduction == 1 else self._shift(seen, centre_m, number, 1)
            colours = np.empty((*shape, 3), np.uint8)
            for slot in self.slots:
                strip = seen[slot.cameras[number]].strip
                region = self._region(slot, number, strip)
                colours[:, slot.start : slot.start + slot.columns] = _nearest(strip.pixels, region)
            moved = cv2.remap(
                colours,
                column + to_right * inverse,
                row + downwards * inverse,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for slot in self.slots:
                camera = slot.cameras[number]
                strip = seen[camera].strip
                on_strip, on_canvas = _inside(strip, self._region(slot, number, strip), slot.start)
                before = strength[camera]
                if before is None:
                    strength[camera] = before = np.zeros_like(strip.weight)
                    before[on_strip] = fade[on_canvas]
                    pixels[camera] = strip.pixels.copy()
                    pixels[camera][on_strip] = moved[on_canvas]
                    continue
                # Where three cameras see the same, or two overlaps are near each other, the surer one counts.
                surer = (fade[on_canvas] > before[on_strip]).astype(np.uint8)
                cv2.copyTo(moved[on_canvas], surer, pixels[camera][on_strip])
                cv2.copyTo(fade[on_canvas], surer, before[on_strip])
        return [dataclasses.replace(camera.strip, pixels=changed) for camera, changed in zip(seen, pixels, strict=True)]

    def enlarged(self, values: Float32, shape: tuple[int, ...]) -> Float32:
        """Values at a coarser resolution of the canvas, interpolated."""
        if values.shape == shape:
            return values
        return np.asarray(cv2.resize(values, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.float32)

    def _reduced(self, values: Float32, shape: tuple[int, int]) -> Float32:
        if values.shape == shape:
            return values
        return np.asarray(cv2.resize(values, shape[::-1], interpolation=cv2.INTER_AREA), np.float32)

    def _region(self, slot: _Slot, side: int, strip: Strip) -> _Region:
        """Where a slot lies in the strip of one of its two cameras."""
        return self.first_row - strip.first_row, self.rows, slot.at[side], slot.columns

    def _elevations(self, reduction: int) -> Float64:
        rows = self.first_row + (np.arange(self.rows // reduction) + 0.5) * reduction
        return np.asarray(np.clip(np.pi / 2 - rows / self.width * 2 * np.pi, -1.5, 1.5))  # ±86°

    def _shift(
        self, seen: Sequence[SeenStrip], centre_m: Float64, side: int, reduction: int
    ) -> tuple[Float32, Float32]:
        """Columns and rows by which cameras displace things, for each 1/m that 1/D − 1/d is: float32 (h, w) each."""
        count = self.columns // reduction
        azimuth, offset_m = np.empty(count), np.empty((3, count))
        for slot in self.slots:
            part = slice(slot.start // reduction, (slot.start + slot.columns) // reduction)
            strip = seen[slot.cameras[side]].strip
            first = strip.first_column + slot.at[side]
            columns = first + (np.arange(slot.columns // reduction) + 0.5) * reduction
            azimuth[part] = columns / self.width * 2 * np.pi - np.pi
            offset_m[:, part] = (seen[slot.cameras[side]].position_m - centre_m)[:, None]
        elevation = self._elevations(reduction)
        x, y, z = offset_m
        pixels_per_rad = self.width / reduction / (2 * np.pi)
        across = (-np.sin(azimuth) * x - np.cos(azimuth) * y) * pixels_per_rad
        ahead = (np.cos(azimuth) * x - np.sin(azimuth) * y) * pixels_per_rad
        sin, cos = np.sin(elevation).astype(np.float32)[:, None], np.cos(elevation).astype(np.float32)[:, None]
        down = sin * ahead.astype(np.float32) - cos * (z * pixels_per_rad).astype(np.float32)
        return across.astype(np.float32) / cos, down


@dataclass(frozen=True)
class _Level:
    """The overlaps at one resolution, float32 (h, w) each."""

    first: Float32
    """Grey values of one camera."""
    second: Float32
    """The same of the other camera."""
    both: Float32
    """1 where both cameras see something, else 0."""
    first_shift: tuple[Float32, Float32]
    """Columns and rows by which the first camera displaces things, for each 1/m that 1/D − 1/d is."""
    second_shift: tuple[Float32, Float32]
    """The same of the second one."""
    least: Float32
    """float32 (h, 1), of 1/D − 1/d: things at NEAREST_M; 0 where the ground is nearer."""
    most: Float32
    """float32 (h, 1): things at infinity; where the ground is seen, see SLOPE_RAD."""

    @property
    def half(self) -> _Level:
        """The same at half the resolution."""
        size = self.first.shape[1] // 2, self.first.shape[0] // 2

        def smaller(values: Float32) -> Float32:
            return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)

        shifts = [
            (smaller(across) * np.float32(0.5), smaller(down) * np.float32(0.5))
            for across, down in (self.first_shift, self.second_shift)
        ]
        return _Level(
            smaller(self.first),
            smaller(self.second),
            (smaller(self.both) > 0.3).astype(np.float32),
            shifts[0],
            shifts[1],
            self.least[::2],
            self.most[::2],
        )

    def displaced(self, inverse: Float32) -> tuple[Float32, Float32]:
        """Both images as they are if things are there."""
        row, column = _grid(self.first.shape)
        found = []
        for grey, (right, down) in ((self.first, self.first_shift), (self.second, self.second_shift)):
            columns, rows = column + right * inverse, row + down * inverse
            found.append(cv2.remap(grey, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
        return found[0], found[1]

    def refined(self, inverse: Float32, windows: Sequence[int]) -> Float32:
        """1/D − 1/d after some more steps."""
        across = self.first_shift[0] - self.second_shift[0], self.first_shift[1] - self.second_shift[1]
        for side in windows:
            first, second = self.displaced(inverse)
            middle, difference = first + second, (first - second) * self.both
            change = cv2.Sobel(middle, cv2.CV_32F, 1, 0, scale=1 / 16) * across[0]
            change += cv2.Sobel(middle, cv2.CV_32F, 0, 1, scale=1 / 16) * across[1]
            change *= self.both
            means = _mean(cv2.merge([change, difference, change * difference, change * change]), side)
            mean_change, mean_difference, product, square = cv2.split(means)
            mean_change *= 1 / (_mean(self.both, side) + np.float32(1e-6))  # over what both see
            product -= mean_change * mean_difference
            square -= mean_change * means[..., 0]
            square += np.float32(PRIOR)
            inverse = np.clip(inverse - product / square, self.least, self.most)
        return inverse

    def disagreement(self, inverse: Float32) -> Float32:
        """Variance of the difference of the two images around each pixel."""
        first, second = self.displaced(inverse)
        difference = (first - second) * self.both
        share = _mean(self.both, COARSE_WINDOWS[-1]) + np.float32(1e-6)
        mean = _mean(difference, COARSE_WINDOWS[-1])
        return np.asarray(_mean(difference * difference, COARSE_WINDOWS[-1]) - mean * mean / share)


def _common_box(first: Strip, second: Strip, left: int, right: int, count: int) -> tuple[int, int, int, int] | None:
    """First and last row (of the panorama) and column (of the run) that both strips see; None where they are few.

    left, right, count: a run of common columns, as `common_columns` gives it.
    """
    top = max(first.first_row, second.first_row)
    bottom = min(first.first_row + len(first.weight), second.first_row + len(second.weight))
    if bottom <= top:
        return None
    both = (first.weight[top - first.first_row : bottom - first.first_row, left : left + count] > 0) & (
        second.weight[top - second.first_row : bottom - second.first_row, right : right + count] > 0
    )
    if np.count_nonzero(both) < LEAST_PIXELS:
        return None
    rows, columns = np.flatnonzero(both.any(axis=1)), np.flatnonzero(both.any(axis=0))
    return top + int(rows[0]), top + int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _fade_columns(width: int) -> int:
    return max(1, round(FADE_RAD / (2 * math.pi) * width))


def _nearest(values: UInt8, region: _Region) -> UInt8:
    """A part of an image that may reach beyond it, where its edge is repeated."""
    first_row, rows, first_column, columns = region
    height, width = values.shape[:2]
    top, bottom = min(max(0, first_row), height - 1), max(1, min(height, first_row + rows))
    left, right = min(max(0, first_column), width - 1), max(1, min(width, first_column + columns))
    above, before = top - first_row, left - first_column
    below, behind = rows - above - (bottom - top), columns - before - (right - left)
    part = np.ascontiguousarray(values[top:bottom, left:right])
    return np.asarray(cv2.copyMakeBorder(part, above, below, before, behind, cv2.BORDER_REPLICATE), np.uint8)


def _inside(strip: Strip, region: _Region, start: int) -> tuple[_Part, _Part]:
    """The pixels of a slot that lie in a strip: where in the strip, and where on the canvas.

    start: the slot's first column on the canvas.
    """
    first_row, rows, first_column, columns = region
    height, width = strip.weight.shape
    top, bottom = max(0, first_row), max(0, min(height, first_row + rows))
    left, right = max(0, first_column), max(0, min(width, first_column + columns))
    on_canvas = (
        slice(top - first_row, bottom - first_row),
        slice(start + left - first_column, start + right - first_column),
    )
    return (slice(top, bottom), slice(left, right)), on_canvas


def _grid(shape: tuple[int, ...]) -> tuple[Float32, Float32]:
    """Row numbers (h, 1) and column numbers (1, w)."""
    return np.arange(shape[0], dtype=np.float32)[:, None], np.arange(shape[1], dtype=np.float32)[None, :]


def _mean(values: Float32, side: int) -> Float32:
    """Mean over a square window; beyond the edge lies 0."""
    return np.asarray(cv2.blur(values, (side, side), borderType=cv2.BORDER_CONSTANT), np.float32)
