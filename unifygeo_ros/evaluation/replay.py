"""A recorded drive through the localizer.

The bag's messages go, in the order they were recorded, into the same session that the node runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Protocol

from unifygeo_ros.conversions.from_messages import imu_sample, odometry_sample
from unifygeo_ros.conversions.sensor_frames import SensorFrames
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.records import CameraImage, Fix, Rejection
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.evaluation.image_sources import Exposure, ImageSource, PanoramaTopic, RigTopics
from unifygeo_ros.evaluation.metrics.results import FrameResult, RecordedQuery, ResultFile
from unifygeo_ros.evaluation.recordings.bags import Bag, BagMessage, BagTopic, choose_topic
from unifygeo_ros.evaluation.recordings.recorded_rig import IMAGE_TYPES, RecordedRig
from unifygeo_ros.evaluation.recordings.truth import Recording, Truth
from unifygeo_ros.evaluation.recordings.truth_sources import GEODETIC_TYPE, TRUTH_TYPES, Sample, recording_of_samples
from unifygeo_ros.evaluation.tile_ranks import seen_tiles, tile_ranks
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.samples import ImuSample, MotionBuffer, OdometrySample
from unifygeo_ros.parameters.settings import Settings
from unifygeo_ros.sessions.factory import make_session
from unifygeo_ros.sessions.inputs import SessionInputs
from unifygeo_ros.sessions.sequence import SequenceSession
from unifygeo_ros.sessions.session import LocalizationSession
from unifygeo_ros.tracking.smoothing import Step

ODOMETRY_TYPES = ("nav_msgs/msg/Odometry",)
IMU_TYPES = ("sensor_msgs/msg/Imu",)
_TRUTH_NAME = re.compile(r"(?<![a-z])(ground_?truth|truth|gt)(?![a-z])", re.IGNORECASE)

PAIRING_RUN_IN_S = 3.0
"""How much of a drive is read before a panorama of a rig that is wanted once more."""


@dataclass(frozen=True)
class Topics:
    """Which topic of the bag serves for what; None: not used."""

    images: tuple[BagTopic, ...]
    """One of panoramas, or those of a rig, the camera that paces first."""
    truth: BagTopic | None
    odometry: BagTopic | None
    imu: BagTopic | None
    rig: RecordedRig | None = None

    @property
    def image(self) -> BagTopic:
        """The topic of the panoramas, or of the camera that paces."""
        return self.images[0]

    @property
    def image_count(self) -> int:
        """How many panoramas there are, at most."""
        return max(topic.count for topic in self.images)


def choose_topics(
    bag: Bag,
    *,
    image: str | None = None,
    truth: str | None = None,
    odometry: str | None = None,
    imu: str | None = None,
    truth_from_file: bool = False,
    rig: RecordedRig | None = None,
) -> Topics:
    """The named topics, and by type those that were not named. Raises InputError where a choice is left open.

    A topic whose name says that it is ground truth is never taken for the session's odometry unless it is named, and
    where there is such a topic, only such a one is taken for the ground truth.

    rig: whose topics are those of the images.
    """
    says_truth = {name for name in bag.topics if _TRUTH_NAME.search(name)}
    if rig is None:
        panoramas = choose_topic(
            bag, image, IMAGE_TYPES, purpose="images", option="--image-topic", required=True, together="--rig"
        )
        assert panoramas is not None  # required
        images: tuple[BagTopic, ...] = (panoramas,)
    elif image is not None:
        raise ConfigurationError(f"both --image-topic {image} and a rig are given; the rig names its topics")
    else:
        images = rig.topics
    motion = choose_topic(
        bag,
        odometry,
        ODOMETRY_TYPES,
        purpose="odometry",
        option="--odometry-topic",
        required=False,
        taken=says_truth | {truth},
    )
    truths = None
    if not truth_from_file:
        by_name = any(bag.topics[name].type in TRUTH_TYPES for name in says_truth)
        truths = choose_topic(
            bag,
            truth,
            tuple(TRUTH_TYPES),
            purpose="ground truth",
            option="--truth-topic",
            required=False,
            taken=bag.topics.keys() - says_truth if by_name else {motion.name} if motion else (),
        )
    inertial = choose_topic(bag, imu, IMU_TYPES, purpose="IMU", option="--imu-topic", required=False)
    return Topics(images, truths, motion, inertial, rig)


def read_truth(bag: Bag, topic: BagTopic) -> Recording:
    """All ground truth of a topic."""
    convert = TRUTH_TYPES[topic.type]

    def samples() -> Iterator[Sample]:
        for message in bag.messages([topic.name]):
            try:
                sample = convert(bag.deserialize(message))
            except InputError as error:
                bag.note(str(error))
                continue
            if sample is not None:
                yield sample

    return recording_of_samples(samples(), geodetic=topic.type == GEODETIC_TYPE, source=topic.name)


def replay(
    bag: Bag,
    topics: Topics,
    localizer: Localizer,
    settings: Settings,
    truth: Truth | None,
    results: ResultFile,
    *,
    frames: SensorFrames,
    max_frames: int | None = None,
    progress: Callable[[FrameResult], None] = lambda result: None,
    steps: list[Step] | None = None,
) -> None:
    """Localize every image of a bag and append each result.

    What `results` holds already is not computed again: the session is shown those images with their known answers, so
    that it stands where it stood. Samples that are refused become problems of the bag, with the words that the node has
    for them.

    Args:
        bag: The drive.
        topics: Those of its topics that are used.
        localizer: Of the region.
        settings: As a node would have them.
        truth: Ground truth, None without.
        results: Read first, then appended to.
        frames: Where the IMU and the odometry's child frame are on the vehicle.
        max_frames: Images after which to stop; None: all.
        progress: Called after each image, known or new.
        steps: In mode sequence, filled with the tracker's steps, for smoothing. They are not among the results: with
            results that are complete, the images are localized once more for them.
    """
    if results.complete and steps is None:
        return
    session = make_session(localizer, settings.session, settings.tracker, settings.odometry)
    if steps is not None:
        if not isinstance(session, SequenceSession):
            raise ConfigurationError(
                f"session.mode is {settings.session.mode}; smoothing needs a track: set session.mode=sequence"
            )
        session.tracker.record_to(steps.append)
    accepted: MotionBuffer[OdometrySample] = MotionBuffer(settings.session.buffer_limits)
    motion = RecordedMotion(bag, topics, session, frames, settings.node.map_frame, accepted)
    images = image_source(bag, topics, localizer, session.inputs, settings)
    names = [topic.name for topic in (*topics.images, topics.odometry, topics.imu) if topic is not None]
    motion_names = [topic.name for topic in (topics.odometry, topics.imu) if topic is not None]
    offset_ns = ns_from_s(settings.session.stamp_offset_s)

    def exposures() -> Iterator[Exposure]:
        for message in bag.messages(names):
            if message.topic in motion_names:
                motion.take(message)
            yield from images.take(message)
        yield from images.end()

    # Read lazily: at most one known result is in memory.
    known = itertools.islice(results.frames(), results.done)
    for number, exposure in enumerate(itertools.islice(exposures(), max_frames)):
        before = next(known, None)
        if before is not None and (before.number, before.log_time_ns) != (number, exposure.log_time_ns):
            raise InputError(f"{results.path}: image {number} is not the one of the bag; give --restart to replace it")
        if before is not None:
            _recall(exposure, session, before)
            progress(before)
        else:
            result, timings_ms = _localize(exposure, number, localizer, session, motion.odometry, truth, offset_ns)
            results.append(result, timings_ms)
            progress(result)
    if not results.complete:
        motion.note_refusals()
        images.note_faults()
        for warning in session.status().warnings:
            bag.note(warning[0].upper() + warning[1:])
        results.finish(tuple(bag.problems))


def image_source(
    bag: Bag,
    topics: Topics,
    localizer: Localizer,
    inputs: SessionInputs,
    settings: Settings,
) -> ImageSource:
    """What makes panoramas of the images' messages. inputs: of the session."""
    if topics.rig is None:
        return PanoramaTopic(bag, topics.image.name, localizer.enough_columns)
    return RigTopics(bag, topics.rig, localizer.bundle.manifest.ground, inputs, settings)


