"""Images of a rig → the panorama of a session: each camera checked, moved to one instant, composed.

A camera whose image cannot be decoded, is black, white or frozen, or has another size than its calibration, costs its
sector: the panorama is composed of the others.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Mapping

from unifygeo_ros.core.arrays import UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import CameraImage, Rejection, RejectionReason
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.core.time import ns_from_s
from unifygeo_ros.rig.composer import STANDING, CameraView, Composer
from unifygeo_ros.rig.image_check import image_problem
from unifygeo_ros.rig.pairing import ImageSet, StampedImage
from unifygeo_ros.rig.rig import Rig
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.image_rules import Repetitions
from unifygeo_ros.sessions.inputs import SessionInputs

DECODERS = 2
"""Images that are decoded at the same time. Decoding is the largest part of a panorama's cost, and OpenCV does it
without Python's lock."""


@dataclass(frozen=True)
class RigState:
    """How the cameras of the last set stood."""

    faults: Mapping[str, str]
    """By camera: why it is not in the panorama."""
    kinds: Mapping[str, RejectionReason]
    """Of those faults that an image of it shows."""
    gains: Mapping[str, float]
    """Factor on the brightness of each camera that is in it."""
    without_motion: tuple[str, ...]
    """Cameras that exposed at another instant and were not moved to it, for lack of odometry."""
    seen: float
    """Share of the sphere that is seen."""


class RigPanoramas:
    """Composes the sets of one rig. For one thread, but `state` may be read from any."""

    def __init__(
        self,
        rig: Rig,
        sources: Mapping[str, tuple[str, ...]],
        width: int,
        inputs: SessionInputs,
        config: SessionConfig,
        minimum_brightness: float,
        decode: Callable[[Any, int | None], CameraImage],
    ) -> None:
        """Prepare the composing.

        Args:
            rig: The cameras.
            sources: Names of the cameras by the source of their images: two circles of one image share it.
            width: Columns of the panorama.
            inputs: Whose odometry moves each camera to one instant.
            config: The session's: the stamps' offset, and when an image is frozen.
            minimum_brightness: Mean grey value under which an image is black.
            decode: A message and the least width of its image to pixels; raises InputError. Called from several
                threads at once.
        """
        self._composer = Composer(rig, width)
        self._lenses = {camera.name: camera.lens for camera in rig.cameras}
        self._sources = sources
        self._inputs, self._config = inputs, config
        self._minimum_brightness = minimum_brightness
        self._decode = decode
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")
        self._repetitions = {source: Repetitions() for source in sources}
        self._last_stamp_ns: dict[str, int] = {}
        self._frozen: dict[str, str | None] = {}
        self.state: RigState | None = None
        """Of the last set; None before the first one."""

    def panorama(self, images: ImageSet) -> CameraImage | Rejection:
        """The panorama at the set's stamp, or why there is none."""
        faults = {name: why for source, why in images.missing.items() for name in self._sources[source]}
        kinds: dict[str, RejectionReason] = {}
        views: dict[str, CameraView] = {}
        without_motion: list[str] = []
        decoded = self._decoders.map(self._decoded, images.images.keys(), images.images.values())
        for (source, image), pixels in zip(images.images.items(), decoded, strict=True):
            names = self._sources[source]
            if isinstance(pixels, InputError):
                faults.update(dict.fromkeys(names, str(pixels)))
                kinds.update(dict.fromkeys(names, RejectionReason.BAD_IMAGE))
                continue
            refused = self._refusals(source, image, pixels)
            faults.update({name: why for name, (_, why) in refused.items()})
            kinds.update({name: kind for name, (kind, _) in refused.items()})
            usable = [name for name in names if name not in refused]
            if not usable:
                continue
            motion = self._motion(image.stamp_ns, images.stamp_ns)
            if motion is None:
                without_motion += usable
            views.update(dict.fromkeys(usable, CameraView(pixels, STANDING if motion is None else motion)))
        if not views:
            self.state = RigState(faults, kinds, {}, (), 0.0)
            reasons = set(kinds.values())
            reason = reasons.pop() if len(reasons) == 1 and len(kinds) == len(faults) else RejectionReason.BAD_IMAGE
            listed = "; ".join(f"{name}: {why}" for name, why in faults.items())
            return Rejection(images.stamp_ns, reason, f"no camera of the rig can be used: {listed}")
        composed = self._composer.compose(views)
        self.state = RigState(faults, kinds, composed.gains, tuple(without_motion), float(composed.seen.mean()))
        seen = None if composed.seen.all() else composed.seen
        return CameraImage(composed.pixels, images.stamp_ns, seen=seen, composed=True)

    def _decoded(self, source: str, image: StampedImage) -> UInt8 | InputError:
        """The pixels of a source's image, or why its cameras cannot use them."""
        names = self._sources[source]
        try:
            pixels = self._decode(image.image, min(self._composer.least_width(name) for name in names)).pixels
            for name in names:
                self._composer.check(name, pixels)
        except InputError as error:
            return error
        return pixels

    def _motion(self, exposed_ns: int, instant_ns: int) -> Pose2 | None:
        """base_link at the panorama's instant relative to its pose at an exposure; None where that is not known."""
        if exposed_ns == instant_ns:
            return STANDING
        return self._inputs.moved(self._exposure_ns(exposed_ns), self._exposure_ns(instant_ns))

    def _exposure_ns(self, stamp_ns: int) -> int:
        return stamp_ns + ns_from_s(self._config.stamp_offset_s)

    def _refusals(self, source: str, image: StampedImage, pixels: UInt8) -> dict[str, tuple[RejectionReason, str]]:
        """Why an image that could be decoded must not be used, for each camera that must not use it."""
        names = self._sources[source]
        found = {}
        for name in names:
            problem = image_problem(pixels, self._lenses[name], self._minimum_brightness)
            if problem is not None:
                found[name] = problem
        if len(found) == len(names):
            return found
        if self._last_stamp_ns.get(source) != image.stamp_ns:  # a slower camera's image serves twice
            self._last_stamp_ns[source] = image.stamp_ns
            self._frozen[source] = self._repetitions[source].problem(
                pixels, self._exposure_ns(image.stamp_ns), self._inputs, self._config
            )
        frozen = self._frozen[source]
        return found if frozen is None else dict.fromkeys(names, (RejectionReason.FROZEN_IMAGE, f"frozen, {frozen}"))
