"""The node under load: a camera at 30 Hz over DDS (`python benchmarks/node_load.py`).

The node runs as a process of its own; this one publishes JPEGs of 1920×960 pixels at the given rate, and an IMU at
100 Hz, and reads /diagnostics and /proc. Printed: frames sent, localized, dropped for newer ones (on purpose: only the
newest is kept, so there is no queue that could grow); the node's memory and its slope after a minute and a half, when
all buffers have been used; latencies by stage over the last 300 frames.

What the node adds to decoding and localizing is measured in processor time, which a busy machine does not distort:
`own_cpu` of the worker for a localized frame (session, messages, their publication), and the main thread's for an image
sent (with three IMU samples, services and diagnostics).

Exits with 1 when a limit is missed: the node's own processor time, the worker's at the 99th percentile and the main
thread's together, is at most 5 ms an image; memory grows by at most 1 MB a minute; every fix is newer than the one
before it. Latencies have no limit: they are the machine's as much as the node's.

With --rig the node composes the panoramas of that rig file: each camera sends JPEGs of its lens' size, one after the
other within 80 ms, and odometry of 5 m/s and 0.1 rad/s moves them to one instant (`--rate 10 --minutes 5 --rig
config/rigs/six_pinholes.yaml`). The images are noise, or those of --rig-images (front.jpg …).

With --cycles the node is also disabled and enabled that many times, with a fix asked for at the end. Without --bundle
and --index the world, model and index of the tests are used: a small real one, not a trained one.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "test"))

from measuring import describe_machine, verdict
from nav_msgs.msg import Odometry
from ros_drive import Region, Vehicle, domain_id, make_region, stamp_of, start_node, values
from sensor_msgs.msg import CompressedImage, Imu
from worlds import colour_world

from unifygeo_ros.images.files import read_image
from unifygeo_ros.rig.description import read_rig
from unifygeo_ros.rig.folder import read_folder
from unifygeo_ros.ros.to_messages import jpeg_message

IMU_RATE_HZ = 100.0
VIEWS = 12
WARM_UP_S = 90.0
RIG_SPREAD_S = 0.08
"""From the exposure of a rig's first camera to the next one's, times their number."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=30.0, help="images a second")
    parser.add_argument("--height", type=int, default=960, help="rows of the images; twice as many columns")
    parser.add_argument("--bundle", type=Path, help="model bundle (with --index and --panorama)")
    parser.add_argument("--index", type=Path)
    parser.add_argument("--panorama", type=Path, help="a JPEG to show instead of the synthetic world")
    parser.add_argument("--rig", type=Path, help="rig file: its cameras in place of a panoramic one")
    parser.add_argument("--rig-images", type=Path, help="folder with an image for each of its cameras")
    parser.add_argument("--cycles", type=int, default=0, help="disable and enable that often afterwards")
    args = parser.parse_args()
    print(describe_machine("rclpy", "onnxruntime", "numpy"))
    with tempfile.TemporaryDirectory() as folder:
        region = make_region(Path(folder))
        if args.bundle:
            region = Region(colour_world(), args.bundle, args.index)
        return 0 if run(args, region, Path(folder)) else 1


def run(args: argparse.Namespace, region: Region, folder: Path) -> bool:
    """Start the node, load it, print what it did; whether the limits were kept."""
    domain = domain_id()
    parameters = {
        **region.parameters,
        "reliability": "best_effort",
        "image_transport": "compressed",
        "autostart": True,
        "diagnostics_period_s": 1.0,
        "session.mode": "single",
        "session.heading_source": "constant",
        "session.heading_constant_rad": math.pi / 2,
    }
    if args.rig:
        parameters["rig.file"] = str(args.rig)
    node, vehicle = start_node(domain, parameters, folder), Vehicle(domain)
    try:
        cameras = rig_cameras(args) if args.rig else [Camera("/image/compressed", 0.0, views(args, region))]
        sizes = [len(message.data) for camera in cameras for message in camera.messages]
        for camera in cameras:
            publisher = vehicle.publisher(camera.topic, CompressedImage, "best_effort")
            vehicle.wait_for(publisher.get_subscription_count, f"subscription of {camera.topic}", 60.0)
        print(f"{len(cameras)} cameras, JPEG of {min(sizes) / 1e3:.0f} to {max(sizes) / 1e3:.0f} kB")
        kept = load(args, vehicle, node.pid, cameras)
        if args.cycles:
            kept &= cycle(args.cycles, vehicle, node.pid, cameras[0].messages)
        return kept
    finally:
        vehicle.close()
        node.stop()


