"""Paint on the ground: the albedo raster of a town, drawn with subpixel edges, and a raster of what is taken."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Bool, Float64

Colour = tuple[float, float, float]

_SHIFT = 5
"""Fractional bits of OpenCV's coordinates."""

FREE_M = 0.5
"""Pixel of the raster of taken ground."""


def rectangle(x: float, y: float, half_x: float, half_y: float, angle_rad: float) -> Float64:
    """Corners of an oriented rectangle, float64 (4, 2)."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    corners = np.array([[-half_x, -half_y], [half_x, -half_y], [half_x, half_y], [-half_x, half_y]])
    return corners @ np.array([[c, s], [-s, c]]) + (x, y)


class Canvas:
    """The ground while it is painted. Colours are albedo 0 … 255; `plants` is the share of vegetation, 0 … 1."""

    def __init__(self, size_m: float, metres_per_pixel: float) -> None:
        self.size_m = size_m
        self.metres_per_pixel = metres_per_pixel
        self.pixels = round(size_m / metres_per_pixel)
        self.albedo = np.zeros((self.pixels, self.pixels, 4), np.uint8)
        self.taken = np.zeros((round(size_m / FREE_M),) * 2, np.uint8)

    def _fixed(self, points: Float64, metres_per_pixel: float) -> npt.NDArray[np.int32]:
        """Town points as OpenCV fixed-point pixels (x, y), integer = pixel centre."""
        column = points[:, 0] / metres_per_pixel - 0.5
        row = (self.size_m - points[:, 1]) / metres_per_pixel - 0.5
        return np.round(np.stack([column, row], axis=1) * (1 << _SHIFT)).astype(np.int32)

    def polygon(self, points: Float64, colour: Colour, plants: float = 0.0) -> None:
        fixed = self._fixed(np.asarray(points, np.float64), self.metres_per_pixel)
        cv2.fillPoly(self.albedo, [fixed], (*colour, 255 * plants), cv2.LINE_AA, _SHIFT)

    def stroke(self, points: Float64, width_m: float, colour: Colour, plants: float = 0.0) -> None:
        """A ribbon of constant width along a polyline, with flat ends."""
        for quad in ribbon(np.asarray(points, np.float64), width_m / 2, -width_m / 2):
            self.polygon(quad, colour, plants)

    def outline(self, points: Float64, width_m: float, colour: Colour) -> None:
        """A closed line along a polygon's edge, drawn inside and outside equally."""
        closed = np.vstack([points, points[:1]])
        for a, b in itertools.pairwise(closed):
            self.stroke(np.stack([a, b]), width_m, colour)

    def disc(self, x: float, y: float, radius_m: float, colour: Colour, plants: float = 0.0) -> None:
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        self.polygon(np.stack([x + radius_m * np.cos(angle), y + radius_m * np.sin(angle)], axis=1), colour, plants)

    def window(self, low: Float64, high: Float64) -> tuple[slice, slice]:
        """Rows and columns of the albedo that cover the town points between two corners, with a pixel to spare."""
        res = self.metres_per_pixel
        left, right = (int(np.clip(v / res + k, 0, self.pixels)) for v, k in ((low[0], -2), (high[0], 2)))
        top, bottom = (
            int(np.clip((self.size_m - v) / res + k, 0, self.pixels)) for v, k in ((high[1], -2), (low[1], 2))
        )
        return slice(top, bottom), slice(left, right)

    def take(self, points: Float64) -> None:
        """Marks a polygon as taken."""
        cv2.fillPoly(self.taken, [self._fixed(np.asarray(points, np.float64), FREE_M)], 1, cv2.LINE_8, _SHIFT)

    def is_free(self, x: float, y: float, half_x: float, half_y: float, angle_rad: float) -> bool:
        """Whether an oriented rectangle lies in the town on ground that is not taken."""
        along = np.linspace(-half_x, half_x, max(2, int(half_x * 2 / 0.9) + 1))
        across = np.linspace(-half_y, half_y, max(2, int(half_y * 2 / 0.9) + 1))
        u, v = np.meshgrid(along, across)
        c, s = np.cos(angle_rad), np.sin(angle_rad)
        px, py = x + u * c - v * s, y + u * s + v * c
        if px.min() < 0 or py.min() < 0 or px.max() >= self.size_m or py.max() >= self.size_m:
            return False
        rows = ((self.size_m - py) / FREE_M).astype(int).clip(0, len(self.taken) - 1)
        columns = (px / FREE_M).astype(int).clip(0, len(self.taken) - 1)
        return not self.taken[rows, columns].any()

    def paint_mask(self, mask: Bool, colour: Colour, plants: float = 0.0) -> None:
        """Paints the pixels of a boolean (P, P) mask."""
        self.albedo[mask] = (*(round(v) for v in colour), round(255 * plants))

    def weather(self, rng: np.random.Generator) -> None:
        """Grain, stains and large patches over everything; more on vegetation."""
        total = np.zeros((self.pixels, self.pixels), np.float32)
        for cell_m, strength in ((0.0, 0.035), (0.7, 0.045), (4.0, 0.05), (23.0, 0.07)):
            cells = self.pixels if cell_m == 0 else int(self.size_m / cell_m) + 2
            noise = rng.standard_normal((cells, cells), np.float32) * strength
            if cells != self.pixels:
                noise = cv2.resize(noise, (self.pixels, self.pixels), interpolation=cv2.INTER_CUBIC)
            total += noise
        for first in range(0, self.pixels, 256):  # in strips, to keep memory small
            part = slice(first, first + 256)
            more = 1 + self.albedo[part, :, 3].astype(np.float32) / 255 * 1.2
            factor = np.clip(1 + total[part] * more, 0.5, 1.5)
            self.albedo[part, :, :3] = np.clip(self.albedo[part, :, :3] * factor[..., None], 0, 255).astype(np.uint8)


def ribbon(line: Float64, left_m: float, right_m: float) -> Float64:
    """Quadrilaterals between two offsets to the left of a polyline, float64 (n − 1, 4, 2)."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.maximum(np.hypot(*tangent.T), 1e-9)[:, None]
    left_of = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    a, b = line + left_m * left_of, line + right_m * left_of
    return np.stack([a[:-1], a[1:], b[1:], b[:-1]], axis=1)


def band(line: Float64, left_m: float, right_m: float) -> Float64:
    """The outline of `ribbon` as one polygon, float64 (2n, 2)."""
    quads = ribbon(line, left_m, right_m)
    return np.vstack([quads[:, 0], quads[-1:, 1], quads[::-1, 2], quads[:1, 3]])
