"""The drive on the aerial imagery: a JPEG of the index's tiles and, over it, drawings as SVG that can be zoomed."""

from __future__ import annotations

import base64
import itertools
import math
from dataclasses import dataclass
from typing import Callable, Iterator

import cv2
import numpy as np

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.aerial.mosaic import Extent, mosaic
from unifygeo_ros.core.arrays import Float64, UInt8
from unifygeo_ros.core.covariance import chi2_quantile, error_ellipse
from unifygeo_ros.evaluation.metrics import definitions as metrics
from unifygeo_ros.evaluation.metrics.drive import Drive
from unifygeo_ros.evaluation.metrics.summary import Judged
from unifygeo_ros.evaluation.report.figures import reason_colour

IMAGE_PIXELS = 1800
"""Length of the longer side of the map image."""
MARGIN_M = 25.0
MAX_ELLIPSES = 1500
WIDEST_IMAGERY_M = 6000.0
"""Of a route: a wider map would read thousands of the index's tiles."""
_ERROR_COLOURS = ((1.0, "#2dc937"), (3.0, "#99c140"), (5.0, "#e7b416"), (10.0, "#db7b2b"), (math.inf, "#cc3232"))


@dataclass(frozen=True)
class DriveMap:
    """The map of a drive, ready for the page."""

    extent: Extent
    jpeg: str
    """base64."""
    layers: tuple[tuple[str, str], ...]
    """(name, SVG drawings) from the bottom up."""
    scale_bar_m: float
    """a round length."""
    scale_bar_px: float
    """a round length."""


def draw_map(drive: Drive, judged: Judged, index: MapIndex) -> DriveMap | None:
    """None where there is no position to show."""
    points = np.concatenate([drive.truth_m[drive.has_truth], drive.fix_m[judged.frame_index[~judged.gross]]])
    if not len(points):
        points = drive.fix_m[drive.fixed]
    if not len(points):
        return None
    extent = _extent(points, index)
    return map_of(
        extent,
        mosaic(extent, index),
        (
            ("truth", _path(drive, extent)),
            ("ellipses", "".join(_ellipses(drive, judged, extent))),
            ("rejections", "".join(_rejections(drive, extent))),
            ("fixes", "".join(_fixes(drive, judged, extent))),
        ),
    )


def draw_route(points_m: Float64, index: MapIndex, layers: Callable[[Extent], tuple[tuple[str, str], ...]]) -> DriveMap:
    """A map of what lies along points (n, 2), east and north; on grey where it is wider than `WIDEST_IMAGERY_M`.

    layers: the drawings, from the view.
    """
    extent = _extent(points_m, index)
    wide = max(extent.width, extent.height) * extent.metres_per_pixel > WIDEST_IMAGERY_M
    imagery = np.full((extent.height, extent.width, 3), 120, np.uint8) if wide else mosaic(extent, index)
    return map_of(extent, imagery, layers(extent))


