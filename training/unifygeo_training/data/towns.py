"""Procedural towns as a data set for training: cached panoramas, tiles cut on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.data.hard_negatives import Tiles
from unifygeo_training.data.pairs import Pair
from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.towns.pairs import CachedTown, folder_of, load_town
from unifygeo_training.towns.town import FIRST_HELD_OUT_SEED


class TownsConfig(BaseModel):
    """Training pairs of rendered towns."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tells_positions: ClassVar[bool] = True

    kind: Literal["towns"] = "towns"
    folder: Path
    """What `unifygeo-train towns render` wrote."""
    first_seed: int = Field(default=0, ge=0)
    """The towns to use, both included."""
    last_seed: int = Field(ge=0)
    """The towns to use, both included."""
    towns_per_batch: int = Field(default=1, ge=1)
    """How many towns share a batch: neighbours in one town are the hard negatives."""
    camera_range: float = Field(default=0.65, gt=0.0, le=0.9)
    """The camera lies anywhere in this central share of the tile's side. Half-overlapping tiles always offer one with
    the camera in its central half; more than that forgives coarser tilings."""

    @model_validator(mode="after")
    def _seeds_are_for_training(self) -> TownsConfig:
        if not self.first_seed <= self.last_seed < FIRST_HELD_OUT_SEED:
            raise ValueError(
                f"seeds {self.first_seed} … {self.last_seed}: must rise and stay below {FIRST_HELD_OUT_SEED}, from "
                "where on towns are kept for testing"
            )
        return self

    def describe(self) -> str:
        return f"procedural towns, seeds {self.first_seed} to {self.last_seed}"

    def open(self, network: NetworkConfig) -> TownPairs:
        towns = [load_town(folder_of(self.folder, seed)) for seed in range(self.first_seed, self.last_seed + 1)]
        return TownPairs(towns, network, towns_per_batch=self.towns_per_batch, camera_range=self.camera_range)


@dataclass(frozen=True)
class Member:
    """One place in a batch."""

    town: int
    """Index of the town."""
    panorama: int
    """Index in the town."""
    east_m: float
    """Centre of the tile."""
    north_m: float
    """Centre of the tile."""


class TownPairs:
    """Panoramas of some towns, each with a tile of random offset around its camera (`ComparablePairs`).

    Places are counted through all towns in their order.
    """

    def __init__(
        self,
        towns: Sequence[CachedTown],
        network: NetworkConfig,
        *,
        towns_per_batch: int = 1,
        camera_range: float = 0.65,
    ) -> None:
        self.towns, self.towns_per_batch = towns, min(towns_per_batch, len(towns))
        self.size, self.side_m = network.aerial_size, network.aerial.side_m
        self.reach_m = camera_range * self.side_m / 2
        for town in towns:
            town.check_view(network.ground_height, network.ground_width)
        self.width = network.ground_width
        self._first = np.cumsum([0, *(len(town.positions) for town in towns)])
        self._town = np.repeat(np.arange(len(towns)), np.diff(self._first))

    def __len__(self) -> int:
        return len(self._town)

    def tiles(self, rng: np.random.Generator | None) -> Tiles:
        """rng None: each tile is centred on its camera."""
        positions = np.concatenate([town.positions for town in self.towns])
        offsets = 0.0 if rng is None else rng.uniform(-self.reach_m, self.reach_m, positions.shape)
        sizes = np.array([town.record.size_m for town in self.towns])[self._town, None]
        centres = np.clip(positions + offsets, self.side_m / 2, sizes - self.side_m / 2)
        return Tiles(self._town, centres, self.side_m)

    def member(self, place: int, tiles: Tiles) -> Member:
        town = int(self._town[place])
        east_m, north_m = tiles.centre_m[place]
        return Member(town, int(place - self._first[town]), float(east_m), float(north_m))

    def draw(self, rng: np.random.Generator, count: int) -> list[Member]:
        """Members from `towns_per_batch` towns.

        Tiles of one town lie at least half a tile's side apart (in the larger of the two axes), so that no tile shows
        much of another's surroundings.
        """
        chosen = rng.choice(len(self.towns), self.towns_per_batch, replace=False)
        members: list[Member] = []
        for place, town in enumerate(chosen):
            share = (count * (place + 1)) // len(chosen) - len(members)
            members += self._draw_from(int(town), rng, share)
        return [members[n] for n in rng.permutation(count)]

    def _draw_from(self, town: int, rng: np.random.Generator, count: int) -> list[Member]:
        positions, size_m = self.towns[town].positions, self.towns[town].record.size_m
        order = rng.permutation(len(positions))
        offsets = rng.uniform(-self.reach_m, self.reach_m, (len(positions), 2))
        inside = (self.side_m / 2, size_m - self.side_m / 2)
        centres = np.clip(positions[order] + offsets, *inside)
        taken = np.empty((count, 2))
        found: list[Member] = []
        for panorama, centre in zip(order, centres, strict=True):
            if np.abs(taken[: len(found)] - centre).max(axis=1, initial=0.0).min(initial=np.inf) < self.side_m / 2:
                continue
            taken[len(found)] = centre
            found.append(Member(town, int(panorama), float(centre[0]), float(centre[1])))
            if len(found) == count:
                return found
        raise ConfigurationError(
            f"town {self.towns[town].record.seed} has room for {len(found)} of {count} tiles half a side apart; lower "
            "batch_size or raise towns_per_batch"
        )

    def read(self, member: Member, rng: np.random.Generator) -> Pair:
        town = self.towns[member.town]
        day = int(rng.integers(len(town.orthophotos)))
        tile = town.tile(day, member.east_m, member.north_m, self.size, self.side_m)
        east_m, north_m = town.positions[member.panorama]
        position = (
            0.5 - (north_m - member.north_m) / self.side_m,
            0.5 + (east_m - member.east_m) / self.side_m,
        )
        return Pair(town.panorama(member.panorama, self.width), tile, position)
