"""`unifygeo-train check-data`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from unifygeo_training.data.centre_aligned import load_cvact, load_cvusa
from unifygeo_training.data.check import check_split, draw_labels
from unifygeo_training.data.split import CrossViewSplit
from unifygeo_training.data.vigor import load_vigor

SPLITS = {
    "vigor-same-area": ("train", "test"),
    "vigor-cross-area": ("train", "test"),
    "cvusa": ("train", "val"),
    "cvact": ("train", "val", "test"),
}


def load_split(
    dataset: str, root: Path, part: str, labels: str = "corrected", *, skip_missing: bool = False
) -> CrossViewSplit:
    """A split by the names of the command line (`SPLITS`). Raises InputError."""
    if dataset == "cvusa":
        split = load_cvusa(root, part)  # type: ignore[arg-type]
    elif dataset == "cvact":
        split = load_cvact(root, part)  # type: ignore[arg-type]
    else:
        split = load_vigor(root, dataset.removeprefix("vigor-"), part, labels=labels)  # type: ignore[arg-type]
    return split.without_missing() if skip_missing else split


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """The options of `load_split` and `SplitImages`."""
    parser.add_argument(
        "--labels", choices=("corrected", "original"), default="corrected", help="VIGOR's label version"
    )
    parser.add_argument(
        "--missing",
        choices=("error", "skip"),
        default="error",
        help="images that are not on disk: an error, or left out and counted in the name (default: %(default)s)",
    )
    parser.add_argument(
        "--resize",
        choices=("area", "bilinear"),
        default="area",
        help="area: as the robot resizes; bilinear: as the published weights were judged (default: %(default)s)",
    )


def add_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("check-data", help="say what is missing, unreadable or inconsistent in a data set")
    parser.add_argument("dataset", choices=("drives", *sorted(SPLITS)))
    parser.add_argument("root", type=Path, help="folder of the data set; of drives: the YAML file that names them")
    parser.add_argument("--part", choices=("train", "val", "test"), help="only this part; default: all")
    parser.add_argument(
        "--labels", choices=("corrected", "original"), default="corrected", help="VIGOR's label version"
    )
    parser.add_argument("--quick", action="store_true", help="only look whether files exist, do not decode them")
    parser.add_argument("--workers", type=int, default=8, help="threads that decode images")
    parser.add_argument(
        "--draw", type=int, default=0, metavar="N", help="draw the labels of N queries over their images"
    )
    parser.add_argument("--seed", type=int, default=0, help="which queries are drawn")
    parser.add_argument("--output", type=Path, default=Path("check-data"), help="folder of the drawings")
    parser.add_argument("--model", type=Path, help="of drives with imagery: the bundle whose network will learn")
    parser.add_argument("--network", type=Path, help="the same as YAML of the network config, in place of --model")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a report for each part; 0 if all are fit for training, else 1."""
    if args.dataset == "drives":
        return _check_drives(args)
    all_ok = True
    for part in (args.part,) if args.part else SPLITS[args.dataset]:
        split = load_split(args.dataset, args.root, part, args.labels)
        report = check_split(
            split,
            decode=not args.quick,
            workers=args.workers,
            progress=lambda files, total: tqdm(files, total=total, unit="image", leave=False),
        )
        print(report)
        all_ok &= report.ok
        if args.draw:
            args.output.mkdir(parents=True, exist_ok=True)
            chosen = np.random.default_rng(args.seed).permutation(len(split.ground))[: args.draw]
            for query in sorted(chosen):
                file = args.output / f"{part}_{query:06d}.jpg"
                cv2.imwrite(str(file), cv2.cvtColor(draw_labels(split, query), cv2.COLOR_RGB2BGR))
            print(f"  labels of {len(chosen)} queries are drawn in {args.output}/")
    return 0 if all_ok else 1


def _check_drives(args: argparse.Namespace) -> int:
    """Judge each drive of a file and draw it; 0 if all are fit."""
    from unifygeo_ros.inference.bundle import load_bundle
    from unifygeo_training.configuration import check_settings, read_network_config
    from unifygeo_training.drives.check import draw, write_samples
    from unifygeo_training.drives.opened import check_drives
    from unifygeo_training.drives.places import PARTS, cells_of, near_other_part, parts_of
    from unifygeo_training.drives.settings import read_drives_file
    from unifygeo_training.model.config import NetworkConfig

    file = read_drives_file(args.root)
    network, aerial = NetworkConfig(), None
    if args.model is not None:
        network = check_settings(load_bundle(args.model).manifest.network, NetworkConfig, str(args.model))
    elif args.network is not None:
        network = read_network_config(args.network)
    if args.model is not None or args.network is not None:
        aerial = network.aerial
    all_ok = True
    for number, (report, drive) in enumerate(check_drives(file, network.ground, aerial)):
        print(report)
        all_ok &= report.problem is None
        if drive is not None:
            args.output.mkdir(parents=True, exist_ok=True)
            picture = args.output / f"drive_{number}.png"
            split: dict[str, Any] = {
                "cell_m": file.cell_m, "shares": (file.val_share, file.test_share), "seed": file.seed
            }  # fmt: skip
            parts = parts_of(drive.geodetic_deg, **split)
            near = near_other_part(drive.geodetic_deg, "train", guard_m=network.aerial.side_m / 2, **split)
            for part in PARTS:
                own = parts == part
                squares = len(np.unique(cells_of(drive.geodetic_deg[own], file.cell_m), axis=0))
                border = f", {(own & near).sum()} of them too near another part" if part == "train" else ""
                print(f"  {part}: {own.sum()} images in {squares} squares of {file.cell_m:g} m{border}")
            draw(drive, parts, picture)
            print(f"  drawn in {picture}")
            write_samples(drive, parts == "train", args.output / "samples", f"drive_{number}")
            print(f"  panoramas and tiles as the network sees them in {args.output / 'samples'}")
    return 0 if all_ok else 1
