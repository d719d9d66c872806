"""Is an image of the right aspect really an equirectangular panorama?

A dual-fisheye stream and a stretched pinhole image have the aspect of a full sphere too, and the network finds a
place for them too. Two properties distinguish them, for every orientation of the camera and every scene:

* **Poles.** A row at the angle θ from the top or bottom edge of a sphere is a circle of circumference 2π sin θ,
  stretched over the whole width. What is θ wide for a camera is 1 / sin θ times as wide in the row, so near the poles
  the image changes much less along the rows than across them: the share of the squared differences that lies along the
  rows is about sin²θ, 0.003 in the mean between 1° and 6°. In any other image it is about a half.
* **Seam.** The left and the right edge show the same direction.

Both need something to be seen: a cloudless sky or an even floor decides nothing. Black pixels (beyond a fisheye's
circle, a missing sector of a rig) and those of the body mask do not count.
"""

from __future__ import annotations

import functools
import math
import statistics

import cv2
import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Bool, Float32, Float64, UInt8

WIDTH = 512
"""Columns of the grey image that the checks look at."""

LEAST_WIDTH = 256
"""Smaller images are not checked: a row of theirs is as wide as what is looked at near a pole."""

POLE_FROM_RAD, POLE_TO_RAD = math.radians(1.0), math.radians(6.0)
"""Rows this far from a pole are looked at. Nearer, a tripod or a hand fills the row."""

POLE_SHARE_LIMIT = 0.15
"""Largest share of squared differences along the rows where both poles can be judged, for the pole with the smaller
share. Measured: 0.01 to 0.03 on real panoramas, 0.23 and more on fisheye images."""

ONE_POLE_SHARE_LIMIT = 0.3
"""The same where only one pole shows enough to be judged. Measured: 0.31 and more on a real dual fisheye, 0.48 and more
on pinhole images. Rendered panoramas, where noise makes up most of a plain pole, reach 0.30 (1,757 images of four
drives)."""

POLE_LEAST_ENERGY, POLE_ENOUGH_ENERGY = 12.0, 40.0
POLE_NOISE_RATIO = 4.0
"""A pole decides if its mean squared difference (grey values²) is at least the first, and either the second or so many
times that of the image's evenest tenth: less may be noise of the sensor or of the compression, which is the same along
and across."""

SECTORS = 8
"""The pole's rows are judged sector by sector, and the median decides: a burnt-in time or logo spoils some of them."""

SEAM_LEAST_STEP = 15.0
SEAM_STEP_RATIO = 1.5
SEAM_CORRELATION = 0.85
"""A seam is torn if the two edges differ by so many grey values and so many times as much as any neighbouring columns
do (the corner of a house may be just there), and correlate less than this: two lenses of different exposure make a step
but show the same."""

_BLOCK = 16
_FILL = 6
_LEAST_SEEN = 0.2


