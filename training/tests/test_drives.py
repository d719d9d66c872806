"""Recorded drives as a data set: which images are used, what pairs they become, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from bundles import random_bundle
from drive_bags import CAMERA_X_M, NETWORK, VEHICLE, eight, write_bag
from drives import Circle
from rig_drives import CAMERAS, RIG_FILE, write_rig_drive
from small_runs import Dots, small_config
from worlds import World, colour_world

from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.core.errors import BundleError, ConfigurationError, InputError
from unifygeo_ros.core.geodesy import Datum, LocalFrame, map_from_tile
from unifygeo_ros.inference.select import open_engines
from unifygeo_training import losses
from unifygeo_training.checkpoint import read_tensors
from unifygeo_training.cli import main
from unifygeo_training.data.photography import PhotographyConfig
from unifygeo_training.data.rehearsal import RehearsedPairs
from unifygeo_training.drives import pairs as drive_pairs
from unifygeo_training.drives.ground import ImageryGround, IndexGround
from unifygeo_training.drives.opened import check_drives, open_drives, part_of
from unifygeo_training.drives.pairs import DrivesConfig
from unifygeo_training.drives.places import cells_of, near_other_part, parts_of
from unifygeo_training.drives.recorded import Use
from unifygeo_training.drives.settings import read_drives_file
from unifygeo_training.drives.turns import turn_between
from unifygeo_training.fit import fit
from unifygeo_training.fit_config import FitConfig

SIDE_M = 32.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    world = colour_world(3, side_m=192.0)
    imagery = world.write_geotiff(folder / "world.tif")
    frame = ImageryGround([imagery], NETWORK.aerial).frame
    return Place(folder, world, imagery, frame)


@dataclasses.dataclass(frozen=True)
class Place:
    folder: Path
    world: World
    imagery: Path
    frame: LocalFrame

    def drives_file(self, folder: Path, *drives: dict, **settings: object) -> Path:
        """A file that names drives over this place; `set` and imagery are filled in."""
        filled = [
            {**({} if "index" in drive else {"imagery": str(self.imagery)}), "set": VEHICLE, **drive}
            for drive in drives
        ]
        file = folder / "drives.yaml"
        file.write_text(yaml.safe_dump({"drives": filled, **settings}), encoding="utf-8")
        return file

    def bag(self, folder: Path, **spoilt: object) -> dict:
        return {"bag": str(write_bag(folder / "bag", self.world, self.frame, **spoilt))}


@pytest.fixture(scope="module")
def good(place: Place) -> Path:
    return write_bag(place.folder / "good", place.world, place.frame)


def opened(file: Path):
    return open_drives(file, NETWORK.ground, NETWORK.aerial)


def findings(file: Path):
    return list(check_drives(read_drives_file(file), NETWORK.ground, NETWORK.aerial))


def problem(file: Path) -> str:
    ((report, _),) = findings(file)
    assert report.problem is not None
    return report.problem


# -- what becomes of the images ---------------------------------------------------------------------------------------


def test_images_are_used_where_they_were_taken_and_face_north(place: Place, good: Path, tmp_path: Path) -> None:
    _, (drive,) = opened(place.drives_file(tmp_path, {"bag": str(good)}, spacing_m=0.0))
    assert len(drive) == 120
    for number in (0, 17, 71):
        x, y, yaw = eight(0.5 * number)
        x, y = x + CAMERA_X_M * math.cos(yaw), y + CAMERA_X_M * math.sin(yaw)
        assert drive.positions_m[number] == pytest.approx(World.in_map(place.frame, x, y), abs=1e-3)
        north = place.world.panorama(x, y, 0.0, height=512)[128:384]  # elevations of ±45°
        expected = cv2.resize(north, (128, 32), interpolation=cv2.INTER_AREA)
        away = np.abs(drive.panoramas[number].astype(int) - expected).mean()
        assert away < 12 < np.abs(np.roll(drive.panoramas[number], 8, axis=1).astype(int) - expected).mean()
    assert drive.sigmas_m == pytest.approx(0.05)


def test_pairs_show_the_camera_where_the_label_says(place: Place, good: Path, tmp_path: Path) -> None:
    pairs = DrivesConfig(kind="drives", file=place.drives_file(tmp_path, {"bag": str(good)}), part="all").open(NETWORK)
    frame_centre = World.in_map(place.frame, 0.0, 0.0)
    rng = np.random.default_rng(0)
    offsets = []
    for member in pairs.draw(rng, 4):
        pair = pairs.read(member, rng)
        camera = pairs.parts[0].drive.positions_m[member.place] - frame_centre  # grid north is north there
        size, scale = len(place.world.pixels), place.world.metres_per_pixel
        # World pixels around the camera, and the tile's around the label, must be the same.
        around = np.mgrid[-3:4, -3:4].reshape(2, -1) * 0.5
        row, column = np.array(pair.position)[:, None] * 64 - 0.5 + around / 0.5
        world_row, world_column = (
            (size - 1) / 2 + around + np.array([[-camera[1]], [camera[0]]]) / scale - around + (around / scale)
        )
        ours = cv2.remap(pair.tile, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR)
        theirs = cv2.remap(
            place.world.pixels, world_column.astype(np.float32), world_row.astype(np.float32), cv2.INTER_LINEAR
        )
        assert np.abs(ours.astype(int) - theirs).mean() < 6
        assert pair.sigma == pytest.approx(0.05 / SIDE_M)
        offsets.append(pair.position)
    assert np.ptp(offsets, axis=0).min() > 0.05  # anywhere, not always the middle


def test_tiles_of_an_index_are_those_of_its_imagery(place: Place, tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "bundle")
    with open_engines(bundle, backend="onnx_cpu") as engines:
        build_index([place.imagery], bundle, engines, tmp_path / "index")
    index, imagery = IndexGround(tmp_path / "index", NETWORK.aerial), ImageryGround([place.imagery], NETWORK.aerial)
    assert index.frame.datum.latitude_deg == pytest.approx(imagery.frame.datum.latitude_deg, abs=1e-7)  # 1 cm
    for wanted in (np.array([3.3, -20.2]), np.array([41.0, 7.7])):
        centre = index.snapped(wanted)
        assert np.abs(centre - wanted).max() <= 0.25
        ours, theirs = index.cut(centre), imagery.cut(centre)
        assert ours.valid.all()
        assert np.abs(ours.pixels.astype(int) - theirs.pixels).mean() < 3.0  # JPEG
        assert np.abs(np.roll(ours.pixels, 2, axis=1).astype(int) - theirs.pixels).mean() > 6.0
    edge = index.cut(index.snapped(np.array([85.0, 0.0])))
    assert 0.2 < edge.valid.mean() < 0.95
    with pytest.raises(InputError, match="give the imagery in place of the index"):
        IndexGround(tmp_path / "index", dataclasses.replace(NETWORK.aerial, size=128))


def test_truth_that_is_less_sure_makes_the_label_wider_and_counts_less() -> None:
    sigma = torch.tensor([0.0, 3.0])
    label = losses.gaussian_label(torch.full((2, 2), 0.5), 65, torch.hypot(sigma, torch.tensor(4.0)))
    assert float(label[0, 32, 36]) == pytest.approx(math.exp(-0.5))  # σ = 4
    assert float(label[1, 32, 37]) == pytest.approx(math.exp(-0.5))  # √(4² + 3²) = 5
    counts = losses.trust(sigma, 4.0)
    assert counts.tolist() == pytest.approx([1.0, 16 / 25])
    logits = torch.randn(2, 65, 65, generator=torch.Generator().manual_seed(0))
    each = [float(losses.distribution_loss(logits[n : n + 1], label[n : n + 1])) for n in (0, 1)]
    assert float(losses.distribution_loss(logits, label, counts)) == pytest.approx((each[0] + 0.64 * each[1]) / 1.64)


# -- split by place ---------------------------------------------------------------------------------------------------

SPLIT = {"cell_m": 100.0, "shares": (0.3, 0.3), "seed": 4}


def test_parts_of_gives_each_cell_of_ground_to_one_part() -> None:
    frame = LocalFrame(Datum(48.5, 9.0))
    rng = np.random.default_rng(0)
    here = frame.geodetic_from_map(*rng.uniform(-2000, 2000, (2, 3000)))
    cells, parts = cells_of(here, 100.0), parts_of(here, **SPLIT)
    _, inverse, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    for cell in range(len(counts)):
        assert len(set(parts[inverse.reshape(-1) == cell])) == 1
    # 3000 images fall into 1600 squares of 100 m × 100 m, a share e^(−3000/1600) of which stays empty.
    assert len(counts) == pytest.approx(1600 * (1 - math.exp(-3000 / 1600)), rel=0.05)
    assert np.mean(parts == "test") == pytest.approx(0.3, abs=0.05)
    assert (parts_of(here[5:6], **SPLIT) == parts[5:6]).all()  # nobody else's positions matter
    other = {part: np.mean(parts_of(here, **{**SPLIT, "seed": 5}) == parts) for part in ("train",)}
    assert other["train"] < 0.6


def test_positions_beside_another_part_are_found_by_brute_force() -> None:
    frame = LocalFrame(Datum(-33.9, 151.2))
    east, north = np.meshgrid(np.arange(-300.0, 300.0, 10.0), np.arange(-300.0, 300.0, 10.0))
    here = frame.geodetic_from_map(east.ravel(), north.ravel())
    parts = parts_of(here, **SPLIT)
    near = near_other_part(here, "train", guard_m=30.0, **SPLIT)
    points = np.stack([east.ravel(), north.ravel()], axis=-1)
    inside = (np.abs(points) < 250).all(axis=1) & (parts == "train")
    apart = np.abs(points[inside, None] - points[parts != "train"]).max(axis=2).min(axis=1)
    assert near[inside][apart <= 20].all()
    assert not near[inside][apart > 40].any()


def test_images_of_the_parts_are_apart_and_none_is_lost_without_a_guard(
    place: Place, good: Path, tmp_path: Path
) -> None:
    file, drives = opened(
        place.drives_file(tmp_path, {"bag": str(good)}, cell_m=25.0, val_share=0.2, test_share=0.3, spacing_m=1.0)
    )
    chosen = [part_of(file, drives, part)[0].chosen for part in ("train", "val", "test")]
    assert sorted(np.concatenate(chosen).tolist()) == list(range(len(drives[0])))
    guarded = part_of(file, drives, "train", guard_m=5.0)[0].chosen
    assert set(guarded.tolist()) < set(chosen[0].tolist())
    positions = drives[0].positions_m
    others = positions[np.concatenate(chosen[1:])]
    assert np.abs(positions[guarded][:, None] - others).max(axis=2).min() > 4.9
    one = opened(place.drives_file(tmp_path, {"bag": str(good)}, cell_m=1e6))
    empty = [part for part in ("train", "val", "test") if not _has(one, part)]
    assert len(empty) == 2
    with pytest.raises(InputError, match="set another seed, smaller squares"):
        part_of(*one, empty[0])


def _has(opened_drives, part: str) -> bool:
    try:
        return bool(part_of(*opened_drives, part))
    except InputError:
        return False


# -- situations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rig", ["rig.yaml", "auto"])
def test_images_of_a_rig_become_panoramas_at_its_centre(place: Place, tmp_path: Path, rig: str) -> None:
    bag = write_rig_drive(tmp_path / "bag", place.world, place.frame)
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump(RIG_FILE, sort_keys=False), encoding="utf-8")
    settings = {name: value for name, value in VEHICLE.items() if name != "camera.x_m"}
    drive_of_rig = {"bag": str(bag), "rig": rig, "set": settings, "truth_topic": "/ground_truth/odometry"}
    file = place.drives_file(tmp_path, drive_of_rig, spacing_m=0.0)
    ((report, drive),) = findings(file)
    assert drive is not None, report.problem
    assert report.problem is None or "at least 16" in report.problem  # 8 s of driving
    assert len(drive) >= 14
    first_s = 0.0 if rig == "rig.yaml" else CAMERAS["back"][0]  # auto: the first one by name paces
    for number in (3, 9):
        x, y, yaw = Circle().pose(0.5 * number + first_s)
        assert drive.yaw_rad[number] == pytest.approx(yaw, abs=1e-3)
        assert drive.positions_m[number] == pytest.approx(World.in_map(place.frame, x, y), abs=5e-3)
        north = place.world.panorama(x, y, 0.0, height=512)[128:384]  # elevations of ±45°
        expected = cv2.resize(north, (128, 32), interpolation=cv2.INTER_AREA).astype(int)
        road = slice(19, 31)  # 8° to 42° below the horizon, where all cameras see
        away = np.abs(drive.panoramas[number].astype(int) - expected)[road].mean()
        turned = np.abs(np.roll(drive.panoramas[number], 6, axis=1).astype(int) - expected)[road].mean()
        assert away < 14 < turned


def test_drive_with_a_rig_that_is_not_its_own_is_one_error(place: Place, tmp_path: Path) -> None:
    bag = write_rig_drive(tmp_path / "bag", place.world, place.frame, seconds=1.0)
    cameras = {"roof": {**RIG_FILE["cameras"]["front"], "topic": "/roof/image_raw"}}
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump({"cameras": cameras}), encoding="utf-8")
    drive_of_rig = {"bag": str(bag), "rig": "rig.yaml"}
    assert "no images of camera roof on /roof/image_raw" in problem(place.drives_file(tmp_path, drive_of_rig))
    with pytest.raises(ConfigurationError, match="both image_topic and rig"):
        read_drives_file(place.drives_file(tmp_path, {**drive_of_rig, "image_topic": "/front/image_raw"}))


def test_read_drive_thins_a_standing_vehicle_and_a_fast_camera(place: Place, tmp_path: Path) -> None:
    def pose(time_s: float):
        return eight(min(time_s, 20.0))

    times = (*np.arange(0, 4, 1 / 30), *np.arange(4, 20, 0.5), *np.arange(20, 620, 2.0))
    bag = place.bag(tmp_path, pose=pose, image_times_s=times, truth_times_s=np.arange(-1, 621, 0.2))
    ((report, drive),) = findings(place.drives_file(tmp_path, bag, spacing_m=2.0))
    assert report.problem is None
    apart = np.hypot(*(drive.positions_m[:, None] - drive.positions_m).T) + 1e9 * np.eye(len(drive))
    assert apart.min() >= 2.0
    assert drive.exposures.counts()[Use.TOO_NEAR] > 300
    assert 16 <= len(drive) < 70


def test_two_drives_on_different_days_share_places_but_no_batch(place: Place, good: Path, tmp_path: Path) -> None:
    other = place.bag(tmp_path, pixels=lambda panorama: panorama // 2)
    file = place.drives_file(tmp_path, {"bag": str(good)}, other, cell_m=25.0, spacing_m=3.0)
    pairs = DrivesConfig(kind="drives", file=file, part="all").open(NETWORK)
    assert len(pairs.parts) == 2
    assert len(pairs) == sum(map(len, pairs.parts))
    rng = np.random.default_rng(1)
    for _ in range(20):
        members = pairs.draw(rng, 5)
        centres = pairs._common_m[[m.place for m in members]] + [m.offset_m for m in members]
        apart = np.abs(centres[:, None] - centres).max(axis=2) + 1e9 * np.eye(5)
        assert apart.min() >= SIDE_M / 2
    tiles = pairs.tiles(None)
    first, second = 0, int(np.hypot(*(pairs._common_m[len(pairs.parts[0]) :] - pairs._common_m[0]).T).argmin())
    assert tiles.excludes(first, [len(pairs.parts[0]) + second])
    with pytest.raises(ConfigurationError, match="room for"):
        pairs.draw(rng, 64)


def test_batch_for_which_one_draw_has_no_room_is_drawn_again(
    place: Place, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place.drives_file(tmp_path, {"bag": str(good)}, val_share=0.0, test_share=0.0)
    drives = DrivesConfig(kind="drives", file=file).open(NETWORK)

    def failures(count: int) -> int:
        failed = 0
        for seed in range(20):
            try:
                assert len(drives.draw(np.random.default_rng(seed), count)) == count
            except ConfigurationError:
                failed += 1
        return failed

    with monkeypatch.context() as once:
        once.setattr(drive_pairs, "TRIES", 1)
        tight = next(count for count in range(2, len(drives)) if failures(count))
        assert failures(tight) < 14
    assert failures(tight) == 0
    with pytest.raises(ConfigurationError, match=f"of {len(drives)} tiles half a side"):
        drives.draw(np.random.default_rng(0), len(drives))


def test_truth_with_gaps_leaves_out_their_images_and_says_where(place: Place, tmp_path: Path) -> None:
    times = np.arange(-1, 62, 0.1)
    bag = place.bag(tmp_path, truth_times_s=times[(times < 20) | (times > 30)])
    ((report, drive),) = findings(place.drives_file(tmp_path, bag, spacing_m=0.0))
    assert report.problem is None
    assert drive.exposures.counts()[Use.NO_TRUTH] in (20, 21)
    assert any("20 … 30 s" in note and "without truth" in note for note in report.notes)
    asked = problem(place.drives_file(tmp_path, {**bag, "least_truth_share": 0.9}, spacing_m=0.0))
    assert "of 120 images have no truth at their stamp" in asked
    assert "lower least_truth_share" in asked


def test_truth_of_a_satellite_receiver_gives_the_course_as_heading(place: Place, tmp_path: Path) -> None:
    bag = place.bag(tmp_path, truth="navsat", sigma_m=0.4)
    ((report, drive),) = findings(place.drives_file(tmp_path, bag, spacing_m=0.0))
    assert report.problem is None, report
    true = np.array([eight(0.5 * n)[2] for n in range(120)])
    assert len(drive) == 120
    assert np.abs((drive.yaw_rad - true + np.pi) % (2 * np.pi) - np.pi).max() < 0.05
    assert drive.sigmas_m == pytest.approx(0.4)


def test_bag_in_parts_without_metadata_is_read_whole(place: Place, good: Path, tmp_path: Path) -> None:
    bag = place.bag(tmp_path, files=3)
    ((report, drive),) = findings(place.drives_file(tmp_path, bag, spacing_m=0.0))
    assert report.problem is None
    _, (whole,) = opened(place.drives_file(tmp_path, {"bag": str(good)}, spacing_m=0.0))
    assert np.array_equal(drive.panoramas, whole.panoramas)


def test_poor_truth_is_left_out_and_counted(place: Place, good: Path, tmp_path: Path) -> None:
    assert "worse than largest_sigma_m" in problem(
        place.drives_file(tmp_path, {"bag": str(good)}, largest_sigma_m=0.01)
    )


def test_drives_file_with_a_misspelt_key_names_it(place: Place, good: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown key drives\.0\.truth_topik"):
        read_drives_file(place.drives_file(tmp_path, {"bag": str(good), "truth_topik": "/truth"}))
    with pytest.raises(ConfigurationError, match="either index or imagery"):
        read_drives_file(place.drives_file(tmp_path, {"bag": str(good), "index": "index", "imagery": "world.tif"}))


# -- what is refused --------------------------------------------------------------------------------------------------


def test_good_drive_has_no_problem_and_no_offset(place: Place, good: Path, tmp_path: Path) -> None:
    ((report, _),) = findings(place.drives_file(tmp_path, {"bag": str(good)}))
    assert report.problem is None
    offset = float(str(report).split("truth later than the images by ")[1].split(" s")[0])
    assert abs(offset) < 0.1


@pytest.mark.parametrize("late_s", [0.3, -0.3])
def test_truth_that_is_late_is_found_with_its_amount(place: Place, tmp_path: Path, late_s: float) -> None:
    found = problem(place.drives_file(tmp_path, place.bag(tmp_path, truth_late_s=late_s)))
    assert ("late" if late_s > 0 else "early") in found
    assert float(found.split("the truth is ")[1].split(" s ")[0]) == pytest.approx(0.3, abs=0.08)


def test_stamp_offset_of_the_node_repairs_truth_that_is_late(place: Place, tmp_path: Path) -> None:
    bag = place.bag(tmp_path, truth_late_s=0.3)
    file = place.drives_file(tmp_path, {**bag, "set": {**VEHICLE, "session.stamp_offset_s": 0.3}})
    ((report, _),) = findings(file)
    assert report.problem is None


def test_mirrored_camera_is_found(place: Place, tmp_path: Path) -> None:
    assert "the camera is mirrored" in problem(place.drives_file(tmp_path, place.bag(tmp_path, mirrored=True)))


def test_bag_without_images_is_found(place: Place, tmp_path: Path) -> None:
    assert "no topic can serve as images" in problem(place.drives_file(tmp_path, place.bag(tmp_path, image_times_s=())))


def test_truth_in_another_zone_is_found(place: Place, good: Path, tmp_path: Path) -> None:
    wrong = {"bag": str(good), "truth_frame": "EPSG:32633"}
    assert "comes no nearer than" in problem(place.drives_file(tmp_path, wrong))


def test_imagery_that_does_not_cover_the_drive_is_found(place: Place, good: Path, tmp_path: Path) -> None:
    def elsewhere(time_s: float):
        x, y, yaw = eight(time_s)
        return x + 3000.0, y, yaw

    bag = place.bag(tmp_path, pose=elsewhere, pixels=lambda panorama: panorama)
    assert "does not cover" in problem(place.drives_file(tmp_path, bag))


def test_images_and_truth_of_different_clocks_are_found(place: Place, tmp_path: Path) -> None:
    assert "record both with one clock" in problem(place.drives_file(tmp_path, place.bag(tmp_path, truth_late_s=500.0)))


def test_black_images_are_found(place: Place, tmp_path: Path) -> None:
    bag = place.bag(tmp_path, pixels=np.zeros_like)
    assert "black_image" in problem(place.drives_file(tmp_path, bag))


def test_open_drives_refuses_a_drive_with_a_finding(place: Place, good: Path, tmp_path: Path) -> None:
    file = place.drives_file(tmp_path, {"bag": str(good)}, place.bag(tmp_path, mirrored=True))
    with pytest.raises(InputError, match="mirrored"):
        DrivesConfig(kind="drives", file=file).open(NETWORK)


@pytest.mark.parametrize("turn_deg", [-40.0, -3.3, 0.0, 12.0, 170.0])
def test_turn_to_the_left_moves_the_panorama_to_the_right(turn_deg: float) -> None:
    # Something at azimuth a is seen at a + ψ, further right, after a turn to the left by ψ.
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (12, 90, 3), np.uint8), (720, 60), interpolation=cv2.INTER_CUBIC)
    turned = np.roll(image, round(turn_deg * 2), axis=1)
    found = math.degrees(turn_between(image, turned))
    assert (found - round(turn_deg * 2) / 2 + 180) % 360 - 180 == pytest.approx(0.0, abs=0.05)


def test_tile_around_a_label_is_that_of_the_runtime() -> None:
    """The label's fraction and the runtime's pixels name the same point."""
    row, column = 0.25 * 64 - 0.5, 0.75 * 64 - 0.5
    assert map_from_tile(row, column, 10.0, 20.0, 64, 0.5) == pytest.approx([10 + 0.25 * 32, 20 + 0.25 * 32])


# -- fine-tuning ------------------------------------------------------------------------------------------------------


def test_every_batch_rehearses_its_share(place: Place, good: Path, tmp_path: Path) -> None:
    pairs = DrivesConfig(kind="drives", file=place.drives_file(tmp_path, {"bag": str(good)}), part="all").open(NETWORK)
    mixed = RehearsedPairs(pairs, Dots(), 0.25)
    members = mixed.draw(np.random.default_rng(0), 4)
    assert sorted(which for which, _ in members) == [0, 0, 0, 1]
    read = [mixed.read(member, np.random.default_rng(0)) for member in members]
    assert [pair.sigma is None for pair in read] == [which == 1 for which, _ in members]
    assert mixed.draw(np.random.default_rng(0), 4) == members
    with pytest.raises(ConfigurationError, match="a batch holds both"):
        mixed.draw(np.random.default_rng(0), 1)


def test_run_on_drives_starts_from_a_checkpoint_and_resumes(place: Place, good: Path, tmp_path: Path) -> None:
    def settings(**changes: object) -> FitConfig:
        return small_config(
            **{"network": NETWORK, "data": {"kind": "drives", "file": file, "part": "all"}, "steps": 2, **changes}
        )

    file = place.drives_file(tmp_path, {"bag": str(good)})
    config = settings()
    pairs = config.data.open(config.network)
    first = fit(config, pairs, tmp_path / "first")
    tuned = settings(start_from=first, optimiser={"warmup_steps": 1, "learning_rate": 1e-5})
    stopped = fit(tuned, pairs, tmp_path / "tuned", stop_after=1)
    near, start = read_tensors(stopped)["model"], read_tensors(first)["model"]
    weights = [name for name in start if start[name].is_floating_point() and "running" not in name]
    moved = max(float((near[name] - start[name]).abs().max()) for name in weights)
    assert 0 < moved < 1e-4  # one step of AdamW: the learning rate at most, 1e-5, and its decay
    resumed = read_tensors(fit(tuned, pairs, tmp_path / "tuned"))["model"]
    whole = read_tensors(fit(tuned, pairs, tmp_path / "whole"))["model"]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        fit(settings(start_from=tmp_path), pairs, tmp_path / "bundle")


def test_check_data_draws_each_drive_and_tells_by_its_exit_status(
    place: Place, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = tmp_path / "network.yaml"
    network.write_text(yaml.safe_dump(NETWORK.model_dump(mode="json")), encoding="utf-8")
    bags = ({"bag": str(good)}, {"bag": str(tmp_path / "nowhere")})
    split = {"val_share": 0.0, "test_share": 0.0, "cell_m": 400.0}  # all of it for training: green
    file = place.drives_file(tmp_path, *bags, **split)
    arguments = ["check-data", "drives", str(file), "--network", str(network), "--output", str(tmp_path / "check")]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert printed.count("ERROR") == 1
    assert "there is no such bag" in printed
    ((_, drive), _) = findings(file)
    assert f"train: {len(drive)} images in 1 squares of 400 m, 0 of them too near another part" in printed
    assert "val: 0 images in 0 squares" in printed
    picture = cv2.imread(str(tmp_path / "check" / "drive_0.png"))
    green = (picture[..., 1] > 240) & (picture[..., 0] < 60) & (picture[..., 2] < 60)
    assert green.sum() > 300  # the used images, drawn over the imagery
    samples = tmp_path / "check" / "samples"
    PhotographyConfig(styles=samples)
    streets, tiles = (sorted((samples / kind).iterdir()) for kind in ("street", "above"))
    assert [file.name for file in streets] == [file.name for file in tiles]
    assert len(streets) == min(32, len(drive))
    for street, above in ((streets[0], tiles[0]), (streets[-1], tiles[-1])):
        number = int(street.stem.removeprefix("drive_0_"))
        assert np.array_equal(cv2.imread(str(street))[..., ::-1], drive.panoramas[number])
        tile = drive.ground.cut(drive.ground.snapped(drive.positions_m[number])).pixels
        assert np.array_equal(cv2.imread(str(above))[..., ::-1], tile)
    assert main(["check-data", "drives", str(file)]) == 1
    assert "by --model BUNDLE or --network" in capsys.readouterr().out
