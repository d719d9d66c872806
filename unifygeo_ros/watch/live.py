"""A running node as a source: what it publishes, its camera, and the map of the index that its parameters name."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from rcl_interfaces.srv import GetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import NodeNameNonExistentError
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, PointCloud2

from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.aerial.regions import open_map
from unifygeo_ros.conversions.from_messages import stamp_ns
from unifygeo_ros.core.errors import InputError, UnifyGeoError
from unifygeo_ros.motion.samples import roll_pitch_yaw
from unifygeo_ros.watch.entries import milliseconds, position, weighted
from unifygeo_ros.watch.journal import Journal
from unifygeo_ros.watch.orthophoto import Orthophoto
from unifygeo_ros.watch.pictures import LastPictures, small_jpeg

PICTURE_PERIOD_S = 0.45
"""Shortest time between two pictures: decoding them must not take the localizer's processor."""

POSE_PERIOD_S = 0.1
"""Shortest time between two poses."""

LOOK_PERIOD_S = 2.0
"""How often the node and its camera are looked for, until they are found."""


class LiveSource:
    """See `server.Source`. Listens in a thread of its own until `close`."""

    def __init__(self, node_name: str, index: MapIndex | None, image_topic: str | None) -> None:
        """Listen to a node.

        Args:
            node_name: With its namespace: /robot1/unifygeo_localizer.
            index: For the map; None: the one that the node's parameter `index` names, if it is on this machine.
            image_topic: The camera's; None: the one that the node listens to.
        """
        self.journal = Journal()
        self.pictures = LastPictures()
        self.orthophoto = Orthophoto(index) if index is not None else None
        self._name = "/" + node_name.strip("/")
        self._image_topic = image_topic
        self._index_given = index is not None
        self._node_index = self._node_datum = ""
        """As the node's diagnostics have them."""
        self._map_note = "" if index is not None else f"waiting for {self._name}, to ask for its index"
        self._camera: Any = None
        self._next_picture_s = self._next_pose_s = 0.0
        self._asked: Any = None
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node("unifygeo_watch", context=self._context, start_parameter_services=False)
        best_effort = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)
        for kind, topic, callback in (
            (PoseWithCovarianceStamped, f"{self._name}/fix", self._on_fix),
            (PoseWithCovarianceStamped, f"{self._name}/pose", self._on_pose),
            (PointCloud2, f"{self._name}/hypotheses/cloud", self._on_hypotheses),
            (DiagnosticArray, f"{self._name}/outcome", self._on_outcome),
            (DiagnosticArray, "/diagnostics", self._on_diagnostics),
        ):
            self._node.create_subscription(kind, topic, callback, best_effort)
        self._parameters = self._node.create_client(GetParameters, f"{self._name}/get_parameters")
        self._node.create_timer(LOOK_PERIOD_S, self._look)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="watch ROS", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self.journal.close()
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def description(self) -> dict[str, Any]:
        """See `server.Source`."""
        misplaced = "" if self.orthophoto is None else self.orthophoto.misplaced(self._node_datum)
        notes = [note for note in (self._map_note, misplaced) if note]
        if self._camera is None:
            notes.append("no camera pictures yet: the node listens to no image topic")
        return {"mode": "live", "name": self._name, "notes": notes, "pictures": True}

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    # -- what the node publishes ------------------------------------------------------------------------------------

    def _on_fix(self, message: PoseWithCovarianceStamped) -> None:
        self.journal.add({"kind": "frame", "t": milliseconds(stamp_ns(message.header)), "fix": True, **_place(message)})

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_pose_s:
            self._next_pose_s = now_s + POSE_PERIOD_S
            self.journal.add({"kind": "pose", "t": milliseconds(stamp_ns(message.header)), **_place(message)})

    def _on_hypotheses(self, message: PointCloud2) -> None:
        points = np.frombuffer(bytes(message.data), np.float32).reshape(-1, 4)
        found = weighted((float(x), float(y), float(weight)) for x, y, _, weight in points if math.isfinite(weight))
        self.journal.add({"kind": "frame", "t": milliseconds(stamp_ns(message.header)), "hypotheses": found})

    def _on_outcome(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {item.key: item.value for item in status.values}
            t = milliseconds(stamp_ns(message.header))
            entry: dict[str, Any] = {"kind": "frame", "t": t, "text": status.message}
            if "reason" in values:
                entry |= {"fix": False, "reason": values["reason"]}
            if "ambiguity" in values:
                entry["ambiguity"] = float(values["ambiguity"])
            if "latitude_deg" in values:
                entry["wgs84"] = [float(values["latitude_deg"]), float(values["longitude_deg"])]
            self.journal.add(entry)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        own = f"{self._name[1:]}: "
        parts = [
            {
                "name": status.name.removeprefix(own),
                "level": int.from_bytes(status.level, "little"),
                "text": status.message,
                "values": {item.key: item.value for item in status.values},
            }
            for status in message.status
            if status.name.startswith(own)
        ]
        for part in parts:
            if part["name"] == "node":
                self._see_index(part["values"].get("index", ""), part["values"].get("datum", ""))
        if parts:
            self.journal.add({"kind": "status", "parts": parts})

    def _on_image(self, message: Image | CompressedImage) -> None:
        now_s = time.monotonic()
        if now_s < self._next_picture_s:
            return
        self._next_picture_s = now_s + PICTURE_PERIOD_S
        try:
            number = self.pictures.add(small_jpeg(message))
        except InputError:
            return  # the node's own rejection of it says why
        self.journal.add({"kind": "image", "t": milliseconds(stamp_ns(message.header)), "image": number})

    # -- what has to be found ---------------------------------------------------------------------------------------

    def _see_index(self, index: str, datum: str) -> None:
        """The node may have been configured with another index, or started again with one."""
        if not index or (index, datum) == (self._node_index, self._node_datum):
            return
        known, self._node_index, self._node_datum = bool(self._node_index), index, datum
        if known and not self._index_given:
            self._asked = None
        self.journal.add({"kind": "map"})

    def _look(self) -> None:
        if self._camera is None:
            self._find_camera()
        if not self._index_given and self._asked is None and self._parameters.service_is_ready():
            self._asked = self._parameters.call_async(GetParameters.Request(names=["index"]))
            self._asked.add_done_callback(self._open_index)

    def _find_camera(self) -> None:
        """Listen to what the node listens to: a compressed image is preferred, since it is smaller."""
        namespace, _, name = self._name.rpartition("/")
        try:
            listened = dict(self._node.get_subscriber_names_and_types_by_node(name, namespace or "/"))
        except NodeNameNonExistentError:
            return
        for kind in (CompressedImage, Image):
            kind_name = f"sensor_msgs/msg/{kind.__name__}"
            for topic, kinds in listened.items():
                if kind_name in kinds and self._image_topic in (None, topic):
                    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
                    self._camera = self._node.create_subscription(kind, topic, self._on_image, qos)
                    self.journal.add({"kind": "map"})
                    return

    def _open_index(self, future: Any) -> None:
        answer = future.result()
        folder = answer.values[0].string_value if answer and answer.values else ""
        try:
            if not folder:
                raise InputError(f"the parameter index of {self._name} is empty")
            self.orthophoto, self._map_note = Orthophoto(open_map(Path(folder).expanduser())), ""
        except (UnifyGeoError, OSError) as error:
            self._map_note = f"no map: {error}. Give a copy of the index that is on this machine"
        self.journal.add({"kind": "map"})


def _place(message: PoseWithCovarianceStamped) -> dict[str, Any]:
    pose, covariance = message.pose.pose, np.asarray(message.pose.covariance).reshape(6, 6)[:2, :2]
    yaw = roll_pitch_yaw(*(getattr(pose.orientation, axis) for axis in "xyzw"))[2]
    return position(pose.position.x, pose.position.y, yaw, covariance)
