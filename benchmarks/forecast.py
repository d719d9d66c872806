"""Does `unifygeo forecast` tell where fixes will come? Its stretches of 100 m against replays of held-out drives.

    for seed in $(seq 19000 19007) $(seq 20000 20009); do
        unifygeo-train towns drive --seed $seed --length-m 300 --output drives/$seed
    done
    python benchmarks/forecast.py replay --model models/towns-photo --work forecast drives/1900[0-7] drives/2000?
    python benchmarks/forecast.py fit --work forecast 1900
    python benchmarks/forecast.py replay --model models/towns-photo --work forecast --kind patchwork drives/2000?
    python benchmarks/forecast.py replay --model models/towns-photo --work forecast --kind sequence drives/2000?
    python benchmarks/forecast.py judge --work forecast 2000

Kinds of replay, each through the session that the node runs:

* single: single images, heading from the IMU.
* patchwork: the same with an index whose imagery is a patchwork, as that of a large region is. The town is cut into
  squares of 150 m, and each is drawn to be as it is (half), missing, coarse (1.5 m per pixel, enlarged), or to
  have a twin: a copy 5 km away with other brightness, noise and a little blur, as of an estate built twice.
* sequence: the node's defaults. A sequence, heading searched, nothing known at the start.

`fit` prints the constants of `unifygeo_ros/evaluation/forecast/availability.py`, from single images of drives that
are not judged. `judge` prints for each kind Spearman's rank correlation of forecast and true availability by stretches
of 100 m, with a 95% interval by a bootstrap over drives, beside what simpler forecasts reach: the share of the stretch
that the index covers, and the distance from the start. Every n-th image is replayed (`--images`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import rasterio
from honesty import CAMERA, Memory, remembered
from recorded_drive import images_in_turn, read_drive
from scipy.optimize import minimize
from scipy.stats import spearmanr

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.conversions.from_messages import camera_image
from unifygeo_ros.core.records import Fix
from unifygeo_ros.evaluation.forecast.availability import confirmed, features, single_availability
from unifygeo_ros.evaluation.forecast.likeness import Likeness, likeness_of
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.factory import make_session

SESSIONS = {
    "single": SessionConfig(mode="single", heading_source="imu"),
    "patchwork": SessionConfig(mode="single", heading_source="imu"),
    "sequence": SessionConfig(),
}
PATCH_M, COARSE_M, TWIN_M = 150.0, 1.5, 5000.0
STRETCH_M = 100.0
DRAWS = 2000


# -- replays ------------------------------------------------------------------------------------------------------


def patchwork(town: Path, folder: Path, seed: int) -> list[Path]:
    """The town's imagery with missing and coarse squares, and the twins of others: two GeoTIFFs."""
    rng = np.random.default_rng(seed)
    with rasterio.open(town) as dataset:
        profile, pixels = dataset.profile, np.moveaxis(dataset.read([1, 2, 3]), 0, 2)
        scale = dataset.res[0]
    size = round(PATCH_M / scale)
    factor = scale / COARSE_M
    coarse = cv2.resize(cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA),
                        pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)  # fmt: skip
    noise = rng.normal(0.0, 6.0, pixels.shape)
    other = np.clip(cv2.GaussianBlur(pixels, (0, 0), 0.3 / scale) * rng.uniform(0.85, 1.15, 3) + noise, 1, 255)
    patched, twin = np.maximum(pixels, 1), np.zeros_like(pixels)  # 0 is what is not known
    for top in range(0, len(pixels), size):
        for left in range(0, pixels.shape[1], size):
            square = np.s_[top : top + size, left : left + size]
            kind = rng.choice(["as it is", "missing", "coarse", "twin"], p=[1 / 2, 1 / 6, 1 / 6, 1 / 6])
            if kind == "missing":
                patched[square] = 0
            elif kind == "coarse":
                patched[square] = np.maximum(coarse[square], 1)
            elif kind == "twin":
                twin[square] = other[square].astype(np.uint8)
    paths = []
    for name, picture, east_m in (("patched", patched, 0.0), ("twin", twin, TWIN_M)):
        paths.append(folder / f"{name}.tif")
        place = profile["transform"]
        moved = rasterio.Affine(place.a, place.b, place.c + east_m, place.d, place.e, place.f)
        with rasterio.open(paths[-1], "w", **{**profile, "count": 3, "transform": moved, "nodata": 0}) as file:
            file.write(np.moveaxis(picture, 2, 0))
    return paths


