"""A recorded drive, image by image: which of them can be used, where they were taken, and their panoramas.

The bag is read, and the images are levelled and cut, by the code of `unifygeo replay` and of the node.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unifygeo_ros.conversions.from_messages import stamp_ns
from unifygeo_ros.core.arrays import Float64, Int64, UInt8
from unifygeo_ros.core.covariance import semi_major_sigma
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import CameraImage, Heading, HeadingSource, Rejection
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.evaluation.image_sources import PairedTopics, decode_image, rig_panoramas
from unifygeo_ros.evaluation.recordings.bags import Bag, BagMessage
from unifygeo_ros.evaluation.recordings.recorded_mount import panorama_mount
from unifygeo_ros.evaluation.recordings.recorded_rig import RecordedRig, recorded_rig
from unifygeo_ros.evaluation.recordings.static_transforms import RecordedFrames, StaticTransforms
from unifygeo_ros.evaluation.recordings.truth import COURSE_WINDOW_S, Truth
from unifygeo_ros.evaluation.recordings.truth_sources import read_truth_file
from unifygeo_ros.evaluation.replay import RecordedMotion, Topics, choose_topics, read_truth
from unifygeo_ros.inference.bundle import GroundSpec
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.panorama import (
    check_image,
    check_seen,
    enough_columns,
    how_much_is_seen,
    prepare_panorama,
)
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.samples import MotionBuffer
from unifygeo_ros.parameters.settings import Settings
from unifygeo_ros.rig.pairing import ImageSet
from unifygeo_ros.sessions.inputs import SessionInputs
from unifygeo_training.drives.ground import Ground, is_known
from unifygeo_training.drives.settings import DriveSource

COURSE_LEAST_M = 2.0
"""Truth without orientation gives a heading where the vehicle moves at least this far within a second (the window of
`Truth`): a position error of 0.1 m between its ends turns the course by 3° then."""


class Use(enum.Enum):
    """What became of an image. The value is the text of reports."""

    USED = "used"
    TOO_NEAR = "too near another one (spacing_m)"
    NO_TRUTH = "without truth at their stamp"
    POOR_TRUTH = "with poor truth (largest_sigma_m)"
    NO_HEADING = "without heading: the truth has no orientation and the vehicle hardly moves"
    NOT_COVERED = "outside the imagery"
    BAD_IMAGE = "that the node would reject"


@dataclass(frozen=True)
class Exposures:
    """All n images of a drive, in the order they were recorded."""

    stamps_ns: Int64
    """int64 (n,), of exposure."""
    positions_m: Float64
    """float64 (n, 2), the camera in the map; NaN where the truth is not known."""
    sigmas_m: Float64
    """float64 (n,), of the truth, along the long axis."""
    uses: tuple[Use, ...]

    def of(self, *uses: Use) -> npt.NDArray[np.bool_]:
        """bool (n,): the images of which this became."""
        return np.array([use in uses for use in self.uses], np.bool_)

    def counts(self) -> Counter[Use]:
        return Counter(self.uses)


@dataclass(frozen=True)
class Drive:
    """The images of a drive that can be used, and what became of the others."""

    recording: Recording
    exposures: Exposures
    positions_m: Float64
    """float64 (k, 2), the camera in the map."""
    sigmas_m: Float64
    """float64 (k,), standard deviation of the truth along its long axis."""
    yaw_rad: Float64
    """float64 (k,), of base_link."""
    panoramas: UInt8
    """uint8 (k, H, W, 3), north in the centre column, in a file that vanishes with the process."""
    ground_spec: GroundSpec
    """Size and elevations of the panoramas."""
    bad_images: tuple[str, ...]
    """The first reasons why the node would reject images."""

    @property
    def name(self) -> str:
        return self.recording.name

    @property
    def ground(self) -> Ground:
        return self.recording.ground

    @property
    def geodetic_deg(self) -> Float64:
        """float64 (k, 2), latitude and longitude of the cameras."""
        return self.ground.frame.geodetic_from_map(*self.positions_m.T)

    def __len__(self) -> int:
        return len(self.positions_m)


class Recording:
    """An opened drive: bag, truth in the map frame of the ground, and the vehicle's settings."""

    def __init__(self, source: DriveSource, ground: Ground) -> None:
        """Raises InputError and ConfigurationError for what is missing or contradicts itself."""
        self.source, self.ground = source, ground
        self.bag = Bag(source.bag)
        self.settings: Settings = source.node_settings()
        transforms = StaticTransforms(self.bag)
        node = self.settings.node
        rig = recorded_rig(self.bag, self.settings.rig, transforms, node.base_frame) if self.settings.rig else None
        self.topics: Topics = choose_topics(
            self.bag,
            image=source.image_topic,
            truth=source.truth_topic,
            odometry="none" if rig is None else source.odometry_topic,
            imu=source.imu_topic,
            truth_from_file=source.truth_file is not None,
            rig=rig,
        )
        if not self.most_images:
            raise InputError(f"{source.bag}: {self.topics.image.name} holds no image; record it, or name another topic")
        if source.truth_file is not None:
            recording = read_truth_file(source.truth_file)
        elif self.topics.truth is not None:
            recording = read_truth(self.bag, self.topics.truth)
        else:
            raise InputError(f"{source.bag}: holds no truth; name a truth_topic or a truth_file")
        settings = source.truth
        self.truth = Truth(
            recording,
            ground.frame,
            plane_frame=settings.truth_frame,
            max_gap_s=settings.truth_max_gap_s,
            default_sigma_m=settings.truth_sigma_m,
            lever_arm_m=(settings.truth_x_m, settings.truth_y_m),
        )
        self.frames = RecordedFrames(transforms, node.base_frame, node.input_frames)
        self.mount: CameraMount = panorama_mount(self.settings, transforms, rig)

    @property
    def name(self) -> str:
        """For messages: the bag's."""
        return str(self.source.bag)

    @property
    def most_images(self) -> int:
        """No more panoramas than this are there: of a rig, any camera may pace."""
        return sum(topic.count for topic in self.topics.images)

    def images(self) -> Iterator[RecordedImage]:
        """All images in the order they were recorded, not yet decoded; of a rig, those that belong together."""
        config = self.settings.session
        inputs = SessionInputs(config.buffer_limits, MotionNoise())
        motion = RecordedMotion(
            self.bag, self.topics, inputs, self.frames, self.settings.node.map_frame, MotionBuffer(config.buffer_limits)
        )
        imu = self.topics.imu if config.use_tilt else None
        moving = [topic.name for topic in (imu, self.topics.odometry) if topic is not None]
        messages = self.bag.messages([*(topic.name for topic in self.topics.images), *moving])
        if self.topics.rig is not None:
            yield from self._sets(self.topics.rig, messages, motion, set(moving), inputs)
            return
        for message in messages:
            if message.topic == self.topics.image.name:
                yield RecordedImage(self, inputs, self._stamp_ns(message), self._decoder(message))
            else:
                motion.take(message)

    def _sets(
        self,
        rig: RecordedRig,
        messages: Iterable[BagMessage],
        motion: RecordedMotion,
        moving: set[str],
        inputs: SessionInputs,
    ) -> Iterator[RecordedImage]:
        """The sets of a rig's images. moving: topics of the motion."""
        paired = PairedTopics(self.bag, rig.sources, self.settings.rig)
        panoramas = functools.cache(lambda ground: rig_panoramas(rig, ground, inputs, self.settings))

        def recorded(images: ImageSet) -> RecordedImage:
            return RecordedImage(self, inputs, images.stamp_ns, lambda ground: panoramas(ground).panorama(images))

        for message in messages:
            if message.topic in moving:
                motion.take(message)
            yield from map(recorded, paired.take(message))
        yield from map(recorded, paired.end())

    def _stamp_ns(self, message: BagMessage) -> int | None:
        try:
            return stamp_ns(self.bag.deserialize(message).header)
        except InputError as error:
            self.bag.note(str(error))
            return None

    def _decoder(self, message: BagMessage) -> Callable[[GroundSpec], CameraImage | Rejection]:
        return lambda ground: decode_image(self.bag, message, enough_columns(ground))

    def camera_at(self, east_m: float, north_m: float, yaw_rad: float) -> tuple[float, float]:
        """East and north of the camera where base_link has a pose."""
        return Pose2(east_m, north_m, yaw_rad).apply(self.mount.x_m, self.mount.y_m)


