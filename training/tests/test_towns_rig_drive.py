"""Drives recorded by a rig: each image is the panorama's light through the lens, from the camera's own place and time.

The panorama is rendered by `render_panorama`; which of its rays a pixel shows is worked out with OpenCV's lens models,
not with those of the package.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.rig.description import read_rig
from unifygeo_training.towns.drive import DriveSettings, record_drive
from unifygeo_training.towns.light import draw_appearance
from unifygeo_training.towns.panorama import LitStage, View, light_stage, render_panorama, set_stage
from unifygeo_training.towns.rigged_vehicle import RiggedVehicle
from unifygeo_training.towns.scene import AERIAL, GROUND, OBJECT, Kind
from unifygeo_training.towns.sensors import ImuNoise, OdometryNoise, imu, wheel_odometry
from unifygeo_training.towns.town import build_town
from unifygeo_training.towns.trajectory import Drive, clear_the_way, plan_drive

SEED, SIZE_M = 1000, 300.0
SPHERE = View(512, 1024, np.pi / 2, -np.pi / 2)
MOUNTS = {
    "front": {"x_m": 1.5, "y_m": 0.0, "z_m": 1.4, "roll_deg": 2.0, "pitch_deg": 8.0, "yaw_deg": 0.0},
    "left": {"x_m": 0.0, "y_m": 0.8, "z_m": 1.0, "roll_deg": 0.0, "pitch_deg": 25.0, "yaw_deg": 90.0},
    "up": {"x_m": 0.0, "y_m": 0.0, "z_m": 2.0, "roll_deg": 0.0, "pitch_deg": 0.0, "yaw_deg": 180.0},
    "down": {"x_m": 0.0, "y_m": 0.0, "z_m": 2.0, "roll_deg": 0.0, "pitch_deg": 0.0, "yaw_deg": 0.0},
}
LENSES = {
    "front": {"model": "pinhole", "width": 320, "height": 240, "fx": 150.0, "fy": 152.0, "cx": 163.0, "cy": 118.0,
              "distortion": [-0.12, 0.03, 0.001, -0.0015, -0.002]},
    "left": {"model": "fisheye", "width": 320, "height": 240, "fx": 100.0, "fy": 101.0, "cx": 158.0, "cy": 122.0,
             "distortion": [-0.03, 0.004, -0.002, 0.0003], "field_deg": 170},
    "up": {"model": "circle", "width": 400, "height": 200, "centre_column": 99, "centre_row": 99, "radius": 95,
           "field_deg": 190},
    "down": {"model": "circle", "width": 400, "height": 200, "centre_column": 300, "centre_row": 100, "radius": 95,
             "field_deg": 190},
}  # fmt: skip
TOPICS = {"front": "/front/image_raw", "left": "/left/image_raw/compressed", "up": "/dual/image", "down": "/dual/image"}
SCALE = 0.5


@pytest.fixture(scope="module")
def rig_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rig") / "rig.yaml"
    cameras = {name: {"topic": TOPICS[name], "lens": LENSES[name], "mount": MOUNTS[name]} for name in TOPICS}
    path.write_text(yaml.safe_dump({"ground_z_m": 0.1, "cameras": cameras}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def folder(rig_path: Path) -> Path:
    settings = DriveSettings(length_m=40.0, rig=read_rig(rig_path), image_scale=SCALE, jpeg_quality=97)
    return record_drive(SEED, rig_path.parent / "drive", settings, size_m=SIZE_M)


@pytest.fixture(scope="module")
def recorded(folder: Path) -> dict[str, list]:
    rows: dict[str, list] = {}
    with AnyReader([folder / "bag"], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        for connection, _, raw in reader.messages():
            rows.setdefault(connection.topic, []).append(reader.deserialize(raw, connection.msgtype))
    return rows


def pixel_rays(info) -> np.ndarray:
    """Directions (H, W, 3) of the pixels of a CameraInfo, by OpenCV; NaN where OpenCV finds none."""
    grid = np.stack(np.meshgrid(np.arange(info.width), np.arange(info.height)), axis=-1).astype(np.float64)
    k = info.k.reshape(3, 3)
    flat = grid.reshape(-1, 1, 2)
    if info.distortion_model == "equidistant":
        # OpenCV gives tan θ, which ends at 90°: θ itself comes from θ_d by a table of OpenCV's projection.
        away = (flat[:, 0] - k[[0, 1], [2, 2]]) / k[[0, 1], [0, 1]]
        angles = np.linspace(0, 1.6, 20_001)
        points = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], axis=-1)[:, None]
        front = angles < 1.5
        table = cv2.fisheye.projectPoints(points[front], np.zeros(3), np.zeros(3), np.eye(3), info.d)[0][:, 0, 0]
        distance = np.hypot(*away.T)
        theta = np.where(distance <= table[-1], np.interp(distance, table, angles[front]), np.nan)
        unit = away / np.maximum(distance, 1e-12)[:, None]
        rays = np.column_stack([np.sin(theta)[:, None] * unit, np.cos(theta)])
    else:
        # OpenCV's projection inverted by iteration.
        points = wanted = (flat[:, 0] - k[[0, 1], [2, 2]]) / k[[0, 1], [0, 1]]
        for _ in range(25):
            ahead = np.column_stack([points, np.ones(len(points))])
            there = cv2.projectPoints(ahead, np.zeros(3), np.zeros(3), np.eye(3), info.d)[0][:, 0]
            points = points - (there - wanted)
        rays = np.column_stack([points, np.ones(len(points))])
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    return rays.reshape(info.height, info.width, 3)


def scene() -> tuple[LitStage, object]:
    """The lit town of the recorded drive, without the camera's noise, and the drive."""
    town = build_town(SEED, SIZE_M)
    drive = plan_drive(town, SEED, 40.0)
    rng = np.random.default_rng([SEED, 3])
    draw_appearance(rng)
    wheel_odometry(rng, drive, 20.0, OdometryNoise())
    imu(rng, drive, 50.0, ImuNoise())
    light = replace(draw_appearance(rng), noise=0.0)
    return light_stage(set_stage(replace(town, objects=clear_the_way(town, drive))), light), drive


