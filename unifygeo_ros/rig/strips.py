"""Parts of an equirectangular panorama that single cameras contribute, before they are blended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unifygeo_ros.core.arrays import Float32, Float64, Int64, UInt8


@dataclass(frozen=True)
class Strip:
    """What one camera contributes: rows and columns of the panorama (columns may run past its end, and wrap)."""

    first_row: int
    first_column: int
    pixels: UInt8
    """uint8 (rows, columns, 3)."""
    weight: Float32
    """float32 (rows, columns), 0 where the camera saw nothing, rising with the distance from its image's edge to 1."""

    def parts(self, width: int) -> list[tuple[slice, slice, slice]]:
        """(rows of the panorama, columns of the strip, columns of the panorama), split where the columns wrap."""
        rows = slice(self.first_row, self.first_row + self.weight.shape[0])
        start, count = self.first_column % width, self.weight.shape[1]
        until = min(count, width - start)
        parts = [(rows, slice(0, until), slice(start, start + until))]
        if until < count:
            parts.append((rows, slice(until, count), slice(0, count - until)))
        return parts


def common_columns(first: Strip, second: Strip, width: int) -> list[tuple[int, int, int]]:
    """Runs of columns that both strips hold: where each strip has the first one, and how many there are."""
    runs = []
    own = first.first_column % width
    for turn in (-width, 0, width):
        shifted = second.first_column % width + turn
        start, stop = max(own, shifted), min(own + first.weight.shape[1], shifted + second.weight.shape[1])
        if stop > start:
            runs.append((start - own, start - shifted, stop - start))
    return runs


def directions(width: int, rows: Int64 | Float64, columns: Int64 | Float64) -> Float64:
    """Unit vectors in base_link's axes of rows × columns of an equirectangular image of `width`: (n, m, 3)."""
    azimuth = (np.asarray(columns) + 0.5) / width * 2 * np.pi - np.pi  # clockwise from base_link's x axis
    elevation = np.pi / 2 - (np.asarray(rows) + 0.5) / width * 2 * np.pi
    cos = np.cos(elevation)[:, None]
    return np.stack(
        [
            cos * np.cos(azimuth),
            -cos * np.sin(azimuth),
            np.broadcast_to(np.sin(elevation)[:, None], (len(rows), len(columns))),
        ],
        axis=-1,
    )
