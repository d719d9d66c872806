"""~/pose, map → odom, fromLL and toLL over real DDS, seen by real tf2 where it is installed."""

import math
import re
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy")

import rclpy
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.time import Time
from ros_drive import (
    FACING_NORTH,
    Vehicle,
    domain_id,
    end_node,
    make_region,
    odometry_message,
    running,
    stamp_of,
    start_node,
    values,
)
from test_map_to_odom import REGION, START, odometry, stamp, status, truth

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.core.records import Rejection, RejectionReason
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.parameters.settings import Settings, with_values
from unifygeo_ros.ros import pose_output
from unifygeo_ros.ros.geographic_services import GeographicServices
from unifygeo_ros.ros.pose_output import PoseOutput
from unifygeo_ros.sessions.outcome import Outcome
from unifygeo_ros.tracking.track import TrackState

SEQUENCE = {"session.mode": "sequence"}


@pytest.fixture
def region(tmp_path):
    return make_region(tmp_path)


class Bench:
    """A lifecycle node that publishes poses, and another node that listens as nav2 does."""

    def __init__(self, **parameters):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain_id())
        self.node = LifecycleNode("unifygeo_localizer", context=self.context)
        self.other = rclpy.create_node("listener", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        for node in (self.node, self.other):
            self.executor.add_node(node)
        self.poses = []
        self.other.create_subscription(PoseWithCovarianceStamped, "/unifygeo_localizer/pose", self.poses.append, 100)
        self.output = PoseOutput(self.node, with_values(Settings(), {**SEQUENCE, **parameters}), REGION)
        self.node.trigger_configure()
        self.node.trigger_activate()
        if parameters.get("publish_tf"):
            import tf2_ros

            self.buffer = tf2_ros.Buffer()
            self.listener = tf2_ros.TransformListener(self.buffer, self.other, spin_thread=False)
            self.broadcaster = tf2_ros.TransformBroadcaster(self.other)

    def spin_until(self, condition, what):
        for _ in range(1000):
            if condition():
                return
            for _ in range(8):  # each message has several readers: what waits must not become more
                self.executor.spin_once(timeout_sec=0.003)
        raise AssertionError(f"no {what}")

    def fix(self, time_s, start=START):
        self.outcome(types.SimpleNamespace(stamp_ns=stamp(time_s)), status(start.compose(truth(time_s))))

    def outcome(self, result, track):
        self.output._map_to_odom.image(result.stamp_ns, fixed=not isinstance(result, Rejection), track=track)

    def close(self):
        self.output.close()
        self.executor.shutdown()
        for node in (self.node, self.other):
            node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def bench():
    """bench(**parameters) → Bench."""
    benches = []

    def make(**parameters):
        benches.append(Bench(**parameters))
        return benches[-1]

    yield make
    for made in benches:
        made.close()


def without(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_publish_tf_without_tf2_is_refused_with_the_remedy(bench, monkeypatch):
    without(monkeypatch, "tf2_ros", "tf2_msgs", "tf2_msgs.msg")
    with pytest.raises(ConfigurationError, match="set publish_tf to false"):
        bench(publish_tf=True)


def test_ll_services_without_robot_localization_are_refused(bench, monkeypatch):
    without(monkeypatch, "robot_localization", "robot_localization.srv")
    with pytest.raises(ConfigurationError, match="set ll_services to false"):
        GeographicServices(bench().node, LocalFrame(Datum(48.5, 9.0)))


def test_pose_is_published_for_each_odometry_sample_with_its_stamp(bench):
    bench = bench()
    bench.spin_until(lambda: bench.output._publisher.get_subscription_count(), "subscription")
    for tick in range(20):
        bench.output.on_odometry(odometry(tick / 20), "odom")
    bench.fix(0.5)
    for tick in range(20, 40):
        bench.output.on_odometry(odometry(tick / 20), "odom")
    bench.spin_until(lambda: len(bench.poses) == 20, "20 poses")
    assert [stamp_of(pose) for pose in bench.poses] == [stamp(tick / 20) for tick in range(20, 40)]
    last, expected = bench.poses[-1].pose, START.compose(truth(39 / 20))
    assert (last.pose.position.x, last.pose.position.y, last.pose.position.z) == pytest.approx(
        (expected.x_m, expected.y_m, 0.0)
    )
    assert 2 * math.atan2(last.pose.orientation.z, last.pose.orientation.w) == pytest.approx(expected.yaw_rad)
    assert bench.poses[-1].header.frame_id == "map"
    assert last.covariance[0] > 0.3**2
    assert last.covariance[14] == 100.0


def test_imagery_error_is_part_of_the_poses_and_is_live(bench):
    bench, told = bench(), []
    for number, sigma_m in enumerate((0.0, 2.0)):
        settings = with_values(Settings(), {**SEQUENCE, "localizer.imagery_sigma_m": sigma_m})
        bench.output.reset()
        bench.output.reconfigure(settings)
        for tick in range(20):
            bench.output.on_odometry(odometry(10.0 * number + tick / 20), "odom")
        bench.fix(10.0 * number + 0.5)
        count = len(bench.poses)
        bench.output.on_odometry(odometry(10.0 * number + 1.0), "odom")
        bench.spin_until(lambda before=count: len(bench.poses) > before, "pose")
        told.append(np.array(bench.poses[-1].pose.covariance).reshape(6, 6))
    np.testing.assert_allclose(told[1] - told[0], np.diag([4.0, 4.0, 0, 0, 0, 0]), atol=0.01)


def test_refused_image_and_a_changed_odometry_frame(bench):
    """An image that was refused carries the track of an earlier one, so it must not be taken in."""
    bench = bench()
    for tick in range(20):
        bench.output.on_odometry(odometry(tick / 20), "odom")
    bench.fix(0.5)
    refused = Rejection(stamp(0.95), RejectionReason.RATE_LIMIT, "too soon")
    bench.output.follow(Outcome(refused, None, track=status(None, TrackState.LOST)))
    assert bench.output.report("n").message == "tracking"
    bench.output.on_odometry(odometry(1.0), "visual_odom")
    assert bench.output.report("n").message == "no fix yet"


def test_odometry_that_ends_is_a_warning_since_nothing_is_published(bench, monkeypatch):
    """nav2 sees map → odom grow old; the diagnostic must not go on saying "tracking"."""
    bench = bench()
    for tick in range(20):
        bench.output.on_odometry(odometry(tick / 20), "odom")
    bench.fix(0.5)
    bench.output.on_odometry(odometry(1.0), "odom")
    assert bench.output.report("n").message == "tracking"
    now_s = time.monotonic()
    monkeypatch.setattr(pose_output, "time", types.SimpleNamespace(monotonic=lambda: now_s + 4.0))
    told = bench.output.report("n")
    assert told.level == b"\x01"
    assert told.message.startswith("no odometry for 4.0 s: ~/pose and map → odom stand still")
    bench.output.on_odometry(odometry(1.05), "odom")
    assert bench.output.report("n").message == "tracking"


def test_map_to_base_from_tf_is_at_newest_odometry(bench):
    """As nav2 looks it up: map → base_link, where odom → base_link comes from the odometry's driver."""
    pytest.importorskip("tf2_ros")
    bench = bench(publish_tf=True)
    for tick in range(20):
        bench.output.on_odometry(odometry(tick / 20), "robot1/odom")
    bench.fix(0.5)
    newest = odometry(1.0)
    driver = TransformStamped(child_frame_id="base_footprint")
    driver.header.frame_id = "robot1/odom"
    driver.header.stamp = Time(nanoseconds=newest.stamp_ns).to_msg()
    driver.transform.translation.x, driver.transform.translation.y = newest.x_m, newest.y_m
    driver.transform.rotation.z, driver.transform.rotation.w = math.sin(0.1), math.cos(0.1)
    at = Time(nanoseconds=newest.stamp_ns)

    def found():
        bench.broadcaster.sendTransform(driver)
        bench.output.on_odometry(newest, "robot1/odom")
        return bench.buffer.can_transform("map", "base_footprint", at)

    bench.spin_until(found, "transform at the odometry's own stamp")
    translation = bench.buffer.lookup_transform("map", "base_footprint", at).transform.translation
    expected = START.compose(truth(1.0))
    assert (translation.x, translation.y, translation.z) == pytest.approx((expected.x_m, expected.y_m, 0.0))


def rival(x_m, stamp_ns, parent="map", child="odom"):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
    message.transform.translation.x = x_m
    return message


def test_second_publisher_of_map_to_odom_is_reported_by_name(bench):
    pytest.importorskip("tf2_ros")
    bench = bench(publish_tf=True)
    for tick in range(20):
        bench.output.on_odometry(odometry(tick / 20), "odom")
    bench.fix(0.5)
    number = iter(range(20, 10_000))
    for _ in range(40):
        bench.output.on_odometry(odometry(next(number) / 20), "odom")
        bench.broadcaster.sendTransform(rival(0.0, stamp(next(number) / 20), "odom", "base_link"))
        for _ in range(6):
            bench.executor.spin_once(timeout_sec=0.003)
    assert bench.buffer.can_transform("map", "odom", Time())
    assert bench.output.report("n").message == "tracking"

    def reported():
        bench.output.on_odometry(odometry(next(number) / 20), "odom")
        bench.broadcaster.sendTransform(rival(9.0, stamp(next(number) / 20)))
        return "another node publishes map → odom" in bench.output.report("n").message

    bench.spin_until(reported, "report of the rival")
    assert "/listener" in bench.output.report("n").message
    assert bench.output.report("n").level == b"\x02"


def test_static_map_to_odom_from_before_the_first_odometry_is_reported(bench):
    pytest.importorskip("tf2_ros")
    from tf2_ros import StaticTransformBroadcaster

    bench = bench(publish_tf=True)
    static = StaticTransformBroadcaster(bench.other)
    static.sendTransform(rival(0.0, 0))
    bench.spin_until(lambda: bench.output._transform._static_children, "static transform")
    bench.output.on_odometry(odometry(0.0), "odom")
    assert "another node publishes map → odom" in bench.output.report("n").message


def test_from_ll_and_to_ll_as_nav2_calls_them(bench):
    """East and north against the formula of a sphere's small angles, and the way back."""
    srv = pytest.importorskip("robot_localization.srv")
    bench = bench()
    frame = LocalFrame(Datum(48.5, 9.0, 400.0))
    services = GeographicServices(bench.node, frame)
    clients = {
        "/fromLL": bench.other.create_client(srv.FromLL, "/fromLL"),
        "/toLL": bench.other.create_client(srv.ToLL, "/toLL"),
    }

    def call(name, request):
        bench.spin_until(clients[name].service_is_ready, name)
        future = clients[name].call_async(request)
        bench.spin_until(future.done, "answer")
        return future.result()

    def from_ll(latitude, longitude):
        request = srv.FromLL.Request()
        request.ll_point.latitude, request.ll_point.longitude, request.ll_point.altitude = latitude, longitude, 12.0
        point = call("/fromLL", request).map_point
        return point.x, point.y, point.z

    # Radii of curvature of WGS84 at 48.5°, plus the datum's height: 6371 and 6390 km to a part in a thousand.
    east, north, up = from_ll(48.501, 9.002)
    assert east == pytest.approx(math.radians(0.002) * (6390.2e3 + 400) * math.cos(math.radians(48.5005)), rel=1e-3)
    assert north == pytest.approx(math.radians(0.001) * (6371.2e3 + 400), rel=1e-3)
    assert up == 0.0
    request = srv.ToLL.Request()
    request.map_point.x, request.map_point.y, request.map_point.z = east, north, 3.0
    back = call("/toLL", request).ll_point
    assert (back.latitude, back.longitude, back.altitude) == pytest.approx((48.501, 9.002, 400.0), abs=1e-9)
    # Where there is no answer, a goal of zeros would send the vehicle to the datum.
    for beyond in ((49.5, 9.0), (-48.5, -171.0), (91.0, 9.0), (math.nan, 9.0)):
        assert all(map(math.isnan, from_ll(*beyond))), beyond
    request.map_point.x = 1e6
    assert math.isnan(call("/toLL", request).ll_point.latitude)
    services.close()


def fill(message, values):
    """Set fields of a message from nested dicts, as `ros2 action send_goal` does; a name that it lacks is an error."""
    for name, value in values.items():
        if isinstance(value, dict):
            fill(getattr(message, name), value)
        else:
            assert name in message.get_fields_and_field_types()
            setattr(message, name, value)
    return message


def test_waypoints_of_the_nav2_page_are_what_nav2_takes_and_asks_from_ll_for(bench):
    """nav2's waypoint follower copies latitude, longitude and altitude of each of the goal's poses into the request."""
    goals = pytest.importorskip("nav2_msgs.action")
    geographic = pytest.importorskip("geographic_msgs.msg")
    srv = pytest.importorskip("robot_localization.srv")
    page = (Path(__file__).parents[1] / "docs/how-to/nav2.md").read_text()
    kind, text = re.search(r"nav2_msgs/action/(\w+) \\\n *\"(.*)\"$", page, re.MULTILINE).groups()
    given = yaml.safe_load(text)
    poses = [fill(geographic.GeoPose(), pose) for pose in given.pop("gps_poses")]
    goal = fill(getattr(goals, kind).Goal(gps_poses=poses), given)
    bench = bench()
    services = GeographicServices(bench.node, LocalFrame(Datum(48.5, 9.0)))
    client = bench.other.create_client(srv.FromLL, "/fromLL")
    bench.spin_until(client.service_is_ready, "/fromLL")
    (waypoint,) = goal.gps_poses
    request = srv.FromLL.Request(ll_point=waypoint.position)
    future = client.call_async(request)
    bench.spin_until(future.done, "answer")
    point = future.result().map_point
    # 0.0021° of longitude and 0.0012° of latitude from the datum, by the radii of curvature at 48.5°.
    assert point.x == pytest.approx(math.radians(0.0021) * 6390.2e3 * math.cos(math.radians(48.5006)), rel=1e-3)
    assert point.y == pytest.approx(math.radians(0.0012) * 6371.2e3, rel=1e-3)
    services.close()


# -- the whole node ---------------------------------------------------------------------------------------------------


def test_publish_tf_in_mode_single_is_refused_at_configuration(region, tmp_path):
    node = start_node(
        domain := domain_id(), {**region.parameters, **FACING_NORTH, "autostart": True, "publish_tf": True}, tmp_path
    )
    vehicle = Vehicle(domain)
    try:
        told = vehicle.wait_for_status("node", lambda s: "publish_tf is true" in s.message, "reason")
        assert "session.mode is single" in told.message
        assert vehicle.state() == "unconfigured"
    finally:
        vehicle.close()
        end_node(node)


def test_drive_gives_poses_at_the_odometry_rate_and_map_to_odom(region, tmp_path):
    """The vehicle drives east at 4 m/s, and its odometry starts elsewhere and faces elsewhere."""
    tf2_ros = pytest.importorskip("tf2_ros")
    parameters = {
        **SEQUENCE,
        "publish_tf": True,
        "session.heading_constant_rad": math.pi / 2,
        "tracker.confirm_images": 1.0,
        "tracker.confirm_ambiguity": 0.2,
        "tracker.keep_ambiguity": 0.5,
        "tracker.correlation_m": 1.0,
    }
    with running(region, tmp_path, parameters) as vehicle:
        buffer = tf2_ros.Buffer()
        listener = tf2_ros.TransformListener(buffer, vehicle.node, spin_thread=False)
        poses = []
        vehicle.node.create_subscription(PoseWithCovarianceStamped, "/unifygeo_localizer/pose", poses.append, 100)
        vehicle.publisher("/odometry")
        stamps = []

        def drive(second):
            """A second of odometry (the car faces north, and slides east: its x axis is the map's north)."""
            image_ns = vehicle.next_stamp(1.0)
            for tenth in range(10):
                stamps.append(image_ns - 900_000_000 + tenth * 100_000_000)
                along_m = 4.0 * second + 0.4 * (tenth - 9)
                vehicle.publish("/odometry", odometry_message(7.0, 3.0 - along_m, 0.0), stamps[-1], "odom")
            vehicle.spin(0.2)
            vehicle.show(region.panorama((-40.0 + 4.0 * second, 11.0)), image_ns)
            vehicle.spin(0.4)

        seconds = iter(range(30))
        while not vehicle.received["~/fix"]:
            drive(next(seconds))
        first = len(stamps)
        drive(last := next(seconds))
        vehicle.wait_for(lambda: poses and stamp_of(poses[-1]) == stamps[-1], "pose of the newest odometry")
        assert [stamp_of(pose) for pose in poses if stamp_of(pose) >= stamps[first]] == stamps[first:]
        at = Time(nanoseconds=stamps[-1])
        vehicle.wait_for(lambda: buffer.can_transform("map", "odom", at), "map → odom at the newest odometry")
        transform = buffer.lookup_transform("map", "odom", at).transform
        yaw = 2 * math.atan2(transform.rotation.z, transform.rotation.w)
        base = Pose2(transform.translation.x, transform.translation.y, yaw).compose(Pose2(7.0, 3.0 - 4.0 * last, 0.0))
        assert yaw == pytest.approx(math.pi / 2, abs=0.1)
        assert math.hypot(base.x_m - (-40.0 + 4.0 * last), base.y_m - 11.0) < 3.0
        assert values(vehicle.status("pose"))["publish_tf"] == "true"
        vehicle.change_state("deactivate")
        vehicle.wait_for_status("pose", lambda s: s.message == "no fix yet", "pose forgotten")
        listener.unregister()
