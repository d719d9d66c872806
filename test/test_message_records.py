"""Records out of messages as `rosbags` reads them: written to bytes and back, so that the fields are the real ones."""

import math

import numpy as np
import pytest
from rosbags.typesys import Stores, get_typestore

from unifygeo_ros.conversions import from_messages as message_records

STORE = get_typestore(Stores.ROS2_JAZZY)
T = STORE.types


def header(frame="odom"):
    return T["std_msgs/msg/Header"](stamp=T["builtin_interfaces/msg/Time"](sec=7, nanosec=25), frame_id=frame)


def pose(x, y, yaw):
    point = T["geometry_msgs/msg/Point"](x=x, y=y, z=9.0)
    quaternion = T["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=math.sin(yaw / 2), w=math.cos(yaw / 2))
    return T["geometry_msgs/msg/Pose"](position=point, orientation=quaternion)


def vector(x=0.0, y=0.0, z=0.0):
    return T["geometry_msgs/msg/Vector3"](x=x, y=y, z=z)


def there_and_back(message, name):
    return STORE.deserialize_cdr(STORE.serialize_cdr(message, name), name)


@pytest.mark.parametrize(("frame", "expected"), [("odom", "odom"), ("map", "map"), ("/map", "map"), ("x/odom", "odom")])
def test_odometry(frame, expected):
    name = "nav_msgs/msg/Odometry"
    covariance = np.arange(36, dtype=float)
    message = T[name](
        header=header(frame),
        child_frame_id="base_link",
        pose=T["geometry_msgs/msg/PoseWithCovariance"](pose=pose(1.0, 2.0, -2.5), covariance=covariance),
        twist=T["geometry_msgs/msg/TwistWithCovariance"](
            twist=T["geometry_msgs/msg/Twist"](linear=vector(3.0, 0.5), angular=vector(z=0.25)), covariance=covariance
        ),
    )
    sample = message_records.odometry_sample(there_and_back(message, name))
    assert (sample.stamp_ns, sample.frame, sample.x_m, sample.y_m) == (7_000_000_025, expected, 1.0, 2.0)
    assert sample.yaw_rad == pytest.approx(-2.5)
    assert (sample.forward_m_s, sample.left_m_s, sample.yaw_rate_rad_s) == (3.0, 0.5, 0.25)
    # Entry (row, column) of the message is 6 row + column; rows and columns x, y, yaw are 0, 1, 5.
    np.testing.assert_array_equal(sample.covariance, [[0, 3.5, 17.5], [3.5, 7, 21], [17.5, 21, 35]])


@pytest.mark.parametrize("known", [True, False])
def test_imu(known):
    name = "sensor_msgs/msg/Imu"
    covariance = np.array([0.1, 0, 0, 0, 0.2, 0, 0, 0, 0.3]) if known else np.array([-1.0, *[0.0] * 8])
    message = T[name](
        header=header("base_link"),
        orientation=pose(0.0, 0.0, 0.75).orientation,
        orientation_covariance=covariance,
        angular_velocity=vector(),
        angular_velocity_covariance=np.zeros(9),
        linear_acceleration=vector(),
        linear_acceleration_covariance=np.zeros(9),
    )
    sample = message_records.imu_sample(there_and_back(message, name))
    if known:
        assert (sample.roll_rad, sample.pitch_rad) == (0.0, 0.0)
        assert sample.yaw_rad == pytest.approx(0.75)
        assert sample.yaw_variance_rad2 == 0.3
        assert sample.fault() is None
    else:
        assert sample.fault() == "no orientation"


def test_initial_pose():
    name = "geometry_msgs/msg/PoseWithCovarianceStamped"
    covariance = np.diag([1.0, 2.0, 0.0, 0.0, 0.0, 0.5]).ravel()
    message = T[name](
        header=header("map"),
        pose=T["geometry_msgs/msg/PoseWithCovariance"](pose=pose(10.0, 20.0, 1.5), covariance=covariance),
    )
    found = message_records.initial_pose(there_and_back(message, name))
    assert (found.east_m, found.north_m, found.yaw_rad) == (10.0, 20.0, pytest.approx(1.5))
    np.testing.assert_array_equal(found.covariance, np.diag([1.0, 2.0, 0.5]))
    assert found.fault() is None


def test_raw_image():
    name = "sensor_msgs/msg/Image"
    rgb = np.random.default_rng(1).integers(0, 256, (2, 4, 3), np.uint8)
    data = np.pad(rgb.reshape(2, -1), ((0, 0), (0, 4))).ravel()
    message = T[name](header("camera"), height=2, width=4, encoding="rgb8", is_bigendian=0, step=16, data=data)
    image = message_records.camera_image(there_and_back(message, name))
    assert image.stamp_ns == 7_000_000_025
    np.testing.assert_array_equal(image.pixels, rgb)
