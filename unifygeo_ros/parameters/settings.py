"""The node's settings, all groups of them: what ROS parameters are made from. Imports no ROS.

Settings that only the node has are in `NodeConfig`; the others are defined next to the code that uses them and
become parameters with the group's prefix: `camera.x_m`, `rig.file`, `localizer.gate_sigma_m`,
`session.heading_source`, `odometry.scale`, `tracker.fix_from`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Iterator, Mapping

from unifygeo_ros.aerial.settings import SEARCH_DEVICES
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.settings import check_settings, setting, setting_fields
from unifygeo_ros.inference.bundle import PRECISIONS
from unifygeo_ros.inference.select import BACKENDS
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.rig.config import RigConfig
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.map_to_odom import MapToOdomConfig

NODE_NAME = "unifygeo_localizer"


@dataclass(frozen=True)
class NodeConfig:
    """Settings of the node itself."""

    bundle: str = setting("", "folder of the model bundle (required)")
    index: str = setting("", "folder of the index, or of a region: a folder of indexes or a YAML file (required)")
    accept_uncalibrated: bool = setting(
        False, "localize with a bundle that was not calibrated: covariances and ambiguities are then rough guesses"
    )
    backend: str = setting("auto", "inference backend; auto: the first that runs here", choices=("auto", *BACKENDS))
    precision: str = setting(
        "auto", "auto: fp32 on the CPU, fp16 on a GPU, where the bundle holds them", choices=("auto", *PRECISIONS)
    )
    device: int = setting(0, "number of the GPU", minimum=0, maximum=63, advanced=True)
    index_search: str = setting(
        "auto",
        "where the whole index is searched; auto: on the GPU if the installed FAISS has one and the index fits, else "
        "on the CPU; gpu: an error where that fails",
        choices=SEARCH_DEVICES,
        advanced=True,
    )
    threads: int = setting(
        0, "threads of the CPU backend; 0: one for each core", minimum=0, maximum=1024, advanced=True
    )
    cache_dir: str = setting("", "folder of compiled engines; empty: the user's cache folder", advanced=True)
    autostart: bool = setting(False, "configure and activate without waiting for a lifecycle manager")
    enabled: bool = setting(True, "localize from activation on; false: wait for ~/enable or ~/trigger")
    map_frame: str = setting("map", "frame of the fixes; odometry in it is absolute, in any other relative")
    base_frame: str = setting("base_link", "frame whose pose the fixes are")
    camera_frame: str = setting(
        "",
        "TF frame of the camera (x through the centre column, z up), read once at configuration in place of "
        "camera.x_m, y_m, yaw_rad, pitch_rad, roll_rad and upside_down; empty: those parameters",
    )
    tf_timeout_s: float = setting(
        5.0, "how long to wait for the camera's transform", minimum=0.1, maximum=600.0, advanced=True
    )
    input_frames: str = setting(
        "tf",
        "tf: IMU and odometry in another frame than base_frame are turned by TF's transform, looked up once; base: "
        "their frame names are ignored and their axes taken for base_frame's",
        choices=("tf", "base"),
    )
    image_transport: str = setting(
        "raw", "raw: sensor_msgs/Image on image; compressed: CompressedImage on image/compressed",
        choices=("raw", "compressed"),
    )  # fmt: skip
    reliability: str = setting(
        "best_effort",
        "QoS of the inputs; best_effort receives from every publisher; reliable has lost messages resent",
        choices=("best_effort", "reliable"),
    )
    image_timeout_s: float = setting(
        2.0,
        "no image for this long is an error in the diagnostics",
        minimum=0.1,
        maximum=3600.0,
        live=True,
        advanced=True,
    )
    diagnostics_period_s: float = setting(
        1.0, "time between two messages on /diagnostics", minimum=0.05, maximum=60.0, advanced=True
    )
    filter_history_s: float = setting(
        2.0,
        "how far back the filter that takes the fixes can go (history_length of robot_localization); fixes that arrive "
        "later cause a warning",
        minimum=0.0,
        maximum=3600.0,
        live=True,
    )
    apply_estimates: bool = setting(
        False,
        "correct session.stamp_offset_s and session.imu_yaw_offset_rad while driving, once the drive shows beyond "
        "doubt that they are wrong; each change is logged, and the diagnostics show it",
        live=True,
        acts="with odometry",
    )
    publish_tf: bool = setting(
        False,
        "publish map → odom from the track and the odometry, at the odometry's rate; only where nothing else does, "
        "such as an EKF",
        acts="mode sequence",
    )
    ll_services: bool = setting(
        False,
        "offer fromLL and toLL, as robot_localization's navsat_transform does: nav2's waypoint follower calls /fromLL",
    )
    heatmap_period_s: float = setting(
        1.0,
        "shortest time between two ~/heatmap messages; 0: none",
        minimum=0.0,
        maximum=3600.0,
        live=True,
        advanced=True,
    )
    debug_image_period_s: float = setting(
        0.0,
        "shortest time between two ~/debug_image/compressed messages, made while there are subscribers; 0: none",
        minimum=0.0,
        maximum=3600.0,
        live=True,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Settings:
    """All settings of a node, group by group."""

    node: NodeConfig = dataclasses.field(default_factory=NodeConfig)
    camera: CameraMount = dataclasses.field(default_factory=CameraMount)
    rig: RigConfig = dataclasses.field(default_factory=RigConfig)
    localizer: LocalizerConfig = dataclasses.field(default_factory=LocalizerConfig)
    session: SessionConfig = dataclasses.field(default_factory=SessionConfig)
    odometry: MotionNoise = dataclasses.field(default_factory=MotionNoise)
    tracker: TrackerConfig = dataclasses.field(default_factory=TrackerConfig)
    map_to_odom: MapToOdomConfig = dataclasses.field(default_factory=MapToOdomConfig)


@dataclass(frozen=True)
class ParameterSpec:
    """One ROS parameter."""

    name: str
    """With the group's prefix: `camera.x_m`."""
    group: str
    """The field of `Settings` that its value goes to, and ..."""
    field: str
    """... the field of that group."""
    default: Any
    description: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    live: bool
    """Whether it may change while the node is configured."""
    acts: str
    """The condition under which it has an effect; empty: always."""
    advanced: bool
    """Whether it belongs to the method and not to the vehicle."""

    def checked(self, value: Any) -> Any:
        """A value of the default's type. Raises ConfigurationError; ranges are the dataclasses' to check."""
        kind = type(self.default)
        if type(value) is not kind:
            raise ConfigurationError(
                f"{self.name} is {value!r}, must be a {_TYPE_NAMES[kind]}"
                + (f"; write {value}.0" if kind is float and type(value) is int else "")
            )
        return value


