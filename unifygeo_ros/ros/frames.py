"""Where sensors sit on the vehicle, from TF: each frame is looked up once, while the node runs."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.time import Time

from unifygeo_ros.conversions.sensor_frames import REMEDY, SensorFrames
from unifygeo_ros.core.errors import InputError

LOOKUP_PERIOD_S = 0.2
"""A transform that is not there yet is asked for again after this; a fast IMU must not cost a look-up a message."""


class TfFrames(SensorFrames):
    """Poses of sensors from TF. Belongs to the executor's thread.

    The first frame that is not base_frame starts a TF listener on the node; it ends when every frame is known.
    """

    def __init__(self, node: Node, base_frame: str, input_frames: str) -> None:
        """Take the parameter input_frames, "tf" or "base"."""
        super().__init__(base_frame, input_frames, LOOKUP_PERIOD_S)
        self._node = node
        self._buffer: Any = None
        self._listener: Any = None

    def close(self) -> None:
        """End the TF listener."""
        if self._listener is not None:
            self._listener.unregister()
        self._listener = self._buffer = None

    def _transform(self, frame: str) -> Any | None:
        if self._listener is None:
            try:
                import tf2_ros
            except ImportError as error:
                raise InputError(f"no tf2_ros is installed to find it on {self.base_frame!r}; {REMEDY}") from error
            self._buffer = tf2_ros.Buffer()
            self._listener = tf2_ros.TransformListener(self._buffer, self._node)
        if not self._buffer.can_transform(self.base_frame, frame, Time()):
            return None
        return self._buffer.lookup_transform(self.base_frame, frame, Time()).transform

    def _found(self, frame: str) -> None:
        self._node.get_logger().info(f"{frame} on {self.base_frame} from TF: {self._text(frame)}")
        if not self._faults:
            self.close()
