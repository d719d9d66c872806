"""`unifygeo mount` on a bag: from the sensors' messages to the parameter file, and its errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from colour_region import write_colour_region
from drives import Circle, write_drive

from unifygeo_ros import cli
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.parameters.files import read_settings_file


class Eight(Circle):
    """An eight, 50 m long and 24 m wide, in 20 s: bends to both sides at 6 to 11 m/s."""

    def pose(self, time_s: float) -> tuple[float, float, float]:
        angle = time_s * math.pi / 10
        yaw = math.atan2(24 * math.cos(2 * angle), 25 * math.cos(angle))
        return 25 * math.sin(angle), 12 * math.sin(2 * angle), yaw


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with bundle, index, and the bag of a drive of 20 seconds."""
    folder = tmp_path_factory.mktemp("mount")
    world = write_colour_region(folder)
    write_drive(folder / "drive", world, open_index(folder / "index").frame, seconds=20.0, path_driven=Eight())
    return folder


def run(place: Path, *options: str) -> int:
    arguments = ["mount", place / "drive", "--index", place / "index", "--model", place / "bundle", "--quiet"]
    arguments += ["--set", "threads=1", "--set", "backend=onnx_cpu", "--set", "session.heading_source=imu", *options]
    return cli.main([str(argument) for argument in arguments])


def test_a_recorded_drive_gives_a_table_and_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(place, "--odometry-topic", "/odom", "--output", str(place / "mount.yaml"))
    printed = capsys.readouterr()
    assert status == 0, printed.err
    read = read_settings_file(place / "mount.yaml")
    # The stamps of this drive are right, and its IMU looks to true east.
    assert read.session.imu_yaw_offset_rad == pytest.approx(0.0, abs=0.02)
    assert str(place / "mount.yaml") in printed.out
    assert "images show their place" in printed.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--odometry-topic", "none"), "no odometry, which the images are compared with; name it by --odometry-topic"),
        (("--odometry-topic", "/odom", "--max-frames", "9"), "images show where they were taken, at least 20"),
        (("--images", "5"), "--images 5, must be at least 20"),
        (("--set", "rig.cameras=front, left"), "`unifygeo rig check`"),
    ],
)
def test_a_drive_that_tells_nothing_is_refused_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert run(place, *options) == 2
    assert words in capsys.readouterr().err
