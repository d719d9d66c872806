"""The descriptors of a training set's places, for hard negatives: computed by all ranks, the same table on each."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import Dataset

from unifygeo_ros.core.arrays import Int64
from unifygeo_ros.core.errors import UnifyGeoError
from unifygeo_training.data.hard_negatives import ComparablePairs, DescriptorTable, in_steps
from unifygeo_training.data.pairs import collate
from unifygeo_training.distributed import gathered
from unifygeo_training.fit_config import FitConfig
from unifygeo_training.loading import loaded
from unifygeo_training.model.network import UnifyGeo

logger = logging.getLogger(__name__)


class _Views(Dataset[dict[str, npt.NDArray[Any]]]):
    """Item n is the n-th batch of places, without augmentation, each with the tile it is compared by."""

    def __init__(self, pairs: ComparablePairs, batches: Int64) -> None:
        """batches: (n, batch size), places."""
        self.pairs, self.batches = pairs, batches
        self._tiles = pairs.tiles(None)

    def __getitem__(self, number: int) -> dict[str, npt.NDArray[Any]]:
        places = self.batches[number].tolist()
        members = [self.pairs.member(place, self._tiles) for place in places]
        return collate(
            [self.pairs.read(m, np.random.default_rng(place)) for m, place in zip(members, places, strict=True)]
        )


def describe(
    network: UnifyGeo, pairs: ComparablePairs, config: FitConfig, fabric: Fabric, step: int
) -> DescriptorTable:
    """The table that belongs to a step. Every rank must call it.

    It depends on the weights, the config and the step alone: a run that resumes at this step makes the same one.
    Raises UnifyGeoError where a descriptor is not finite.
    """
    assert config.hard_negatives is not None
    started = time.perf_counter()
    chosen = _choose(len(pairs), config.hard_negatives.places, config.seed, step)
    count, world, rank = len(chosen), fabric.world_size, fabric.global_rank
    own = -(-count // world)  # of each rank, the last ones padded with the first places again
    batch_size = config.batch_size // world
    batches = -(-own // batch_size)
    # Batches are always whole: a compiled network meets no other shape than in training.
    rows = chosen[(np.arange(batches * batch_size) * world + rank) % count].reshape(batches, batch_size)
    views = loaded(_Views(pairs, rows), range(batches), fabric, workers=config.hardware.workers)
    network.eval()
    with torch.no_grad(), fabric.autocast():
        ours = _encode(network, views)[:own]  # (own, 2, C)
    network.train()
    both = gathered(ours).unflatten(0, (world, own)).transpose(0, 1).flatten(0, 1)[:count].cpu().numpy()
    if not np.isfinite(both).all():
        broken = int((~np.isfinite(both)).any(axis=(1, 2)).sum())
        raise UnifyGeoError(
            f"before step {step} the descriptors of {broken} of {count} places are not finite; "
            "lower the learning rate or choose another precision"
        )
    if fabric.is_global_zero:
        logger.info("Step %d: %d places described in %.0f s", step, count, time.perf_counter() - started)
    return DescriptorTable(step, chosen, in_steps(both[:, 0]), in_steps(both[:, 1]))


def _choose(count: int, wanted: int | None, seed: int, step: int) -> Int64:
    if wanted is None or wanted >= count:
        return np.arange(count)
    # spawn_key: other random numbers than those of the step's batch.
    rng = np.random.default_rng(np.random.SeedSequence((seed, step), spawn_key=(0,)))
    return np.sort(rng.choice(count, wanted, replace=False))


def _encode(network: UnifyGeo, batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """Ground and aerial descriptors of all batches, float32 (n, 2, C)."""
    found = []
    for batch in batches:
        ground, aerial = network.encode_ground(batch["panorama"]), network.encode_aerial(batch["tile"])
        assert ground.descriptor is not None
        assert aerial.descriptor is not None
        found.append(torch.stack([ground.descriptor, aerial.descriptor], dim=1))
    return torch.cat(found)
