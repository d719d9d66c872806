"""apply_estimates in the real node, over DDS: the images of a drive are stamped late."""

import math

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Log
from ros_drive import make_region, odometry_message, running, stamp_of, values
from visualization_msgs.msg import MarkerArray

LATE_S = 0.4
SECOND = 1_000_000_000


def east_m(time_s):
    """The vehicle goes to and fro, at up to 10 m/s."""
    return 25 * math.sin(time_s / 2.5)


def test_late_stamps_are_corrected_while_driving_and_the_node_says_so(tmp_path):
    region = make_region(tmp_path)
    parameters = {
        "apply_estimates": True,
        "session.mode": "sequence",
        "tracker.confirm_images": 1.0,
        "tracker.confirm_ambiguity": 0.2,
        "tracker.keep_ambiguity": 0.5,
        "tracker.correlation_m": 1.0,
    }
    with running(region, tmp_path, parameters) as vehicle:
        outcomes, log, tracks = [], [], []
        vehicle.node.create_subscription(MarkerArray, "/unifygeo_localizer/track", tracks.append, 1)
        vehicle.node.create_subscription(DiagnosticArray, "/unifygeo_localizer/outcome", outcomes.append, 50)
        vehicle.node.create_subscription(Log, "/rosout", lambda message: log.append(message.msg), 100)
        vehicle.publisher("/odometry")
        vehicle.meet()
        start_ns = vehicle.stamp_ns

        def drive():
            """An image that was exposed LATE_S before its stamp; the odometry is 0.6 s ahead. Returns the stamp."""
            image_ns = vehicle.next_stamp(0.6)
            for tenth in range(1, 7):
                stamp_ns = image_ns + tenth * SECOND // 10
                north_facing = odometry_message(0.0, -east_m((stamp_ns - start_ns) / SECOND), 0.0)
                vehicle.publish("/odometry", north_facing, stamp_ns, "odom")
            seen = len(outcomes)
            exposed_s = (image_ns - start_ns) / SECOND - LATE_S
            vehicle.show(region.panorama((east_m(exposed_s), 11.0)), image_ns)
            vehicle.wait_for(lambda: len(outcomes) > seen, "outcome")
            return image_ns

        def corrected(count=60):
            for _ in range(count):
                drive()
                if any("from now on" in line for line in log):
                    return
            raise AssertionError(f"no correction in {count} images")

        corrected()
        drive()
        status = vehicle.wait_for_status(
            "camera", lambda s: float(values(s)["stamps_corrected_s"]) < 0, "corrected stamps"
        )
        applied_s = float(values(status)["stamps_corrected_s"])
        assert applied_s == pytest.approx(-LATE_S, abs=0.1)
        assert f"stamps are corrected by {applied_s:.3f} s (apply_estimates)" in status.message
        (line,) = [line for line in log if "from now on" in line]
        assert f"session.stamp_offset_s is {applied_s:.3f} from now on, was 0.000" in line
        for _ in range(3):
            image_ns = drive()
        fix = vehicle.fix_for(image_ns + round(applied_s * SECOND))
        exposed_s = (image_ns - start_ns) / SECOND - LATE_S
        assert math.hypot(fix.pose.pose.position.x - east_m(exposed_s), fix.pose.pose.position.y - 11.0) < 1.5
        stamps = [stamp_of(message) for message in vehicle.received["~/fix"]]
        assert stamps == sorted(set(stamps))
        assert values(vehicle.status("localization"))["fixes_not_published"] == "0"
        # RViz shows the drive as a line, and the outcome in words.
        vehicle.wait_for(lambda: tracks, "track")
        line, words = tracks[-1].markers
        assert len(line.points) > 10
        assert max(abs(point.x) for point in line.points) < 30.0
        assert words.text.startswith("fix")
        # Off again: what the parameters say.
        assert vehicle.set_parameter("apply_estimates", False).successful
        drive()
        drive()
        vehicle.wait_for_status(
            "camera", lambda s: values(s)["stamps_corrected_s"] == "0.000", "the parameters' stamps"
        )
