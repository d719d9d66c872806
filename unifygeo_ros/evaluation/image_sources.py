"""Where a replay's images come from: one topic of panoramas, or the topics of a rig."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Protocol

from unifygeo_ros.conversions.from_messages import camera_image, stamp_ns
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import CameraImage, Rejection, RejectionReason
from unifygeo_ros.core.time import s_from_ns
from unifygeo_ros.evaluation.recordings.bags import Bag, BagMessage
from unifygeo_ros.evaluation.recordings.recorded_rig import RecordedRig
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.panorama import composed_columns
from unifygeo_ros.parameters.settings import Settings
from unifygeo_ros.rig.config import RigConfig
from unifygeo_ros.rig.pairing import ImageSet, Pairing
from unifygeo_ros.sessions.inputs import SessionInputs
from unifygeo_ros.sessions.rig_panorama import RigPanoramas


@dataclass(frozen=True)
class Exposure:
    """The next panorama of the drive."""

    log_time_ns: int
    """When all of it had been recorded."""
    decode: Callable[[], CameraImage | Rejection]
    """Its pixels, or why they cannot be used. To be called once, in the order of the drive."""


class ImageSource(Protocol):
    """Makes panoramas out of a bag's messages."""

    def take(self, message: BagMessage) -> list[Exposure]:
        """The panoramas that are ready after a message of any topic, oldest first."""

    def end(self) -> list[Exposure]:
        """The panoramas that waited for more, after the last message."""

    def note_faults(self) -> None:
        """Put what was wrong with the images among the bag's problems."""


class PanoramaTopic:
    """One topic whose images are panoramas."""

    def __init__(self, bag: Bag, topic: str, least_width: int) -> None:
        """least_width: JPEGs are decoded no smaller."""
        self._bag, self._topic, self._least_width = bag, topic, least_width

    def take(self, message: BagMessage) -> list[Exposure]:
        """See `ImageSource`."""
        if message.topic != self._topic:
            return []
        return [Exposure(message.log_time_ns, lambda: decode_image(self._bag, message, self._least_width))]

    def end(self) -> list[Exposure]:
        """See `ImageSource`."""
        return []

    def note_faults(self) -> None:
        """Each image's rejection says what was wrong with it."""


class PairedTopics:
    """The topics of a rig, paired by the times of recording as the node pairs by those of arrival."""

    def __init__(self, bag: Bag, sources: Iterable[str], config: RigConfig) -> None:
        """sources: topics of the images, the one that should pace first."""
        self._bag = bag
        self._sources = tuple(sources)
        self._pairing = Pairing(self._sources, config)
        self.last_ns = 0
        """When the last message had been recorded."""

    def take(self, message: BagMessage) -> list[ImageSet]:
        """The sets that are finished after a message of any topic, oldest first; their images are messages."""
        self.last_ns = message.log_time_ns
        now_s = s_from_ns(message.log_time_ns)
        if message.topic not in self._sources:
            return self._pairing.poll(now_s)
        try:
            content = self._bag.deserialize(message)
        except InputError as error:
            self._bag.note(str(error))
            return self._pairing.poll(now_s)
        return self._pairing.add(message.topic, stamp_ns(content.header), now_s, content)

    def end(self) -> list[ImageSet]:
        """The sets that waited for more, after the last message."""
        return self._pairing.flush(s_from_ns(self.last_ns))


def rig_panoramas(rig: RecordedRig, ground: GroundSpec, inputs: SessionInputs, settings: Settings) -> RigPanoramas:
    """What composes the sets of a rig for a network.

    Args:
        rig: The cameras.
        ground: What the network takes in.
        inputs: Of the session, whose odometry moves the cameras to one instant.
        settings: Of the node.
    """
    return RigPanoramas(
        rig.rig,
        rig.sources,
        composed_columns(ground),
        inputs,
        settings.session,
        settings.localizer.minimum_brightness,
        _decoded,
    )


class RigTopics:
    """The topics of a rig."""

    def __init__(
        self, bag: Bag, rig: RecordedRig, ground: GroundSpec, inputs: SessionInputs, settings: Settings
    ) -> None:
        """See `rig_panoramas`."""
        self._bag = bag
        self._paired = PairedTopics(bag, rig.sources, settings.rig)
        self._panoramas = rig_panoramas(rig, ground, inputs, settings)
        self._composed = 0
        self._faults: Counter[str] = Counter()
        self._last_fault: dict[str, str] = {}

    def take(self, message: BagMessage) -> list[Exposure]:
        """See `ImageSource`."""
        return self._exposures(self._paired.take(message))

    def end(self) -> list[Exposure]:
        """See `ImageSource`."""
        return self._exposures(self._paired.end())

    def note_faults(self) -> None:
        """Put which cameras were missing, and how often, among the bag's problems."""
        for camera, count in self._faults.items():
            self._bag.note(
                f"Camera {camera} is not in {count} of {self._composed} panoramas, the last time for: "
                f"{self._last_fault[camera]}"
            )

    def _exposures(self, sets: list[ImageSet]) -> list[Exposure]:
        return [Exposure(self._paired.last_ns, lambda images=images: self._compose(images)) for images in sets]  # type: ignore[misc]

    def _compose(self, images: ImageSet) -> CameraImage | Rejection:
        panorama = self._panoramas.panorama(images)
        state = self._panoramas.state
        assert state is not None
        self._composed += 1
        self._faults.update(state.faults.keys())
        self._last_fault.update(state.faults)
        return panorama


def _decoded(message: Any, least_width: int | None) -> CameraImage:
    return camera_image(message, least_width)


def decode_image(bag: Bag, message: BagMessage, least_width: int) -> CameraImage | Rejection:
    """The image, or why it cannot be used. Where even its stamp is damaged, the time of recording stands for it."""
    stamp = message.log_time_ns
    try:
        content = bag.deserialize(message)
        stamp = stamp_ns(content.header)
        return camera_image(content, least_width)
    except InputError as error:
        return Rejection(stamp, RejectionReason.BAD_IMAGE, str(error))
