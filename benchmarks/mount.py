"""Does a drive find its own set-up? Known errors in the parameters, and what `unifygeo mount` makes of them.

    for seed in $(seq 19000 19007); do
        unifygeo-train towns drive --seed $seed --length-m 300 --output drives/$seed
    done
    python benchmarks/mount.py run --model models/towns-atto --work mount drives/19*
    python benchmarks/mount.py table --work mount
    python benchmarks/mount.py live --model models/towns-atto --work mount drives/19*

A drive is a folder with `town.tif` and `bag`, as `unifygeo-train towns drive` makes it: its set-up is known and right.
Each row configures it wrongly. Wrong parameters are the same as a camera that is mounted otherwise, since only the two
together matter; a delay is added to the images' stamps. Each drive is localized again with these errors and estimated
by the code of the command. `run` writes one file for each row and drive and does not repeat what is there.

An error of the table is estimate minus truth. The truth of the IMU's offset is the mean of the true yaw minus the
recorded one, since the IMU of these drives has a bias of its own; that of the scale is the length of the true way over
the odometry's. z is the error in standard deviations; its root mean square is 1 if they are honest.

`live` drives with the same errors and `apply_estimates`, and prints what the session corrected, when, and how far the
fixes are from the truth at their own stamps, before and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from honesty import CAMERA, Memory, index_of, remembered
from recorded_drive import RecordedDrive, images_in_turn, read_drive

from unifygeo_ros.conversions.from_messages import camera_image
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import CameraImage, Fix
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.evaluation.mounting.collect import SessionWithMemory, reduced, sequence_settings
from unifygeo_ros.evaluation.mounting.estimate import CollectedDrive, estimate_drive
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.motion.samples import ImuSample, OdometrySample
from unifygeo_ros.parameters.settings import Settings
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.corrections import NO_CORRECTIONS
from unifygeo_ros.sessions.factory import make_session
from unifygeo_ros.sessions.sequence import SequenceSession
from unifygeo_ros.sessions.session import LocalizationSession


@dataclass(frozen=True)
class Row:
    """What is wrong: true value minus configured value, degrees, metres and seconds."""

    name: str
    late_s: float = 0.0
    x_m: float = 0.0
    y_m: float = 0.0
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    imu_deg: float = 0.0

    @property
    def settings(self) -> Settings:
        mount = dataclasses.replace(
            CAMERA,
            x_m=CAMERA.x_m - self.x_m,
            y_m=CAMERA.y_m - self.y_m,
            yaw_rad=CAMERA.yaw_rad - math.radians(self.yaw_deg),
            pitch_rad=CAMERA.pitch_rad - math.radians(self.pitch_deg),
            roll_rad=CAMERA.roll_rad - math.radians(self.roll_deg),
        )
        session = SessionConfig(
            heading_source="imu", imu_yaw_offset_rad=-math.radians(self.imu_deg), camera_check_images=0
        )
        return sequence_settings(Settings(camera=mount, session=session))


ROWS = (
    Row("nothing"),
    Row("all of these", 0.27, 0.8, -0.4, 3.0, 2.0, -1.5, -2.0),
    Row("0.27 s late", late_s=0.27),
    Row("camera 0.8 m further forward, 0.4 m to the right", x_m=0.8, y_m=-0.4),
    Row("camera turned by 3°", yaw_deg=3.0),
    Row("camera pitched by 2°, rolled by −1.5°", pitch_deg=2.0, roll_deg=-1.5),
    Row("IMU turned by −2°", imu_deg=-2.0),
)

QUANTITIES = {
    "late": (1e3, "ms", 20.0),
    "x": (1.0, "m", 0.2),
    "y": (1.0, "m", 0.2),
    "yaw": (180 / math.pi, "°", 0.3),
    "pitch": (180 / math.pi, "°", 0.5),
    "roll": (180 / math.pi, "°", 0.5),
    "imu_offset": (180 / math.pi, "°", 0.5),
    "scale": (100.0, "%", math.inf),
}
"""Factor and unit of the table, and the largest error that is wanted."""


def collected(recording: RecordedDrive, localizer: Localizer, row: Row) -> CollectedDrive:
    settings = row.settings
    session = make_session(localizer, settings.session, settings.tracker, settings.odometry)
    assert isinstance(session, SequenceSession)
    memory = SessionWithMemory(session, settings)
    for message in images_in_turn(recording.arrivals, memory):
        image = camera_image(message)
        memory.locate(dataclasses.replace(image, stamp_ns=image.stamp_ns + ns_from_s(row.late_s)))
    return memory.collected()


def truth_of(recording: RecordedDrive, drive: CollectedDrive, row: Row) -> dict[str, float]:
    offsets, places = [], []
    for seen in drive.seen:
        exposed_ns = seen.stamp_ns - ns_from_s(row.late_s)
        pose, inertial = recording.truth.at(exposed_ns), drive.imu.at(exposed_ns)
        odometry = drive.odometry.at(exposed_ns)
        if pose is not None and pose.yaw_rad is not None and inertial is not None and odometry is not None:
            offsets.append(wrap_angle(pose.yaw_rad - inertial.yaw_rad))
            places.append((pose.east_m, pose.north_m, odometry.x_m, odometry.y_m))
    steps = np.diff(np.array(places), axis=0)
    ways = np.hypot(steps[:, 0], steps[:, 1]).sum(), np.hypot(steps[:, 2], steps[:, 3]).sum()
    return {
        "late": row.late_s,
        "x": CAMERA.x_m,
        "y": CAMERA.y_m,
        "yaw": CAMERA.yaw_rad,
        "pitch": CAMERA.pitch_rad,
        "roll": CAMERA.roll_rad,
        "imu_offset": float(np.mean(offsets)),
        "scale": float(ways[0] / ways[1]),
    }


def run(args: argparse.Namespace) -> None:
    bundle = load_bundle(args.model)
    config = LocalizerConfig(pyramid_cache_tiles=4096)
    rows = [row for row in ROWS if re.search(args.rows, row.name)]
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        for row, folder in itertools.product(rows, args.drives):
            target = args.work / f"{ROWS.index(row)}-{folder.name}.json"
            if target.exists():
                continue
            started, used = time.perf_counter(), time.process_time()
            shared = remembered(engines, Memory(args.work / "outputs" / f"{folder.name}.sqlite"), bundle)
            index = index_of(folder, "own", args.work, bundle, engines)
            recording = read_drive(folder, index)
            messages = [m for m in recording.arrivals if not isinstance(m, (OdometrySample, ImuSample))]

            def pictures(numbers: Sequence[int], messages: list[Any] = messages) -> Iterator[CameraImage | None]:
                return (reduced(camera_image(messages[number])) for number in numbers)

            localizer = Localizer(index, bundle, shared, config, row.settings.camera)
            drive = collected(recording, localizer, row)
            found = estimate_drive(
                drive, pictures, index, localizer.mount, row.settings.odometry, most_images=args.images
            )
            record = {"truth": truth_of(recording, drive, row), "estimate": dataclasses.asdict(found)}
            target.write_text(json.dumps(record))
            seconds = f"{time.process_time() - used:.0f} s of processor, {time.perf_counter() - started:.0f} s"
            print(f"{row.name}, {folder.name}: {found.aligned} of {found.used} images aligned, {seconds}", flush=True)


def live(args: argparse.Namespace) -> None:
    bundle = load_bundle(args.model)
    config = LocalizerConfig(pyramid_cache_tiles=4096)
    rows = [row for row in ROWS if re.search(args.rows, row.name)]
    print("| wrong | drive | stamps corrected by, s | at image | left, s | IMU corrected by, ° | at image | left, ° | "
          "fixes | median error before, m | after, m |\n|---|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        for row, folder in itertools.product(rows, args.drives):
            shared = remembered(engines, Memory(args.work / "outputs" / f"{folder.name}.sqlite"), bundle)
            index = index_of(folder, "own", args.work, bundle, engines)
            recording = read_drive(folder, index)
            settings = row.settings
            localizer = Localizer(index, bundle, shared, config, settings.camera)
            print(live_line(recording, make_session(localizer, settings.session), row, folder.name), flush=True)


def live_line(recording: RecordedDrive, session: LocalizationSession, row: Row, name: str) -> str:
    """One drive with `apply_estimates`, as a line of the table."""
    assert isinstance(session, SequenceSession)
    session.apply_estimates = True
    memory = SessionWithMemory(session, row.settings)
    corrections, errors, offsets = [], [], []
    for message in images_in_turn(recording.arrivals, memory):
        image = camera_image(message)
        late = dataclasses.replace(image, stamp_ns=image.stamp_ns + ns_from_s(row.late_s))
        outcome = session.locate(late)
        corrections.append(outcome.corrections)
        pose, inertial = recording.truth.at(image.stamp_ns), memory.imu.at(image.stamp_ns)
        if pose is not None and pose.yaw_rad is not None and inertial is not None:
            offsets.append(wrap_angle(pose.yaw_rad - inertial.yaw_rad))
        fix, at_stamp = outcome.result, recording.truth.at(outcome.result.stamp_ns)
        if isinstance(fix, Fix) and at_stamp is not None:
            error_m = math.hypot(fix.east_m - at_stamp.east_m, fix.north_m - at_stamp.north_m)
            errors.append((outcome.corrections != NO_CORRECTIONS, error_m))
    stamps = [one.stamp_offset_s for one in corrections]
    imu = [math.degrees(one.imu_yaw_offset_rad) for one in corrections]
    # What must be added to the recorded yaw, less what is: the configured value, which is wrong by the row's, and the
    # correction.
    imu_left = math.degrees(float(np.mean(offsets))) + row.imu_deg - imu[-1]
    medians = [[error_m for after, error_m in errors if after is wanted] for wanted in (False, True)]
    cells = [
        row.name, name,
        f"{stamps[-1]:.3f}", _first(stamps), f"{row.late_s + stamps[-1]:.3f}",
        f"{imu[-1]:.2f}", _first(imu), f"{imu_left:.2f}",
        f"{len(errors)} of {len(corrections)}", *(f"{np.median(part):.2f}" if part else "–" for part in medians),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _first(values: Sequence[float]) -> str:
    """Number of the first image with a correction."""
    return next((str(number) for number, value in enumerate(values, start=1) if value), "–")


HEADER = (
    "| wrong | drives | " + " | ".join(f"{name}, {unit}" for name, (_, unit, _) in QUANTITIES.items()) + " |\n"
    "|---|---|" + "---|" * len(QUANTITIES)
)


def cell(records: list[dict[str, Any]], name: str) -> str:
    """Root mean square and largest error, and the root mean square of z."""
    factor, _, _ = QUANTITIES[name]
    pairs = [(r["estimate"][name], r["truth"][name]) for r in records if r["estimate"].get(name)]
    if not pairs:
        return "–"
    errors = np.array([estimate["value"] - truth for estimate, truth in pairs])
    if name in ("yaw", "pitch", "roll", "imu_offset"):
        errors = wrap_angle(errors)
    z = errors / [estimate["sigma"] for estimate, _ in pairs]
    rms = math.sqrt(np.mean(errors**2)) * factor
    missing = "" if len(pairs) == len(records) else f" ({len(pairs)} drives)"
    return f"{rms:.2g}, at most {np.abs(errors).max() * factor:.2g}; z {math.sqrt(np.mean(z**2)):.1f}{missing}"


def table(args: argparse.Namespace) -> None:
    print(HEADER)
    everything: list[dict[str, Any]] = []
    for number, row in enumerate(ROWS):
        records = [json.loads(path.read_text()) for path in sorted(args.work.glob(f"{number}-*.json"))]
        if records:
            print(f"| {row.name} | {len(records)} | " + " | ".join(cell(records, name) for name in QUANTITIES) + " |")
        everything += records
    if everything:
        print(f"| all rows | {len(everything)} | " + " | ".join(cell(everything, name) for name in QUANTITIES) + " |")
    for name, (factor, unit, wanted) in QUANTITIES.items():
        kept = [
            abs(r["estimate"][name]["value"] - r["truth"][name]) * factor <= wanted
            for r in everything
            if r["estimate"].get(name)
        ]
        if math.isfinite(wanted):
            print(f"{name}: {sum(kept)} of {len(everything)} within {wanted:g} {unit}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    runner = actions.add_parser("run")
    runner.add_argument("drives", type=Path, nargs="+")
    runner.add_argument("--model", type=Path, required=True)
    runner.add_argument("--work", type=Path, required=True)
    runner.add_argument("--rows", default="", help="regular expression")
    runner.add_argument("--images", type=int, default=60, help="as for unifygeo mount (%(default)s)")
    runner.set_defaults(run=run)
    tabler = actions.add_parser("table")
    tabler.add_argument("--work", type=Path, required=True)
    tabler.set_defaults(run=table)
    driver = actions.add_parser("live")
    driver.add_argument("drives", type=Path, nargs="+")
    driver.add_argument("--model", type=Path, required=True)
    driver.add_argument("--work", type=Path, required=True)
    driver.add_argument("--rows", default="nothing|late|IMU|all", help="regular expression (%(default)s)")
    driver.set_defaults(run=live)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
