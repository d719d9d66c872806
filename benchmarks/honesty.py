"""Can a fix be believed where nothing is as it should be? One table, a row for each situation.

    for seed in $(seq 20000 20012); do
        unifygeo-train towns drive --seed $seed --length-m 300 --output drives/$seed
    done
    python benchmarks/honesty.py run --model models/towns-photo --work honesty drives/2*
    python benchmarks/honesty.py table --work honesty

A drive is a folder with `town.tif` and `bag`, as `unifygeo-train towns drive` makes it. Every situation is a replay
through the session that the node runs, with one thing wrong: the index (of another town, or of one half of the
drive's own town), the camera's picture (not equirectangular, mirrored, turned), the stamps, or the sources. `run`
writes one file of results for each situation and drive and does not repeat what is there; `table` reads them. The
networks' outputs are kept in `--work`, so that a second run after a change to the decision takes seconds.

An image is *on the map* if a tile of the index holds the vehicle. A fix is *false* if it is off by more than 10 m and
outside its own 99.9% ellipse; with an index of another town every fix is false.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio.windows import Window
from recorded_drive import RecordedDrive, images_in_turn, read_drive

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.index import TileIndex, open_index
from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.conversions.from_messages import camera_image
from unifygeo_ros.core.arrays import UInt8
from unifygeo_ros.core.covariance import chi2_quantile, semi_major_sigma
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import CameraImage, Fix, Prior
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.evaluation.metrics.definitions import (
    anees_bounds,
    consistency,
    effective_sample_size,
    false_fixes,
    share,
)
from unifygeo_ros.evaluation.recordings.truth import Truth
from unifygeo_ros.evaluation.settings import Criteria
from unifygeo_ros.inference.bundle import GROUND_FEATURES, PYRAMID, ModelBundle, load_bundle
from unifygeo_ros.inference.engine import EngineSet
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.factory import make_session
from unifygeo_ros.sessions.session import LocalizationSession

CAMERA = CameraMount(x_m=0.2)
"""As `unifygeo-train towns drive` mounts it."""

SIGMA95_2 = chi2_quantile(0.95)


# -- what is wrong ------------------------------------------------------------------------------------------------


def dual_fisheye(panorama: UInt8) -> UInt8:
    """Two equidistant circles of 190°, front and back, side by side: what a dual-fisheye camera streams."""
    height, half = 480, 480
    radius = half / 2
    v, u = np.mgrid[:height, : 2 * half].astype(np.float32) + 0.5
    back = u >= half
    x, y = (u - np.where(back, half, 0) - radius) / radius, (v - radius) / radius
    distance = np.hypot(x, y)
    angle = distance * math.radians(95.0)
    scale = np.sin(angle) / np.maximum(distance, 1e-6)
    forward, right, down = np.cos(angle), x * scale, y * scale
    azimuth = np.arctan2(right, forward) + np.where(back, np.pi, 0.0)
    picture = look_up(panorama, azimuth, np.arcsin(np.clip(-down, -1, 1)))
    picture[distance > 1] = 0
    return picture


def pinhole(panorama: UInt8) -> UInt8:
    """A forward camera of 110°, 2:1."""
    height, width = 480, 960
    focal = width / 2 / math.tan(math.radians(55.0))
    v, u = np.mgrid[:height, :width].astype(np.float32) + 0.5
    right, down = (u - width / 2) / focal, (v - height / 2) / focal
    return look_up(panorama, np.arctan2(right, 1.0), np.arctan2(-down, np.hypot(right, 1.0)))


def look_up(panorama: UInt8, azimuth: Any, elevation: Any) -> UInt8:
    """Sample an equirectangular image of the whole sphere; azimuth clockwise from its centre column."""
    height, width = panorama.shape[:2]
    column = (azimuth / (2 * np.pi) + 0.5) * width - 0.5
    row = np.clip((0.5 - elevation / np.pi) * height - 0.5, 0, height - 1)
    sampled = cv2.remap(
        panorama, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    return np.asarray(sampled, np.uint8)


def pitched(panorama: UInt8) -> UInt8:
    """A camera that looks down by 10°."""
    height, width = panorama.shape[:2]
    v, u = np.mgrid[:height, :width].astype(np.float32) + 0.5
    azimuth, elevation = (u / width - 0.5) * 2 * np.pi, (0.5 - v / height) * np.pi
    forward, right, up = (
        np.cos(elevation) * np.cos(azimuth),
        np.cos(elevation) * np.sin(azimuth),
        np.sin(elevation),
    )
    c, s = math.cos(math.radians(10.0)), math.sin(math.radians(10.0))
    level_forward, level_up = c * forward + s * up, c * up - s * forward
    return look_up(panorama, np.arctan2(right, level_forward), np.arcsin(np.clip(level_up, -1, 1)))


def narrow(panorama: UInt8) -> UInt8:
    """Elevations of ±60° alone, stretched to the shape of a whole sphere, as of a panoramic lens."""
    height, width = panorama.shape[:2]
    belt = panorama[height // 6 : height - height // 6]
    return np.asarray(cv2.resize(belt, (width, height)), np.uint8)


FEEDS: dict[str, Callable[[UInt8], UInt8]] = {
    "right": lambda picture: picture,
    "dual fisheye": dual_fisheye,
    "pinhole": pinhole,
    "mirrored": lambda picture: np.ascontiguousarray(picture[:, ::-1]),
    "turned by 180°": lambda picture: np.roll(picture, picture.shape[1] // 2, axis=1),
    "turned by 90°": lambda picture: np.roll(picture, picture.shape[1] // 4, axis=1),
    "upside down": lambda picture: np.ascontiguousarray(picture[::-1, ::-1]),
    "pitched by 10°": pitched,
    "field of ±60°": narrow,
}


@dataclass(frozen=True)
class Situation:
    """A row of the table.

    maps: own, west and east (halves of the own town), other (the next drive's town). late_s: by how much the images'
    stamps are late.
    """

    name: str
    mode: str
    maps: tuple[str, ...] = ("own",)
    heading: str = "imu"
    odometry: bool = True
    feed: str = "right"
    late_s: float = 0.0
    stamp_sigma_s: float = SessionConfig().stamp_sigma_s
    quick_images: int = 1
    """With --quick, one image in so many."""
    quick_drives: int = 1
    """With --quick, one drive in so many."""

    @property
    def session(self) -> SessionConfig:
        return SessionConfig(mode=self.mode, heading_source=self.heading, stamp_sigma_s=self.stamp_sigma_s)


def situations() -> list[Situation]:
    rows = []
    for mode in ("single", "sequence"):
        rows += [
            Situation("on the map, heading given", mode),
            Situation("on the map, heading searched", mode, heading="none"),
            Situation("on the map, heading given, stamps declared exact", mode, stamp_sigma_s=0.0),
            Situation("another town", mode, ("other",)),
            Situation("another town, heading searched", mode, ("other",), heading="none"),
            Situation("half of the town", mode, ("west", "east"), quick_drives=2),
            Situation("half of the town, heading searched", mode, ("west", "east"), heading="none", quick_drives=4),
            *(Situation(f"feed: {feed}", mode, feed=feed, quick_images=3) for feed in FEEDS if feed != "right"),
            Situation("stamps 0.1 s late", mode, late_s=0.1, quick_drives=2),
            Situation("stamps 0.25 s late", mode, late_s=0.25, quick_drives=2),
        ]
    rows += [
        Situation("no odometry, heading given", "sequence", odometry=False, quick_drives=2),
        Situation("no odometry, no heading", "sequence", odometry=False, heading="none", quick_drives=2),
    ]
    return rows


# -- the networks' outputs, remembered ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """An output by its key; computed only on demand."""

    key: bytes
    make: Callable[[], Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.make().shape)

    @property
    def nbytes(self) -> int:
        return int(self.make().nbytes)

    def numpy(self) -> Any:
        made = self.make()
        return made if isinstance(made, np.ndarray) else made.numpy()


class Memory:
    """Vectors by key, on disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = sqlite3.connect(path, isolation_level=None, timeout=60)
        self._rows.execute("PRAGMA journal_mode=WAL")
        self._rows.execute("PRAGMA synchronous=OFF")
        self._rows.execute("CREATE TABLE IF NOT EXISTS outputs (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def get(self, key: bytes, make: Callable[[], Any]) -> Any:
        found = self._rows.execute("SELECT value FROM outputs WHERE key = ?", (key,)).fetchone()
        if found is not None:
            return np.frombuffer(found[0], np.float32)
        made = np.ascontiguousarray(make(), np.float32).ravel()
        self._rows.execute("INSERT OR REPLACE INTO outputs VALUES (?, ?)", (key, made.tobytes()))
        return made


class RememberedEngine:
    """One of the three graphs behind a `Memory`."""

    def __init__(self, engine: Any, memory: Memory, bundle: ModelBundle) -> None:
        self._engine, self._memory, self._manifest = engine, memory, bundle.manifest
        self.description = engine.description

    def run(self, inputs: Mapping[str, Any], outputs: Collection[str] | None = None) -> Mapping[str, Any]:
        key = hashlib.sha1(inputs["f0"].key + inputs["pyramid0"].key).digest()
        size = self._manifest.distribution_size

        def decode() -> Any:
            return self._engine.run({name: kept.make() for name, kept in inputs.items()})["logits"]

        return {"logits": self._memory.get(key, decode).reshape(1, size, size)}

    def run_resident(
        self, inputs: Mapping[str, Any], resident: Collection[str], outputs: Collection[str] | None = None
    ) -> tuple[Mapping[str, Any], Mapping[str, Kept]]:
        image = np.ascontiguousarray(inputs["image"])
        key = hashlib.sha1(image.tobytes()).digest()
        if PYRAMID[0] in resident:
            made: dict[str, Any] = {}

            def pyramid(name: str) -> Any:
                if not made:
                    made.update(self._engine.run_resident({"image": image}, PYRAMID, ())[1])
                return made[name]

            return {}, {name: Kept(key, partial(pyramid, name)) for name in PYRAMID}
        lengths = [self._manifest.descriptor_dim, *(channels for channels, _ in self._manifest.pyramid)]

        def encode() -> Any:
            found = self._engine.run({"image": image})
            return np.concatenate([found[name][0] for name in ("descriptor", *GROUND_FEATURES)])

        parts = np.split(self._memory.get(key, encode), np.cumsum(lengths)[:-1])
        named = {name: part[None] for name, part in zip(("descriptor", *GROUND_FEATURES), parts, strict=True)}
        return named, {name: Kept(key, partial(named.__getitem__, name)) for name in GROUND_FEATURES}

    def close(self) -> None:
        pass


def remembered(engines: EngineSet, memory: Memory, bundle: ModelBundle) -> EngineSet:
    ground, aerial, decoder = (
        RememberedEngine(engine, memory, bundle)
        for engine in (engines.ground_encoder, engines.aerial_encoder, engines.decoder)
    )
    return EngineSet(ground, aerial, decoder, engines.description)


# -- drives -------------------------------------------------------------------------------------------------------


def index_of(folder: Path, part: str, work: Path, bundle: ModelBundle, engines: EngineSet) -> TileIndex:
    """The index of a drive's town or of one half of it, all in the map frame of the whole."""
    name = f"{folder.name}-{part}-{bundle.manifest.weights_sha256[:12]}"
    path = work / "indexes" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        if part == "own":
            build_index([folder / "town.tif"], bundle, engines, path)
        else:
            whole = index_of(folder, "own", work, bundle, engines)
            half = path.with_suffix(".tif")
            crop(folder / "town.tif", half, west=part == "west")
            build_index([half], bundle, engines, path, datum=whole.manifest.datum)
    return open_index(path, bundle=bundle)


def crop(source: Path, target: Path, *, west: bool) -> None:
    with rasterio.open(source) as dataset:
        columns = dataset.width // 2
        window = Window(0 if west else columns, 0, columns, dataset.height)
        profile = {**dataset.profile, "width": columns, "transform": dataset.window_transform(window)}
        with rasterio.open(target, "w", **profile) as half:
            half.write(dataset.read(window=window))


# -- one situation on one drive -----------------------------------------------------------------------------------


def play(
    recording: RecordedDrive, localizer: Localizer, situation: Situation, *, foreign: bool, images: int = 1
) -> list[dict[str, Any]]:
    """A record for each image: on_map, outcome, and of fixes error_m, nees, yaw_nees, ambiguity.

    The last record has the session's warnings, too.

    Args:
        recording: The drive.
        localizer: With the index of the situation.
        situation: What is wrong.
        foreign: The index is of another town, and the truth is nowhere on it.
        images: One image in so many is played.
    """
    session = make_session(localizer, situation.session)
    late_ns = ns_from_s(situation.late_s)
    records: list[dict[str, Any]] = []
    turns = images_in_turn(recording.arrivals, session, odometry=situation.odometry)
    for shown, message in enumerate(turns, start=1):
        if shown % images:
            continue
        image = camera_image(message)
        image = CameraImage(FEEDS[situation.feed](image.pixels), image.stamp_ns + late_ns)
        records.append(judged(session, image, recording.truth, localizer.index, foreign))
    if records:
        records[-1]["warnings"] = list(session.status().warnings)
    return records


def judged(
    session: LocalizationSession, image: CameraImage, truth: Truth, index: MapIndex, foreign: bool
) -> dict[str, Any]:
    outcome = session.locate(image).result
    pose = truth.at(image.stamp_ns)
    if pose is None:
        return {"on_map": None, "outcome": "no truth"}
    place = Prior(pose.east_m, pose.north_m, 1e-6 * np.eye(2))
    record: dict[str, Any] = {"on_map": not foreign and len(index.tiles_within(Gate(place, 1.0))) > 0}
    if not isinstance(outcome, Fix):
        return {**record, "outcome": outcome.reason.value, "detail": outcome.detail}
    record |= {"outcome": "fix", "ambiguity": outcome.ambiguity}
    if foreign:
        return {**record, "error_m": None, "nees": None}
    error = np.array([outcome.east_m - pose.east_m, outcome.north_m - pose.north_m])
    record |= {
        "error_m": float(np.hypot(*error)),
        "nees": float(error @ np.linalg.solve(outcome.covariance_m2, error)),
        "sigma_m": semi_major_sigma(outcome.covariance_m2),
    }
    if pose.yaw_rad is not None:
        record["yaw_nees"] = float(wrap_angle(outcome.yaw_rad - pose.yaw_rad) ** 2 / outcome.yaw_variance_rad2)
    return record


def run(args: argparse.Namespace) -> None:
    bundle = load_bundle(args.model)
    config = LocalizerConfig(pyramid_cache_tiles=4096)
    wanted = [row for row in situations() if re.search(args.rows, f"{row.mode}: {row.name}")]
    quick = args.quick
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        for number, folder in enumerate(args.drives):
            memory = Memory(args.work / "outputs" / f"{folder.name}.sqlite")
            shared = remembered(engines, memory, bundle)
            other = args.drives[(number + 1) % len(args.drives)]
            recording: RecordedDrive | None = None
            for row in wanted:
                if quick and number % row.quick_drives:
                    continue
                target = args.work / args.label / f"{row.mode}-{row.name}-{folder.name}.json".replace(" ", "_")
                if target.exists():
                    continue
                started = time.perf_counter()
                records = []
                for part in row.maps:
                    source, half = (other, "own") if part == "other" else (folder, part)
                    index = index_of(source, half, args.work, bundle, engines)
                    if recording is None:
                        recording = read_drive(folder, index_of(folder, "own", args.work, bundle, engines))
                    localizer = Localizer(index, bundle, shared, config, CAMERA)
                    images = row.quick_images if quick else 1
                    records.append(play(recording, localizer, row, foreign=part == "other", images=images))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(json.dumps(records))
                flat = [record for part in records for record in part]
                counts = Counter((record["on_map"], record["outcome"]) for record in flat)
                print(
                    f"{folder.name} {row.mode}: {row.name}: {dict(counts)}, {time.perf_counter() - started:.1f} s",
                    flush=True,
                )


# -- the table ----------------------------------------------------------------------------------------------------

HEADER = (
    "| | on the map: images | fixes | false of the fixes | ANEES (95% bounds; for as many independent fixes as the "
    "correlated are worth) | in 95% ellipse | yaw NEES (bounds for the latter) | off the map: images | fixes there |\n"
    + "|---" * 9
    + "|"
)


def line(name: str, drives: list[list[dict[str, Any]]]) -> str:
    """One row. drives: the records of each replay, in order of time."""
    records = [record for drive in drives for record in drive if record["on_map"] is not None]
    on = [record for record in records if record["on_map"]]
    off = [record for record in records if not record["on_map"]]
    fixed = [record for record in on if record["outcome"] == "fix"]
    cells = [name, str(len(on))]
    cells.append(f"{100 * len(fixed) / len(on):.1f}%" if on else "–")
    if fixed:
        errors, nees = (np.array([record[key] for record in fixed]) for key in ("error_m", "nees"))
        wrong = false_fixes(errors, nees, Criteria().alert_limit_m)
        cells.append(interval(int(wrong.sum()), len(fixed)))
        whole = consistency(nees)
        assert whole is not None
        low, high = anees_bounds(independent(drives, "nees"))
        text = f"{whole.anees:.2f} ({whole.lower:.2f} … {whole.upper:.2f}; {low:.2f} … {high:.2f})"
        if wrong.any():
            text += f", without the false {np.mean(nees[~wrong]) / 2:.2f}"
        cells += [text, f"{100 * np.mean(nees < SIGMA95_2):.1f}%"]
        yaws = [record["yaw_nees"] for record in fixed if "yaw_nees" in record]
        low, high = anees_bounds(independent(drives, "yaw_nees"), dimensions=1)
        cells.append(f"{np.mean(yaws):.2f} ({low:.2f} … {high:.2f})" if yaws else "–")
    else:
        cells += ["–"] * 4
    fixed_off = sum(record["outcome"] == "fix" for record in off)
    cells += [str(len(off)), interval(fixed_off, len(off)) if off else "–"]
    return "| " + " | ".join(cells) + " |"


def independent(drives: list[list[dict[str, Any]]], key: str) -> float:
    """How many independent values the fixes' values on the map are worth: neighbours of a drive are correlated."""
    count = 0.0
    for drive in drives:
        values = [r[key] for r in drive if r["on_map"] and r["outcome"] == "fix" and key in r]
        count += effective_sample_size(values)
    return max(count, 1.0)


def interval(count: int, total: int) -> str:
    """A share with its 95% Wilson interval."""
    found = share(count, total)
    if found is None:
        return "–"
    return f"{count} = {100 * found.value:.2f}% ({100 * found.lower:.2f} … {100 * found.upper:.2f}%)"


def table(args: argparse.Namespace) -> None:
    print(HEADER)
    for row in situations():
        if not re.search(args.rows, f"{row.mode}: {row.name}"):
            continue
        pattern = f"{row.mode}-{row.name}-*.json".replace(" ", "_")
        files = sorted((args.work / args.label).glob(pattern))
        drives = [part for file in files if args.drives in file.stem for part in json.loads(file.read_text())]
        if drives:
            print(line(f"{row.mode}: {row.name}", drives))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("run", run), ("table", table)):
        command = commands.add_parser(name)
        command.add_argument("--work", type=Path, required=True, help="folder for indexes, outputs and results")
        command.add_argument("--label", default="results", help="name of this set of results")
        command.add_argument("--rows", default="", help="only rows whose name has this regular expression in it")
        command.set_defaults(run=function)
        if name == "run":
            command.add_argument("--model", type=Path, required=True)
            command.add_argument(
                "--quick",
                action="store_true",
                help="wrong feeds with one image in three, halves of a town, late stamps and missing odometry on some "
                "of the drives: about 45 minutes of one core for twenty drives",
            )
            command.add_argument("drives", type=Path, nargs="+", help="folders with town.tif and bag")
        else:
            command.add_argument("--drives", default="", help="only drives whose name contains this")
    args = parser.parse_args()
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
