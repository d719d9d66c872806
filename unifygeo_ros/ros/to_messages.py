"""Records → messages, and the guard that nothing passes but finite numbers and positive definite covariances.

No thresholds on quality here: whether a fix is good enough was decided before.
"""

from __future__ import annotations

import array
import math
from typing import Sequence

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Pose, PoseArray, PoseWithCovarianceStamped, Quaternion, TransformStamped
from nav_msgs.msg import OccupancyGrid
from sensor_msgs.msg import CompressedImage, NavSatFix, NavSatStatus, PointCloud2, PointField
from std_msgs.msg import Float64MultiArray, Header, MultiArrayDimension, MultiArrayLayout

from unifygeo_ros.conversions.message_values import (
    navsatfix_covariance,
    outcome_diagnostic,
    pose_covariance,
    quaternion_of_yaw,
)
from unifygeo_ros.core.arrays import UInt8
from unifygeo_ros.core.covariance import covariance_problem
from unifygeo_ros.core.records import Fix, Hypothesis, Rejection, TileDistribution
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.core.time import parts_from_stamp
from unifygeo_ros.tracking.map_to_odom import PoseNow


class PublicationError(Exception):
    """A fix that must not leave the node. The message says why."""


def time_message(stamp_ns: int) -> Time:
    seconds, nanoseconds = parts_from_stamp(stamp_ns)
    return Time(sec=seconds, nanosec=nanoseconds)


def check_fix(fix: Fix, last_stamp_ns: int | None) -> None:
    """Last look at a fix before it is published.

    robot_localization takes a NaN into its state and never recovers.

    Args:
        fix: the one to publish.
        last_stamp_ns: of the fix before.

    Raises:
        PublicationError: something is not finite, the covariance is not symmetric and positive definite, or time did
            not advance.
    """
    numbers = (fix.east_m, fix.north_m, fix.latitude_deg, fix.longitude_deg, fix.yaw_rad)
    if not all(map(math.isfinite, numbers)):
        raise PublicationError(f"position {numbers[:4]} or yaw {fix.yaw_rad} is not finite")
    if last_stamp_ns is not None and fix.stamp_ns <= last_stamp_ns:
        raise PublicationError(f"stamp {fix.stamp_ns} ns is not after the last fix's {last_stamp_ns} ns")
    covariance = pose_covariance(fix.covariance_m2, fix.yaw_variance_rad2).reshape(6, 6)
    problem = covariance_problem(fix.covariance_m2, 2) or covariance_problem(covariance, 6)
    if problem is not None:
        raise PublicationError(f"covariance {problem}")


def pose_message(fix: Fix, map_frame: str) -> PoseWithCovarianceStamped:
    """The fix as the pose of base_link in the map frame, z = 0."""
    message = PoseWithCovarianceStamped(header=Header(stamp=time_message(fix.stamp_ns), frame_id=map_frame))
    message.pose.pose = _pose(fix.east_m, fix.north_m, fix.yaw_rad)
    message.pose.covariance = pose_covariance(fix.covariance_m2, fix.yaw_variance_rad2)
    return message


def pose_now_message(now: PoseNow, map_frame: str) -> PoseWithCovarianceStamped:
    """The pose of base_link at an odometry sample, z = 0."""
    message = PoseWithCovarianceStamped(header=Header(stamp=time_message(now.stamp_ns), frame_id=map_frame))
    message.pose.pose = _pose(now.pose.x_m, now.pose.y_m, now.pose.yaw_rad)
    message.pose.covariance = pose_covariance(now.covariance[:2, :2], float(now.covariance[2, 2]))
    return message


def transform_message(pose: Pose2, stamp_ns: int, parent: str, child: str) -> TransformStamped:
    """The pose of the child's frame in the parent's, as TF takes it."""
    message = TransformStamped(header=Header(stamp=time_message(stamp_ns), frame_id=parent), child_frame_id=child)
    message.transform.translation.x, message.transform.translation.y = pose.x_m, pose.y_m
    message.transform.rotation = _pose(0.0, 0.0, pose.yaw_rad).orientation
    return message


def navsat_message(fix: Fix, base_frame: str, datum_height_m: float) -> NavSatFix:
    """The fix as WGS84. Its altitude is the datum's: navsat_transform ignores a message whose altitude is NaN."""
    message = NavSatFix(header=Header(stamp=time_message(fix.stamp_ns), frame_id=base_frame))
    message.status.status = NavSatStatus.STATUS_FIX
    message.status.service = 0  # no satellites were involved
    message.latitude, message.longitude, message.altitude = fix.latitude_deg, fix.longitude_deg, datum_height_m
    message.position_covariance = navsatfix_covariance(fix.covariance_m2)
    message.position_covariance_type = NavSatFix.COVARIANCE_TYPE_KNOWN
    return message


