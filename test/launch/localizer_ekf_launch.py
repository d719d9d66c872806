"""A launch_testing test, run by test_ros_launch.py: the demo's drive through localizer_ekf.launch.py.

The node and both EKFs are the real ones. The drive is played three times as fast; halfway somebody publishes a fix
that is 15 m off and sure of itself.
"""

import copy
import math
import os
import threading
import unittest
from pathlib import Path

import launch_testing
import launch_testing.actions
import launch_testing.asserts
import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseWithCovarianceStamped
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from rosbags.highlevel import AnyReader
from tf2_ros import Buffer, TransformListener

from unifygeo_ros.demo.player import BagPlayer

ROOT = Path(__file__).parents[2]
BAG = ROOT / "demo/drive/bag"
SHARE = os.environ["UNIFYGEO_TEST_SHARE"]
FIX, LOCAL, GLOBAL = "/unifygeo_localizer/fix", "/odometry/local", "/odometry/global"
TRUTH = "/ground_truth/odometry"
RATE = 3.0
FALSE_FIX_S, FALSE_FIX_M = 40.0, 15.0


@pytest.mark.launch_test
def generate_test_description():
    both = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(f"{SHARE}/launch/localizer_ekf.launch.py"),
        launch_arguments={
            "bundle": str(ROOT / "models/towns-photo"),
            "index": os.environ["UNIFYGEO_TEST_INDEX"],
            "params_file": os.environ["UNIFYGEO_TEST_PARAMETERS"],
            "backend": "onnx_cpu",
            "image_transport": "compressed",
            "use_sim_time": "true",
        }.items(),
    )
    return LaunchDescription([both, launch_testing.actions.ReadyToTest()])


def stamp_s(message):
    return message.header.stamp.sec + message.header.stamp.nanosec / 1e9


def yaw(orientation):
    return 2 * math.atan2(orientation.z, orientation.w)


def poses(messages):
    """float64 (n, 4): stamp s, x m, y m, yaw rad."""
    return np.array([(stamp_s(m), m.pose.pose.position.x, m.pose.pose.position.y, yaw(m.pose.pose.orientation))
                     for m in messages])  # fmt: skip


def recorded_truth():
    with AnyReader([BAG]) as reader:
        connections = [c for c in reader.connections if c.topic == TRUTH]
        return poses([reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages(connections)])


def errors_m(track, truth):
    """Distance of each pose of a track from the truth at its stamp, metres."""
    east, north = (np.interp(track[:, 0], truth[:, 0], truth[:, axis]) for axis in (1, 2))
    return np.hypot(track[:, 1] - east, track[:, 2] - north)


class Driven(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        context = rclpy.Context()
        rclpy.init(context=context)
        node = rclpy.create_node("drive", context=context)
        cls.received = {LOCAL: [], GLOBAL: [], FIX: []}
        for topic, kind in ((LOCAL, Odometry), (GLOBAL, Odometry), (FIX, PoseWithCovarianceStamped)):
            node.create_subscription(kind, topic, cls.received[topic].append, 500)
        cls.tf = Buffer()
        TransformListener(cls.tf, node, spin_thread=False)
        liar = node.create_publisher(PoseWithCovarianceStamped, FIX, 10)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        thread = threading.Thread(target=executor.spin, daemon=True)
        thread.start()
        player = BagPlayer(node, BAG, rate=RATE, without=(TRUTH, "/ground_truth/navsat", "/tf_static"))
        cls.false_fix = None

        def lie(topic, data):
            fixes = cls.received[FIX]
            if cls.false_fix is None and fixes and stamp_s(fixes[-1]) > cls.truth[0, 0] + FALSE_FIX_S:
                cls.false_fix = copy.deepcopy(fixes[-1])
                cls.false_fix.header.stamp.nanosec += 1_000_000  # or it is dropped as older than the last
                cls.false_fix.pose.pose.position.x += FALSE_FIX_M
                liar.publish(cls.false_fix)

        cls.truth = recorded_truth()
        try:
            player.wait_for_subscribers("/camera/image/compressed", 60.0)
            player.wait_for_subscribers("/imu/data", 60.0)
            player.play(after=lie)
        finally:
            executor.shutdown()
            thread.join()
            player.close()
            node.destroy_node()
            rclpy.shutdown(context=context)

    def test_map_filter_is_where_the_vehicle_is(self):
        track = poses(self.received[GLOBAL])
        error = errors_m(track, self.truth)[track[:, 0] > self.truth[0, 0] + 10.0]
        assert np.median(error) < 0.6, np.quantile(error, (0.5, 0.95, 1.0))
        assert np.max(error) < 3.0, np.quantile(error, (0.5, 0.95, 1.0))

    def test_false_fix_among_right_ones_is_refused(self):
        assert self.false_fix is not None
        said_s = stamp_s(self.false_fix)
        track = poses(self.received[GLOBAL])
        after = (track[:, 0] > said_s) & (track[:, 0] < said_s + 2.0)
        assert after.sum() > 10
        assert np.max(errors_m(track[after], self.truth)) < 2.0

    def test_tf_map_to_base_link_equals_the_topics(self):
        assert self.tf.can_transform("map", "odom", Time())
        assert self.tf.can_transform("odom", "base_link", Time())
        by_tf = self.tf.lookup_transform("map", "base_link", Time())
        place = self.tf.lookup_transform("map", "base_link", Time()).transform.translation
        track = poses(self.received[GLOBAL])
        at = int(np.argmin(np.abs(track[:, 0] - stamp_s(by_tf))))
        # The two filters tick one after the other, so map → odom may be made with an odom → base_link of a tick before.
        assert math.hypot(place.x - track[at, 1], place.y - track[at, 2]) < 1.0

    def test_odom_filter_never_jumps(self):
        track = poses(self.received[LOCAL])
        steps = np.hypot(*np.diff(track[:, 1:3], axis=0).T)
        fastest_m_s = 25.0
        assert np.all(steps <= fastest_m_s * np.diff(track[:, 0]) + 0.2)


@launch_testing.post_shutdown_test()
class AfterShutdown(unittest.TestCase):
    def test_ekf_launch_ended_cleanly(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