def expected(lit: LitStage, drive, time_s: float, info, mount: dict[str, float], wrong_deg: float = 0.0) -> np.ndarray:
    """What the camera shows of the panorama from its place: float32 (H, W, 3), NaN where the oracle has no ray."""
    motion = drive.at(time_s)
    x, y, yaw = (float(values[0]) for values in (motion.x_m, motion.y_m, motion.yaw_rad))
    cos, sin = math.cos(yaw), math.sin(yaw)
    x, y = x + cos * mount["x_m"] - sin * mount["y_m"], y + sin * mount["x_m"] + cos * mount["y_m"]
    sphere = render_panorama(lit, x, y, SPHERE, height_m=mount["z_m"] - 0.1, azimuth_rad=math.pi / 2 - yaw, samples=1)
    turn = Rotation.from_euler(
        "ZYX", [mount["yaw_deg"] + wrong_deg, mount["pitch_deg"], mount["roll_deg"]], degrees=True
    )
    optical = Rotation.from_euler("ZYX", [-90.0, 0.0, -90.0], degrees=True)
    rays = pixel_rays(info)
    ahead, left, up = np.moveaxis((turn * optical).apply(rays.reshape(-1, 3)).reshape(rays.shape), -1, 0)
    column = (np.arctan2(-left, ahead) / (2 * np.pi) + 0.5) * SPHERE.width - 0.5
    row = (0.5 - np.arctan2(up, np.hypot(ahead, left)) / np.pi) * SPHERE.height - 0.5
    known = np.isfinite(column)
    wrapped = np.concatenate([sphere[:, -1:], sphere, sphere[:, :1]], axis=1)
    found = cv2.remap(
        wrapped,
        np.where(known, column + 1, 0).astype(np.float32),
        np.where(known, row, 0).astype(np.float32),
        cv2.INTER_LINEAR,
    ).astype(np.float32)
    found[~known] = np.nan
    return found


