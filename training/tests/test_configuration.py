"""Config files: what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.cli import main
from unifygeo_training.configuration import read_network_config, read_settings
from unifygeo_training.fit_config import FitConfig
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
def test_wrong_value_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "network.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_network_config(file)


CONFIG = Path(__file__).parents[1] / "configs" / "towns_atto.yaml"


def test_setting_of_the_command_line_takes_the_place_of_the_files() -> None:
    changes = ["losses.reranking=0", "network.aggregator=average", "steps=2000", "start_from=runs/first/last.pt"]
    plain, changed = read_settings(CONFIG, FitConfig), read_settings(CONFIG, FitConfig, changes)
    trained = {"retrieval": True, "localization": True, "matching": True}
    assert plain.ablation() == {**trained, "reranking_loss": True}
    assert changed.ablation() == {**trained, "reranking_loss": False}
    assert (changed.steps, changed.start_from) == (2000, Path("runs/first/last.pt"))
    assert changed.losses.retrieval_from_step == plain.losses.retrieval_from_step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("losses.rerankin=0", "unknown key losses.rerankin"),
        ("losses.reranking=-1", "losses.reranking is -1"),
        ("steps", "write section.key=value"),
        ("losses..reranking=0", "write section.key=value"),
        ("steps.more=1", "steps is no section"),
        ("steps={", "cannot be read as YAML"),
    ],
)
def test_wrong_setting_of_the_command_line_is_named(change: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_settings(CONFIG, FitConfig, [change])


def test_command_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.pth"
    assert main(["import-checkpoint", str(missing), "--output", str(tmp_path / "bundle")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "none.pth" in error
