"""Corrections of the set-up that a session makes while driving, where `apply_estimates` asks for them.

Only what the drive shows beyond doubt is corrected, and only within bounds:

* Images that are stamped late. Images that look early are not corrected: no driver stamps before the exposure, so it is
  the odometry that is late, and moving the images would hide that.
* The offset of an IMU that gives the heading.

An estimate is not made from what it changed. How late the images are is a state of a filter that knows the offset in
use, and a change of that offset moves the state by the same amount. The drive's yaw does not look at the IMU.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.motion.imu_offset import ImuOffset
from unifygeo_ros.motion.stamp_error import SIGNIFICANT, StampError
from unifygeo_ros.sessions.config import SessionConfig

LEAST_LATE_S = 0.1
"""Smaller errors of the stamps are named, but not corrected: a camera position that is wrong by a metre looks like 0.05
to 0.1 s."""

ENOUGH_SIGMA_S = 0.05
"""An estimate with a larger standard deviation is not used. Before a correction it hardly falls below 0.04 s: the error
itself makes every fix less certain."""

LEAST_IMAGES = 20
"""Nor is one from fewer images."""

MOST_LATE_S = 1.0
"""The stamps are moved by this much at most, in all. Images that are later are dropped from a queue somewhere."""

MOST_OFFSET_RAD = math.radians(20.0)
"""The IMU's offset is changed by this much at most, in all. With a larger error hardly any image gets a fix, and those
that do may be wrong."""


@dataclass(frozen=True)
class Corrections:
    """What is added to the configured values."""

    stamp_offset_s: float = 0.0
    """To `SessionConfig.stamp_offset_s`: 0 or negative."""
    imu_yaw_offset_rad: float = 0.0
    """To `SessionConfig.imu_yaw_offset_rad`."""

    def applied_to(self, config: SessionConfig) -> SessionConfig:
        """The settings in use."""
        if self == NO_CORRECTIONS:
            return config
        return dataclasses.replace(
            config,
            stamp_offset_s=max(config.stamp_offset_s + self.stamp_offset_s, -10.0),  # the parameter's own limit
            imu_yaw_offset_rad=wrap_angle(config.imu_yaw_offset_rad + self.imu_yaw_offset_rad),
        )

    def after(self, late: StampError, imu: ImuOffset, config: SessionConfig) -> Corrections:
        """The corrections to use from now on.

        Args:
            late: how late the images are, with these corrections.
            imu: what must be added to the IMU's yaw, in all.
            config: as configured.
        """
        return Corrections(self._stamps(late), self._imu(imu, config))

    def _stamps(self, late: StampError) -> float:
        certain = late.images >= LEAST_IMAGES and late.sigma_s <= ENOUGH_SIGMA_S
        clear = abs(late.late_s) > max(SIGNIFICANT * late.sigma_s, LEAST_LATE_S)
        moved_s = round(self.stamp_offset_s - late.late_s, 3)
        if not (certain and clear) or moved_s < -MOST_LATE_S:
            return self.stamp_offset_s
        return min(moved_s, 0.0)

    def _imu(self, imu: ImuOffset, config: SessionConfig) -> float:
        in_use_rad = wrap_angle(config.imu_yaw_offset_rad + self.imu_yaw_offset_rad)
        changed_rad = round(wrap_angle(imu.offset_rad - config.imu_yaw_offset_rad), 4)
        if not imu.contradicts(in_use_rad) or abs(changed_rad) > MOST_OFFSET_RAD:
            return self.imu_yaw_offset_rad
        return changed_rad


NO_CORRECTIONS = Corrections()
