"""`unifygeo rig check`: a world painted on a far sphere, seen by cameras of which one or none is mounted as it says."""

import functools
import math
import re

import cv2
import numpy as np
import pytest
import yaml

from unifygeo_ros import cli
from unifygeo_ros.rig.composer import CameraView, Composer
from unifygeo_ros.rig.description import read_rig
from unifygeo_ros.rig.seams import camera_offsets, match_seams

WIDTH, HEIGHT, FOCAL = 480, 360, 240.0  # 90° across: 30° of overlap


@functools.cache
def sphere():
    """Blobs of some degrees, 2048 × 1024 pixels."""
    noise = np.random.default_rng(3).integers(0, 256, (128, 256, 3), np.uint8)
    return cv2.resize(noise, (2048, 1024), interpolation=cv2.INTER_CUBIC)


def seen(yaw_deg, pitch_deg=0.0, brightness=1.0):
    """What a pinhole camera that looks there sees: uint8 (HEIGHT, WIDTH, 3)."""
    u, v = np.meshgrid(np.arange(WIDTH) - (WIDTH - 1) / 2, np.arange(HEIGHT) - (HEIGHT - 1) / 2)
    pitch = math.radians(pitch_deg)
    ahead, up = FOCAL * math.cos(pitch) - v * math.sin(pitch), -v * math.cos(pitch) - FOCAL * math.sin(pitch)
    azimuth = np.arctan2(u, ahead) - math.radians(yaw_deg)
    column = (azimuth / (2 * np.pi) + 0.5) * 2048 - 0.5
    row = (0.5 - np.arctan2(up, np.hypot(ahead, u)) / np.pi) * 1024 - 0.5
    image = cv2.remap(
        sphere(), (column % 2048).astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )  # fmt: skip
    return np.round(image * brightness).astype(np.uint8)


def folder(path, wrong=(), left_out=(), **changes):
    """Six cameras every 60° and their rig file. wrong: (name, yaw and pitch in degrees by which it is off)."""
    off = dict(wrong)
    cameras = {}
    for i in range(6):
        name = f"cam{i}"
        yaw, pitch = off.get(name, (0.0, 0.0))
        image = seen(60 * i + yaw, pitch, changes.get(name, 1.0))
        if name not in left_out:
            cv2.imwrite(str(path / f"{name}.png"), image[:, :, ::-1])
        lens = {"model": "pinhole", "width": WIDTH, "height": HEIGHT, "fx": FOCAL, "fy": FOCAL,
                "cx": (WIDTH - 1) / 2, "cy": (HEIGHT - 1) / 2}  # fmt: skip
        mount = {"x_m": 0, "y_m": 0, "z_m": 1.6, "roll_deg": 0, "pitch_deg": 0, "yaw_deg": 60 * i}
        cameras[name] = {"topic": f"/{name}/image", "lens": lens, "mount": mount}
    # The ground far below, so that the sphere is all there is.
    (path / "rig.yaml").write_text(yaml.safe_dump({"ground_z_m": -1000.0, "view_height_m": 1001.6, "cameras": cameras}))
    return path


def check(path, *options):
    return cli.main(["rig", "check", str(path), "--rig", str(path / "rig.yaml"), *map(str, options)])


def test_rig_check_of_right_mounts_finds_no_fault_and_writes_picture(tmp_path, capsys):
    assert check(folder(tmp_path), "--plot", tmp_path / "rig.png.png") == 0
    assert "Nothing to correct" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "rig.png.png")).shape[1] > 1000


@pytest.mark.parametrize(
    ("yaw", "pitch", "words"),
    [
        (-2.0, 0.0, "cam2 looks 2.0° further right than its calibration says"),
        (1.5, 0.0, "cam2 looks 1.5° further left than its calibration says"),
        (0.0, -1.2, "cam2 looks 1.0° further up than its calibration says"),
    ],
)
def test_camera_that_looks_elsewhere_is_named_with_angle_and_direction(tmp_path, yaw, pitch, words, capsys):
    """A pitch of 1.2° moves things 30° beside the view by 1.2° · cos 30°."""
    assert check(folder(tmp_path, wrong=[("cam2", (yaw, pitch))])) == 1
    verdict = capsys.readouterr().out.split("Verdict:\n")[1].splitlines()
    assert verdict[0] in (f"- {words}.", f"- {words.replace('2.0', '1.9')}.", f"- {words.replace('1.5', '1.4')}.")
    assert len(verdict) == 1


def test_two_cameras_alone_are_both_named_since_either_may_be_wrong(tmp_path, capsys):
    path = folder(tmp_path, wrong=[("cam1", (-2.0, 0.0))], left_out=("cam2", "cam3", "cam4", "cam5"))
    assert check(path) == 1
    text = capsys.readouterr().out

    assert re.search("cam1 looks (1.9|2.0)° further right than cam0 at their seam: check both", text)
    assert "cam2 is missing in 1 of 1 sets" in text
    assert "° of the horizon are not seen" in text


def test_dark_camera_is_named_with_its_factor(tmp_path, capsys):
    assert check(folder(tmp_path, cam3=0.6)) == 1
    assert "cam3 is darker than its neighbours by a factor of 1." in capsys.readouterr().out


def test_cameras_without_overlap_cannot_be_compared_and_that_is_said(tmp_path, capsys):
    assert check(folder(tmp_path, left_out=("cam1", "cam3", "cam5"))) == 1
    text = capsys.readouterr().out
    assert "no two cameras overlap" in text
    assert "mounts could not be compared" in text


def test_offsets_of_seams_are_those_of_the_mounts(tmp_path):
    path = folder(tmp_path, wrong=[("cam4", (-1.0, 0.5))])
    rig = read_rig(path / "rig.yaml").rig()
    views = {c.name: CameraView(cv2.imread(str(path / f"{c.name}.png"))[:, :, ::-1].copy()) for c in rig.cameras}
    seams = match_seams(Composer(rig, 2048), views)
    assert len(seams) == 6
    assert all(len(seam) > 30 for seam in seams)
    found = camera_offsets(seams)
    assert found["cam4"] == pytest.approx((1.0, -0.5 * math.cos(math.radians(30))), abs=0.12)
    for name in ("cam0", "cam1", "cam2", "cam3", "cam5"):
        assert found[name] == pytest.approx((0.0, 0.0), abs=0.12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--rig is missing"),
        (("--rig", "auto"), "brings no CameraInfo; give a rig file"),
        (("--rig", "rig.yaml", "--sets", "0"), "--sets 0, must be at least 1"),
    ],
)
def test_rig_check_of_unusable_input_is_one_error(tmp_path, monkeypatch, capsys, options, words):
    folder(tmp_path, left_out=("cam1", "cam2", "cam3", "cam4", "cam5"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["rig", "check", ".", *options]) == 2
    assert words in capsys.readouterr().err


def test_folder_whose_images_have_other_names_is_refused(tmp_path, capsys):
    path = folder(tmp_path)
    for image in list(path.glob("*.png")):
        image.rename(image.with_name(f"x_{image.name}"))
    assert check(path) == 2
    assert "no image of cam0, cam1" in capsys.readouterr().err
