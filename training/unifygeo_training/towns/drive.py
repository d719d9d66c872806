"""A drive as a robot would have recorded it.

It is a rosbag2 with panoramas or the images of a rig, odometry, IMU and ground truth, and the town's orthophoto beside
it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterator, Sequence

import cv2
import numpy as np
import yaml
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation

from unifygeo_ros.core.arrays import Float64, UInt8
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.geodesy import Datum, LocalFrame, azimuth_from_yaw
from unifygeo_ros.core.time import NS_PER_S, ns_from_s, parts_from_stamp, stamp_from_parts
from unifygeo_ros.rig.description import RigDescription
from unifygeo_ros.rig.lenses import Lens
from unifygeo_training.towns.cameras import CameraPose, CameraRenderer
from unifygeo_training.towns.light import draw_appearance
from unifygeo_training.towns.orthophoto import render_orthophoto, write_geotiff
from unifygeo_training.towns.other_land import OtherLand
from unifygeo_training.towns.panorama import FULL_SPHERE, LitStage, View, light_stage, render_panorama, set_stage
from unifygeo_training.towns.rigged_vehicle import RiggedVehicle, calibration_of
from unifygeo_training.towns.scene import CRS, Town, geodetic_from_town
from unifygeo_training.towns.sensors import Imu, ImuNoise, Odometry, OdometryNoise, imu, wheel_odometry
from unifygeo_training.towns.town import build_town
from unifygeo_training.towns.trajectory import Drive, clear_the_way, plan_drive

EPOCH_NS = stamp_from_parts(1_750_000_000, 0)
"""Stamp of the start of every drive, so that the same command writes the same bag."""


@dataclass(frozen=True)
class DriveSettings:
    """What to record.

    base_link is the vehicle's middle on the ground.
    """

    length_m: float = 600.0
    number: int = 0
    """Of the drive. Another number gives another route, other errors and another light over the same imagery."""
    area_m: tuple[float, float, float, float] | None = None
    """West, south, east and north border of the drive, metres from the town's south-west corner; None: the town."""
    land: OtherLand | None = None
    """None: the land of training."""
    image_rate_hz: float = 2.0
    image_delay_s: float = 0.1
    """Time from the exposure, which is the stamp, to the recording, as a camera's driver needs it."""
    odometry_rate_hz: float = 20.0
    imu_rate_hz: float = 50.0
    lever_arm_m: tuple[float, float, float] = (0.2, 0.0, 2.0)
    """Camera in base_link, forward, left, up; its centre column faces forward."""
    view: View = FULL_SPHERE
    samples: int = 2
    jpeg_quality: int = 92
    """OpenCV's quality of the panoramas, 0 … 100."""
    orthophoto_jpeg_quality: int | None = None
    """None for lossless."""
    rig: RigDescription | None = None
    """The cameras, in place of one that takes panoramas. `lever_arm_m`, `view` and `samples` then say nothing."""
    image_scale: float = 1.0
    """Size of the rig's images against those of the rig file."""
    exposure_spread_s: float = 0.08
    """The cameras of a rig expose one after the other, clockwise from the first one: so long for a whole turn."""
    odometry_noise: OdometryNoise = field(default_factory=OdometryNoise)
    imu_noise: ImuNoise = field(default_factory=ImuNoise)


@dataclass(frozen=True)
class Truth:
    """Ground truth at some times, arrays (n,): base_link in the map frame of the town's datum, and in WGS84."""

    time_s: Float64
    east_m: Float64
    north_m: Float64
    yaw_rad: Float64
    latitude_deg: Float64
    longitude_deg: Float64
    speed_m_s: Float64
    yaw_rate_rad_s: Float64


def town_datum(town: Town) -> Datum:
    """The middle of the town, rounded to 1e-7°, which is also the default datum of an index of its orthophoto."""
    middle = np.array([[town.size_m / 2, town.size_m / 2]])
    latitude, longitude = geodetic_from_town(town.origin, middle)[0]
    return Datum(round(float(latitude), 7), round(float(longitude), 7))


