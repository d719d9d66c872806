"""How much an index's imagery is like what its model was calibrated on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unifygeo_ros.aerial.index import TileIndex, open_index
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.inference.familiarity import tile_features

logger = logging.getLogger(__name__)

SAMPLE = 400
"""At most so many tiles, evenly spread, are looked at."""


@dataclass(frozen=True)
class ImageryFamiliarity:
    """The distances of an index's tiles (`unifygeo_ros.inference.familiarity`)."""

    median: float
    unusual_share: float
    """Share of the tiles that are further away than 99 of 100 tiles of the calibration."""
    refused_share: float
    """Share of the tiles that are beyond the model's limit: no fix is given where one of them is the best."""

    @property
    def unlike(self) -> bool:
        """Whether most of the imagery is unlike what the model knows."""
        return self.median > 1

    @property
    def text(self) -> str:
        """For people."""
        word = "unlike" if self.unlike else "like"
        return (
            f"{word} what the model knows: half of the tiles are {self.median:.2f} times as far from it as 99 of 100 "
            f"tiles of its calibration; {self.unusual_share:.0%} are further away than those, {self.refused_share:.0%} "
            "beyond the limit for fixes"
        )


def imagery_familiarity(index: TileIndex, bundle: ModelBundle) -> ImageryFamiliarity | None:
    """Measure some tiles of an index of this bundle; None: the bundle does not know what is usual."""
    known = bundle.manifest.calibration.familiarity
    if known is None:
        return None
    chosen = np.unique(np.linspace(0, len(index) - 1, min(len(index), SAMPLE)).round().astype(np.int64))
    distances = known.aerial.distances(tile_features(index.match_maps[chosen], bundle.manifest.ground.columns))
    return ImageryFamiliarity(
        float(np.median(distances)), float(np.mean(distances > 1)), float(np.mean(distances > known.aerial_limit))
    )


def warn_if_unlike(path: Path, bundle: ModelBundle) -> None:
    """Say in the log that an index's imagery is unlike what its model knows, where it is."""
    found = imagery_familiarity(open_index(path, bundle=bundle), bundle)
    if found is not None and found.unlike:
        logger.warning("%s: the imagery is %s", path, found.text)