@dataclass(frozen=True)
class RecordedImage:
    """An image, or those of a rig, between the samples that were recorded before and after it."""

    recording: Recording
    inputs: SessionInputs
    recorded_ns: int | None
    """The stamp; None where the message is damaged."""
    decode: Callable[[GroundSpec], CameraImage | Rejection]
    """Its pixels as large as a network needs them."""

    @property
    def stamp_ns(self) -> int | None:
        """Of the exposure; None where the message is damaged."""
        return None if self.recorded_ns is None else self.recorded_ns + self._offset_ns

    @property
    def _offset_ns(self) -> int:
        return ns_from_s(self.recording.settings.session.stamp_offset_s)

    def decoded(self, ground: GroundSpec) -> CameraImage | Rejection:
        """The image with its tilt, or why the node would reject it. ground: what the network takes in."""
        image = self.decode(ground)
        if isinstance(image, Rejection):
            return image
        image = dataclasses.replace(image, stamp_ns=image.stamp_ns + self._offset_ns)
        sample = self.inputs.read(image.stamp_ns).imu
        if sample is not None:
            image = dataclasses.replace(image, roll_rad=sample.roll_rad, pitch_rad=sample.pitch_rad)
        mount, config = self.recording.mount, self.recording.settings.localizer
        return (
            check_image(image, mount, config)
            or check_seen(image, how_much_is_seen(image, mount, ground), config)
            or image
        )


