"""`unifygeo replay --smooth`: the files and the topic, their resuming, and their use as ground truth."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from colour_region import write_colour_region
from drives import write_drive
from rosbags.highlevel import AnyReader

from unifygeo_ros import cli
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.evaluation.recordings.truth_sources import read_truth_file

SINGLE = ("--truth-topic", "/ground_truth/odometry", "--set", "session.mode=single")
SEQUENCE = ("--set", "session.mode=sequence", "--set", "session.heading_source=imu",
            "--set", "session.camera_check_images=0")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with bundle, index, and the bag of a drive of twelve seconds."""
    folder = tmp_path_factory.mktemp("smooth")
    world = write_colour_region(folder)
    write_drive(folder / "drive", world, open_index(folder / "index").frame)
    return folder


def run(place: Path, output: Path, *options: str) -> int:
    arguments = ["replay", place / "drive", "--index", place / "index", "--model", place / "bundle", "--output", output]
    arguments += ["--set", "threads=1", "--set", "backend=onnx_cpu", "--quiet", *options]
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    output = place / "out.mcap"
    assert run(place, output, "--truth-topic", "/ground_truth/odometry", "--smooth", *SEQUENCE) == 0
    return output


def track(output: Path) -> list[dict[str, str]]:
    with output.with_name("out.smoothed.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_smoothed_track_is_near_the_truth_in_files_and_bag(done: Path) -> None:
    rows = track(done)
    assert len(rows) >= 20  # of 25 images
    tum = np.loadtxt(done.with_name("out.smoothed.tum"))
    poses, truth = {}, {}
    with AnyReader([done]) as reader:
        for connection, _, data in reader.messages():
            if connection.topic in ("/unifygeo/smoothed", "/ground_truth/pose"):
                message = reader.deserialize(data, connection.msgtype)
                stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
                (poses if connection.topic == "/unifygeo/smoothed" else truth)[stamp] = message.pose
    assert list(poses) == [int(row["stamp_ns"]) for row in rows]
    errors = []
    for row, line in zip(rows, tum, strict=True):
        stamp = int(row["stamp_ns"])
        place, true = poses[stamp].pose.position, truth[stamp].pose.position
        assert (place.x, place.y) == pytest.approx((float(row["east_m"]), float(row["north_m"])), abs=1e-3)
        assert line[:3] == pytest.approx([stamp / 1e9, place.x, place.y], abs=1e-3)
        yaw = 2 * np.arctan2(line[6], line[7])
        assert wrap_angle(yaw - float(row["yaw_rad"])) == pytest.approx(0.0, abs=1e-5)
        covariance = poses[stamp].covariance.reshape(6, 6)[:2, :2]
        assert np.sqrt(np.linalg.eigvalsh(covariance)[-1]) == pytest.approx(float(row["sigma_m"]), abs=1e-3)
        assert float(row["integrity"]) >= 0.9
        errors.append(np.hypot(place.x - true.x, place.y - true.y))
    assert np.median(errors) < 2.0


def test_imagery_error_is_part_of_the_smoothed_tracks_standard_deviations(
    place: Path, done: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.mcap"
    assert (
        run(place, output, "--truth-topic", "none", "--smooth", "--set", "localizer.imagery_sigma_m=2.0", *SEQUENCE)
        == 0
    )
    rows, exact = track(output), track(done)
    assert [row["east_m"] for row in rows] == [row["east_m"] for row in exact]
    for row, other in zip(rows, exact, strict=True):
        assert float(row["sigma_m"]) == pytest.approx(np.hypot(2.0, float(other["sigma_m"])), abs=1e-3)


def test_track_can_be_a_ground_truth(done: Path) -> None:
    recording = read_truth_file(done.with_name("out.smoothed.csv"))
    rows = track(done)
    assert len(recording.stamps_ns) == len(rows)
    assert recording.covariances_m2[3, 0, 0] == pytest.approx(float(rows[3]["sigma_m"]) ** 2)
    assert recording.yaw_rad[3] == pytest.approx(float(rows[3]["yaw_rad"]))


def test_smoothing_a_finished_replay_gives_the_same_track_and_results(place: Path, done: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mcap"
    plain = ("--truth-topic", "/ground_truth/odometry", *SEQUENCE)
    assert run(place, output, *plain) == 0
    frames = (tmp_path / "out.frames.jsonl").read_bytes()
    assert not (tmp_path / "out.smoothed.csv").exists()
    assert run(place, output, *plain, "--smooth") == 0
    assert (tmp_path / "out.frames.jsonl").read_bytes() == frames == done.with_name("out.frames.jsonl").read_bytes()
    for name in ("out.smoothed.csv", "out.smoothed.tum", "out.mcap"):
        assert (tmp_path / name).read_bytes() == done.with_name(name).read_bytes()


def test_single_images_have_no_track_and_say_so(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place, tmp_path / "out.mcap", "--smooth", *SINGLE) == 2
    assert "set session.mode=sequence" in capsys.readouterr().err
