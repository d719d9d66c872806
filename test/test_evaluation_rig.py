"""Replays of drives that a rig recorded: rig files, CameraInfo with /tf_static, and cameras that fail on the way."""

import json
import math
import re

import numpy as np
import pytest
import yaml
from colour_region import write_colour_region
from rig_drives import CAMERAS, RIG_FILE, write_rig_drive
from worlds import colour_world

from unifygeo_ros import cli
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.records import Fix
from unifygeo_ros.evaluation.metrics.results import read_frames


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with bundle, index, the bag of a rig's drive and its rig file."""
    folder = tmp_path_factory.mktemp("rig")
    write_colour_region(folder)
    (folder / "rig.yaml").write_text(yaml.safe_dump(RIG_FILE, sort_keys=False))
    drive(folder, "drive")
    return folder


def drive(folder, name, **options):
    return write_rig_drive(folder / name, colour_world(), open_index(folder / "index").frame, **options)


def run(place, output, *options, bag="drive", rig="auto"):
    """`unifygeo replay`; returns its exit status."""
    arguments = ["replay", place / bag, "--index", place / "index", "--model", place / "bundle", "--output", output]
    for parameter in ("session.heading_source=imu", "threads=1", "backend=onnx_cpu", "session.camera_check_images=0"):
        arguments += ["--set", parameter]
    arguments += ["--quiet", "--truth-topic", "/ground_truth/odometry", *options]
    return cli.main([str(argument) for argument in [*arguments, *(["--rig", rig] if rig else [])]])


def frames(folder, name="out"):
    return list(read_frames(folder / f"{name}.frames.jsonl"))


def problems(folder, name="out"):
    return json.loads((folder / f"{name}.frames.jsonl").read_text().splitlines()[-1])["problems"]


def errors_m(found):
    fixes = [f for f in found if isinstance(f.outcome, Fix)]
    return np.array([math.hypot(f.outcome.east_m - f.truth.east_m, f.outcome.north_m - f.truth.north_m) for f in fixes])


@pytest.fixture(scope="module")
def done(place):
    assert run(place, place / "out.mcap", "--report", place / "report.html") == 0
    return place


def test_replay_of_rig_needs_only_camera_infos_and_static_transforms(done):
    found = frames(done)
    assert len(found) == 15
    assert len(errors_m(found)) >= 6
    assert np.median(errors_m(found)) < 1.5
    # Every panorama is at the stamp of the camera that paces: the first one by name, the back camera.
    offsets = {round(frame.outcome.stamp_ns / 1e9 % 0.5, 3) for frame in found}
    assert offsets == {CAMERAS["back"][0]}
    assert problems(done) == []


def test_report_of_a_rig_shows_its_worst_panoramas_and_the_set_up(done):
    page = (done / "report.html").read_text()
    assert "centre of the rig of back, front, left, right" in page
    fixes = len(errors_m(frames(done)))
    assert page.count("heading ") >= min(fixes, 10)


def test_rig_file_and_the_recorded_calibration_give_the_same_fixes(done, tmp_path):
    """But for the camera that paces: a rig file's first one is the front camera, 45 ms before the back camera."""
    file = dict(RIG_FILE["cameras"])
    ordered = {name: file[name] for name in ("back", "front", "left", "right")}
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump({"cameras": ordered}, sort_keys=False))
    assert run(done, tmp_path / "out.mcap", rig=tmp_path / "rig.yaml") == 0
    for ours, theirs in zip(frames(tmp_path), frames(done), strict=True):
        assert type(ours.outcome) is type(theirs.outcome)
        assert ours.outcome.stamp_ns == theirs.outcome.stamp_ns
        if isinstance(ours.outcome, Fix):
            assert ours.outcome.east_m == pytest.approx(theirs.outcome.east_m, abs=0.2)


