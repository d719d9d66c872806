"""How alike the places of an index are, seen by its own network: what stands between an image and its place.

An image of a place should give the descriptor of the place's tile and, as f⁰, the match map's cell at the place. So an
index can be asked with itself: the tile that lies best around a place takes the image's part, and every tile that does
not show the place is a rival. A rival's score is that of re-ranking: the descriptors' similarity plus the best M⁰. The
imagery around the place says how well a camera there can tell one spot from the next.

What the index cannot tell is how well images fit their own place: hidden views, other seasons, imagery that is years
old.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import cKDTree

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.aerial.mosaic import Extent, mosaic
from unifygeo_ros.core.arrays import Bool, Float64, Int64, UInt8
from unifygeo_ros.core.geodesy import tile_from_map

RIVALS = 100
"""Tiles with the most similar descriptors whose match maps are compared, for each tile of a route."""

TEMPERATURE = 0.05
"""Of the sum over the rivals. Tile temperatures of calibrated bundles are about so large."""

AROUND_M = 20.0
"""Half the side of the square whose imagery counts: what a camera sees best of the ground."""


@dataclass(frozen=True)
class Likeness:
    """What an index says of places. Numbers are NaN where no tile of it shows the place."""

    covered: Bool
    """bool (n,): whether a tile shows the place."""
    likeness: Float64
    """float64 (n,): T · ln Σ exp(score / T) over the rivals: the score that all of them reach together. 2 is what the
    place itself reaches. −∞ where there is no rival."""
    coherence: Float64
    """float64 (n,): 0 … 1; 1 where all edges of the imagery around the place run in one direction, as on a street
    without crossings, along which every spot looks like the next."""
    detail: Float64
    """float64 (n,): mean of |Laplacian| of the grey values 0 … 255 around the place."""
    twin: Int64
    """int64 (n,): the rival with the largest score; −1: none."""


def likeness_of(index: MapIndex, places_m: Float64) -> Likeness:
    """Ask an index with itself.

    Args:
        index: an index, or a region of several.
        places_m: float64 (n, 2), east and north; NaN where a place is beyond the map's range.

    Raises:
        IndexFormatError: the index is damaged.
    """
    count, side_m = len(places_m), index.manifest.side_m
    nearest = np.full(count, -1, np.int64)
    known = np.isfinite(places_m).all(axis=1)
    if known.any():
        distance_m, tile = cKDTree(np.asarray(index.centres_m)).query(places_m[known], p=np.inf)
        nearest[known] = np.where(distance_m <= side_m / 2, tile, -1)
    likeness, coherence, detail = np.full((3, count), np.nan)
    twin = np.full(count, -1, np.int64)
    for tile_id in np.unique(nearest[nearest >= 0]).tolist():
        rows = np.flatnonzero(nearest == tile_id)
        likeness[rows], twin[rows] = _rivalry(index, tile_id, places_m[rows])
        coherence[rows], detail[rows] = _texture(index, tile_id, places_m[rows])
    return Likeness(nearest >= 0, likeness, coherence, detail, twin)


def _rivalry(index: MapIndex, tile_id: int, places_m: Float64) -> tuple[Float64, Int64]:
    """`Likeness.likeness` and `Likeness.twin` of places that one tile shows best."""
    side_m, size = index.manifest.side_m, index.manifest.match_size
    found = index.search(np.asarray(index.descriptors[tile_id], np.float32), RIVALS + _tiles_at_a_place(index))
    rivals = found.tile_ids
    cells = np.asarray(index.match_maps[tile_id], np.float32)[tuple(_cells(index, tile_id, places_m).T)]  # (m, C_0)
    maps = np.asarray(index.match_maps[rivals], np.float32).reshape(len(rivals), size * size, -1)
    best = (maps @ cells.T).max(axis=1)  # (k, m)
    scores = (found.similarities[:, None] + best).astype(np.float64)
    # A tile that does not reach to within a tile's half side of the place shows nothing of what the camera is near.
    away_m = np.abs(np.asarray(index.centres_m[rivals])[:, None] - places_m).max(axis=-1)
    scores[away_m <= side_m] = -np.inf
    with np.errstate(divide="ignore"):
        top = scores.max(axis=0, initial=-np.inf)
        shift = np.where(np.isfinite(top), top, 0.0)
        likeness = shift + TEMPERATURE * np.log(np.exp((scores - shift) / TEMPERATURE).sum(axis=0))
    twin = np.where(np.isfinite(top), rivals[scores.argmax(axis=0)] if len(rivals) else -1, -1)
    return likeness, twin


def _tiles_at_a_place(index: MapIndex) -> int:
    """How many tiles are no rivals of a place, about: those whose centres are within a side of it."""
    stride_m = index.manifest.stride_m or index.manifest.side_m / 2
    return math.ceil(2 * index.manifest.side_m / stride_m + 1) ** 2


def _cells(index: MapIndex, tile_id: int, places_m: Float64) -> Int64:
    """Row and column of the match map's cells that hold places: int64 (m, 2)."""
    size, centre = index.manifest.match_size, np.asarray(index.centres_m[tile_id])
    yaw = index.tile_yaw_rad(tile_id)
    away = places_m - centre
    east, north = (
        np.cos(yaw) * away[:, 0] + np.sin(yaw) * away[:, 1],
        np.cos(yaw) * away[:, 1] - np.sin(yaw) * away[:, 0],
    )
    cell = tile_from_map(east, north, 0.0, 0.0, size, index.manifest.side_m / size)
    return np.asarray(np.clip(np.rint(cell), 0, size - 1), np.int64)


