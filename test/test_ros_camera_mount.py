"""The camera's place out of a transform; the look-up itself needs tf2_ros, which a ROS installation brings."""

import math
from contextlib import contextmanager

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from rcl_interfaces.msg import Log
from ros_drive import FACING_NORTH, NODE, Vehicle, domain_id, end_node, make_region, start_node

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.parameters.settings import NodeConfig
from unifygeo_ros.ros.camera_mount import mount_from_tf, mount_from_transform

CAMERA = CameraMount(elevation_top_rad=1.0, mask_path="")


def transform(roll=0.0, pitch=0.0, yaw=0.0, place=(1.0, -0.5, 1.6)):
    """Rz(yaw) · Ry(pitch) · Rx(roll) as the product of the three quaternions."""
    cr, sr, cp, sp, cy, sy = (f(a / 2) for a in (roll, pitch, yaw) for f in (math.cos, math.sin))
    rotation = Quaternion(
        x=sr * cp * cy - cr * sp * sy,
        y=cr * sp * cy + sr * cp * sy,
        z=cr * cp * sy - sr * sp * cy,
        w=cr * cp * cy + sr * sp * sy,
    )
    return Transform(translation=Vector3(x=place[0], y=place[1], z=place[2]), rotation=rotation)


@pytest.mark.parametrize("yaw", [0.0, 1.2, -3.0])
@pytest.mark.parametrize("upside_down", [False, True])
def test_level_camera_up_or_down(yaw, upside_down):
    mount = mount_from_transform(CAMERA, transform(math.pi if upside_down else 0.0, 0.0, yaw), "camera")
    assert (mount.x_m, mount.y_m) == (1.0, -0.5)
    assert mount.yaw_rad == pytest.approx(yaw)
    assert mount.upside_down == upside_down
    assert mount.elevation_top_rad == 1.0  # what TF does not know stays


@pytest.mark.parametrize("angles", [(0.1, 0.0, 0.0), (0.0, -0.2, 0.5), (0.3, 0.9, -2.0), (math.pi / 2, 0.0, 1.0)])
def test_tilted_camera_keeps_its_angles(angles):
    mount = mount_from_transform(CAMERA, transform(*angles), "camera")
    assert (mount.roll_rad, mount.pitch_rad, mount.yaw_rad) == pytest.approx(angles)
    assert not mount.upside_down


@pytest.mark.parametrize(("roll", "rest"), [(math.pi - 0.1, -0.1), (-math.pi + 0.1, 0.1)])
def test_mount_of_a_hanging_tilted_camera_is_upside_down_plus_tilt(roll, rest):
    mount = mount_from_transform(CAMERA, transform(roll, 0.2, 1.0), "camera")
    assert mount.upside_down
    assert (mount.roll_rad, mount.pitch_rad, mount.yaw_rad) == pytest.approx((rest, 0.2, 1.0))


def test_transform_that_is_not_finite_is_refused():
    with pytest.raises(ConfigurationError, match="not finite"):
        mount_from_transform(CAMERA, transform(math.nan), "camera")


def test_optical_frame_is_refused_with_a_hint():
    with pytest.raises(ConfigurationError, match=r"not an optical frame, or set camera\.roll_rad"):
        mount_from_transform(CAMERA, transform(-math.pi / 2, 0.0, -math.pi / 2), "camera_optical_frame")


def test_without_tf2_ros_a_camera_frame_is_refused_and_the_way_out_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tf2_ros", None)  # as where it is not installed
    with pytest.raises(ConfigurationError, match=r"tf2_ros cannot be imported.*camera\.x_m"):
        mount_from_tf(CAMERA, NodeConfig(camera_frame="camera_link"), lambda: False)


# -- where tf2_ros is installed ---------------------------------------------------------------------------------------

