"""What must be added to an IMU's yaw, found from the motion: the drive's own yaw, minus the IMU's.

Where the images show the vehicle, and the odometry's motion between them, say which way it faces, whatever its IMU says
(`StampErrorFilter.yaw`). The difference stays the same for an IMU that is mounted askew, or for a declination that was
left out. A compass near iron errs with the heading; that makes the estimate less certain.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.robust import robust_mean, spread
from unifygeo_ros.motion.stamp_error import SIGNIFICANT

LARGEST_SIGMA_RAD = math.radians(1.5)
"""Standard deviation of the drive's yaw beyond which it is not compared."""

LEAST_IMAGES = 20
"""An estimate from fewer images is not named."""

KEPT = 500
"""The estimate is made from the last so many images."""

WANDER_M = 50.0
"""Differences this far apart on the way have independent errors."""

LEAST_OFFSET_RAD = math.radians(1.5)
"""A smaller error is not named: a heading may be wrong by several degrees before it costs fixes."""


@dataclass(frozen=True)
class ImuOffset:
    """What must be added to the IMU's yaw, as far as it is known."""

    offset_rad: float
    sigma_rad: float
    """Its standard deviation."""
    images: int
    """How many images it was estimated from."""

    @property
    def text(self) -> str:
        """For the diagnostics, in degrees."""
        if not self.images:
            return "unknown"
        return f"{math.degrees(self.offset_rad):.1f} ± {math.degrees(self.sigma_rad):.1f}"

    def contradicts(self, configured_rad: float) -> bool:
        """Whether the offset in use is clearly wrong."""
        away_rad = abs(wrap_angle(self.offset_rad - configured_rad))
        return self.images >= LEAST_IMAGES and away_rad > max(SIGNIFICANT * self.sigma_rad, LEAST_OFFSET_RAD)

    def warning(self, configured_rad: float) -> str | None:
        """What to do about it, in words, or None where nothing is certain. configured_rad: the offset in use."""
        if not self.contradicts(configured_rad):
            return None
        away_deg = math.degrees(wrap_angle(self.offset_rad - configured_rad))
        return (
            f"the IMU's yaw is off by {-away_deg:.1f} ± {math.degrees(self.sigma_rad):.1f}°, compared with the drive; "
            f"set session.imu_yaw_offset_rad: {self.offset_rad:.3f}"
        )


UNKNOWN_OFFSET = ImuOffset(0.0, math.inf, 0)


class ImuOffsetEstimator:
    """The estimate of one drive."""

    def __init__(self) -> None:
        self.estimate = UNKNOWN_OFFSET
        self._first_rad: float | None = None
        self._seen: deque[tuple[float, float, float]] = deque(maxlen=KEPT)
        """Difference from the first one, standard deviation of the drive's yaw, way so far."""

    def see(self, yaw_rad: float, sigma_rad: float, imu_yaw_rad: float, way_m: float) -> None:
        """Take in one image, and renew the estimate.

        The estimate is the mean difference. Its standard deviation has two parts: that of the drive's yaw, as if all
        images had the same error, and that of the differences' mean, with one independent difference in `WANDER_M`.

        Args:
            yaw_rad: of base_link in the map, by the drive.
            sigma_rad: its standard deviation.
            imu_yaw_rad: as the IMU gives it, without the offset.
            way_m: driven so far.
        """
        if sigma_rad > LARGEST_SIGMA_RAD:
            return
        difference_rad = wrap_angle(yaw_rad - imu_yaw_rad)
        if self._first_rad is None:
            self._first_rad = difference_rad
        self._seen.append((wrap_angle(difference_rad - self._first_rad), sigma_rad, way_m))
        differences, sigmas, ways = np.array(self._seen).T
        mean, _ = robust_mean(differences)
        independent = 1 + float(ways[-1] - ways[0]) / WANDER_M
        uncertainty_rad = math.hypot(float(sigmas.mean()), spread(differences) / math.sqrt(independent))
        self.estimate = ImuOffset(wrap_angle(self._first_rad + mean), uncertainty_rad, len(self._seen))
