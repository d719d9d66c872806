"""Bags of drives through the flat world of `worlds.py`, right or spoilt, for the tests of drives as a data set."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from drives import IMAGE, IMU, NAVSATFIX, ODOMETRY, START_NS, STORE, image, imu, navsatfix, odometry
from rosbags.rosbag2 import StoragePlugin, Writer
from worlds import World

from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_training.model import NetworkConfig

Pose = tuple[float, float, float]
"""x, y (m, from the world's centre) and yaw of base_link."""
CAMERA_X_M = 0.5
VEHICLE = {"camera.x_m": CAMERA_X_M, "localizer.check_projection": False, "localizer.minimum_sharpness": 0.0}
"""Settings of such a drive; the checks of real photographs are off, as the flat world would not pass them."""
NETWORK = NetworkConfig(
    backbone="test_convnext2",  # timm's for tests: one block a stage, few channels
    ground_height=32,
    ground_width=128,
    ground_elevation_top_deg=45,
    ground_elevation_bottom_deg=-45,
    aerial_size=64,
    metres_per_pixel=0.5,
    output_stride=2,
    layer_scale=0.1,
)
"""The smallest network whose images fit the bags."""


def eight(time_s: float, seconds: float = 60.0) -> Pose:
    """A figure of eight, 80 m long and 60 m wide, once in so many seconds."""
    w = 2 * math.pi / seconds
    x, y = 40 * math.sin(w * time_s), 30 * math.sin(2 * w * time_s)
    return x, y, math.atan2(60 * math.cos(2 * w * time_s), 40 * math.cos(w * time_s))


@functools.lru_cache(maxsize=256)
def _panorama(world: World, x: float, y: float, azimuth_rad: float) -> np.ndarray:
    """Most bags are of the same drive."""
    return world.panorama(x, y, azimuth_rad)


def write_bag(
    path: Path,
    world: World,
    frame: LocalFrame,
    *,
    pose: Callable[[float], Pose] = eight,
    image_times_s: Sequence[float] = tuple(np.arange(0, 60, 0.5)),
    truth: str = "odometry",
    truth_times_s: Sequence[float] = tuple(np.arange(-1, 62, 0.1)),
    truth_late_s: float = 0.0,
    sigma_m: float = 0.05,
    mirrored: bool = False,
    pixels: Callable[[np.ndarray], np.ndarray] = lambda panorama: panorama,
    files: int = 1,
) -> Path:
    """A rosbag2 folder with images of a camera CAMERA_X_M ahead of base_link, truth on /truth, and a level IMU.

    truth: "odometry" or "navsat". truth_late_s: added to its stamps. pixels: what becomes of each image. files: parts
    of the bag.
    """
    events: list[tuple[float, str]] = [(t, "/image") for t in image_times_s] + [(t, "/truth") for t in truth_times_s]
    events += [(t, "/imu") for t in np.arange(-1, max(image_times_s, default=0) + 1, 0.1)]
    types = {"/image": IMAGE, "/truth": ODOMETRY if truth == "odometry" else NAVSATFIX, "/imu": IMU}
    if not len(image_times_s):
        del types["/image"]
    events = sorted(events)
    shares = np.array_split(np.arange(len(events)), files)
    for number, share in enumerate(shares):
        folder = path if files == 1 else path.with_name(f"{path.name}_{number}")
        with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            connections = {t: writer.add_connection(t, name, typestore=STORE) for t, name in types.items()}
            for event in share.tolist():
                time_s, topic = events[event]
                x, y, yaw = pose(time_s)
                if topic == "/image":
                    ahead = x + CAMERA_X_M * math.cos(yaw), y + CAMERA_X_M * math.sin(yaw)
                    seen = _panorama(world, *ahead, math.pi / 2 - yaw)
                    message = image(time_s, pixels(seen[:, ::-1] if mirrored else seen))
                elif topic == "/imu":
                    message = imu(time_s, yaw)
                elif truth == "odometry":
                    east, north = map(float, World.in_map(frame, x, y))
                    message = odometry(time_s + truth_late_s, "map", east, north, yaw, 5.0, 0.0, sigma_m**2)
                else:
                    message = navsatfix(time_s + truth_late_s, x, y, sigma_m)
                stamp = START_NS + round((time_s + 2) * 1e9)
                writer.write(connections[topic], stamp, STORE.serialize_cdr(message, types[topic]))
        if files > 1:  # as `ros2 bag record --max-bag-duration` leaves them, copied without metadata.yaml
            path.mkdir(exist_ok=True)
            next(folder.glob("*.mcap")).rename(path / f"{path.name}_{number}.mcap")
    return path
