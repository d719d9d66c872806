"""A recorded drive through the session, for what `estimate` needs of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Callable, Iterator, Sequence

import cv2
import numpy as np

from unifygeo_ros.conversions.sensor_frames import SensorFrames
from unifygeo_ros.core.records import CameraImage, Rejection
from unifygeo_ros.core.time import NS_PER_S
from unifygeo_ros.evaluation.image_sources import Exposure, PanoramaTopic
from unifygeo_ros.evaluation.mounting.estimate import CollectedDrive, SeenImage, whole_drive
from unifygeo_ros.evaluation.recordings.bags import Bag
from unifygeo_ros.evaluation.replay import RecordedMotion, Topics
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.motion.samples import ODOM_FRAME, ImuSample, MotionBuffer, OdometrySample
from unifygeo_ros.parameters.settings import Settings
from unifygeo_ros.sessions.factory import make_session
from unifygeo_ros.sessions.sequence import SequenceSession

MOST_COLUMNS = 1024
"""Of the pictures that are kept in memory."""

RUN_OUT_NS = 3 * NS_PER_S
"""The fit needs odometry beyond the last image."""


def sequence_settings(settings: Settings) -> Settings:
    """The same with a track: places are taken from it."""
    return dataclasses.replace(
        settings, session=dataclasses.replace(settings.session, mode="sequence", prior_source="none")
    )


class SessionWithMemory:
    """Passes odometry and IMU on to a session, and keeps what it accepted."""

    def __init__(self, session: SequenceSession, settings: Settings) -> None:
        limits = whole_drive(settings.session.buffer_limits)
        self._session = session
        self.odometry: MotionBuffer[OdometrySample] = MotionBuffer(limits)
        self.imu: MotionBuffer[ImuSample] = MotionBuffer(limits)
        self._seen: list[SeenImage] = []
        self._images = 0
        self._generation = session.inputs.generation
        self._warnings: list[str] = []

    def add_odometry(self, sample: OdometrySample) -> str | None:
        """As the session's."""
        refusal = self._session.add_odometry(sample)
        if refusal is None and sample.frame == ODOM_FRAME:
            self.odometry.add(sample)
        return refusal

    def add_imu(self, sample: ImuSample) -> str | None:
        """As the session's."""
        refusal = self._session.add_imu(sample)
        if refusal is None:
            self.imu.add(sample)
        return refusal

    def locate(self, image: CameraImage | Rejection) -> bool:
        """Take in the drive's next image. Returns whether its place was seen."""
        number, self._images = self._images, self._images + 1
        if isinstance(image, Rejection):
            return False
        outcome = self._session.locate(image)
        self._begin_again(number)
        place = None if outcome.observation is None else self._session.tracker.measured
        if place is None:
            return False
        levelled = outcome.image
        self._seen.append(SeenImage(number, levelled.stamp_ns, place, levelled.roll_rad, levelled.pitch_rad))
        return True

    def _begin_again(self, number: int) -> None:
        """Leave out what was seen before, where the image made the session begin a new drive."""
        generation = self._session.inputs.generation
        if generation == self._generation:
            return
        self._generation = generation
        self._warnings.append(
            f"time goes back at image {number + 1} of the bag: the {number} images before are left out; cut the bag "
            "there"
        )
        self._seen.clear()

    def collected(self) -> CollectedDrive:
        """What was seen so far."""
        warnings = (*self._session.status().warnings, *self._warnings)
        return CollectedDrive(self._images, tuple(self._seen), self.odometry, self.imu, warnings)


def collect(
    bag: Bag,
    topics: Topics,
    localizer: Localizer,
    settings: Settings,
    frames: SensorFrames,
    *,
    max_frames: int | None = None,
    progress: Callable[[bool], None] = lambda seen: None,
) -> CollectedDrive:
    """Localize the images of a bag in mode sequence.

    Args:
        bag: the drive.
        topics: its topics; of panoramas, not of a rig.
        localizer: of the node's settings.
        settings: of the node.
        frames: where IMU and odometry are on the vehicle.
        max_frames: only so many images.
        progress: called after each image, with whether its place was seen.
    """
    settings = sequence_settings(settings)
    session = make_session(localizer, settings.session, settings.tracker, settings.odometry)
    assert isinstance(session, SequenceSession)
    memory = SessionWithMemory(session, settings)
    accepted: MotionBuffer[OdometrySample] = MotionBuffer(settings.session.buffer_limits)
    motion = RecordedMotion(bag, topics, memory, frames, settings.node.map_frame, accepted)
    source = PanoramaTopic(bag, topics.image.name, localizer.enough_columns)
    names = [topic.name for topic in (topics.image, topics.odometry, topics.imu) if topic is not None]
    count = 0
    end_ns: int | None = None
    for message in bag.messages(names):
        if message.topic != topics.image.name:
            motion.take(message)
            if end_ns is not None and message.log_time_ns > end_ns:
                break
        elif end_ns is None:
            for exposure in source.take(message):
                progress(memory.locate(exposure.decode()))
                count += 1
            if count == max_frames:
                end_ns = message.log_time_ns + RUN_OUT_NS
    motion.note_refusals()
    return memory.collected()


@dataclass(frozen=True)
class BagImages:
    """`estimate.DriveImages` of a bag."""

    bag: Bag
    topic: str
    least_columns: int

    def __call__(self, numbers: Sequence[int]) -> Iterator[CameraImage | None]:
        wanted = iter(numbers)
        next_number = next(wanted, None)
        source = PanoramaTopic(self.bag, self.topic, self.least_columns)
        exposures: Iterator[Exposure] = (
            exposure for message in self.bag.messages([self.topic]) for exposure in source.take(message)
        )
        for number, exposure in enumerate(exposures):
            if next_number is None:
                return
            if number == next_number:
                image = exposure.decode()
                yield None if isinstance(image, Rejection) else reduced(image)
                next_number = next(wanted, None)


def reduced(image: CameraImage) -> CameraImage:
    """The image, averaged down where it is larger than it needs to be."""
    rows, columns = image.pixels.shape[:2]
    if columns <= MOST_COLUMNS:
        return image
    size = (MOST_COLUMNS, max(1, round(rows * MOST_COLUMNS / columns)))
    pixels = np.asarray(cv2.resize(image.pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    seen = image.seen
    if seen is not None:
        seen = cv2.resize(seen.astype(np.uint8), size, interpolation=cv2.INTER_AREA) > 0
    return dataclasses.replace(image, pixels=pixels, seen=seen)
