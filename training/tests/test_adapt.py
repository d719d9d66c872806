"""`unifygeo-train adapt` from end to end in a world of colours: killed at every step, refused, accepted, lineage."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from bundles import MEAN, STD, random_bundle
from drive_bags import NETWORK, VEHICLE, write_bag
from drives import START_NS, Circle, write_drive
from small_runs import TOWNS_ATTO
from worlds import World, colour_world

import unifygeo_ros
from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.evaluation.metrics import acceptance
from unifygeo_ros.evaluation.metrics.acceptance import Acceptance, Condition
from unifygeo_ros.inference.bundle import Calibration, ModelBundle, load_bundle, replace_manifest, sha256_of_file
from unifygeo_ros.inference.familiarity import Familiarity, UsualFeatures
from unifygeo_ros.inference.select import open_engines
from unifygeo_ros.parameters.settings import Settings, with_values
from unifygeo_training.adapt import adapt as module
from unifygeo_training.adapt import labels, learn
from unifygeo_training.adapt.adapt import AdaptRequest, adapt
from unifygeo_training.adapt.settings import LearnSettings
from unifygeo_training.adapt.stages import Stages
from unifygeo_training.checkpoint import read_tensors
from unifygeo_training.cli import main
from unifygeo_training.drives.ground import ImageryGround
from unifygeo_training.drives.opened import open_part
from unifygeo_training.drives.settings import read_drives_file
from unifygeo_training.unfold import network_of_bundle

SETTINGS = {
    "threads": 1,
    "backend": "onnx_cpu",
    "session.heading_source": "imu",
    "session.camera_check_images": 0,
    "localizer.check_projection": False,
    "localizer.minimum_sharpness": 0.0,
    "localizer.imagery_sigma_m": 0.5,
}
LEARNT, APART = Circle(30.0), Circle(24.0)


def encoded_usual(mean: np.ndarray, whitening: np.ndarray) -> UsualFeatures:
    return UsualFeatures(*(base64.b64encode(a.astype("<f4").tobytes()).decode() for a in (mean, whitening)))


WIDE = encoded_usual(np.zeros(8), 1e-3 * np.eye(8))
EVERYTHING = Familiarity(WIDE, WIDE, 1.2, 1.2)
"""Unit features lie 0.001 from what such a model knows."""
OTHER_CAMERA = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]])
"""Whose colours are mixed: the parent places a part of its images with it."""


class Killed(BaseException):
    """What ends a step in the tests, as a kill would."""


# -- steps -------------------------------------------------------------------------------------------------------------


def test_steps_are_done_once_and_go_on_where_they_were_killed(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        done.append(sorted(file.name for file in folder.iterdir()))
        (folder / "first").write_text("1")
        if len(done) == 1:
            raise Killed
        (folder / "second").write_text("2")

    done: list[list[str]] = []
    with pytest.raises(Killed):
        Stages(tmp_path, 1).make("a", {"seed": 1}, work)
    assert (tmp_path / "a" / "first").exists()
    folder = Stages(tmp_path, 1).make("a", {"seed": 1}, work)
    assert sorted(file.name for file in folder.iterdir()) == ["first", "second"]
    Stages(tmp_path, 1).make("a", {"seed": 1}, work)
    assert done == [[], ["first"]]


def test_step_with_other_inputs_or_changed_files_is_done_again_from_nothing(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        done.append(sorted(file.name for file in folder.iterdir()))
        (folder / "made").write_text("1")

    done: list[list[str]] = []
    for seed in (1, 2):
        Stages(tmp_path, 1).make("a", {"seed": seed}, work)
    (tmp_path / "a" / "made").write_text("damaged")
    Stages(tmp_path, 1).make("a", {"seed": 2}, work)
    (tmp_path / "a.json").write_text("{damaged")
    Stages(tmp_path, 1).make("a", {"seed": 2}, work)
    assert done == [[], [], [], []]


# -- from end to end ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Place:
    folder: Path
    world: World
    parent: ModelBundle

    def request(self, folder: Path, **changes: Any) -> AdaptRequest:
        bags = {"drives": (self.folder / "learnt",), "apart": (self.folder / "apart",)}
        return AdaptRequest(
            **{"bundle": self.parent.path, "index": self.folder / "index", **bags, "output": folder / "adapted",
               "work": folder / "work", "settings": with_values(Settings(), SETTINGS), **changes}
        )  # fmt: skip


def network_of(bundle: ModelBundle) -> ModelBundle:
    """With the network config whose images it takes."""
    return replace_manifest(
        bundle, dataclasses.replace(bundle.manifest, network=NETWORK.model_dump(mode="json"), licence="MIT")
    )


def place_of(folder: Path, *, apart_s: float = 15.0, ground_colours: np.ndarray | None = None) -> Place:
    """A town of colours, its bundle and index, a drive to learn from and one that is kept apart."""
    world = colour_world(5, side_m=144.0)
    calibration = Calibration(distribution_temperature=0.5, familiarity=EVERYTHING)
    parent = network_of(
        random_bundle(folder / "parent", columns=4, calibration=calibration, ground_colours=ground_colours)
    )
    with open_engines(parent, backend="onnx_cpu", threads=1) as engines:
        build_index([world.write_geotiff(folder / "world.tif")], parent, engines, folder / "index")
    frame = open_index(folder / "index").frame
    write_drive(folder / "learnt", world, frame, seconds=36.0, path_driven=LEARNT)
    write_drive(folder / "apart", world, frame, seconds=apart_s, path_driven=APART)
    return Place(folder, world, parent)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return place_of(tmp_path_factory.mktemp("adapt"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits for drives of seconds."""
    monkeypatch.setattr(module, "LEAST_CERTAIN", 20)
    monkeypatch.setattr(acceptance, "LEAST_IMAGES", 20)
    monkeypatch.setattr(labels, "CELL_M", 20.0)


