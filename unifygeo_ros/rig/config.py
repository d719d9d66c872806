"""Settings of a rig."""

from __future__ import annotations

from dataclasses import dataclass

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.settings import check_settings, setting


@dataclass(frozen=True)
class RigConfig:
    """Several cameras in place of one panoramic camera."""

    file: str = setting("", "rig file, for several cameras in place of one panoramic camera; empty: `rig.cameras`")
    cameras: str = setting(
        "",
        "names of the cameras, separated by commas, where there is no rig file: front has the topics front/image (or "
        "front/image/compressed) and front/camera_info, and its mount in TF; empty: one panoramic camera",
        acts="rig.file empty",
    )
    window_s: float = setting(
        0.1,
        "an image further than this from the stamp of the camera that paces is not used with it",
        minimum=0.001,
        maximum=1.0,
        acts="with a rig",
        advanced=True,
    )
    wait_s: float = setting(
        0.1,
        "how long the images of a rig wait for a camera that is late, from the arrival of the one that paces",
        minimum=0.0,
        maximum=2.0,
        acts="with a rig",
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.file and self.cameras:
            raise ConfigurationError(
                f"both rig.file ({self.file}) and rig.cameras ({self.cameras}) are given; choose one"
            )
        names = self.camera_names
        if not all(name.isidentifier() for name in names) or len(set(names)) < len(names):
            raise ConfigurationError(
                f"rig.cameras is {self.cameras!r}, must be different names of letters, digits and underscores, "
                "separated by commas: front, left, back, right"
            )

    @property
    def camera_names(self) -> tuple[str, ...]:
        """The names in `cameras`."""
        return tuple(name.strip() for name in self.cameras.split(",")) if self.cameras.strip() else ()

    def __bool__(self) -> bool:
        """Whether there is a rig at all."""
        return bool(self.file or self.camera_names)