def _texture(index: MapIndex, tile_id: int, places_m: Float64) -> tuple[Float64, Float64]:
    """`Likeness.coherence` and `Likeness.detail` of places that one tile shows best."""
    scale, reach_m = index.metres_per_pixel, index.manifest.side_m / 2 + AROUND_M
    east_m, north_m = np.asarray(index.centres_m[tile_id]).tolist()
    pixels = round(2 * reach_m / scale)
    extent = Extent(east_m - reach_m, north_m + reach_m, pixels, pixels, scale)
    picture = mosaic(extent, index)
    coherence, detail = texture(picture, round(2 * AROUND_M / scale))
    columns, rows = np.clip(np.rint(extent.pixels(places_m) - 0.5).astype(int), 0, pixels - 1).T
    return coherence[rows, columns], detail[rows, columns]


def texture(picture: UInt8, window: int) -> tuple[Float64, Float64]:
    """How much the edges around each pixel run in one direction, and how many there are.

    Args:
        picture: uint8 (H, W, 3) RGB.
        window: side of the square around a pixel that counts, pixels.

    Returns:
        float64 (H, W): (λ₁ − λ₂) / (λ₁ + λ₂) of the structure tensor of the colours (CIE L*a*b*), 0 where there is no
        edge; float64 (H, W): mean |Laplacian| of the grey values.
    """
    colours = cv2.cvtColor((picture / np.float32(255)).astype(np.float32), cv2.COLOR_RGB2LAB)
    smooth = cv2.GaussianBlur(colours, (0, 0), 1.5)
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, *order).astype(np.float64) for order in ((1, 0), (0, 1)))

    def mean(values: Float64) -> Float64:
        return np.asarray(cv2.blur(values, (window, window)), np.float64)

    xx, yy = mean((across**2).sum(axis=-1)), mean((down**2).sum(axis=-1))
    xy = mean((across * down).sum(axis=-1))
    difference, total = np.hypot(xx - yy, 2 * xy), xx + yy
    coherence = np.divide(difference, total, out=np.zeros_like(total), where=total > 1e-9)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return coherence, mean(np.abs(cv2.Laplacian(grey, cv2.CV_32F)).astype(np.float64))