def replay(args: argparse.Namespace) -> None:
    bundle = load_bundle(args.model)
    config = LocalizerConfig(pyramid_cache_tiles=4096)
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        for folder in args.drives:
            target = args.work / f"{args.kind}-{folder.name}.json"
            if target.exists():
                continue
            started = time.perf_counter()
            path = args.work / "indexes" / f"{folder.name}-own-{bundle.manifest.weights_sha256[:12]}"
            if not path.exists():
                build_index([folder / "town.tif"], bundle, engines, path)
            if args.kind == "patchwork":
                datum = open_index(path).manifest.datum
                path = path.with_name(f"{folder.name}-patchwork")
                if not path.exists():
                    images = patchwork(folder / "town.tif", args.work, int(folder.name))
                    build_index(images, bundle, engines, path, datum=datum)
            index = open_index(path, bundle=bundle)
            shared = remembered(engines, Memory(args.work / "outputs" / f"{folder.name}.sqlite"), bundle)
            recording = read_drive(folder, index)
            session = make_session(Localizer(index, bundle, shared, config, CAMERA), SESSIONS[args.kind])
            seen = []
            for shown, message in enumerate(images_in_turn(recording.arrivals, session), start=1):
                if shown % args.images:
                    continue
                image = camera_image(message)
                fix = isinstance(session.locate(image).result, Fix)
                pose = recording.truth.at(image.stamp_ns)
                if pose is not None:
                    seen.append([round(pose.east_m, 3), round(pose.north_m, 3), fix])
            target.write_text(json.dumps({"index": path.name, "images": seen}))
            share = np.mean([fix for *_, fix in seen])
            print(f"{args.kind} {folder.name}: {len(seen)} images, {share:.0%} with a fix, "
                  f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip


# -- fit and judgement --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Driven:
    """A replayed drive, and what its index said beforehand."""

    name: str
    along_m: np.ndarray
    """float64 (n,), of the images."""
    fixed: np.ndarray
    """bool (n,)."""
    found: Likeness
    """Of the images' places."""


def read(args: argparse.Namespace, kind: str, names: str) -> list[Driven]:
    """The replays of a kind whose drive's name begins so."""
    driven = []
    for file in sorted(args.work.glob(f"{kind}-{names}*.json")):
        content = json.loads(file.read_text())
        images = np.array(content["images"], np.float64)
        along_m = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(images[:, :2], axis=0).T))])
        kept = args.work / "likeness" / f"{file.stem}.npz"  # it takes a while, and each judgement needs it
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            found = likeness_of(open_index(args.work / "indexes" / content["index"]), images[:, :2])
            np.savez(kept, **vars(found))
        found = Likeness(**np.load(kept))
        driven.append(Driven(file.stem.rpartition("-")[2], along_m, images[:, 2] > 0, found))
    return driven


def fit(args: argparse.Namespace) -> None:
    """Logistic regression of fixes of single images; a weak ridge, on standardised features."""
    drives = read(args, "single", args.drives)
    values = np.concatenate([features(drive.found)[drive.found.covered] for drive in drives])
    fixed = np.concatenate([drive.fixed[drive.found.covered] for drive in drives])
    mean, sigma = values.mean(axis=0), values.std(axis=0)
    design = np.column_stack([np.ones(len(values)), (values - mean) / sigma])

    def loss(weights: np.ndarray) -> float:
        odds = design @ weights
        return float(np.logaddexp(0, odds).sum() - odds[fixed].sum() + weights[1:] @ weights[1:])

    weights = minimize(loss, np.zeros(design.shape[1])).x
    slopes = weights[1:] / sigma
    print(f"{len(drives)} drives, {len(fixed)} images, {fixed.mean():.3f} with a fix")
    print("BIAS, LIKENESS_WEIGHT, COHERENCE_WEIGHT, DETAIL_WEIGHT = "
          + ", ".join(f"{value:.3f}" for value in (weights[0] - slopes @ mean, *slopes)))  # fmt: skip
    print("standardised: " + ", ".join(f"{value:+.2f}" for value in weights[1:]))


def stretches(drive: Driven, kind: str) -> list[tuple[float, ...]]:
    """Of each: the true availability, the forecast, and what simpler forecasts say."""
    single = single_availability(drive.found)
    forecast = single
    if kind == "sequence":
        forecast = drive.found.covered * confirmed(single, drive.along_m, "searched")
    rows: list[tuple[float, ...]] = []
    for start_m in np.arange(0.0, drive.along_m[-1] - STRETCH_M / 2, STRETCH_M):
        inside = (drive.along_m >= start_m) & (drive.along_m < start_m + STRETCH_M)
        if inside.any():
            rows.append(
                (drive.fixed[inside].mean(), forecast[inside].mean(), drive.found.covered[inside].mean(), start_m)
            )
    return rows


def correlation(groups: list[list[tuple[float, ...]]], column: int) -> float:
    rows = np.array([row for group in groups for row in group])
    return float(spearmanr(rows[:, 0], rows[:, column]).statistic) if np.ptp(rows[:, column]) else float("nan")


def judge(args: argparse.Namespace) -> None:
    print("| replay | drives | stretches | true availability | forecast | covered share alone | distance alone |")
    print("|" + "---|" * 7)
    rng = np.random.default_rng(0)
    for kind in SESSIONS:
        groups = [stretches(drive, kind) for drive in read(args, kind, args.drives)]
        if not groups:
            continue
        draws = [
            correlation([groups[number] for number in rng.integers(len(groups), size=len(groups))], 1)
            for _ in range(DRAWS)
        ]
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        cells = [f"**{correlation(groups, 1):.2f}** ({low:.2f} … {high:.2f})"]
        cells += ["–" if np.isnan(value := correlation(groups, column)) else f"{value:.2f}" for column in (2, 3)]
        true = np.concatenate([[row[0] for row in group] for group in groups])
        print(f"| {kind} | {len(groups)} | {len(true)} | {true.mean():.0%} | {' | '.join(cells)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("replay")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--kind", choices=SESSIONS, default="single")
    command.add_argument("--images", type=int, default=1, help="one image in so many is replayed")
    command.add_argument("drives", type=Path, nargs="+", help="folders with town.tif and bag")
    command.set_defaults(run=replay)
    for name, function in (("fit", fit), ("judge", judge)):
        command = commands.add_parser(name)
        command.add_argument("drives", help="begin of the drives' names")
        command.set_defaults(run=function)
    for command in commands.choices.values():
        command.add_argument("--work", type=Path, required=True, help="folder for indexes, outputs and results")
    args = parser.parse_args()
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
