"""The node as a process, over real DDS: images in, fixes out; and what it does with everything else that comes in."""

import math

import cv2
import numpy as np
import pyproj
import pytest

pytest.importorskip("rclpy")

from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_drive import (
    NODE,
    OPEN_GATES,
    make_region,
    odometry_message,
    png_message,
    running,
    stamp_of,
    values,
)
from sensor_msgs.msg import CompressedImage, Imu
from std_msgs.msg import Bool

from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource, Query
from unifygeo_ros.inference.bundle import load_bundle
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.ros.to_messages import jpeg_message

NORTH = math.pi / 2  # yaw
PLACES = [(-20.0, 11.0), (9.0, 31.0), (-33.0, -8.0)]


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    return make_region(tmp_path_factory.mktemp("region"))


@pytest.fixture(scope="module")
def vehicle(region, tmp_path_factory):
    parameters = {"image_timeout_s": 1.0, "heatmap_period_s": 1e-6}  # every image has its own
    with running(region, tmp_path_factory.mktemp("node"), parameters) as vehicle:
        yield vehicle


@pytest.fixture(autouse=True)
def nothing_received_yet(vehicle):
    vehicle.clear()


@pytest.fixture(scope="module")
def localizer(region):
    bundle = load_bundle(region.bundle)
    gates = {name.split(".")[1]: value for name, value in OPEN_GATES.items() if name.startswith("localizer.")}
    with open_engines(bundle, backend="onnx_cpu", threads=1) as engines:
        yield Localizer(open_index(region.index, bundle=bundle), bundle, engines, LocalizerConfig(**gates))


@pytest.mark.parametrize("place", PLACES)
def test_fix_is_what_the_localizer_says_and_where_the_camera_was(vehicle, region, localizer, place):
    pixels = region.panorama(place)
    stamp = vehicle.show(pixels)
    message = vehicle.fix_for(stamp)
    expected = localizer.locate(
        CameraImage(pixels, stamp),
        Query(heading=Heading(NORTH, localizer.config.heading_sigma_rad**2, HeadingSource.CONSTANT)),
    )
    assert message.header.frame_id == "map"
    assert stamp_of(message) == stamp
    pose = message.pose.pose
    assert (pose.position.x, pose.position.y) == pytest.approx((expected.east_m, expected.north_m), abs=1e-9)
    covariance = message.pose.covariance.reshape(6, 6)
    # Without odometry 10 m/s is assumed, and the stamps are in doubt by 0.1 s.
    assert covariance[:2, :2] == pytest.approx(expected.covariance_m2 + np.eye(2), rel=1e-9)
    assert np.linalg.eigvalsh(covariance)[0] > 0
    truth = region.world.in_map(localizer.index.frame, *place)
    assert math.hypot(pose.position.x - truth[0], pose.position.y - truth[1]) < 3.0
    assert 2 * math.atan2(pose.orientation.z, pose.orientation.w) == pytest.approx(NORTH)


def test_navsat_is_the_same_place(vehicle, region, localizer):
    stamp = vehicle.show(region.panorama(PLACES[0]))
    fix = vehicle.fix_for(stamp)
    navsat = vehicle.wait_for(lambda: [m for m in vehicle.received["~/navsat"] if stamp_of(m) == stamp], "navsat")[0]
    assert navsat.header.frame_id == "base_link"
    datum = localizer.index.manifest.datum
    geod = pyproj.Geod(ellps="WGS84")
    azimuth, _, distance = geod.inv(datum.longitude_deg, datum.latitude_deg, navsat.longitude, navsat.latitude)
    east, north = distance * math.sin(math.radians(azimuth)), distance * math.cos(math.radians(azimuth))
    assert (east, north) == pytest.approx((fix.pose.pose.position.x, fix.pose.pose.position.y), abs=1e-3)