@dataclass(frozen=True)
class Camera:
    """What one topic brings."""

    topic: str
    delay_s: float
    """Of its exposure after that of the first camera."""
    messages: list[Any]
    """Shown in turn."""


def rig_cameras(args: argparse.Namespace) -> list[Camera]:
    """The cameras of the rig file; noise is added to each view, so that none is taken for a frozen one."""
    description = read_rig(args.rig)
    topics = description.topics()
    lenses = {camera.name: camera.lens for camera in description.rig().cameras}
    shown = read_folder(args.rig_images, description) if args.rig_images else {}
    random, found = np.random.default_rng(0), []
    for i, (topic, names) in enumerate(topics.items()):
        lens = lenses[names[0]]
        coarse = random.integers(0, 256, (lens.height // 8, lens.width // 8, 3), np.uint8)
        whole = cv2.resize(coarse, (lens.width, lens.height), interpolation=cv2.INTER_CUBIC)
        pixels = shown.get(names[0], whole).astype(np.int16)
        messages = []
        for _ in range(VIEWS):
            noise = random.integers(-2, 3, pixels.shape, np.int16)
            messages.append(jpeg_message(np.clip(pixels + noise, 0, 255).astype(np.uint8), 0, names[0]))
        full = topic if topic.endswith("/compressed") else f"{topic}/compressed"
        found.append(Camera(full, RIG_SPREAD_S * i / len(topics), messages))
    return found


def odometry(driven_s: float) -> Odometry:
    """Wheel odometry of a vehicle that drives a circle."""
    message, yaw = Odometry(), 0.1 * driven_s
    message.child_frame_id = "base_link"
    message.pose.pose.position.x, message.pose.pose.position.y = 50 * math.sin(yaw), 50 * (1 - math.cos(yaw))
    message.pose.pose.orientation.z, message.pose.pose.orientation.w = math.sin(yaw / 2), math.cos(yaw / 2)
    message.twist.twist.linear.x, message.twist.twist.angular.z = 5.0, 0.1
    covariance = [0.0] * 36
    covariance[::7] = [1e-4] * 6
    message.pose.covariance = message.twist.covariance = covariance
    return message


def views(args: argparse.Namespace, region: Region) -> list:
    """What the camera shows in turn: JPEG messages."""
    if args.panorama:
        pixels = read_image(args.panorama)
        shift = pixels.shape[1] // VIEWS
        images = [np.roll(pixels, i * shift, axis=1) for i in range(VIEWS)]
    else:
        images = [region.panorama((3.0 * i - 18.0, 11.0), height=args.height) for i in range(VIEWS)]
    return [jpeg_message(pixels, 0, "camera") for pixels in images]


def load(args: argparse.Namespace, vehicle: Vehicle, pid: int, cameras: list[Camera]) -> bool:
    begin = time.monotonic()
    end = begin + 60 * args.minutes
    next_imu = next_sample = begin
    due = [begin + camera.delay_s for camera in cameras]
    counts, late, memory = [0] * len(cameras), 0.0, []
    cpu_before, main_before, own_before = cpu_s(pid), cpu_s(pid, pid), time.process_time()
    while (now := time.monotonic()) < end:
        for i, camera in enumerate(cameras):
            if now >= due[i]:
                late = max(late, now - due[i])
                stamp = vehicle.node.get_clock().now().nanoseconds
                message = camera.messages[counts[i] % VIEWS]
                vehicle.publish(camera.topic, message, stamp, kind=CompressedImage, reliability="best_effort")
                counts[i] += 1
                due[i] += 1 / args.rate
        if now >= next_imu:
            imu = Imu()
            imu.orientation.w = 1.0
            vehicle.publish("/imu", imu, vehicle.node.get_clock().now().nanoseconds, "base_link")
            next_imu += 1 / IMU_RATE_HZ
            if args.rig:
                stamp = vehicle.node.get_clock().now().nanoseconds
                vehicle.publish("/odometry", odometry(now - begin), stamp, "odom")
        if now >= next_sample:
            memory.append((now - begin, resident_mb(pid)))
            next_sample += 1.0
        vehicle.executor.spin_once(timeout_sec=max(0.0, min(*due, next_imu) - time.monotonic()))
    seconds = time.monotonic() - begin
    vehicle.spin(1.5)
    sent = min(counts)
    cpu, main, own = cpu_s(pid) - cpu_before, cpu_s(pid, pid) - main_before, time.process_time() - own_before
    slope, worker_ms, in_order = report(vehicle, sent, seconds, late, np.array(memory))
    print(f"CPU of the node {cpu / seconds:.0%} of a core, of this publisher {own / seconds:.0%}")
    print(f"CPU of the node's main thread {1e3 * main / sent:.2f} ms an image sent")
    kept = [
        # With a rig composing is among what the worker does itself, and each image is a message of its own.
        args.rig is not None
        or verdict(
            "own processor time of worker (p99) and main thread, ms an image", worker_ms + 1e3 * main / sent, 5.0
        ),
        verdict("memory, MB a minute", slope, 1.0),
        verdict("fixes in order (1: yes)", float(in_order), 1, at_least=True),
    ]
    return all(kept)


def report(vehicle: Vehicle, sent: int, seconds: float, late_s: float, memory: np.ndarray) -> tuple[float, float, bool]:
    """Slope of the memory, the worker's own processor time of a fix, and whether the fixes are in order.

    memory is (n, 2), seconds and MB.

    Returns:
        MB a minute; p99 in ms; whether there are fixes and each is newer than the one before.
    """
    steady = memory[memory[:, 0] > WARM_UP_S]
    slope = np.polyfit(steady[:, 0] / 60, steady[:, 1], 1)[0] if len(steady) > 2 else math.nan
    camera, localization = vehicle.status("camera"), vehicle.status("localization")
    fixes = vehicle.received["~/fix"]
    stamps = [stamp_of(message) for message in fixes]
    print(f"sent {sent} in {seconds:.0f} s ({sent / seconds:.1f} Hz, at worst {1e3 * late_s:.0f} ms late)")
    if camera is not None:
        known = values(camera)
        print(
            f"arrived {known['images']}, dropped for newer {known['dropped_for_newer']}, lost in transport "
            f"{known['lost_in_transport']}"
        )
    in_order = bool(stamps) and stamps == sorted(set(stamps))
    print(f"fixes {len(fixes)} ({len(fixes) / seconds:.1f} Hz), in order: {in_order}")
    print(f"memory {memory[0, 1]:.0f} MB at first, {memory[-1, 1]:.0f} MB at last, slope {slope:+.3f} MB a minute")
    worker_ms = math.nan
    if localization is not None:
        worker_ms = float(values(localization).get("latency_ms.own_cpu", "p99 nan").rpartition("p99 ")[2])
        print(f"{localization.message}")
        for key, value in values(localization).items():
            if key.startswith(("latency_ms.", "rejected.")):
                print(f"  {key:40} {value}")
    return slope, worker_ms, in_order


def cycle(count: int, vehicle: Vehicle, pid: int, messages: list) -> bool:
    before_mb, begin = resident_mb(pid), time.monotonic()
    for number in range(count):
        assert vehicle.enable(False).success
        assert vehicle.enable(True).success
        if number % 50 == 0:
            stamp = vehicle.node.get_clock().now().nanoseconds
            vehicle.publish("/image/compressed", messages[number % VIEWS], stamp, reliability="best_effort")
    vehicle.clear()
    for number in range(20):
        stamp = vehicle.node.get_clock().now().nanoseconds
        vehicle.publish("/image/compressed", messages[number % VIEWS], stamp, reliability="best_effort")
        vehicle.spin(0.5)
        if vehicle.received["~/fix"]:
            break
    print(
        f"{count} cycles of disable and enable in {time.monotonic() - begin:.0f} s, memory {before_mb:.0f} → "
        f"{resident_mb(pid):.0f} MB, then a fix: {bool(vehicle.received['~/fix'])}"
    )
    return bool(vehicle.received["~/fix"])


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_s(pid: int, thread: int | None = None) -> float:
    """User and system time of a process, or of one of its threads."""
    file = f"/proc/{pid}/stat" if thread is None else f"/proc/{pid}/task/{thread}/stat"
    fields = Path(file).read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
