"""The heading of an image that came without one.

f_g⁰ is made of `columns` groups of channels, one for each azimuth sector from left to right. Had the camera been turned
by one sector, the groups would have moved by one; so one encoding gives the features of all headings that are whole
sectors apart.

This is an approximation for two reasons: the encoder sees the image's two ends as borders, and the LayerNorm at the end
of f_g⁰ has a gain and an offset of its own for each element. Measured on the small member: rolled features have a
cosine of 0.98 with those of the turned image, and their max M⁰ differs by 0.007 at most in the mean. The heading found
is only used to encode the image once more, turned by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unifygeo_ros.core.arrays import Float32, Float64, Int64
from unifygeo_ros.core.geodesy import wrap_angle, yaw_from_azimuth
from unifygeo_ros.core.records import Heading, HeadingSource
from unifygeo_ros.core.softmax import softmax


@dataclass(frozen=True)
class HeadingSearch:
    """How well each tile fits under each heading."""

    tile_ids: Int64
    """int64 (m,)."""
    azimuths_rad: Float64
    """float64 (E, R), azimuth of base_link's x axis for roll r of encoding e; the rolls of one encoding are evenly
    spaced over the whole circle."""
    scores: Float32
    """float32 (m, E, R), similarity + max M⁰."""

    @property
    def best_tile(self) -> int:
        """The tile that fits best under any heading."""
        return int(self.tile_ids[self.scores.max(axis=(1, 2)).argmax()])


def rolled_columns(f0: Float32, columns: int) -> Float32:
    """f_g⁰ of the camera turned by 0, 1, … sectors: float32 (columns, C_0).

    Roll r is that of a camera whose azimuth is r sectors larger (further clockwise): in a panorama that faces north its
    content lies r sectors further right.

    Args:
        f0: float32 (C_0,), columns outer, channels inner.
        columns: of the panorama's features.
    """
    groups = f0.reshape(columns, -1)
    return np.stack([np.roll(groups, roll, axis=0).reshape(-1) for roll in range(columns)])


def encoding_azimuths(encodings: int, columns: int) -> Float64:
    """Azimuths of base_link that the encodings of a search assume: float64 (E,), the first 0, spread over the circle.

    Whole sectors apart they would only repeat each other's rolls; so each is shifted by its part of a sector, and the
    rolls of all together are evenly spaced.
    """
    encoding = np.arange(encodings)
    return (np.round(encoding * columns / encodings) + encoding / encodings) * (2 * np.pi / columns)


def heading_search(tile_ids: Int64, azimuths_rad: Float64, similarities: Float32, peaks: Float32) -> HeadingSearch:
    """Scores of all tiles under all rolls: similarity + max M⁰ of the roll, as Eq. 4 has it for one roll.

    A roll turns f_g⁰ but not the global descriptor, so the similarity is that of the encoding whose own heading, its
    roll 0, is nearest.

    Args:
        tile_ids: int64 (m,).
        azimuths_rad: float64 (E, R).
        similarities: float32 (m, E).
        peaks: float32 (m, E, R), max M⁰.
    """
    away_rad = np.abs(wrap_angle(azimuths_rad[:, :, None] - azimuths_rad[:, 0]))  # (E, R, E)
    return HeadingSearch(tile_ids, azimuths_rad, peaks + similarities[:, away_rad.argmin(axis=2)])


def estimate_heading(search: HeadingSearch, temperature: float, tile_id: int | None = None) -> Heading:
    """The heading under which a tile (by default: any tile) fits best.

    The peak is refined between the rolls by the parabola through it and its neighbours of the same encoding. The
    variance is the second moment of the belief softmax(score / temperature) about the peak, so that a rival heading
    shows, plus that of an even error over half a sector (a quarter to each side), which the parabola leaves.
    """
    scores = search.scores if tile_id is None else search.scores[search.tile_ids == tile_id]
    best = scores.max(axis=0).astype(np.float64)  # (E, R)
    encoding, roll = np.unravel_index(int(best.argmax()), best.shape)
    rolls = best.shape[1]
    sector_rad = 2 * np.pi / rolls
    left, peak, right = best[encoding, (roll - 1) % rolls], best[encoding, roll], best[encoding, (roll + 1) % rolls]
    curvature = left - 2 * peak + right
    shift = 0.0 if curvature >= 0 or rolls < 3 else float(np.clip(0.5 * (left - right) / curvature, -0.5, 0.5))
    azimuth_rad = float(search.azimuths_rad[encoding, roll]) + shift * sector_rad
    belief = softmax(best, temperature)
    away_rad = wrap_angle(search.azimuths_rad - azimuth_rad)
    # Belief within half a sector is the peak's own and not a spread.
    away_rad = np.sign(away_rad) * np.maximum(np.abs(away_rad) - sector_rad / 2, 0.0)
    variance = float(np.sum(belief * away_rad**2)) + (sector_rad / 2) ** 2 / 12
    return Heading(float(yaw_from_azimuth(azimuth_rad)), variance, HeadingSource.SEARCH)