def difference(image: np.ndarray, wanted: np.ndarray) -> float:
    """Mean difference in grey levels, after the same small blur, of the pixels that both show."""
    known = np.isfinite(wanted[..., 0]) & image.any(axis=2)
    known = cv2.erode(known.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    a, b = (cv2.GaussianBlur(np.nan_to_num(x.astype(np.float32)), (3, 3), 0.8) for x in (image, wanted))
    return float(np.abs(a - b)[known].mean())


def stamp_s(message) -> float:
    return message.header.stamp.sec - 1_750_000_000 + message.header.stamp.nanosec * 1e-9


def test_recorded_images_are_the_panoramas_rays_through_each_lens_from_its_own_place_and_time(recorded) -> None:
    lit, drive = scene()
    for name, delay_s in (("front", 0.0), ("left", 0.06)):  # to the left is three quarters of a turn clockwise
        image = recorded[f"/{name}/image_raw/compressed"][10]
        info = recorded[f"/{name}/camera_info"][10]
        assert stamp_s(image) == pytest.approx(5.0 + delay_s, abs=1e-6)
        assert info.header.stamp == image.header.stamp
        assert info.header.frame_id == image.header.frame_id == f"{name}_optical"
        pixels = cv2.imdecode(image.data, cv2.IMREAD_COLOR)[..., ::-1]
        assert pixels.shape == (120, 160, 3) == (info.height, info.width, 3)
        right = difference(pixels, expected(lit, drive, stamp_s(image), info, MOUNTS[name]))
        assert right < 9.0  # edges, which are sampled by other rays, and the camera's noise
        turned = difference(pixels, expected(lit, drive, stamp_s(image), info, MOUNTS[name], wrong_deg=1.0))
        elsewhen = difference(pixels, expected(lit, drive, stamp_s(image) - 0.06, info, MOUNTS[name]))
        aside = difference(pixels, expected(lit, drive, stamp_s(image), info, {**MOUNTS[name], "y_m": 0.4}))
        assert min(turned, elsewhen, aside) > 1.15 * right


def test_two_circles_of_one_image_are_recorded_as_one_image(recorded) -> None:
    images = recorded["/dual/image/compressed"]
    pixels = cv2.imdecode(images[3].data, cv2.IMREAD_COLOR)
    assert pixels.shape == (100, 200, 3)
    assert pixels[50, 50].max() > 20  # the middle of each circle
    assert pixels[50, 150].max() > 20
    assert pixels[2, 100].max() < 20  # between them
    infos = recorded["/dual/camera_info"]
    assert len(infos) == 2 * len(images)
    assert {info.distortion_model for info in infos} == {"equidistant"}


def test_rig_file_static_transforms_and_camera_info_of_a_drive_describe_one_rig(folder, recorded, rig_path) -> None:
    rig = read_rig(folder / "rig.yaml").rig()
    whole = read_rig(rig_path).rig()
    transforms = {t.child_frame_id: t.transform for t in recorded["/tf_static"][0].transforms}
    assert rig.ground_z_m == 0.1
    for camera, original in zip(rig.cameras, whole.cameras, strict=True):
        assert camera.name == original.name
        np.testing.assert_allclose(camera.base_from_optical, original.base_from_optical, atol=1e-6)
        at = transforms[f"{camera.name}_optical"]
        q, t = at.rotation, at.translation
        np.testing.assert_allclose(
            Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix(), original.base_from_optical, atol=1e-9
        )
        assert (t.x, t.y, t.z) == pytest.approx(tuple(original.position_m))
        # Half the size: pixel edges halve.
        ray = np.array([[0.2, -0.1, 1.0]])
        np.testing.assert_allclose(camera.lens.project(ray)[0] + 0.5, (original.lens.project(ray)[0] + 0.5) / 2)
    readme = (folder / "README.md").read_text()
    assert "`/left/image_raw/compressed`: left, 160 × 120, exposed 60 ms after the first" in readme


def solid(kind: Kind, x: float, y: float, top: float) -> np.ndarray:
    values = np.zeros(1, OBJECT)
    values["kind"], values["x"], values["y"], values["top"] = int(kind), x, y, top
    values["cos"], values["half_x"], values["half_y"], values["views"] = 1.0, 0.5, 0.5, AERIAL | GROUND
    return values


def test_what_a_camera_would_touch_is_not_there_from_the_ground(rig_path) -> None:
    """The left camera drives 0.8 m left of the path, 0.9 m above the ground: 1.0 m reaches what begins at 1.3 m."""
    vehicle = RiggedVehicle.of(read_rig(rig_path), 0.5, 0.08, 2.0)
    east = Drive(np.stack([np.arange(10.0, 60.0, 0.5), np.full(100, 50.0)], axis=1))
    objects = np.concatenate(
        [
            solid(Kind.PLAIN, 30.0, 51.5, 1.5),  # touched by the left camera
            solid(Kind.PLAIN, 30.0, 51.5, 0.5),  # below it
            solid(Kind.CAR, 40.0, 51.5, 0.5),  # a car is taken away with all its parts
            solid(Kind.BUILDING, 40.0, 53.0, 9.0),
        ]
    )
    cleared = vehicle.clear_the_way(objects, east)
    assert (cleared["views"] & GROUND != 0).tolist() == [False, True, False, True]
    assert (cleared["views"] & AERIAL != 0).all()
    with pytest.raises(ConfigurationError, match=r"camera left at 0, 0.8 m in base_link would pass through a building"):
        vehicle.clear_the_way(np.concatenate([objects, solid(Kind.BUILDING, 40.0, 51.5, 9.0)]), east)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": 0.0}, "image scale 0, must be above 0 and at most 1"),
        ({"scale": 2.0}, "image scale 2, must be above 0"),
        ({"spread_s": 0.5}, r"exposure spread 0.5 s, must be at least 0 and less than the 0.5 s"),
        ({"rate_hz": 0.0}, "image rate 0 Hz, must be above 0"),
    ],
)
def test_drive_with_a_rig_refuses_what_cannot_be_recorded(rig_path, changes, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RiggedVehicle.of(read_rig(rig_path), **{"scale": 0.5, "spread_s": 0.08, "rate_hz": 2.0, **changes})


def test_drive_with_a_rig_needs_every_lens_and_mount(tmp_path) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(yaml.safe_dump({"cameras": {"front": {"topic": "/front/image", "lens": LENSES["front"]}}}))
    with pytest.raises(ConfigurationError, match=r"rig.yaml: .*give lens and mount of every camera"):
        RiggedVehicle.of(read_rig(path), 1.0, 0.08, 2.0)


def test_drive_with_a_rig_whose_shared_image_has_two_sizes_is_refused(tmp_path) -> None:
    path = tmp_path / "rig.yaml"
    cameras = {name: {"topic": "/one", "lens": LENSES[name], "mount": MOUNTS[name]} for name in ("front", "up")}
    path.write_text(yaml.safe_dump({"cameras": cameras}))
    with pytest.raises(ConfigurationError, match=r"front, up share the images of /one/compressed"):
        RiggedVehicle.of(read_rig(path), 1.0, 0.08, 2.0)
