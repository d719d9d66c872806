"""Which images of a drive are looked at: rules about their stamps, and about images that repeat."""

from __future__ import annotations

import math
import zlib

from unifygeo_ros.core.arrays import UInt8
from unifygeo_ros.core.records import CameraImage, Rejection, RejectionReason
from unifygeo_ros.core.time import NS_PER_S, s_from_ns
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.inputs import SessionInputs

CHECKSUM_STEP = 8
"""Every eighth row and column is compared: the noise of a live sensor changes some of their pixels."""


class ImageRules:
    """Remembers the last image. For one thread."""

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._last_located_ns: int | None = None
        self._not_before_ns = 0
        self._repetitions = Repetitions()

    def jumped_back(self, stamp_ns: int, config: SessionConfig) -> bool:
        """Whether a stamp lies so far before the last image's that the clock must have been set back."""
        return stamp_ns > 0 and self._last_ns is not None and s_from_ns(self._last_ns - stamp_ns) > config.time_jump_s

    def restamp(self, moved_ns: int) -> None:
        """The stamps are moved by so much from now on. Images before the last one's former stamp are left out."""
        if self._last_ns is not None:
            self._not_before_ns = max(self._not_before_ns, self._last_ns)
            self._last_ns += moved_ns
        if self._last_located_ns is not None:
            self._last_located_ns += moved_ns

    def refusal(self, image: CameraImage, inputs: SessionInputs, config: SessionConfig) -> Rejection | None:
        """Why an image is not to be looked at, or None."""
        return self._by_stamp(image.stamp_ns, config) or self._by_repetition(image, inputs, config)

    def _by_stamp(self, stamp: int, config: SessionConfig) -> Rejection | None:
        def rejection(reason: RejectionReason, detail: str) -> Rejection:
            return Rejection(stamp, reason, detail)

        if stamp <= 0:
            return rejection(RejectionReason.BAD_STAMP, f"stamp {stamp} ns is not after 0; stamp the images")
        if self._last_ns is not None and stamp <= self._last_ns:
            back_ns = self._last_ns - stamp
            back = f"{s_from_ns(back_ns):.3f} s" if back_ns >= NS_PER_S // 1000 else f"{back_ns} ns"
            order = f"{back} before the last image's" if back_ns else "the same as the last image's"
            return rejection(RejectionReason.BAD_STAMP, f"stamp {order}; it is dropped")
        self._last_ns = stamp
        if stamp <= self._not_before_ns:
            detail = "the stamps were moved back; images are left out until they are newer than the last fix"
            return rejection(RejectionReason.RATE_LIMIT, detail)
        if self._last_located_ns is not None:
            interval_s = s_from_ns(stamp - self._last_located_ns)
            if interval_s < config.minimum_interval_s:
                return rejection(
                    RejectionReason.RATE_LIMIT,
                    f"{interval_s:.3f} s after the last image, minimum_interval_s is {config.minimum_interval_s:g}",
                )
        self._last_located_ns = stamp
        return None

    def _by_repetition(self, image: CameraImage, inputs: SessionInputs, config: SessionConfig) -> Rejection | None:
        detail = self._repetitions.problem(image.pixels, image.stamp_ns, inputs, config)
        return None if detail is None else Rejection(image.stamp_ns, RejectionReason.FROZEN_IMAGE, detail)


class Repetitions:
    """Finds out whether a camera is frozen. For one camera and one thread."""

    def __init__(self) -> None:
        self._checksum: int | None = None
        self._first_shown_ns = 0  # of the image with that checksum
        self._repeats = 0

    def problem(self, pixels: UInt8, stamp_ns: int, inputs: SessionInputs, config: SessionConfig) -> str | None:
        """Say why an image is frozen, or None.

        Its pixels are those of the one before, while the vehicle moved or too often in a row.

        Args:
            pixels: uint8 (H, W, 3), of the camera's next image.
            stamp_ns: Its exposure.
            inputs: The odometry.
            config: The limits.
        """
        checksum = zlib.crc32(pixels[::CHECKSUM_STEP, ::CHECKSUM_STEP].tobytes())
        if self._checksum != checksum:
            self._checksum, self._first_shown_ns, self._repeats = checksum, stamp_ns, 0
            return None
        self._repeats += 1
        motion = inputs.span(self._first_shown_ns, stamp_ns)
        if motion:
            moved_m = math.hypot(motion[-1].x_m - motion[0].x_m, motion[-1].y_m - motion[0].y_m)
            if moved_m < config.frozen_distance_m:
                return None
            limit = f"limit {config.frozen_distance_m:g} m"
            return f"same pixels after {moved_m:.1f} m of odometry, {limit}; restart the camera"
        if self._repeats < config.frozen_repeats:
            return None
        return f"same pixels {self._repeats + 1} times in a row, limit {config.frozen_repeats}; restart the camera"
