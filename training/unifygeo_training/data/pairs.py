"""What every data set offers to training, and batches that depend on the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from unifygeo_ros.core.arrays import UInt8
from unifygeo_training.data.augmentation import AugmentationConfig, augment, draw_orientation


@dataclass(frozen=True)
class Pair:
    """One training pair."""

    panorama: UInt8
    """uint8 (H, W, 3) RGB, north in the centre column."""
    tile: UInt8
    """uint8 (L, L, 3) RGB, north up."""
    position: tuple[float, float]
    """(row, column) of the camera as fractions of the tile's side from its upper left corner."""
    sigma: float | None = None
    """Standard deviation of the position, as a fraction of the tile's side; None: the data set takes all positions as
    exact."""


class PairSet(Protocol):
    """A data set. Both methods must depend on their arguments alone."""

    def draw(self, rng: np.random.Generator, count: int) -> Sequence[Any]:
        """The members of one batch over all ranks, every aerial image at most once."""
        ...

    def read(self, member: Any, rng: np.random.Generator) -> Pair: ...


class Batches(Dataset[dict[str, npt.NDArray[Any]]]):
    """Item s is the complete batch of step s: a run that resumes at step s continues as if it had never stopped."""

    def __init__(
        self,
        pairs: PairSet,
        batch_size: int,
        augmentation: AugmentationConfig,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        draw: Callable[[np.random.Generator, int], Sequence[Any]] | None = None,
    ) -> None:
        """batch_size: of one rank. draw: in the place of the data set's own `draw`, under the same terms."""
        self.pairs, self.batch_size, self.augmentation = pairs, batch_size, augmentation
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.draw = draw or pairs.draw

    def __getitem__(self, step: int) -> dict[str, npt.NDArray[Any]]:
        """As `collate`."""
        whole = self.batch_size * self.world_size
        # At the places 1, 3, 5 …, beside what they turn; of an odd batch one pair is left alone.
        twins = min(round(whole * self.augmentation.turned_twins / 2), whole // 2)
        members = self.draw(np.random.default_rng((self.seed, step)), whole - twins)
        first = self.rank * self.batch_size
        pairs = []
        for place in range(first, first + self.batch_size):
            member, orientation = members[max(place - twins, place // 2)], None
            if place < 2 * twins:
                orientation = draw_orientation(
                    np.random.default_rng((self.seed, step, place // 2, 2)), self.augmentation
                )
                orientation = orientation.twin if place % 2 else orientation
            rng = np.random.default_rng((self.seed, step, place))
            pair = self.pairs.read(member, rng)
            augmented = augment(pair.panorama, pair.tile, pair.position, rng, self.augmentation, orientation)
            pairs.append(Pair(*augmented, pair.sigma))
        return collate(pairs)


def collate(pairs: Sequence[Pair]) -> dict[str, npt.NDArray[Any]]:
    """A batch of pairs.

    Returns:
        panorama uint8 (N, H, W, 3), tile uint8 (N, L, L, 3), position float32 (N, 2); and sigma float32 (N,) where the
        data set tells how well the positions are known.
    """
    batch: dict[str, npt.NDArray[Any]] = {
        "panorama": np.stack([pair.panorama for pair in pairs]),
        "tile": np.stack([pair.tile for pair in pairs]),
        "position": np.array([pair.position for pair in pairs], np.float32),
    }
    sigmas = [pair.sigma for pair in pairs]
    if any(sigma is not None for sigma in sigmas):
        batch["sigma"] = np.array([sigma or 0.0 for sigma in sigmas], np.float32)
    return batch
