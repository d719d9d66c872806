"""A replay against the live node: the same drive, played over DDS in real time, gives the same fixes."""

import numpy as np
import pytest

pytest.importorskip("rclpy")

from drives import write_drive
from ros_drive import Vehicle, domain_id, end_node, make_region, stamp_of, start_node, values

from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.conversions.message_values import pose_covariance, quaternion_of_yaw
from unifygeo_ros.core.records import Fix
from unifygeo_ros.demo.player import BagPlayer
from unifygeo_ros.evaluation.evaluate import ReplayRequest, evaluate
from unifygeo_ros.evaluation.metrics.results import read_frames
from unifygeo_ros.parameters.settings import NodeConfig, Settings
from unifygeo_ros.sessions.config import SessionConfig

IMAGE_TOPIC = "/camera/image/compressed"
IMAGES = 10


def test_replay_equals_the_live_nodes_fixes(tmp_path):
    region = make_region(tmp_path)
    # Images arrive 100 ms after their exposure, as cameras deliver them; the IMU samples about the exposure have then
    # arrived however the scheduler treats the two processes.
    bag = write_drive(
        tmp_path / "drive", region.world, open_index(region.index).frame, seconds=IMAGES - 1, image_rate=1.0,
        image_delay_s=0.1,
    )  # fmt: skip
    session = SessionConfig(mode="single", heading_source="imu", camera_check_images=0)
    evaluate(
        ReplayRequest(
            bag,
            region.index,
            region.bundle,
            tmp_path / "out.mcap",
            truth_topic="/ground_truth/odometry",
            settings=Settings(node=NodeConfig(backend="onnx_cpu", threads=1), session=session),
            quiet=True,
        )
    )
    replayed = {
        frame.outcome.stamp_ns: frame.outcome
        for frame in read_frames(tmp_path / "out.frames.jsonl")
        if isinstance(frame.outcome, Fix)
    }
    live = play_live(region, bag, session, tmp_path)
    assert len(live) >= 3
    assert live.keys() == replayed.keys()
    for stamp, message in live.items():
        fix, pose = replayed[stamp], message.pose.pose
        assert (pose.position.x, pose.position.y) == (fix.east_m, fix.north_m)
        q = pose.orientation
        assert (q.x, q.y, q.z, q.w) == quaternion_of_yaw(fix.yaw_rad)
        expected = pose_covariance(fix.covariance_m2, fix.yaw_variance_rad2)
        np.testing.assert_array_equal(message.pose.covariance, expected)


def play_live(region, bag, session, folder):
    """The fixes, by stamp, of a node to which the bag is played in real time."""
    parameters = {
        "bundle": str(region.bundle),
        "index": str(region.index),
        "backend": "onnx_cpu",
        "threads": 1,
        "image_transport": "compressed",
        "reliability": "reliable",
        "use_sim_time": True,
        **{f"session.{name}": getattr(session, name) for name in ("mode", "heading_source", "camera_check_images")},
    }
    domain = domain_id()
    remaps = {"image/compressed": IMAGE_TOPIC, "odometry": "/odom", "imu": "/imu/data"}
    node = start_node(domain, parameters, folder, remaps)
    vehicle = Vehicle(domain)
    vehicle.image_topic = IMAGE_TOPIC
    try:
        assert vehicle.change_state("configure"), node.output()
        assert vehicle.change_state("activate"), node.output()
        player = BagPlayer(vehicle.node, bag, without=["/ground_truth/odometry", "/ground_truth/navsat"])
        for topic in (IMAGE_TOPIC, "/imu/data"):
            player.wait_for_subscribers(topic, 15.0)
        vehicle.be_found()
        player.play(after=lambda topic, data: vehicle.executor.spin_once(timeout_sec=0))
        player.close()
        # Every image has an outcome: none was dropped.
        vehicle.wait_for_status(
            "localization",
            lambda status: int(values(status)["fixes"]) + int(values(status)["rejections"]) == IMAGES,
            f"outcome of all {IMAGES} images",
        )
        vehicle.spin(0.3)
        return {stamp_of(message): message for message in vehicle.received["~/fix"]}
    finally:
        vehicle.close()
        end_node(node)
