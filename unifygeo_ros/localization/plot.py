"""One fix as a picture: the panorama, the candidates with M⁰, and D over the winner's aerial image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Ellipse

from unifygeo_ros.core.covariance import error_ellipse, semi_axes
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.geodesy import azimuth_from_yaw, tile_from_map
from unifygeo_ros.core.records import CameraImage, Fix, Observation, Rejection
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.localization.panorama import prepare_panorama

SHOWN_CANDIDATES = 6


def draw(
    path: Path, localizer: Localizer, image: CameraImage, observation: Observation | Rejection, result: Fix | Rejection
) -> None:
    """Write the picture of one image's observation and result (PNG, PDF, SVG, by the suffix).

    Raises:
        ConfigurationError: The file cannot be written, or its suffix is of no kind of picture.
    """
    figure = Figure(figsize=(13, 4.2 if isinstance(observation, Rejection) else 11.5), layout="constrained")
    figure.suptitle(_headline(result), fontsize=12)
    if isinstance(observation, Rejection):
        axes = figure.subplots()
        axes.imshow(image.pixels, aspect="auto")
        axes.set_axis_off()
    else:
        rows: Any = figure.subfigures(3, 1, height_ratios=[1.1, 1.0, 2.2])
        _draw_panorama(rows[0].subplots(), localizer, image, observation)
        _draw_candidates(rows[1], localizer, observation)
        _draw_winner(rows[2], localizer, observation, result)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path}: cannot be drawn into ({error}); give a .png in a folder that exists and that you may write to"
        ) from error


def _headline(result: Fix | Rejection) -> str:
    if isinstance(result, Rejection):
        return f"rejected: {result.reason.value} — {result.detail}"
    major_m, minor_m = semi_axes(result.covariance_m2)
    return (
        f"fix {result.latitude_deg:.6f}°, {result.longitude_deg:.6f}°   σ {major_m:.1f} × {minor_m:.1f} m   "
        f"score {result.score:.3f}   ambiguity {result.ambiguity:.0%}   {result.timings_ms.get('total', 0):.0f} ms"
    )


def _draw_panorama(axes: Axes, localizer: Localizer, image: CameraImage, observation: Observation) -> None:
    ground = localizer.bundle.manifest.ground
    panorama = prepare_panorama(image, ground, localizer.mount, observation.heading)
    extent = (-180.0, 180.0, math.degrees(ground.elevation_bottom_rad), math.degrees(ground.elevation_top_rad))
    axes.imshow(panorama.pixels, extent=extent, aspect="auto")
    axes.set_xticks(np.arange(-180, 181, 45), ["S", "SW", "W", "NW", "N", "NE", "E", "SE", "S"])
    for edge in np.linspace(-180, 180, ground.columns + 1):
        axes.axvline(edge, color="white", linewidth=0.4, alpha=0.5)
    axes.set_ylabel("elevation (°)")
    heading = observation.heading
    vehicle_deg = math.degrees(azimuth_from_yaw(heading.yaw_rad))
    axes.plot(vehicle_deg, extent[2], "^", color="lime", ms=12, clip_on=False)
    axes.set_title(
        f"panorama; the vehicle faces the triangle (yaw {math.degrees(heading.yaw_rad):.1f}° ± "
        f"{math.degrees(math.sqrt(heading.variance_rad2)):.1f}°, {heading.source.value})",
        fontsize=10,
    )


def _draw_candidates(figure: SubFigure, localizer: Localizer, observation: Observation) -> None:
    matches = observation.matches
    shown = min(SHOWN_CANDIDATES, len(matches.tile_ids))
    panels = np.atleast_1d(figure.subplots(1, SHOWN_CANDIDATES))
    for axes in panels[shown:]:
        axes.set_visible(False)
    low, high = float(matches.match_maps.min()), float(matches.match_maps.max())
    for rank, axes in enumerate(panels[:shown]):
        tile_id = int(matches.tile_ids[rank])
        size = localizer.index.tile_size
        axes.imshow(localizer.index.tile_pixels(tile_id))
        axes.imshow(
            matches.match_maps[rank],
            extent=(-0.5, size - 0.5, size - 0.5, -0.5),
            cmap="inferno",
            alpha=0.5,
            vmin=low,
            vmax=high,
        )
        axes.set_title(
            f"tile {tile_id}, retrieved as number {matches.retrieval_ranks[rank] + 1}\n{matches.scores[rank]:.3f} = "
            f"{matches.similarities[rank]:.3f} + {matches.scores[rank] - matches.similarities[rank]:.3f}",
            fontsize=7.5,
        )
        axes.set_axis_off()


def _draw_winner(figure: SubFigure, localizer: Localizer, observation: Observation, result: Fix | Rejection) -> None:
    whole, near, text = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1, 1, 0.5]})
    distribution = observation.distributions[0]
    pixels = localizer.index.tile_pixels(distribution.tile_id)
    half_m = localizer.index.manifest.side_m / 2
    east, north = distribution.centre_east_m, distribution.centre_north_m
    extent = (east - half_m, east + half_m, north - half_m, north + half_m)
    # On the scale of what is likely: pixels less than 1% as probable as the best are not painted.
    density = np.ma.masked_less(distribution.probability / distribution.probability.max(), 0.01)
    for axes in (whole, near):
        axes.imshow(pixels, extent=extent)
        axes.imshow(density, extent=extent, cmap="inferno", alpha=0.55, vmin=0.0, vmax=1.0)
        axes.set_xlabel("east (m)")
        _draw_answer(axes, result)
        axes.set_xlim(extent[:2])
        axes.set_ylim(extent[2:])
    whole.set_title(f"D over tile {distribution.tile_id}", fontsize=10)
    whole.set_ylabel("north (m)")
    best = result.hypotheses[0] if result.hypotheses else None
    if best is not None:
        reach = max(8.0, half_m / 4)
        near.set_xlim(best.east_m - reach, best.east_m + reach)
        near.set_ylim(best.north_m - reach, best.north_m + reach)
    near.set_title("about the answer: base_link, 95% ellipse", fontsize=10)
    text.set_axis_off()
    text.text(0.0, 1.0, _table(localizer, observation, result), va="top", family="monospace", fontsize=8)


def _draw_answer(axes: Axes, result: Fix | Rejection) -> None:
    for number, hypothesis in enumerate(result.hypotheses):
        axes.plot(hypothesis.east_m, hypothesis.north_m, "o", mfc="none", mec="cyan" if number == 0 else "white", ms=9)
        axes.annotate(
            f"{hypothesis.weight:.0%}",
            (hypothesis.east_m, hypothesis.north_m),
            textcoords="offset points",
            xytext=(7, 5),
            color="white",
            fontsize=8,
            clip_on=True,
            annotation_clip=True,
        )
    if isinstance(result, Fix):
        major_m, minor_m, angle_rad = error_ellipse(result.covariance_m2)
        centre = (result.east_m, result.north_m)
        axes.add_patch(
            Ellipse(centre, 2 * major_m, 2 * minor_m, angle=math.degrees(angle_rad), fill=False, ec="lime", lw=1.5)
        )
        axes.plot(*centre, "+", color="lime", ms=10)
        length = 4.0
        axes.annotate(
            "",
            (centre[0] + length * math.cos(result.yaw_rad), centre[1] + length * math.sin(result.yaw_rad)),
            centre,
            arrowprops={"arrowstyle": "->", "color": "lime"},
        )


def _table(localizer: Localizer, observation: Observation, result: Fix | Rejection) -> str:
    distribution = observation.distributions[0]
    lines = ["stage              ms"]
    stages = sorted(result.timings_ms.items(), key=lambda stage: stage[0] == "total")  # the total last
    lines += [f"{name:<16} {value:6.2f}" for name, value in stages]
    if result.hypotheses:
        best = result.hypotheses[0]
        row, column = tile_from_map(
            best.east_m,
            best.north_m,
            distribution.centre_east_m,
            distribution.centre_north_m,
            localizer.index.tile_size,
            localizer.index.metres_per_pixel,
        )
        lines += ["", f"answer at tile row {row:.1f}, column {column:.1f}"]
    return "\n".join(lines)
