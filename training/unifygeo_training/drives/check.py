"""What a person should know of a drive before anything is learnt from it, and why nothing can be."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import UnifyGeoError
from unifygeo_ros.core.time import NS_PER_S, s_from_ns
from unifygeo_ros.evaluation.recordings.truth import Truth
from unifygeo_training.data.photography import ABOVE, STREET
from unifygeo_training.drives.places import PARTS
from unifygeo_training.drives.recorded import Drive, Exposures, Use
from unifygeo_training.drives.turns import Turns

LEAST_IMAGES = 16
"""Fewer usable images are no data set."""
LEAST_SHARE = 0.5
"""Of a drive of which less is fit, something is wrong that a person must look at."""
LARGEST_OFFSET_S = 0.2
"""At 10 m/s, 2 m: as far as the errors of a good network."""
LARGEST_COURSE_OFFSET_S = 0.45
"""The same where the heading is the course, which leads the yaw by the way from the rear axle to base_link: 0.3 s of a
car that turns at 15 km/h."""
REACHED_M = 20.0
"""Around the cameras, for the covered area."""
SAMPLES = 32
"""Of a drive (`write_samples`)."""


@dataclass(frozen=True)
class DriveReport:
    """Findings about one drive."""

    name: str
    facts: tuple[str, ...] = ()
    problem: str | None = None
    """Why nothing may be learnt from the drive: the first thing to repair. None: it is fit."""
    notes: tuple[str, ...] = field(default=())
    """What is worth a look and prevents nothing."""

    def __str__(self) -> str:
        lines = [self.name, *(f"  {fact}" for fact in self.facts), *(f"  note  {note}" for note in self.notes)]
        lines.append(f"  ERROR {self.problem}" if self.problem else "  ok    fit to be learnt from")
        return "\n".join(lines)


def report_of_error(name: str, error: UnifyGeoError) -> DriveReport:
    """Of a drive that cannot even be opened."""
    return DriveReport(name, problem=str(error))


def examine(drive: Drive, turns: Turns) -> DriveReport:
    """Judge a drive by what became of its images and by how they turn."""
    exposures, truth = drive.exposures, drive.recording.truth
    counts, total = exposures.counts(), len(exposures.uses)
    facts = [f"{total} images, {len(drive)} used"]
    facts += [f"{counts[use]} left out, {use.value}" for use in Use if use is not Use.USED and counts[use]]
    facts.append(
        f"{_length_m(drive.positions_m):.0f} m between used images, {area_m2(drive.positions_m) / 1e6:.3f} km² within "
        f"{REACHED_M:g} m of them"
    )
    seen = counts[Use.USED] + counts[Use.NOT_COVERED] + counts[Use.BAD_IMAGE]
    if seen:
        facts.append(f"{1 - counts[Use.NOT_COVERED] / seen:.0%} of the places lie on the imagery")
    facts.append(_sentence(turns))
    notes = [f"bad stretch: {text}" for text in bad_stretches(exposures)]
    notes += [f"image rejected: {text}" for text in drive.bad_images[:1]]
    notes += list(drive.recording.bag.problems[:3])
    return DriveReport(drive.name, tuple(facts), _problem(drive, truth, turns), tuple(notes))


def _problem(drive: Drive, truth: Truth, turns: Turns) -> str | None:
    exposures = drive.exposures
    counts, total = exposures.counts(), len(exposures.uses)
    if counts[Use.NO_TRUTH] > (1 - drive.recording.source.least_truth_share) * total:
        return (
            f"{counts[Use.NO_TRUTH]} of {total} images have no truth at their stamp: images "
            f"{_span(exposures.stamps_ns[exposures.stamps_ns > 0])}, truth {_span(truth.stamps_ns)}; record both with "
            "one clock, raise truth_max_gap_s, or lower least_truth_share"
        )
    if counts[Use.POOR_TRUTH] > (1 - LEAST_SHARE) * total:
        worst = float(np.nanmedian(exposures.sigmas_m))
        return (
            f"the truth of {counts[Use.POOR_TRUTH]} of {total} images is worse than largest_sigma_m (its standard "
            f"deviation is {worst:.2g} m in the median); give a better one, such as a smoothed track"
        )
    placed = counts[Use.USED] + counts[Use.NOT_COVERED] + counts[Use.BAD_IMAGE]
    if placed and counts[Use.NOT_COVERED] > (1 - LEAST_SHARE) * placed:
        outside = exposures.positions_m[exposures.of(Use.NOT_COVERED)]
        east, north = np.median(outside, axis=0)
        latitude, longitude = drive.ground.frame.geodetic_from_map(east, north)
        return (
            f"{drive.ground.name} does not cover {counts[Use.NOT_COVERED]} of {placed} places, around "
            f"{latitude:.5f}, {longitude:.5f}; give the imagery of that place, or check truth_frame"
        )
    if counts[Use.BAD_IMAGE] > (1 - LEAST_SHARE) * placed:
        return f"the node would reject {counts[Use.BAD_IMAGE]} of {placed} images, the first as {drive.bad_images[0]}"
    if turns.mirrored:
        return (
            f"the images turn to the right where the truth turns to the left, in {turns.pairs} pairs of images: the "
            "camera is mirrored, or the truth's axes are exchanged; correct the stitching or truth_frame"
        )
    has_yaw = bool(np.isfinite(truth.yaw_rad).any())
    limit = LARGEST_OFFSET_S if has_yaw else LARGEST_COURSE_OFFSET_S
    if turns.tells_time and abs(turns.offset_s) > limit:
        late = "late" if turns.offset_s > 0 else "early"
        return (
            f"the truth is {abs(turns.offset_s):.2f} s {late} against the images (turns in {turns.pairs} pairs of "
            f"images; at most {limit:g} s); correct its stamps, or the images' by session.stamp_offset_s: "
            f"{turns.offset_s:.2f}"
        )
    if len(drive) < LEAST_IMAGES:
        left_out = ", ".join(f"{count} {use.value}" for use, count in counts.most_common() if use is not Use.USED)
        return f"{len(drive)} usable images, at least {LEAST_IMAGES} are needed; left out: {left_out or 'none'}"
    return None


def _sentence(turns: Turns) -> str:
    if not turns.judged:
        return (
            f"time offset and handedness unknown: {turns.pairs} pairs of images turn with the truth, too few or too "
            "unlike it; look at the picture"
        )
    certain = (
        "" if turns.tells_time or abs(turns.offset_s) <= LARGEST_OFFSET_S else " (not certain: the drive turns evenly)"
    )
    return (
        f"images turn as the truth does, to {math.degrees(min(turns.misfit_rad, turns.mirrored_misfit_rad)):.1f}° in "
        f"the mean over {turns.pairs} pairs; truth later than the images by {turns.offset_s:.2f} s{certain}"
    )


def bad_stretches(exposures: Exposures) -> list[str]:
    """Where ten images or more in a row cannot be used, in words."""
    good = exposures.of(Use.USED, Use.TOO_NEAR)
    found = []
    start = 0
    first_ns = int(exposures.stamps_ns[exposures.stamps_ns > 0].min(initial=np.iinfo(np.int64).max))
    while start < len(good):
        end = start
        while end < len(good) and not good[end]:
            end += 1
        if end - start >= 10:
            use, _ = Counter(exposures.uses[start:end]).most_common(1)[0]
            a, b = (s_from_ns(int(exposures.stamps_ns[n]) - first_ns) for n in (start, end - 1))
            found.append(f"{end - start} images, {a:.0f} … {b:.0f} s after the first one, {use.value}")
        start = end + 1
    return found


def area_m2(positions_m: Float64, reached_m: float = REACHED_M) -> float:
    """Area within a distance of some positions float64 (n, 2), counted in squares of a tenth of it."""
    if not len(positions_m):
        return 0.0
    cell = reached_m / 10
    steps = np.arange(-10, 11) * cell
    disc = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    disc = disc[np.hypot(*disc.T) <= reached_m]
    cells = {tuple(row) for position in positions_m for row in np.rint((position + disc) / cell).astype(int).tolist()}
    return len(cells) * cell**2


def write_samples(drive: Drive, chosen: npt.NDArray[np.bool_], folder: Path, name: str) -> None:
    """Write some panoramas and the tiles around their cameras, as the network sees them.

    The folder is one of `PhotographyConfig.styles`.

    Args:
        drive: whose images.
        chosen: bool (k,), which of its used images; of these, `SAMPLES` at even steps.
        folder: `street` and `above` are written into it.
        name: that the files' names begin with.
    """
    numbers = np.flatnonzero(chosen)
    for number in numbers[np.unique(np.linspace(0, len(numbers) - 1, SAMPLES).astype(int))] if len(numbers) else ():
        tile = drive.ground.cut(drive.ground.snapped(drive.positions_m[number])).pixels
        for kind, pixels in ((STREET, drive.panoramas[number]), (ABOVE, tile)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            file = folder / kind / f"{name}_{number:05d}.png"
            cv2.imwrite(str(file), cv2.cvtColor(np.asarray(pixels), cv2.COLOR_RGB2BGR))


def draw(drive: Drive, parts: npt.NDArray[np.str_] | None, path: Path) -> None:
    """Draw the drive over its imagery: which images are used and why others are not, and the truth's deviation.

    parts: the part of each used image, str (k,); None: not drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 11), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=(5, 1))
    exposures = drive.exposures
    known = np.isfinite(exposures.positions_m).all(axis=1)
    _draw_imagery(above, drive, exposures.positions_m[known])
    for use, colour in _COLOURS.items():
        chosen = known & exposures.of(use)
        if chosen.any():
            above.plot(
                *exposures.positions_m[chosen].T, ".", color=colour, markersize=9, label=f"left out, {use.value}"
            )
    groups = {"used": np.ones(len(drive), np.bool_)}
    if parts is not None:
        groups = {f"used, {part}": parts == part for part in PARTS}
    for (label, chosen), colour in zip(groups.items(), ("lime", "cyan", "yellow"), strict=False):
        if chosen.any():
            above.plot(*drive.positions_m[chosen].T, ".", color=colour, markersize=4, label=label)
    above.set(xlabel="east, m", ylabel="north, m", aspect="equal", title=drive.name)
    above.legend(loc="upper right", fontsize=8)
    valid = exposures.stamps_ns > 0
    first = exposures.stamps_ns[valid].min() if valid.any() else 0
    seconds = (exposures.stamps_ns - first) / NS_PER_S
    below.plot(seconds[valid], exposures.sigmas_m[valid], ".", color="black", markersize=3)
    for use, colour in _COLOURS.items():
        chosen = valid & exposures.of(use)
        below.plot(seconds[chosen], np.zeros(int(chosen.sum())), "|", color=colour, markersize=12)
    below.set(xlabel="seconds after the first image", ylabel="truth's σ, m")
    figure.savefig(path, dpi=110)