def hypotheses_message(hypotheses: Sequence[Hypothesis], stamp_ns: int, yaw_rad: float, map_frame: str) -> PoseArray:
    """Where the camera may have been, the most likely first. yaw_rad is that of base_link, 0 where it is not known."""
    message = PoseArray(header=Header(stamp=time_message(stamp_ns), frame_id=map_frame))
    message.poses = [_pose(hypothesis.east_m, hypothesis.north_m, yaw_rad) for hypothesis in hypotheses]
    return message


def hypotheses_cloud_message(hypotheses: Sequence[Hypothesis], stamp_ns: int, map_frame: str) -> PointCloud2:
    """The same places with their weights: fields x, y, z = 0 (m) and weight (0 … 1), float32."""
    names = ("x", "y", "z", "weight")
    points = np.array([(one.east_m, one.north_m, 0.0, one.weight) for one in hypotheses], "<f4").reshape(-1, 4)
    fields = [
        PointField(name=name, offset=4 * number, datatype=PointField.FLOAT32, count=1)
        for number, name in enumerate(names)
    ]
    return PointCloud2(
        header=Header(stamp=time_message(stamp_ns), frame_id=map_frame),
        height=1,
        width=len(points),
        fields=fields,
        is_bigendian=False,
        point_step=4 * len(names),
        row_step=points.nbytes,
        data=array.array("B", points.tobytes()),
        is_dense=True,
    )


def weights_message(hypotheses: Sequence[Hypothesis]) -> Float64MultiArray:
    """Their weights alone, the largest first: what tools plot that know no point clouds."""
    weights = [hypothesis.weight for hypothesis in hypotheses]
    layout = [MultiArrayDimension(label="hypothesis", size=len(weights), stride=len(weights))]
    return Float64MultiArray(layout=MultiArrayLayout(dim=layout), data=weights)


def outcome_message(outcome: Fix | Rejection, name: str) -> DiagnosticArray:
    """What became of one image, in words and values, with the image's stamp, by the node of that name."""
    text = outcome_diagnostic(outcome)
    status = DiagnosticStatus(
        level=bytes([text.level]), name=f"{name}: outcome", message=text.message, hardware_id=name
    )
    values = list(text.values)
    if isinstance(outcome, Fix):
        values += [("latitude_deg", f"{outcome.latitude_deg:.7f}"), ("longitude_deg", f"{outcome.longitude_deg:.7f}")]
    status.values = [KeyValue(key=key, value=value) for key, value in values]
    return DiagnosticArray(header=Header(stamp=time_message(outcome.stamp_ns)), status=[status])


def heatmap_message(distribution: TileDistribution, stamp_ns: int, map_frame: str) -> OccupancyGrid:
    """The belief in the camera's position over the winning tile, 100 at its most probable cell."""
    size = len(distribution.probability)
    side_m = size * distribution.metres_per_pixel
    message = OccupancyGrid(header=Header(stamp=time_message(stamp_ns), frame_id=map_frame))
    message.info.map_load_time = message.header.stamp
    message.info.resolution = distribution.metres_per_pixel
    message.info.width = message.info.height = size
    message.info.origin = _pose(distribution.centre_east_m - side_m / 2, distribution.centre_north_m - side_m / 2, 0.0)
    share = distribution.probability / max(float(distribution.probability.max()), np.finfo(np.float32).tiny)
    # Row 0 of an image is north, row 0 of a grid is its origin, the south-west corner.
    message.data = array.array("b", np.rint(100 * share[::-1]).astype(np.int8).tobytes())
    return message


def jpeg_message(pixels: UInt8, stamp_ns: int, frame_id: str) -> CompressedImage:
    """A JPEG of pixels, uint8 (H, W, 3) RGB."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
    header = Header(stamp=time_message(stamp_ns), frame_id=frame_id)
    return CompressedImage(header=header, format="jpeg", data=array.array("B", encoded.tobytes()))


def _pose(east_m: float, north_m: float, yaw_rad: float) -> Pose:
    x, y, z, w = quaternion_of_yaw(yaw_rad)
    pose = Pose(orientation=Quaternion(x=x, y=y, z=z, w=w))
    pose.position.x, pose.position.y = east_m, north_m
    return pose
