"""What the tests of judging share: a network of seconds and an evaluation set of noise."""

from __future__ import annotations

import numpy as np

from unifygeo_training.model import NetworkConfig

CONFIG = NetworkConfig(
    backbone="convnext_atto",
    ground_height=64,
    ground_width=320,
    aerial_size=64,
    metres_per_pixel=0.5,
    output_stride=2,
    layer_scale=0.1,
)
QUERIES, TILES, SPACING_M = 7, 12, 16.0


class RandomSet:
    """Tiles in a row, each SPACING_M east of the last; images are noise, so the answers are arbitrary but fixed."""

    name = "VIGOR same-area of noise"

    def __init__(self) -> None:
        random = np.random.default_rng(3)
        self._ground = random.integers(0, 256, (QUERIES, 64, 320, 3), np.uint8)
        self._aerial = random.integers(0, 256, (TILES, 64, 64, 3), np.uint8)
        # Coarse colour so that an untrained network sees a difference between images.
        self._ground[:, :, ::2] = random.integers(0, 256, (QUERIES, 1, 1, 3))
        self._aerial[:, :, ::2] = random.integers(0, 256, (TILES, 1, 1, 3))
        positives = random.permutation(TILES)[:QUERIES]
        self.tiles = np.stack([positives, (positives + 1) % TILES, np.full(QUERIES, -1)], axis=1)
        self.offsets_m = random.uniform(-8, 8, (QUERIES, 2))
        self.side_m = np.full(TILES, 32.0)

    def ground_image(self, query):
        return self._ground[query]

    def aerial_image(self, tile):
        return self._aerial[tile]

    def displacement_m(self, start, end):
        return np.stack([(np.asarray(end) - start) * SPACING_M, np.zeros(len(start))], axis=1)