def image_again(
    bag: Bag,
    topics: Topics,
    localizer: Localizer,
    settings: Settings,
    frames: SensorFrames,
    result: FrameResult,
) -> CameraImage | None:
    """The panorama of a result once more, with its tilt; None where the bag does not give it again."""
    inputs = SessionInputs(settings.session.buffer_limits, MotionNoise())
    accepted: MotionBuffer[OdometrySample] = MotionBuffer(settings.session.buffer_limits)
    motion = RecordedMotion(bag, topics, inputs, frames, settings.node.map_frame, accepted)
    source = image_source(bag, topics, localizer, inputs, settings)
    exposure_ns = result.outcome.stamp_ns - ns_from_s(settings.session.stamp_offset_s)
    names = [topic.name for topic in topics.images]
    # A rig's images are paired again, which takes some of them and the odometry from before.
    run_in_s = 0.0 if topics.rig is None else PAIRING_RUN_IN_S
    names += [] if topics.rig is None or topics.odometry is None else [topics.odometry.name]
    messages = bag.messages(names, start_ns=result.log_time_ns - ns_from_s(run_in_s), stop_ns=result.log_time_ns + 1)
    for message in messages:
        if topics.odometry is not None and message.topic == topics.odometry.name:
            motion.take(message)
        for exposure in source.take(message):
            image = exposure.decode()
            if isinstance(image, CameraImage) and image.stamp_ns == exposure_ns and result.query is not None:
                return dataclasses.replace(image, roll_rad=result.query.roll_rad, pitch_rad=result.query.pitch_rad)
    return None