def test_hypotheses_and_heatmap_agree(vehicle, region):
    stamp = vehicle.show(region.panorama(PLACES[1]))
    fix = vehicle.fix_for(stamp)
    (poses,) = vehicle.wait_for(lambda: [m for m in vehicle.received["~/hypotheses"] if stamp_of(m) == stamp], "poses")
    (grid,) = vehicle.wait_for(lambda: [m for m in vehicle.received["~/heatmap"] if stamp_of(m) == stamp], "heatmap")
    answer = fix.pose.pose.position
    assert (poses.poses[0].position.x, poses.poses[0].position.y) == pytest.approx((answer.x, answer.y))
    row, column = divmod(int(np.argmax(grid.data)), grid.info.width)
    peak_x = grid.info.origin.position.x + (column + 0.5) * grid.info.resolution
    peak_y = grid.info.origin.position.y + (row + 0.5) * grid.info.resolution
    assert math.hypot(peak_x - answer.x, peak_y - answer.y) < 3 * grid.info.resolution


def test_debug_image_is_drawn_when_asked_for(vehicle, region):
    assert vehicle.set_parameter("debug_image_period_s", 1e-6).successful
    vehicle.show(region.panorama(PLACES[0]))
    message = vehicle.wait_for(lambda: vehicle.received["~/debug_image/compressed"], "debug image")[0]
    assert cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR).shape == (796, 768, 3)
    assert vehicle.set_parameter("debug_image_period_s", 0.0).successful


def test_diagnostics_name_bundle_and_index(vehicle, region):
    status = vehicle.wait_for_status("node", lambda s: s.message == "active", "active node")
    known = values(status)
    assert str(region.index) in known["index"]
    assert "CPU" in known["engines"]
    assert load_bundle(region.bundle).manifest.weights_sha256.startswith(known["weights"])


def test_latencies_stand_in_the_diagnostics(vehicle, region):
    vehicle.fix_for(vehicle.show(region.panorama(PLACES[0])))
    status = vehicle.wait_for_status("localization", lambda s: int(values(s)["fixes"]) > 0, "fixes")
    stages = [key for key in values(status) if key.startswith("latency_ms.")]
    assert {"latency_ms.localizer.ground_encoder", "latency_ms.decode", "latency_ms.own_cpu"} <= set(stages)


# -- what must be refused, with its reason, and followed by the next good fix -----------------------------------------


def refused(vehicle, region, message, reason):
    """Publish a bad image, see its reason in the diagnostics and no fix, then a good image and its fix."""
    stamp = vehicle.next_stamp()
    vehicle.publish("/image/compressed", message, stamp)
    status = vehicle.rejection_of(stamp, reason)
    vehicle.fix_for(vehicle.show(region.panorama(PLACES[0])))
    return status


