"""A recorded drive through the localizer and fuse's fixed_lag_smoother_node with config/fuse.yaml, all of them live.

    python benchmarks/fuse_drive.py --index out/demo/index --false-fix 40 15

Needs a ROS installation with fuse. It is what docs/how-to/fuse.md tells a user to do: the node with `fix_from: image`,
odom → base_link in TF from the wheels, and fuse, started by the first fix. Judged against the truth in the bag is map →
base_link in TF, put together from fuse's map → odom and the wheels at its stamp.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import rclpy
from ament_index_python.packages import get_package_prefix
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader
from tf2_msgs.msg import TFMessage

from unifygeo_ros.core.covariance import semi_major_sigmas
from unifygeo_ros.core.se2 import rotate
from unifygeo_ros.core.time import NS_PER_S
from unifygeo_ros.demo.node_process import NodeProcess
from unifygeo_ros.demo.player import BagPlayer

ROOT = Path(__file__).parents[1]
IMAGE, ODOMETRY, IMU, TRUTH = "/camera/image/compressed", "/odom", "/imu/data", "/ground_truth/odometry"
UNPLAYED = (TRUTH, "/ground_truth/navsat", "/tf_static")
FIX, GLOBAL = "/unifygeo_localizer/fix", "/odometry/global"
NAMES = {"image/compressed": IMAGE, "odometry": ODOMETRY, "imu": IMU}
START_TIMEOUT_S = 60.0
SETTLED_S = 10.0  # after fuse's start, these seconds do not count
FAR_M = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bag", type=Path, default=ROOT / "demo/drive/bag", help="the drive")
    parser.add_argument("--index", type=Path, required=True, help="index of its town")
    parser.add_argument("--model", type=Path, default=ROOT / "models/towns-photo", help="bundle of the index")
    parser.add_argument("--start", type=float, help="seconds of the drive when fuse is started (by the first fix)")
    parser.add_argument(
        "--false-fix",
        type=float,
        nargs=2,
        metavar=("AT", "METRES"),
        help="one more fix, that far to the east of the one before, with its covariance",
    )
    parser.add_argument("--gap", type=float, nargs=2, metavar=("FROM", "TO"), help="fuse gets no fixes between")
    parser.add_argument("--move", type=float, default=0.0, help="the map's origin lies that far to the west, metres")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="parameter of fuse_map")
    parser.add_argument("--rate", type=float, default=1.0, help="seconds of the drive a second")
    parser.add_argument("--log", type=Path, help="takes fuse's output")
    args = parser.parse_args()

    changes = dict(item.split("=", 1) for item in args.set)
    options = {key: getattr(args, key) for key in ("start", "false_fix", "gap", "move", "rate", "log")}
    driven = Drive(args.bag, args.index, args.model, changes=changes, **options)
    driven.run()
    driven.report()


# -- messages as rows -------------------------------------------------------------------------------------------------


def stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * NS_PER_S + message.header.stamp.nanosec


def yaw(orientation: Any) -> float:
    return 2 * math.atan2(orientation.z, orientation.w)


def row(message: Any) -> tuple[float, ...]:
    """stamp s, x, y m, yaw rad, variance x, covariance xy, variance y m²."""
    pose, covariance = message.pose.pose, message.pose.covariance
    place = (pose.position.x, pose.position.y, yaw(pose.orientation))
    return (stamp_ns(message) / NS_PER_S, *place, *(covariance[i] for i in (0, 1, 7)))


def recorded(bag: Path, topic: str) -> np.ndarray:
    with AnyReader([bag]) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        return np.array([row(reader.deserialize(raw, c.msgtype)) for c, _, raw in reader.messages(connections)])


def at(track: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """x, y and yaw of a track at other times, float64 (n, 3)."""
    columns = (track[:, 1], track[:, 2], np.unwrap(track[:, 3]))
    return np.stack([np.interp(times_s, track[:, 0], column) for column in columns], axis=1)


def errors_m(track: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distance of each pose from the truth at its stamp, metres."""
    return np.hypot(*(track[:, 1:3] - at(truth, track[:, 0])[:, :2]).T)