class MotionInputs(Protocol):
    """What takes in the motion of a drive: a session, or its inputs alone."""

    def add_odometry(self, sample: OdometrySample) -> str | None:
        """Returns why the sample was refused, or None."""
        ...

    def add_imu(self, sample: ImuSample) -> str | None:
        """Returns why the sample was refused, or None."""
        ...


@dataclass
class RecordedMotion:
    """Takes a bag's IMU and odometry into a session, as `unifygeo_ros.ros.inputs` does."""

    bag: Bag
    topics: Topics
    session: MotionInputs
    frames: SensorFrames
    map_frame: str
    """Odometry in this frame is absolute."""
    odometry: MotionBuffer[OdometrySample]
    """What was accepted."""
    refusals: Counter[str] = field(default_factory=Counter)

    def take(self, message: BagMessage) -> None:
        is_imu = self.topics.imu is not None and message.topic == self.topics.imu.name
        try:
            content = self.bag.deserialize(message)
        except InputError as error:
            self.bag.note(str(error))
            return
        try:
            refusal = self._take_imu(content) if is_imu else self._take_odometry(content)
        except InputError as error:
            refusal = str(error)
        if refusal is not None:
            self.refusals[f"{message.topic}: {refusal}"] += 1

    def note_refusals(self) -> None:
        for what, count in self.refusals.items():
            self.bag.note(f"Refused {count} of {what}")

    def _take_imu(self, content: Any) -> str | None:
        return self.session.add_imu(imu_sample(content, self.frames.pose(content.header.frame_id)))

    def _take_odometry(self, content: Any) -> str | None:
        sample = odometry_sample(content, self.map_frame, self.frames.pose(content.child_frame_id))
        self.odometry.add(sample)
        return self.session.add_odometry(sample)


def _localize(
    exposure: Exposure,
    number: int,
    localizer: Localizer,
    session: LocalizationSession,
    odometry: MotionBuffer[OdometrySample],
    truth: Truth | None,
    stamp_offset_ns: int,
) -> tuple[FrameResult, dict[str, float]]:
    """One image's result, stamped with its exposure, and its milliseconds by stage."""
    start = time.perf_counter()
    image = exposure.decode()
    decode_ms = (time.perf_counter() - start) * 1e3
    result: Fix | Rejection
    query, seen = None, None
    if isinstance(image, Rejection):
        result = dataclasses.replace(image, stamp_ns=image.stamp_ns + stamp_offset_ns)
    else:
        outcome = session.locate(image)
        result, seen = outcome.result, outcome.observation
        if outcome.query is not None:
            tilt = outcome.image.roll_rad, outcome.image.pitch_rad
            query = RecordedQuery(outcome.query.prior, outcome.query.heading, *tilt)
    true_pose = None if truth is None else truth.at(result.stamp_ns)
    motion = odometry.at(result.stamp_ns)
    ranks = None
    if seen is not None and query is not None and true_pose is not None:
        ranks = tile_ranks(seen, query.prior, localizer, true_pose)
    frame = FrameResult(
        number=number,
        log_time_ns=exposure.log_time_ns,
        outcome=result,
        truth=true_pose,
        query=query,
        tiles=None if seen is None else seen_tiles(seen, localizer),
        ranks=ranks,
        odometry=None if motion is None else (motion.x_m, motion.y_m, motion.yaw_rad),
    )
    return frame, {"decode": decode_ms, **result.timings_ms}


def _recall(exposure: Exposure, session: LocalizationSession, known: FrameResult) -> None:
    """Take the session past an image whose result is known."""
    image = exposure.decode()
    if not isinstance(image, Rejection):
        session.recall(image, known.outcome)