def read_drive(recording: Recording, ground_spec: GroundSpec, *, spacing_m: float, largest_sigma_m: float) -> Drive:
    """Choose the images of a drive that can be used and make their panoramas.

    An image is decoded only if everything else speaks for it: of a camera with 30 Hz, or one that stands for ten
    minutes, few are.
    """
    shape = (recording.most_images, ground_spec.height, ground_spec.width, 3)
    with tempfile.TemporaryFile() as stream:  # the mapping keeps it
        panoramas = np.memmap(stream, np.uint8, "w+", shape=shape)
    apart = _Spacing(spacing_m)
    stamps, positions, sigmas, uses, bad = [], [], [], [], []
    kept: list[tuple[float, float, float, float]] = []
    for image in recording.images():
        stamp = image.stamp_ns
        camera, sigma_m, use = (math.nan, math.nan), math.nan, Use.BAD_IMAGE
        truth = None if stamp is None else recording.truth.at(stamp)
        if stamp is None or truth is None:
            use = Use.BAD_IMAGE if stamp is None else Use.NO_TRUTH
        else:
            yaw_rad = truth.yaw_rad
            if yaw_rad is None and _moved_m(recording.truth, stamp) >= COURSE_LEAST_M:
                yaw_rad = truth.course_rad
            sigma_m = semi_major_sigma(truth.covariance_m2)
            camera = recording.camera_at(truth.east_m, truth.north_m, yaw_rad or 0.0)
            if sigma_m > largest_sigma_m:
                use = Use.POOR_TRUTH
            elif yaw_rad is None:
                use = Use.NO_HEADING
            elif apart.has_near(*camera):
                use = Use.TOO_NEAR
            elif not _is_covered(recording.ground, camera):
                use = Use.NOT_COVERED
            else:
                pixels = image.decoded(ground_spec)
                if isinstance(pixels, Rejection):
                    use = Use.BAD_IMAGE
                    bad.append(f"{pixels.reason.value}: {pixels.detail}")
                else:
                    use = Use.USED
                    heading = Heading(yaw_rad, 1.0, HeadingSource.CONSTANT)
                    panoramas[len(kept)] = prepare_panorama(pixels, ground_spec, recording.mount, heading).pixels
                    kept.append((*camera, sigma_m, yaw_rad))
                    apart.add(*camera)
        stamps.append(0 if stamp is None else stamp)
        positions.append(camera)
        sigmas.append(sigma_m)
        uses.append(use)
    table = np.array(kept, np.float64).reshape(-1, 4)
    return Drive(
        recording=recording,
        exposures=Exposures(
            np.array(stamps, np.int64), np.array(positions).reshape(-1, 2), np.array(sigmas), tuple(uses)
        ),
        positions_m=table[:, :2],
        sigmas_m=table[:, 2],
        yaw_rad=table[:, 3],
        panoramas=panoramas[: len(table)],
        ground_spec=ground_spec,
        bad_images=tuple(bad[:3]),
    )


class _Spacing:
    """Whether a place is near one that was added: squares of the distance's side, so that few are compared."""

    def __init__(self, distance_m: float) -> None:
        self._distance_m = distance_m
        self._cells: dict[tuple[int, int], list[tuple[float, float]]] = {}

    def has_near(self, east_m: float, north_m: float) -> bool:
        if not self._distance_m:
            return False
        column, row = self._cell(east_m, north_m)
        return any(
            math.hypot(east - east_m, north - north_m) < self._distance_m
            for x in (column - 1, column, column + 1)
            for y in (row - 1, row, row + 1)
            for east, north in self._cells.get((x, y), ())
        )

    def add(self, east_m: float, north_m: float) -> None:
        if self._distance_m:
            self._cells.setdefault(self._cell(east_m, north_m), []).append((east_m, north_m))

    def _cell(self, east_m: float, north_m: float) -> tuple[int, int]:
        return math.floor(east_m / self._distance_m), math.floor(north_m / self._distance_m)


def _moved_m(truth: Truth, stamp_ns: int) -> float:
    """Distance between the ends of the window from which `Truth` takes the course; 0 beside a gap."""
    half = ns_from_s(COURSE_WINDOW_S / 2)
    first, last = truth.at(stamp_ns - half), truth.at(stamp_ns + half)
    if first is None or last is None:
        return 0.0
    return math.hypot(last.east_m - first.east_m, last.north_m - first.north_m)


def _is_covered(ground: Ground, camera: tuple[float, float]) -> bool:
    tile = ground.cut(ground.snapped(np.array(camera)))
    middle = tile.valid.shape[0] // 2
    return bool(tile.valid[middle, middle]) and is_known(tile)
