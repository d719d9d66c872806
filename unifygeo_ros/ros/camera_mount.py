"""Look up the camera's mounting pose in TF."""

from __future__ import annotations

import contextlib
import time
from typing import Callable, Iterator

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.time import Time

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.localization.camera_mount import mount_from_transform
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.parameters.settings import NodeConfig

NODE_NAME = "unifygeo_camera_mount"


def mount_from_tf(camera: CameraMount, config: NodeConfig, give_up: Callable[[], bool]) -> CameraMount:
    """The mount with position and orientation from TF's base_frame → camera_frame, once it is published.

    Uses a node and an executor of its own for the time of the call, so it may be called from any thread.

    Args:
        camera: the configured mount, whose other fields stay.
        config: the frames, and how long to wait.
        give_up: asked while waiting.

    Raises:
        ConfigurationError: there is no tf2_ros, no transform in time, or only an optical frame.
    """
    try:
        import tf2_ros
    except ImportError as error:
        raise ConfigurationError(
            f"camera_frame is {config.camera_frame!r} but tf2_ros cannot be imported ({error}); install "
            "ros-*-tf2-ros-py or leave camera_frame empty and set camera.x_m, y_m, yaw_rad, pitch_rad and roll_rad"
        ) from error
    with look_up_node(NODE_NAME) as (node, executor):
        buffer = tf2_ros.Buffer()
        tf2_ros.TransformListener(buffer, node, spin_thread=False)
        deadline_s = time.monotonic() + config.tf_timeout_s
        while not buffer.can_transform(config.base_frame, config.camera_frame, Time()):
            if give_up() or time.monotonic() > deadline_s:
                raise ConfigurationError(
                    f"TF has no transform from {config.camera_frame} to {config.base_frame} after "
                    f"{config.tf_timeout_s:g} s; publish the vehicle's static transforms or leave camera_frame empty"
                )
            executor.spin_once(timeout_sec=0.1)
        transform = buffer.lookup_transform(config.base_frame, config.camera_frame, Time()).transform
    return mount_from_transform(camera, transform, config.camera_frame)


@contextlib.contextmanager
def look_up_node(name: str) -> Iterator[tuple[Node, SingleThreadedExecutor]]:
    """A node with an executor of its own, to wait for messages in any thread."""
    # A launch file renames every node of the process. Two of one name share one publisher of /rosout, which goes with
    # the first of them: the localizer's log would be silent from here on.
    own_name = ["--ros-args", "-r", f"__node:={name}"]
    node = rclpy.create_node(name, cli_args=own_name, start_parameter_services=False)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        yield node, executor
    finally:
        executor.shutdown()
        node.destroy_node()
