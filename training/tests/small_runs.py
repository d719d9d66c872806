"""What the tests of training runs share: a network of seconds, a world of dots, a config for both."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch.multiprocessing

from unifygeo_training.configuration import read_settings
from unifygeo_training.data.pairs import Pair
from unifygeo_training.fit_config import FitConfig
from unifygeo_training.model import NetworkConfig

TOWNS_ATTO = read_settings(Path(__file__).resolve().parents[1] / "configs/towns_atto.yaml", FitConfig).network
"""The small member that trains and runs on two CPU cores."""

SMALL = NetworkConfig(
    backbone="test_convnext2",  # timm's for tests: one block a stage, few channels
    ground_height=32,
    ground_width=64,
    aerial_size=64,
    metres_per_pixel=1.0,
    output_stride=2,
    layer_scale=0.1,
)


class Dots:
    """A world of coloured noise: the tile shows a bright spot at the camera, the panorama has the tile's colour."""

    def draw(self, rng: np.random.Generator, count: int) -> Sequence[int]:
        return [int(n) for n in rng.choice(1000, count, replace=False)]

    def read(self, member: int, rng: np.random.Generator) -> Pair:
        own = np.random.default_rng(member)
        colour = own.integers(40, 215, 3)
        tile = np.clip(colour + own.normal(0, 8, (64, 64, 3)), 0, 255).astype(np.uint8)
        row, column = own.integers(16, 48, 2)
        tile[row - 2 : row + 3, column - 2 : column + 3] = 255
        panorama = np.clip(colour + own.normal(0, 8, (32, 64, 3)), 0, 255).astype(np.uint8)
        return Pair(panorama, tile, ((row + 0.5) / 64, (column + 0.5) / 64))


def small_config(**changes: object) -> FitConfig:
    settings = {
        "network": SMALL,
        "data": {"folder": "nowhere", "last_seed": 0},
        "losses": {"retrieval_from_step": 2},
        "optimiser": {"warmup_steps": 1},
        "hardware": {"accelerator": "cpu", "precision": "32-true", "threads": 1, "workers": 0},
        "batch_size": 4,
        "steps": 4,
        "checkpoint_every": 1,
        **changes,
    }
    return FitConfig.model_validate(settings)


def in_two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Run function(rank, *arguments) as ranks 0 and 1. What takes long to import is imported once for all of them."""
    multiprocessing.set_forkserver_preload(["unifygeo_training.fit", "unifygeo_training.data.towns"])
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")
