"""Records out of ROS messages, by the messages' fields alone.

rclpy's classes and those that `rosbags` reads from a bag have the same fields, so the node and the replay convert with
the same functions and neither is imported here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unifygeo_ros.conversions.sensor_frames import SensorPose, frame_name
from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.core.time import stamp_from_parts
from unifygeo_ros.images.encodings import decode_compressed_image, decode_raw_image
from unifygeo_ros.motion.samples import (
    MAP_FRAME,
    ODOM_FRAME,
    ImuSample,
    InitialPose,
    OdometrySample,
    roll_pitch_yaw,
)

_X_Y_YAW = np.ix_((0, 1, 5), (0, 1, 5))
"""Rows and columns x, y, yaw of a pose covariance (x, y, z, about x, about y, about z)."""


def stamp_ns(header: Any) -> int:
    """Nanoseconds of a std_msgs/Header."""
    return stamp_from_parts(header.stamp.sec, header.stamp.nanosec)


def camera_image(message: Any, least_width: int | None = None) -> CameraImage:
    """Decode sensor_msgs/Image or CompressedImage.

    Args:
        message: The image.
        least_width: JPEGs may be decoded smaller, but not narrower than this; None: full size.

    Raises:
        InputError: The pixels cannot be decoded.
    """
    if hasattr(message, "format"):
        pixels = decode_compressed_image(message.data, message.format, least_width)
    else:
        pixels = decode_raw_image(
            message.data, message.encoding, message.height, message.width, message.step, bool(message.is_bigendian)
        )
    return CameraImage(pixels, stamp_ns(message.header))


def odometry_sample(message: Any, map_frame: str = MAP_FRAME, child: SensorPose | None = None) -> OdometrySample:
    """Convert nav_msgs/Odometry to the pose and velocity of base_link.

    Args:
        message: A pose in `map_frame` is absolute; one in any other frame is used for motion only.
        map_frame: Name of the map frame.
        child: Pose of the message's child_frame_id in base_link; None where it is base_link.
    """
    pose, twist = message.pose.pose, message.twist.twist
    q, p = pose.orientation, pose.position
    quaternion = (float(q.x), float(q.y), float(q.z), float(q.w))
    x_m, y_m = float(p.x), float(p.y)
    covariance = _x_y_yaw_covariance(message.pose.covariance)
    velocity = np.array([twist.linear.x, twist.linear.y, twist.linear.z], np.float64)
    turn_rate = np.array([twist.angular.x, twist.angular.y, twist.angular.z], np.float64)
    norm = math.sqrt(sum(value * value for value in quaternion))
    if child is not None and math.isfinite(norm) and norm > 1e-6:
        # base_link is a lever arm away from the child frame, which also sweeps with the turn rate and the yaw's error.
        from scipy.spatial.transform import Rotation  # slow to import: see `unifygeo_ros.tracking.region`

        arm_m = child.base_in_sensor_m()
        east, north, _ = Rotation.from_quat(quaternion).apply(arm_m).tolist()
        x_m, y_m = x_m + east, y_m + north
        by_yaw = np.array([[1.0, 0.0, -north], [0.0, 1.0, east], [0.0, 0.0, 1.0]])
        covariance = by_yaw @ covariance @ by_yaw.T
        covariance = (covariance + covariance.T) / 2
        velocity = child.rotation.apply(velocity + np.cross(turn_rate, arm_m))
        turn_rate = child.rotation.apply(turn_rate)
        quaternion = child.base_rotation(quaternion)
    return OdometrySample(
        stamp_ns=stamp_ns(message.header),
        frame=MAP_FRAME if frame_name(message.header.frame_id) == map_frame else ODOM_FRAME,
        x_m=x_m,
        y_m=y_m,
        yaw_rad=roll_pitch_yaw(*quaternion)[2],
        forward_m_s=float(velocity[0]),
        left_m_s=float(velocity[1]),
        yaw_rate_rad_s=float(turn_rate[2]),
        covariance=covariance,
    )


def imu_sample(message: Any, sensor: SensorPose | None = None) -> ImuSample:
    """Convert the orientation of sensor_msgs/Imu to that of base_link.

    The message's orientation is that of its frame_id in an east-north-up frame (REP-145).

    Args:
        message: Angles become NaN where the IMU gives no orientation.
        sensor: Pose of the message's frame_id in base_link; None where the IMU's axes are base_link's.
    """
    q = message.orientation
    quaternion = (float(q.x), float(q.y), float(q.z), float(q.w))
    if sensor is not None:
        quaternion = sensor.base_rotation(quaternion)
    no_orientation = message.orientation_covariance[0] == -1  # as sensor_msgs/Imu defines
    roll, pitch, yaw = (math.nan,) * 3 if no_orientation else roll_pitch_yaw(*quaternion)
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
