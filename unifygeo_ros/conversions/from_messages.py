"""Records out of ROS messages, by the messages' fields alone.

rclpy's classes and those that `rosbags` reads from a bag have the same fields, so the node and the replay convert with
the same functions and neither is imported here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.images.encodings import decode_compressed_image, decode_raw_image
from unifygeo_ros.motion.samples import (
    MAP_FRAME,
    ODOM_FRAME,
    ImuSample,
    InitialPose,
    OdometrySample,
    roll_pitch_yaw,
)

Float64 = npt.NDArray[np.float64]

_X_Y_YAW = np.ix_((0, 1, 5), (0, 1, 5))  # of x, y, z, about x, about y, about z


def stamp_ns(header: Any) -> int:
    """Nanoseconds of a std_msgs/Header."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def camera_image(message: Any) -> CameraImage:
    """sensor_msgs/Image or CompressedImage. Raises InputError where the pixels cannot be decoded."""
    if hasattr(message, "format"):
        pixels = decode_compressed_image(message.data, message.format)
    else:
        pixels = decode_raw_image(
            message.data, message.encoding, message.height, message.width, message.step, bool(message.is_bigendian)
        )
    return CameraImage(pixels, stamp_ns(message.header))


def odometry_sample(message: Any, map_frame: str = MAP_FRAME) -> OdometrySample:
    """nav_msgs/Odometry. A pose in the map frame is absolute; one in any other frame tells of motion only."""
    pose, twist = message.pose.pose, message.twist.twist
    yaw = _yaw(pose.orientation)
    return OdometrySample(
        stamp_ns=stamp_ns(message.header),
        frame=MAP_FRAME if message.header.frame_id.lstrip("/") == map_frame else ODOM_FRAME,
        x_m=float(pose.position.x),
        y_m=float(pose.position.y),
        yaw_rad=yaw,
        forward_m_s=float(twist.linear.x),
        left_m_s=float(twist.linear.y),
        yaw_rate_rad_s=float(twist.angular.z),
        covariance=_x_y_yaw_covariance(message.pose.covariance),
    )


def imu_sample(message: Any) -> ImuSample:
    """sensor_msgs/Imu whose axes are base_link's. Angles are NaN where the IMU gives no orientation."""
    q = message.orientation
    no_orientation = message.orientation_covariance[0] == -1  # as sensor_msgs/Imu defines
    roll, pitch, yaw = (math.nan,) * 3 if no_orientation else roll_pitch_yaw(q.x, q.y, q.z, q.w)
    return ImuSample(
        stamp_ns=stamp_ns(message.header),
        roll_rad=roll,
        pitch_rad=pitch,
        yaw_rad=yaw,
        yaw_variance_rad2=max(0.0, float(message.orientation_covariance[8])),
    )


def initial_pose(message: Any) -> InitialPose:
    """geometry_msgs/PoseWithCovarianceStamped in the map frame, as RViz publishes it."""
    pose = message.pose.pose
    return InitialPose(
        stamp_ns=stamp_ns(message.header),
        east_m=float(pose.position.x),
        north_m=float(pose.position.y),
        yaw_rad=_yaw(pose.orientation),
        covariance=_x_y_yaw_covariance(message.pose.covariance),
    )


def _yaw(orientation: Any) -> float:
    return roll_pitch_yaw(orientation.x, orientation.y, orientation.z, orientation.w)[2]


def _x_y_yaw_covariance(values: Any) -> Float64:
    """float64 (3, 3) out of the 36 values of a pose's covariance, made symmetric against rounding."""
    matrix = np.asarray(values, np.float64).reshape(6, 6)[_X_Y_YAW]
    return np.asarray((matrix + matrix.T) / 2)
