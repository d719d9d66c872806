"""Config files: what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from unifygeo_ros.errors import ConfigurationError
from unifygeo_training.cli import main
from unifygeo_training.configuration import read_network_config
from unifygeo_training.model import NetworkConfig


def test_defaults_are_the_published_network(tmp_path: Path) -> None:
    file = tmp_path / "network.yaml"
    file.write_text("")
    assert read_network_config(file) == NetworkConfig()
    assert (NetworkConfig().rows, NetworkConfig().columns) == (12, 24)
    assert NetworkConfig().level_sizes == (12, 24, 48, 96)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbon: convnext_tiny", "unknown key backbon"),
        ("ground_width: 100", "ground_width is 100"),
        ("metres_per_pixel: -1", "metres_per_pixel is -1"),
        ("ground_elevation_bottom_deg: 50\nground_elevation_top_deg: 40", "not below"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "network.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_network_config(file)


def test_the_command_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.pth"
    assert main(["import-checkpoint", str(missing), "--output", str(tmp_path / "bundle")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "none.pth" in error
