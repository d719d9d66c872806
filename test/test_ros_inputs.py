"""Sources of motion over real DDS: silent, late, in the wrong frame; and what the diagnostics say of each."""

import math
import re
import time

import pytest

pytest.importorskip("rclpy")

from geometry_msgs.msg import TransformStamped
from ros_drive import make_region, odometry_message, running, values
from sensor_msgs.msg import Imu

PLACE = (-20.0, 11.0)


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    return make_region(tmp_path_factory.mktemp("region"))


def imu_message(yaw_rad, roll_rad=0.0):
    """Rz(yaw) · Rx(roll)."""
    cz, sz, cx, sx = math.cos(yaw_rad / 2), math.sin(yaw_rad / 2), math.cos(roll_rad / 2), math.sin(roll_rad / 2)
    message = Imu()
    message.orientation.w, message.orientation.x = cz * cx, cz * sx
    message.orientation.y, message.orientation.z = sz * sx, sz * cx
    return message


def drive_until(vehicle, region, condition, *, imu=None, odometry=None, imu_frame="base_link", delay_s=0.0):
    """Show images with motion until the inputs' diagnostic fulfils a condition, and return it."""
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        stamp = vehicle.next_stamp()
        for topic, message, frame in (("/imu", imu, imu_frame), ("/odometry", odometry, "odom")):
            if message is not None:
                vehicle.publish(topic, message, stamp - round(delay_s * 1e9), frame)
        vehicle.show(region.panorama(PLACE), stamp)
        vehicle.spin(0.15)
        status = vehicle.status("inputs")
        if status is not None and condition(status):
            return status
    raise AssertionError(f"not reached; last: {vehicle.status('inputs')}")


def test_silent_sources_are_reported_soon_after_activation(region, tmp_path):
    parameters = {"session.heading_source": "imu", "session.mode": "sequence"}
    with running(region, tmp_path, parameters) as vehicle:
        vehicle.wait_for_status("node", lambda s: s.message == "active", "active node")
        active_s = time.monotonic()
        status = vehicle.wait_for_status("inputs", lambda s: s.level == b"\x01", "silent sources")
        assert time.monotonic() - active_s < 2.0
        assert status.message == (
            "no imu since activation on /imu (no publisher): the heading is searched; no odometry since "
            "activation on /odometry (no publisher): motion is guessed from odometry.speed_m_s"
        )
        vehicle.show(region.panorama(PLACE))
        outcome = vehicle.wait_for_status("localization", lambda s: "last.heading_source" in values(s), "outcome")
        assert values(outcome)["last.heading_source"] == "search"


def test_late_odometry_is_reported_and_one_in_time_is_not(region, tmp_path):
    with running(region, tmp_path, {"session.mode": "sequence"}) as vehicle:
        message = odometry_message(0.0, 0.0, 0.0)
        status = drive_until(vehicle, region, lambda s: "older" in s.message, odometry=message, delay_s=0.51)
        # A busy machine takes the image in after the odometry of the next one, 0.1 s newer.
        found = re.search(
            r"newest odometry is (0\.[345]1) s older than the image, extrapolation_s is 0\.2", status.message
        )
        assert found, status.message
        status = drive_until(vehicle, region, lambda s: s.level == b"\x00", odometry=message, delay_s=-1.0)
        assert values(status)["odometry.verdict"] == "ok"
        assert float(values(status)["odometry.rate_hz"]) > 0


def test_imu_of_an_unknown_frame_is_refused_unless_declared(region, tmp_path):
    """Here without TF, or with one that does not hold the frame: the same refusal either way."""
    parameters = {"session.heading_source": "imu"}
    with running(region, tmp_path, parameters) as vehicle:
        status = drive_until(
            vehicle, region, lambda s: "imu_link" in s.message, imu=imu_message(1.0), imu_frame="imu_link"
        )
        assert status.message.startswith("every imu message is refused, frame 'imu_link'")
        assert "set input_frames to base" in status.message
        assert "frame.imu_link" in values(status)
    with running(region, tmp_path, {**parameters, "input_frames": "base"}) as vehicle:
        drive_until(vehicle, region, lambda s: s.level == b"\x00", imu=imu_message(math.pi / 2), imu_frame="imu_link")
        vehicle.clear()
        stamp = vehicle.next_stamp()
        vehicle.publish("/imu", imu_message(math.pi / 2), stamp, "imu_link")
        vehicle.spin(0.2)
        vehicle.show(region.panorama(PLACE), stamp)
        orientation = vehicle.fix_for(stamp).pose.pose.orientation
        assert 2 * math.atan2(orientation.z, orientation.w) == pytest.approx(math.pi / 2)


def test_imu_mounted_upside_down_is_corrected_by_tf(region, tmp_path):
    """Real tf2_ros: the transform is published after the node became active, and the messages before it are refused."""
    tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros comes with ROS")
    with running(region, tmp_path, {"session.heading_source": "imu"}) as vehicle:
        imu = imu_message(math.pi / 2, roll_rad=math.pi)
        drive_until(vehicle, region, lambda s: "TF has no transform" in s.message, imu=imu, imu_frame="imu_link")
        hanging = TransformStamped(child_frame_id="imu_link")
        hanging.header.frame_id = "base_link"
        hanging.transform.rotation.w, hanging.transform.rotation.x = 0.0, 1.0
        broadcaster = tf2_ros.StaticTransformBroadcaster(vehicle.node)
        broadcaster.sendTransform([hanging])
        status = drive_until(vehicle, region, lambda s: s.level == b"\x00", imu=imu, imu_frame="imu_link")
        assert "roll 180.0°" in values(status)["frame.imu_link"] or "roll -180.0°" in values(status)["frame.imu_link"]
        vehicle.clear()
        stamp = vehicle.next_stamp()
        vehicle.publish("/imu", imu, stamp, "imu_link")
        vehicle.spin(0.3)
        vehicle.show(region.panorama(PLACE), stamp)
        orientation = vehicle.fix_for(stamp).pose.pose.orientation
        assert 2 * math.atan2(orientation.z, orientation.w) == pytest.approx(math.pi / 2)
