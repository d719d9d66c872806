"""A recorded drive and the fixes of its replay through robot_localization's ekf_node with config/ekf.yaml.

    unifygeo replay drive/bag --index region --model model --output fixes.mcap …
    python benchmarks/ekf_drive.py drive/bag fixes.mcap --gap 25 45 --false-fix 35 30

Needs a ROS installation with robot_localization. Odometry, IMU and truth come from the bag (/odom, /imu/data,
/ground_truth/odometry), the fixes late by --delay. The filters live by /clock, --rate times as fast as the drive.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from ament_index_python.packages import get_package_prefix
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Imu

from unifygeo_ros.core.covariance import semi_major_sigmas
from unifygeo_ros.core.se2 import rotate
from unifygeo_ros.core.time import NS_PER_S

ROOT = Path(__file__).parents[1]
SENSORS = {"/odom": Odometry, "/imu/data": Imu}
FIX, TRUTH = "/fix", "/ground_truth/odometry"
OUTPUTS = {"ekf_odom": "/odometry/local", "ekf_map": "/odometry/global"}
TICK_S = 0.004  # of /clock, wall time
SETTLED_S = 5.0  # the first seconds do not count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path, help="the drive")
    parser.add_argument("fixes", type=Path, help="output bag of `unifygeo replay`, with /unifygeo/fix")
    parser.add_argument("--delay", type=float, default=0.3, help="seconds from a fix's stamp to its arrival")
    parser.add_argument(
        "--gap", type=float, nargs=2, metavar=("FROM", "TO"), help="no fixes between, seconds of the drive"
    )
    parser.add_argument(
        "--false-fix",
        type=float,
        nargs=2,
        action="append",
        default=[],
        metavar=("AT", "METRES"),
        help="one more fix, that far to the left of the truth, with the covariance of the one next to it",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="parameter of ekf_map; null: none"
    )
    parser.add_argument("--rate", type=float, default=8.0, help="seconds of the drive a second")
    args = parser.parse_args()

    sensors, truth = read_drive(args.bag)
    start_ns = int(truth[0, 0])
    true_fixes = read_fixes(args.fixes)
    gap = args.gap or (math.inf, math.inf)
    fixes = [fix for fix in true_fixes if not gap[0] <= (stamp_ns(fix) - start_ns) / NS_PER_S < gap[1]]
    fixes += [
        false_fix(true_fixes, truth, start_ns + round(at_s * NS_PER_S), metres) for at_s, metres in args.false_fix
    ]
    late_ns = round(args.delay * NS_PER_S)
    events = sensors + [(stamp_ns(fix) + late_ns, FIX, fix) for fix in fixes]
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_parameters(Path(folder), dict(item.split("=", 1) for item in args.set))
        tracks = drive(sorted(events, key=lambda event: event[0]), parameters, args.rate)

    report("fixes", np.array([row(fix) for fix in sorted(true_fixes, key=stamp_ns)]), truth)
    report("odometry alone, from the truth", laid_onto(tracks["ekf_odom"], truth), truth)
    report("map filter", tracks["ekf_map"], truth)
    for begin_s, end_s in ((t, t + 5.0) for t in np.arange(0.0, (truth[-1, 0] - start_ns) / NS_PER_S, 5.0)):
        report(f"  {begin_s:3.0f} … {end_s:3.0f} s", tracks["ekf_map"], truth, begin_s, end_s)


# -- what was recorded ------------------------------------------------------------------------------------------------


def stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * NS_PER_S + message.header.stamp.nanosec


def row(message: Any) -> tuple[float, ...]:
    """stamp ns, x, y m, yaw rad, variance x, covariance xy, variance y m², variance of yaw rad²."""
    pose, covariance = message.pose.pose, message.pose.covariance
    yaw = 2 * math.atan2(pose.orientation.z, pose.orientation.w)
    return (stamp_ns(message), pose.position.x, pose.position.y, yaw, *(covariance[i] for i in (0, 1, 7, 35)))


def messages(bag: Path, topics: dict[str, type]) -> list[tuple[int, str, object]]:
    """Recording time in ns, topic, message."""
    with AnyReader([bag], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        connections = [connection for connection in reader.connections if connection.topic in topics]
        return [
            (time_ns, connection.topic, deserialize_message(bytes(data), topics[connection.topic]))
            for connection, time_ns, data in reader.messages(connections)
        ]


def read_drive(bag: Path) -> tuple[list[tuple[int, str, object]], np.ndarray]:
    """The sensors' messages, and the truth, float64 (n, 8) as `row`."""
    recorded = messages(bag, {**SENSORS, TRUTH: Odometry})
    truth = np.array([row(message) for _, topic, message in recorded if topic == TRUTH])
    return [event for event in recorded if event[1] in SENSORS], truth


def read_fixes(bag: Path) -> list[PoseWithCovarianceStamped]:
    return [message for _, _, message in messages(bag, {"/unifygeo/fix": PoseWithCovarianceStamped})]


def false_fix(
    fixes: list[PoseWithCovarianceStamped], truth: np.ndarray, at_ns: int, metres: float
) -> PoseWithCovarianceStamped:
    near = min(fixes, key=lambda fix: abs(stamp_ns(fix) - at_ns))
    _, east, north, yaw, *_ = truth[np.searchsorted(truth[:, 0], at_ns)]
    message = PoseWithCovarianceStamped()
    message.header.frame_id = near.header.frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(at_ns + 1000, NS_PER_S)
    message.pose.pose.position.x = east - metres * math.sin(yaw)
    message.pose.pose.position.y = north + metres * math.cos(yaw)
    message.pose.pose.orientation.z, message.pose.pose.orientation.w = math.sin(yaw / 2), math.cos(yaw / 2)
    message.pose.covariance = near.pose.covariance
    return message


