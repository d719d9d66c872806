"""`unifygeo rig check`: a world painted on a far sphere, seen by cameras of which one or none is mounted as it says."""

import dataclasses
import functools
import math
import re

import cv2
import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from unifygeo_ros import cli
from unifygeo_ros.evaluation.rig_check import Views, check_rig, gather, verdict
from unifygeo_ros.parameters.settings import Settings, with_values
from unifygeo_ros.rig.composer import CameraView, Composer
from unifygeo_ros.rig.description import read_rig
from unifygeo_ros.rig.seams import Seam, camera_turns, match_seams

WIDTH, HEIGHT, FOCAL = 480, 360, 240.0  # 90° across: 30° of overlap


@functools.cache
def sphere():
    """Blobs of some degrees, 2048 × 1024 pixels."""
    noise = np.random.default_rng(3).integers(0, 256, (128, 256, 3), np.uint8)
    return cv2.resize(noise, (2048, 1024), interpolation=cv2.INTER_CUBIC)


def seen(yaw_deg, pitch_deg=0.0, brightness=1.0, roll_deg=0.0):
    """What a pinhole camera that looks there sees: uint8 (HEIGHT, WIDTH, 3)."""
    u, v = np.meshgrid(np.arange(WIDTH) - (WIDTH - 1) / 2, np.arange(HEIGHT) - (HEIGHT - 1) / 2)
    roll = math.radians(roll_deg)
    u, v = u * math.cos(roll) - v * math.sin(roll), u * math.sin(roll) + v * math.cos(roll)
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
        (0.0, -1.2, "cam2 looks 1.2° further up than its calibration says"),
    ],
)
def test_camera_that_looks_elsewhere_is_named_with_angle_and_direction(tmp_path, yaw, pitch, words, capsys):
    assert check(folder(tmp_path, wrong=[("cam2", (yaw, pitch))])) == 1
    verdict = capsys.readouterr().out.split("Verdict:\n")[1].splitlines()
    assert verdict[0] in (f"- {words}.", f"- {words.replace('2.0', '1.9')}.", f"- {words.replace('1.5', '1.4')}.")
    assert len(verdict) == 1


@pytest.mark.parametrize(("distance_m", "near", "found"), [(1000.0, "0.1", True), (30.0, "2.9", False)])
def test_far_surroundings_show_finer_errors_of_cameras_that_stand_apart(tmp_path, capsys, distance_m, near, found):
    """Six cameras 1 m apart, one off by 2°: as much as things 12 m away may differ by, if the file says 30 m."""
    path = folder(tmp_path, wrong=[("cam2", (-2.0, 0.0))])
    rig = yaml.safe_load((path / "rig.yaml").read_text())
    for i, camera in enumerate(rig["cameras"].values()):
        camera["mount"] |= {"x_m": math.cos(math.radians(60 * i)), "y_m": math.sin(math.radians(60 * i))}
    (path / "rig.yaml").write_text(yaml.safe_dump({**rig, "distance_m": distance_m}))
    check(path)
    text = capsys.readouterr().out
    assert bool(re.search(r"cam2 looks (1\.9|2\.0)° further right than its calibration says", text)) == found
    assert f"up to {near}°" in text


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


def test_rolled_camera_is_named_and_its_neighbours_are_not(tmp_path, capsys):
    """Its seams show opposite shifts, up on one side and down on the other."""
    path = folder(tmp_path)
    cv2.imwrite(str(path / "cam2.png"), seen(120.0, roll_deg=3.0)[:, :, ::-1])
    assert check(path) == 1
    verdict = capsys.readouterr().out.split("Verdict:\n")[1].splitlines()
    assert verdict in (
        [f"- cam2 looks rolled {angle}° further clockwise than its calibration says."] for angle in ("2.9", "3.0")
    )