def ground_truth(town: Town, drive: Drive, time_s: Float64) -> Truth:
    """Truth in the map frame: through pyproj, so the grid's scale (0.9996) and convergence are in it."""
    motion = drive.at(time_s)
    here = np.stack([motion.x_m, motion.y_m], axis=1)
    ahead = here + np.stack([np.cos(motion.yaw_rad), np.sin(motion.yaw_rad)], axis=1)
    frame = LocalFrame(town_datum(town))
    geodetic = geodetic_from_town(town.origin, here)
    position = frame.map_from_geodetic(geodetic[:, 0], geodetic[:, 1])
    beyond = frame.map_from_geodetic(*geodetic_from_town(town.origin, ahead).T)
    d = beyond - position
    scale = np.hypot(*d.T)
    return Truth(
        motion.time_s,
        position[:, 0],
        position[:, 1],
        np.arctan2(d[:, 1], d[:, 0]),
        geodetic[:, 0],
        geodetic[:, 1],
        motion.speed_m_s * scale,
        motion.yaw_rate_rad_s,
    )


def record_drive(
    seed: int, output: Path, settings: DriveSettings | None = None, *, size_m: float = 600.0, progress: bool = False
) -> Path:
    """Writes `town.tif`, `bag/` and `README.md`, of a rig `rig.yaml` too, into the new folder `output`."""
    settings = settings or DriveSettings()
    rig = None
    if settings.rig is not None:
        if settings.land is not None:
            raise ConfigurationError("the camera of the other land takes panoramas; record it without a rig")
        rig = RiggedVehicle.of(settings.rig, settings.image_scale, settings.exposure_spread_s, settings.image_rate_hz)
    if output.exists() and any(output.iterdir()):
        raise ConfigurationError(f"{output} is not empty; give a new folder")
    output.mkdir(parents=True, exist_ok=True)
    town = build_town(seed, size_m)
    drive = plan_drive(town, seed, settings.length_m, number=settings.number, area_m=settings.area_m)
    land = settings.land
    appearance = draw_appearance if land is None else land.appearance
    flown = town
    if land is not None:
        before, town = town, land.changed(town)
        flown = land.flown(town, before)
    rng = np.random.default_rng([seed, 3])
    orthophoto = render_orthophoto(flown, appearance(rng))
    origin, metres_per_pixel = town.origin, town.metres_per_pixel
    if land is not None:
        orthophoto, origin, metres_per_pixel = land.imagery(orthophoto, town)
    write_geotiff(output / "town.tif", orthophoto, origin, metres_per_pixel, settings.orthophoto_jpeg_quality)
    if settings.number:
        rng = np.random.default_rng([seed, 3, settings.number])
    odometry = wheel_odometry(rng, drive, settings.odometry_rate_hz, settings.odometry_noise)
    inertial = imu(rng, drive, settings.imu_rate_hz, settings.imu_noise)
    objects = clear_the_way(town, drive)
    if rig is not None:
        objects = rig.clear_the_way(objects, drive)
    lit = light_stage(set_stage(replace(town, objects=objects)), appearance(rng))
    build = _Messages(get_typestore(Stores.ROS2_JAZZY).types)
    if rig is None:
        images = _panoramas(build, lit, drive, settings, progress)
        mounts = [("camera", Rotation.identity(), np.array(settings.lever_arm_m))]
    else:
        images = _rig_images(build, lit, drive, rig, settings, progress)
        mounts = rig.mounts()
        (output / "rig.yaml").write_text(yaml.safe_dump(rig.file(), sort_keys=False))
    truth = ground_truth(town, drive, odometry.time_s)
    _write_bag(output / "bag", settings, build, truth, odometry, inertial, images, mounts)
    (output / "README.md").write_text(_readme(town, drive, settings, rig))
    return output


