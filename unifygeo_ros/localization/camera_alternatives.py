"""Is the camera what it is said to be? Other ways in which it may be mounted, tried on the images of the drive.

A panorama that is mirrored, turned, upside down or stretched still looks like a panorama, and the network finds a place
for it now and then. What gives it away is that the same image, put right, looks much more as if it had been taken on
the map. So the images of a drive are encoded as other mounts would have it, and what they show is compared.

For each alternative this is a sequential test (Wald, 1945). The bundle's calibration gives the odds r that an image
shows a place on the map against none (`Calibration.place_log_odds`); under a wrong mount it shows none. With π, the
share of the images that do under the right mount, the evidence of one image for the configured mount against an
alternative is the log-likelihood ratio

    ln((π r(as configured) + 1 − π) / (π r(alternative) + 1 − π)).

An image that shows a place under neither mount says nothing (the logarithm of 1), however much its scores differ; in
unfamiliar land many images are such. Images near each other show the same, so only what is new of an image counts. A
drive gives no fix until every alternative is ruled out, and says in words which one fits better, if one does.

A turned image cannot be told from one taken under another heading. So the comparison needs a heading.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import Mapping

import cv2
import numpy as np

from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.localization.panorama import with_mask_as_seen

CONFIGURED = "as configured"

CONFIRMED_BY_CHANCE = 0.05
"""At most this share of the drives with a wrong mount is taken to be mounted as configured (Wald's bound)."""

NAMED_BY_CHANCE = 0.01
"""At most this share of the drives with the right mount is said to have another, for all alternatives together."""

FOR_CONFIGURED = math.log(1 / CONFIRMED_BY_CHANCE)
"""Evidence against an alternative with which it is ruled out. With as much for it the mount is confirmed no longer."""

SETTLED = math.log(1000)
"""Evidence up to which every image is compared, while there are fixes already: one image that looks right by chance can
confirm a wrong mount, and the next ones take that back. Evidence is kept within this, so that a mount that changes on
the way is noticed after some images."""

LARGEST = math.log(100)
"""One image counts by at most this much, however far its clues lie beyond the data that the calibration was fitted
on. The tracker's belief in the map has the same limit (`tracking.on_map.RATIO_LIMIT`)."""

SHOW_A_PLACE = 0.5
"""π, the share of the images whose best tile is the right one. It was 40% in a land unlike the training's (the other
land of docs/measurements/training.md), and 71 to 100% in towns like those of the training."""

MARGIN = 0.1
"""Added to each comparison. Networks that do not notice an alternative, such as a small pitch, must not lose fixes by
it for ever: they take `FOR_CONFIGURED` / `MARGIN` images to rule it out."""

CORRELATION_M = 6.0
"""Distance after which 63% of an image is new. The evidence of two images correlates by about 0.5 at 3 to 6 m, 0.2 to
0.4 at 6 to 12 m and 0.0 beyond (three drives in rendered towns, two in the other land)."""

LEAST_NEW = 0.01
"""Share of an image that must be new for it to be compared, 6 cm of way: that of a vehicle that stands would count
nothing, and costs an encoding for each alternative."""

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
    elevations: float = 1.0
    """The image's elevations are so many times as large as those that are configured."""

    def possible(self, image: CameraImage, mount: CameraMount) -> bool:
        """Whether such a camera can be.

        No elevation lies beyond 90°. A panorama that is composed of a rig's images has the elevations that it is
        composed for.
        """
        if self.elevations == 1.0:
            return True
        farthest_rad = max(mount.elevation_top_rad, -mount.elevation_bottom_rad) * self.elevations
        return not image.composed and farthest_rad <= math.pi / 2 + 1e-6

    def of(self, image: CameraImage) -> Alternative:
        """The same with the remedy for this image: of a rig the parameters `camera.*` do not act."""
        return dataclasses.replace(self, remedy=_RIG) if image.composed else self

    def applied(self, image: CameraImage, mount: CameraMount) -> tuple[CameraImage, CameraMount]:
        """The image and the mount with which it would be right. Raises InputError where the mask cannot be used."""
        image, mount = with_mask_as_seen(image, mount)
        if self.mirrored:
            seen = None if image.seen is None else np.ascontiguousarray(image.seen[:, ::-1])
            image = dataclasses.replace(image, pixels=np.ascontiguousarray(image.pixels[:, ::-1]), seen=seen)
        if self.elevations != 1.0:
            height, width = image.pixels.shape[:2]
            size = width, max(1, round(height * self.elevations))
            pixels = np.asarray(cv2.resize(image.pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
            seen = image.seen
            if seen is not None:
                seen = cv2.resize(seen.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
            image = dataclasses.replace(image, pixels=pixels, seen=seen)
            mount = dataclasses.replace(
                mount,
                elevation_top_rad=mount.elevation_top_rad * self.elevations,
                elevation_bottom_rad=mount.elevation_bottom_rad * self.elevations,
            )
        yaw_rad = math.remainder(mount.yaw_rad + self.turn_rad, 2 * math.pi)
        pitch_rad = max(-math.pi / 2, min(math.pi / 2, mount.pitch_rad + self.pitch_rad))
        upside_down = mount.upside_down != self.upside_down
        return image, dataclasses.replace(mount, yaw_rad=yaw_rad, pitch_rad=pitch_rad, upside_down=upside_down)


_YAW = "add {} to camera.yaw_rad, or check the heading"
_FIELD = (
    "the images seem to show about {} of the configured elevations: have them sent unstretched, with the elevations of "
    "their edges in camera.elevation_top_rad and camera.elevation_bottom_rad"
)
_RIG = "correct the topics and mounts in the rig file (see `unifygeo rig check`), or check the heading"
_PITCH = "add about {} to camera.pitch_rad, or check the IMU's pitch"

ALTERNATIVES = (
    Alternative("mirrored", "mirror the camera's images (left and right are swapped)", mirrored=True),
    Alternative("turned by 180°", _YAW.format("π"), turn_rad=math.pi),
    Alternative("turned by 90° to the left", _YAW.format("π/2"), turn_rad=math.pi / 2),
    Alternative("turned by 90° to the right", _YAW.format("−π/2"), turn_rad=-math.pi / 2),
    Alternative("upside down", "change camera.upside_down", upside_down=True),
    Alternative("pitched down by about 10°", _PITCH.format("0.17"), pitch_rad=math.radians(10)),
    Alternative("pitched up by about 10°", _PITCH.format("−0.17"), pitch_rad=math.radians(-10)),
    Alternative("vertically stretched", _FIELD.format("two thirds"), elevations=2 / 3),
    Alternative("vertically squeezed", _FIELD.format("one and a half times"), elevations=3 / 2),
)

AGAINST_CONFIGURED = math.log(len(ALTERNATIVES) / NAMED_BY_CHANCE)
"""Evidence for an alternative with which the drive speaks for it."""


class CameraWatch:
    """What the images of one drive say about the mount: for each alternative, the evidence against it.

    Each comparison costs an encoding and a decoding: an image is compared with the alternatives that are not settled,
    or no longer, and where there are none, some images with one.
    """

    def __init__(self, every: int) -> None:
        """Compare one image in `every`, while all alternatives are settled; 0: none."""
        self._every = every
        self._images = 0
        self._alternatives: tuple[Alternative, ...] = ()
        self._evidence: dict[str, float] = {}
        self._compared_at: dict[str, int] = {}
        self._comparisons: Counter[str] = Counter()
        self._better: Counter[str] = Counter()
        self._confirmed = not every

    @property
    def verdict(self) -> Alternative | None:
        """The alternative that the drive speaks for, if it speaks for one."""
        if min((self._comparisons[words] for words in self._evidence), default=0) < LEAST_COMPARISONS:
            return None
        least = min(self._alternatives, key=lambda alternative: self._evidence[alternative.words])
        return least if self._evidence[least.words] <= -AGAINST_CONFIGURED else None

    @property
    def confirmed(self) -> bool:
        """Whether the drive speaks for the mount as configured, against every alternative."""
        return self._confirmed and self.verdict is None

    def due(self, image: CameraImage, mount: CameraMount) -> tuple[Alternative, ...]:
        """The alternatives that the next image is to be compared with. mount: as configured."""
        if not self._every:
            return ()
        if not self._alternatives:
            self._alternatives = tuple(a.of(image) for a in ALTERNATIVES if a.possible(image, mount))
            self._evidence = {alternative.words: 0.0 for alternative in self._alternatives}
            self._compared_at = dict.fromkeys(self._evidence, 0)
        self._images += 1
        left = tuple(a for a in self._alternatives if self._open(a.words))
        if left:
            return left
        if self._images % self._every:
            return ()
        return (min(self._alternatives, key=lambda a: self._compared_at[a.words]),)

    def compared(self, log_odds: Mapping[str, float], new_share: float = 1.0) -> None:
        """Take in an image.

        Args:
            log_odds: ln r of the module's docstring, by `Alternative.words` and for `CONFIGURED`.
            new_share: how much of the image is new, 0 … 1.
        """
        for words in log_odds.keys() - {CONFIGURED}:
            gain = _log_likelihood(log_odds[CONFIGURED]) - _log_likelihood(log_odds[words])
            step = new_share * (min(max(gain, -LARGEST), LARGEST) + MARGIN)
            evidence = self._evidence[words] + step
            self._evidence[words] = min(max(evidence, -2 * AGAINST_CONFIGURED), SETTLED)
            self._compared_at[words] = self._images
            self._comparisons[words] += 1
            self._better[words] += gain < 0
        least = min(self._evidence.values())
        self._confirmed = least >= FOR_CONFIGURED or (self._confirmed and least > -FOR_CONFIGURED)

    def _open(self, words: str) -> bool:
        return self._evidence[words] < SETTLED or self._comparisons[words] < LEAST_COMPARISONS

    @property
    def problem(self) -> str | None:
        """Why there is to be no fix yet, or None."""
        if self.confirmed:
            return None
        left = [words for words, evidence in self._evidence.items() if evidence < FOR_CONFIGURED]
        return self.warning or (
            f"the images have not shown yet that the camera is mounted as configured, and not {' or '.join(left)}; if "
            "that goes on, check the camera's parameters, or those of the rig, and the heading"
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


def _log_likelihood(log_odds: float) -> float:
    """ln(π r + 1 − π)."""
    return float(np.logaddexp(math.log(SHOW_A_PLACE) + log_odds, math.log1p(-SHOW_A_PLACE)))
