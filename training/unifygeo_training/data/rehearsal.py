"""Batches of two data sets: one to learn, and one that must not be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.data.pairs import Pair, PairSet


class RehearsedPairs:
    """A `PairSet` whose batches hold a fixed share of pairs of another one.

    The two show different regions, so that a tile of one is a true negative of the other's panoramas.
    """

    def __init__(self, pairs: PairSet, rehearsed: PairSet, share: float) -> None:
        """share: of the rehearsed pairs in each batch, between 0 and 1."""
        self._sets, self._share = (pairs, rehearsed), share

    def draw(self, rng: np.random.Generator, count: int) -> Sequence[tuple[int, Any]]:
        """Members with the number of their set, in random order, so that every rank has its share."""
        rehearsed = round(count * self._share)
        if not 0 < rehearsed < count:
            raise ConfigurationError(
                f"{self._share:g} of {count} pairs is {rehearsed} rehearsed ones; raise batch_size or set "
                "rehearsal_share so that a batch holds both"
            )
        members = [(0, member) for member in self._sets[0].draw(rng, count - rehearsed)]
        members += [(1, member) for member in self._sets[1].draw(rng, rehearsed)]
        return [members[place] for place in rng.permutation(count)]

    def read(self, member: tuple[int, Any], rng: np.random.Generator) -> Pair:
        which, own = member
        return self._sets[which].read(own, rng)
