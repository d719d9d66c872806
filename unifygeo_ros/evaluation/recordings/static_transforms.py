"""The static transforms that a bag holds, and the sensors' poses out of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from unifygeo_ros.conversions.sensor_frames import SensorFrames, frame_name
from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.evaluation.recordings.bags import Bag

TOPIC = "/tf_static"
MOVING_TOPIC = "/tf"

NORM_TOLERANCE = 0.01
"""tf2 drops a transform whose quaternion's squared length is further from 1 than this."""


@dataclass(frozen=True)
class _Pose:
    """Of a frame in another: where its origin lies, float64 (3,), and how it is turned."""

    origin_m: Float64
    turn: Rotation

    def then(self, inner: _Pose) -> _Pose:
        """Of a frame whose pose in this one is `inner`."""
        return _Pose(self.origin_m + self.turn.apply(inner.origin_m), self.turn * inner.turn)

    def inverse(self) -> _Pose:
        back = self.turn.inv()
        return _Pose(-back.apply(self.origin_m), back)


class StaticTransforms:
    """All of a bag's /tf_static, read at once. Of several transforms of a frame the last one counts.

    Transforms that tf2 drops (not finite, a quaternion that is not of length 1, a frame in itself) are left out and
    noted as problems of the bag.
    """

    def __init__(self, bag: Bag) -> None:
        self._bag = bag
        self._links: dict[str, tuple[str, _Pose]] = {}
        for message in bag.messages([TOPIC]) if TOPIC in bag.topics else ():
            try:
                transforms = bag.deserialize(message).transforms
            except InputError as error:
                bag.note(str(error))
                continue
            for link in transforms:
                child, parent = frame_name(link.child_frame_id), frame_name(link.header.frame_id)
                pose = _usable_pose(link.transform)
                if pose is None or child == parent:
                    bag.note(f"{TOPIC}: the transform from {parent!r} to {child!r} is none; it is left out, as by tf2")
                    continue
                self._links[child] = parent, pose

    @property
    def frames(self) -> set[str]:
        """Names of all frames."""
        return {*self._links, *(parent for parent, _ in self._links.values())}

    def moving_frames(self) -> set[str]:
        """Names of all child frames in the bag's /tf, which is read whole for it."""
        messages = self._bag.messages([MOVING_TOPIC]) if MOVING_TOPIC in self._bag.topics else ()
        found: set[str] = set()
        for message in messages:
            try:
                found |= {frame_name(link.child_frame_id) for link in self._bag.deserialize(message).transforms}
            except InputError as error:
                self._bag.note(str(error))
        return found

    def transform(self, base_frame: str, frame: str) -> Any | None:
        """geometry_msgs/Transform of a frame in base_frame, by its fields; None where nothing connects them."""
        # Both frames may hang below a third one, so that the way leads up from each to the first frame in common.
        above_base, above_frame = self._ancestors(base_frame), self._ancestors(frame)
        common = next((name for name in above_frame if name in above_base), None)
        if common is None:
            return None
        pose = above_base[common].inverse().then(above_frame[common])
        x, y, z = pose.origin_m.tolist()
        return SimpleNamespace(
            translation=SimpleNamespace(x=x, y=y, z=z),
            rotation=SimpleNamespace(**dict(zip("xyzw", pose.turn.as_quat().tolist(), strict=True))),
        )

    def _ancestors(self, frame: str) -> dict[str, _Pose]:
        """The frame and those above it, nearest first, each with the pose of the frame in it."""
        found = {frame: _Pose(np.zeros(3), Rotation.identity())}
        while frame in self._links:
            parent, pose = self._links[frame]
            if parent in found:
                break  # a loop, which TF does not allow either
            found[parent] = pose.then(found[frame])
            frame = parent
        return found


class RecordedFrames(SensorFrames):
    """Poses of sensors from a bag's static transforms: what the node finds in TF when the bag is played to it."""

    def __init__(self, transforms: StaticTransforms, base_frame: str, input_frames: str) -> None:
        """input_frames: the parameter of that name, "tf" or "base"."""
        super().__init__(base_frame, input_frames, retry_s=math.inf)
        self._transforms = transforms

    def _transform(self, frame: str) -> Any | None:
        return self._transforms.transform(self.base_frame, frame)


def _usable_pose(transform: Any) -> _Pose | None:
    t, q = transform.translation, transform.rotation
    origin_m, quaternion = np.array([t.x, t.y, t.z], np.float64), np.array([q.x, q.y, q.z, q.w], np.float64)
    if not np.isfinite(origin_m).all() or not abs(float(quaternion @ quaternion) - 1) <= NORM_TOLERANCE:
        return None
    return _Pose(origin_m, Rotation.from_quat(quaternion))