def test_turns_of_cameras_are_those_that_moved_their_features():
    """Features are moved by whole rotations; the two ends of the seam lie opposite, as a dual fisheye has them."""
    turns = {"a": np.zeros(3), "b": np.array([1.0, -0.7, 2.0]), "c": np.zeros(3)}
    rng = np.random.default_rng(5)

    def seam(first, second, middles_deg):
        azimuth = np.radians(np.concatenate([rng.uniform(m - 8, m + 8, 40) for m in middles_deg]))
        elevation = np.radians(rng.uniform(-40, 30, len(azimuth)))
        there = np.stack(
            [np.cos(elevation) * np.cos(azimuth), -np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=-1
        )
        # A camera that is turned by R, and is taken not to be, puts what lies at R d at d.
        at = [there @ Rotation.from_rotvec(np.radians(turns[name])).as_matrix() for name in (first, second)]
        places = [(np.degrees(np.arctan2(-d[:, 1], d[:, 0])), np.degrees(np.arcsin(d[:, 2]))) for d in at]
        right = (places[1][0] - places[0][0] + 180) % 360 - 180
        up = places[1][1] - places[0][1]
        return Seam(first, second, *places[0], right * np.cos(np.radians(places[0][1])), up)

    found = camera_turns([seam("a", "b", (60,)), seam("b", "c", (150,)), seam("c", "a", (-90,))])
    for name, turn in turns.items():
        assert found[name] == pytest.approx(turn, abs=0.1)
    alone = camera_turns([seam("a", "b", (90, -90))])
    assert alone["b"] - alone["a"] == pytest.approx(turns["b"], abs=0.1)


def circle(yaw_deg, roll_deg):
    """What one circle of 200° of a dual fisheye sees: uint8 (400, 400, 3)."""
    u, v = np.meshgrid(np.arange(400) - 199.5, np.arange(400) - 199.5)
    roll, yaw = math.radians(roll_deg), math.radians(yaw_deg)
    u, v = u * math.cos(roll) - v * math.sin(roll), u * math.sin(roll) + v * math.cos(roll)
    radius = np.hypot(u, v)
    theta = radius / 200 * math.radians(100)
    ahead, right, up = np.cos(theta), np.sin(theta) * u / radius, -np.sin(theta) * v / radius
    azimuth = np.arctan2(right, ahead) - yaw
    column, row = (azimuth / (2 * np.pi) + 0.5) * 2048 - 0.5, (0.5 - np.arcsin(up) / np.pi) * 1024 - 0.5
    place = (column % 2048).astype(np.float32), row.astype(np.float32)
    return cv2.remap(sphere(), *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


@pytest.mark.parametrize(
    ("yaw", "roll", "words"),
    [
        (0.0, 3.0, "back looks rolled (2.9|3.0)° further clockwise than front at their seam: check both"),
        pytest.param(
            -2.0,
            0.0,
            "back looks (1.9|2.0)° further right than front at their seam: check both",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_dual_fisheye_shows_how_its_circles_are_turned_against_each_other(tmp_path, capsys, yaw, roll, words):
    """Both sides of the overlap together show it; the median shift over both does not."""
    lens = {"model": "circle", "width": 400, "height": 400, "centre_column": 199.5, "centre_row": 199.5,
            "radius": 200, "field_deg": 200}  # fmt: skip
    cameras = {}
    for name, at, turned in (("front", 0, (0.0, 0.0)), ("back", 180, (180 + yaw, roll))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), circle(*(turned if name == "back" else (0.0, 0.0)))[:, :, ::-1])
        mount = {"x_m": 0, "y_m": 0, "z_m": 1.6, "roll_deg": 0, "pitch_deg": 0, "yaw_deg": at}
        cameras[name] = {"lens": lens, "mount": mount}
    (tmp_path / "rig.yaml").write_text(
        yaml.safe_dump({"ground_z_m": -1000.0, "view_height_m": 1001.6, "cameras": cameras}, sort_keys=False)
    )
    assert check(tmp_path) == 1
    assert re.search(rf"Verdict:\n- {words}\.$", capsys.readouterr().out.strip())


def test_swapped_images_are_not_called_right(tmp_path, capsys):
    path = folder(tmp_path)
    (path / "cam1.png").rename(path / "other.png")
    (path / "cam4.png").rename(path / "cam1.png")
    (path / "other.png").rename(path / "cam4.png")
    assert check(path) == 1
    text = capsys.readouterr().out
    for seam in ("cam0 and cam1", "cam1 and cam2", "cam3 and cam4", "cam4 and cam5"):
        assert re.search(rf"{seam} show hardly anything in common where both look \(\d of \d{{3}} features\)", text)
    assert "whether images are swapped" in text


def test_camera_without_overlap_is_not_called_right(tmp_path, capsys):
    assert check(folder(tmp_path, left_out=("cam2", "cam4"))) == 1
    text = capsys.readouterr().out
    assert "cam3 could not be compared with another camera, for too little overlap or texture" in text
    assert "cam1 could not" not in text


@pytest.mark.parametrize(("brightness", "word"), [(0.0, "black, mean brightness 0.0"), (1e6, "white")])
def test_image_that_shows_nothing_is_left_out_and_said(tmp_path, capsys, brightness, word):
    path = folder(tmp_path)
    image = np.minimum(seen(180.0).astype(np.float64) * brightness + (brightness > 1) * 255, 255).astype(np.uint8)
    cv2.imwrite(str(path / "cam3.png"), image)
    assert check(path) == 1
    text = capsys.readouterr().out
    assert f"cam3 was left out: {word}" in text
    assert "than its neighbours" not in text


def test_exposures_at_different_times_are_a_fault_where_no_odometry_moves_them(tmp_path):
    folder(tmp_path)
    settings = with_values(Settings(), {"rig.file": str(tmp_path / "rig.yaml")})
    (images,) = gather(tmp_path, 1, settings).sets
    late = Views(images.views, {"cam0": 0.0, "cam3": 0.07, "cam4": -0.02})
    found = dataclasses.replace(gather(tmp_path, 1, settings), sets=(late,))
    assert verdict(check_rig(found)) == []
    (sentence,) = verdict(check_rig(dataclasses.replace(found, without_motion=True)))
    assert sentence.startswith(
        "Cameras expose at different times (cam3 +70 ms, cam4 -20 ms), and no odometry moves them"
    )


def test_error_of_a_folder_without_images_names_what_it_may_hold(tmp_path, capsys):
    path = folder(tmp_path, left_out=[f"cam{i}" for i in range(6)])
    assert check(path) == 2
    assert "or a folder with one image for each camera (front.jpg, left.png …)" in capsys.readouterr().err


def test_offsets_of_seams_are_those_of_the_mounts(tmp_path):
    path = folder(tmp_path, wrong=[("cam4", (-1.0, 0.5))])
    rig = read_rig(path / "rig.yaml").rig()
    views = {c.name: CameraView(cv2.imread(str(path / f"{c.name}.png"))[:, :, ::-1].copy()) for c in rig.cameras}
    seams = match_seams(Composer(rig, 2048), views)
    assert len(seams) == 6
    assert all(len(seam) > 30 for seam in seams)
    found = camera_turns(seams)
    # cam4 looks back and to the right, at a yaw of 240°. Turned by −1° about z; pitched down by 0.5°, about its y axis.
    left = np.array([-math.sin(math.radians(240)), math.cos(math.radians(240)), 0.0])
    assert found["cam4"] == pytest.approx(np.array([0.0, 0.0, -1.0]) + 0.5 * left, abs=0.12)
    for name in ("cam0", "cam1", "cam2", "cam3", "cam5"):
        assert found[name] == pytest.approx(np.zeros(3), abs=0.12)


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
