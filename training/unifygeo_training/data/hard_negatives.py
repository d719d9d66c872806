"""Hard negatives: batches of places with similar descriptors, after Sample4Geo (Deuser et al., ICCV 2023).

A batch is filled anchor by anchor: one place at random, then places whose aerial descriptors are nearest to the
anchor's ground descriptor. Of a pool of the nearest, one half of what is taken are the very nearest and the other half
is drawn from the rest, so that a few places that resemble everything do not fill every batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from unifygeo_ros.core.arrays import Float32, Float64, Int16, Int64
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.data.pairs import PairSet

STEPS_OF_UNIT = 2048
"""Descriptors are kept as whole numbers, 2048 for 1. Every sum of their products then stays below 2²⁴, where float32 is
exact: a similarity is the same number on every machine and with every number of threads, and all ranks draw the same
batch. It errs by about 2e-4, rounding of both sides."""


class HardNegativesConfig(BaseModel):
    """When and from which places hard negatives are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_step: int = Field(ge=0)
    """The first batch drawn by descriptor; until then the data set draws, from neighbours."""
    every: int = Field(ge=1)
    """Steps after which the descriptors are recomputed."""
    pool: int = Field(default=128, ge=1)
    """Size of the pool of nearest places from which an anchor draws."""
    take: int = Field(default=64, ge=1)
    """How many of the pool join the anchor, half of them the nearest, half at random from the rest."""
    places: int | None = Field(default=None, ge=2)
    """How many places, drawn at random each time, are encoded and make up the batches until the next time; None: all.
    Encoding costs a forward pass of both encoders for each."""

    def describes_at(self, step: int) -> bool:
        """Whether the descriptors are computed before this step."""
        return step >= self.from_step and (step - self.from_step) % self.every == 0

    def next_description(self, step: int) -> int:
        """The first step after this one before which descriptors are computed."""
        if step < self.from_step:
            return self.from_step
        return step + self.every - (step - self.from_step) % self.every


class TileChoice(Protocol):
    """One tile for each place of a data set."""

    def excludes(self, place: int, others: Sequence[int]) -> bool:
        """Whether a place cannot share a batch with the others.

        So it is where its tile is one of theirs or no true negative of one of their panoramas, or the other way round.
        A place excludes itself.
        """
        ...


@dataclass(frozen=True)
class Tiles:
    """Squares that may lie anywhere (`TileChoice`).

    Two tiles overlap if they lie in one area and their centres are less than a side apart in both axes: then each shows
    a part of the other, and none is a true negative of the other's panorama.
    """

    area: Int64
    """int64 (n,)."""
    centre_m: Float64
    """float64 (n, 2)."""
    side_m: float
    """Of every tile."""

    def excludes(self, place: int, others: Sequence[int]) -> bool:
        """Whether a place's tile overlaps one of the others'."""
        if not len(others):
            return False
        apart = np.abs(self.centre_m[others] - self.centre_m[place]).max(axis=1)
        return bool(((self.area[others] == self.area[place]) & (apart < self.side_m)).any())


@runtime_checkable
class ComparablePairs(PairSet, Protocol):
    """A data set whose batches can be drawn by descriptor: n places, each a panorama with a choice of tiles."""

    def __len__(self) -> int: ...

    def tiles(self, rng: np.random.Generator | None) -> TileChoice:
        """A tile for every place, for one batch. None: the tiles by which places are compared."""
        ...

    def member(self, place: int, tiles: Any) -> Any:
        """A place with its tile of such a choice, for `read`."""
        ...


@dataclass(frozen=True)
class DescriptorTable:
    """What hard negatives are drawn by."""

    step: int
    """The table was computed before this step. It belongs to the state of a run and is saved with it."""
    places: Int64
    """int64 (m,), ascending."""
    ground: Int16
    """int16 (m, C), see STEPS_OF_UNIT."""
    aerial: Int16
    """int16 (m, C), see STEPS_OF_UNIT."""

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        arrays = {"places": self.places, "ground": self.ground, "aerial": self.aerial}
        return {"step": self.step, **{name: torch.from_numpy(array) for name, array in arrays.items()}}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> DescriptorTable:
        """Inverse of `state`."""
        return DescriptorTable(state["step"], state["places"].numpy(), state["ground"].numpy(), state["aerial"].numpy())


def in_steps(descriptors: Float32) -> Int16:
    """Unit vectors (m, C) as int16 multiples of 1 / STEPS_OF_UNIT."""
    return np.rint(descriptors * STEPS_OF_UNIT).astype(np.int16)


class HardNegatives:
    """Draws batches from a table of descriptors (`PairSet.draw` in the place of the data set's own)."""

    def __init__(self, pairs: ComparablePairs, table: DescriptorTable, config: HardNegativesConfig) -> None:
        self.pairs, self.table, self.pool, self.take = pairs, table, config.pool, config.take
        self._ground, self._aerial = table.ground.astype(np.float32), table.aerial.astype(np.float32)

    def draw(self, rng: np.random.Generator, count: int) -> list[Any]:
        """Members of `count` places that exclude none of each other."""
        tiles, places = self.pairs.tiles(rng), self.table.places
        members: list[int] = []
        for anchor in rng.permutation(len(places)):
            if len(members) == count:
                break
            if not tiles.excludes(int(places[anchor]), members):
                members.append(int(places[anchor]))
                members += self._alike(int(anchor), min(self.take, count - len(members)), tiles, members, rng)
        if len(members) < count:
            raise ConfigurationError(
                f"{len(places)} places have room for {len(members)} of {count} tiles without false negatives; "
                "lower batch_size, raise hard_negatives.places or add data"
            )
        return [self.pairs.member(place, tiles) for place in rng.permutation(members).tolist()]

    def _alike(
        self, anchor: int, count: int, tiles: TileChoice, members: Sequence[int], rng: np.random.Generator
    ) -> list[int]:
        """Up to `count` places that resemble the anchor (a row of the table), free of each other and the members."""
        similarity = self._aerial @ self._ground[anchor]  # exact, see STEPS_OF_UNIT
        pool: list[int] = []
        for row in np.argsort(-similarity, kind="stable"):
            if len(pool) == self.pool:
                break
            place = int(self.table.places[row])
            if not tiles.excludes(place, [*members, *pool]):
                pool.append(place)
        nearest, rest = pool[: (count + 1) // 2], pool[(count + 1) // 2 :]
        drawn = rng.choice(len(rest), min(count - len(nearest), len(rest)), replace=False)
        return nearest + [rest[n] for n in drawn]
