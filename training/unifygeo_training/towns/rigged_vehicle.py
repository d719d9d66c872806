"""The vehicle of a drive that is recorded with a rig: where its cameras are, when each exposes, what it publishes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.rig.description import RigDescription, rig_file
from unifygeo_ros.rig.lenses import Equirectangular, Fisheye, FisheyeCircle, Lens, Pinhole
from unifygeo_ros.rig.rig import Rig, RigCamera
from unifygeo_training.towns.scene import GROUND, Kind
from unifygeo_training.towns.trajectory import Drive

COMPRESSED = "/compressed"
CAMERA_BODY_M = 0.3
"""Everything stays this far from a camera."""


@dataclass(frozen=True)
class RiggedVehicle:
    """A rig with the size of the recorded images, and the names under which it publishes."""

    rig: Rig
    topics: Mapping[str, tuple[str, ...]]
    """Names of the cameras by the topic of their images, which are CompressedImage."""
    info_topics: Mapping[str, str]
    """Topic of each camera's CameraInfo; cameras without one are left out."""
    frames: Mapping[str, str]
    """Optical frame of each camera."""
    spread_s: float
    """The cameras expose one after the other, clockwise from the first one: so long for a whole turn."""
    rate_hz: float
    """Of each camera's images."""

    @classmethod
    def of(cls, description: RigDescription, scale: float, spread_s: float, rate_hz: float) -> RiggedVehicle:
        """The vehicle of a rig file.

        Args:
            description: The rig file.
            scale: Size of the recorded images against the lenses'.
            spread_s: See `spread_s`.
            rate_hz: See `rate_hz`.

        Raises:
            ConfigurationError: The rig cannot be rendered.
        """
        if not rate_hz > 0:
            raise ConfigurationError(f"image rate {rate_hz:g} Hz, must be above 0")
        if not 0 < scale <= 1:
            raise ConfigurationError(f"image scale {scale:g}, must be above 0 and at most 1")
        if not 0 <= spread_s < 1 / rate_hz:
            raise ConfigurationError(
                f"exposure spread {spread_s:g} s, must be at least 0 and less than the {1 / rate_hz:g} s between two "
                "images of a camera"
            )
        if not description.is_complete:
            raise ConfigurationError(
                f"{description.source}: a town has no CameraInfo and no TF to read; give lens and mount of every camera"
            )
        whole = description.rig()
        cameras = tuple(dataclasses.replace(camera, lens=camera.lens.scaled(scale)) for camera in whole.cameras)
        described = {camera.name: camera for camera in description.cameras}
        topics = {
            topic if topic.endswith(COMPRESSED) else topic + COMPRESSED: names
            for topic, names in description.topics().items()
        }
        for topic, names in topics.items():
            sizes = {(c.lens.width, c.lens.height) for c in cameras if c.name in names}
            if len(sizes) > 1:
                raise ConfigurationError(
                    f"{description.source}: {', '.join(names)} share the images of {topic}, but their lenses have "
                    "different sizes; give each the size of the whole image"
                )
        return cls(
            Rig(cameras, whole.ground_z_m, whole.distance_m),
            topics,
            {
                camera.name: described[camera.name].info_topic
                for camera in cameras
                if described[camera.name].info_topic and calibration_of(camera.lens) is not None
            },
            {name: camera.frame or f"{name}_optical" for name, camera in described.items()},
            spread_s,
            rate_hz,
        )

    def camera(self, name: str) -> RigCamera:
        """The camera of that name."""
        return next(camera for camera in self.rig.cameras if camera.name == name)

    def delays_s(self) -> dict[str, float]:
        """How long after the first camera each topic's cameras expose, by how far they look clockwise from it."""
        bearings = {}
        for topic, names in self.topics.items():
            x, y, _ = self.camera(names[0]).base_from_optical[:, 2]
            bearings[topic] = math.atan2(-y, x)
        first = next(iter(bearings.values()))
        return {t: (bearing - first) % (2 * math.pi) / (2 * math.pi) * self.spread_s for t, bearing in bearings.items()}

    def exposures(self, drive: Drive) -> list[tuple[float, str]]:
        """Times (s) and topics of all images, in the order of time."""
        delays_s = self.delays_s()
        ticks = np.arange(0, drive.duration_s - max(delays_s.values()), 1 / self.rate_hz)
        return sorted((float(tick) + delay_s, topic) for tick in ticks for topic, delay_s in delays_s.items())

    def mounts(self) -> list[tuple[str, Rotation, Float64]]:
        """Frame, turn and position in base_link of each camera."""
        return [
            (self.frames[c.name], Rotation.from_matrix(c.base_from_optical), c.position_m) for c in self.rig.cameras
        ]

    def clear_the_way(self, objects: npt.NDArray[np.void], drive: Drive) -> npt.NDArray[np.void]:
        """The objects without what a camera would touch: cars, trees and what else stands on a street.

        Raises:
            ConfigurationError: A camera would pass through a building.
        """
        objects = objects.copy()
        cars = np.isin(objects["kind"], (int(Kind.CAR), int(Kind.CABIN)))
        motion = drive.at(np.arange(0, drive.duration_s, 0.1))
        cos, sin = np.cos(motion.yaw_rad), np.sin(motion.yaw_rad)
        for camera in self.rig.cameras:
            forward, left, up = camera.position_m
            x, y = motion.x_m + forward * cos - left * sin, motion.y_m + forward * sin + left * cos
            height_m = up - self.rig.ground_z_m
            low, high = objects["bottom"] < height_m + CAMERA_BODY_M, objects["top"] > height_m - CAMERA_BODY_M
            middle_x, middle_y = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
            reach = np.hypot(objects["half_x"], objects["half_y"]) + CAMERA_BODY_M
            near = (
                (np.abs(objects["x"] - middle_x) < np.ptp(x) / 2 + reach)
                & (np.abs(objects["y"] - middle_y) < np.ptp(y) / 2 + reach)
                & (low & high | cars)
                & (objects["views"] & GROUND != 0)
            )
            for k in np.flatnonzero(near):
                o = objects[k]
                dx, dy = x - o["x"], y - o["y"]
                along = np.maximum(np.abs(dx * o["cos"] + dy * o["sin"]) - o["half_x"], 0)
                across = np.maximum(np.abs(-dx * o["sin"] + dy * o["cos"]) - o["half_y"], 0)
                if np.hypot(along, across).min() >= CAMERA_BODY_M:
                    continue
                if o["kind"] == int(Kind.BUILDING):
                    raise ConfigurationError(
                        f"camera {camera.name} at {forward:g}, {left:g} m in base_link would pass through a building; "
                        "base_link is the vehicle's middle: move the rig's mounts, or take another seed"
                    )
                objects["views"][k] &= ~GROUND
        return objects

    def file(self) -> dict[str, Any]:
        """What the rig file of the recorded drive holds."""
        return rig_file(self.rig, {name: topic for topic, names in self.topics.items() for name in names})

    def words(self, image_delay_s: float) -> str:
        """For the drive's README. image_delay_s: from the exposure to the recording."""
        delays_s = self.delays_s()
        lines = [
            f"- {len(self.topics)} topics with the images of {len(self.rig.cameras)} cameras, {self.rate_hz:g} Hz, "
            f"recorded {image_delay_s:g} s after the",
            "  exposure, whose time the stamp is; each camera's CameraInfo, and its optical frame in `/tf_static`:",
        ]
        for topic, names in self.topics.items():
            lens = self.camera(names[0]).lens
            size = f"{lens.width} × {lens.height}"
            lines.append(
                f"  - `{topic}`: {', '.join(names)}, {size}, exposed {1e3 * delays_s[topic]:.0f} ms after the first"
            )
        lines += [
            "- `rig.yaml`: the rig file of these images, for `--rig`. A CameraInfo cannot say where the circle of a",
            "  fisheye ends: `--rig auto` takes the black around it for a part of the view. An equirectangular camera",
            "  has no CameraInfo.",
        ]
        return "\n".join(lines)


def calibration_of(lens: Lens) -> tuple[str, Float64, Float64] | None:
    """A lens as a CameraInfo states it: distortion_model, K (3, 3), D. None where none of its models fits."""
    if isinstance(lens, Equirectangular):
        return None
    if isinstance(lens, FisheyeCircle):
        focal = lens.radius / (lens.field_rad / 2)
        k = np.array([[focal, 0, lens.centre_column], [0, focal, lens.centre_row], [0, 0, 1]])
        return "equidistant", k, np.zeros(4)
    assert isinstance(lens, (Pinhole, Fisheye))
    k = np.array([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1]])
    d = np.array(lens.distortion, np.float64)
    if isinstance(lens, Fisheye):
        return "equidistant", k, d
    if len(d) == 8:
        return "rational_polynomial", k, d
    return "plumb_bob", k, np.pad(d, (0, 5 - len(d)))
