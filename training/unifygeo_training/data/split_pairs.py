"""VIGOR, CVUSA and CVACT as data sets for training: the training part of a `CrossViewSplit`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_training.data.centre_aligned import load_cvact, load_cvusa
from unifygeo_training.data.pairs import Pair
from unifygeo_training.data.split import METRES_PER_DEGREE, CrossViewSplit
from unifygeo_training.data.split_images import Resize, SplitImages
from unifygeo_training.data.vigor import Area, Labels, load_vigor
from unifygeo_training.model.config import NetworkConfig

logger = logging.getLogger(__name__)
Missing = Literal["error", "skip"]


class VigorConfig(BaseModel):
    """Training pairs of VIGOR."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tells_positions: ClassVar[bool] = True

    kind: Literal["vigor"]
    folder: Path
    """The root of VIGOR."""
    area: Area
    """As `unifygeo-train check-data` names them; the part is train."""
    labels: Labels = "corrected"
    """As `unifygeo-train check-data` names them; the part is train."""
    missing: Missing = "error"
    """Whether images that are not on disk end the run or are left out."""
    resize: Resize = "area"
    """As in `SplitImages`."""

    def describe(self) -> str:
        return f"VIGOR {self.area} train ({self.labels} labels)"

    def open(self, network: NetworkConfig) -> SplitPairs:
        split = load_vigor(self.folder, self.area, "train", labels=self.labels)
        return SplitPairs(_present(split, self.missing), network, resize=self.resize)


class CentreAlignedConfig(BaseModel):
    """Training pairs of CVUSA or CVACT, where every camera stands in the middle of its tile."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tells_positions: ClassVar[bool] = False

    kind: Literal["cvusa", "cvact"]
    folder: Path
    """The root of CVUSA or CVACT."""
    missing: Missing = "error"
    """As in `VigorConfig`."""
    resize: Resize = "area"
    """As in `SplitImages`."""

    def describe(self) -> str:
        return f"{self.kind.upper()} train"

    def open(self, network: NetworkConfig) -> SplitPairs:
        load = load_cvusa if self.kind == "cvusa" else load_cvact
        return SplitPairs(_present(load(self.folder, "train"), self.missing), network, resize=self.resize)


def _present(split: CrossViewSplit, missing: Missing) -> CrossViewSplit:
    if missing == "error":
        return split
    present = split.without_missing()
    logger.info("%s", present.name)
    return present


class SplitPairs:
    """Every query with its positive (`ComparablePairs`); semi-positives are no pairs, and never negatives.

    A place, and a member of a batch, is the number of a query.
    """

    def __init__(self, split: CrossViewSplit, network: NetworkConfig, *, resize: Resize = "area") -> None:
        """Raises InputError where a camera does not lie on its positive: there is nothing to learn from its label."""
        self.split, self._exclusions = split, Exclusions(split)
        self._images = SplitImages(split, network, resize=resize)
        outside = np.flatnonzero(~(np.abs(split.offsets_px[:, 0]).max(axis=1) <= split.tile_size / 2))
        if len(outside):
            raise InputError(
                f"{split.name}: {len(outside)} of {len(split.ground)} cameras lie outside their positive tiles, "
                f"{split.ground[outside[0]].name} the first; look with `unifygeo-train check-data`, repair the labels"
            )

    def __len__(self) -> int:
        return len(self.split.ground)

    def tiles(self, rng: np.random.Generator | None) -> Exclusions:
        """There is no choice: a query has one positive."""
        return self._exclusions

    def member(self, place: int, tiles: Exclusions) -> int:
        return place

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """Queries at random that exclude none of each other."""
        members: list[int] = []
        for query in rng.permutation(len(self)).tolist():
            if not self._exclusions.excludes(query, members):
                members.append(query)
                if len(members) == count:
                    return members
        raise ConfigurationError(
            f"{self.split.name} has room for {len(members)} of {count} queries without false negatives; lower "
            "batch_size or complete the data set"
        )

    def read(self, member: int, rng: np.random.Generator) -> Pair:
        row, column = 0.5 + self.split.offsets_px[member, 0] / self.split.tile_size
        tile = self._images.aerial_image(int(self.split.positives[member]))
        return Pair(self._images.ground_image(member), tile, (float(row), float(column)))


class Exclusions:
    """Which queries of a split cannot share a batch (`TileChoice`).

    A tile is no negative of a panorama that has it as its positive or a semi-positive, nor of one whose camera stands
    on it by the coordinates: labels name four tiles, and not always those four. Where a split has no coordinates
    (CVUSA, CVACT) the labels alone count. Tiles that overlap without holding the other's camera are negatives, and
    hard ones.
    """

    def __init__(self, split: CrossViewSplit) -> None:
        self._tiles, self._positives = split.tiles, split.positives
        self._centre_deg = split.gallery_lat_lon[split.positives]  # (n, 2)
        scale = split.metres_per_pixel[split.positives]
        self._half_side_m = scale * split.tile_size / 2
        self._camera_m = split.offsets_px[:, 0] * scale[:, None] * (-1.0, 1.0)  # north, east of the own tile's centre

    def excludes(self, place: int, others: Sequence[int]) -> bool:
        if not len(others):
            return False
        rows = np.asarray(others)
        named = np.isin(self._positives[rows], self._tiles[place]) | (self._tiles[rows] == self._positives[place]).any(
            axis=1
        )
        return bool((named | self._stands_on(place, rows)).any())

    def _stands_on(self, place: int, rows: np.ndarray) -> np.ndarray:
        """Whether a query's camera stands on the other queries' tiles, or theirs on its: bool, as `rows`.

        Equirectangular, which errs by 0.3% of the distance and by nothing that matters beyond a tile. Coordinates
        that are not known (NaN) compare as false.
        """
        degrees = self._centre_deg[rows] - self._centre_deg[place]
        north_east = np.array([1.0, np.cos(np.radians(self._centre_deg[place, 0]))])
        apart_m = degrees * north_east * METRES_PER_DEGREE  # from the query's tile to the others'
        own_on_theirs = np.abs(self._camera_m[place] - apart_m).max(axis=1) < self._half_side_m[rows]
        theirs_on_own = np.abs(self._camera_m[rows] + apart_m).max(axis=1) < self._half_side_m[place]
        return own_on_theirs | theirs_on_own
