"""The camera's mount out of the static transforms that a bag holds."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from scipy.spatial.transform import Rotation

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.evaluation.recordings.bags import Bag
from unifygeo_ros.localization.camera_mount import mount_from_transform
from unifygeo_ros.localization.config import CameraMount

TOPIC = "/tf_static"


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


def mount_from_bag(bag: Bag, camera: CameraMount, base_frame: str, camera_frame: str) -> CameraMount:
    """Take the mount from the recorded base_frame → camera_frame, as the node takes it from TF.

    Args:
        bag: The recorded drive.
        camera: What TF does not know stays as it is here.
        base_frame: Frame of the vehicle.
        camera_frame: Frame of the camera, x through the image's centre column and z up.

    Raises:
        ConfigurationError: The bag does not connect the frames, or the camera's frame cannot be a mount.
    """
    links = _links(bag)
    # Both frames may hang below a third one, so that the way leads up from each to the first frame in common.
    above_base, above_camera = _ancestors(links, base_frame), _ancestors(links, camera_frame)
    common = next((frame for frame in above_camera if frame in above_base), None)
    if common is None:
        known = ", ".join(sorted({*links, *(parent for parent, _ in links.values())})) or "none"
        raise ConfigurationError(
            f"{bag.path}: {TOPIC} does not connect {camera_frame} with {base_frame}; frames there: {known}; give the "
            "mount by camera.x_m, camera.y_m and camera.yaw_rad"
        )
    camera_in_base = above_base[common].inverse().then(above_camera[common])
    x, y, z = camera_in_base.origin_m.tolist()
    transform = SimpleNamespace(
        translation=SimpleNamespace(x=x, y=y, z=z),
        rotation=SimpleNamespace(**dict(zip("xyzw", camera_in_base.turn.as_quat().tolist(), strict=True))),
    )
    return mount_from_transform(camera, transform, camera_frame)


def recorded_frames(bag: Bag) -> set[str]:
    """All frames of the bag's static transforms."""
    links = _links(bag)
    return {*links, *(parent for parent, _ in links.values())}


def _links(bag: Bag) -> dict[str, tuple[str, _Pose]]:
    """Parent and pose in it, by frame. Of several transforms of a frame the last one counts."""
    links: dict[str, tuple[str, _Pose]] = {}
    for message in bag.messages([TOPIC]) if TOPIC in bag.topics else ():
        try:
            transforms = bag.deserialize(message).transforms
        except InputError as error:
            bag.note(str(error))
            continue
        for link in transforms:
            t, q = link.transform.translation, link.transform.rotation
            pose = _Pose(np.array([t.x, t.y, t.z]), Rotation.from_quat([q.x, q.y, q.z, q.w]))
            links[link.child_frame_id.lstrip("/")] = (link.header.frame_id.lstrip("/"), pose)
    return links


def _ancestors(links: dict[str, tuple[str, _Pose]], frame: str) -> dict[str, _Pose]:
    """The frame and those above it, nearest first, each with the pose of the frame in it."""
    found = {frame: _Pose(np.zeros(3), Rotation.identity())}
    while frame in links:
        parent, pose = links[frame]
        if parent in found:
            break  # a loop, which TF does not allow either
        found[parent] = pose.then(found[frame])
        frame = parent
    return found
