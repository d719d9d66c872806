"""The data that a bundle is quantised on: cached towns, or drives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.drives.judged import DriveImages, describe, neighbouring
from unifygeo_training.drives.opened import open_part
from unifygeo_training.judging.evaluation_set import EvaluationSet
from unifygeo_training.judging.town_set import TownImages
from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.towns.pairs import load_town
from unifygeo_training.towns.town import FIRST_HELD_OUT_SEED

TILES, QUERIES = 1500, 400
"""Of drives: neighbouring ones, at most; as `unifygeo-train calibrate` takes them."""


def open_sets(paths: Sequence[Path], config: NetworkConfig) -> list[EvaluationSet]:
    """A folder is a cached town, a file names drives. Of drives all places are taken: nothing is learnt from them.

    Raises:
        ConfigurationError: a town is for testing.
        InputError: a path is neither, or it does not fit the network.
    """
    return [_drives(path, config) if path.is_file() else _town(path, config) for path in paths]


def _town(folder: Path, config: NetworkConfig) -> TownImages:
    town = load_town(folder)
    if town.record.seed >= FIRST_HELD_OUT_SEED:
        raise ConfigurationError(
            f"town {town.record.seed} is for testing; quantise on towns with seeds under {FIRST_HELD_OUT_SEED}"
        )
    return TownImages(town, config)


def _drives(file: Path, config: NetworkConfig) -> DriveImages:
    parts = neighbouring(open_part(file, config, "all"), tiles=TILES, queries=QUERIES, seed=0)
    return DriveImages(parts, describe(parts, file, "all"))
