"""Is the camera what it is said to be? Other ways in which it may be mounted, tried on the images of the drive.

A panorama that is mirrored, turned or upside down still looks like a panorama, and the network finds a place for it
now and then. What gives it away is that the same image, put right, fits the map clearly better. So the images of a
drive are encoded as other mounts would have it, and the best re-ranking scores are compared. A
drive gives no fix until it has shown that no other mount fits better, and says in words which one does.

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

MARGIN = 0.02
"""Added to how much better an image fits as configured. Networks that hardly notice an alternative, such as a small
pitch, must not lose fixes by it. It counts for a wrong mount as well: with 0.05, and every image compared with all
alternatives, a camera turned by 180° was confirmed in 12 of 48 pieces of tuning drives, with 0.02 in none."""

LARGEST = 0.25
"""One comparison counts by at most this. On rendered drives the right mount fits better by 0.2 to 0.5 in the mean,
with standard deviations of 0.1."""

FOR_CONFIGURED = 0.4
"""Evidence against an alternative with which it is ruled out."""

AGAINST_CONFIGURED = 0.4
"""Evidence for an alternative with which the drive speaks for it."""

MOST = 0.8
"""Evidence is kept within this, so that a mount that changes on the way is noticed after some images."""

LEAST_TELLING = 0.6
"""Images that show a smaller share of the azimuths are not compared: with half of them seen, a mirrored or turned image
fits the map as well as the right one in the mean (differences 0.00 ± 0.12), with three quarters by 0.04 worse."""

LEAST_COMPARISONS = 2
"""No alternative is named before each was compared so often: a turned camera may fit better upside down, too."""


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
    """What the images of one drive say about the mount: for each alternative, the evidence against it.

    An image adds to it how much better it fits the map as configured than with the alternative, plus `MARGIN`. Each
    comparison costs an encoding: until the mount is confirmed an image is compared with all alternatives, since there
    is no fix before, and then some images with one.
    """

    def __init__(self, every: int) -> None:
        """Compare one image in `every`, once the mount is confirmed; 0: none."""
        self._every = every
        self._images = 0
        self._evidence = {alternative.words: 0.0 for alternative in ALTERNATIVES}
        self._compared_at = dict.fromkeys(self._evidence, 0)
        self._comparisons: Counter[str] = Counter()
        self._better: Counter[str] = Counter()
        self._confirmed = not every

    @property
    def verdict(self) -> Alternative | None:
        """The alternative that the drive speaks for, if it speaks for one."""
        if min(self._comparisons[words] for words in self._evidence) < LEAST_COMPARISONS:
            return None
        least = min(ALTERNATIVES, key=lambda alternative: self._evidence[alternative.words])
        return least if self._evidence[least.words] <= -AGAINST_CONFIGURED else None

    @property
    def confirmed(self) -> bool:
        """Whether the drive speaks for the mount as configured, against every alternative."""
        return self._confirmed and self.verdict is None

    def due(self) -> tuple[Alternative, ...]:
        """The alternatives that the next image is to be compared with."""
        if not self._every:
            return ()
        self._images += 1
        if self.confirmed and self._images % self._every:
            return ()
        if not self.confirmed:
            return ALTERNATIVES
        return (min(ALTERNATIVES, key=lambda a: (self._evidence[a.words], self._compared_at[a.words])),)

    def compared(self, scores: Mapping[str, float]) -> None:
        """Take in the scores of an image, by `Alternative.words` and for `CONFIGURED`."""
        for words in scores.keys() - {CONFIGURED}:
            gain = scores[CONFIGURED] - scores[words] + MARGIN
            evidence = self._evidence[words] + min(max(gain, -LARGEST), LARGEST)
            self._evidence[words] = min(max(evidence, -MOST), MOST)
            self._compared_at[words] = self._images
            self._comparisons[words] += 1
            self._better[words] += gain < 0
        enough = all(evidence >= FOR_CONFIGURED for evidence in self._evidence.values())
        self._confirmed = enough or (self._confirmed and self.verdict is None)

    @property
    def problem(self) -> str | None:
        """Why there is to be no fix yet, or None."""
        if self.confirmed:
            return None
        left = [words for words, evidence in self._evidence.items() if evidence < FOR_CONFIGURED]
        return self.warning or (
            f"the images have not shown yet that the camera is mounted as configured, and not {' or '.join(left)}; if "
            "that goes on, check the camera's parameters and the heading"
        )

    @property
    def warning(self) -> str | None:
        """An alternative that the drive speaks for, in words and with the remedy; None where there is none."""
        found = self.verdict
        if found is None:
            return None
        return (
            f"the images look {found.words}: {self._better[found.words]} of {self._comparisons[found.words]} fit the "
            f"map better that way than as configured; {found.remedy}; until then no fix is given"
        )
