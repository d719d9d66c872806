"""A drive of 10,000 images, the demo's over and over in one bag, replayed: pace, memory, size of the report.

    python benchmarks/long_replay.py [--images 10000]

Lap follows lap, and clock and odometry go on; the vehicle is carried back to the start between two, which the track has
to notice each time. Replayed once up to a tenth of the images and once to the end. Limit: what the whole adds to the
peak of resident memory is at most 20 KB an image (a decoded image is 885 KB).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import describe_machine, verdict
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tqdm import tqdm

from unifygeo_ros.conversions.from_messages import odometry_sample
from unifygeo_ros.conversions.message_values import quaternion_of_yaw
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.core.time import NS_PER_S

ROOT = Path(__file__).parents[1]
DRIVE, MODEL = ROOT / "demo/drive", ROOT / "models/towns-photo"
IMAGES, ODOMETRY = "/camera/image/compressed", "/odom"
LEFT_OUT = ("/ground_truth/odometry", "/tf_static")
KB, MB = 1e3, 1e6


def write_laps(bag: Path, images: int) -> float:
    """Laps of the drive until there are so many images. Returns their duration in seconds."""
    store = get_typestore(Stores.ROS2_JAZZY)
    with AnyReader([DRIVE / "bag"], default_typestore=store) as reader:
        connections = [c for c in reader.connections if c.topic not in LEFT_OUT]
        lap = [(c, t, reader.deserialize(raw, c.msgtype)) for c, t, raw in reader.messages(connections)]
        lap_ns = reader.duration + NS_PER_S // 2
        start_ns = reader.start_time
    start, written, last_ns = Pose2(0.0, 0.0, 0.0), 0, 0
    with Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer, tqdm(total=images, unit="image") as bar:
        out = {c.topic: writer.add_connection(c.topic, c.msgtype, typestore=store) for c in connections}
        for number in range(images):
            here = start
            for connection, recorded_ns, message in lap:
                if written == images:
                    return (last_ns - start_ns) / NS_PER_S
                last_ns = recorded_ns + number * lap_ns
                message = later(message, number * lap_ns)
                if connection.topic == ODOMETRY:
                    sample = odometry_sample(message)
                    here = start.compose(sample.pose)
                    message = moved_to(message, here)
                written += connection.topic == IMAGES
                bar.update(connection.topic == IMAGES)
                writer.write(out[connection.topic], last_ns, store.serialize_cdr(message, connection.msgtype))
            start = here
    raise AssertionError("a lap without images")


def later(message: Any, by_ns: int) -> Any:
    stamp = message.header.stamp
    sec, nanosec = divmod(stamp.sec * NS_PER_S + stamp.nanosec + by_ns, NS_PER_S)
    return replace(message, header=replace(message.header, stamp=replace(stamp, sec=sec, nanosec=nanosec)))


def moved_to(odometry: Any, pose: Pose2) -> Any:
    old = odometry.pose.pose
    position = replace(old.position, x=pose.x_m, y=pose.y_m)
    x, y, z, w = quaternion_of_yaw(pose.yaw_rad)
    turned = replace(old.orientation, x=x, y=y, z=z, w=w)
    return replace(odometry, pose=replace(odometry.pose, pose=replace(old, position=position, orientation=turned)))


def run(*arguments: str) -> tuple[float, float]:
    """A `unifygeo` command in its own process: seconds, and bytes of resident memory at the most."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "unifygeo_ros.cli", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"unifygeo {arguments[0]} failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    images = parser.parse_args().images
    print(describe_machine("onnxruntime", "rosbags", "numpy"), flush=True)
    peaks = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        duration_s = write_laps(folder / "laps", images)
        region = str(folder / "region")
        run("index", "build", str(DRIVE / "town.tif"), "--model", str(MODEL), "--output", region)
        print(
            "\n| images | drive, min | replay, min | times real time | peak memory, MB | fixes | false | report, MB |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for count in (images // 10, images):
            report, output = folder / f"{count}.html", folder / f"{count}.mcap"
            seconds, peak = run(
                *("replay", str(folder / "laps"), "--index", region, "--model", str(MODEL), "--quiet"),
                *("--output", str(output), "--report", str(report), "--max-frames", str(count)),
                *("--params", str(ROOT / "demo/localizer.yaml")),
            )
            numbers = json.loads(report.with_suffix(".json").read_text())
            false = numbers["integrity"]["false_fix"] or {"value": 0.0, "count": 0}
            drive_s = duration_s * count / images
            print(
                f"| {count:,} | {drive_s / 60:.0f} | {seconds / 60:.1f} | {drive_s / seconds:.1f} | {peak / MB:.0f} "
                f"| {numbers['counts']['fixes']:,} | {round(false['value'] * false['count'])} "
                f"| {report.stat().st_size / MB:.1f} |",
                flush=True,
            )
            peaks.append(peak)
    growth = (peaks[1] - peaks[0]) / (images - images // 10) / KB
    return 0 if verdict("growth of the peak, KB an image", growth, 20.0) else 1


if __name__ == "__main__":
    sys.exit(main())