def projection_problem(
    grey: UInt8, elevation_top_rad: float, elevation_bottom_rad: float, body: Bool | None = None
) -> str | None:
    """What shows that an image is not equirectangular, with value and limit, or None.

    Args:
        grey: uint8 (H, W), rows of equal elevation steps from elevation_top_rad to elevation_bottom_rad.
        elevation_top_rad: of the upper edge.
        elevation_bottom_rad: of the lower edge.
        body: bool of any size, True where the image shows the vehicle itself; None: nowhere.
    """
    if grey.shape[1] < LEAST_WIDTH:
        return None
    rows = max(2, round(grey.shape[0] * WIDTH / grey.shape[1]))
    small = cv2.resize(grey, (WIDTH, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
    seen = small >= _FILL
    if body is not None:
        seen &= cv2.resize(body.astype(np.uint8), (WIDTH, rows), interpolation=cv2.INTER_NEAREST) == 0
    near_top, near_bottom = _rows_near_poles(rows, elevation_top_rad, elevation_bottom_rad)
    least = min(max(POLE_LEAST_ENERGY, POLE_NOISE_RATIO * _noise_energy(small)), POLE_ENOUGH_ENERGY)
    shares = {
        "top": _share_along_rows(small, seen, near_top, 1, least),
        "bottom": _share_along_rows(small, seen, near_bottom, -1, least),
    }
    judged = {name: share for name, share in shares.items() if share is not None}
    # With both poles judged, one that is as it must be is proof: a patch over the tripod may spoil the other.
    best = min(judged, key=lambda name: judged[name], default=None)
    limit = POLE_SHARE_LIMIT if len(judged) == 2 else ONE_POLE_SHARE_LIMIT
    if best is not None and judged[best] > limit:
        return (
            f"near the {best} edge, which is one point of the sphere, the image changes along the rows nearly as much "
            f"as across them (share {judged[best]:.2f}, limit {limit:g})"
        )
    return _seam_problem(small, seen)


@functools.lru_cache(maxsize=4)
def _rows_near_poles(rows: int, top_rad: float, bottom_rad: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Of an image's rows of equal elevation steps, those that are looked at: near the upper pole, near the lower."""
    edges = np.linspace(top_rad, bottom_rad, rows + 1)
    elevation = (edges[:-1] + edges[1:]) / 2
    upper, lower = (np.flatnonzero(_near_pole(math.pi / 2 + sign * elevation)) for sign in (-1, 1))
    return upper, lower


def _near_pole(distance_rad: Float64) -> Bool:
    return np.asarray((distance_rad >= POLE_FROM_RAD) & (distance_rad <= POLE_TO_RAD))


def _noise_energy(image: Float32) -> float:
    """Mean squared difference of neighbouring rows in the evenest tenth of the image's blocks that are not filled."""
    across = (image[1:] - image[:-1]) ** 2
    rows, columns = (length // _BLOCK for length in across.shape)
    inside = across[: rows * _BLOCK, : columns * _BLOCK]
    blocks = cv2.resize(inside, (columns, rows), interpolation=cv2.INTER_AREA) if rows else inside[:0]
    varied = blocks[blocks > 0]
    if not varied.size:
        return 0.0
    # As np.quantile(varied, 0.1), in a third of the time.
    place = 0.1 * (varied.size - 1)
    below, above = math.floor(place), math.ceil(place)
    low, high = np.partition(varied, (below, above))[[below, above]]
    return float(low) + (place - below) * (float(high) - float(low))


def _share_along_rows(
    image: Float32, seen: Bool, rows: npt.NDArray[np.intp], inwards: int, least_energy: float
) -> float | None:
    """The median over the sectors of the share of squared differences along the rows; None where little is to be seen.

    inwards: 1 if the next row away from the pole lies below, −1 if above.
    """
    if not len(rows) or not rows.min() + min(inwards, 0) >= 0 or rows.max() + max(inwards, 0) >= len(image):
        return None
    band, clear = image[rows], seen[rows]
    along = (np.roll(band, -1, axis=1) - band) ** 2
    across = (image[rows + inwards] - band) ** 2
    clear = clear & np.roll(clear, -1, axis=1) & np.roll(clear, 1, axis=1) & seen[rows + inwards]
    usable = _by_sector(clear)
    enough = usable >= _LEAST_SEEN * len(rows) * (WIDTH // SECTORS)
    if not enough.any():
        return None
    counts = usable[enough]
    horizontal, vertical = (_by_sector(np.where(clear, squares, 0.0))[enough] / counts for squares in (along, across))
    shares = horizontal / np.maximum(horizontal + vertical, 1e-6)
    energies = np.where(shares > POLE_SHARE_LIMIT, horizontal, vertical)
    return None if statistics.median(energies.tolist()) < least_energy else statistics.median(shares.tolist())


def _by_sector(values: Float32 | Bool) -> Float64:
    """Sums over the rows and the columns of each sector: float64 (SECTORS,). values: (rows, WIDTH)."""
    return np.asarray(values.reshape(len(values), SECTORS, -1).sum(axis=(0, 2), dtype=np.float64))


def _seam_problem(image: Float32, seen: Bool) -> str | None:
    rows = len(image)
    middle = np.arange(rows // 8, rows - rows // 8)
    usable = middle[seen[middle][:, [0, -1]].all(axis=1)]
    if len(usable) < rows / 4:
        return None
    left, right = image[usable, 0], image[usable, -1]
    step = float(np.abs(left - right).mean())
    if step <= SEAM_LEAST_STEP:
        return None
    sharpest = float(np.abs(np.diff(image[usable], axis=1)).mean(axis=0).max())
    limit = max(SEAM_LEAST_STEP, SEAM_STEP_RATIO * sharpest)
    if step <= limit:
        return None
    # What all columns share (a bright sky above a dark ground) is no sign that these two belong together.
    common = image[usable].mean(axis=1)
    spread = float((left - common).std() * (right - common).std())
    together = float(np.mean((left - common - (left - common).mean()) * (right - common - (right - common).mean())))
    correlation = together / spread if spread > 0 else 0.0
    if correlation >= SEAM_CORRELATION:
        return None
    return (
        f"its left and right edges, which are one direction, differ by {step:.0f} grey values (limit "
        f"{limit:.0f}) and correlate by {correlation:.2f} (limit "
        f"{SEAM_CORRELATION:g})"
    )
