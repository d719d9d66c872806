"""Cached training towns: complete or absent, resumable, refused when they must not be trained on."""

from __future__ import annotations

import argparse
import multiprocessing
import time
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
    with pytest.raises(ConfigurationError, match="pairs 6, not 7"):
        render_pairs(5, 7, tmp_path, size_m=SIZE_M, metres_per_pixel=RES)
    # Same seed, same pixels, whatever a killed run left behind.
    other = tmp_path / "other"
    (other / ".town_00005.part").mkdir(parents=True)
    (other / ".town_00005.part" / "orthophotos.npy").write_bytes(b"torn")
    again = load_town(render_pairs(5, 6, other, size_m=SIZE_M, metres_per_pixel=RES))
    assert np.array_equal(again.panoramas, town.panoramas)
    assert np.array_equal(again.orthophotos, town.orthophotos)
    assert [p.name for p in other.iterdir()] == ["town_00005"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size_m": 240.0}, "size_m 200, not 240"),
        ({"orthophotos": 1}, "orthophotos 2, not 1"),
        ({"metres_per_pixel": 0.25}, "metres_per_pixel 0.5, not 0.25"),
    ],
)
def test_render_pairs_refuses_a_folder_of_other_settings(tmp_path, change, named):
    settings = {"size_m": SIZE_M, "metres_per_pixel": RES}
    render_pairs(5, 1, tmp_path, **settings)
    with pytest.raises(ConfigurationError, match=named):
        render_pairs(5, 1, tmp_path, **{**settings, **change})


def test_town_without_its_arrays_is_rendered_again(tmp_path: Path) -> None:
    """The first release could leave one."""
    folder = render_pairs(5, 2, tmp_path, size_m=SIZE_M, metres_per_pixel=1.0)
    before = np.array(load_town(folder).panoramas)
    (folder / "orthophotos.npy").unlink()
    (folder / "panoramas.npy").unlink()
    with pytest.raises(InputError, match="render it again"):
        load_town(folder)
    render_pairs(5, 2, tmp_path, size_m=SIZE_M, metres_per_pixel=1.0)
    assert np.array_equal(load_town(folder).panoramas, before)


def _render(output: str) -> None:
    render_pairs(5, 2, Path(output), size_m=SIZE_M, metres_per_pixel=1.0)


def test_two_processes_write_one_whole_town_even_if_one_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    first, second = (context.Process(target=_render, args=(str(tmp_path),)) for _ in range(2))
    first.start()
    while not list(tmp_path.glob(".town_00005.part")) and first.is_alive():
        time.sleep(0.01)
    second.start()
    time.sleep(0.2)
    assert second.is_alive() or first.exitcode is not None  # it waits for the first
    first.kill()
    first.join()
    second.join()
    assert second.exitcode == 0
    assert load_town(folder_of(tmp_path, 5)).panoramas.shape == (2, 96, 320, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["town_00005"]


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
    assert [load_town(folder_of(tmp_path, seed)).record.seed for seed in (3, 4)] == [3, 4]
    assert main(["towns", "render", "--seeds", "3", "--pairs", "3", "--size-m", "160", "--output", str(tmp_path)]) == 2
    assert "give another --output" in capsys.readouterr().err
    assert seed_range("7") == range(7, 8)
    with pytest.raises(argparse.ArgumentTypeError):
        seed_range("9:3")
