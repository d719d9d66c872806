"""The node as a process, and a vehicle that talks to it over DDS: what the tests of the node share.

Every vehicle has a DDS domain of its own, so that tests that run at the same time do not hear each other.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import cv2
import numpy as np
import rclpy
import yaml
from colour_region import write_colour_region
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import OccupancyGrid, Odometry
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, Imu, NavSatFix
from std_srvs.srv import SetBool, Trigger
from worlds import World

from unifygeo_ros.demo.node_process import NodeProcess

ROOT = Path(__file__).parent.parent
END_TIMEOUT_S = 30.0
NODE = "/unifygeo_localizer"
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}
# "reliable": a best-effort reader that has not discovered the writer yet loses the first image, on a busy machine.
OPEN_GATES = {
    "reliability": "reliable",
    "localizer.gate_ambiguity": 1.0,
    "localizer.gate_sigma_m": 1000.0,
    "localizer.gate_score": -4.0,
    "session.camera_check_images": 0,  # a network that was not trained confirms no mount
    "threads": 1,
    "backend": "onnx_cpu",
    "diagnostics_period_s": 0.1,
}


FACING_NORTH = {
    "image_transport": "compressed",
    "session.mode": "single",
    "session.heading_source": "constant",
    "session.heading_constant_rad": math.pi / 2,
}

_exposures = itertools.count()


@dataclass(frozen=True)
class Region:
    """A world with its bundle and index on disk."""

    world: World
    bundle: Path
    index: Path

    def panorama(self, place: tuple[float, float], height: int = 128) -> np.ndarray:
        """Full sphere from a place (m east, north of the centre), with the noise that tells a live camera from a frozen
        one: no two are equal."""
        pixels = self.world.panorama(*place, height=height).astype(np.int16)
        noise = np.random.default_rng(next(_exposures)).integers(-2, 3, pixels.shape, dtype=np.int16)
        return np.clip(pixels + noise, 0, 255).astype(np.uint8)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"bundle": str(self.bundle), "index": str(self.index), **OPEN_GATES}


def make_region(folder: Path) -> Region:
    return Region(write_colour_region(folder), folder / "bundle", folder / "index")


_domains = iter(range(1000))


def domain_id() -> int:
    """A DDS domain that no other test process on this machine uses at this moment, most likely."""
    return (os.getpid() * 7 + next(_domains)) % 100 + 1


def start_node(
    domain: int, parameters: dict[str, Any], folder: Path, remaps: Mapping[str, str] | None = None
) -> NodeProcess:
    """The node with these parameters, in a DDS domain; its log is in the folder."""
    file = folder / f"parameters_{time.monotonic_ns()}.yaml"
    file.write_text(yaml.safe_dump({NODE: {"ros__parameters": parameters}}))
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**_environment(domain), "PYTHONPATH": path}
    return NodeProcess(file, folder / f"node_{time.monotonic_ns()}.log", remaps=remaps, environment=environment)


def end_node(node: NodeProcess) -> None:
    """End a node that still runs, and print its log. Fails the test where it had to be killed."""
    killed = node.running and node.stop(timeout_s=END_TIMEOUT_S) == -signal.SIGKILL
    print(node.output())
    assert not killed, f"still running {END_TIMEOUT_S} s after SIGTERM"


_TOPIC_KINDS = {
    "/image": Image,
    "/image/compressed": CompressedImage,
    "/odometry": Odometry,
    "/imu": Imu,
    "/initial_pose": PoseWithCovarianceStamped,
    "/clock": Clock,
}


@dataclass
class Vehicle:
    """Publishes what a vehicle's sensors do and keeps what the node answers."""

    domain: int
    use_clock: bool = False
    node_name: str = NODE
    received: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        os.environ.update(_environment(self.domain))
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        self.node = rclpy.create_node("vehicle", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._publishers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        for topic, kind in (
            ("~/fix", PoseWithCovarianceStamped),
            ("~/navsat", NavSatFix),
            ("~/hypotheses", PoseArray),
            ("~/heatmap", OccupancyGrid),
            ("~/debug_image/compressed", CompressedImage),
            ("/diagnostics", DiagnosticArray),
        ):
            name = topic.replace("~", self.node_name)
            self.received[topic] = []
            self.node.create_subscription(kind, name, self.received[topic].append, 50)
        self.stamp_ns = 1_000_000_000_000

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    # -- waiting ----------------------------------------------------------------------------------------------------

    def spin(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def wait_for(self, condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
        """Spin until a condition holds and return its value."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
            self.executor.spin_once(timeout_sec=0.05)
        return value

    def meet(self) -> None:
        """Spin until the node has found every reader made so far.

        That this side has found the node tells nothing of it: what the node sends meanwhile, a service's answer too, is
        lost. Readers are announced in order, so the first message on the newest one is the sign.
        """
        heard: list[Any] = []
        newest = self.node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 1)
        self.wait_for(lambda: heard, "diagnostics")
        self.node.destroy_subscription(newest)

    def be_found(self) -> None:
        """Spin until the node has found every writer made so far: what they send before that is lost.

        Writers are announced in order, so an answer to a request of the newest one is the sign. A request that came too
        soon is lost, too, and repeated.
        """
        newest = self.node.create_client(GetState, f"{self.node_name}/get_state")
        self.wait_for(newest.service_is_ready, "service get_state")
        asked = [newest.call_async(GetState.Request())]
        asked_s = time.monotonic()

        def answered() -> bool:
            nonlocal asked_s
            if time.monotonic() > asked_s + 1.0:
                asked.append(newest.call_async(GetState.Request()))
                asked_s = time.monotonic()
            return any(request.done() for request in asked)

        self.wait_for(answered, "answer of get_state")
        self.node.destroy_client(newest)

    def clear(self) -> None:
        for messages in self.received.values():
            messages.clear()

    # -- services ---------------------------------------------------------------------------------------------------

    def call(self, kind: type, name: str, request: Any, timeout_s: float = 60.0) -> Any:
        name = name.replace("~", self.node_name)
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
            self.wait_for(self._clients[name].service_is_ready, f"service {name}", timeout_s)
            self.meet()
        client = self._clients[name]
        self.wait_for(client.service_is_ready, f"service {name}", timeout_s)
        future = client.call_async(request)
        self.wait_for(future.done, f"answer of {name}", timeout_s)
        return future.result()

    def change_state(self, transition: str) -> bool:
        request = ChangeState.Request(transition=Transition(id=TRANSITIONS[transition]))
        return self.call(ChangeState, "~/change_state", request).success

    def state(self) -> str:
        return self.call(GetState, "~/get_state", GetState.Request()).current_state.label

    def bring_up(self) -> None:
        assert self.change_state("configure")
        assert self.change_state("activate")
        self.wait_for(lambda: self.publisher(self.image_topic).get_subscription_count(), "image subscription")

    def enable(self, on: bool) -> Any:
        return self.call(SetBool, "~/enable", SetBool.Request(data=on))

    def trigger(self) -> Any:
        return self.call(Trigger, "~/trigger", Trigger.Request())

    def reset(self) -> Any:
        return self.call(Trigger, "~/reset", Trigger.Request())

    def set_parameter(self, name: str, value: Any) -> Any:
        parameter = Parameter(name, value=value).to_parameter_msg()
        assert parameter.value.type != ParameterType.PARAMETER_NOT_SET
        response = self.call(SetParameters, "~/set_parameters", SetParameters.Request(parameters=[parameter]))
        return response.results[0]

    # -- sensors ----------------------------------------------------------------------------------------------------

    image_topic = "/image/compressed"

    def publisher(self, topic: str, kind: type | None = None, reliability: str = "reliable") -> Any:
        key = f"{topic} {reliability}"
        if key not in self._publishers:
            kind = kind or _TOPIC_KINDS[topic]
            qos = QoSProfile(
                depth=10,
                reliability=getattr(ReliabilityPolicy, reliability.upper()),
                durability=DurabilityPolicy.VOLATILE,
            )
            self._publishers[key] = self.node.create_publisher(kind, topic, qos)
        return self._publishers[key]

    def next_stamp(self, step_s: float = 0.1) -> int:
        self.stamp_ns += round(step_s * 1e9)
        return self.stamp_ns

    def publish(self, topic: str, message: Any, stamp_ns: int, frame_id: str = "camera", **options: Any) -> None:
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
        message.header.frame_id = frame_id
        self.publisher(topic, **options).publish(message)

    def show(self, pixels: np.ndarray, stamp_ns: int | None = None, **options: Any) -> int:
        """Publish an image as PNG. pixels: uint8 (H, W, 3) RGB. Returns its stamp."""
        stamp_ns = self.next_stamp() if stamp_ns is None else stamp_ns
        self.publish(self.image_topic, png_message(pixels), stamp_ns, **options)
        return stamp_ns

    # -- answers ----------------------------------------------------------------------------------------------------

    def fix_for(self, stamp_ns: int, timeout_s: float = 60.0) -> PoseWithCovarianceStamped:
        """The fix of the image with that stamp."""

        def found() -> Any:
            return next((m for m in self.received["~/fix"] if stamp_of(m) == stamp_ns), None)

        try:
            return self.wait_for(found, f"fix for {stamp_ns}", timeout_s)
        except AssertionError as error:
            told = {part: self.status(part) for part in ("localization", "inputs", "camera")}
            raise AssertionError(f"{error}; last: {told}") from None

    def status(self, part: str) -> DiagnosticStatus | None:
        """The newest diagnostic of a part: node, camera, localization, inputs."""
        for message in reversed(self.received["/diagnostics"]):
            for status in message.status:
                if status.name == f"{self.node_name[1:]}: {part}":
                    return status
        return None

    def rejection_of(self, stamp_ns: int, reason: str) -> DiagnosticStatus:
        """The diagnostic that tells why the image of that stamp gave no fix."""

        def told(status: DiagnosticStatus) -> bool:
            return values(status).get("last.stamp") == _seconds(stamp_ns)

        status = self.wait_for_status("localization", told, f"outcome of {stamp_ns}")
        assert status.message.startswith(reason), status.message
        assert status.level > DiagnosticStatus.OK
        assert all(stamp_of(fix) != stamp_ns for fix in self.received["~/fix"])
        return status

    def wait_for_status(self, part: str, condition: Callable[[DiagnosticStatus], Any], what: str) -> DiagnosticStatus:
        self.received["/diagnostics"].clear()

        def holds() -> DiagnosticStatus | None:
            status = self.status(part)
            return status if status is not None and condition(status) else None

        try:
            return self.wait_for(holds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; last: {self.status(part)}") from None


def _seconds(stamp_ns: int) -> str:
    """As the diagnostics write a stamp."""
    return f"{stamp_ns // 1_000_000_000}.{stamp_ns % 1_000_000_000:09d}"


@contextmanager
def running(
    region: Region, folder: Path, parameters: dict[str, Any], image_topic: str = "/image/compressed"
) -> Iterator[Vehicle]:
    """A vehicle that faces north, with an active node that is told so. The node's log is printed at the end."""
    domain = domain_id()
    node = start_node(domain, {**region.parameters, **FACING_NORTH, "autostart": True, **parameters}, folder)
    vehicle = Vehicle(domain)
    vehicle.image_topic = image_topic
    try:
        publisher = vehicle.publisher(image_topic)
        vehicle.wait_for(publisher.get_subscription_count, "image subscription", 60.0)
        vehicle.meet()
        yield vehicle
    finally:
        vehicle.close()
        end_node(node)


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {item.key: item.value for item in status.values}


def stamp_of(message: Any) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def png_message(pixels: np.ndarray) -> CompressedImage:
    encoded = cv2.imencode(".png", pixels[:, :, ::-1])[1]
    return CompressedImage(format="png", data=encoded.tobytes())


def odometry_message(x_m: float, y_m: float, yaw_rad: float, variance: float = 0.04) -> Odometry:
    message = Odometry(child_frame_id="base_link")
    message.pose.pose.position.x, message.pose.pose.position.y = x_m, y_m
    message.pose.pose.orientation.z, message.pose.pose.orientation.w = math.sin(yaw_rad / 2), math.cos(yaw_rad / 2)
    message.pose.covariance = np.diag([variance, variance, 1.0, 1.0, 1.0, variance / 40]).ravel()
    return message


def _environment(domain: int) -> dict[str, str]:
    return {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "OMP_NUM_THREADS": "1"}