def processor_s(pid: int) -> float:
    """Processor time that a process has used, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- the drive --------------------------------------------------------------------------------------------------------


class Drive:
    """The drive as it is played: what each process said is in `fixes`, `transforms` and `globals`."""

    def __init__(
        self,
        bag: Path,
        index: Path,
        model: Path,
        *,
        changes: Mapping[str, str] | None = None,
        start: float | None = None,
        false_fix: tuple[float, float] | None = None,
        gap: tuple[float, float] | None = None,
        move: float = 0.0,
        rate: float = 1.0,
        log: Path | None = None,
    ) -> None:
        """The options are those of the command."""
        self.bag, self.index, self.model, self.changes = bag, index, model, changes or {}
        self.start_s, self.gap, self.move_m, self.rate, self.log = start, gap, move, rate, log
        self.false_fix_at = false_fix
        self.truth, self.wheels = recorded(bag, TRUTH), recorded(bag, ODOMETRY)
        self.begin_s = self.truth[0, 0]
        self.fixes: list[PoseWithCovarianceStamped] = []
        self.delays_s: list[float] = []
        """Of each fix, from its stamp to its arrival, in the drive's time."""
        self.false_fix: PoseWithCovarianceStamped | None = None
        self.transforms: list[tuple[float, float, float, float]] = []
        """map → odom of fuse: stamp s, x, y m, yaw rad."""
        self.globals: list[tuple[float, ...]] = []
        self.fuse: subprocess.Popen[bytes] | None = None
        self.fuse_start_s = self.fuse_processor_s = math.nan
        self.now_s = self.begin_s

    def run(self) -> None:
        context = rclpy.Context()
        rclpy.init(context=context)
        node = rclpy.create_node("fuse_drive", context=context)
        qos = QoSProfile(depth=500)
        node.create_subscription(TFMessage, "/tf", self._take_tf, qos)
        node.create_subscription(Odometry, GLOBAL, lambda message: self.globals.append(row(message)), qos)
        node.create_subscription(PoseWithCovarianceStamped, FIX, self._take_fix, qos)
        self._to_fuse = node.create_publisher(PoseWithCovarianceStamped, "/fuse_drive/fix", qos)
        self._tf = node.create_publisher(TFMessage, "/tf", qos)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        thread = threading.Thread(target=executor.spin, daemon=True)
        player = BagPlayer(node, self.bag, rate=self.rate, without=UNPLAYED)
        with tempfile.TemporaryDirectory() as folder:
            self._folder = Path(folder)
            localizer = self._start_localizer()
            thread.start()
            try:
                for topic in (IMAGE, ODOMETRY, IMU):
                    player.wait_for_subscribers(topic, START_TIMEOUT_S, localizer.check_alive)
                player.play(before=self._before)
            finally:
                if self.fuse and self.fuse.poll() is None:
                    self.fuse_processor_s = processor_s(self.fuse.pid)
                    self.fuse.terminate()
                    self.fuse.wait(15.0)
                localizer.stop()
                executor.shutdown()
                thread.join()
                player.close()
                node.destroy_node()
                context.try_shutdown()
                if self.log and self.fuse:
                    self.log.write_bytes((self._folder / "fuse.log").read_bytes())

    def _start_localizer(self) -> NodeProcess:
        overrides = {
            "bundle": self.model.resolve(),
            "index": self.index.resolve(),
            "autostart": True,
            "use_sim_time": True,
            "image_transport": "compressed",
            "tracker.fix_from": "image",
            "publish_tf": False,
        }
        file = self._folder / "localizer.log"
        return NodeProcess(ROOT / "demo/localizer.yaml", file, overrides=overrides, remaps=NAMES)

    def _start_fuse(self) -> None:
        program = Path(get_package_prefix("fuse_optimizers")) / "lib/fuse_optimizers/fixed_lag_smoother_node"
        remaps = {"__node": "fuse_map", "fix": "/fuse_drive/fix", "imu": IMU}
        parameters = {"use_sim_time": "true", **self.changes}
        command = [str(program), "--ros-args", "--params-file", str(ROOT / "config/fuse.yaml")]
        command += [item for name, value in parameters.items() for item in ("-p", f"{name}:={value}")]
        command += [item for old, new in remaps.items() for item in ("-r", f"{old}:={new}")]
        with (self._folder / "fuse.log").open("wb") as stream:
            self.fuse = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        self.fuse_start_s = self.now_s

    def _before(self, topic: str, data: bytes) -> None:
        if topic != ODOMETRY:
            return
        message = deserialize_message(data, Odometry)
        self.now_s = stamp_ns(message) / NS_PER_S
        transform = TransformStamped(header=message.header, child_frame_id=message.child_frame_id)
        place = message.pose.pose.position
        transform.transform.translation.x, transform.transform.translation.y = place.x, place.y
        transform.transform.rotation = message.pose.pose.orientation
        self._tf.publish(TFMessage(transforms=[transform]))
        due = bool(self.fixes) if self.start_s is None else self.now_s - self.begin_s >= self.start_s
        if self.fuse is None and due:
            self._start_fuse()
        elif self.fuse and (status := self.fuse.poll()) is not None:
            raise RuntimeError(f"fuse ended with status {status}:\n{(self._folder / 'fuse.log').read_text()[-2000:]}")

    def _take_fix(self, fix: PoseWithCovarianceStamped) -> None:
        """Pass a fix on to fuse, and after it a false one when its time has come."""
        self.fixes.append(copy.deepcopy(fix))
        self.delays_s.append(self.now_s - stamp_ns(fix) / NS_PER_S)
        fix.pose.pose.position.x += self.move_m
        time_s = stamp_ns(fix) / NS_PER_S - self.begin_s
        if self.gap is None or not self.gap[0] <= time_s < self.gap[1]:
            self._to_fuse.publish(fix)
        if self.false_fix_at and self.false_fix is None and time_s >= self.false_fix_at[0]:
            self.false_fix = copy.deepcopy(fix)
            self.false_fix.header.stamp.nanosec += 1_000_000
            self.false_fix.pose.pose.position.x += self.false_fix_at[1]
            self._to_fuse.publish(self.false_fix)

    def _take_tf(self, message: TFMessage) -> None:
        for item in message.transforms:
            if (item.header.frame_id, item.child_frame_id) == ("map", "odom"):
                place = item.transform.translation
                self.transforms.append(
                    (stamp_ns(item) / NS_PER_S, place.x - self.move_m, place.y, yaw(item.transform.rotation))
                )

    # -- numbers ------------------------------------------------------------------------------------------------------

    def map_to_base(self) -> np.ndarray:
        """map → base_link at the stamps of map → odom: stamp s, x, y m, yaw rad."""
        outer = np.array(self.transforms).reshape(-1, 4)
        inner = at(self.wheels, outer[:, 0])
        east, north = rotate(outer[:, 3], inner[:, 0], inner[:, 1]).T
        return np.stack(
            [outer[:, 0], outer[:, 1] + east, outer[:, 2] + north, outer[:, 3] + inner[:, 2]], axis=1
        )  # fmt: skip

    @property
    def settled_s(self) -> float:
        """From here on fuse's errors count, seconds of the drive."""
        return self.fuse_start_s - self.begin_s + SETTLED_S

    @property
    def false_fix_s(self) -> float:
        """Stamp of the false fix, seconds of the drive."""
        assert self.false_fix is not None, "there was no fix to make a false one from"
        return stamp_ns(self.false_fix) / NS_PER_S - self.begin_s

    def between(self, track: np.ndarray, begin_s: float, end_s: float) -> np.ndarray:
        """Errors in metres within seconds of the drive."""
        seconds = track[:, 0] - self.begin_s
        return errors_m(track[(seconds >= begin_s) & (seconds < end_s)], self.truth)

    def report(self) -> None:
        started_s = self.fuse_start_s - self.begin_s
        print(f"fuse started at {started_s:.1f} s and used {self.fuse_processor_s:.0f} s of a processor")
        delays = np.quantile(self.delays_s, (0.5, 0.95, 1.0)) if self.fixes else np.full(3, math.nan)
        print("fixes arrive late by {:.2f} s in the median, 95% {:.2f} s, largest {:.2f} s".format(*delays))
        print(f"{len(self.fixes)} fixes, {len(self.transforms)} times map → odom, {len(self.globals)} times {GLOBAL}")
        track = self.map_to_base()
        fixes = np.array([row(fix) for fix in self.fixes])
        line("fixes", self.between(fixes, self.settled_s, math.inf))
        far = track[errors_m(track, self.truth) > FAR_M]
        early = far[far[:, 0] < self.begin_s + self.settled_s]
        found_s = (early[-1, 0] if len(early) else self.begin_s) - self.begin_s
        print(f"map → base_link within {FAR_M:g} m from {found_s:.1f} s of the drive on")
        line("map → base_link", self.between(track, self.settled_s, math.inf))
        track_of_topic = np.array(self.globals).reshape(-1, 7)
        track_of_topic[:, 1] -= self.move_m
        line(GLOBAL, self.between(track_of_topic, self.settled_s, math.inf))
        late = track_of_topic[track_of_topic[:, 0] - self.begin_s >= self.settled_s]
        if len(late):
            covariance = late[:, [4, 5, 5, 6]].reshape(-1, 2, 2)
            print(f"  its declared σ, median: {np.median(semi_major_sigmas(covariance)):.2f} m")
        if self.false_fix:
            said_s = self.false_fix_s
            line("  5 s before the false fix", self.between(track, said_s - 5.0, said_s))
            line("  4 s after it", self.between(track, said_s, said_s + 4.0))
            line("  then", self.between(track, said_s + 4.0, math.inf))
        for begin_s in np.arange(0.0, self.truth[-1, 0] - self.begin_s, 5.0):
            line(f"  {begin_s:3.0f} … {begin_s + 5:3.0f} s", self.between(track, begin_s, begin_s + 5.0))


def line(name: str, errors: np.ndarray) -> None:
    if not len(errors):
        print(f"{name:<32} nothing")
        return
    median, most = np.quantile(errors, (0.5, 0.95))
    print(f"{name:<32} median {median:6.2f} m, 95% {most:6.2f} m, largest {errors.max():6.2f} m ({len(errors)})")


if __name__ == "__main__":
    main()
