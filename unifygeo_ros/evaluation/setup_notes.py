"""What a replay was set up with, in words, and what to check where it hardly gives fixes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Iterable

from unifygeo_ros.conversions.sensor_frames import SensorFrames, frame_name
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.geodesy import wrap_angle
from unifygeo_ros.core.records import Fix, Rejection
from unifygeo_ros.evaluation.metrics.results import FrameResult
from unifygeo_ros.evaluation.recordings.bags import Bag, BagTopic
from unifygeo_ros.evaluation.recordings.recorded_mount import recorded_mount
from unifygeo_ros.evaluation.recordings.static_transforms import StaticTransforms
from unifygeo_ros.evaluation.recordings.truth_sources import GEODETIC_TYPE
from unifygeo_ros.evaluation.replay import ODOMETRY_TYPES, Topics
from unifygeo_ros.localization.config import CameraMount
from unifygeo_ros.motion.samples import roll_pitch_yaw
from unifygeo_ros.parameters.settings import Settings

SCARCE = 0.1
"""With fixes for a smaller share of the images than this, the report says what to check."""

_SAME_PLACE_M = 0.05
_SAME_ANGLE_RAD = math.radians(1.0)


def setup_text(settings: Settings, topics: Topics, frames: SensorFrames) -> str:
    """Mount, heading source, mode and the sensors' frames, with where each comes from."""
    session, node = settings.session, settings.node
    origin = f"/tf_static, frame {node.camera_frame}" if node.camera_frame else "parameters"
    if topics.rig is not None:
        origin = f"centre of the rig of {', '.join(camera.name for camera in topics.rig.rig.cameras)}"
    sources = {"imu": topics.imu, "odometry": topics.odometry}
    heading = {"none": "searched for", "constant": f"constant, {math.degrees(session.heading_constant_rad):.1f}°"}.get(
        session.heading_source, session.heading_source
    )
    if session.heading_source in sources:
        source = sources[session.heading_source]
        heading += f" {source.name}" if source else ", but the replay has no such topic"
    odometry = topics.odometry.name if topics.odometry else "none"
    text = f"Mode {session.mode}; heading: {heading}; odometry: {odometry}; mount: {_mount(settings.camera)} ({origin})"
    if session.stamp_offset_s:
        text += f"; stamps {session.stamp_offset_s:+g} s"
    for frame, where in frames.known().items():
        text += (
            f"; {where}" if where.startswith("frame ") else f"; {frame} on {frames.base_frame}: {where} (/tf_static)"
        )
    return text + "."


def frame_notes(bag: Bag, topics: Topics, frames: SensorFrames) -> list[str]:
    """Look up the frames of the first IMU and odometry messages. Returns why messages will be refused, if they are."""
    notes = []
    for topic, field in ((topics.imu, "header"), (topics.odometry, "child")):
        first = None if topic is None else _first_message(bag, topic.name)
        if topic is None or first is None:
            continue
        try:
            frames.pose(first.header.frame_id if field == "header" else first.child_frame_id)
        except InputError as error:
            notes.append(f"Messages of {topic.name} will be refused, {error}")
    return notes


def mount_note(bag: Bag, transforms: StaticTransforms, image_topic: str, settings: Settings) -> str | None:
    """Compare the mount with the one that the bag's static transforms give for the images' frame.

    Returns:
        What differs and how to use the recorded mount; None where nothing differs or nothing is recorded.
    """
    if settings.node.camera_frame:
        return None
    first, base = _first_message(bag, image_topic), settings.node.base_frame
    frame = "" if first is None else frame_name(first.header.frame_id)
    if not frame or not {frame, base} <= transforms.frames:
        return None
    try:
        recorded = recorded_mount(transforms, settings.camera, base, frame)
    except ConfigurationError as error:
        return f"The images' frame {frame} is in /tf_static, but cannot serve as the camera's mount: {error}."
    used = settings.camera
    same = (
        math.hypot(recorded.x_m - used.x_m, recorded.y_m - used.y_m) <= _SAME_PLACE_M
        and all(
            abs(wrap_angle(a - b)) <= _SAME_ANGLE_RAD for a, b in zip(_angles(recorded), _angles(used), strict=True)
        )
        and recorded.upside_down == used.upside_down
    )
    if same:
        return None
    return (
        f"The bag's /tf_static has the images' frame {frame} at {_mount(recorded)} on {base}, the replay uses "
        f"{_mount(used)}. To take the recorded mount: --set camera_frame={frame}"
    )