_COLOURS = {
    Use.TOO_NEAR: "silver",
    Use.NO_HEADING: "dodgerblue",
    Use.POOR_TRUTH: "orange",
    Use.NO_TRUTH: "purple",
    Use.NOT_COVERED: "red",
    Use.BAD_IMAGE: "magenta",
}
_PICTURED_TILES = 300


def _draw_imagery(axes: object, drive: Drive, positions_m: Float64) -> None:
    """Tiles beside each other under the drive, where they are few enough."""
    side = drive.ground.aerial.side_m
    if not len(positions_m):
        return
    cells = {(round(e / side), round(n / side)) for e, n in positions_m.tolist()}
    cells = {(c + x, r + y) for c, r in cells for x in (-1, 0, 1) for y in (-1, 0, 1)}
    if len(cells) > _PICTURED_TILES:
        return
    for column, row in sorted(cells):
        east, north = drive.ground.snapped(np.array([column * side, row * side]))
        tile = drive.ground.cut(np.array([east, north]))
        if tile.valid.any():
            extent = (east - side / 2, east + side / 2, north - side / 2, north + side / 2)
            clear = np.dstack([tile.pixels, np.where(tile.valid, 200, 0).astype(np.uint8)])
            axes.imshow(clear, extent=extent, interpolation="bilinear")  # type: ignore[attr-defined]
    axes.autoscale(True)  # type: ignore[attr-defined]


def _length_m(positions_m: Float64) -> float:
    return float(np.hypot(*np.diff(positions_m, axis=0).T).sum()) if len(positions_m) > 1 else 0.0


def _span(stamps_ns: np.ndarray) -> str:
    if not len(stamps_ns):
        return "none"
    return f"{s_from_ns(int(stamps_ns.min())):.1f} … {s_from_ns(int(stamps_ns.max())):.1f} s"
