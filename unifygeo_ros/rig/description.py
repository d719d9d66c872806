"""A rig file: the cameras of a vehicle, their topics, lenses and mounts. docs/how-to/rig.md shows how to write one.

What the file leaves out comes from the cameras' `CameraInfo` and from static transforms, so a file may be as short as
one topic for each camera.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterable, Mapping, NamedTuple

import numpy as np
import yaml

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.rig.camera_info import InfoLens, lens_of_camera_info
from unifygeo_ros.rig.lenses import Equirectangular, Fisheye, FisheyeCircle, Lens, Pinhole
from unifygeo_ros.rig.rig import BODY_FROM_OPTICAL, DISTANCE_M, VIEW_HEIGHT_M, Rig, RigCamera, rotation_from_mount

UPRIGHT = math.cos(math.radians(20))
"""A frame whose z axis is this nearly vertical is no optical frame."""


class FramePose(NamedTuple):
    """Pose of a frame in base_link."""

    base_from_frame: Float64
    """float64 (3, 3)."""
    position_m: Float64
    """float64 (3,)."""

    @classmethod
    def of_transform(cls, transform: Any) -> FramePose:
        """Read a geometry_msgs/Transform of the frame in base_link. Raises ConfigurationError where it is none."""
        q, t = transform.rotation, transform.translation
        quaternion, position = np.array([q.x, q.y, q.z, q.w]), np.array([t.x, t.y, t.z])
        if not (np.isfinite(quaternion).all() and np.isfinite(position).all() and np.linalg.norm(quaternion) > 1e-6):
            raise ConfigurationError(
                f"its transform (translation {position.tolist()}, quaternion {quaternion.tolist()}) is not finite or "
                "its quaternion is zero; publish a valid one"
            )
        from scipy.spatial.transform import Rotation  # slow to import: see `unifygeo_ros.tracking.region`

        return cls(np.asarray(Rotation.from_quat(quaternion).as_matrix()), position)


@dataclass(frozen=True)
class CameraDescription:
    """What a rig file says of one camera."""

    name: str
    topic: str = ""
    """Of its images, Image or CompressedImage. Several cameras may share one: the circles of a dual fisheye."""
    camera_info: str = ""
    """Topic of its CameraInfo; empty: the one beside the images."""
    frame: str = ""
    """Its optical frame in TF; empty: the one that its CameraInfo names."""
    rectified: bool = False
    """Whether the images are rectified, so that P and R of the CameraInfo describe them."""
    lens: InfoLens | None = None
    """None: from the CameraInfo."""
    pose: FramePose | None = None
    """Of its optical frame; None: from TF."""

    @property
    def info_topic(self) -> str:
        """Topic of the CameraInfo, by the convention of image_transport: a sibling of the images' base topic."""
        if self.camera_info or not self.topic:
            return self.camera_info
        parts = self.topic.split("/")
        if parts[-1] in ("compressed", "compressedDepth", "theora", "ffmpeg", "raw"):
            parts = parts[:-1]
        return "/".join([*parts[:-1], "camera_info"])