_TYPE_NAMES = {bool: "boolean", int: "whole number", float: "number with a decimal point", str: "string"}


def parameter_specs() -> Iterator[ParameterSpec]:
    """Every parameter of the node, in the order of the documentation."""
    for group, config in dataclasses.asdict(Settings(), dict_factory=dict).items():
        owner = type(getattr(Settings(), group))
        for field in setting_fields(owner):
            meta = field.metadata
            yield ParameterSpec(
                name=field.name if group == "node" else f"{group}.{field.name}",
                group=group,
                field=field.name,
                default=config[field.name],
                description=meta["description"],
                minimum=meta["minimum"],
                maximum=meta["maximum"],
                choices=meta["choices"],
                live=meta["live"],
                acts=meta["acts"],
                advanced=meta["advanced"],
            )


PARAMETERS: Mapping[str, ParameterSpec] = {spec.name: spec for spec in parameter_specs()}


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with some parameters changed.

    Args:
        settings: which stay as they are.
        values: by parameter name.

    Raises:
        ConfigurationError: a value has the wrong type or is out of range.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        spec = PARAMETERS[name]
        changes.setdefault(spec.group, {})[spec.field] = spec.checked(value)
    try:
        groups = {group: dataclasses.replace(getattr(settings, group), **new) for group, new in changes.items()}
    except ConfigurationError as error:
        raise ConfigurationError(str(error)) from error
    return dataclasses.replace(settings, **groups)


def check_live(names: Mapping[str, Any]) -> None:
    """Refuse a change that cannot be made while a model is loaded. Raises ConfigurationError with the remedy."""
    fixed = [name for name in names if not PARAMETERS[name].live]
    if fixed:
        raise ConfigurationError(
            f"{', '.join(fixed)} is read when the node is configured; deactivate and clean up the node, change it, "
            "then configure and activate again"
        )
