"""Cached training towns: complete or absent, resumable, refused when they must not be trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_training.cli import main
from unifygeo_training.towns.command import seed_range
from unifygeo_training.towns.pairs import (
    MARGIN_M,
    folder_of,
    load_town,
    load_training_towns,
    render_pairs,
    street_positions,
)
from unifygeo_training.towns.town import build_town

SIZE_M, RES = 200.0, 0.5


def test_pairs_are_cached_read_back_and_left_alone(tmp_path: Path) -> None:
    folder = render_pairs(5, 6, tmp_path, size_m=SIZE_M, metres_per_pixel=RES)
    town = load_town(folder)
    assert town.orthophotos.shape == (2, 400, 400, 3)
    assert town.panoramas.shape == (6, 96, 320, 3)
    assert town.positions.dtype == np.float64
    assert town.positions.min() >= MARGIN_M
    assert town.positions.max() <= SIZE_M - MARGIN_M
    assert np.abs(town.orthophotos[0].astype(int) - town.orthophotos[1]).mean() > 3  # another day
    assert town.tile(1, *town.positions[0], 64, 40.0).shape == (64, 64, 3)
    before = (folder / "town.json").stat().st_mtime_ns
    assert render_pairs(5, 6, tmp_path, size_m=SIZE_M, metres_per_pixel=RES) == folder
    assert (folder / "town.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigurationError, match="6 pairs"):
        render_pairs(5, 7, tmp_path, size_m=SIZE_M, metres_per_pixel=RES)
    # Same seed, same pixels, whatever a killed run left behind.
    other = tmp_path / "other"
    (other / ".town_00005.part").mkdir(parents=True)
    (other / ".town_00005.part" / "orthophotos.npy").write_bytes(b"torn")
    again = load_town(render_pairs(5, 6, other, size_m=SIZE_M, metres_per_pixel=RES))
    assert np.array_equal(again.panoramas, town.panoramas)
    assert np.array_equal(again.orthophotos, town.orthophotos)
    assert [p.name for p in other.iterdir()] == ["town_00005"]


def test_held_out_towns_are_not_trained_on(tmp_path: Path) -> None:
    render_pairs(1000, 1, tmp_path, size_m=SIZE_M, metres_per_pixel=1.0)
    assert load_town(folder_of(tmp_path, 1000)).record.seed == 1000
    with pytest.raises(InputError, match="kept for testing"):
        load_training_towns(tmp_path)
    with pytest.raises(InputError, match="no cached town"):
        load_training_towns(tmp_path / "nothing")


def test_cameras_stand_in_lanes_clear_of_everything() -> None:
    town = build_town(6, 300.0, 1.0)
    positions = street_positions(np.random.default_rng(0), town, 60)
    for p in positions:
        across = min(np.hypot(*(s.line - p).T).min() - s.width_m / 2 for s in town.streets)
        assert across < -0.3
    with pytest.raises(ConfigurationError, match="room for 0 of 5"):
        street_positions(np.random.default_rng(0), build_town(6, 70.0, 1.0), 5)


def test_command_renders_a_range_of_towns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["towns", "render", "--seeds", "3:5", "--pairs", "2", "--size-m", "160", "--output", str(tmp_path)]) == 0
    )
    assert [t.record.seed for t in load_training_towns(tmp_path)] == [3, 4]
    assert main(["towns", "render", "--seeds", "3", "--pairs", "3", "--size-m", "160", "--output", str(tmp_path)]) == 2
    assert "give another --output" in capsys.readouterr().err
    assert seed_range("7") == range(7, 8)
    with pytest.raises(argparse.ArgumentTypeError):
        seed_range("9:3")