PLACE = (-20.0, 11.0)
# base_link → mast → camera: the mast stands 2 m ahead and faces left, the camera is 0.5 m along it, 0.3 rad further.
CHAIN = (
    ("base_link", "mast", transform(yaw=math.pi / 2, place=(2.0, 0.25, 1.0))),
    ("mast", "camera", transform(yaw=0.3, place=(0.5, 0.0, 0.6))),
)
COMPOSED = {"camera.x_m": 2.0, "camera.y_m": 0.75, "camera.yaw_rad": math.pi / 2 + 0.3}


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    return make_region(tmp_path_factory.mktemp("region"))


@contextmanager
def vehicle_with_tf(region, folder, parameters, remaps=None):
    """A vehicle that publishes CHAIN as /tf_static with the real tf2_ros, and a node that is still to be configured."""
    tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros comes with ROS")
    domain = domain_id()
    vehicle = Vehicle(domain)
    tf2_ros.StaticTransformBroadcaster(vehicle.node).sendTransform([stamped(*link) for link in CHAIN])
    node = start_node(domain, {**region.parameters, **FACING_NORTH, **parameters}, folder, remaps)
    try:
        yield vehicle
    finally:
        vehicle.close()
        end_node(node)


def stamped(parent, child, transform):
    message = TransformStamped(child_frame_id=child, transform=transform)
    message.header.frame_id = parent
    return message


def fix_of(vehicle, pixels):
    """x, y, yaw that the node makes of an image."""
    vehicle.bring_up()
    stamp_ns = vehicle.show(pixels)
    pose = vehicle.fix_for(stamp_ns).pose.pose
    return pose.position.x, pose.position.y, 2 * math.atan2(pose.orientation.z, pose.orientation.w)


def test_tf_gives_the_same_fix_as_the_parameters(region, tmp_path):
    pixels = region.panorama(PLACE)
    with vehicle_with_tf(region, tmp_path, {"camera_frame": "camera"}) as vehicle:
        by_tf = fix_of(vehicle, pixels)
    with vehicle_with_tf(region, tmp_path, COMPOSED) as vehicle:
        by_parameters = fix_of(vehicle, pixels)
    with vehicle_with_tf(region, tmp_path, {"camera.yaw_rad": COMPOSED["camera.yaw_rad"]}) as vehicle:
        without_lever_arm = fix_of(vehicle, pixels)
    assert by_tf == pytest.approx(by_parameters, abs=1e-6)
    lever_arm_m = math.hypot(COMPOSED["camera.x_m"], COMPOSED["camera.y_m"])
    assert math.dist(by_tf[:2], without_lever_arm[:2]) == pytest.approx(lever_arm_m, abs=1e-6)


def test_frame_without_publisher_is_refused_and_can_be_corrected(region, tmp_path):
    parameters = {"camera_frame": "periscope", "tf_timeout_s": 0.5}
    with vehicle_with_tf(region, tmp_path, parameters) as vehicle:
        assert not vehicle.change_state("configure")
        status = vehicle.wait_for_status("node", lambda status: "periscope" in status.message, "refusal")
        assert status.level == DiagnosticStatus.ERROR
        assert "no transform from periscope to base_link after 0.5 s" in status.message
        assert vehicle.set_parameter("camera_frame", "camera").successful
        fix_of(vehicle, region.panorama(PLACE))


def test_look_up_leaves_the_log_of_the_node_alone(region, tmp_path):
    """A launch file renames every node of the process; the one that listens to TF must not end the other's /rosout."""
    renamed = {"__node": NODE[1:]}
    with vehicle_with_tf(region, tmp_path, {"camera_frame": "camera"}, renamed) as vehicle:
        said = []
        vehicle.node.create_subscription(Log, "/rosout", said.append, 50)
        vehicle.wait_for(lambda: vehicle.node.count_publishers("/rosout") > 1, "/rosout of the node")
        assert vehicle.change_state("configure")
        # Said after the look-up, when its node is gone.
        vehicle.wait_for(lambda: [line for line in said if line.msg.startswith("datum:")], "datum on /rosout", 10.0)
