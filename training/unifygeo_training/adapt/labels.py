"""The smoothed tracks of drives as the truth of a data set (`kind: drives`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.files import write_text
from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_ros.evaluation.recordings.truth_sources import read_truth_file
from unifygeo_ros.parameters.settings import PARAMETERS, Settings
from unifygeo_training.drives.places import parts_of

CELL_M = 75.0
"""Side of the squares of ground that are learnt from or calibrated on: smaller than for drives with a truth, since
adapting takes short ones, too."""
CALIBRATED_SHARE = 0.25
"""Of the certain images, for calibration."""
_SEEDS = 50


@dataclass(frozen=True)
class Track:
    """The smoothed track of one drive."""

    bag: Path
    file: Path
    """CSV, where the place is certain."""
    images: int
    """Of the drive."""

    def positions_m(self) -> Float64:
        """float64 (n, 2), base_link in the map."""
        if self.certain == 0:
            return np.zeros((0, 2))
        return np.asarray(read_truth_file(self.file).positions, np.float64)

    @property
    def certain(self) -> int:
        """Images whose place is certain."""
        return len(self.file.read_text(encoding="utf-8").splitlines()) - 1


def write_drives_file(
    path: Path,
    tracks: Sequence[Track],
    index: Path,
    frame: LocalFrame,
    settings: Settings,
    topics: dict[str, str | None],
) -> None:
    """Name the drives with their tracks as truth."""
    positions = np.concatenate([track.positions_m() for track in tracks])
    geodetic = frame.geodetic_from_map(*positions.T)
    drives = [
        {
            "bag": str(track.bag.resolve()),
            "index": str(index.resolve()),
            "truth_file": str(track.file.resolve()),
            "least_truth_share": 0.0,
            "set": changed(settings),
            **{name: topic for name, topic in topics.items() if topic is not None},
        }
        for track in tracks
    ]
    split = {"cell_m": CELL_M, "val_share": CALIBRATED_SHARE, "test_share": 0.0, "seed": seed_of(geodetic)}
    write_text(path, yaml.safe_dump({"drives": drives, **split}))


def seed_of(geodetic_deg: Float64) -> int:
    """The split whose part for calibration comes nearest to its share of the images: few squares are split unevenly."""
    shares = [
        float(np.mean(parts_of(geodetic_deg, cell_m=CELL_M, shares=(CALIBRATED_SHARE, 0.0), seed=seed) == "val"))
        for seed in range(_SEEDS)
    ]
    return int(np.argmin(np.abs(np.array(shares) - CALIBRATED_SHARE)))


def changed(settings: Settings) -> dict[str, Any]:
    """The node's parameters that are not at their defaults, by name."""
    groups = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    values = {name: getattr(groups[spec.group], spec.field) for name, spec in PARAMETERS.items()}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value != PARAMETERS[name].default
    }