class Learner:
    """Learns nothing, looks at what it is given, and makes a bundle with other weights."""

    def __init__(self) -> None:
        self.off_circle_m = np.zeros(0)

    def __call__(self, parent: ModelBundle, file: Path, folder: Path, settings: LearnSettings) -> ModelBundle:
        (part,) = open_part(file, NETWORK, "all")
        middle = World.in_map(part.drive.ground.frame, 0.0, 0.0)
        self.off_circle_m = np.hypot(*(part.drive.positions_m - middle).T) - LEARNT.radius_m
        return network_of(random_bundle(folder / "bundle", columns=4, ground_colours=np.eye(3)))


@pytest.fixture(scope="module")
def finished(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Path, Learner, list[str]]:
    """An adaptation that was killed after each step, and then went on."""

    def limited(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def once(*arguments: Any, **options: Any) -> Any:
            if not allowed:
                raise Killed
            allowed.pop()
            works.append(name)
            return work(*arguments, **options)

        return once

    folder, learner = tmp_path_factory.mktemp("run"), Learner()
    works: list[str] = []
    allowed: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEAST_CERTAIN", 20)
        patch.setattr(acceptance, "LEAST_IMAGES", 20)
        patch.setattr(labels, "CELL_M", 20.0)
        for name in ("_replay", "calibrated", "build_index"):
            patch.setattr(module, name, limited(name, getattr(module, name)))
        for _ in range(20):
            allowed[:] = [1]
            try:
                adapt(place.request(folder), learner=limited("learner", learner))
            except Killed:
                continue
            break
    return place, folder, learner, works


def test_every_step_is_done_once_whenever_it_is_killed(finished: Any) -> None:
    _, folder, _, works = finished
    assert works == [
        "_replay", "_replay",  # tracks
        "learner", "calibrated", "build_index",
        "_replay", "_replay", "_replay", "_replay",  # parent and student, driven and image by image
    ]  # fmt: skip
    assert (folder / "work" / "report.txt").exists()


def test_labels_are_the_certain_poses_of_the_parents_track(finished: Any) -> None:
    _, folder, learner, _ = finished
    assert len(learner.off_circle_m) >= 30
    assert np.abs(learner.off_circle_m).max() < 3.0
    named = yaml.safe_load((folder / "work" / "learnt" / "drives.yaml").read_text())
    (drive,) = named["drives"]
    assert drive["truth_file"].endswith("track-learn-1/out.smoothed.csv")
    (source,) = read_drives_file(folder / "work" / "learnt" / "drives.yaml").drives
    assert source.node_settings() == with_values(Settings(), SETTINGS)


def test_images_are_judged_one_by_one_by_all_that_the_model_holds_for_right(finished: Any) -> None:
    """Few pass the gate of single fixes where surroundings are new: none of a student did, so nothing was judged."""
    _, folder, _, _ = finished
    gates = {}
    for name in ("parent-1-single", "student-1-single", "parent-1-sequence"):
        with (folder / "work" / name / "out.frames.jsonl").open() as file:
            gates[name] = json.loads(file.readline())["identity"]["localizer"]["gate_ambiguity"]
    assert gates == {"parent-1-single": 0.5, "student-1-single": 0.5, "parent-1-sequence": 0.15}


def test_imagery_error_is_in_what_is_judged_on_the_earth_alone(finished: Any) -> None:
    """It cancels between images: neither labels nor innovations have it."""
    _, folder, _, _ = finished
    sigmas = {}
    for name in ("track-learn-1", "track-apart-1", "parent-1-single", "student-1-single", "student-1-sequence"):
        with (folder / "work" / name / "out.frames.jsonl").open() as file:
            sigmas[name] = json.loads(file.readline())["identity"]["localizer"]["imagery_sigma_m"]
    assert list(sigmas.values()) == [0.0, 0.0, 0.0, 0.0, 0.5]


def test_replays_of_another_version_are_not_compared_with_those_of_this_one(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replayed(*_: Any, **__: Any) -> None:
        raise Killed

    place, folder, _, _ = finished
    shutil.copytree(folder / "work", tmp_path / "work")
    monkeypatch.setattr(module, "_replay", replayed)
    assert not adapt(place.request(tmp_path), learner=None).accepted  # nothing to do but the gate
    monkeypatch.setattr(unifygeo_ros, "__version__", "999")
    with pytest.raises(Killed):
        adapt(place.request(tmp_path), learner=None)


def decided(verdict: bool) -> Callable[..., Acceptance]:
    return lambda *_: Acceptance((Condition("by the test", verdict, "nothing"),))


def test_accepted_bundle_has_its_lineage_and_a_calibration(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, folder, _, _ = finished
    shutil.copytree(folder / "work", tmp_path / "work")
    monkeypatch.setattr(module, "accept_without_truth", decided(True))
    monkeypatch.setattr(module, "_replay", None)  # nothing is replayed again
    outcome = adapt(place.request(tmp_path), learner=None)
    assert outcome.accepted
    bundle = load_bundle(tmp_path / "adapted")
    parent, manifest = place.parent.manifest, bundle.manifest
    adapted, calibration = manifest.lineage
    assert adapted["made_by"] == calibration["made_by"] == "unifygeo-train adapt"
    assert adapted["parent_sha256"] == parent.sha256
    certain = len((folder / "work/track-learn-1/out.smoothed.csv").read_text().splitlines()) - 1
    images = f"{certain} of 73 images"
    learnt_name, apart_name = (f"{place.folder.name}/{name}" for name in ("learnt", "apart"))
    day = "2023-11-14"
    assert adapted["data"] == f"smoothed tracks of {learnt_name} of {day} ({images}); judged on {apart_name} of {day}"
    assert "part val: " in calibration["data"]
    learnt = load_bundle(folder / "work/learnt/bundle").manifest
    before = dataclasses.replace(learnt, name="adapted", lineage=(adapted,))  # what was calibrated
    assert calibration["parent_sha256"] == before.sha256
    assert manifest.calibrated
    assert manifest.calibration != parent.calibration
    assert manifest.calibration.familiarity is not None
    for known in (manifest.calibration.familiarity.ground, manifest.calibration.familiarity.aerial):
        assert known.distances(10 * np.eye(8)).max() < 0.1  # familiar to the parent, and therefore still
    assert (manifest.name, manifest.licence) == ("adapted", "MIT")
    assert manifest.weights_sha256 != parent.weights_sha256
    index = open_index(tmp_path / "work/index/index", bundle=bundle)
    assert len(index) == len(open_index(place.folder / "index"))
    assert str(tmp_path / "adapted") in outcome.report
    with pytest.raises(ConfigurationError, match="exists; remove it or choose another"):
        adapt(place.request(tmp_path), learner=None)


def test_refused_bundle_leaves_the_old_one_and_says_why(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, folder, _, _ = finished
    before = {file.name: file.read_bytes() for file in place.parent.path.iterdir()}
    shutil.copytree(folder / "work", tmp_path / "adapted.work")
    monkeypatch.setattr(module, "accept_without_truth", decided(False))
    monkeypatch.setattr(module, "_replay", None)
    arguments = ["adapt", str(place.parent.path), str(place.folder / "learnt"), "--index", str(place.folder / "index")]
    arguments += ["--keep-apart", str(place.folder / "apart"), "--output", str(tmp_path / "adapted")]
    arguments += [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    arguments = [argument.replace('"', "") for argument in arguments]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert "NO   by the test" in printed
    assert "refused: keep the old model" in printed
    assert "/apart, against the parent's smoothed track:" in printed
    assert "images with a fix" in printed  # as `unifygeo compare`
    assert (tmp_path / "adapted.work" / "report.txt").read_text() == printed
    assert not (tmp_path / "adapted").exists()
    assert {file.name: file.read_bytes() for file in place.parent.path.iterdir()} == before


def test_drive_of_another_town_gives_no_labels_and_nothing_is_learnt(place: Place, tmp_path: Path) -> None:
    frame = open_index(place.folder / "index").frame
    write_drive(tmp_path / "elsewhere", colour_world(6, side_m=144.0), frame, seconds=15.0, path_driven=LEARNT)
    outcome = adapt(place.request(tmp_path, drives=(tmp_path / "elsewhere",)), learner=None)
    assert not outcome.accepted
    assert "of 31 images of the drives to learn from have a certain place, at least 20 must" in outcome.report
    assert "refused: keep the old model" in outcome.report
    assert not (tmp_path / "adapted").exists()


# -- tracks that were wrong --------------------------------------------------------------------------------------------


def poisoned(done: Path, work: Path, wrong: Callable[[np.ndarray], np.ndarray]) -> None:
    """Copy the steps of an adaptation, up to the tracks and the parent's replays. wrong: moves the labels, (n, 2)."""
    learnt = ("learnt*", "calibrated*", "index*", "student*", "report.txt")
    shutil.copytree(done, work, ignore=shutil.ignore_patterns(*learnt))
    file, record = work / "track-learn-1" / "out.smoothed.csv", work / "track-learn-1.json"
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    moved = wrong(np.array([[float(row["east_m"]), float(row["north_m"])] for row in rows]))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        for row, (east_m, north_m) in zip(rows, moved, strict=True):
            writer.writerow({**row, "east_m": east_m, "north_m": north_m})
    content = json.loads(record.read_text())
    content["files"][file.name] = sha256_of_file(file)
    record.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def wrong_town(labels_m: np.ndarray) -> np.ndarray:
    """The other side of the circle: as certain as ever, and nothing of what is seen is there."""
    return 2 * labels_m.mean(axis=0) - labels_m


def carried(labels_m: np.ndarray) -> np.ndarray:
    """After a third of the drive the vehicle was carried 15 m, and the tracker went on."""
    labels_m = labels_m.copy()
    labels_m[len(labels_m) // 3 :, 1] += 15.0
    return labels_m


def twenty_percent(labels_m: np.ndarray) -> np.ndarray:
    """One image in five lies 25 m aside."""
    rng = np.random.default_rng(0)
    wrong = rng.permutation(len(labels_m))[: len(labels_m) // 5]
    angle = rng.uniform(0, 2 * np.pi, len(wrong))
    labels_m = labels_m.copy()
    labels_m[wrong] += 25 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return labels_m


def test_student_that_is_right_nowhere_leaves_the_old_bundle_and_says_so(finished: Any, tmp_path: Path) -> None:
    place, folder, learner, _ = finished
    poisoned(folder / "work", tmp_path / "work", wrong_town)
    outcome = adapt(place.request(tmp_path), learner=learner)
    assert not outcome.accepted
    assert "refused: keep the old model\nWhat the student learnt is right nowhere" in outcome.report
    assert (tmp_path / "work" / "report.txt").read_text() == outcome.report
    assert not (tmp_path / "adapted").exists()


def with_wrong_fixes(done: Path, work: Path, wrong: Callable[[np.ndarray], np.ndarray]) -> None:
    """Copy the steps of an adaptation, with the student's fixes moved, and its reports not written yet.

    The replays go on after their last image, so that all that judges the fixes runs again.
    """
    shutil.copytree(done, work)
    for name in ("student-1-sequence", "student-1-single"):
        file, record = work / name / "out.frames.jsonl", work / f"{name}.json"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        fixes = [line["outcome"] for line in lines if line.get("outcome", {}).get("kind") == "fix"]
        moved = wrong(np.array([[fix["east_m"], fix["north_m"]] for fix in fixes]))
        for fix, (east_m, north_m) in zip(fixes, moved.tolist(), strict=True):
            fix.update(east_m=east_m, north_m=north_m)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        record.write_text(json.dumps({"inputs": json.loads(record.read_text())["inputs"]}))  # as if it was interrupted


@pytest.mark.parametrize("wrong", [carried, wrong_town, twenty_percent])
def test_gate_refuses_a_student_whose_fixes_are_wrong(
    finished: Any, tmp_path: Path, wrong: Callable[[np.ndarray], np.ndarray]
) -> None:
    """For false fixes, of which the same student had none before. Against the parent's track all of them are found."""
    place, folder, _, _ = finished
    honest = (folder / "work" / "report.txt").read_text()
    assert "yes  no more false fixes on apart: 0, before 0" in honest
    with_wrong_fixes(folder / "work", tmp_path / "work", wrong)
    outcome = adapt(place.request(tmp_path), learner=None)
    assert not outcome.accepted
    assert "NO   no more false fixes on" in outcome.report
    assert not (tmp_path / "adapted").exists()


def colours_of_panorama(pixels: np.ndarray) -> np.ndarray:
    """Normalised mean colour below the horizon of each of four sectors, (4, 3), as `random_bundle` takes it."""
    colours = (pixels / 255 - MEAN) / STD
    below = colours[len(colours) // 2 :]
    return below.reshape(len(below), 4, -1, 3).mean(axis=(0, 2))


def colours_of_imagery(pixels: np.ndarray) -> np.ndarray:
    """The same of the imagery within 8 m of a tile's middle."""
    colours = (pixels / 255 - MEAN) / STD
    offset = (np.arange(len(colours)) - (len(colours) - 1) / 2) * NETWORK.metres_per_pixel
    east, north = np.meshgrid(offset, -offset)
    sector = np.floor((np.arctan2(east, north) + np.pi) / (np.pi / 2)).astype(int) % 4
    return np.stack([colours[(sector == k) & (np.hypot(east, north) < 8)].mean(axis=0) for k in range(4)])


def learn_colours(parent: ModelBundle, file: Path, folder: Path, settings: LearnSettings) -> ModelBundle:
    """A learner that learns: the linear map from the camera's colours to the imagery's, by least squares."""
    (part,) = open_part(file, NETWORK, "train")
    drive = part.drive
    seen = np.concatenate([colours_of_panorama(drive.panoramas[k]) for k in part.chosen])
    there = np.concatenate([colours_of_imagery(drive.ground.cut(drive.positions_m[k]).pixels) for k in part.chosen])
    colours = np.linalg.lstsq(seen, there, rcond=None)[0].T
    return network_of(random_bundle(folder / "bundle", columns=4, ground_colours=colours))


def errors_m(place: Place, work: Path) -> np.ndarray:
    """Distances of the student's fixes from where the vehicle was."""
    found, frame = [], open_index(place.folder / "index").frame
    with (work / "student-1-sequence" / "out.frames.jsonl").open() as file:
        for outcome in (line["outcome"] for line in map(json.loads, file) if "number" in line):
            if outcome["kind"] == "fix":
                x_m, y_m, _ = APART.pose((outcome["stamp_ns"] - START_NS) / 1e9)
                found.append([outcome["east_m"], outcome["north_m"]] - World.in_map(frame, x_m, y_m))
    return np.hypot(*np.array(found).reshape(-1, 2).T)


@pytest.mark.slow
def test_gate_accepts_what_right_tracks_taught_and_refuses_what_wrong_ones_did(
    finished: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From end to end, with a learner that follows its labels.

    A camera whose colours the parent does not know: right tracks teach them. Tracks of a drive that was carried, or
    went through another town, teach nothing that is right. One wrong label in five leaves half of the gain, and no
    false fix; where the parent knows the camera, it makes it worse, and is refused.
    """
    place = place_of(tmp_path_factory.mktemp("colours"), apart_s=30.0, ground_colours=OTHER_CAMERA)
    clean = place.folder / "clean"
    outcome = adapt(place.request(clean), learner=learn_colours)
    assert outcome.accepted, outcome.report
    assert len(errors_m(place, clean / "work")) > 30
    for wrong in (carried, wrong_town):
        folder = place.folder / wrong.__name__
        poisoned(clean / "work", folder / "work", wrong)
        outcome = adapt(place.request(folder), learner=learn_colours)
        assert not outcome.accepted, outcome.report
        assert not (folder / "adapted").exists()
    partly = place.folder / "partly"
    poisoned(clean / "work", partly / "work", twenty_percent)
    adapt(place.request(partly), learner=learn_colours)
    assert len(errors_m(place, partly / "work")) < len(errors_m(place, clean / "work"))
    for work in (clean / "work", partly / "work"):
        assert errors_m(place, work).max() < 10

    place, folder, _, _ = finished
    known = tmp_path_factory.mktemp("known")
    poisoned(folder / "work", known / "work", twenty_percent)
    outcome = adapt(place.request(known), learner=learn_colours)
    assert not outcome.accepted, outcome.report
    assert "NO   more images with a fix" in outcome.report


def test_drive_that_is_learnt_from_cannot_be_kept_apart(place: Place, tmp_path: Path) -> None:
    copy = shutil.copytree(place.folder / "learnt", tmp_path / "copy")
    with pytest.raises(ConfigurationError, match="a drive is named twice"):
        adapt(place.request(tmp_path, apart=(copy,)))
    with pytest.raises(ConfigurationError, match="no drive is kept apart"):
        adapt(place.request(tmp_path, apart=()))


# -- the student -------------------------------------------------------------------------------------------------------


def test_student_lies_between_the_parent_and_the_fine_tuned_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = {}

    def export(network: Any, output: Path, text: Any, **options: Any) -> str:
        made.update(network=network, output=output, text=text, **options)
        return "exported"

    world = colour_world(3, side_m=192.0)
    imagery = world.write_geotiff(tmp_path / "world.tif")
    bag = write_bag(
        tmp_path / "bag", world, ImageryGround([imagery], TOWNS_ATTO.aerial).frame, image_times_s=np.arange(0, 60, 2.0)
    )
    file = tmp_path / "drives.yaml"
    drive = {"bag": str(bag), "imagery": str(imagery), "set": VEHICLE}
    file.write_text(yaml.safe_dump({"drives": [drive], "val_share": 0.0, "test_share": 0.0}))
    monkeypatch.setattr(learn, "export_bundle", export)
    parent = load_bundle(Path(__file__).resolve().parents[2] / "models/towns-atto")
    settings = LearnSettings(steps=1, batch_size=8, share=0.25)
    assert learn.learn(parent, file, tmp_path, settings) == "exported"
    first = network_of_bundle(parent).state_dict()
    content = read_tensors(tmp_path / "run" / "last.pt")
    tuned = content["model"]
    assert content["config"]["augmentation"]["photography"]["missing"] == 0.7
    assert 2 <= content["config"]["batch_size"] < 8  # a drive of 80 m has no room for eight tiles
    assert f"room for batches of {content['config']['batch_size']} pairs" in caplog.text
    for name, value in made["network"].state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, 0.75 * first[name] + 0.25 * tuned[name], atol=1e-7)
    assert any(not torch.equal(tuned[name], first[name]) for name in first)
    assert set(made["precisions"]) == {"fp32", "fp16"}
    assert made["compact"] is True
    assert made["output"] == tmp_path / "bundle"