Recorded = tuple[str, int, Any]
"""Topic, time of recording (ns), message."""


def _panoramas(
    build: _Messages, lit: LitStage, drive: Drive, settings: DriveSettings, progress: bool
) -> Iterator[Recorded]:
    from tqdm import tqdm

    delay_ns = ns_from_s(settings.image_delay_s)
    times = np.arange(0, drive.duration_s, 1 / settings.image_rate_hz)
    motion = drive.at(times)
    forward, left, up = settings.lever_arm_m
    for k in tqdm(range(len(times)), unit="image", disable=not progress):
        c, s = np.cos(motion.yaw_rad[k]), np.sin(motion.yaw_rad[k])
        pixels = render_panorama(
            lit,
            motion.x_m[k] + forward * c - left * s,
            motion.y_m[k] + forward * s + left * c,
            settings.view,
            height_m=up,
            azimuth_rad=azimuth_from_yaw(float(motion.yaw_rad[k])),
            noise_seed=k,
            samples=settings.samples,
        )
        if settings.land is not None:
            pixels = settings.land.photograph(pixels, settings.view, k)
        stamp = _stamp_ns(times[k])
        message = build.image(_jpeg(pixels, settings), stamp, "camera")
        yield "/camera/image/compressed", stamp + delay_ns, message


def _rig_images(
    build: _Messages, lit: LitStage, drive: Drive, rig: RiggedVehicle, settings: DriveSettings, progress: bool
) -> Iterator[Recorded]:
    """Images and CameraInfo of each camera, as each exposes."""
    from tqdm import tqdm

    delay_ns = ns_from_s(settings.image_delay_s)
    renderers = {camera.name: CameraRenderer(camera, rig.rig.ground_z_m) for camera in rig.rig.cameras}
    exposures = rig.exposures(drive)
    for number, (time_s, topic) in enumerate(tqdm(exposures, unit="image", disable=not progress)):
        motion = drive.at(time_s)
        pose = CameraPose(float(motion.x_m[0]), float(motion.y_m[0]), float(motion.yaw_rad[0]))
        stamp = _stamp_ns(time_s)
        names = rig.topics[topic]
        pixels = renderers[names[0]].image(lit, pose, (number, 0))
        for i, name in enumerate(names[1:], 1):  # the circles of one image
            shown = renderers[name].shown
            pixels[shown] = renderers[name].image(lit, pose, (number, i))[shown]
        yield topic, stamp + delay_ns, build.image(_jpeg(pixels, settings), stamp, rig.frames[names[0]])
        for name in names:
            if name in rig.info_topics:
                info = build.camera_info(rig.camera(name).lens, stamp, rig.frames[name])
                yield rig.info_topics[name], stamp + delay_ns, info


def _jpeg(pixels: UInt8, settings: DriveSettings) -> bytes:
    done, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, settings.jpeg_quality])
    assert done
    return data.tobytes()


def _stamp_ns(time_s: float) -> int:
    return EPOCH_NS + ns_from_s(time_s)


def _write_bag(
    folder: Path,
    settings: DriveSettings,
    build: _Messages,
    truth: Truth,
    odometry: Odometry,
    inertial: Imu,
    images: Iterator[Recorded],
    mounts: Sequence[tuple[str, Rotation, Float64]],
) -> None:
    """Merges all topics by the time of recording into one rosbag2. mounts: frame, turn and position of each camera."""
    store = get_typestore(Stores.ROS2_JAZZY)
    streams = [
        _series("/odom", odometry.time_s, lambda k, t: build.odometry(odometry, settings.odometry_noise, k, t)),
        _series("/imu/data", inertial.time_s, lambda k, t: build.imu(inertial, settings.imu_noise, k, t)),
        _series("/ground_truth/odometry", truth.time_s, lambda k, t: build.truth(truth, k, t)),
        _series("/ground_truth/navsat", truth.time_s, lambda k, t: build.navsat(truth, k, t)),
        images,
        iter([("/tf_static", EPOCH_NS, build.mounts(mounts))]),
    ]
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections: dict[str, Any] = {}
        for topic, recorded_ns, message in heapq.merge(*streams, key=lambda item: item[1]):
            kind = message.__msgtype__
            if topic not in connections:
                latched = [LATCHED] if topic == "/tf_static" else []
                connections[topic] = writer.add_connection(topic, kind, typestore=store, offered_qos_profiles=latched)
            writer.write(connections[topic], recorded_ns, store.serialize_cdr(message, kind))


