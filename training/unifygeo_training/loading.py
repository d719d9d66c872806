"""Batches that processes prepare ahead, on this rank's device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def loaded(
    batches: Dataset[Any], numbers: Sequence[int], fabric: Fabric, *, workers: int
) -> Iterable[dict[str, Tensor]]:
    """The items of `batches` with these numbers, each a whole batch, in this order. workers 0: nothing is ahead."""
    loader: Any = DataLoader(
        batches,
        batch_size=None,  # an item is a batch
        sampler=numbers,
        num_workers=workers,
        pin_memory=fabric.device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False)
