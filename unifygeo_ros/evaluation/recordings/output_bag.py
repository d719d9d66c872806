"""Fixes, diagnostics and ground truth of a replay as a bag that any viewer and evo open."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from unifygeo_ros.conversions.message_values import (
    navsatfix_covariance,
    outcome_diagnostic,
    pose_covariance,
    quaternion_of_yaw,
)
from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_ros.core.records import Fix
from unifygeo_ros.core.time import parts_from_stamp
from unifygeo_ros.evaluation.metrics.results import FrameResult
from unifygeo_ros.tracking.smoothing import SmoothedPose

POSE_TOPIC = "/unifygeo/fix"
NAVSATFIX_TOPIC = "/unifygeo/navsat"
DIAGNOSTICS_TOPIC = "/diagnostics"
TRUTH_TOPIC = "/ground_truth/pose"
SMOOTHED_TOPIC = "/unifygeo/smoothed"

_POSE = "geometry_msgs/msg/PoseWithCovarianceStamped"
_NAVSATFIX = "sensor_msgs/msg/NavSatFix"
_DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"

_UNKNOWN_YAW_VARIANCE_RAD2 = (np.pi**2) / 3
"""Variance of an angle that is uniform over the circle."""
_EXACT_M2 = 1e-9
"""Variance of an exact value: robot_localization raises smaller variances to this."""


class _Messages:
    """Makes messages with the definitions of ROS 2 Jazzy, whose CDR all releases since Humble read."""

    def __init__(self, frame: LocalFrame) -> None:
        self.store = get_typestore(Stores.ROS2_JAZZY)
        self._types = self.store.types
        self._frame = frame

    def _new(self, type_name: str, /, **fields: Any) -> Any:
        return self._types[type_name](**fields)

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        # A stamp before 1970 cannot be written; the diagnostic's text has it in full.
        seconds, nanoseconds = parts_from_stamp(max(0, stamp_ns))
        time = self._new("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
        return self._new("std_msgs/msg/Header", stamp=time, frame_id=frame_id)

    def pose(
        self, stamp_ns: int, east_m: float, north_m: float, yaw_rad: float, covariance_m2: Float64, yaw_variance: float
    ) -> Any:
        x, y, z, w = quaternion_of_yaw(yaw_rad)
        pose = self._new(
            "geometry_msgs/msg/Pose",
            position=self._new("geometry_msgs/msg/Point", x=east_m, y=north_m, z=0.0),
            orientation=self._new("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
        )
        with_covariance = self._new(
            "geometry_msgs/msg/PoseWithCovariance",
            pose=pose,
            covariance=pose_covariance(covariance_m2, yaw_variance),
        )
        return self._new(_POSE, header=self._header(stamp_ns, "map"), pose=with_covariance)

    def navsatfix(self, fix: Fix) -> Any:
        return self._new(
            _NAVSATFIX,
            header=self._header(fix.stamp_ns, "base_link"),
            status=self._new("sensor_msgs/msg/NavSatStatus", status=0, service=0),
            latitude=fix.latitude_deg,
            longitude=fix.longitude_deg,
            altitude=self._frame.datum.height_m,
            position_covariance=navsatfix_covariance(fix.covariance_m2),
            position_covariance_type=3,  # COVARIANCE_TYPE_KNOWN
        )

    def diagnostics(self, result: FrameResult) -> Any:
        text = outcome_diagnostic(result.outcome)
        status = self._new(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=text.level,
            name="unifygeo: localization",
            message=text.message,
            hardware_id="",
            values=[self._new("diagnostic_msgs/msg/KeyValue", key=key, value=value) for key, value in text.values],
        )
        return self._new(_DIAGNOSTICS, header=self._header(result.outcome.stamp_ns, ""), status=[status])


def check_output_path(path: Path) -> None:
    """Raises InputError for a name that tells neither a file nor a folder."""
    if path.suffix not in (".mcap", ""):
        raise InputError(f"{path}: the output's name must end in .mcap (one file) or have no ending (a rosbag2 folder)")


def write_output_bag(
    path: Path,
    results: Iterable[FrameResult],
    frame: LocalFrame,
    *,
    with_truth: bool = True,
    smoothed: Sequence[SmoothedPose] | None = None,
) -> None:
    """Write a bag: one file where the path ends in .mcap, else a rosbag2 folder. Replaces what is there.

    with_truth: whether the replay had ground truth, and so the bag has its topic. smoothed: the same of the smoothed
    track; its poses are logged with the image whose stamp they have.

    The same results give the same bytes. Messages carry the exposure's stamp and the log time of the image. The ground
    truth is the one interpolated at each image, so that evo pairs it with the fix exactly.
    """
    check_output_path(path)
    # A bag holds its own file's name, which is therefore always the same.
    part = path.with_name(f"{path.stem}.part") / "replay"
    shutil.rmtree(part.parent, ignore_errors=True)
    messages = _Messages(frame)
    with Writer(part, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        types = {
            POSE_TOPIC: _POSE,
            NAVSATFIX_TOPIC: _NAVSATFIX,
            DIAGNOSTICS_TOPIC: _DIAGNOSTICS,
            **({TRUTH_TOPIC: _POSE} if with_truth else {}),
            **({} if smoothed is None else {SMOOTHED_TOPIC: _POSE}),
        }
        smoothed_at = {pose.stamp_ns: pose for pose in smoothed or ()}
        connections = {
            topic: writer.add_connection(topic, name, typestore=messages.store) for topic, name in types.items()
        }
        for result in results:

            def write(topic: str, message: Any, log_time_ns: int = result.log_time_ns) -> None:
                writer.write(connections[topic], log_time_ns, messages.store.serialize_cdr(message, types[topic]))

            outcome, truth = result.outcome, result.truth
            if isinstance(outcome, Fix):
                write(
                    POSE_TOPIC,
                    messages.pose(
                        outcome.stamp_ns,
                        outcome.east_m,
                        outcome.north_m,
                        outcome.yaw_rad,
                        outcome.covariance_m2,
                        outcome.yaw_variance_rad2,
                    ),
                )
                write(NAVSATFIX_TOPIC, messages.navsatfix(outcome))
            write(DIAGNOSTICS_TOPIC, messages.diagnostics(result))
            if truth is not None:
                yaw = truth.course_rad if truth.yaw_rad is None else truth.yaw_rad
                covariance = truth.covariance_m2 + np.eye(2) * _EXACT_M2
                yaw_variance = _UNKNOWN_YAW_VARIANCE_RAD2 if truth.yaw_rad is None else _EXACT_M2
                write(
                    TRUTH_TOPIC,
                    messages.pose(outcome.stamp_ns, truth.east_m, truth.north_m, yaw or 0.0, covariance, yaw_variance),
                )
            pose = smoothed_at.get(outcome.stamp_ns)
            if pose is not None:
                position, yaw_variance = pose.covariance[:2, :2], float(pose.covariance[2, 2])
                write(
                    SMOOTHED_TOPIC,
                    messages.pose(pose.stamp_ns, pose.east_m, pose.north_m, pose.yaw_rad, position, yaw_variance),
                )
    # Only a whole bag takes the place of an older one.
    if path.suffix:
        (part / f"{part.name}.mcap").replace(path)
    else:
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)
    shutil.rmtree(part.parent)
