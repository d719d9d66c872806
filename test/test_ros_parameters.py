"""Parameters: made from the dataclasses, checked by them, and live only where they say so."""

import dataclasses
import math
from pathlib import Path

import pytest

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.parameters.settings import PARAMETERS, NodeConfig, Settings, check_live, with_values
from unifygeo_ros.parameters.table import with_tables
from unifygeo_ros.rig.config import RigConfig
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.map_to_odom import MapToOdomConfig


def test_every_setting_is_a_parameter_with_its_default():
    expected = {}
    groups = {"camera": CameraMount, "rig": RigConfig, "localizer": LocalizerConfig, "session": SessionConfig,
              "odometry": MotionNoise, "tracker": TrackerConfig, "map_to_odom": MapToOdomConfig}  # fmt: skip
    for prefix, config in [("", NodeConfig), *((f"{group}.", config) for group, config in groups.items())]:
        expected |= {
            prefix + field.name: field.default
            for field in dataclasses.fields(config)
            if "description" in field.metadata
        }
    assert {name: spec.default for name, spec in PARAMETERS.items()} == expected


def test_every_parameter_is_described_and_its_default_valid():
    for spec in PARAMETERS.values():
        assert spec.description
        assert with_values(Settings(), {spec.name: spec.default}) == Settings()


def test_value_reaches_its_dataclass():
    settings = with_values(Settings(), {"camera.x_m": 1.5, "localizer.candidates": 9, "bundle": "b"})
    assert (settings.camera.x_m, settings.localizer.candidates, settings.node.bundle) == (1.5, 9, "b")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("localizer.candidates", 0, "between 1"),
        ("camera.x_m", math.nan, "finite"),
        ("camera.x_m", 1, "write 1.0"),
        ("localizer.candidates", True, "whole number"),
        ("session.mode", "fast", "one of sequence"),
        ("bundle", 3, "string"),
    ],
)
def test_wrong_value_is_refused_with_the_reason(name, value, why):
    with pytest.raises(ConfigurationError, match=why):
        with_values(Settings(), {name: value})


def test_live_parameters_may_change_while_running():
    live = {name for name, spec in PARAMETERS.items() if spec.live}
    assert {"localizer.gate_ambiguity", "localizer.gate_sigma_m", "session.minimum_interval_s"} <= live
    assert {"heatmap_period_s", "debug_image_period_s"} <= live
    assert not live & {"bundle", "index", "backend", "camera.x_m", "localizer.candidates", "session.mode"}
    check_live(dict.fromkeys(live))
    with pytest.raises(ConfigurationError, match="bundle is read when the node is configured"):
        check_live({"bundle": "x", "heatmap_period_s": 1.0})


def test_vehicle_parameters_fit_a_page_and_name_their_mode():
    vehicle = {name: spec for name, spec in PARAMETERS.items() if not spec.advanced}
    assert len(vehicle) <= 48
    assert len(PARAMETERS) - len(vehicle) <= 36
    assert {"bundle", "index", "camera.yaw_rad", "session.mode", "localizer.gate_sigma_m"} <= vehicle.keys()
    known = {"mode", "prior_source", "heading_source", "camera_frame"}
    for name, spec in PARAMETERS.items():
        for either in spec.acts.split(" or "):
            condition, _, value = either.partition(" ")
            if condition in known:
                source = PARAMETERS.get(condition) or PARAMETERS[f"session.{condition}"]
                assert value == "empty" or value in source.choices, name
    assert all(spec.acts for name, spec in vehicle.items() if name.startswith("tracker."))


def test_parameters_page_lists_the_parameters_as_they_are():
    page = (Path(__file__).parent.parent / "docs/reference/parameters.md").read_text(encoding="utf-8")
    assert with_tables(page) == page, "run: python -m unifygeo_ros.parameters.table docs/reference/parameters.md"
    assert all(f"`{name}`" in page for name in PARAMETERS)