_FOREVER = QosTime(9223372036, 854775807)
"""rclcpp's infinite duration, as `ros2 bag record` writes it."""

LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    deadline=_FOREVER,
    lifespan=_FOREVER,
    liveliness=QosLiveliness.AUTOMATIC,
    liveliness_lease_duration=_FOREVER,
    avoid_ros_namespace_conventions=False,
)
"""What tf2 publishes /tf_static with: `ros2 bag play` takes it from the bag, and who listens later gets it still."""


def _series(topic: str, time_s: Float64, message: Any) -> Iterator[tuple[str, int, Any]]:
    for k, t in enumerate(time_s):
        stamp = _stamp_ns(float(t))
        yield topic, stamp, message(k, stamp)


class _Messages:
    """ROS messages from samples."""

    def __init__(self, types: dict[str, Any]) -> None:
        self._types = types

    def _make(self, name: str, **fields: Any) -> Any:
        return self._types[name](**fields)

    def _header(self, stamp_ns: int, frame: str) -> Any:
        seconds, nanoseconds = parts_from_stamp(stamp_ns)
        time = self._make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
        return self._make("std_msgs/msg/Header", stamp=time, frame_id=frame)

    def _vector(self, x: float, y: float, z: float) -> Any:
        return self._make("geometry_msgs/msg/Vector3", x=float(x), y=float(y), z=float(z))

    def _quaternion(self, roll: float, pitch: float, yaw: float) -> Any:
        """Fixed-axis roll, pitch, yaw (REP-103)."""
        cr, sr, cp, sp = np.cos(roll / 2), np.sin(roll / 2), np.cos(pitch / 2), np.sin(pitch / 2)
        cy, sy = np.cos(yaw / 2), np.sin(yaw / 2)
        return self._make(
            "geometry_msgs/msg/Quaternion",
            x=float(sr * cp * cy - cr * sp * sy),
            y=float(cr * sp * cy + sr * cp * sy),
            z=float(cr * cp * sy - sr * sp * cy),
            w=float(cr * cp * cy + sr * sp * sy),
        )

    def _odometry(
        self,
        stamp_ns: int,
        frame: str,
        pose: tuple[float, float, float],
        twist: tuple[float, float],
        pose_variances: tuple[float, float, float],
        twist_variances: tuple[float, float],
    ) -> Any:
        x, y, yaw = pose
        planar = 1e-6  # z, roll and pitch of a vehicle on flat ground
        position, turn = pose_variances[0], pose_variances[2]
        point = self._make("geometry_msgs/msg/Point", x=float(x), y=float(y), z=0.0)
        pose_message = self._make("geometry_msgs/msg/Pose", position=point, orientation=self._quaternion(0.0, 0.0, yaw))
        twist_message = self._make(
            "geometry_msgs/msg/Twist", linear=self._vector(twist[0], 0, 0), angular=self._vector(0, 0, twist[1])
        )
        return self._make(
            "nav_msgs/msg/Odometry",
            header=self._header(stamp_ns, frame),
            child_frame_id="base_link",
            pose=self._make(
                "geometry_msgs/msg/PoseWithCovariance",
                pose=pose_message,
                covariance=np.diag([position, pose_variances[1], planar, planar, planar, turn]).ravel(),
            ),
            twist=self._make(
                "geometry_msgs/msg/TwistWithCovariance",
                twist=twist_message,
                covariance=np.diag([twist_variances[0], planar, planar, planar, planar, twist_variances[1]]).ravel(),
            ),
        )

    def odometry(self, o: Odometry, noise: OdometryNoise, k: int, stamp_ns: int) -> Any:
        """Pose covariance grows with what was driven, as a wheel odometry driver would state it."""
        interval = o.time_s[1] - o.time_s[0]
        driven = float(np.sum(o.speed_m_s[1 : k + 1])) * interval
        yaw = (noise.yaw_rate_bias_rad_s * o.time_s[k]) ** 2 + noise.yaw_rate_rad_s**2 * k * interval**2 + 1e-6
        position = (noise.scale * driven) ** 2 + yaw * driven**2 / 3 + 1e-4
        return self._odometry(
            stamp_ns,
            "odom",
            (o.x_m[k], o.y_m[k], o.yaw_rad[k]),
            (o.speed_m_s[k], o.yaw_rate_rad_s[k]),
            (position, position, yaw),
            (
                (noise.scale * o.speed_m_s[k]) ** 2 + noise.speed_m_s**2,
                noise.yaw_rate_bias_rad_s**2 + noise.yaw_rate_rad_s**2,
            ),
        )

    def truth(self, truth: Truth, k: int, stamp_ns: int) -> Any:
        tiny = 1e-8
        return self._odometry(
            stamp_ns,
            "map",
            (truth.east_m[k], truth.north_m[k], truth.yaw_rad[k]),
            (truth.speed_m_s[k], truth.yaw_rate_rad_s[k]),
            (tiny, tiny, tiny),
            (tiny, tiny),
        )

    def navsat(self, truth: Truth, k: int, stamp_ns: int) -> Any:
        kind = self._types["sensor_msgs/msg/NavSatFix"]
        return self._make(
            "sensor_msgs/msg/NavSatFix",
            header=self._header(stamp_ns, "base_link"),
            status=self._make("sensor_msgs/msg/NavSatStatus", status=0, service=1),
            latitude=float(truth.latitude_deg[k]),
            longitude=float(truth.longitude_deg[k]),
            altitude=0.0,
            position_covariance=np.diag([1e-8, 1e-8, 1e-8]).ravel(),
            position_covariance_type=kind.COVARIANCE_TYPE_KNOWN,
        )

    def imu(self, i: Imu, noise: ImuNoise, k: int, stamp_ns: int) -> Any:
        yaw = noise.yaw_bias_rad**2 + noise.yaw_walk_rad_sqrt_s**2 * i.time_s[k] + noise.yaw_rad**2
        rate = noise.gyro_bias_rad_s**2 + noise.gyro_rad_s**2
        force = noise.accelerometer_bias_m_s2**2 + noise.accelerometer_m_s2**2
        return self._make(
            "sensor_msgs/msg/Imu",
            header=self._header(stamp_ns, "base_link"),
            orientation=self._quaternion(i.roll_rad[k], i.pitch_rad[k], i.yaw_rad[k]),
            orientation_covariance=np.diag([noise.tilt_rad**2, noise.tilt_rad**2, yaw]).ravel(),
            angular_velocity=self._vector(*i.rates[k]),
            angular_velocity_covariance=np.diag([rate] * 3).ravel(),
            linear_acceleration=self._vector(*i.accelerations[k]),
            linear_acceleration_covariance=np.diag([force] * 3).ravel(),
        )

    def image(self, data: bytes, stamp_ns: int, frame: str) -> Any:
        return self._make(
            "sensor_msgs/msg/CompressedImage",
            header=self._header(stamp_ns, frame),
            format="rgb8; jpeg compressed bgr8",
            data=np.frombuffer(data, np.uint8),
        )

    def camera_info(self, lens: Lens, stamp_ns: int, frame: str) -> Any:
        calibration = calibration_of(lens)
        assert calibration is not None  # such cameras have no topic for it
        model, k, d = calibration
        p = np.zeros((3, 4))
        p[:, :3] = k
        roi = self._make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self._make(
            "sensor_msgs/msg/CameraInfo",
            header=self._header(stamp_ns, frame),
            height=lens.height,
            width=lens.width,
            distortion_model=model,
            d=d,
            k=k.ravel(),
            r=np.eye(3).ravel(),
            p=p.ravel(),
            binning_x=0,
            binning_y=0,
            roi=roi,
        )

    def mounts(self, mounts: Sequence[tuple[str, Rotation, Float64]]) -> Any:
        """/tf_static with frames of cameras in base_link."""
        transforms = []
        for frame, turn, position in mounts:
            x, y, z, w = (float(value) for value in turn.as_quat())
            transforms.append(
                self._make(
                    "geometry_msgs/msg/TransformStamped",
                    header=self._header(EPOCH_NS, "base_link"),
                    child_frame_id=frame,
                    transform=self._make(
                        "geometry_msgs/msg/Transform",
                        translation=self._vector(*position),
                        rotation=self._make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
                    ),
                )
            )
        return self._make("tf2_msgs/msg/TFMessage", transforms=transforms)