@dataclass(frozen=True)
class RigDescription:
    """What a rig file says."""

    cameras: tuple[CameraDescription, ...]
    ground_z_m: float = 0.0
    distance_m: float = DISTANCE_M
    view_height_m: float = VIEW_HEIGHT_M
    source: str = "rig"
    """The file, for messages."""

    def topics(self) -> dict[str, tuple[str, ...]]:
        """Names of the cameras by the topic of their images. Raises ConfigurationError where one has none."""
        found: dict[str, tuple[str, ...]] = {}
        for camera in self.cameras:
            if not camera.topic:
                raise ConfigurationError(f"{self.source}: camera {camera.name} has no topic; add it")
            found[camera.topic] = (*found.get(camera.topic, ()), camera.name)
        return found

    @property
    def is_complete(self) -> bool:
        """Whether every camera has lens and mount without CameraInfo and transforms."""
        return all(camera.lens is not None and camera.pose is not None for camera in self.cameras)

    def with_topics(self, image: Callable[[str], str], info: Callable[[str], str]) -> RigDescription:
        """The same rig with other names of the topics, of images and of CameraInfo."""
        return dataclasses.replace(
            self,
            cameras=tuple(
                dataclasses.replace(
                    camera,
                    topic=image(camera.topic),
                    camera_info=info(camera.info_topic) if camera.info_topic else "",
                )
                for camera in self.cameras
            ),
        )

    def rig(
        self,
        camera_info: Callable[[str], Any | None] = lambda topic: None,
        frame_pose: Callable[[str], FramePose | None] = lambda frame: None,
    ) -> Rig:
        """The rig, completed by what was recorded or is published.

        Args:
            camera_info: The CameraInfo of a topic, or None.
            frame_pose: The pose of a frame in base_link, or None.

        Raises:
            ConfigurationError: Something is missing or cannot be; the message names camera and remedy.
        """
        return Rig(
            tuple(self._camera(camera, camera_info, frame_pose) for camera in self.cameras),
            self.ground_z_m,
            self.distance_m,
            self.view_height_m,
        )

    def _camera(
        self,
        camera: CameraDescription,
        camera_info: Callable[[str], Any | None],
        frame_pose: Callable[[str], FramePose | None],
    ) -> RigCamera:
        where = f"{self.source}: camera {camera.name}"
        info = None
        if camera.lens is None or (camera.pose is None and not camera.frame):
            info = camera_info(camera.info_topic) if camera.info_topic else None
            if info is None:
                wanted = f"no CameraInfo on {camera.info_topic}" if camera.info_topic else "no topic"
                raise ConfigurationError(
                    f"{where}: {wanted}; name the right topic by camera_info, or give lens and mount in the rig file"
                )
        lens = camera.lens
        if lens is None:
            try:
                lens = lens_of_camera_info(info, camera.name, rectified=camera.rectified)
            except ConfigurationError as error:
                raise ConfigurationError(f"{self.source}: {error}") from None
        pose = camera.pose
        if pose is None:
            frame = camera.frame or str(info.header.frame_id).lstrip("/")  # type: ignore[union-attr]
            try:
                pose = frame_pose(frame)
            except ConfigurationError as error:
                raise ConfigurationError(f"{where}: frame {frame!r}: {error}") from None
            if pose is None:
                raise ConfigurationError(
                    f"{where}: no static transform between base_link and its frame {frame!r}; publish one, name the "
                    "optical frame by frame, or give its mount in the rig file"
                )
            if pose.base_from_frame[2, 2] > UPRIGHT:
                raise ConfigurationError(
                    f"{where}: its frame {frame!r} has z up, as the frame of a body has; name the optical frame (z "
                    "along the view, x right) by frame. If the camera does look straight up, give its mount in the rig "
                    "file"
                )
        return RigCamera(
            camera.name, lens.lens, np.asarray(pose.base_from_frame @ lens.optical_from_image), pose.position_m
        )


class _OnceOnly(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's own rule would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ConfigurationError(
                f"{twice} is given twice in the mapping from line {node.start_mark.line + 1} on; give each camera a "
                "name of its own, and each value once"
            )
        return super().construct_mapping(node, deep)


