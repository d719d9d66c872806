"""The rig of a recorded drive: its description completed by the bag's CameraInfo and static transforms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Mapping

from unifygeo_ros.conversions.sensor_frames import frame_name
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.paths import home_path
from unifygeo_ros.evaluation.recordings.bags import Bag, BagTopic
from unifygeo_ros.evaluation.recordings.static_transforms import StaticTransforms
from unifygeo_ros.rig.config import RigConfig
from unifygeo_ros.rig.description import (
    CameraDescription,
    FramePose,
    read_rig,
    rig_of_camera_infos,
)
from unifygeo_ros.rig.rig import Rig

CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
IMAGE_TYPES = ("sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image")
AUTO = "auto"
"""In place of a rig file: every camera of the bag that brings a CameraInfo."""


@dataclass(frozen=True)
class RecordedRig:
    """A rig, and where its images are in a bag."""

    rig: Rig
    topics: tuple[BagTopic, ...]
    sources: Mapping[str, tuple[str, ...]]
    """Names of the cameras by the topic of their images."""


def recorded_rig(bag: Bag, config: RigConfig, transforms: StaticTransforms, base_frame: str) -> RecordedRig:
    """Find the cameras of a rig in a bag.

    Args:
        bag: The recorded drive. CameraInfo that changes during the drive becomes a problem of it.
        config: Names the rig file (`auto`: every camera with a CameraInfo), or the cameras.
        transforms: The bag's /tf_static.
        base_frame: Frame of the vehicle.

    Raises:
        ConfigurationError: The bag lacks something, or it cannot be used; the message names the camera and the remedy.
        InputError: The rig file cannot be read.
    """
    if config.file and config.file != AUTO:
        description = read_rig(home_path(config.file))
    else:
        description = rig_of_camera_infos(_cameras_with_info(bag, config.camera_names), str(bag.path))
    sources: dict[str, tuple[str, ...]] = {}
    found = []
    for wanted, names in description.topics().items():
        topic = _image_topic(bag, wanted, names)
        found.append(topic)
        sources[topic.name] = names
    infos = _camera_infos(bag, description.cameras)

    def pose(frame: str) -> FramePose | None:
        transform = transforms.transform(base_frame, frame_name(frame))
        return None if transform is None else FramePose.of_transform(transform)

    return RecordedRig(description.rig(infos.get, pose), tuple(found), sources)


def _cameras_with_info(bag: Bag, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Topics of CameraInfo and of the images beside them, of the named cameras, in that order; no names: of all."""
    pairs = {}
    for topic in bag.topics.values():
        if topic.type != CAMERA_INFO:
            continue
        folder = topic.name.rsplit("/", 1)[0] + "/"
        beside = [
            image.name
            for image in bag.topics.values()
            if image.type in IMAGE_TYPES
            and image.name.startswith(folder)
            and "depth" not in image.name.lower()
            and "/" not in image.name[len(folder) :].removesuffix("/compressed")
        ]
        if beside:  # not the rectified ones where there are others; compressed ones where there are both
            best = min(beside, key=lambda name: ("rect" in name, not name.endswith("/compressed"), name))
            pairs[folder.strip("/").rsplit("/", 1)[-1]] = topic.name, best
    missing = [name for name in names if name not in pairs]
    if missing:
        raise ConfigurationError(
            f"{bag.path}: no camera {missing[0]} with a CameraInfo beside its images; it has "
            f"{', '.join(pairs) or 'none'}"
        )
    return [pairs[name] for name in names or pairs]


def _image_topic(bag: Bag, wanted: str, names: tuple[str, ...]) -> BagTopic:
    """The topic of that name, or of its compressed images, which a rig file need not name."""
    for name in (wanted, f"{wanted}/compressed", wanted.removesuffix("/compressed")):
        topic = bag.topics.get(name)
        if topic is not None and topic.type in IMAGE_TYPES:
            return topic
    images = [topic.name for topic in bag.topics.values() if topic.type in IMAGE_TYPES]
    raise ConfigurationError(
        f"{bag.path}: no images of camera {names[0]} on {wanted}; topics with images: {', '.join(images) or 'none'}"
    )


def _camera_infos(bag: Bag, cameras: Iterable[CameraDescription]) -> dict[str, Any]:
    """The first CameraInfo of each topic that is asked for. One that changes later is noted."""
    wanted = {camera.info_topic for camera in cameras if camera.info_topic in bag.topics}
    found: dict[str, Any] = {}
    first: dict[str, bytes] = {}
    changed = set()
    for message in bag.messages(wanted) if wanted else ():
        if message.topic in changed:
            continue
        try:
            info = bag.deserialize(message)
        except InputError as error:
            bag.note(str(error))
            continue
        content = repr([getattr(info, name, None) for name in _CALIBRATION]).encode()
        if message.topic not in found:
            found[message.topic], first[message.topic] = info, content
        elif first[message.topic] != content:
            changed.add(message.topic)
            bag.note(f"{message.topic}: the calibration changes during the drive; the first one is used")
    return found


_CALIBRATION = (
    *("width", "height", "distortion_model", "binning_x", "binning_y", "roi"),
    *("d", "k", "r", "p", "D", "K", "R", "P"),
)
"""Fields of a CameraInfo in ROS 2 and ROS 1."""