# -- the filters ------------------------------------------------------------------------------------------------------


def write_parameters(folder: Path, changes: dict[str, str]) -> Path:
    parameters = yaml.safe_load((ROOT / "config/ekf.yaml").read_text())
    section = parameters["/**/ekf_map"]["ros__parameters"]
    for name, value in changes.items():
        section[name] = yaml.safe_load(value)
        if section[name] is None:
            del section[name]
    file = folder / "ekf.yaml"
    file.write_text(yaml.safe_dump(parameters))
    return file


def start_filter(name: str, parameters: Path) -> subprocess.Popen[bytes]:
    program = Path(get_package_prefix("robot_localization")) / "lib/robot_localization/ekf_node"
    remaps = {"__node": name, "odometry/filtered": OUTPUTS[name], "odom": "/odom", "imu": "/imu/data", "fix": FIX}
    command = [str(program), "--ros-args", "--params-file", str(parameters), "-p", "use_sim_time:=true"]
    command += [item for old, new in remaps.items() for item in ("-r", f"{old}:={new}")]
    return subprocess.Popen([*command, "--log-level", "fatal"])


def drive(events: list[tuple[int, str, object]], parameters: Path, rate: float) -> dict[str, np.ndarray]:
    """Play to both filters and return what each said, float64 (n, 8) as `row`."""
    filters = [start_filter(name, parameters) for name in OUTPUTS]
    rclpy.init()
    node = rclpy.create_node("ekf_drive")
    qos = QoSProfile(depth=500)
    said: dict[str, list[tuple[float, ...]]] = {name: [] for name in OUTPUTS}
    for name, topic in OUTPUTS.items():
        node.create_subscription(Odometry, topic, lambda message, name=name: said[name].append(row(message)), qos)
    kinds = {**SENSORS, FIX: PoseWithCovarianceStamped}
    publishers = {topic: node.create_publisher(kind, topic, qos) for topic, kind in kinds.items()}
    clock = node.create_publisher(Clock, "/clock", 10)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30.0
        while clock.get_subscription_count() < 2 or publishers[FIX].get_subscription_count() < 1:
            if time.monotonic() > deadline or any(process.poll() is not None for process in filters):
                raise SystemExit("ekf_node does not listen; its last lines are above")
            time.sleep(0.1)
        time.sleep(1.0)
        start_wall, start_ns = time.monotonic(), events[0][0]
        for time_ns, topic, message in events:
            due = start_wall + (time_ns - start_ns) / NS_PER_S / rate
            while (left := due - time.monotonic()) > 0:
                tick(clock, start_ns + round((time.monotonic() - start_wall) * rate * NS_PER_S))
                time.sleep(min(left, TICK_S))
            tick(clock, time_ns)
            publishers[topic].publish(message)
        time.sleep(0.5)
    finally:
        for process in filters:
            process.terminate()
            process.wait(10.0)
        executor.shutdown()
        thread.join()
        node.destroy_node()
        rclpy.shutdown()
    return {name: np.array(rows) for name, rows in said.items()}


def tick(clock: rclpy.publisher.Publisher, time_ns: int) -> None:
    message = Clock()
    message.clock.sec, message.clock.nanosec = divmod(time_ns, NS_PER_S)
    clock.publish(message)


# -- numbers ----------------------------------------------------------------------------------------------------------


def laid_onto(track: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """A track in the frame odom, moved and turned so that it starts at the truth."""
    start = [
        np.interp(track[0, 0], truth[:, 0], column) for column in (truth[:, 1], truth[:, 2], np.unwrap(truth[:, 3]))
    ]
    turn = start[2] - track[0, 3]
    x, y = track[:, 1] - track[0, 1], track[:, 2] - track[0, 2]
    laid = track.copy()
    laid[:, 1:3] = start[:2] + rotate(turn, x, y)
    return laid


def report(
    name: str, track: np.ndarray, truth: np.ndarray, begin_s: float = SETTLED_S, end_s: float = math.inf
) -> None:
    """One line: distance from the truth at each stamp, declared standard deviation, and NEES.

    NEES is 2 on average for a consistent covariance.
    """
    seconds = (track[:, 0] - truth[0, 0]) / NS_PER_S
    track = track[(seconds >= begin_s) & (seconds < end_s)]
    if not len(track):
        print(f"{name:<32} nothing")
        return
    error = track[:, 1:3] - np.stack([np.interp(track[:, 0], truth[:, 0], truth[:, axis]) for axis in (1, 2)], axis=1)
    covariance = track[:, [4, 5, 5, 6]].reshape(-1, 2, 2)
    nees = np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariance), error)
    distance = np.hypot(*error.T)
    sigma = np.median(semi_major_sigmas(covariance))
    print(
        f"{name:<32} median {np.median(distance):6.2f} m, 95% {np.quantile(distance, 0.95):6.2f} m, largest "
        f"{distance.max():6.2f} m; σ {sigma:6.2f} m; NEES {nees.mean():.2f}"
    )


if __name__ == "__main__":
    main()
