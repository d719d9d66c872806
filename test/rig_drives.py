"""A drive through the flat world of `worlds.py`, recorded by a rig: exposures at different times, CameraInfo, TF."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
from drives import IMAGE, IMU, ODOMETRY, RAW_IMAGE, START_NS, STORE, TYPES, Circle, header, imu, odometry
from rosbags.rosbag2 import StoragePlugin, Writer
from scipy.spatial.transform import Rotation
from worlds import CAMERA_HEIGHT_M, World

from unifygeo_ros.core.geodesy import LocalFrame

CAMERA_INFO, TF = "sensor_msgs/msg/CameraInfo", "tf2_msgs/msg/TFMessage"
WIDTH, HEIGHT, FOCAL = 200, 150, 84.0  # 100° across
CAMERAS = {
    # name: (exposure after the tick (s), x, y in base_link (m), yaw (°))
    "front": (0.000, 0.5, 0.0, 0.0),
    "left": (0.020, 0.0, 0.4, 90.0),
    "back": (0.045, -0.5, 0.0, 180.0),
    "right": (0.070, 0.0, -0.4, -90.0),
}
RIG_FILE = {
    "cameras": {
        name: {
            "topic": f"/{name}/image_raw/compressed",
            "lens": {"model": "pinhole", "width": WIDTH, "height": HEIGHT, "fx": FOCAL, "fy": FOCAL,
                     "cx": (WIDTH - 1) / 2, "cy": (HEIGHT - 1) / 2},
            "mount": {"x_m": x, "y_m": y, "z_m": CAMERA_HEIGHT_M, "roll_deg": 0, "pitch_deg": 10, "yaw_deg": yaw},
        }
        for name, (_, x, y, yaw) in CAMERAS.items()
    }
}  # fmt: skip
PITCH_DEG = 10.0


def camera_pixels(world: World, x: float, y: float, yaw: float, name: str) -> np.ndarray:
    """What a camera sees of the world from a pose of base_link: uint8 (HEIGHT, WIDTH, 3) RGB."""
    _, mount_x, mount_y, mount_yaw = CAMERAS[name]
    cos, sin = math.cos(yaw), math.sin(yaw)
    azimuth = math.pi / 2 - yaw - math.radians(mount_yaw)  # of the camera, clockwise from north
    sphere = world.panorama(x + cos * mount_x - sin * mount_y, y + sin * mount_x + cos * mount_y, azimuth, height=256)
    u, v = np.meshgrid(np.arange(WIDTH) - (WIDTH - 1) / 2, np.arange(HEIGHT) - (HEIGHT - 1) / 2)
    pitch = math.radians(PITCH_DEG)
    forward, left, up = np.full_like(u, FOCAL), -u, -v
    ahead = forward * math.cos(pitch) + up * math.sin(pitch)
    upwards = up * math.cos(pitch) - forward * math.sin(pitch)
    column = (np.arctan2(-left, ahead) / (2 * np.pi) + 0.5) * 512 - 0.5
    row = (0.5 - np.arctan2(upwards, np.hypot(ahead, left)) / np.pi) * 256 - 0.5
    return cv2.remap(sphere, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR)


def camera_info(time_s: float, name: str, **changes):
    matrix = np.array([FOCAL, 0, (WIDTH - 1) / 2, 0, FOCAL, (HEIGHT - 1) / 2, 0, 0, 1.0])
    values = {
        "header": header(time_s, f"{name}_optical"), "height": HEIGHT, "width": WIDTH, "distortion_model": "plumb_bob",
        "d": np.zeros(5), "k": matrix, "r": np.eye(3).ravel(), "p": np.insert(matrix, [3, 6, 9], 0.0),
        "binning_x": 0, "binning_y": 0,
        "roi": TYPES["sensor_msgs/msg/RegionOfInterest"](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        ),
    }  # fmt: skip
    return TYPES[CAMERA_INFO](**{**values, **changes})


def optical_link(name: str, optical: bool = True):
    _, x, y, yaw = CAMERAS[name]
    turn = Rotation.from_euler("ZYX", [yaw, PITCH_DEG, 0.0], degrees=True)
    if optical:
        turn = turn * Rotation.from_euler("ZYX", [-90.0, 0.0, -90.0], degrees=True)
    rotation = TYPES["geometry_msgs/msg/Quaternion"](**dict(zip("xyzw", turn.as_quat().tolist(), strict=True)))
    return TYPES["geometry_msgs/msg/TransformStamped"](
        header=header(0.0, "base_link"),
        child_frame_id=f"{name}_optical",
        transform=TYPES["geometry_msgs/msg/Transform"](
            translation=TYPES["geometry_msgs/msg/Vector3"](x=x, y=y, z=CAMERA_HEIGHT_M), rotation=rotation
        ),
    )


def write_rig_drive(
    path: Path,
    world: World,
    frame: LocalFrame,
    *,
    seconds: float = 8.0,
    rate: float = 2.0,
    image: Callable[[str, float, np.ndarray], np.ndarray | None] = lambda name, time_s, pixels: pixels,
    optical: bool = True,
) -> Path:
    """Write a rosbag2 folder.

    image: called with (name, time, pixels) before an image is written; returns the pixels, or None for no image.
    optical: whether /tf_static holds optical frames, else those of the cameras' bodies under the same names.
    """
    driven = Circle()
    events = [(k / 20, "/odom", k / 20) for k in range(round(seconds * 20))]
    events += [(k / 20, "/ground_truth/odometry", k / 20) for k in range(round(seconds * 20))]
    events += [(k / 50, "/imu/data", k / 50) for k in range(round(seconds * 50))]
    for name, (offset_s, *_) in CAMERAS.items():
        for k in range(math.floor((seconds - 0.2) * rate)):
            exposed_s = k / rate + offset_s
            events.append((exposed_s + 0.03, name, exposed_s))
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        types = {"/odom": ODOMETRY, "/ground_truth/odometry": ODOMETRY, "/imu/data": IMU, "/tf_static": TF}
        for name in CAMERAS:  # the front camera sends raw images, the others compressed ones
            suffix, kind = ("", RAW_IMAGE) if name == "front" else ("/compressed", IMAGE)
            types |= {f"/{name}/image_raw{suffix}": kind, f"/{name}/camera_info": CAMERA_INFO}
        connections = {t: writer.add_connection(t, kind, typestore=STORE) for t, kind in types.items()}

        def write(topic, log_time_s, message):
            data = STORE.serialize_cdr(message, types[topic])
            writer.write(connections[topic], START_NS + round(log_time_s * 1e9), data)

        write("/tf_static", 0.0, TYPES[TF](transforms=[optical_link(name, optical) for name in CAMERAS]))
        x0, y0, _ = driven.pose(0.0)
        for log_time_s, topic, time_s in sorted(events):
            x, y, yaw = driven.pose(time_s)
            if topic in CAMERAS:
                pixels = camera_pixels(world, x, y, yaw, topic)
                pixels = image(topic, time_s, pixels)
                write(f"/{topic}/camera_info", log_time_s, camera_info(time_s, topic))
                if pixels is None:
                    continue
                if topic == "front":
                    message = TYPES[RAW_IMAGE](
                        header=header(time_s, "front_optical"), height=HEIGHT, width=WIDTH, encoding="rgb8",
                        is_bigendian=0, step=3 * WIDTH, data=pixels.ravel(),
                    )  # fmt: skip
                    write("/front/image_raw", log_time_s, message)
                else:
                    data = cv2.imencode(".png", pixels[:, :, ::-1])[1].ravel()
                    message = TYPES[IMAGE](header=header(time_s, f"{topic}_optical"), format="png", data=data)
                    write(f"/{topic}/image_raw/compressed", log_time_s, message)
            elif topic == "/imu/data":
                write(topic, log_time_s, imu(time_s, yaw))
            elif topic == "/odom":
                rate_rad_s = driven.speed_m_s / driven.radius_m
                message = odometry(time_s, "odom", x - x0, y - y0, yaw, driven.speed_m_s, rate_rad_s, 1e-4)
                write(topic, log_time_s, message)
            else:
                east, north = World.in_map(frame, x, y)
                message = odometry(time_s, "map", float(east), float(north), yaw, driven.speed_m_s, 0.0, 1e-4)
                write(topic, log_time_s, message)
    return path
