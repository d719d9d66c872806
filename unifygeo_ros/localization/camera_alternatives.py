"""Is the camera what it is said to be? Other ways in which it may be mounted, tried on the images of the drive.

A panorama that is mirrored, turned or upside down still looks like a panorama, and the network finds a place for it
now and then. What gives it away is that the same image, put right, fits the map clearly better. So some images are
encoded once for each alternative, and the best re-ranking scores are compared: image by image, to withhold a fix that
an alternative contradicts, and over the drive, to say in words which alternative it is.

A turned image cannot be told from one taken under another heading. So the comparison needs a heading.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import Mapping

import numpy as np

from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.localization.config import CameraMount

CONFIGURED = "as configured"

MARGIN = 0.05
"""An image speaks for an alternative if its re-ranking score is higher by this, else for the configured mount. Of 26
images of a rendered drive 8% spoke against the right mount, and 81 to 100% against a wrong one. Networks that hardly
notice an alternative, such as a small pitch, must not lose fixes by it."""

LEAST_IMAGES = 6
"""The drive is judged by at least so many images that speak for the same, and more than half of all."""

FIRST_IMAGES = 10
"""The first images of a drive are all compared."""


@dataclass(frozen=True)
class Alternative:
    """One way in which the camera may be mounted, or its image be written."""

    words: str
    """What the images would be then."""
    remedy: str
    mirrored: bool = False
    turn_rad: float = 0.0
    pitch_rad: float = 0.0
    upside_down: bool = False

    def applied(self, image: CameraImage, mount: CameraMount) -> tuple[CameraImage, CameraMount]:
        """The image and the mount with which it would be right."""
        if self.mirrored:
            seen = None if image.seen is None else np.ascontiguousarray(image.seen[:, ::-1])
            image = dataclasses.replace(image, pixels=np.ascontiguousarray(image.pixels[:, ::-1]), seen=seen)
        yaw_rad = math.remainder(mount.yaw_rad + self.turn_rad, 2 * math.pi)
        pitch_rad = max(-math.pi / 2, min(math.pi / 2, mount.pitch_rad + self.pitch_rad))
        upside_down = mount.upside_down != self.upside_down
        return image, dataclasses.replace(mount, yaw_rad=yaw_rad, pitch_rad=pitch_rad, upside_down=upside_down)


_YAW = "add {} to camera.yaw_rad, or check the heading"
_PITCH = "add about {} to camera.pitch_rad, or check the IMU's pitch"

ALTERNATIVES = (
    Alternative("mirrored", "mirror the camera's images (left and right are swapped)", mirrored=True),
    Alternative("turned by 180°", _YAW.format("π"), turn_rad=math.pi),
    Alternative("turned by 90° to the left", _YAW.format("π/2"), turn_rad=math.pi / 2),
    Alternative("turned by 90° to the right", _YAW.format("−π/2"), turn_rad=-math.pi / 2),
    Alternative("upside down", "change camera.upside_down", upside_down=True),
    Alternative("pitched down by about 10°", _PITCH.format("0.17"), pitch_rad=math.radians(10)),
    Alternative("pitched up by about 10°", _PITCH.format("−0.17"), pitch_rad=math.radians(-10)),
)


class CameraWatch:
    """What the images of one drive say about the mount."""

    def __init__(self, every: int) -> None:
        """Compare one image in `every`; 0: none."""
        self._every = every
        self._images = 0
        self._votes: Counter[str] = Counter()

    @property
    def verdict(self) -> str | None:
        """`CONFIGURED`, or the `Alternative.words` that the drive speaks for; None: not judged yet."""
        for words, votes in self._votes.most_common(1):
            if votes >= LEAST_IMAGES and 2 * votes > self._votes.total():
                return words
        return None

    def due(self, *, fixed: bool) -> bool:
        """Whether the next image is to be compared.

        The first ones are, then one in `every`, and until the mount is confirmed each that gives a fix.
        """
        if not self._every:
            return False
        self._images += 1
        needed = fixed and self.verdict != CONFIGURED
        return self._images <= FIRST_IMAGES or self._images % self._every == 0 or needed

    def compared(self, scores: Mapping[str, float]) -> str | None:
        """Take in the scores of an image, by `Alternative.words` and for `CONFIGURED`.

        Returns:
            The alternative that the image speaks for, or None.
        """
        best = max(scores, key=lambda words: scores[words])
        better = best if scores[best] > scores[CONFIGURED] + MARGIN else None
        self._votes[better or CONFIGURED] += 1
        return better

    @property
    def warning(self) -> str | None:
        """An alternative that the drive speaks for, in words and with the remedy; None where there is none."""
        for alternative in ALTERNATIVES:
            if alternative.words == self.verdict:
                return (
                    f"the images look {alternative.words}: {self._votes[alternative.words]} of {self._votes.total()} "
                    f"fit the map better that way than as configured; {alternative.remedy}; until then no fix is given"
                )
        return None