def _readme(town: Town, drive: Drive, settings: DriveSettings, rig: RiggedVehicle | None) -> str:
    datum = town_datum(town)
    odometry, inertial = settings.odometry_noise, settings.imu_noise
    middle = "orthophoto" if settings.land is None else "town"
    return f"""# Town {town.seed}, a drive of {drive.length_m:.0f} m in {drive.duration_s:.0f} s

{_imagery_words(town, settings)}. `bag`: rosbag2 (mcap). Made by
`unifygeo-train towns drive`; nothing in it is a photograph.

- Frame `map`: east-north-up about latitude {datum.latitude_deg:.7f}, longitude {datum.longitude_deg:.7f} (WGS84), the
  middle of the {middle}. Poses are of `base_link`: the vehicle's middle, on the ground.
{_panorama_words(settings) if rig is None else rig.words(settings.image_delay_s)}
- `/odom`, {settings.odometry_rate_hz:g} Hz: wheels, with {odometry.scale:.0%} scale error (one standard deviation)
  and a yaw that drifts; starts at zero.
- `/imu/data`, {settings.imu_rate_hz:g} Hz: yaw counter-clockwise from east, with a bias of about
  {np.degrees(inertial.yaw_bias_rad):g}° (one standard deviation) that walks.
- `/ground_truth/odometry` (frame `map`) and `/ground_truth/navsat`, {settings.odometry_rate_hz:g} Hz: exact.
- Stamps start at {EPOCH_NS // NS_PER_S} s; the same command writes the same messages.
"""


