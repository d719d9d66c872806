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
from unifygeo_training.drives.places import near_other_part, parts_of

CELL_M = 75.0
"""Side of the squares of ground that are learnt from or calibrated on: smaller than for drives with a truth, since
adapting takes short ones, too."""
CALIBRATED_SHARE = 0.25
"""Of the certain images, for calibration."""
SHARE_TOLERANCE = 0.1
"""How far from it a split may lie that leaves more to learn from."""
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
    guard_m: float,
) -> None:
    """Name the drives with their tracks as truth. guard_m: see `seed_of`."""
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
    split = {"cell_m": CELL_M, "val_share": CALIBRATED_SHARE, "test_share": 0.0, "seed": seed_of(geodetic, guard_m)}
    write_text(path, yaml.safe_dump({"drives": drives, **split}))


def seed_of(geodetic_deg: Float64, guard_m: float) -> int:
    """The split that leaves the most images to learn from, of those whose part for calibration has about its share.

    Few squares are split unevenly, and what lies within guard_m of a square that is kept for calibration is lost to
    both: of a short drive that can be more than what is learnt from. Where no split has about that share, the one that
    comes nearest to it.
    """
    off, left = [], []
    for seed in range(_SEEDS):
        split: dict[str, Any] = {"cell_m": CELL_M, "shares": (CALIBRATED_SHARE, 0.0), "seed": seed}
        parts = parts_of(geodetic_deg, **split)
        near = near_other_part(geodetic_deg, "train", guard_m=guard_m, **split)
        off.append(abs(float(np.mean(parts == "val")) - CALIBRATED_SHARE))
        left.append(int(np.sum((parts == "train") & ~near)))
    about = np.array(off) <= SHARE_TOLERANCE
    return int(np.argmax(np.where(about, left, -1)) if about.any() else np.argmin(off))


def changed(settings: Settings) -> dict[str, Any]:
    """The node's parameters that are not at their defaults, by name."""
    groups = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    values = {name: getattr(groups[spec.group], spec.field) for name, spec in PARAMETERS.items()}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value != PARAMETERS[name].default
    }
