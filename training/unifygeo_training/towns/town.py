"""A town from a seed."""

from __future__ import annotations

import numpy as np

from unifygeo_training.towns.blocks import fill_blocks
from unifygeo_training.towns.carriageways import paint_streets
from unifygeo_training.towns.furniture import Objects
from unifygeo_training.towns.kinds import MIXED, TownKind
from unifygeo_training.towns.paint import Canvas
from unifygeo_training.towns.scene import Town
from unifygeo_training.towns.streets import lay_streets

GENERATOR_VERSION = 1
"""Raised when the same seed gives other streets, solids or marks; a change of paint alone does not raise it."""

FIRST_HELD_OUT_SEED = 1000
"""Towns of this seed and above are for testing; training refuses them."""

DEFAULT_SIZE_M = 600.0
DEFAULT_METRES_PER_PIXEL = 0.2


def build_town(
    seed: int,
    size_m: float = DEFAULT_SIZE_M,
    metres_per_pixel: float = DEFAULT_METRES_PER_PIXEL,
    kind: TownKind = MIXED,
) -> Town:
    """The town of a seed: the same on every machine. A larger or finer town of the same seed is another town."""
    rng = np.random.default_rng([GENERATOR_VERSION, seed, round(size_m)])
    streets = lay_streets(rng, size_m, kind)
    canvas = Canvas(size_m, metres_per_pixel)
    objects = Objects()
    marks = paint_streets(rng, canvas, streets, objects)
    fill_blocks(rng, canvas, streets, objects, kind)
    canvas.weather(rng)
    solids = objects.array()
    return Town(seed, size_m, metres_per_pixel, _origin(seed, size_m), solids, canvas.albedo, streets, marks)


def _origin(seed: int, size_m: float) -> tuple[float, float]:
    """South-west corner in UTM zone 32: astride the central meridian, some place around 48.5° N."""
    place = np.random.default_rng([7, seed]).uniform(5_340_000, 5_400_000)
    return 500_000.0 - size_m / 2, float(np.round(place))
