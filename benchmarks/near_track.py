"""What an image near a track tells of being on the map, judged on parts of a drive that the fit has not seen.

    python benchmarks/near_track.py MODEL drives.yaml --parent models/towns-atto [--part val]

For a model that was calibrated on the drive. Each of its images is looked for near its place, and near another place
of the drive, more than a tile away, which stands for a track off the map. The odds of the one against the other are
fitted to three quarters of the images, in order of time, and judged on the fourth.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from unifygeo_ros.core.arrays import Bool, Float64, Int64
from unifygeo_ros.inference.bundle import Calibration, Confidence, load_bundle
from unifygeo_training import confidence
from unifygeo_training.confidence import Outcomes
from unifygeo_training.drives.judged import neighbouring, streets_of
from unifygeo_training.drives.opened import open_part
from unifygeo_training.model.config import NetworkConfig

QUARTERS = 4


def main() -> None:
    """Print a row for each way to know the odds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("drives", type=Path)
    parser.add_argument("--parent", type=Path, required=True, help="the bundle that the model was made from")
    parser.add_argument("--part", choices=("val", "all"), default="val")
    options = parser.parse_args()
    bundle, parent = load_bundle(options.model), load_bundle(options.parent).manifest.calibration
    config = NetworkConfig.model_validate(bundle.manifest.network or load_bundle(options.parent).manifest.network)
    parts = neighbouring(open_part(options.drives, config, options.part), tiles=1500, queries=400, seed=0)
    streets = streets_of(parts, options.drives.name, 0)
    with confidence.opened(bundle) as runtime:
        everywhere = confidence.gather(runtime, streets[0], streets[0]).given
        near = confidence.near_outcomes(runtime, streets[:1])
    rows: dict[str, list[Float64]] = {}
    for quarter in range(QUARTERS):
        judged = near.select(quarters(near) == quarter)
        others = near.select(quarters(near) != quarter), everywhere.select(quarters(everywhere) != quarter)
        for name, calibration in ways(bundle.manifest.calibration, parent, *others).items():
            ratios = [calibration.outside_ratio(clues, searched=False, near=True) for clues in judged.clues()]
            rows.setdefault(name, []).append(-np.log(ratios))
    on_map = np.concatenate([~near.select(quarters(near) == quarter).outside for quarter in range(QUARTERS)])
    print(f"{on_map.sum()} images near their place, {(~on_map).sum()} near another")
    for name, odds in rows.items():
        print(f"{name:36s} {row(np.concatenate(odds), on_map)}")


def quarters(outcomes: Outcomes) -> Int64:
    """To which quarter each belongs, of those on the map and of those off it: int (n,)."""
    found = np.empty(len(outcomes), np.int64)
    for outside in (False, True):
        rows = np.flatnonzero(outcomes.outside == outside)
        found[rows] = np.arange(len(rows)) * QUARTERS // len(rows)
    return found


def ways(calibrated: Calibration, parent: Calibration, near: Outcomes, everywhere: Outcomes) -> dict[str, Calibration]:
    """Calibrations that differ in what they know of images near a track."""
    known, before = calibrated.familiarity, parent.near_on_map_confidence
    if known is None:
        raise SystemExit("the model is not calibrated; calibrate it on the drive first")
    alone = dataclasses.replace(
        calibrated,
        confidence=confidence.fit_confidence(everywhere),
        on_map_confidence=confidence.fit_on_map(everywhere),
        near_on_map_confidence=None,
    )
    found: dict[str, Confidence | None] = {
        "odds of images looked for everywhere": None,
        "the parent's odds near a track": before,
        "fitted": confidence.fit_near(near, near, known),
        "fitted, the parent's as before": confidence.fit_near(near, near, known, before),
    }
    return {name: dataclasses.replace(alone, near_on_map_confidence=odds) for name, odds in found.items()}


def row(odds: Float64, on_map: Bool) -> str:
    """Log loss as if half of the images were on the map, and the shares that are taken for the other."""
    loss = np.logaddexp(0.0, np.where(on_map, -odds, odds))
    balanced = (loss[on_map].mean() + loss[~on_map].mean()) / 2
    wrong = f"on it taken for off it {np.mean(odds[on_map] < 0):.0%}, off it for on it {np.mean(odds[~on_map] > 0):.0%}"
    return f"log loss {balanced:.2f} (chance 0.69), {wrong}"


if __name__ == "__main__":
    main()
