"""Drives as a data set for training: panoramas with tiles that hold the camera at random offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_training.data.hard_negatives import Tiles
from unifygeo_training.data.pairs import Pair
from unifygeo_training.data.rehearsal import RehearsedPairs
from unifygeo_training.data.split_pairs import VigorConfig
from unifygeo_training.data.towns import TownsConfig
from unifygeo_training.drives.ground import is_known
from unifygeo_training.drives.opened import PartOfDrive, open_drives, part_of
from unifygeo_training.model.config import NetworkConfig

TRIES = 20
"""Draws of a batch until the drives are said to have no room for it."""


class DrivesConfig(BaseModel):
    """Training pairs of recorded drives."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tells_positions: ClassVar[bool] = True

    kind: Literal["drives"]
    file: Path
    """YAML that names the drives (`DrivesFile`)."""
    part: Literal["train", "all"] = "train"
    """The places of the training part, or all of them, where other drives are kept for judging."""
    camera_range: float = Field(default=0.65, gt=0.0, le=0.9)
    """As in `TownsConfig`."""
    rehearsal: TownsConfig | VigorConfig | None = None
    """The data that the network was trained on before, of which every batch holds a share; None: it may forget them."""
    rehearsal_share: float = Field(default=0.5, gt=0.0, lt=1.0)

    def describe(self) -> str:
        rehearsed = f", with {self.rehearsal_share:.0%} of {self.rehearsal.describe()}" if self.rehearsal else ""
        return f"recorded drives of {self.file.name}, {self.part}{rehearsed}"

    def open(self, network: NetworkConfig) -> DrivePairs | RehearsedPairs:
        file, drives = open_drives(self.file, network.ground, network.aerial)
        # A camera's tile reaches so far into the next square that it would show the places kept for judging.
        parts = part_of(file, drives, self.part, guard_m=network.aerial.side_m / 2)
        pairs = DrivePairs(parts, camera_range=self.camera_range)
        if self.rehearsal is None:
            return pairs
        return RehearsedPairs(pairs, self.rehearsal.open(network), self.rehearsal_share)


@dataclass(frozen=True)
class Member:
    """One place in a batch."""

    place: int
    """Number among all images."""
    offset_m: tuple[float, float]
    """From the camera to the wanted centre of the tile, east and north."""


class DrivePairs:
    """The images of some drives, each with a tile of random offset around its camera (`ComparablePairs`)."""

    def __init__(self, parts: Sequence[PartOfDrive], *, camera_range: float = 0.65) -> None:
        self.parts = parts
        aerial = parts[0].drive.ground.aerial
        self.size, self.side_m = aerial.size, aerial.side_m
        self._reach_m = camera_range * self.side_m / 2
        self._first = np.cumsum([0, *map(len, parts)])
        self._part = np.repeat(np.arange(len(parts)), np.diff(self._first))
        # All in one frame, so that drives over the same street know of each other whatever their indexes are.
        frame = LocalFrame(parts[0].drive.ground.frame.datum)
        self._common_m = np.concatenate(
            [frame.map_from_geodetic(*part.drive.geodetic_deg[part.chosen].T) for part in parts]
        )

    def __len__(self) -> int:
        return len(self._part)

    def tiles(self, rng: np.random.Generator | None) -> Tiles:
        """rng None: each tile is centred on its camera."""
        return Tiles(np.zeros(len(self), np.int64), self._common_m + self._offsets(rng), self.side_m)

    def member(self, place: int, tiles: Tiles) -> Member:
        east_m, north_m = (tiles.centre_m[place] - self._common_m[place]).tolist()
        return Member(place, (east_m, north_m))

    def draw(self, rng: np.random.Generator, count: int) -> list[Member]:
        """Places at random whose tiles are at least half a side apart, in the larger of the two axes.

        Where the drives have hardly room for so many, a first draw may not find it: several are tried.
        """
        most = 0
        for _ in range(TRIES):
            offsets, order = self._offsets(rng), rng.permutation(len(self))
            centres = self._common_m + offsets
            taken: list[int] = []
            for place in order.tolist():
                if np.abs(centres[taken] - centres[place]).max(axis=1).min(initial=np.inf) >= self.side_m / 2:
                    taken.append(place)
                    if len(taken) == count:
                        return [Member(n, (float(offsets[n, 0]), float(offsets[n, 1]))) for n in taken]
            most = max(most, len(taken))
        raise ConfigurationError(
            f"the drives have room for {most} of {count} tiles half a side ({self.side_m / 2:.0f} m) apart; "
            "lower batch_size, add drives, or add rehearsal"
        )

    def read(self, member: Member, rng: np.random.Generator) -> Pair:
        part = self.parts[self._part[member.place]]
        drive = part.drive
        number = int(part.chosen[member.place - self._first[self._part[member.place]]])
        camera = drive.positions_m[number]
        for share in (1.0, 0.5, 0.25, 0.0):  # at the edge of the imagery, nearer to the camera, whose own tile is known
            centre = drive.ground.snapped(camera + share * np.array(member.offset_m))
            tile = drive.ground.cut(centre)
            if is_known(tile):
                break
        east_m, north_m = camera - centre
        position = (0.5 - float(north_m) / self.side_m, 0.5 + float(east_m) / self.side_m)
        sigma = float(drive.sigmas_m[number]) / self.side_m
        return Pair(np.asarray(drive.panoramas[number]), tile.pixels, position, sigma)

    def _offsets(self, rng: np.random.Generator | None) -> Float64:
        if rng is None:
            return np.zeros((len(self), 2))
        return rng.uniform(-self._reach_m, self._reach_m, (len(self), 2))
