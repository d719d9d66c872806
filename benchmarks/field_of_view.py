"""Fixes by field of view: the same drives seen by a panoramic camera, by rigs, and by sectors of the panorama.

    python benchmarks/field_of_view.py record drives --seeds 1001 1004 1007 --length-m 600
    python benchmarks/field_of_view.py table drives --model models/towns-photo

`record` makes for each seed a folder with one drive (`unifygeo-train towns drive`) for each kind of camera; what is
there already is kept. All drives of a seed have the same route, light, odometry and IMU. `table` replays each row as
`unifygeo replay` does, in mode sequence with the IMU's heading, and prints all drives together; a replay that is
finished is not repeated. Sectors are those of the panorama, by `camera.mask_path`: all elevations, but only so many
degrees of azimuth, in the middle the way ahead.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import cv2
import numpy as np

from unifygeo_ros.evaluation.metrics.definitions import consistency
from unifygeo_ros.evaluation.metrics.summary import read_summary

RIGS = Path(__file__).parents[1] / "config" / "rigs"
PANORAMA = "panorama"
SCALES = {"six_pinholes": 0.25, "four_fisheyes": 0.5, "dual_fisheye": 0.2}
"""Of the rigs' images: about 0.3° for each pixel, finer than the 0.5° of the panoramas."""


@dataclass(frozen=True)
class Row:
    """One way to see a drive."""

    name: str
    recording: str
    sector_deg: float | None = None
    """Of the panorama, around the way ahead; None: all that is recorded."""


ROWS = (
    Row("panorama, 360°", PANORAMA),
    Row("six pinholes", "six_pinholes"),
    Row("four fisheyes", "four_fisheyes"),
    Row("dual fisheye", "dual_fisheye"),
    Row("sector of 270°", PANORAMA, 270.0),
    Row("sector of 180°", PANORAMA, 180.0),
    Row("sector of 90°", PANORAMA, 90.0),
)


def record(args: argparse.Namespace) -> None:
    """Record what is missing."""
    for seed in args.seeds:
        for kind in dict.fromkeys(row.recording for row in ROWS):
            folder = args.drives / str(seed) / kind
            if (folder / "README.md").is_file():
                continue
            command = [sys.executable, "-m", "unifygeo_training.cli", "towns", "drive", "--seed", str(seed)]
            command += ["--length-m", str(args.length_m), "--output", str(folder)]
            if kind != PANORAMA:
                # Both circles of a dual fisheye expose together.
                spread_s = 0.0 if kind == "dual_fisheye" else 0.08
                command += ["--rig", str(RIGS / f"{kind}.yaml"), "--image-scale", str(SCALES[kind])]
                command += ["--exposure-spread-s", str(spread_s)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def sector_mask(path: Path, sector_deg: float) -> Path:
    """A mask for `camera.mask_path` that leaves a sector around the image's middle."""
    azimuth_deg = (np.arange(720) + 0.5) / 2 - 180
    cv2.imwrite(str(path), np.tile(np.where(np.abs(azimuth_deg) < sector_deg / 2, 255, 0).astype(np.uint8), (360, 1)))
    return path


def replay(row: Row, seed: Path, model: Path, results: Path) -> Mapping[str, Any]:
    """Replay one drive as one row, unless that is done."""
    drive, run = seed / row.recording, [sys.executable, "-m", "unifygeo_ros.cli"]
    name = f"{seed.name}-{row.name.replace(' ', '_').replace(',', '').replace('°', '')}"
    report = results / f"{name}.html"
    if not report.with_suffix(".json").is_file():
        index = results / f"index-{seed.name}"
        if not index.is_dir():
            town = seed / PANORAMA / "town.tif"
            build = [*run, "index", "build", str(town), "--model", str(model), "--output", str(index)]
            subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        command = [*run, "replay", str(drive / "bag"), "--index", str(index), "--model", str(model), "--quiet"]
        command += ["--output", str(results / f"{name}.mcap"), "--report", str(report)]
        command += ["--odometry-topic", "/odom", "--truth-topic", "/ground_truth/odometry"]
        command += ["--set", "session.heading_source=imu", "--set", "backend=onnx_cpu", "--set", "threads=1"]
        if row.recording == PANORAMA:
            command += ["--set", "camera.x_m=0.2"]
        else:
            command += ["--rig", str(drive / "rig.yaml")]
        if row.sector_deg is not None:
            mask = sector_mask(results / f"sector-{row.sector_deg:g}.png", row.sector_deg)
            command += ["--set", f"camera.mask_path={mask}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_summary(report.with_suffix(".json"))


def table(args: argparse.Namespace) -> None:
    """Replay all rows and print them."""
    seeds = sorted(path for path in args.drives.iterdir() if (path / PANORAMA).is_dir())
    results = args.results or args.drives / f"results-{args.model.name}"
    results.mkdir(parents=True, exist_ok=True)
    print(line("field of view", "images", "fixes", "worst drive", "median", "95%", "false", "ANEES"))
    print("|" + "---|" * 8)
    for row in ROWS:
        found = [replay(row, seed, args.model, results) for seed in seeds if (seed / row.recording).is_dir()]
        if found:
            print(judged(row, found), flush=True)


def judged(row: Row, found: list[Mapping[str, Any]]) -> str:
    """A row of the table, over all drives."""
    images = sum(s["counts"]["images"] for s in found)
    fixes = sum(s["counts"]["fixes"] for s in found)
    worst = min(s["counts"]["fixes"] / s["counts"]["images"] for s in found)
    errors = [error for s in found for error in s["per_image"]["error_m"] if error is not None]
    nees = [value for s in found for value in s["per_image"]["nees"] if value is not None]
    shares = [s["integrity"]["false_fix"] for s in found if s["integrity"]["false_fix"] is not None]
    whole = consistency(nees)
    return line(
        row.name,
        f"{images}",
        f"{fixes / images:.1%}",
        f"{worst:.1%}",
        f"{np.median(errors):.2f} m" if errors else "–",
        f"{np.quantile(errors, 0.95):.2f} m" if errors else "–",
        f"{sum(round(share['value'] * share['count']) for share in shares)}",
        f"{whole.anees:.2f} ({whole.lower:.2f} to {whole.upper:.2f})" if whole else "–",
    )


def line(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record", help="record the drives that are missing")
    recording.add_argument("drives", type=Path, help="folder of the drives")
    recording.add_argument("--seeds", type=int, nargs="+", default=[1001, 1004, 1007], help="of the towns")
    recording.add_argument("--length-m", type=float, default=2000.0, help="of each drive (default: %(default)s)")
    recording.set_defaults(run=record)
    judging = commands.add_parser("table", help="replay the drives and print the table")
    judging.add_argument("drives", type=Path, help="folder of the drives")
    judging.add_argument("--model", type=Path, required=True, help="folder of the bundle")
    judging.add_argument("--results", type=Path, help="folder of the replays (default: results-MODEL among the drives)")
    judging.set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