def truth_note(bag: Bag, transforms: StaticTransforms, topic: BagTopic, settings: Settings) -> str | None:
    """Say where the ground truth is not base_frame's by its own frame, and which options correct it.

    Of an Odometry the child frame counts. A NavSatFix has the antenna's frame, which is compared where /tf_static knows
    it. Poses name no frame of their own. What differs from message to message is not looked for.
    """
    first, base = _first_message(bag, topic.name), settings.node.base_frame
    geodetic = topic.type == GEODETIC_TYPE
    if first is None or not (geodetic or topic.type in ODOMETRY_TYPES):
        return None
    frame = frame_name(first.header.frame_id if geodetic else first.child_frame_id)
    transform = transforms.transform(base, frame)
    if frame in ("", base) or (geodetic and transform is None):
        return None
    what = f"The ground truth {topic.name} is of the frame {frame}, but it is judged as {base}'s"
    if transform is None:
        return f"{what}; /tf_static does not connect them. Give its place by --truth-x-m and --truth-y-m."
    t, q = transform.translation, transform.rotation
    turn_rad = 0.0 if geodetic else roll_pitch_yaw(q.x, q.y, q.z, q.w)[2]
    if math.hypot(t.x, t.y) <= _SAME_PLACE_M and abs(turn_rad) <= _SAME_ANGLE_RAD:
        return None
    note = f"{what}. By /tf_static it is at --truth-x-m {t.x:.2f} --truth-y-m {t.y:.2f}."
    if abs(turn_rad) > _SAME_ANGLE_RAD:
        note += f" It is turned by {math.degrees(turn_rad):.1f}°, which no option corrects: ignore the errors of yaw."
    return note


def advice(results: Iterable[FrameResult], settings: Settings, topics: Topics) -> tuple[str, ...]:
    """What to check in the set-up, the likeliest cause first; empty where enough images got a fix."""
    images = fixes = searched = without_heading = outside = 0
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for result in results:
        images += 1
        if isinstance(result.outcome, Rejection):
            reason = result.outcome.reason.value
            reasons[reason] += 1
            examples.setdefault(reason, result.outcome.detail)
        fixes += isinstance(result.outcome, Fix)
        if result.query is not None:
            searched += 1
            without_heading += result.query.heading is None
            outside += result.truth is not None and result.ranks is None and result.tiles is not None
    if not images or fixes >= SCARCE * images:
        return ()
    session = settings.session
    made = [f"Most images were rejected as {reason.replace('_', ' ')}: {examples[reason]}." for reason, _ in
            reasons.most_common(1)]  # fmt: skip
    if outside > images / 2:
        made.append(f"The ground truth of {outside} images is outside the index: give the index of the place.")
    if session.mode == "sequence" and topics.odometry is None:
        made.append("session.mode is sequence without odometry: name its topic by --odometry-topic.")
    if session.heading_source == "none":
        made.append(
            "session.heading_source is none, so that every heading is searched for; in mode single that hardly ever "
            "gives a fix. Set it to imu or odometry where there is one."
        )
    elif without_heading > searched / 2:
        made.append(
            f"session.heading_source is {session.heading_source}, but {without_heading} of {searched} images had no "
            "heading from it: check its topic, and that its stamps reach those of the images (session.extrapolation_s)."
        )
    else:
        made.append(
            "A heading that is off by more than about 10° prevents fixes: check session.imu_yaw_offset_rad (yaw is "
            "counter-clockwise from east) and "
            + ("camera.yaw_rad." if topics.rig is None else "the mounts of the rig's cameras.")
        )
    if topics.rig is None:
        made.append(
            f"The mount is {_mount(settings.camera)}: camera.yaw_rad is where the middle column of the image looks, "
            "counter-clockwise from base_link's x axis."
        )
    else:
        made.append("Whether the rig's cameras are as described: unifygeo rig check BAG --rig … --plot rig.png.")
    if session.mode == "single" and topics.odometry is not None:
        made.append("session.mode is single; sequence also uses the odometry and gives far more fixes.")
    if not session.stamp_offset_s:
        made.append("session.stamp_offset_s is 0: a camera driver that stamps late needs its delay there, negative.")
    return tuple(made)


def _mount(camera: CameraMount) -> str:
    text = f"x {camera.x_m:.2f} m, y {camera.y_m:.2f} m, yaw {math.degrees(camera.yaw_rad):.1f}°"
    if camera.pitch_rad or camera.roll_rad:
        text += f", pitch {math.degrees(camera.pitch_rad):.1f}°, roll {math.degrees(camera.roll_rad):.1f}°"
    return text + (", upside down" if camera.upside_down else "")


def _angles(camera: CameraMount) -> tuple[float, float, float]:
    return camera.yaw_rad, camera.pitch_rad, camera.roll_rad


def _first_message(bag: Bag, topic: str) -> Any:
    """A topic's first readable message, or None."""
    for message in bag.messages([topic]):
        try:
            return bag.deserialize(message)
        except InputError:
            continue
    return None
