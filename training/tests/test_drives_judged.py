"""Judging and calibrating on drives: the gallery, the streets, and a bundle calibrated by one command."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml
from bundles import random_bundle
from drive_bags import NETWORK, VEHICLE, write_bag
from worlds import colour_world

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.gate import Gate
from unifygeo_ros.aerial.index import TileIndex, open_index
from unifygeo_ros.core.errors import BundleError
from unifygeo_ros.core.records import Prior
from unifygeo_ros.inference.bundle import (
    BundleManifest,
    Calibration,
    Confidence,
    ModelBundle,
    load_bundle,
    replace_manifest,
    with_calibration,
)
from unifygeo_ros.inference.select import open_engines
from unifygeo_training.cli import main
from unifygeo_training.confidence import gather, near_outcomes, opened, partly_seen_outcomes
from unifygeo_training.drives.ground import ImageryGround
from unifygeo_training.drives.judged import DriveImages, neighbouring, streets_of
from unifygeo_training.drives.opened import open_part


@pytest.fixture(scope="module")
def drives_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drives")
    world = colour_world(3, side_m=192.0)
    imagery = world.write_geotiff(folder / "world.tif")
    bag = write_bag(folder / "bag", world, ImageryGround([imagery], NETWORK.aerial).frame)
    file = folder / "drives.yaml"
    drive = {"bag": str(bag), "imagery": str(imagery), "set": VEHICLE}
    file.write_text(yaml.safe_dump({"drives": [drive], "spacing_m": 6.0}), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def parts(drives_file: Path):
    return open_part(drives_file, NETWORK, "all")


def uncalibrated(folder: Path):
    """A bundle that localizes in this world and says nothing of its errors."""
    bundle = random_bundle(folder, columns=4)
    manifest = dataclasses.replace(
        bundle.manifest, network=NETWORK.model_dump(mode="json"), calibrated=False, calibration=Calibration()
    )
    return replace_manifest(bundle, manifest)


def test_positive_holds_the_camera_and_is_the_nearest_tile(parts) -> None:
    data = DriveImages(parts, "drives")
    cameras = parts[0].drive.positions_m[parts[0].chosen]
    centres = data._centres_m
    assert len(data.tiles) == len(cameras)
    away = np.abs(cameras[:, None] - centres).max(axis=2)
    assert (away.argmin(axis=1) == data.tiles[:, 0]).all()
    assert cameras == pytest.approx(centres[data.tiles[:, 0]] + data.offsets_m)
    for query, row in enumerate(data.tiles):
        assert set(row[row >= 0]) <= set(np.flatnonzero(away[query] <= 16.0))
        assert np.sum(away[query] <= 16.0) >= 4 == np.sum(row >= 0)
    assert data.displacement_m(np.array([0]), np.array([5])) == pytest.approx(centres[[5]] - centres[[0]])
    ground = data.aerial_image(int(data.tiles[0, 0]))
    assert np.array_equal(ground, parts[0].drive.ground.cut(centres[data.tiles[0, 0]]).pixels)


def test_two_imageries_are_galleries_at_their_distance_on_earth(drives_file: Path, parts) -> None:
    again = open_part(drives_file, NETWORK, "all")  # opened again: another ground, at the same place
    data = DriveImages([*parts, *again], "twice")
    half = len(data._centres_m) // 2
    start, end = np.array([0, 3]), np.array([half, half + 7])
    expected = data._centres_m[end] - data._centres_m[start]
    assert data.displacement_m(start, end) == pytest.approx(expected, abs=0.01)
    assert (data.tiles[: len(parts[0])] < half).all()
    assert (data.tiles[len(parts[0]) :, 0] >= half).all()


def test_index_of_the_streets_imagery_holds_the_same_ground(parts, tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "bundle", columns=4)
    (streets,) = streets_of(parts, "drives", 0)
    file = streets.imagery(tmp_path)
    index = index_of(bundle, file, tmp_path / "index")
    truth = streets.truth(index.frame)
    ground = parts[0].drive.ground
    for tile in (0, len(index) // 2):
        centre = index.centres_m[tile]
        there = ground.frame.map_from_geodetic(*index.frame.geodetic_from_map(*centre))
        expected = ground.cut(there)
        known = expected.valid & index.tile_pixels(tile).any(axis=2)
        away = np.abs(index.tile_pixels(tile).astype(int) - expected.pixels)[known]
        assert known.mean() > 0.4
        assert away.mean() < 4.0
    assert truth - truth[0] == pytest.approx(streets._cameras_m - streets._cameras_m[0], abs=0.01)
    (tmp_path / "half").mkdir()
    assert streets.half(tmp_path / "half").stat().st_size < file.stat().st_size
    image = streets.camera_image(2, 32)
    assert image.shape[0] / image.shape[1] == pytest.approx(0.25, rel=0.01)


def index_of(bundle: ModelBundle, file: Path, output: Path) -> TileIndex:
    with open_engines(bundle, backend="onnx_cpu") as engines:
        build_index([file], bundle, engines, output)
    return open_index(output)


def test_half_of_a_drive_along_one_street_has_cameras_off_it(tmp_path: Path) -> None:
    """From south to north, where its western half would hold all of them."""
    world = colour_world(3, side_m=192.0)
    imagery = world.write_geotiff(tmp_path / "world.tif")
    frame = ImageryGround([imagery], NETWORK.aerial).frame
    bag = write_bag(
        tmp_path / "bag", world, frame, pose=lambda time_s: (0.0, time_s - 60.0, np.pi / 2),
        image_times_s=np.arange(0, 120, 6.0), truth_times_s=np.arange(-1, 122, 0.1),
    )  # fmt: skip
    file = tmp_path / "drives.yaml"
    file.write_text(yaml.safe_dump({"drives": [{"bag": str(bag), "imagery": str(imagery), "set": VEHICLE}]}))
    (streets,) = streets_of(open_part(file, NETWORK, "all"), "street", 0)
    index = index_of(random_bundle(tmp_path / "bundle", columns=4), streets.half(tmp_path), tmp_path / "index")
    gates = [Gate(Prior(float(e), float(n), 1e-6 * np.eye(2)), 1.0) for e, n in streets.truth(index.frame)]
    held = [len(index.tiles_within(gate)) for gate in gates]
    assert min(held[:8]) > 0
    assert held[-2] == held[-1] == 0


def near_of(manifest: BundleManifest) -> Confidence:
    near = manifest.calibration.near_on_map_confidence
    assert near is not None
    return near


def test_drives_of_another_year_through_the_same_streets_are_on_the_map(drives_file: Path, parts, tmp_path) -> None:
    """Only in an index that does not hold their places are these off the map. Two years of one town had right answers
    that counted as off it."""
    both = [*parts, *open_part(drives_file, NETWORK, "all")]
    first, second = streets_of(neighbouring(both, tiles=10_000, queries=8, seed=0), "two years", 0)
    bundle = uncalibrated(tmp_path / "bundle")
    with opened(bundle) as runtime:
        answers = gather(runtime, first, second).given
        partly_seen = partly_seen_outcomes(runtime, [first, second])
    off_map = answers.select(answers.outside)
    assert 0 < len(off_map) < len(first)  # of the half of its own imagery alone
    assert (~answers.outside).sum() == len(first) == 8
    assert (~partly_seen.outside).sum() == 16
    assert 0 < partly_seen.outside.sum() < 16


def test_images_for_calibration_are_neighbours_that_fit_in_memory(parts) -> None:
    cameras = parts[0].drive.positions_m[parts[0].chosen]
    whole = np.prod(np.ceil((np.ptp(cameras, axis=0) + 64) / 16))
    (all_of_them,) = neighbouring(parts, tiles=int(whole), queries=1000, seed=0)
    assert len(all_of_them) == len(cameras)
    (some,) = neighbouring(parts, tiles=int(whole * 0.6), queries=1000, seed=0)
    chosen = parts[0].drive.positions_m[some.chosen]
    assert 0 < len(some) < len(cameras)
    assert np.prod(np.ceil((np.ptp(chosen, axis=0) + 64) / 16)) <= whole * 0.6
    (few,) = neighbouring(parts, tiles=int(whole), queries=5, seed=0)
    assert len(few) == 5
    (one,) = neighbouring(parts, tiles=1, queries=5, seed=0)  # not even one camera's surroundings: one camera
    assert len(one) == 1


def test_uncalibrated_bundle_is_calibrated_in_place_with_its_lineage(
    drives_file: Path, parts, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bundle = uncalibrated(tmp_path / "bundle")
    before = bundle.manifest.sha256
    arguments = ["calibrate", str(bundle.path), str(drives_file), "--dataset", "drives", "--part", "all", "--in-place"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert '"distribution_temperature"' in printed
    assert '"ground_limit"' in printed
    assert max(map(len, printed.splitlines())) < 200  # no matrices
    assert ": the right answers lie " in caplog.text
    manifest = load_bundle(bundle.path).manifest
    assert manifest.calibrated
    assert manifest.calibration.distribution_temperature not in (1.0, 0.0)
    (step,) = manifest.lineage
    assert step["made_by"] == "unifygeo-train calibrate"
    assert step["parent_sha256"] == before
    assert "drives.yaml, part all" in step["data"]
    assert "2023-11-14" in step["data"]  # the day of the drive's stamps
    assert manifest.weights_sha256 == bundle.manifest.weights_sha256  # indexes stay valid
    # One drive tells what images near a track look like on the map and off it: those near another place of the drive.
    some = neighbouring(parts, tiles=10_000, queries=20, seed=1)
    with opened(load_bundle(bundle.path)) as runtime:
        answers, near = near_outcomes(runtime, streets_of(some, "some", 0)), near_of(manifest)
    assert (~answers.outside).sum() == 20 >= answers.outside.sum() > 10
    odds = np.array([near.log_odds(clues) for clues in answers.clues(manifest.calibration.familiarity)])
    assert np.median(odds[~answers.outside]) > 1 > -1 > np.median(odds[answers.outside])
    assert not answers.right[answers.outside].any()


def test_without_a_place_for_the_result_nothing_is_computed(drives_file: Path, tmp_path: Path, capsys) -> None:
    bundle = uncalibrated(tmp_path / "bundle")
    assert main(["calibrate", str(bundle.path), str(drives_file), "--dataset", "drives"]) == 2
    assert "give --output, --bundle or --in-place" in capsys.readouterr().err


def test_what_nobody_knows_cannot_stay_familiar(drives_file: Path, tmp_path: Path, capsys) -> None:
    """Said before anything is computed."""
    bundle = uncalibrated(tmp_path / "bundle")
    arguments = ["calibrate", str(bundle.path), str(drives_file), "--dataset", "drives", "--in-place"]
    assert main([*arguments, "--also-familiar", str(bundle.path)]) == 2
    assert "does not know what is familiar to it; calibrate it first" in capsys.readouterr().err


def test_lineage_grows_by_a_step_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "bundle")
    assert '"lineage"' not in (bundle.path / "manifest.json").read_text(encoding="utf-8")
    once = with_calibration(bundle.manifest, Calibration(tile_temperature=0.1), "a", "b")
    twice = with_calibration(once, Calibration(tile_temperature=0.2), "c", "d")
    assert [step["parent_sha256"] for step in twice.lineage] == [bundle.manifest.sha256, once.sha256]
    replace_manifest(bundle, twice)
    assert load_bundle(bundle.path).manifest == twice
    replace_manifest(bundle, dataclasses.replace(twice, lineage=("step",)))
    with pytest.raises(BundleError, match="lineage is not a list of mappings"):
        load_bundle(bundle.path)
