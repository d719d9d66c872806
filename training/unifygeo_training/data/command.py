"""`unifygeo-train check-data`."""

from __future__ import annotations

import argparse
from pathlib import Path

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


def add_command(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("check-data", help="say what is missing, unreadable or inconsistent in a data set")
    parser.add_argument("dataset", choices=sorted(SPLITS))
    parser.add_argument("root", type=Path, help="folder of the data set")
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a report for each part; 0 if all are fit for training, else 1."""
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
