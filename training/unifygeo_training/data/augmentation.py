"""Augmentation of a pair: both views turned and mirrored together, each view's appearance changed on its own."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from unifygeo_ros.core.arrays import UInt8
from unifygeo_training.data.photography import (
    PhotographyConfig,
    draw_seen,
    hide_unseen,
    photograph_from_above,
    photograph_street,
)

Position = tuple[float, float]


class AugmentationConfig(BaseModel):
    """Probabilities (0: never) and strengths. `colour`: largest relative change of gain, contrast, saturation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    geometry: bool = True
    turned_twins: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of a batch's pairs that come in twos: a pair, and the same place turned by 180° in both views. Each is the
    other's hardest negative: the course of the road is the same, what stands beside it is exchanged."""
    heading_sigma_deg: float = Field(default=0.0, ge=0.0)
    """Standard deviation of a turn of the panorama alone, so that the network forgives a heading that is not quite
    right; rounded to whole columns."""
    colour: float = Field(default=0.3, ge=0.0, lt=1.0)
    blur: float = Field(default=0.1, ge=0.0, le=1.0)
    sharpen: float = Field(default=0.1, ge=0.0, le=1.0)
    noise: float = Field(default=0.2, ge=0.0, le=1.0)
    jpeg: float = Field(default=0.1, ge=0.0, le=1.0)
    grid_dropout: float = Field(default=0.05, ge=0.0, le=1.0)
    coarse_dropout: float = Field(default=0.2, ge=0.0, le=1.0)
    photography: PhotographyConfig | None = None
    """What photographs have and rendered images lack; None: nothing of it."""


@dataclass(frozen=True)
class Orientation:
    """How both views of a pair are turned and mirrored."""

    mirrored: bool = False
    turns: int = 0
    """Quarter turns, after the mirror."""

    @property
    def twin(self) -> Orientation:
        """Half a turn away."""
        return Orientation(self.mirrored, (self.turns + 2) % 4)


def draw_orientation(rng: np.random.Generator, config: AugmentationConfig) -> Orientation:
    return Orientation(bool(rng.random() < 0.5), int(rng.integers(4))) if config.geometry else Orientation()


def augment(
    panorama: UInt8,
    tile: UInt8,
    position: Position,
    rng: np.random.Generator,
    config: AugmentationConfig,
    orientation: Orientation | None = None,
) -> tuple[UInt8, UInt8, Position]:
    """Shapes and conventions as in `Pair`. The orientation is drawn where none is given."""
    orientation = orientation or draw_orientation(rng, config)
    if orientation.mirrored:
        panorama, tile, position = mirror(panorama, tile, position)
    panorama, tile, position = quarter_turns(panorama, tile, position, orientation.turns)
    if config.heading_sigma_deg > 0:
        columns = rng.normal(0.0, config.heading_sigma_deg) / 360.0 * panorama.shape[1]
        panorama = np.roll(panorama, round(columns), axis=1)
    photography = config.photography
    if photography is not None:
        panorama = photograph_street(panorama, rng, photography)
        tile = photograph_from_above(tile, rng, photography)
    panorama, tile = change_appearance(panorama, rng, config), change_appearance(tile, rng, config)
    if photography is not None and rng.random() < photography.missing:
        panorama = hide_unseen(panorama, draw_seen(rng, *panorama.shape[:2]))
    return panorama, tile, position


def mirror(panorama: UInt8, tile: UInt8, position: Position) -> tuple[UInt8, UInt8, Position]:
    """Exchange east and west in both views."""
    return panorama[:, ::-1], tile[:, ::-1], (position[0], 1.0 - position[1])


def quarter_turns(panorama: UInt8, tile: UInt8, position: Position, turns: int) -> tuple[UInt8, UInt8, Position]:
    """Turn the tile counter-clockwise by `turns` · 90° about its centre.

    What was in the east is in the north then: the panorama's columns move a quarter of the width to the left.
    """
    row, column = position
    for _ in range(turns % 4):
        row, column = 1.0 - column, row
    return (
        np.roll(panorama, -turns * (panorama.shape[1] // 4), axis=1),
        np.rot90(tile, turns),
        (row, column),
    )


def change_appearance(image: UInt8, rng: np.random.Generator, config: AugmentationConfig) -> UInt8:
    """Colour, sharpness, noise, compression and missing parts of one image; returns a new contiguous array."""
    chance = rng.random(6)  # all drawn at once: one option's probability does not shift the others' random numbers
    image = np.ascontiguousarray(image)
    if config.colour > 0:
        image = _jitter_colour(image, rng, config.colour)
    if chance[0] < config.blur:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.2)))
    elif chance[1] < config.sharpen:
        image = cv2.addWeighted(image, 1.6, cv2.GaussianBlur(image, (0, 0), 1.0), -0.6, 0.0)
    if chance[2] < config.noise:
        noise = np.empty(image.shape, np.int16)
        cv2.setRNGSeed(int(rng.integers(2**31)))
        cv2.randn(noise, 0, float(rng.uniform(2.0, 12.0)))
        image = cv2.add(image, noise, dtype=cv2.CV_8U)
    if chance[3] < config.jpeg:
        quality = int(rng.integers(30, 90))
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)  # channel order in = channel order out
    if chance[4] < config.coarse_dropout:
        image = _drop_rectangles(image, rng)
    if chance[5] < config.grid_dropout:
        image = _drop_grid(image, rng)
    return image


def _jitter_colour(image: UInt8, rng: np.random.Generator, strength: float) -> UInt8:
    """Gain, white balance, contrast, gamma by table; saturation by mixing with grey."""
    gain = rng.uniform(1 - strength, 1 + strength) * rng.uniform(1 - strength / 3, 1 + strength / 3, 3)
    contrast, gamma = rng.uniform(1 - strength, 1 + strength), rng.uniform(1 - strength, 1 + strength)
    levels = (np.arange(256) / 255.0) ** gamma
    table = ((levels - 0.5) * contrast + 0.5)[:, None] * gain * 255.0
    image = cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8)[None])
    saturation = float(rng.uniform(1 - strength, 1 + strength))
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, saturation, grey, 1 - saturation, 0.0)


def _drop_rectangles(image: UInt8, rng: np.random.Generator) -> UInt8:
    image, (height, width) = image.copy(), image.shape[:2]
    for _ in range(int(rng.integers(1, 6))):
        h, w = int(rng.integers(height // 16, height // 5)), int(rng.integers(width // 20, width // 8))
        top, left = int(rng.integers(height - h)), int(rng.integers(width - w))
        image[top : top + h, left : left + w] = rng.integers(0, 256, 3)
    return image


def _drop_grid(image: UInt8, rng: np.random.Generator) -> UInt8:
    image = image.copy()
    unit = int(rng.integers(16, 40))
    hole = max(2, int(unit * rng.uniform(0.2, 0.4)))
    rows = (np.arange(image.shape[0]) + int(rng.integers(unit))) % unit < hole
    columns = (np.arange(image.shape[1]) + int(rng.integers(unit))) % unit < hole
    image[np.ix_(rows, columns)] = 0
    return image