def test_truncated_jpeg_is_refused(vehicle, region):
    data = cv2.imencode(".jpg", region.panorama(PLACES[0]))[1].tobytes()
    refused(vehicle, region, CompressedImage(format="jpeg", data=data[: len(data) // 2]), "bad_image")


@pytest.mark.parametrize("data", [b"", b"no image at all", b"\xff\xd8\xff\xe0" + bytes(100)])
def test_bytes_that_are_no_image_are_refused(vehicle, region, data):
    refused(vehicle, region, CompressedImage(format="jpeg", data=data), "bad_image")


def test_depth_image_is_refused_by_its_format(vehicle, region):
    message = png_message(region.panorama(PLACES[0]))
    message.format = "16UC1; compressedDepth png"
    assert "depth" in refused(vehicle, region, message, "bad_image").message


def test_image_of_the_wrong_aspect_is_refused(vehicle, region):
    refused(vehicle, region, png_message(region.panorama(PLACES[0])[:, :100]), "bad_image")


def test_black_image_is_refused(vehicle, region):
    refused(vehicle, region, png_message(np.zeros((128, 256, 3), np.uint8)), "black_image")


def test_image_from_before_is_refused(vehicle, region):
    stamp = vehicle.show(region.panorama(PLACES[0]))
    vehicle.fix_for(stamp)
    vehicle.clear()
    vehicle.rejection_of(vehicle.show(region.panorama(PLACES[1]), stamp - 50_000_000), "bad_stamp")


def test_stamp_of_zero_and_one_in_the_future_are_refused(vehicle, region):
    now = vehicle.node.get_clock().now().nanoseconds
    for stamp in (0, now + 3_600_000_000_000):
        vehicle.rejection_of(vehicle.show(region.panorama(PLACES[0]), stamp), "bad_stamp")
        vehicle.fix_for(vehicle.show(region.panorama(PLACES[0])))


@pytest.mark.parametrize(
    ("topic", "message", "frame", "reason"),
    [
        ("/odometry", odometry_message(math.nan, 0.0, 0.0), "map", "odometry: not finite"),
        ("/odometry", odometry_message(0.0, 0.0, 0.0, variance=math.nan), "map", "odometry: bad covariance"),
        ("/imu", Imu(), "base_link", "imu: "),
        ("/initial_pose", PoseWithCovarianceStamped(), "odom", "initial pose: in frame 'odom'"),
    ],
)
def test_motion_that_cannot_be_used_is_refused(vehicle, region, topic, message, frame, reason):
    if isinstance(message, Imu):
        message.orientation.w = 0.0  # no rotation at all
    vehicle.wait_for(lambda: vehicle.publisher(topic).get_subscription_count(), "subscription")

    def is_refused(status):
        vehicle.publish(topic, message, vehicle.next_stamp(), frame)  # best effort: the first ones may be lost
        return any(key.startswith(f"refused.{reason}") for key in values(status))

    status = vehicle.wait_for_status("inputs", is_refused, "refusal")
    assert status.level == b"\x01"
    if isinstance(message, Imu):  # there never was another one
        assert status.message == "every imu message is refused, no orientation: the panorama is not levelled"
    else:
        assert f"refused {reason}" in status.message
    vehicle.fix_for(vehicle.show(region.panorama(PLACES[0])))


def test_stopped_camera_is_reported_and_may_resume(vehicle, region):
    vehicle.fix_for(vehicle.show(region.panorama(PLACES[0])))
    status = vehicle.wait_for_status("camera", lambda s: s.level == b"\x02", "missing images")
    assert "no image for" in status.message
    vehicle.fix_for(vehicle.show(region.panorama(PLACES[1])))
    vehicle.wait_for_status("camera", lambda s: s.level < b"\x02" and "no image" not in s.message, "images")


def test_black_images_are_counted_in_the_camera_s_status(vehicle, region):
    for _ in range(3):
        vehicle.rejection_of(vehicle.show(np.zeros((128, 256, 3), np.uint8)), "black_image")
    status = vehicle.wait_for_status("camera", lambda s: "black" in s.message, "black images")
    assert status.level == b"\x01"
    assert float(values(status)["black_rate_hz"]) >= 3 / 5
    assert float(values(status)["frozen_rate_hz"]) == 0.0


def test_outcome_names_the_source_of_the_heading_and_the_prior(vehicle, region):
    vehicle.fix_for(vehicle.show(region.panorama(PLACES[0])))
    status = vehicle.wait_for_status("localization", lambda s: "last.heading_source" in values(s), "heading")
    assert values(status)["last.heading_source"] == "constant"
    assert values(status)["last.prior"] == "none"


def test_only_the_newest_of_a_burst_is_localized(vehicle, region):
    """Twelve images at once: those that waited are dropped and counted, the last one is not."""
    messages = [jpeg_message(region.panorama((x, 5.0), height=512), 0, "camera") for x in range(12)]
    before = int(values(vehicle.wait_for_status("camera", lambda s: True, "camera"))["dropped_for_newer"])
    for message in messages:
        vehicle.publish("/image/compressed", message, last := vehicle.next_stamp())
    vehicle.fix_for(last)
    status = vehicle.wait_for_status("camera", lambda s: int(values(s)["dropped_for_newer"]) > before, "drops")
    assert len(vehicle.received["~/fix"]) < 12
    assert int(values(status)["dropped_for_newer"]) - before <= 11
    stamps = [stamp_of(m) for m in vehicle.received["~/fix"]]
    assert stamps == sorted(set(stamps))


# -- services and parameters -------------------------------------------------------------------------------------------


def test_disabled_node_is_silent_and_a_trigger_gives_one_fix(vehicle, region):
    assert vehicle.enable(False).success
    vehicle.show(region.panorama(PLACES[0]))
    status = vehicle.wait_for_status("localization", lambda s: s.message.startswith("disabled"), "disabled")
    assert values(status)["enabled"] == "False"
    assert not vehicle.received["~/fix"]
    vehicle.show(region.panorama(PLACES[0]))  # the camera is alive
    assert vehicle.trigger().success
    wanted = vehicle.show(region.panorama(PLACES[1]))
    vehicle.fix_for(wanted)
    vehicle.show(region.panorama(PLACES[1]))
    vehicle.spin(0.5)
    assert len(vehicle.received["~/fix"]) == 1
    assert vehicle.enable(True).success
    vehicle.fix_for(vehicle.show(region.panorama(PLACES[0])))


def test_trigger_without_images_reports_failure(vehicle):
    vehicle.spin(1.2)
    answer = vehicle.trigger()
    assert not answer.success
    assert "no image for" in answer.message


def test_localized_says_whether_there_was_a_fix_and_reaches_late_listeners(vehicle, region):
    def late_listener():
        heard = []
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        subscription = vehicle.node.create_subscription(Bool, f"{NODE}/localized", heard.append, latched)
        vehicle.wait_for(lambda: heard, "localized")
        vehicle.node.destroy_subscription(subscription)
        return heard[-1].data

    vehicle.fix_for(vehicle.show(region.panorama(PLACES[0])))
    assert late_listener()
    assert vehicle.reset().success
    assert not late_listener()
    vehicle.fix_for(vehicle.show(region.panorama(PLACES[0])))
    assert late_listener()


def test_many_enable_cycles(vehicle, region):
    for cycle in range(20):
        assert vehicle.enable(cycle % 2 == 1).success
        if cycle % 4 == 1:
            vehicle.fix_for(vehicle.show(region.panorama(PLACES[cycle % 3])))


def test_reset_clears_the_session(vehicle, region):
    """After a reset an older stamp is accepted: the drive starts again."""
    stamp = vehicle.show(region.panorama(PLACES[0]))
    vehicle.fix_for(stamp)
    assert vehicle.reset().success
    status = vehicle.wait_for_status("localization", lambda s: s.message == "no image yet", "a forgotten drive")
    assert not any(key.startswith(("last.", "track")) for key in values(status))
    vehicle.fix_for(vehicle.show(region.panorama(PLACES[1]), stamp - 500_000_000))


def test_gate_changes_live_and_rejects_with_its_value(vehicle, region):
    assert vehicle.set_parameter("localizer.gate_sigma_m", 0.1).successful
    status = vehicle.rejection_of(vehicle.show(region.panorama(PLACES[0])), "uncertain")
    assert "0.1" in status.message
    assert vehicle.set_parameter("localizer.gate_sigma_m", 1000.0).successful
    vehicle.fix_for(vehicle.show(region.panorama(PLACES[0])))


def test_rate_limit_changes_live(vehicle, region):
    assert vehicle.set_parameter("session.minimum_interval_s", 10.0).successful
    vehicle.fix_for(vehicle.show(region.panorama(PLACES[0]), vehicle.next_stamp(11.0)))
    vehicle.rejection_of(vehicle.show(region.panorama(PLACES[0])), "rate_limit")
    assert vehicle.set_parameter("session.minimum_interval_s", 0.0).successful


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("bundle", "/elsewhere", "read when the node is configured"),
        ("localizer.candidates", 7, "read when the node is configured"),
        ("localizer.gate_ambiguity", 1.5, "range|between"),
        ("localizer.gate_ambiguity", "much", "type|number"),
    ],
)
def test_change_that_cannot_be_made_is_refused_with_the_reason(vehicle, name, value, why):
    result = vehicle.set_parameter(name, value)
    assert not result.successful
    assert any(word in result.reason.lower() for word in why.split("|")), result.reason