def read_rig(path: Path) -> RigDescription:
    """Read a rig file. Raises ConfigurationError with the camera and the key that cannot be used."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _OnceOnly)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); give a rig file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: is no YAML ({' '.join(str(error).split())})") from error
    top = _mapping(content, str(path), ("cameras",), ("ground_z_m", "distance_m", "view_height_m"))
    cameras = top["cameras"]
    if not isinstance(cameras, dict) or not cameras:
        raise ConfigurationError(f"{path}: cameras must map each camera's name to its description")
    return RigDescription(
        tuple(_camera_description(str(name), values, path) for name, values in cameras.items()),
        _number(top.get("ground_z_m", 0.0), f"{path}: ground_z_m"),
        _number(top.get("distance_m", DISTANCE_M), f"{path}: distance_m"),
        _number(top.get("view_height_m", VIEW_HEIGHT_M), f"{path}: view_height_m"),
        str(path),
    )


def rig_file(rig: Rig, topics: Mapping[str, str]) -> dict[str, Any]:
    """What a rig file that describes this rig holds, for YAML. The inverse of `read_rig`.

    Args:
        rig: The cameras.
        topics: Of the images of each camera, by its name.
    """
    cameras = {}
    for camera in rig.cameras:
        from scipy.spatial.transform import Rotation

        body = Rotation.from_matrix(camera.base_from_optical @ BODY_FROM_OPTICAL.T)
        yaw, pitch, roll = body.as_euler("ZYX", degrees=True)
        place = (*camera.position_m, roll, pitch, yaw)
        mount = {key: round(float(value), 6) for key, value in zip(_MOUNT, place, strict=True)}
        cameras[camera.name] = {"topic": topics[camera.name], "lens": _lens_values(camera.lens), "mount": mount}
    top = {"ground_z_m": rig.ground_z_m, "distance_m": rig.distance_m}
    height = {} if rig.view_height_m is None else {"view_height_m": rig.view_height_m}
    return {**top, **height, "cameras": cameras}


def _lens_values(lens: Lens) -> dict[str, Any]:
    names = {Pinhole: "pinhole", Fisheye: "fisheye", FisheyeCircle: "circle", Equirectangular: "equirectangular"}
    values: dict[str, Any] = dict(vars(lens))
    for name in ("field", "elevation_top", "elevation_bottom"):
        if f"{name}_rad" in values:
            values[f"{name}_deg"] = round(math.degrees(values[f"{name}_rad"]), 9)
    if "distortion" in values:
        values["distortion"] = list(values["distortion"])
    model = names[type(lens)]
    required, optional = _LENSES[model]
    return {"model": model, **{key: values[key] for key in (*required, *optional) if key in values}}


def rig_of_camera_infos(topics: Iterable[tuple[str, str]], source: str) -> RigDescription:
    """The rig of everything that brings a CameraInfo: one camera for each.

    Args:
        topics: Names of the CameraInfo topics, each with the topic of its images.
        source: Of the topics, for messages.

    Raises:
        ConfigurationError: There is none.
    """
    cameras = [
        CameraDescription(_name_of(info), image, info, rectified="image_rect" in image) for info, image in topics
    ]
    if not cameras:
        raise ConfigurationError(f"{source}: no CameraInfo beside any image topic; write a rig file")
    if len({camera.name for camera in cameras}) < len(cameras):
        cameras = [dataclasses.replace(camera, name=camera.camera_info.strip("/")) for camera in cameras]
    return RigDescription(tuple(cameras), source=source)


def _name_of(info_topic: str) -> str:
    parts = info_topic.strip("/").split("/")
    return parts[-2] if len(parts) > 1 else parts[0]


_MOUNT = ("x_m", "y_m", "z_m", "roll_deg", "pitch_deg", "yaw_deg")
_FOCAL = ("width", "height", "fx", "fy", "cx", "cy")
_LENSES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pinhole": (_FOCAL, ("distortion",)),
    "fisheye": (_FOCAL, ("distortion", "field_deg")),
    "circle": (("width", "height", "centre_column", "centre_row", "radius", "field_deg"), ()),
    "equirectangular": (("width", "height"), ("field_deg", "elevation_top_deg", "elevation_bottom_deg")),
}
"""Required and optional keys by lens model."""
_WHOLE_SPHERE_DEG = {"field_deg": 360.0, "elevation_top_deg": 90.0, "elevation_bottom_deg": -90.0}
"""Defaults of an equirectangular lens."""


def _camera_description(name: str, values: Any, path: Path) -> CameraDescription:
    where = f"{path}: camera {name}"
    given = _mapping(values, where, (), ("topic", "camera_info", "calibration", "frame", "rectified", "lens", "mount"))
    topic = str(given.get("topic", ""))
    rectified = given.get("rectified", "image_rect" in topic)
    if not isinstance(rectified, bool):
        raise ConfigurationError(f"{where}: rectified is {rectified!r}, must be true or false")
    lens = None
    if "lens" in given and "calibration" in given:
        raise ConfigurationError(f"{where}: both lens and calibration are given; choose one")
    try:
        if "lens" in given:
            lens = InfoLens(_lens(given["lens"], f"{where}: lens"), np.eye(3))
        if "calibration" in given:
            lens = lens_of_camera_info(
                _read_calibration(path.parent / str(given["calibration"])), name, rectified=rectified
            )
    except ConfigurationError as error:
        text = str(error)
        raise ConfigurationError(text if text.startswith(str(path.parent)) else f"{where}: {text}") from None
    pose = None
    if "mount" in given:
        mount = _mapping(given["mount"], f"{where}: mount", _MOUNT, ())
        x, y, z, roll, pitch, yaw = (_number(mount[key], f"{where}: mount {key}") for key in _MOUNT)
        pose = FramePose(rotation_from_mount(*map(math.radians, (roll, pitch, yaw))), np.array([x, y, z]))
    return CameraDescription(
        name, topic, str(given.get("camera_info", "")), str(given.get("frame", "")), rectified, lens, pose
    )


def _lens(values: Any, where: str) -> Lens:
    if not isinstance(values, dict) or values.get("model") not in _LENSES:
        model = values.get("model") if isinstance(values, dict) else None
        raise ConfigurationError(f"{where}: model is {model!r}, must be one of {', '.join(_LENSES)}")
    model = values["model"]
    required, optional = _LENSES[model]
    given = _mapping(values, where, ("model", *required), optional)
    sizes = [given[key] for key in ("width", "height")]
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise ConfigurationError(f"{where}: width and height are {sizes}, must be whole numbers of pixels")
    width, height = sizes
    numbers = [_number(given[key], f"{where} {key}") for key in required[2:]]
    if model == "circle":
        column, row, radius, field_deg = numbers
        return FisheyeCircle(width, height, column, row, radius, math.radians(field_deg))
    if model == "equirectangular":
        angles = {key: _number(given.get(key, whole), f"{where} {key}") for key, whole in _WHOLE_SPHERE_DEG.items()}
        return Equirectangular(width, height, *(math.radians(angle) for angle in angles.values()))
    distortion = given.get("distortion", [0.0] * 4)
    if not isinstance(distortion, list):
        raise ConfigurationError(f"{where}: distortion is {distortion!r}, must be a list of numbers")
    coefficients = tuple(_number(value, f"{where} distortion") for value in distortion)
    fx, fy, cx, cy = numbers
    if model == "pinhole":
        return Pinhole(width, height, fx, fy, cx, cy, coefficients)
    field_rad = math.radians(_number(given.get("field_deg", 360.0), f"{where} field_deg"))
    return Fisheye(width, height, fx, fy, cx, cy, coefficients, field_rad)


def _read_calibration(path: Path) -> Any:
    """A calibration file as ROS' camera calibration writes it, with the fields of a CameraInfo."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return SimpleNamespace(
            width=content["image_width"],
            height=content["image_height"],
            distortion_model=content["distortion_model"],
            d=content["distortion_coefficients"]["data"],
            k=content["camera_matrix"]["data"],
            r=content.get("rectification_matrix", {}).get("data", np.eye(3).ravel()),
            p=content.get("projection_matrix", {}).get("data", []),
        )
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); give a calibration file") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path}: is no calibration file of ROS ({' '.join(str(error).split())} is missing or wrong); give what "
            "camera_calibration writes, or the lens itself"
        ) from error


def _mapping(values: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigurationError(f"{where}: is {values!r}, must map {', '.join((*required, *optional))} to values")
    unknown = [str(key) for key in values if key not in (*required, *optional)]
    missing = [key for key in required if key not in values]
    if unknown or missing:
        problem = f"no key {missing[0]}" if missing else f"unknown key {unknown[0]}"
        raise ConfigurationError(f"{where}: {problem}; its keys are {', '.join((*required, *optional))}")
    return values


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigurationError(f"{where} is {value!r}, must be a finite number")
    return float(value)