def test_named_cameras_pace_in_the_order_of_their_names(done, tmp_path):
    assert run(done, tmp_path / "out.mcap", "--set", "rig.cameras=front, left, right", rig=None) == 0
    assert {round(f.outcome.stamp_ns / 1e9 % 0.5, 3) for f in frames(tmp_path)} == {CAMERAS["front"][0]}


@pytest.mark.parametrize("mode", ["single", "sequence"])
def test_resumed_replay_of_a_rig_equals_an_uninterrupted_one(place, tmp_path, mode):
    options = ("--set", f"session.mode={mode}", "--max-frames", 9)
    assert run(place, tmp_path / "whole.mcap", *options) == 0
    lines = (tmp_path / "whole.frames.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut.frames.jsonl").write_bytes(b"".join(lines[:5]))
    (tmp_path / "cut.timings.jsonl").write_text("")
    assert run(place, tmp_path / "cut.mcap", *options) == 0
    assert (tmp_path / "cut.frames.jsonl").read_bytes() == (tmp_path / "whole.frames.jsonl").read_bytes()


def fails_after_3_s(kind):
    shown = {}

    def image(name, time_s, pixels):
        if name != "left" or time_s < 3.0:
            return pixels
        if kind == "unplugged":
            return None
        if kind == "black":
            return np.zeros_like(pixels)
        if kind == "small":
            return np.ascontiguousarray(pixels[:75])
        return shown.setdefault(name, pixels)

    return image


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("unplugged", "no image for"),
        ("black", "black, mean brightness 0.0"),
        ("frozen", "frozen, same pixels after"),
        ("small", "image of 200x75, its calibration is for 200x150"),
    ],
)
def test_camera_that_fails_costs_its_sector_and_not_the_fixes(place, tmp_path, kind, why):
    drive(place, kind, image=fails_after_3_s(kind))
    assert run(place, tmp_path / "out.mcap", bag=kind) == 0
    late = [frame for frame in frames(tmp_path) if frame.number >= 7]
    assert len(frames(tmp_path)) == 15
    assert len(errors_m(late)) >= 3
    assert np.median(errors_m(late)) < 3.0
    # Honest too: none is outside its own 99.9% ellipse.
    for frame in late:
        if isinstance(frame.outcome, Fix):
            error = np.array([frame.outcome.east_m - frame.truth.east_m, frame.outcome.north_m - frame.truth.north_m])
            assert error @ np.linalg.solve(frame.outcome.covariance_m2, error) < -2 * math.log(1e-3)
    (problem,) = problems(tmp_path)
    assert problem.startswith("Camera left is not in ")
    assert why in problem


def test_all_cameras_black_are_rejections_that_say_so(place, tmp_path):
    drive(place, "night", seconds=3.0, image=lambda name, time_s, pixels: np.zeros_like(pixels))
    assert run(place, tmp_path / "out.mcap", bag="night") == 0
    assert {f.outcome.reason.value for f in frames(tmp_path)} == {"black_image"}
    assert "no camera of the rig can be used: back: black" in frames(tmp_path)[0].outcome.detail


def refusal(place, tmp_path, capsys, *options, **choice):
    assert run(place, tmp_path / "x.mcap", *options, **choice) == 2
    return capsys.readouterr().err


def changed(name, **values):
    cameras = {key: dict(camera) for key, camera in RIG_FILE["cameras"].items()}
    for key, value in values.items():
        cameras[name].pop(key) if value is None else cameras[name].update({key: value})
    return {"cameras": cameras}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed("left", topic="/links/image"), "no images of camera left on /links/image; topics with images: /back/"),
        (changed("left", lens=None, topic="/front/image_raw"), None),
        (changed("left", lens=None, camera_info="/no/camera_info"), "camera left: no CameraInfo on /no/camera_info"),
        (changed("left", mount=None, frame="elsewhere"), "no static transform between base_link and its frame 'elsewh"),
    ],
)
def test_rig_file_that_does_not_fit_the_bag_is_refused(place, tmp_path, capsys, content, words):
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump(content))
    if words is None:  # the left camera's calibration is the front camera's, of the same images: two cameras, one topic
        assert run(place, tmp_path / "x.mcap", "--max-frames", 1, rig=tmp_path / "rig.yaml") == 0
        return
    assert words in refusal(place, tmp_path, capsys, rig=tmp_path / "rig.yaml")


