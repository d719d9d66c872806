"""A camera of a rig is unplugged in the middle of a drive: what becomes of the fixes.

    python benchmarks/unplugged.py drives/1001/six_pinholes --index INDEX --model models/towns-photo --camera left

The drive is one of `unifygeo-train towns drive --rig`. Its first `--seconds` are replayed, as `unifygeo replay --rig`
does, in mode sequence with the IMU's heading: once whole, and once from a copy of the bag whose messages of the camera
end in the middle. The table has both halves of both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from rosbags.rosbag2 import Reader, StoragePlugin, Writer

from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.evaluation.metrics.definitions import consistency
from unifygeo_ros.evaluation.metrics.summary import read_summary


def copied(bag: Path, output: Path, seconds: float, unplugged: str | None) -> Path:
    """The first seconds of a bag; of the topics below `/unplugged/`, if one is named, only the first half of them."""
    with Reader(bag) as reader, Writer(output, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = {
            connection.id: writer.add_connection(
                connection.topic,
                connection.msgtype,
                msgdef=connection.msgdef.data,
                rihs01=connection.digest,
                serialization_format="cdr",
            )
            for connection in reader.connections
        }
        end_ns = reader.start_time + ns_from_s(seconds)
        middle_ns = reader.start_time + ns_from_s(seconds / 2)
        for connection, stamp_ns, data in reader.messages(stop=end_ns):
            if unplugged is None or stamp_ns < middle_ns or not connection.topic.startswith(f"/{unplugged}/"):
                writer.write(topics[connection.id], stamp_ns, data)
    return output


def replayed(args: argparse.Namespace, name: str, unplugged: str | None) -> list[str]:
    """Rows of the table: the first and the second half of a replay. What is done already is not repeated."""
    report = args.results / f"{name}.html"
    if not report.with_suffix(".json").is_file():
        bag = args.results / name
        if not bag.is_dir():
            copied(args.drive / "bag", bag, args.seconds, unplugged)
        command = [sys.executable, "-m", "unifygeo_ros.cli", "replay", str(bag), "--rig", str(args.drive / "rig.yaml")]
        command += ["--index", str(args.index), "--model", str(args.model), "--quiet", "--report", str(report)]
        command += ["--output", str(args.results / f"{name}.mcap"), "--truth-topic", "/ground_truth/odometry"]
        command += ["--odometry-topic", "/odom", "--set", "session.heading_source=imu"]
        command += ["--set", "backend=onnx_cpu", "--set", "threads=1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary = read_summary(report.with_suffix(".json"))
    images = summary["per_image"]
    half = len(images["error_m"]) // 2
    parts = (("first", slice(0, half)), ("second", slice(half, None)))
    return [
        row(name, which, images["error_m"][part], images["nees"][part], args.alert_limit_m) for which, part in parts
    ]


def row(name: str, which: str, errors_m: list[float | None], nees: list[float | None], alert_limit_m: float) -> str:
    """A row of the table: None stands for an image without fix."""
    judged = [(error, value) for error, value in zip(errors_m, nees, strict=True) if error is not None]
    if not judged:
        return f"| {name} | {which} | {len(errors_m)} | 0 | – | – | 0 | – |"
    errors = np.array([error for error, _ in judged])
    found = consistency(np.array([value for _, value in judged]))
    assert found is not None
    return (
        f"| {name} | {which} | {len(errors_m)} | {len(judged)} | {np.median(errors):.2f} m | {errors.max():.2f} m | "
        f"{int((errors > alert_limit_m).sum())} | {found.anees:.2f} ({found.lower:.2f} to {found.upper:.2f}) |"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drive", type=Path, help="folder with bag and rig.yaml")
    parser.add_argument("--index", type=Path, required=True, help="of the drive's town")
    parser.add_argument("--model", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--results", type=Path, required=True, help="folder for bags and replays")
    parser.add_argument("--camera", help="one of the rig file, by its topics (default: its second one)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the drive (default: %(default)s)")
    parser.add_argument("--alert-limit-m", type=float, default=10.0, help="errors beyond it count as large")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    camera = args.camera or list(yaml.safe_load((args.drive / "rig.yaml").read_text())["cameras"])[1]
    print("| replay | half | images | fixes | median | worst | beyond the limit | ANEES |")
    print("|" + "---|" * 8)
    for name, unplugged in (("whole", None), (f"{camera} unplugged", camera)):
        print("\n".join(replayed(args, name, unplugged)), flush=True)


if __name__ == "__main__":
    main()
