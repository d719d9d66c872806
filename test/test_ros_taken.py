"""A subscription that the executor does not wait for, over real DDS."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("rclpy")

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_drive import domain_id
from sensor_msgs.msg import Imu

from unifygeo_ros.ros import taken
from unifygeo_ros.ros.taken import TakenMessages

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks


class Listener:
    """A node with an executor, an IMU that is taken, and one that is awaited, for comparison."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain_id())
        self.node = rclpy.create_node("listener", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.used: list[tuple[str, int]] = []
        self.known = {"known"}
        self.events: list[object] = []
        self.taken = TakenMessages(self._use, lambda message: message.header.frame_id in self.known)
        callbacks = SubscriptionEventCallbacks(incompatible_qos=self.events.append)
        self.subscription = self.node.create_subscription(
            Imu, "imu", self._use, QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE),
            callback_group=self.taken.group, event_callbacks=callbacks,
        )  # fmt: skip
        self.taken.open(self.subscription)
        self.publisher = self.node.create_publisher(Imu, "imu", 100)

    def _use(self, message: Imu) -> None:
        self.used.append((message.header.frame_id, threading.get_ident()))

    def publish(self, *frames: str) -> None:
        deadline = time.monotonic() + 20.0
        while not self.publisher.get_subscription_count():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for frame in frames:
            message = Imu()
            message.header.frame_id = frame
            self.publisher.publish(message)
        time.sleep(0.3)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def close(self) -> None:
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def listener(monkeypatch):
    made = Listener(monkeypatch)
    yield made
    made.close()


def test_messages_are_used_in_order_when_they_are_taken_and_not_before(listener):
    frames = [f"{n}" for n in range(20)]
    listener.publish(*frames)
    listener.spin(0.5)
    assert listener.used == []
    listener.taken.take(executor=True)
    assert [frame for frame, _ in listener.used] == frames
    listener.taken.take(executor=True)
    assert len(listener.used) == 20


def test_executor_is_not_woken_by_messages_but_now_and_then(listener, monkeypatch):
    """Each wait asks once whether it is for the subscription: twenty messages would make twenty waits."""
    waits = []
    original = taken.NotAwaited.can_execute
    monkeypatch.setattr(
        taken.NotAwaited, "can_execute", lambda group, entity: waits.append(entity) or original(group, entity)
    )
    listener.taken.period()
    assert not listener.taken.group.events
    publisher = threading.Thread(target=lambda: [listener.publish("known") for _ in range(5)])
    publisher.start()
    listener.spin(1.8)
    publisher.join()
    assert waits.count(listener.subscription) <= 3
    assert listener.used == []
    seen = []
    for _ in range(2 * taken.EVENTS_EACH):
        listener.taken.period()
        seen.append(listener.taken.group.events)
    assert sum(seen) == 2
    assert len(listener.used) == 5


def test_another_thread_leaves_what_is_not_settled_to_the_executor_s(listener):
    listener.publish("known", "unknown", "known")
    other = threading.Thread(target=listener.taken.take, kwargs={"executor": False})
    other.start()
    other.join()
    assert [frame for frame, _ in listener.used] == ["known"]
    assert listener.used[0][1] == other.ident
    listener.taken.take(executor=True)
    assert [frame for frame, _ in listener.used] == ["known", "unknown", "known"]
    assert listener.used[2][1] == threading.get_ident()


def test_publisher_whose_qos_does_not_fit_is_reported_within_the_periods(listener):
    quality = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    timer = listener.node.create_timer(0.02, listener.taken.period)
    listener.node.create_publisher(Imu, "imu", quality)
    deadline = time.monotonic() + 20.0
    while not listener.events:
        assert time.monotonic() < deadline
        listener.spin(0.1)
    listener.node.destroy_timer(timer)


def test_after_close_nothing_is_taken(listener):
    listener.publish("known")
    listener.taken.close()
    listener.node.destroy_subscription(listener.subscription)
    listener.taken.take(executor=True)
    assert listener.used == []
