"""What a network loses when panoramas or tiles are changed in one way at a time.

Three kinds of changes: parts of the panorama that no camera sees (`missing_parts`), the looks of photographs and of
providers' imagery (`photographic_changes`), each as `unifygeo_training.data.photography` draws it in training, and
panoramas with a wrong heading (`turns`). Every network sees the same changes of the same images, so that networks can
be compared row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unifygeo_ros.core.arrays import Bool, Float64, Int64, UInt8
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_training import metrics
from unifygeo_training.data.photography import (
    PhotographyConfig,
    hide_unseen,
    photograph_from_above,
    photograph_street,
)
from unifygeo_training.judging.evaluation_set import EvaluationSet
from unifygeo_training.judging.judge import Encoder
from unifygeo_training.model import UnifyGeo

Draw = Callable[[UInt8, np.random.Generator], UInt8]

BOTH = ("tone", "channels", "fourier", "statistics", "convolution")
"""Options of `PhotographyConfig` that change both views."""
STREET = ("lens", "weather", "motion", "vehicle", "passers")
"""Options that change panoramas."""
ABOVE = ("imagery", "shadows")
"""Options that change tiles."""


@dataclass(frozen=True)
class Change:
    """One row of the table."""

    name: str
    street: Draw | None = None
    """Of every panorama; None: panoramas stay as they are."""
    above: Draw | None = None
    """Of every tile, each by itself; None: tiles stay as they are."""


@dataclass(frozen=True)
class Loss:
    """What a network reaches under one change."""

    change: str
    recall_5: float
    """Percentage of panoramas whose positive tile is among the first five by cosine."""
    median_m: float
    """Of the errors on the positive tile."""
    within_5_m: float
    """Percentage of errors on the positive tile up to 5 m."""


def seen_field(
    ground: GroundSpec,
    *,
    first: float = 0.0,
    width_deg: float = 360.0,
    top_deg: float = 90.0,
    bottom_deg: float = -90.0,
) -> Bool:
    """What a camera with one field of view sees of a panorama: bool (height, width), by the pixels' centres.

    Args:
        ground: size and elevations of the panorama.
        first: where the field begins, as a share of the circle from the panorama's left edge, clockwise.
        width_deg: how far it reaches from there.
        top_deg: its upper elevation.
        bottom_deg: its lower elevation.
    """
    azimuth = (np.arange(ground.width) + 0.5) / ground.width
    share = (np.arange(ground.height) + 0.5) / ground.height
    top, bottom = math.degrees(ground.elevation_top_rad), math.degrees(ground.elevation_bottom_rad)
    elevation_deg = top + share * (bottom - top)
    columns = (azimuth - first) % 1.0 < width_deg / 360
    rows = (elevation_deg > bottom_deg) & (elevation_deg < top_deg)
    return np.asarray(rows[:, None] & columns[None])


def missing_parts(ground: GroundSpec) -> list[Change]:
    """Fields of view, filled as `prepare_panorama` fills what no camera sees; each begins at a random azimuth."""

    def change(name: str, **field: float) -> Change:
        def hide(image: UInt8, rng: np.random.Generator) -> UInt8:
            return hide_unseen(image, seen_field(ground, first=rng.random(), **field))

        return Change(name, street=hide)

    return [
        change("elevations −25° to 20°", top_deg=20.0, bottom_deg=-25.0),
        change("elevations −15° to 15°", top_deg=15.0, bottom_deg=-15.0),
        change("270°", width_deg=270.0),
        change("270°, elevations −25° to 20°", width_deg=270.0, top_deg=20.0, bottom_deg=-25.0),
        change("180°", width_deg=180.0),
        change("90°", width_deg=90.0),
    ]


def photographic_changes() -> list[Change]:
    """Every option of `PhotographyConfig` that changes looks, alone and always, without style pictures."""

    def change(name: str) -> Change:
        config = PhotographyConfig.model_validate({name: 1.0})
        return Change(
            name,
            street=None if name in ABOVE else lambda image, rng: photograph_street(image, rng, config),
            above=None if name in STREET else lambda image, rng: photograph_from_above(image, rng, config),
        )

    return [change(name) for name in (*BOTH, *STREET, *ABOVE)]


TURNS_DEG = (5, 10, 90, 180)
"""Errors of a heading that a network should forgive, and two with which it should find no place."""


def turns() -> list[Change]:
    """Panoramas turned by TURNS_DEG, to whole columns. At 180° the course of the road is still right."""

    def change(turn_deg: int) -> Change:
        def turned(image: UInt8, _: np.random.Generator) -> UInt8:
            return np.roll(image, round(turn_deg / 360 * image.shape[1]), axis=1)

        return Change(f"turned by {turn_deg}°", street=turned)

    return [change(turn_deg) for turn_deg in TURNS_DEG]


class ChangedImages:
    """An `EvaluationSet` of some queries of another, with changed images.

    What is drawn depends on the seed and the image's number alone.
    """

    def __init__(self, data: EvaluationSet, change: Change, queries: Int64, *, seed: int = 0) -> None:
        self.data, self.change, self.queries, self.seed = data, change, queries, seed

    @property
    def name(self) -> str:
        return f"{self.data.name}, {self.change.name}"

    @property
    def tiles(self) -> Int64:
        return self.data.tiles[self.queries]

    @property
    def offsets_m(self) -> Float64:
        return self.data.offsets_m[self.queries]

    @property
    def side_m(self) -> Float64:
        return self.data.side_m

    def ground_image(self, query: int) -> UInt8:
        number = int(self.queries[query])
        image = self.data.ground_image(number)
        if self.change.street is None:
            return image
        return self.change.street(image, np.random.default_rng((self.seed, 0, number)))

    def aerial_image(self, tile: int) -> UInt8:
        image = self.data.aerial_image(tile)
        if self.change.above is None:
            return image
        return self.change.above(image, np.random.default_rng((self.seed, 1, tile)))

    def displacement_m(self, start: Int64, end: Int64) -> Float64:
        return self.data.displacement_m(start, end)


@torch.inference_mode()
def losses(
    network: UnifyGeo,
    data: EvaluationSet,
    changes: Sequence[Change],
    scratch: Path,
    *,
    panoramas: int,
    seed: int = 0,
    batch: int = 32,
    workers: int = 1,
    device: torch.device | str = "cpu",
) -> list[Loss]:
    """The network's row without a change, then one for each change.

    Args:
        network: in evaluation mode.
        data: with the cameras' positions.
        changes: each alone.
        scratch: an empty folder for the gallery's features; the caller removes it.
        panoramas: how many queries are judged, evenly spread over the data.
        seed: of all that the changes draw.
        batch: images at a time.
        workers: threads that read images.
        device: of the network.

    Raises:
        ConfigurationError: the data hold fewer panoramas, or no positions.
        InputError: images cannot be read, or descriptors must not score.
    """
    available = len(data.tiles)
    if not 1 <= panoramas <= available:
        raise ConfigurationError(f"panoramas {panoramas}: {data.name} has {available}; take 1 to {available}")
    if not np.isfinite(data.offsets_m).all():
        raise ConfigurationError(f"{data.name} does not tell where the cameras are; take a set that does")
    queries = np.arange(panoramas) * available // panoramas
    network = network.to(device).eval()
    found: list[Loss] = []
    unchanged = None  # descriptors of the tiles as they are, which most rows share
    for change in (Change("nothing changed"), *changes):
        images = ChangedImages(data, change, queries, seed=seed)
        encoder = Encoder(network, images, batch, workers, torch.device(device))
        if change.above is not None:
            gallery = encoder.gallery(scratch)[0]
        else:
            gallery = unchanged = encoder.gallery(scratch)[0].copy() if unchanged is None else unchanged
        descriptors, levels = encoder.queries()
        positives = images.tiles[:, 0]
        ranks = metrics.retrieval_ranks(descriptors, gallery, positives)
        answers = encoder.answers(levels, {"positive": positives})["positive"]
        error = metrics.metric_scores(np.hypot(*(answers - images.offsets_m).T))
        found.append(Loss(change.name, 100 * float(np.mean(ranks <= 5)), error.median_m, error.recall[5.0]))
    return found


def report(data: str, panoramas: int, tiles: int, networks: dict[str, list[Loss]]) -> str:
    """The table as Markdown: one row a change, one column a network."""
    names = list(networks)
    lines = [
        f"{data}, {panoramas} panoramas, {tiles} tiles: R@5 by cosine, median error, share up to 5 m of error",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for rows in zip(*networks.values(), strict=True):
        cells = " | ".join(f"{row.recall_5:.1f}%, {row.median_m:.2f} m, {row.within_5_m:.1f}%" for row in rows)
        lines.append(f"| {rows[0].change} | {cells} |")
    return "\n".join(lines)
