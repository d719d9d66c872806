"""Which process noise of yaw config/ekf.yaml should have: robot_localization's own filter, without ROS.

    python benchmarks/ekf_process_noise.py --source robot_localization drives/1001 drives/1004 …

--source is a checkout of robot_localization (branch ros2 or jazzy). Its Ekf class is compiled with ekf_filter/ (needs a
C++ compiler and Eigen) and fed in the order of stamps, which is what `smooth_lagged_data` makes of fixes that are late
by less than `history_length`. Not in it: robot_localization's node, its queues and TF; `ekf_drive.py` runs those.

Odometry, IMU and truth are those of the drives (folders of `unifygeo-train towns drive`). Fixes are simulated at the
images' stamps: the truth with an error of 0.45 m an axis and 2°, and that covariance. They stay away for 20 s. A false
fix lies 30 m to the left of the truth, with 0.45 m and 0.2 rad. --bias is added to the turn rates of odometry and IMU.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from unifygeo_ros.core.covariance import semi_major_sigma
from unifygeo_ros.core.time import NS_PER_S

ROOT = Path(__file__).parents[1]
ODOMETRY, IMU, FIX = range(3)
SIGMA_M, SIGMA_YAW_RAD = 0.45, math.radians(2.0)
FALSE_M, FALSE_SIGMA_YAW_RAD = 30.0, 0.2
GAP_S, SETTLED_S = 20.0, 5.0
YAW = 5  # in the process noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drives", type=Path, nargs="+")
    parser.add_argument("--source", type=Path, required=True, help="a checkout of robot_localization")
    parser.add_argument("--yaw", type=float, nargs="+", default=[2e-3, 5e-4, 2e-4, 1e-4, 3e-5], help="rad² a second")
    parser.add_argument("--bias", type=float, nargs="+", default=[0.0, 0.2, 0.5], help="degrees a second")
    args = parser.parse_args()
    settings = yaml.safe_load((ROOT / "config/ekf.yaml").read_text())["/**/ekf_map"]["ros__parameters"]
    drives = [Drive.read(folder / "bag") for folder in args.drives]
    with tempfile.TemporaryDirectory() as folder:
        program = build(args.source, Path(folder))
        for bias_deg in args.bias:
            for yaw_noise in args.yaw:
                settings["process_noise_covariance"][YAW] = yaw_noise
                name = f"bias {bias_deg:g}°/s, yaw {yaw_noise:g} rad²/s ({math.degrees(math.sqrt(yaw_noise)):.2f}°)"
                report(name, [judge(program, settings, d, math.radians(bias_deg), n) for n, d in enumerate(drives)])


def build(source: Path, folder: Path) -> Path:
    program, here = folder / "filter", Path(__file__).parent / "ekf_filter"
    files = [here / "filter.cpp", *(source / "src" / f"{n}.cpp" for n in ("ekf", "filter_base", "filter_utilities"))]
    includes = [f"-I{here}", f"-I{source / 'include'}", "-I/usr/include/eigen3"]
    subprocess.run(["c++", "-std=c++17", "-O2", *includes, *map(str, files), "-o", str(program)], check=True)
    return program


@dataclass(frozen=True)
class Drive:
    """What one drive recorded; rows are the lines that filter.cpp reads."""

    motion: list[tuple[float, ...]]
    truth: np.ndarray
    """float64 (n, 4): stamp in ns, x, y in m, yaw in rad."""
    images_ns: list[int]

    @classmethod
    def read(cls, bag: Path) -> Drive:
        motion: list[tuple[float, ...]] = []
        truth, images = [], []
        with AnyReader([bag], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
            for connection, _, data in reader.messages():
                if not hasattr(message := reader.deserialize(data, connection.msgtype), "header"):
                    continue
                stamp = message.header.stamp.sec * NS_PER_S + message.header.stamp.nanosec
                if connection.topic == "/odom":
                    twist, variances = message.twist.twist, np.diag(message.twist.covariance.reshape(6, 6))[[0, 1, 5]]
                    motion.append((stamp, ODOMETRY, twist.linear.x, twist.linear.y, twist.angular.z, *variances))
                elif connection.topic == "/imu/data":
                    motion.append((stamp, IMU, message.angular_velocity.z, message.angular_velocity_covariance[8]))
                elif connection.topic == "/ground_truth/odometry":
                    pose = message.pose.pose
                    yaw = 2 * math.atan2(pose.orientation.z, pose.orientation.w)
                    truth.append((stamp, pose.position.x, pose.position.y, yaw))
                elif connection.topic.startswith("/camera"):
                    images.append(stamp)
        return cls(motion, np.array(truth, np.float64), images)

    def at(self, stamps_ns: np.ndarray | float) -> np.ndarray:
        """x, y, yaw of the truth: float64 (..., 3)."""
        columns = self.truth[:, 1], self.truth[:, 2], np.unwrap(self.truth[:, 3])
        return np.stack([np.interp(stamps_ns, self.truth[:, 0], column) for column in columns], axis=-1)


def fix_row(stamp_ns: int, pose: np.ndarray, sigma_yaw_rad: float, threshold: float) -> tuple[float, ...]:
    covariance = np.diag([SIGMA_M**2, SIGMA_M**2, sigma_yaw_rad**2]).ravel()
    return (stamp_ns, FIX, *pose, *covariance, threshold)


def judge(program: Path, settings: dict, drive: Drive, bias_rad_s: float, seed: int) -> dict[str, float]:
    """The drive once with the gap alone, and once with a false fix at each of two times in it."""
    start_ns, end_ns = drive.truth[[0, -1], 0]
    begin_s = 25.0 if end_ns - start_ns > 50 * NS_PER_S else 12.0
    threshold = settings["pose0_rejection_threshold"]
    rng = np.random.default_rng(seed)
    rate: dict[float, int] = {ODOMETRY: 4, IMU: 2}
    motion = [(*row[: rate[row[1]]], row[rate[row[1]]] + bias_rad_s, *row[rate[row[1]] + 1 :]) for row in drive.motion]
    fixes = []
    for stamp in drive.images_ns:
        if start_ns <= stamp <= end_ns and not begin_s <= (stamp - start_ns) / NS_PER_S < begin_s + GAP_S:
            pose = drive.at(stamp) + rng.normal(0.0, [SIGMA_M, SIGMA_M, SIGMA_YAW_RAD])
            # A microsecond later than the odometry of that stamp, so that each fix has a prediction of its own.
            fixes.append(fix_row(stamp + 1000, pose, SIGMA_YAW_RAD, threshold))
    made: dict[str, float] = {}
    for false_s in (None, 10, 19):
        rows = motion + fixes
        if false_s is not None:
            at_ns = int(start_ns + (begin_s + false_s) * NS_PER_S) + 2000
            pose = drive.at(at_ns)
            pose[:2] += FALSE_M * np.array([-math.sin(pose[2]), math.cos(pose[2])])
            rows = [*rows, fix_row(at_ns, pose, FALSE_SIGMA_YAW_RAD, threshold)]
        out = run(program, settings, rows)
        seconds = (out[:, 0] - start_ns) / NS_PER_S
        error = out[:, 2:4] - drive.at(out[:, 0])[:, :2]
        distance = np.hypot(*error.T)
        after = seconds > begin_s + GAP_S + SETTLED_S
        if false_s is not None:
            made[f"false {false_s}"] = out[(out[:, 1] == FIX) & (out[:, 0] == at_ns), 9].item()
            made[f"after {false_s}"] = float(np.median(distance[after])) if after.any() else math.nan
            continue
        covariance = out[:, [5, 6, 6, 7]].reshape(-1, 2, 2)
        nees = np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariance), error)
        usual = (seconds > SETTLED_S) & ((seconds < begin_s) | after)
        last = np.searchsorted(seconds, begin_s + GAP_S - 0.05)
        made["median"], made["nees"] = float(np.median(distance[usual])), float(nees[usual].mean())
        made["gap error"], made["gap nees"] = float(distance[last]), float(nees[last])
        made["gap sigma"] = semi_major_sigma(covariance[last])
        made["refused"], made["fixes"] = float(((out[:, 1] == FIX) & (out[:, 9] == 0)).sum()), float(len(fixes))
    return made


def run(program: Path, settings: dict, rows: list[tuple[float, ...]]) -> np.ndarray:
    head = [" ".join(map(str, settings[f"{name}_covariance"])) for name in ("process_noise", "initial_estimate")]
    lines = [f"{int(row[0])} {int(row[1])} " + " ".join(repr(float(v)) for v in row[2:]) for row in sorted(rows)]
    result = subprocess.run(
        [str(program)], input="\n".join([*head, *lines]), capture_output=True, text=True, check=True
    )
    return np.array([line.split() for line in result.stdout.splitlines()], np.float64)


def report(name: str, drives: list[dict[str, float]]) -> None:
    column = {key: np.array([drive[key] for drive in drives]) for key in drives[0]}
    print(
        f"{name}: usual {np.median(column['median']):.2f} m, NEES {column['nees'].mean():.2f}; end of the gap "
        f"{np.median(column['gap error']):.1f} m (worst {column['gap error'].max():.1f}), declared σ "
        f"{np.median(column['gap sigma']):.1f} m, NEES {column['gap nees'].mean():.2f}; good fixes refused "
        f"{column['refused'].sum():.0f} of {column['fixes'].sum():.0f}; false ones taken "
        f"{column['false 10'].sum():.0f} and {column['false 19'].sum():.0f} of {len(drives)}, then off by up to "
        f"{np.nanmax([column['after 10'], column['after 19']]):.1f} m",
        flush=True,
    )


if __name__ == "__main__":
    main()
