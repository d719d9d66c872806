"""The camera's place out of a transform; the look-up itself needs tf2_ros, which a ROS installation brings."""

import math

import pytest

pytest.importorskip("rclpy")

from geometry_msgs.msg import Quaternion, Transform, Vector3

from unifygeo_ros.config import CameraMount
from unifygeo_ros.errors import ConfigurationError
from unifygeo_ros.ros.camera_mount import mount_from_tf, mount_from_transform
from unifygeo_ros.ros.node_config import NodeConfig

CAMERA = CameraMount(elevation_top_rad=1.0, mask_path="")


def transform(roll=0.0, pitch=0.0, yaw=0.0):
    """Rz(yaw) · Ry(pitch) · Rx(roll) as the product of the three quaternions."""
    cr, sr, cp, sp, cy, sy = (f(a / 2) for a in (roll, pitch, yaw) for f in (math.cos, math.sin))
    rotation = Quaternion(
        x=sr * cp * cy - cr * sp * sy,
        y=cr * sp * cy + sr * cp * sy,
        z=cr * cp * sy - sr * sp * cy,
        w=cr * cp * cy + sr * sp * sy,
    )
    return Transform(translation=Vector3(x=1.0, y=-0.5, z=1.6), rotation=rotation)


@pytest.mark.parametrize("yaw", [0.0, 1.2, -3.0])
@pytest.mark.parametrize("upside_down", [False, True])
def test_a_level_camera_up_or_down(yaw, upside_down):
    mount = mount_from_transform(CAMERA, transform(math.pi if upside_down else 0.0, 0.0, yaw), "camera")
    assert (mount.x_m, mount.y_m, mount.z_m) == (1.0, -0.5, 1.6)
    assert mount.yaw_rad == pytest.approx(yaw)
    assert mount.upside_down == upside_down
    assert mount.elevation_top_rad == 1.0  # what TF does not know stays


@pytest.mark.parametrize("angles", [(0.1, 0.0, 0.0), (0.0, -0.2, 0.0), (math.pi - 0.1, 0.0, 1.0), (math.nan, 0, 0)])
def test_a_leaning_camera_is_refused(angles):
    with pytest.raises(ConfigurationError, match="leans by"):
        mount_from_transform(CAMERA, transform(*angles), "camera")


def test_an_optical_frame_is_refused_with_a_hint():
    with pytest.raises(ConfigurationError, match="not an optical frame"):
        mount_from_transform(CAMERA, transform(-math.pi / 2, 0.0, -math.pi / 2), "camera_optical_frame")


def test_without_tf2_ros_a_camera_frame_is_refused_and_the_way_out_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tf2_ros", None)  # as where it is not installed
    with pytest.raises(ConfigurationError, match=r"tf2_ros cannot be imported.*camera\.x_m"):
        mount_from_tf(CAMERA, NodeConfig(camera_frame="camera_link"), lambda: False)
