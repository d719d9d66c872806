"""The bag player over real DDS: every message arrives, unchanged and in order, and the clock never runs backwards."""

import itertools
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from pathlib import Path  # noqa: E402

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from rosbags.rosbag2 import StoragePlugin, Writer  # noqa: E402
from rosbags.typesys import Stores, get_typestore  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CompressedImage  # noqa: E402

from unifygeo_ros.core.errors import ConfigurationError, InputError  # noqa: E402
from unifygeo_ros.demo import player as player_module  # noqa: E402
from unifygeo_ros.demo.player import BagPlayer  # noqa: E402

COUNT = 20
PERIOD_NS = 50_000_000


def write_bag(folder: Path) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    image, header, clock_time = (
        store.types[name]
        for name in ("sensor_msgs/msg/CompressedImage", "std_msgs/msg/Header", "builtin_interfaces/msg/Time")
    )
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/camera/image/compressed", image.__msgtype__, typestore=store)
        for i in range(COUNT):
            stamp_ns = 10**18 + i * PERIOD_NS
            stamp = clock_time(*divmod(stamp_ns, 10**9))
            message = image(header(stamp, "camera"), "jpeg", np.full(100_000, i, np.uint8))
            writer.write(connection, stamp_ns, store.serialize_cdr(message, image.__msgtype__))


@pytest.fixture
def node(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=os.getpid() % 100 + 1)
    node = rclpy.create_node("player", context=context)
    yield node
    node.destroy_node()
    context.try_shutdown()


def test_every_message_arrives_in_order_and_the_clock_is_monotone(tmp_path, node):
    write_bag(tmp_path / "bag")
    player = BagPlayer(node, tmp_path / "bag", rate=4.0)
    assert player.duration_s == pytest.approx((COUNT - 1) * PERIOD_NS / 1e9, abs=1e-6)
    images, clock = [], []
    other = rclpy.create_node("listener", context=node.context)
    other.create_subscription(CompressedImage, "/camera/image/compressed", images.append, QoSProfile(depth=50))
    other.create_subscription(Clock, "/clock", clock.append, QoSProfile(depth=500))
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(other)
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        player.wait_for_subscribers("/camera/image/compressed", 10.0)
        player.play()
        for _ in range(100):
            if len(images) == COUNT:
                break
            stop.wait(0.05)
    finally:
        stop.set()
        thread.join()
        player.close()
        other.destroy_node()
    assert [message.data[0] for message in images] == list(range(COUNT))
    assert all(len(message.data) == 100_000 for message in images)
    stamps = [message.clock.sec * 10**9 + message.clock.nanosec for message in clock]
    assert len(stamps) >= COUNT
    assert stamps == sorted(stamps)


def test_clock_does_not_run_ahead_of_the_next_message(tmp_path, node, monkeypatch):
    """However late the thread wakes up: each look at the wall clock is 30 ms after the one before."""
    write_bag(tmp_path / "bag")
    player = BagPlayer(node, tmp_path / "bag", rate=1.0)
    ticks, looks = [], itertools.count()
    monkeypatch.setattr(player, "_tick", ticks.append)
    clock = SimpleNamespace(monotonic=lambda: 0.03 * next(looks), sleep=lambda seconds: None)
    monkeypatch.setattr(player_module, "time", clock)
    player.play()
    player.close()
    assert len(ticks) > COUNT
    assert ticks == sorted(ticks)


LISTENER = f"""
import sys, time, rclpy
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage
rclpy.init(domain_id=int(sys.argv[1]))
node, images = rclpy.create_node("listener"), []
node.create_subscription(CompressedImage, "/camera/image/compressed", images.append, QoSProfile(depth=50))
end = time.monotonic() + 20
while len(images) < {COUNT} and time.monotonic() < end:
    rclpy.spin_once(node, timeout_sec=0.05)
print(len(images))
"""


def test_player_may_be_closed_as_soon_as_it_has_played(tmp_path, node):
    """Another process has all that was played, however busy it was."""
    write_bag(tmp_path / "bag")
    arguments = [sys.executable, "-c", LISTENER, str(node.context.get_domain_id())]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as listener:
        player = BagPlayer(node, tmp_path / "bag", rate=200.0)
        player.wait_for_subscribers("/camera/image/compressed", 30.0)
        player.play()
        player.close()
        assert listener.communicate()[0] == f"{COUNT}\n"


def test_player_refuses_an_unusable_bag(tmp_path, node):
    with pytest.raises(InputError, match="cannot be opened"):
        BagPlayer(node, tmp_path / "none")
    write_bag(tmp_path / "bag")
    with pytest.raises(ConfigurationError, match="rate is 0"):
        BagPlayer(node, tmp_path / "bag", rate=0.0)
    player = BagPlayer(node, tmp_path / "bag")
    with pytest.raises(ConfigurationError, match="had no subscriber"):
        player.wait_for_subscribers("/camera/image/compressed", 0.1)
    with pytest.raises(ConfigurationError, match="does not hold /image"):
        player.wait_for_subscribers("/image", 0.1)
    player.close()