def map_of(extent: Extent, imagery: UInt8, layers: tuple[tuple[str, str], ...]) -> DriveMap:
    """The map of a view: its imagery, uint8 (H, W, 3) RGB, with drawings on it and a scale bar."""
    bar = 10 ** math.floor(math.log10(extent.width * extent.metres_per_pixel / 4))
    bar *= max(step for step in (1, 2, 5) if step * bar <= extent.width * extent.metres_per_pixel / 4)
    jpeg = cv2.imencode(".jpg", imagery[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    encoded = base64.b64encode(jpeg.tobytes()).decode()
    return DriveMap(extent, encoded, layers, float(bar), bar / extent.metres_per_pixel)


UNJUDGED_COLOUR = "#8a8f98"
"""Of fixes without ground truth in a drive that has some."""


def error_legend() -> tuple[tuple[str, str], ...]:
    """(text, colour) of the fixes by error."""
    bounds = [0.0, *(limit for limit, _ in _ERROR_COLOURS)]
    names = [
        f"{low:g}–{high:g} m" if math.isfinite(high) else f"over {low:g} m" for low, high in itertools.pairwise(bounds)
    ]
    return tuple((name, colour) for name, (_, colour) in zip(names, _ERROR_COLOURS, strict=True))


def _extent(points_m: Float64, index: MapIndex) -> Extent:
    low, high = points_m.min(axis=0) - MARGIN_M, points_m.max(axis=0) + MARGIN_M
    # At least a tile in each direction, so that a short drive shows where it is.
    middle, size = (low + high) / 2, np.maximum(high - low, index.manifest.side_m)
    # Between 3:2 and 5:2, which fills the page's width without filling more than its height.
    size[0] = max(size[0], 1.5 * size[1])
    size[1] = max(size[1], size[0] / 2.5)
    scale = max(float(size.max()) / IMAGE_PIXELS, index.metres_per_pixel / 2)
    width, height = (max(1, round(side / scale)) for side in size)
    return Extent(float(middle[0] - size[0] / 2), float(middle[1] + size[1] / 2), width, height, scale)


def _path(drive: Drive, extent: Extent) -> str:
    """The true path, broken in the gaps."""
    rows = np.flatnonzero(drive.has_truth)
    if not len(rows):
        return ""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    data = ""
    for run in runs:
        points = extent.pixels(drive.truth_m[run])
        data += "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="casing" d="{data}"/><path class="line" d="{data}"/>'


def _ellipses(drive: Drive, judged: Judged, extent: Extent) -> Iterator[str]:
    """95% ellipses of the fixes: of all false ones, and of the others at most MAX_ELLIPSES."""
    false = set(judged.frame_index[judged.false].tolist())
    fixes = np.flatnonzero(drive.fixed)
    step = max(1, math.ceil(len(fixes) / MAX_ELLIPSES))
    for count, row in enumerate(fixes.tolist()):
        if count % step and row not in false:
            continue
        major_m, minor_m, angle_rad = error_ellipse(drive.covariance_m2[row])
        x, y = extent.pixels(drive.fix_m[row])[0]
        angle = -math.degrees(angle_rad)  # an image's y axis points down
        kind = "false" if row in false else "true"
        yield (
            f'<ellipse class="{kind}" cx="{x:.1f}" cy="{y:.1f}" '
            f'rx="{major_m / extent.metres_per_pixel:.1f}" ry="{minor_m / extent.metres_per_pixel:.1f}" '
            f'transform="rotate({angle:.1f} {x:.1f} {y:.1f})"/>'
        )


def _rejections(drive: Drive, extent: Extent) -> Iterator[str]:
    """A mark at the true place of each image without a fix, coloured by its reason."""
    for row in np.flatnonzero(drive.has_truth & ~drive.fixed).tolist():
        x, y = extent.pixels(drive.truth_m[row])[0]
        reason = drive.outcomes[row]
        title = f"<title>image {row}, {drive.time_s[row]:.1f} s: {reason.replace('_', ' ')}</title>"
        colour = reason_colour(reason)
        half = 0.65 * extent.mark
        yield (
            f'<rect x="{x - half:.1f}" y="{y - half:.1f}" width="{2 * half:.1f}" height="{2 * half:.1f}" '
            f'fill="{colour}">{title}</rect>'
        )


def _fixes(drive: Drive, judged: Judged, extent: Extent) -> Iterator[str]:
    """A dot at each fix, coloured by its error, and a line to the truth."""
    order = np.argsort(judged.errors_m, kind="stable")  # the worst on top
    for entry in order.tolist():
        index, error = int(judged.frame_index[entry]), float(judged.errors_m[entry])
        x, y = extent.pixels(drive.fix_m[index])[0]
        true_x, true_y = extent.pixels(drive.truth_m[index])[0]
        colour = _colour(error)
        kind = "false" if judged.false[entry] else "true"
        sigma = judged.sigma_major_m[entry]
        note = ", false fix" if judged.false[entry] else ""
        title = f"<title>image {index}, {drive.time_s[index]:.1f} s: {error:.2f} m off, σ {sigma:.2f} m{note}</title>"
        yield (
            f'<path class="error {kind}" d="M{x:.1f} {y:.1f}L{true_x:.1f} {true_y:.1f}"/>'
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{extent.mark:.2f}" fill="{colour}">'
            f"{title}</circle>"
        )
    unjudged = np.flatnonzero(drive.fixed & ~drive.has_truth)
    radii = math.sqrt(chi2_quantile(0.95)) * metrics.major_sigmas(drive.covariance_m2[unjudged])
    for index, radius in zip(unjudged.tolist(), radii.tolist(), strict=True):
        x, y = extent.pixels(drive.fix_m[index])[0]
        # Where nothing has ground truth, the colour tells the accuracy that the fix declares.
        colour = UNJUDGED_COLOUR if drive.has_truth.any() else _colour(radius)
        title = (
            f"<title>image {index}, {drive.time_s[index]:.1f} s: declared 95% radius {radius:.2f} m, "
            "no ground truth</title>"
        )
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{extent.mark:.2f}" fill="{colour}">{title}</circle>'


def _colour(distance_m: float) -> str:
    return next(colour for limit, colour in _ERROR_COLOURS if distance_m <= limit)
