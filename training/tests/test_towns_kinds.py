"""Kinds of towns, cameras of several heights, orthophotos that lean: against geometry, and the old towns unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_training.towns.kinds import KINDS, MIXED, kind_of
from unifygeo_training.towns.light import draw_appearance
from unifygeo_training.towns.orthophoto import lean, render_orthophoto, surface_heights
from unifygeo_training.towns.pairs import load_town, render_pairs
from unifygeo_training.towns.scene import AERIAL, Kind, Shape
from unifygeo_training.towns.town import build_town


def test_kinds_differ_as_their_names_say() -> None:
    towns = {name: build_town(3, 220.0, 0.5, kind) for name, kind in KINDS.items()}

    def heights(name: str) -> np.ndarray:
        objects = towns[name].objects
        return objects["top"][(objects["kind"] == Kind.BUILDING) & (objects["bottom"] == 0)]

    def width(name: str) -> float:
        return float(np.median([street.width_m for street in towns[name].streets]))

    assert np.median(heights("city")) > 1.4 * np.median(heights("mixed"))
    assert np.median(heights("suburb")) < 0.5 * np.median(heights("city"))
    assert width("city") > 1.15 * width("mixed")
    assert width("old_town") < width("mixed")
    assert all(len(town.streets) > 15 for town in towns.values())
    assert {kind_of("varied", seed).name for seed in range(6)} == set(KINDS)


def test_lattice_towns_have_right_angles_and_scattered_ones_not() -> None:
    def spread(name: str) -> float:
        """Length of the mean of exp(4i·angle) over the streets: 1 if all are parallel or at right angles."""
        streets = build_town(5, 300.0, 0.5, KINDS[name]).streets
        angles = [np.arctan2(*(s.line[-1] - s.line[0])[::-1]) for s in streets]
        return float(abs(np.mean(np.exp(4j * np.array(angles)))))

    assert spread("city") > 0.55
    assert spread("mixed") < 0.35


def test_town_kind_of_the_first_releases_is_unchanged() -> None:
    """Streets, solids and ground of a town of 160 m: held-out towns and the demonstration rest on them."""
    town = build_town(7, 160.0, 0.5)
    assert (town.objects.tobytes(), town.ground.tobytes()) == (
        build_town(7, 160.0, 0.5, MIXED).objects.tobytes(),
        build_town(7, 160.0, 0.5, MIXED).ground.tobytes(),
    )
    # Not by a checksum: processors with other instructions differ in the last bits.
    objects = town.objects
    assert np.bincount(objects["kind"]).tolist() == [42, 319, 133, 123, 356, 149]
    assert int(objects["seed"].astype(np.int64).sum()) == 587166908
    numbers = np.column_stack([objects[n] for n in objects.dtype.names if objects.dtype[n].kind == "f"])
    weights = np.cos(np.arange(numbers.size)).reshape(numbers.shape)  # no two numbers can be exchanged unseen
    assert float((numbers * weights).sum()) == pytest.approx(441.565305504, abs=1e-6)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'village' is not known; choose one of mixed, city"):
        kind_of("village", 0)


def test_leaning_moves_roofs_by_their_height_and_leaves_the_ground() -> None:
    """Against the definition, pixel by pixel: a ray towards the camera from the ground up meets the first solid."""
    town = build_town(11, 120.0, 0.5)
    photo = render_orthophoto(town, draw_appearance(np.random.default_rng(0)))
    east, north = 0.3, -0.2
    leaned = lean(photo, town, east, north)
    heights, _, _ = surface_heights(town, AERIAL)
    rng, ground = np.random.default_rng(1), 0
    for row, column in rng.integers(30, 210, (400, 2)):
        line = [
            (z, heights[round(row + z * north / 0.5), round(column - z * east / 0.5)])
            for z in np.arange(0.0, 40.0, 0.05)
        ]
        if all(height < z for z, height in line[1:]):  # nothing stands in the way of the ground
            ground += 1
            assert np.array_equal(leaned[row, column], photo[row, column])
    assert ground > 100
    # A flat roof, away from everything that is higher: its middle appears z · lean aside.
    objects = town.objects
    flat = objects[(objects["kind"] == Kind.BUILDING) & (objects["shape"] == Shape.BOX)]
    checked = 0
    for o in flat:
        row, column = int((120 - o["y"]) / 0.5), int(o["x"] / 0.5)
        if not (20 < row < 220 and 20 < column < 220) or abs(heights[row, column] - o["top"]) > 0.01:
            continue
        to_row, to_column = round(row - o["top"] * north / 0.5), round(column + o["top"] * east / 0.5)
        if 0 <= to_row < 240 and 0 <= to_column < 240:
            near = photo[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3).astype(int)
            assert np.abs(near - leaned[to_row, to_column].astype(int)).max(axis=1).min() <= 6
            checked += 1
    assert checked >= 1


def test_no_lean_changes_nothing() -> None:
    town = build_town(11, 120.0, 0.5)
    photo = render_orthophoto(town, draw_appearance(np.random.default_rng(0)))
    assert np.array_equal(lean(photo, town, 0.0, 0.0), photo)


def test_horizon_of_the_ground_depends_on_camera_height(tmp_path: Path) -> None:
    """The nearest ground lies further away under a higher camera: kerbs move; the record says the range."""
    low, high = (
        load_town(
            render_pairs(
                12, 3, tmp_path / name, size_m=160.0, metres_per_pixel=0.5, camera_heights_m=heights, orthophotos=1
            )
        )
        for name, heights in (("low", (1.4, 1.4)), ("high", (1.4, 3.0)))
    )
    assert (high.record.camera_height_m, high.record.camera_height_range_m) == (1.4, pytest.approx(1.6))
    assert low.record.camera_height_range_m == 0.0
    assert not np.array_equal(low.panoramas, high.panoramas)


def test_heights_that_are_no_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"heights of 3 to 1\.4 m: give the lower one first"):
        render_pairs(12, 3, tmp_path, camera_heights_m=(3.0, 1.4))


def test_town_of_another_kind_in_the_folder_is_an_error(tmp_path: Path) -> None:
    options = {"size_m": 160.0, "metres_per_pixel": 0.5, "orthophotos": 1}
    render_pairs(12, 2, tmp_path, **options)
    with pytest.raises(ConfigurationError, match="kind mixed, not city"):
        render_pairs(12, 2, tmp_path, kind="city", **options)