def _imagery_words(town: Town, settings: DriveSettings) -> str:
    if settings.land is None:
        return f"`town.tif`: orthophoto, {CRS}, {town.metres_per_pixel} m per pixel"
    datum = town_datum(town)
    return (
        f"`town.tif`: orthophoto of another land ({_land_words(settings.land)}), {CRS}, coarser, shifted and\n"
        "older than the drive. Its middle is not the origin of frame `map` below: judge with the truth's own datum,\n"
        f"`--truth-frame {datum.latitude_deg:.7f},{datum.longitude_deg:.7f}`"
    )


def _land_words(land: OtherLand) -> str:
    return f"strength {land.strength:g}" + (", infrared" if land.infrared else "")


def _panorama_words(settings: DriveSettings) -> str:
    arm, view = settings.lever_arm_m, settings.view
    rate_hz, delay_s = settings.image_rate_hz, settings.image_delay_s
    return f"""- `/camera/image/compressed`, {rate_hz:g} Hz, recorded {delay_s:g} s after the exposure, whose time
  the stamp is: equirectangular, {view.width} × {view.height}, the whole sphere; azimuth grows to the right; the
  centre column looks along base_link's x. The camera is at ({arm[0]:g}, {arm[1]:g}, {arm[2]:g}) m in base_link
  (`/tf_static`)."""
