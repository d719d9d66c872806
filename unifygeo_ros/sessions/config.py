"""Settings of a session."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.settings import check_settings, setting
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.motion.samples import BufferLimits


@dataclass(frozen=True)
class SessionConfig:
    """Settings of a session: where prior and heading come from, and the rules about time.

    Fields made by `setting` are parameters; the others are constants, fields only so that experiments can change them.
    """

    mode: str = setting(
        "sequence",
        "sequence: a filter over the whole drive, which wants odometry; single: each image on its own",
        choices=("sequence", "single"),
    )
    prior_source: str = setting(
        "none",
        "what limits the search: none (the whole index), odometry (its pose in the map frame), "
        "last_fix (the last fix, or an initial pose, propagated by odometry if there is any)",
        choices=("none", "odometry", "last_fix"),
        acts="mode single",
    )
    heading_source: str = setting(
        "none",
        "what orients the panorama: none (searched for), odometry (its yaw in the map frame), imu, constant",
        choices=("none", "odometry", "imu", "constant"),
    )
    heading_constant_rad: float = setting(
        0.0,
        "yaw of base_link in the map frame for heading_source constant, counter-clockwise from east",
        minimum=-math.pi,
        maximum=math.pi,
        acts="heading_source constant",
    )
    imu_yaw_offset_rad: float = setting(
        0.0,
        "added to the IMU's yaw to make it counter-clockwise from true east (declination, mounting)",
        minimum=-math.pi,
        maximum=math.pi,
        acts="heading_source imu",
    )
    use_tilt: bool = setting(
        True, "level the panorama by the IMU's roll and pitch where there is an IMU", acts="with an IMU"
    )
    prior_sigma_m: float = setting(
        5.0,
        "standard deviation added in quadrature to each axis of the odometry's position, since a filter's own "
        "covariance is optimistic",
        minimum=0.1,
        maximum=10_000.0,
        acts="prior_source odometry",
    )
    stamp_offset_s: float = setting(
        0.0,
        "added to the images' stamps to get the time of exposure; a driver that stamps late needs a negative one",
        minimum=-10.0,
        maximum=10.0,
    )
    stamp_sigma_s: float = setting(
        0.1,
        "standard deviation of the images' stamps, with stamp_offset_s added, about the exposure: a fix's covariance "
        "includes how far the vehicle moves in that time, until the drive shows how late the images are",
        minimum=0.0,
        maximum=2.0,
    )
    minimum_interval_s: float = setting(
        0.0, "images closer than this to the last one localized are skipped", minimum=0.0, maximum=3600.0, live=True
    )
    sample_gap_s: float = setting(
        0.5,
        "samples further apart are a gap: nothing is interpolated across it",
        minimum=0.01,
        maximum=10.0,
        advanced=True,
    )
    extrapolation_s: float = setting(
        0.2,
        "how far an image may be ahead of the newest sample for it still to be used",
        minimum=0.0,
        maximum=10.0,
        acts="with odometry or IMU",
    )
    camera_check_images: int = setting(
        5,
        "one image in so many is compared with itself mirrored, turned, upside down, pitched or unstretched, one of "
        "them in turn, to see whether the camera is still mounted as configured; the first images are compared with "
        "all of them, and there is no fix before the mount is confirmed; 0: no comparison",
        minimum=0,
        maximum=10_000,
        acts="with a heading",
        advanced=True,
    )

    last_fix_age_s: float = 30.0
    """Age at which the last fix is no longer a prior: without odometry, its gate is then hundreds of metres wide."""
    last_fix_failures: int = 3
    """Images rejected in a row after which the last fix is no longer a prior: it may have been false."""
    time_jump_s: float = 1.0
    """An image whose stamp lies back by more than this restarts the session: a bag that starts again jumps by its
    length, and stamps in disorder by a few periods of the camera."""
    buffer_age_s: float = 30.0
    """Odometry and IMU samples are kept this long, which is as far back as an image may come."""
    frozen_distance_m: float = 0.5
    """An image repeated pixel by pixel while the odometry moved this far is frozen: no two real images are equal."""
    frozen_repeats: int = 3
    """Without odometry, repetitions of an image after which it is frozen: a driver may publish one image twice."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.mode == "sequence" and self.prior_source != "none":
            raise ConfigurationError(
                f"prior_source is {self.prior_source} in mode sequence, which carries its own prior; set it to "
                "none, or mode to single"
            )

    @property
    def buffer_limits(self) -> BufferLimits:
        return BufferLimits(
            age=ns_from_s(self.buffer_age_s),
            gap=ns_from_s(self.sample_gap_s),
            extrapolation=ns_from_s(self.extrapolation_s),
            time_jump=ns_from_s(self.time_jump_s),
        )
