"""A flat ground with random marks, seen from above and by tilted panoramic cameras, and drives over it.

The rotations are scipy's, the projection is written out here, and the drive is integrated in small steps: nothing is
shared with the code under test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from unifygeo_ros.core.records import CameraImage
from unifygeo_ros.evaluation.mounting.estimate import CollectedDrive, SeenImage, whole_drive
from unifygeo_ros.motion.samples import ODOM_FRAME, BufferLimits, ImuSample, MotionBuffer, OdometrySample
from unifygeo_ros.motion.stamp_error import Place

SECOND = 1_000_000_000
START_S = 1000.0
HEIGHT_M = 1.8
TILE, SCALE = 192, 0.3
LIMITS = BufferLimits(30 * SECOND, SECOND // 2, SECOND // 5, SECOND)


class Ground:
    """Grey marks, blurred to what imagery of 0.3 m shows. Serves as the index, one tile about each place."""

    def __init__(self, seed: int, size_m: float = 240.0, tile_yaw_rad: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        cells = round(size_m / SCALE)
        marks = np.full((cells, cells), 110.0, np.float32)
        for _ in range(cells * cells // 150):
            row, column, angle = [*rng.integers(0, cells, 2).tolist(), float(rng.uniform(0, 180))]
            size = (float(rng.uniform(3, 12)), float(rng.uniform(1, 4)))
            cv2.ellipse(marks, ((float(column), float(row)), size, angle), float(rng.uniform(30, 220)), -1)
        self.pixels = cv2.GaussianBlur(marks, (0, 0), 0.8)
        self.cells, self.half_m = cells, size_m / 2
        spots = np.arange(-size_m / 2 + 28.8, size_m / 2 - 28.7, 14.4)
        self.centres_m = np.stack(np.meshgrid(spots, spots), axis=-1).reshape(-1, 2)
        self.metres_per_pixel, self.yaw_rad = SCALE, tile_yaw_rad
        self.manifest = SimpleNamespace(side_m=TILE * SCALE)

    def at(self, east_m: np.ndarray, north_m: np.ndarray) -> np.ndarray:
        column = (east_m + self.half_m) / SCALE - 0.5
        row = (self.half_m - north_m) / SCALE - 0.5
        return cv2.remap(self.pixels, column.astype(np.float32), row.astype(np.float32), cv2.INTER_CUBIC,
                         borderMode=cv2.BORDER_REFLECT)  # fmt: skip

    def tiles_within(self, gate: object) -> np.ndarray:
        prior = gate.prior  # type: ignore[attr-defined]
        away = np.abs(self.centres_m - [prior.east_m, prior.north_m]).max(axis=1)
        return np.flatnonzero(away < TILE * SCALE / 2)

    def tile_yaw_rad(self, tile_id: int) -> float:
        return self.yaw_rad

    def tile_pixels(self, tile_id: int) -> np.ndarray:
        middle = (np.arange(TILE) - (TILE - 1) / 2) * SCALE
        east, north = self.centres_m[tile_id]
        x, y = np.meshgrid(middle, -middle)
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        grey = self.at(east + cos * x - sin * y, north + sin * x + cos * y)
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)

    def panorama(
        self,
        camera_m: tuple[float, float],
        vehicle_rpy: tuple[float, float, float],
        mount_rpy: tuple[float, float, float] = (0.0, 0.0, 0.0),
        height_m: float = HEIGHT_M,
        rows: int = 192,
    ) -> np.ndarray:
        """Full sphere. Angles of base_link in the map and of the camera on it (REP-103)."""
        elevation = (np.pi / 2 - (np.arange(rows) + 0.5) / rows * np.pi)[:, None]
        to_the_right = (np.arange(2 * rows) + 0.5) / rows * np.pi - np.pi
        rays = np.stack(
            np.broadcast_arrays(
                np.cos(elevation) * np.cos(to_the_right), -np.cos(elevation) * np.sin(to_the_right), np.sin(elevation)
            ),
            axis=-1,
        )
        # Intrinsic yaw, pitch, roll.
        whole = Rotation.from_euler("ZYX", vehicle_rpy[::-1]) * Rotation.from_euler("ZYX", mount_rpy[::-1])
        x, y, z = whole.apply(rays.reshape(-1, 3)).T.reshape(3, rows, 2 * rows)
        reach = height_m / np.maximum(-z, 0.02)
        grey = np.where(z < -0.02, self.at(camera_m[0] + x * reach, camera_m[1] + y * reach), 200.0)
        # Another exposure than the imagery's.
        return np.repeat(np.clip(0.7 * grey + 40, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


@dataclass(frozen=True)
class SetUp:
    """What is true of a vehicle."""

    late_s: float = 0.0
    x_m: float = 0.0
    y_m: float = 0.0
    yaw_rad: float = 0.0
    pitch_rad: float = 0.0
    roll_rad: float = 0.0
    imu_rad: float = 0.0
    scale: float = 1.0


class FlatDrive:
    """A drive of `seconds` about the middle of the ground: bends to both sides, at a speed that changes."""

    def __init__(
        self, ground: Ground, true: SetUp, seed: int, *, seconds: float = 42.0, motion: str = "bends", images: int = 32
    ) -> None:
        self.ground, self.true, self.rng = ground, true, np.random.default_rng(seed)
        self.time_s = np.arange(-3.0, seconds + 3.0, 0.01)
        speed = {"bends": 4 + 2.5 * np.sin(self.time_s / 3), "straight": 4 + 2 * np.sin(self.time_s / 3)}.get(
            motion, np.full(len(self.time_s), 4.0 if motion == "steady" else 0.0)
        )
        rate = 0.25 * np.sin(self.time_s / 4) + 0.1 if motion == "bends" else np.zeros(len(self.time_s))
        yaw = 0.3 + np.cumsum(rate) * 0.01
        place = np.cumsum(speed * np.stack([np.cos(yaw), np.sin(yaw)]), axis=1) * 0.01
        self.pose = np.stack([*(place - place.mean(axis=1, keepdims=True)), yaw])
        self.exposed_s = np.linspace(0.0, seconds, images)

    def odometry(self) -> MotionBuffer[OdometrySample]:
        """20 Hz with noise, a bias of the yaw rate and an error of scale."""
        buffer: MotionBuffer[OdometrySample] = MotionBuffer(whole_drive(LIMITS))
        steps = np.diff(self.pose[:, ::5], axis=1)
        way = np.hypot(steps[0], steps[1]) / self.true.scale + self.rng.normal(0, 0.001, steps.shape[1])
        turn = steps[2] + self.rng.normal(0, 0.0003, steps.shape[1]) + 0.0005 * 0.05
        yaw = np.concatenate([[0.0], np.cumsum(turn)])
        course = yaw[:-1] + turn / 2
        x, y = (np.concatenate([[0.0], np.cumsum(way * wave)]) for wave in (np.cos(course), np.sin(course)))
        for time_s, *pose in zip(self.time_s[::5], x, y, yaw, strict=True):
            buffer.add(OdometrySample(round((START_S + time_s) * SECOND), ODOM_FRAME, *map(float, pose)))
        return buffer

    def imu(self) -> MotionBuffer[ImuSample]:
        buffer: MotionBuffer[ImuSample] = MotionBuffer(whole_drive(LIMITS))
        for time_s, yaw in zip(self.time_s[::5], self.pose[2, ::5], strict=True):
            noisy = math.remainder(yaw - self.true.imu_rad + self.rng.normal(0, 0.003), 2 * math.pi)
            buffer.add(ImuSample(round((START_S + time_s) * SECOND), 0.0, 0.0, noisy, 1e-4))
        return buffer

    def at(self, time_s: float) -> np.ndarray:
        return np.array([np.interp(time_s, self.time_s, row) for row in self.pose])

    def camera_m(self, exposed_s: float) -> np.ndarray:
        east, north, yaw = self.at(exposed_s)
        cos, sin = math.cos(yaw), math.sin(yaw)
        x, y = self.true.x_m, self.true.y_m
        return np.array([east + cos * x - sin * y, north + sin * x + cos * y])

    def collected(self, *, odometry: bool = True, imu: bool = True) -> CollectedDrive:
        """As a session with a mount of zeros would see it: places off by 0.2 m, yaw by a degree."""
        seen = []
        for number, exposed_s in enumerate(self.exposed_s):
            east, north = self.camera_m(exposed_s) + self.rng.normal(0, 0.2, 2)
            yaw = self.at(exposed_s)[2] + self.rng.normal(0, 0.01)
            stamp_ns = round((START_S + exposed_s + self.true.late_s) * SECOND)
            place = Place(float(east), float(north), 0.04 * np.eye(2), float(yaw), 1e-3)
            seen.append(SeenImage(number, stamp_ns, place, 0.0, 0.0))
        empty: MotionBuffer[ImuSample] = MotionBuffer(whole_drive(LIMITS))
        nothing: MotionBuffer[OdometrySample] = MotionBuffer(whole_drive(LIMITS))
        return CollectedDrive(
            len(seen),
            tuple(seen),
            self.odometry() if odometry else nothing,
            self.imu() if imu else empty,
        )

    def images(self, numbers: list[int]) -> list[CameraImage]:
        true = self.true
        found = []
        for number in numbers:
            exposed_s = self.exposed_s[number]
            vehicle = (0.0, 0.0, float(self.at(exposed_s)[2]))
            mount = (true.roll_rad, true.pitch_rad, true.yaw_rad)
            pixels = self.ground.panorama(tuple(self.camera_m(exposed_s)), vehicle, mount)
            found.append(CameraImage(pixels, 1))
        return found
