"""What a session returns for one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

from unifygeo_ros.core.records import CameraImage, Fix, Observation, Query, Rejection
from unifygeo_ros.motion.imu_offset import UNKNOWN_OFFSET, ImuOffset
from unifygeo_ros.motion.stamp_error import UNKNOWN, StampError
from unifygeo_ros.sessions.corrections import NO_CORRECTIONS, Corrections
from unifygeo_ros.tracking.track import TrackStatus


@dataclass(frozen=True)
class Outcome:
    """The result for one image, and how it came about."""

    result: Fix | Rejection
    image: CameraImage
    """The image as it was localized: with the stamp of exposure and the vehicle's tilt."""
    query: Query | None = None
    """What the localizer was asked; None: the image was refused before it was looked at, or its result was dropped."""
    observation: Observation | None = None
    """None where the localizer rejected the image, and where `query` is None."""
    track: TrackStatus | None = None
    """Of the tracker after this image; None in mode single, and while no image has been localized."""
    localizer_cpu_ms: float = 0.0
    """Processor time of the calling thread inside the localizer."""
    stamp_error: StampError = UNKNOWN
    """How late the images are stamped, after this image."""
    imu_offset: ImuOffset = UNKNOWN_OFFSET
    """What must be added to the IMU's yaw, after this image; unknown where the IMU does not give the heading."""
    corrections: Corrections = NO_CORRECTIONS
    """In use for this image."""
    warnings: tuple[str, ...] = ()
    """What the drive so far shows to be set up wrongly, in words."""

    @property
    def timings_ms(self) -> Mapping[str, float]:
        """Milliseconds by stage, and the "total"."""
        return self.result.timings_ms
