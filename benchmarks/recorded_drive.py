"""A drive of `unifygeo-train towns drive` in memory, to be played to a session many times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from unifygeo_ros.aerial.index import TileIndex
from unifygeo_ros.conversions.from_messages import imu_sample, odometry_sample
from unifygeo_ros.evaluation.recordings.bags import Bag
from unifygeo_ros.evaluation.recordings.truth import Truth
from unifygeo_ros.evaluation.replay import choose_topics, read_truth
from unifygeo_ros.evaluation.settings import TruthSettings
from unifygeo_ros.motion.samples import ImuSample, OdometrySample


@dataclass(frozen=True)
class RecordedDrive:
    """What arrived, in order, and the truth."""

    arrivals: list[Any]
    """`OdometrySample`, `ImuSample`, and images as the bag's messages: decoded, they would fill the memory."""
    truth: Truth


class TakesMotion(Protocol):
    """A session, or what stands before one."""

    def add_odometry(self, sample: OdometrySample) -> str | None: ...

    def add_imu(self, sample: ImuSample) -> str | None: ...


def images_in_turn(arrivals: Iterable[Any], session: TakesMotion, *, odometry: bool = True) -> Iterator[Any]:
    """Each image when it is its turn: a session has been given the motion that arrived before it.

    Args:
        arrivals: As in `RecordedDrive`; what is no sample of motion is an image, and is yielded as it is.
        session: Takes the motion.
        odometry: Without it the session gets the IMU alone.
    """
    for item in arrivals:
        if isinstance(item, OdometrySample):
            if odometry:
                session.add_odometry(item)
        elif isinstance(item, ImuSample):
            session.add_imu(item)
        else:
            yield item


def read_drive(folder: Path, index: TileIndex) -> RecordedDrive:
    """Read the bag in a drive's folder. The truth comes in the index's map frame."""
    bag = Bag(folder / "bag")
    topics = choose_topics(bag, odometry="/odom", truth="/ground_truth/odometry")
    assert topics.truth is not None
    settings = TruthSettings()
    truth = Truth(
        read_truth(bag, topics.truth),
        index.frame,
        plane_frame=settings.truth_frame,
        max_gap_s=settings.truth_max_gap_s,
        default_sigma_m=settings.truth_sigma_m,
        lever_arm_m=(0.0, 0.0),
    )
    arrivals: list[Any] = []
    names = [topic.name for topic in (*topics.images, topics.odometry, topics.imu) if topic is not None]
    for message in bag.messages(names):
        content = bag.deserialize(message)
        if message.topic == topics.image.name:
            arrivals.append(content)
        elif topics.imu is not None and message.topic == topics.imu.name:
            arrivals.append(imu_sample(content))
        else:
            arrivals.append(odometry_sample(content))
    return RecordedDrive(arrivals, truth)
