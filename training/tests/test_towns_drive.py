"""Drives: the motion is consistent with itself, sensors with their stated noise, the bag with both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyproj
import pytest
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_training.towns.drive import (
    EPOCH_NS,
    DriveSettings,
    ground_truth,
    record_drive,
    town_datum,
)
from unifygeo_training.towns.panorama import View
from unifygeo_training.towns.scene import GROUND, Kind, Town, clearance, geodetic_from_town
from unifygeo_training.towns.sensors import ImuNoise, OdometryNoise, dead_reckon, imu, wheel_odometry
from unifygeo_training.towns.town import build_town
from unifygeo_training.towns.trajectory import (
    FASTEST_M_S,
    LATERAL_M_S2,
    SHARPEST_PER_M,
    SLOWEST_M_S,
    Drive,
    clear_the_way,
    plan_drive,
)

SEED, SIZE_M, LENGTH_M = 1000, 400.0, 120.0


@pytest.fixture(scope="module")
def town() -> Town:
    return build_town(SEED, SIZE_M, 0.5)


@pytest.fixture(scope="module")
def drive(town: Town) -> Drive:
    return plan_drive(town, 1, LENGTH_M)


def test_motion_is_the_derivative_of_the_path(drive: Drive) -> None:
    dt = 1e-4
    t = np.linspace(0.1, drive.duration_s - 0.1, 400)
    before, here, after = drive.at(t - dt), drive.at(t), drive.at(t + dt)
    vx, vy = (after.x_m - before.x_m) / (2 * dt), (after.y_m - before.y_m) / (2 * dt)
    assert np.allclose(np.hypot(vx, vy), here.speed_m_s, rtol=2e-3)
    assert np.allclose(vx * np.sin(here.yaw_rad), vy * np.cos(here.yaw_rad), atol=2e-3)  # no side slip
    assert np.allclose((after.yaw_rad - before.yaw_rad) / (2 * dt), here.yaw_rate_rad_s, atol=2e-3)


def test_drive_keeps_its_limits(town: Town, drive: Drive) -> None:
    motion = drive.at(np.arange(0, drive.duration_s, 0.05))
    assert drive.length_m >= LENGTH_M
    assert motion.speed_m_s.min() >= SLOWEST_M_S - 0.01
    assert motion.speed_m_s.max() <= FASTEST_M_S + 0.01
    assert np.abs(drive.curvature_per_m).max() < SHARPEST_PER_M
    gentle = motion.speed_m_s > SLOWEST_M_S + 0.05
    assert np.abs(motion.speed_m_s * motion.yaw_rate_rad_s)[gentle].max() < LATERAL_M_S2 * 1.15
    cleared = clear_the_way(town, drive)
    assert all(clearance(cleared, x, y, views=GROUND) > 1.0 for x, y in zip(motion.x_m, motion.y_m, strict=True))
    changed = np.nonzero(cleared["views"] != town.objects["views"])[0]
    assert set(cleared["kind"][changed]) <= {int(Kind.CAR), int(Kind.CABIN)}


def test_dead_reckoning_of_a_circle_worked_by_hand() -> None:
    """5 m/s and 0.5 rad/s for π s: a quarter of a circle of radius 10 m, to the left, in any number of steps."""
    for steps in (1, 7):
        speed, turn = np.full(steps + 1, 5.0), np.full(steps + 1, 0.5)
        x, y, yaw = dead_reckon(speed, turn, np.pi / steps)
        assert (x[0], y[0], yaw[0]) == (0, 0, 0)
        assert (x[-1], y[-1], yaw[-1]) == pytest.approx((10.0, 10.0, np.pi / 2))


def test_odometry_without_noise_is_the_motion(drive: Drive) -> None:
    odometry = wheel_odometry(np.random.default_rng(0), drive, 20.0, OdometryNoise(0, 0, 0, 0))
    motion = drive.at(odometry.time_s)
    c, s = np.cos(motion.yaw_rad[0]), np.sin(motion.yaw_rad[0])
    x = motion.x_m[0] + c * odometry.x_m - s * odometry.y_m
    y = motion.y_m[0] + s * odometry.x_m + c * odometry.y_m
    assert np.hypot(x - motion.x_m, y - motion.y_m).max() < 0.02
    assert np.allclose(odometry.yaw_rad, motion.yaw_rad - motion.yaw_rad[0], atol=1e-6)


def test_odometry_drifts_as_stated(drive: Drive) -> None:
    """Over many drives the scale error is 2% and the yaw drift 0.06°/s, one standard deviation each."""
    noise = OdometryNoise()
    true = drive.length_m
    scales, drifts = [], []
    for seed in range(150):
        o = wheel_odometry(np.random.default_rng(seed), drive, 20.0, noise)
        scales.append(np.sum(o.speed_m_s[1:]) / 20 / true - 1)
        motion = drive.at(o.time_s[[0, -1]])
        drifts.append((o.yaw_rad[-1] - (motion.yaw_rad[1] - motion.yaw_rad[0])) / o.time_s[-1])
    assert np.std(scales) == pytest.approx(noise.scale, rel=0.25)
    assert np.std(drifts) == pytest.approx(noise.yaw_rate_bias_rad_s, rel=0.25)


def test_imu_is_the_motion_with_its_noise(drive: Drive) -> None:
    noise = ImuNoise()
    still = ImuNoise(*([0.0] * 8))
    exact = imu(np.random.default_rng(0), drive, 50.0, still)
    assert np.allclose(np.diff(exact.yaw_rad) * 50, exact.rates[1:, 2], atol=0.05)
    motion = drive.at(exact.time_s)
    assert np.allclose(exact.accelerations[:, 1], motion.speed_m_s * motion.yaw_rate_rad_s)
    assert np.allclose(exact.accelerations[:, 2], 9.81)
    # What the accelerometer adds up to is the change of speed.
    gained = np.cumsum(exact.accelerations[:-1, 0]) / 50
    assert np.allclose(gained, np.diff(motion.speed_m_s).cumsum(), atol=0.15)
    errors = [imu(np.random.default_rng(s), drive, 50.0, noise).yaw_rad - motion.yaw_rad for s in range(100)]
    expected = np.hypot(noise.yaw_bias_rad, noise.yaw_rad)
    assert np.std([e[0] for e in errors]) == pytest.approx(expected, rel=0.25)


def test_ground_truth_agrees_with_pyproj(town: Town, drive: Drive) -> None:
    time = np.linspace(0, drive.duration_s, 20)
    truth, motion = ground_truth(town, drive, time), drive.at(time)
    datum = town_datum(town)
    # Distance and azimuth from the datum along the ellipsoid, an independent way round.
    azimuth, _, distance = pyproj.Geod(ellps="WGS84").inv(
        np.full(20, datum.longitude_deg), np.full(20, datum.latitude_deg), truth.longitude_deg, truth.latitude_deg
    )
    assert np.allclose(distance * np.sin(np.radians(azimuth)), truth.east_m, atol=1e-3)
    assert np.allclose(distance * np.cos(np.radians(azimuth)), truth.north_m, atol=1e-3)
    # The grid is 0.9996 of the ground, and its north is true to 0.003°.
    assert np.allclose((motion.x_m - town.size_m / 2) / 0.9996, truth.east_m, atol=0.03)
    assert np.allclose((motion.y_m - town.size_m / 2) / 0.9996, truth.north_m, atol=0.03)
    assert np.allclose(np.unwrap(truth.yaw_rad), motion.yaw_rad, atol=np.radians(0.003))
    middle = geodetic_from_town(town.origin, np.array([[town.size_m / 2] * 2]))
    assert np.hypot(*LocalFrame(datum).map_from_geodetic(middle[:, 0], middle[:, 1])[0]) < 0.02


def test_bag_reads_back_and_repeats(tmp_path: Path) -> None:
    settings = DriveSettings(length_m=40.0, view=View(48, 96, np.pi / 2, -np.pi / 2), samples=1)
    folders = [record_drive(SEED, tmp_path / name, settings, size_m=300.0) for name in ("a", "b")]
    contents = [_read(folder / "bag") for folder in folders]
    assert {topic: [stamp for stamp, _ in rows] for topic, rows in contents[0].items()} == {
        topic: [stamp for stamp, _ in rows] for topic, rows in contents[1].items()
    }
    bag = contents[0]
    assert set(bag) == {
        "/camera/image/compressed",
        "/odom",
        "/imu/data",
        "/ground_truth/odometry",
        "/ground_truth/navsat",
        "/tf_static",
    }
    stamp, image = bag["/camera/image/compressed"][2]
    assert stamp == EPOCH_NS + 10**9 + 10**8  # 2 Hz, recorded 0.1 s late
    assert image.header.frame_id == "camera"
    assert image.header.stamp.sec * 10**9 + image.header.stamp.nanosec == EPOCH_NS + 10**9
    assert "jpeg" in image.format
    assert cv2.imdecode(image.data, cv2.IMREAD_COLOR).shape == (48, 96, 3)
    assert np.array_equal(image.data, contents[1]["/camera/image/compressed"][2][1].data)
    first = bag["/odom"][0][1]
    assert (first.header.frame_id, first.child_frame_id) == ("odom", "base_link")
    assert (first.pose.pose.position.x, first.pose.pose.orientation.w) == (0.0, 1.0)
    # Odometry in the bag is what its own twists give.
    odom = [m for _, m in bag["/odom"]]
    x, y, _ = dead_reckon(
        np.array([m.twist.twist.linear.x for m in odom]), np.array([m.twist.twist.angular.z for m in odom]), 0.05
    )
    assert np.allclose(x, [m.pose.pose.position.x for m in odom], atol=1e-6)
    assert np.allclose(y, [m.pose.pose.position.y for m in odom], atol=1e-6)
    assert odom[-1].pose.covariance[0] > odom[0].pose.covariance[0]
    truth = bag["/ground_truth/odometry"][5][1]
    navsat = bag["/ground_truth/navsat"][5][1]
    assert truth.header.frame_id == "map"
    frame = LocalFrame(town_datum(build_town(SEED, 300.0, 2.0)))
    place = frame.map_from_geodetic(navsat.latitude, navsat.longitude)
    assert place == pytest.approx([truth.pose.pose.position.x, truth.pose.pose.position.y], abs=1e-6)
    mount = bag["/tf_static"][0][1].transforms[0]
    assert (mount.header.frame_id, mount.child_frame_id) == ("base_link", "camera")
    assert mount.transform.translation.z == 2.0
    with Reader(folders[0] / "bag") as reader:
        offered = {c.topic: c.ext.offered_qos_profiles for c in reader.connections}
    assert [qos.durability for qos in offered.pop("/tf_static")] == [QosDurability.TRANSIENT_LOCAL]
    assert not any(offered.values())  # ros2 bag play's own default
    with pytest.raises(ConfigurationError, match="not empty"):
        record_drive(SEED, folders[0], settings)


def _read(folder: Path) -> dict[str, list]:
    rows: dict[str, list] = {}
    with AnyReader([folder], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        last = 0
        for connection, stamp, raw in reader.messages():
            assert stamp >= last
            last = stamp
            rows.setdefault(connection.topic, []).append((stamp, reader.deserialize(raw, connection.msgtype)))
    return rows


def test_drive_too_long_for_its_town_is_refused() -> None:
    town = build_town(SEED, 200.0, 2.0)
    empty = replace(town, streets=tuple(s for s in town.streets if s.rank == 3))
    with pytest.raises(ConfigurationError, match="no drive of 900 m fits"):
        plan_drive(empty, 1, 900.0)


def test_drives_of_other_numbers_keep_to_their_area(town: Town) -> None:
    whole, first, again, other = (
        plan_drive(town, 1, 60.0, number=n, area_m=area).at(np.arange(0, 9, 0.5))
        for n, area in ((0, None), (1, (0, 0, 280, 400)), (1, (0, 0, 280, 400)), (2, (0, 0, 280, 400)))
    )
    assert first.x_m.max() < 280
    assert np.array_equal(whole.x_m, plan_drive(town, 1, 60.0).at(np.arange(0, 9, 0.5)).x_m)
    assert np.array_equal(first.x_m, again.x_m)
    assert np.hypot(first.x_m - other.x_m, first.y_m - other.y_m).max() > 5
    with pytest.raises(ConfigurationError, match="this area of town 1000"):
        plan_drive(town, 1, 60.0, area_m=(0, 0, 60, 60))
