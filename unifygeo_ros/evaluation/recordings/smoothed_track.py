"""A smoothed track as files: TUM for other tools, CSV with standard deviations, which serves as ground truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Sequence

from unifygeo_ros.conversions.message_values import quaternion_of_yaw
from unifygeo_ros.core.covariance import semi_major_sigma
from unifygeo_ros.core.files import write_text
from unifygeo_ros.core.time import parts_from_stamp
from unifygeo_ros.tracking.smoothing import SmoothedPose


def write_tum(path: Path, poses: Sequence[SmoothedPose]) -> None:
    """`stamp x y z qx qy qz qw` of base_link in the map frame, z 0."""
    lines = ["# stamp x y z qx qy qz qw: base_link in the map frame of the index"]
    for pose in poses:
        quaternion = " ".join(f"{value:.9f}" for value in quaternion_of_yaw(pose.yaw_rad))
        lines.append(f"{_seconds(pose.stamp_ns)} {pose.east_m:.4f} {pose.north_m:.4f} 0 {quaternion}")
    write_text(path, "\n".join(lines) + "\n")


def write_csv(path: Path, poses: Sequence[SmoothedPose]) -> None:
    """The columns that `read_truth_file` takes (sigma_m along the long axis), and what else is known."""
    lines = ["stamp_ns,east_m,north_m,yaw_rad,sigma_m,yaw_sigma_rad,integrity"]
    for pose in poses:
        sigma_m, yaw_sigma_rad = semi_major_sigma(pose.covariance[:2, :2]), math.sqrt(pose.covariance[2, 2])
        lines.append(
            f"{pose.stamp_ns},{pose.east_m:.4f},{pose.north_m:.4f},{pose.yaw_rad:.6f},{sigma_m:.4f},"
            f"{yaw_sigma_rad:.6f},{pose.integrity:.4f}"
        )
    write_text(path, "\n".join(lines) + "\n")


def _seconds(stamp_ns: int) -> str:
    seconds, nanoseconds = parts_from_stamp(stamp_ns)
    return f"{seconds}.{nanoseconds:09d}"
