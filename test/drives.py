"""A drive through the flat world of `worlds.py`, recorded as a bag with every sensor that the replay reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from worlds import CENTRE_E_M, CENTRE_N_M, World, to_geodetic

from unifygeo_ros.core.geodesy import LocalFrame

START_NS = 1_700_000_000_000_000_000
STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
IMAGE, RAW_IMAGE, ODOMETRY, IMU, NAVSATFIX = (
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/Image",
    "nav_msgs/msg/Odometry",
    "sensor_msgs/msg/Imu",
    "sensor_msgs/msg/NavSatFix",
)


@dataclass(frozen=True)
class Circle:
    """A round of 30 m radius about the world's centre, counter-clockwise at 5 m/s."""

    radius_m: float = 30.0
    speed_m_s: float = 5.0

    def pose(self, time_s: float) -> tuple[float, float, float]:
        """x, y (m, from the world's centre), yaw."""
        angle = self.speed_m_s / self.radius_m * time_s
        return self.radius_m * math.cos(angle), self.radius_m * math.sin(angle), angle + math.pi / 2


def header(time_s: float, frame: str):
    seconds, nanoseconds = divmod(START_NS + round(time_s * 1e9), 10**9)
    stamp = TYPES["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
    return TYPES["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)


def vector(x=0.0, y=0.0, z=0.0):
    return TYPES["geometry_msgs/msg/Vector3"](x=x, y=y, z=z)


def quaternion(yaw: float):
    return TYPES["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=math.sin(yaw / 2), w=math.cos(yaw / 2))


def odometry(time_s: float, frame: str, x: float, y: float, yaw: float, speed: float, rate: float, variance: float):
    pose = TYPES["geometry_msgs/msg/Pose"](
        position=TYPES["geometry_msgs/msg/Point"](x=x, y=y, z=0.0), orientation=quaternion(yaw)
    )
    covariance = (np.eye(6) * variance).ravel()
    return TYPES[ODOMETRY](
        header=header(time_s, frame),
        child_frame_id="base_link",
        pose=TYPES["geometry_msgs/msg/PoseWithCovariance"](pose=pose, covariance=covariance),
        twist=TYPES["geometry_msgs/msg/TwistWithCovariance"](
            twist=TYPES["geometry_msgs/msg/Twist"](linear=vector(x=speed), angular=vector(z=rate)),
            covariance=covariance,
        ),
    )


def imu(time_s: float, yaw: float):
    return TYPES[IMU](
        header=header(time_s, "base_link"),
        orientation=quaternion(yaw),
        orientation_covariance=np.diag([1e-4, 1e-4, 1e-3]).ravel(),
        angular_velocity=vector(),
        angular_velocity_covariance=np.zeros(9),
        linear_acceleration=vector(z=9.81),
        linear_acceleration_covariance=np.zeros(9),
    )


def navsatfix(time_s: float, x: float, y: float, sigma_m: float):
    longitude, latitude = to_geodetic().transform(CENTRE_E_M + x, CENTRE_N_M + y)
    return TYPES[NAVSATFIX](
        header=header(time_s, "gps"),
        status=TYPES["sensor_msgs/msg/NavSatStatus"](status=0, service=1),
        latitude=latitude,
        longitude=longitude,
        altitude=300.0,
        position_covariance=np.diag([sigma_m**2, sigma_m**2, 1.0]).ravel(),
        position_covariance_type=2,
    )


def image(time_s: float, pixels: np.ndarray):
    encoded = cv2.imencode(".png", pixels[:, :, ::-1])[1].ravel()
    return TYPES[IMAGE](header=header(time_s, "camera"), format="rgb8; png compressed bgr8", data=encoded)


def raw_image(time_s: float, pixels: np.ndarray):
    """bgr8, each row padded to a multiple of 64 bytes and more."""
    height, width = pixels.shape[:2]
    rows = np.pad(pixels[:, :, ::-1].reshape(height, -1), ((0, 0), (0, 64 - (3 * width) % 64)))
    return TYPES[RAW_IMAGE](
        header=header(time_s, "camera"), height=height, width=width, encoding="bgr8", is_bigendian=0,
        step=rows.shape[1], data=rows.ravel(),
    )  # fmt: skip


def write_drive(
    path: Path,
    world: World,
    frame: LocalFrame,
    *,
    seconds: float = 12.0,
    image_rate: float = 2.0,
    image_delay_s: float = 0.0,
    raw: bool = False,
    storage: StoragePlugin = StoragePlugin.MCAP,
    path_driven: Circle = Circle(),
) -> Path:
    """Write a rosbag2 folder: images at `image_rate`, recorded `image_delay_s` after their exposure, wheel odometry (1%
    scale error) at 20 Hz, IMU at 50 Hz, truth as Odometry at 20 Hz and as NavSatFix at 5 Hz."""
    topics = {
        "/camera/image/compressed": RAW_IMAGE if raw else IMAGE,
        "/odom": ODOMETRY,
        "/imu/data": IMU,
        "/ground_truth/odometry": ODOMETRY,
        "/ground_truth/navsat": NAVSATFIX,
    }
    events: list[tuple[float, str, float]] = []  # recorded at, topic, time of what it tells
    for topic, rate in zip(topics, (image_rate, 20.0, 50.0, 20.0, 5.0), strict=True):
        delay_s = image_delay_s if topic.startswith("/camera") else 0.0
        events += [(k / rate + delay_s, topic, k / rate) for k in range(math.floor(seconds * rate) + 1)]
    rate = path_driven.speed_m_s / path_driven.radius_m
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections = {t: writer.add_connection(t, name, typestore=STORE) for t, name in topics.items()}
        for log_time_s, topic, time_s in sorted(events):
            x, y, yaw = path_driven.pose(time_s)
            x0, y0, _ = path_driven.pose(0.0)
            if topic == "/camera/image/compressed":
                # The camera looks ahead; an azimuth is clockwise from north.
                message = (raw_image if raw else image)(time_s, world.panorama(x, y, math.pi / 2 - yaw))
            elif topic == "/odom":
                scale = 1.01
                message = odometry(
                    time_s, "odom", scale * (x - x0), scale * (y - y0), yaw, path_driven.speed_m_s, rate, 1e-3
                )
            elif topic == "/imu/data":
                message = imu(time_s, yaw)
            elif topic == "/ground_truth/odometry":
                east, north = World.in_map(frame, x, y)
                message = odometry(time_s, "map", float(east), float(north), yaw, path_driven.speed_m_s, rate, 1e-4)
            else:
                message = navsatfix(time_s, x, y, 0.02)
            log_time_ns = START_NS + round(log_time_s * 1e9)
            writer.write(connections[topic], log_time_ns, STORE.serialize_cdr(message, topics[topic]))
    return path