def test_settings_that_contradict_a_rig_are_refused(place, tmp_path, capsys):
    assert "--image-topic /front/image_raw and a rig" in refusal(
        place, tmp_path, capsys, "--image-topic", "/front/image_raw"
    )
    assert "both a rig and camera_frame (front_optical)" in refusal(
        place, tmp_path, capsys, "--set", "camera_frame=front_optical"
    )
    assert "camera.yaw_rad is set, but a rig's mounts" in refusal(
        place, tmp_path, capsys, "--set", "camera.yaw_rad=0.1"
    )
    assert "no camera front_wide with a CameraInfo" in refusal(
        place, tmp_path, capsys, "--set", "rig.cameras=front_wide", rig=None
    )
    assert "both rig.file (auto) and rig.cameras (front)" in refusal(
        place, tmp_path, capsys, "--set", "rig.cameras=front"
    )


def test_frames_of_the_cameras_bodies_are_refused_with_the_remedy(place, tmp_path, capsys):
    drive(place, "bodies", seconds=1.5, optical=False)
    error = refusal(place, tmp_path, capsys, bag="bodies")
    assert "camera back: its frame 'back_optical' has z up" in error
    assert "name the optical frame" in error


def test_results_of_another_rig_are_not_continued(done, tmp_path, capsys):
    mount = {**RIG_FILE["cameras"]["left"]["mount"], "yaw_deg": 91}
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump(changed("left", mount=mount)))
    assert run(done, done / "out.mcap", rig=tmp_path / "rig.yaml") == 2
    assert "rig." in capsys.readouterr().err
    assert len(frames(done)) == 15


def test_rig_check_of_a_bag_shows_times_and_missing_cameras(place, tmp_path, capsys):
    drive(place, "gone", seconds=4.0, image=lambda name, time_s, pixels: None if name == "left" else pixels)
    arguments = ["rig", "check", place / "gone", "--rig", place / "rig.yaml", "--plot", tmp_path / "rig.png"]
    assert cli.main([str(argument) for argument in [*arguments, "--set", "rig.window_s=0.1"]]) == 1
    text = capsys.readouterr().out
    assert "7 sets, 5 judged" in text
    assert re.search(r"back +\+45 ms", text)
    assert "left is missing in 7 of 7 sets" in text
    assert re.search(r"right +\+70 ms", text)
    assert "different times" not in text  # the odometry moves them to one instant
    assert (tmp_path / "rig.png").stat().st_size > 10_000


def test_hints_of_a_replay_with_hardly_a_fix_are_those_of_a_rig(place, tmp_path, capsys):
    """The camera's parameters do not act with a rig."""
    options = ("--max-frames", 3, "--set", "session.imu_yaw_offset_rad=1.5")
    assert run(place, tmp_path / "out.mcap", *options, rig=place / "rig.yaml") == 0
    hints = capsys.readouterr().out.split("What to check:")[1]
    assert "check session.imu_yaw_offset_rad (yaw is counter-clockwise from east) and the mounts of the rig's" in hints
    assert "unifygeo rig check BAG --rig" in hints
    assert "camera.yaw_rad" not in hints


def test_bag_of_several_cameras_without_a_rig_is_refused_with_both_remedies(place, tmp_path, capsys):
    assert run(place, tmp_path / "out.mcap", rig=None) == 2
    error = capsys.readouterr().err
    assert "4 topics can serve as images; choose by --image-topic one of: " in error
    assert error.strip().endswith("; or take several together by --rig")
