"""The file that names drives: YAML, with the words of `unifygeo replay`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.evaluation.recordings.recorded_rig import AUTO
from unifygeo_ros.evaluation.settings import TruthSettings
from unifygeo_ros.parameters.files import read_parameter_file
from unifygeo_ros.parameters.names import check_names
from unifygeo_ros.parameters.settings import PARAMETERS, Settings, with_values
from unifygeo_training.configuration import read_settings

_TRUTH = TruthSettings()


class DriveSource(BaseModel):
    """One drive. Paths are relative to the file that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bag: Path
    """rosbag2 folder, .mcap, .db3, or rosbag1 .bag."""
    index: Path | None = None
    """Index of the region, or …"""
    imagery: tuple[Path, ...] = ()
    """… its imagery, as `unifygeo index build` takes it."""
    image_topic: str | None = None
    """None: found by type. The other topics, too."""
    rig: Path | None = None
    """Rig file of several cameras in place of one that takes panoramas; `auto`: every camera that has a CameraInfo."""
    odometry_topic: str | None = None
    """Of a rig's drive: it moves the cameras to one instant."""
    truth_topic: str | None = None
    truth_file: Path | None = None
    """TUM or CSV trajectory in place of a topic."""
    imu_topic: str | None = None
    """The vehicle's tilt comes from it, where session.use_tilt is set; "none": leave it out."""
    truth_frame: str = _TRUTH.truth_frame
    """This and the following: as the options of `unifygeo replay`."""
    truth_max_gap_s: float = _TRUTH.truth_max_gap_s
    truth_sigma_m: float = _TRUTH.truth_sigma_m
    truth_x_m: float = _TRUTH.truth_x_m
    truth_y_m: float = _TRUTH.truth_y_m
    least_truth_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of the images that must have a truth. Less where the truth is a smoothed track, which has none where it is
    not certain."""
    params: tuple[Path, ...] = ()
    """Parameter files of the node: the camera's mount, the stamp's offset, frames."""
    set: Mapping[str, Any] = {}
    """Single parameters, which override the files."""

    @field_validator("imagery", "params", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _one_ground_and_at_most_one_truth(self) -> DriveSource:
        if (self.index is None) == (not self.imagery):
            raise ValueError("needs either index or imagery")
        if self.image_topic is not None and self.rig is not None:
            raise ValueError("has both image_topic and rig; choose one, the rig names its topics")
        if self.truth_topic is not None and self.truth_file is not None:
            raise ValueError("has both truth_topic and truth_file; choose one")
        return self

    @property
    def truth(self) -> TruthSettings:
        """Raises ConfigurationError for a value out of range."""
        return TruthSettings(self.truth_frame, self.truth_max_gap_s, self.truth_sigma_m, self.truth_x_m, self.truth_y_m)

    def node_settings(self) -> Settings:
        """The node's settings. Raises InputError and ConfigurationError."""
        values: dict[str, Any] = {}
        for path in self.params:
            values.update(read_parameter_file(path, None))
        if self.rig is not None:
            values["rig.file"] = str(self.rig)
        try:
            check_names(list(self.set), only_ours=True)
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.bag}, set: {error}") from error
        for name, value in self.set.items():
            whole_for_float = type(PARAMETERS[name].default) is float and type(value) is int
            values[name] = float(value) if whole_for_float else value
        return with_values(Settings(), values)

    def beside(self, folder: Path) -> DriveSource:
        """With paths that are relative to a folder made absolute."""

        def placed(path: Path | None) -> Path | None:
            return None if path is None else folder / path

        return self.model_copy(
            update={
                "bag": folder / self.bag,
                "index": placed(self.index),
                "rig": self.rig if self.rig is not None and str(self.rig) == AUTO else placed(self.rig),
                "imagery": tuple(folder / path for path in self.imagery),
                "truth_file": placed(self.truth_file),
                "params": tuple(folder / path for path in self.params),
            }
        )


class DrivesFile(BaseModel):
    """Drives, which images of them are used, and how the places are split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drives: tuple[DriveSource, ...] = Field(min_length=1)
    spacing_m: float = Field(default=2.0, ge=0.0)
    """Images of one drive are at least this far apart."""
    largest_sigma_m: float = Field(default=2.0, gt=0.0)
    """Images whose truth has a larger standard deviation, along its long axis, are left out."""
    cell_m: float = Field(default=150.0, ge=1.0)
    """Side of the squares of ground that go to one part together."""
    val_share: float = Field(default=0.15, ge=0.0, le=1.0)
    """Share of the squares that calibration uses."""
    test_share: float = Field(default=0.15, ge=0.0, le=1.0)
    """Share of the squares that only judging uses."""
    seed: int = Field(default=0, ge=0)
    """Which squares."""

    @model_validator(mode="after")
    def _something_is_left(self) -> DrivesFile:
        if self.val_share + self.test_share > 1:
            raise ValueError("val_share and test_share are above 1 together")
        return self


def read_drives_file(path: Path) -> DrivesFile:
    """Raises ConfigurationError naming each key that does not fit."""
    content = read_settings(path, DrivesFile)
    folder = path.resolve().parent
    return content.model_copy(update={"drives": tuple(source.beside(folder) for source in content.drives)})
