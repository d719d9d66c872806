"""Is a rig's description right? What its cameras see together, judged and drawn: `unifygeo rig check`."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Mapping

import numpy as np
from scipy.spatial.transform import Rotation

from unifygeo_ros.conversions.from_messages import camera_image, stamp_ns
from unifygeo_ros.core.arrays import Float64, UInt8
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.paths import home_path
from unifygeo_ros.core.time import NS_PER_S, s_from_ns
from unifygeo_ros.evaluation.recordings.bags import Bag
from unifygeo_ros.evaluation.recordings.recorded_rig import AUTO, recorded_rig
from unifygeo_ros.evaluation.recordings.static_transforms import RecordedFrames, StaticTransforms
from unifygeo_ros.evaluation.replay import RecordedMotion, choose_topics
from unifygeo_ros.motion.increments import MotionNoise
from unifygeo_ros.motion.samples import MotionBuffer, OdometrySample
from unifygeo_ros.parameters.settings import Settings
from unifygeo_ros.rig.composer import STANDING, CameraView, Composed, Composer
from unifygeo_ros.rig.description import read_rig
from unifygeo_ros.rig.folder import SUFFIXES, read_folder
from unifygeo_ros.rig.image_check import image_problem
from unifygeo_ros.rig.pairing import ImageSet, Pairing
from unifygeo_ros.rig.rig import BODY_FROM_OPTICAL, Rig, RigCamera
from unifygeo_ros.rig.seams import LEAST_MATCHES, MAX_OFFSET_DEG, Seam, camera_turns, joined, match_seams
from unifygeo_ros.sessions.inputs import SessionInputs

COLUMNS = 2048
"""Of the panorama in which features are matched: 0.18° each."""
LEAST_OFFSET_DEG = 0.5
"""Smaller disagreements are not reported."""
NEAR = 0.4
"""Things nearer than this share of `Rig.distance_m` (12 m of 30 m) are few among the matched features: so much parallax
is allowed for."""
LEAST_DETECTED = 50
"""Two cameras that each show so many features in their overlap should have some of them in common."""
LARGE_GAIN = 1.4
"""A camera that needs a larger factor on its brightness than the others is named. Composing evens out up to
`composer.MAX_GAIN`."""
WIDE = 0.8
"""A seam whose features' mean direction is shorter than this reaches far around: it shows a whole rotation, as the two
sides of a dual fisheye do, and not only which way its features are shifted."""


@dataclass(frozen=True)
class Views:
    """The images of one set."""

    views: Mapping[str, CameraView]
    offsets_s: Mapping[str, float]
    """How long after the set's stamp each camera exposed; empty where that is not known."""


@dataclass(frozen=True)
class Gathered:
    """The images that are judged."""

    rig: Rig
    sets: tuple[Views, ...]
    count: int
    """How many sets there were."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """In how many of them each camera was missing."""
    without_motion: bool = False
    """Whether cameras could not be moved to one instant although they exposed at different ones."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """Why an image of a camera was left out, by camera: black or white ones show nothing."""


@dataclass(frozen=True)
class RigCheck:
    """What was found."""

    gathered: Gathered
    composed: Composed
    """The middle set."""
    seams: tuple[Seam, ...]
    turns_deg: Mapping[str, Float64]
    """By `camera_turns`, of the cameras with at least two judged seams: with one, either camera may be off."""
    gains: Mapping[str, float]
    """Median factor on each camera's brightness."""
    horizon_seen: Float64
    """float64 (36,): share seen between −20° and +10° of elevation, by azimuth, clockwise from −180°, 10° each."""
    elevation_seen: Float64
    """float64 (18,): share seen by elevation from +90° down in steps of 10°."""


def gather(source: Path, count: int, settings: Settings) -> Gathered:
    """Read the images of a bag, or of a folder with one image for each camera (front.jpg, left.png …).

    Args:
        source: The bag or the folder.
        count: So many sets of a bag are judged, evenly spread.
        settings: Of the node; `rig.file` names the rig file, or `auto` for a bag's own CameraInfo and /tf_static.

    Raises:
        ConfigurationError: The rig cannot be used, or does not fit the images.
        InputError: Something cannot be read.
    """
    if source.is_dir() and any(path.suffix.lower() in SUFFIXES for path in source.iterdir()):
        return _gather_folder(source, settings)
    return _gather_bag(source, count, settings)


def _gather_folder(folder: Path, settings: Settings) -> Gathered:
    if settings.rig.file == AUTO:
        raise ConfigurationError(f"{folder}: a folder of images brings no CameraInfo; give a rig file")
    description = read_rig(home_path(settings.rig.file))
    rig = description.rig()
    images = read_folder(folder, description)
    faults = _faults(rig, images, settings)
    views = {name: CameraView(pixels) for name, pixels in images.items() if name not in faults}
    missing = {camera.name: 1 for camera in rig.cameras if camera.name not in images}
    return Gathered(rig, (Views(views, {}),), 1, missing, faults=faults)


def _faults(rig: Rig, images: Mapping[str, UInt8], settings: Settings) -> dict[str, str]:
    """Why images show nothing, by camera."""
    lenses = {camera.name: camera.lens for camera in rig.cameras}
    problems = {
        name: image_problem(pixels, lenses[name], settings.localizer.minimum_brightness)
        for name, pixels in images.items()
    }
    return {name: problem[1] for name, problem in problems.items() if problem is not None}


def _gather_bag(path: Path, count: int, settings: Settings) -> Gathered:
    try:
        bag = Bag(path)
    except InputError as error:
        raise InputError(f"{error}, or a folder with one image for each camera (front.jpg, left.png …)") from None
    transforms = StaticTransforms(bag)
    rig = recorded_rig(bag, settings.rig, transforms, settings.node.base_frame)
    topics = choose_topics(bag, truth="none", imu="none", rig=rig)
    frames = RecordedFrames(transforms, settings.node.base_frame, settings.node.input_frames)
    # Twice through the bag: the first time the images are not kept.
    sets = list(_sets(bag, rig.sources, settings, None, {}))
    if not sets:
        raise InputError(f"{path}: no image of {', '.join(rig.sources)} has a stamp; see that the drivers set them")
    missing = Counter(name for found in sets for source in found.missing for name in rig.sources[source])
    most = max(len(found.images) for found in sets)
    whole = [found.stamp_ns for found in sets if len(found.images) == most]
    chosen = {whole[i] for i in np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(int)}
    inputs = SessionInputs(settings.session.buffer_limits, MotionNoise())
    accepted: MotionBuffer[OdometrySample] = MotionBuffer(settings.session.buffer_limits)
    motion = RecordedMotion(bag, topics, inputs, frames, settings.node.map_frame, accepted)
    odometry = {} if topics.odometry is None else {topics.odometry.name: motion}
    judged, without_motion, faults = [], False, {}
    for found in _sets(bag, rig.sources, settings, chosen, odometry):
        views = {}
        for source, image in found.images.items():
            pixels = camera_image(image.image).pixels
            moved = STANDING
            if image.stamp_ns != found.stamp_ns:
                known = inputs.moved(image.stamp_ns, found.stamp_ns)
                without_motion |= known is None
                moved = known or STANDING
            bad = _faults(rig.rig, dict.fromkeys(rig.sources[source], pixels), settings)
            faults.update(bad)
            views.update({name: CameraView(pixels, moved) for name in rig.sources[source] if name not in bad})
        offsets = {
            name: s_from_ns(image.stamp_ns - found.stamp_ns)
            for source, image in found.images.items()
            for name in rig.sources[source]
        }
        judged.append(Views(views, offsets))
    return Gathered(rig.rig, tuple(judged), len(sets), missing, without_motion, faults)


def _sets(
    bag: Bag,
    sources: Mapping[str, tuple[str, ...]],
    settings: Settings,
    chosen: set[int] | None,
    motion: Mapping[str, RecordedMotion],
) -> Iterator[ImageSet]:
    """The sets of a bag. chosen: only those of these stamps, with their messages; None: all, without messages."""
    pairing = Pairing(tuple(sources), settings.rig)
    now_s = 0.0
    for message in bag.messages([*sources, *motion]):
        now_s = message.log_time_ns / NS_PER_S
        found: list[ImageSet] = []
        if message.topic in motion:
            motion[message.topic].take(message)
            found = pairing.poll(now_s)
        else:
            content = bag.deserialize(message)
            found = pairing.add(message.topic, stamp_ns(content.header), now_s, None if chosen is None else content)
        yield from (one for one in found if chosen is None or one.stamp_ns in chosen)
    yield from (one for one in pairing.flush(now_s) if chosen is None or one.stamp_ns in chosen)


def check_rig(gathered: Gathered) -> RigCheck:
    """Compose the sets and compare what two cameras see. Raises InputError where an image does not fit its lens."""
    composer = Composer(gathered.rig, COLUMNS)
    composed = [composer.compose(one.views) for one in gathered.sets]
    seams: dict[tuple[str, str], list[Seam]] = {}
    for one in gathered.sets:
        for seam in match_seams(composer, one.views):
            seams.setdefault((seam.first, seam.second), []).append(seam)
    together = tuple(joined(found) for found in seams.values())
    ends = Counter(name for seam in together if len(seam) >= LEAST_MATCHES for name in (seam.first, seam.second))
    middle = composed[len(composed) // 2]
    names = dict.fromkeys(name for one in composed for name in one.gains)
    gains = {name: float(np.median([one.gains[name] for one in composed if name in one.gains])) for name in names}
    rows = COLUMNS // 2
    band = middle.seen[round(rows * 80 / 180) : round(rows * 110 / 180)]
    columns = np.array_split(band.mean(0), 36)
    elevations = np.array_split(middle.seen.mean(1), 18)
    return RigCheck(
        gathered,
        middle,
        together,
        {name: turn for name, turn in camera_turns(together).items() if ends[name] >= 2},
        gains,
        np.array([part.mean() for part in columns]),
        np.array([part.mean() for part in elevations]),
    )


def parallax_deg(rig: Rig, first: str, second: str) -> float:
    """By how much two cameras may disagree about things at `NEAR` · distance_m and further, without any fault."""
    at = {camera.name: camera.position_m for camera in rig.cameras}
    apart_m = float(np.linalg.norm(at[first] - at[second]))
    return math.degrees(apart_m * max(1 / NEAR - 1, 1) / rig.distance_m)


def limit_deg(rig: Rig, seam: Seam) -> float:
    """Disagreements of a seam up to this are not reported."""
    return max(LEAST_OFFSET_DEG, parallax_deg(rig, seam.first, seam.second))


def mount_change_deg(camera: RigCamera, turn_deg: Float64) -> tuple[float, float, float]:
    """How a turned camera looks.

    Args:
        camera: As calibrated.
        turn_deg: float64 (3,), axis in base_link's axes times the angle in degrees.

    Returns:
        How much further right, up and rolled clockwise, in degrees: what its mount's yaw_deg and pitch_deg are too
        large by, and its roll_deg too small.
    """
    body = Rotation.from_matrix(camera.base_from_optical @ BODY_FROM_OPTICAL.T)
    turned = Rotation.from_rotvec(np.radians(turn_deg)) * body
    change = turned.as_euler("ZYX", degrees=True) - body.as_euler("ZYX", degrees=True)
    yaw, pitch, roll = (change + 180) % 360 - 180
    return -float(yaw), -float(pitch), float(roll)


def verdict(check: RigCheck) -> list[str]:
    """What a person should do, the worst first; empty where nothing is wrong."""
    rig, gathered = check.gathered.rig, check.gathered
    judged = [seam for seam in check.seams if len(seam) >= LEAST_MATCHES]
    sentences = _mounts(rig, judged, check.turns_deg)
    silent = [seam for seam in check.seams if len(seam) < LEAST_MATCHES <= LEAST_DETECTED <= min(seam.detected)]
    sentences += [
        f"{seam.first} and {seam.second} show hardly anything in common where both look ({len(seam)} of "
        f"{min(seam.detected)} features)"
        for seam in silent
    ]
    if silent:
        sentences.append(
            "See in the picture (--plot) whether images are swapped or mirrored, a lens is another, a mount is off by "
            f"more than {MAX_OFFSET_DEG:g}°, or everything is near there"
        )
    named = {name for seam in (*judged, *silent) for name in (seam.first, seam.second)}
    if not judged and not silent:
        sentences.append("No two cameras see enough of the same: their mounts could not be compared")
    else:
        shown = {name for one in gathered.sets for name in one.views}
        sentences += [
            f"{camera.name} could not be compared with another camera, for too little overlap or texture: see in the "
            "picture (--plot) whether it fits"
            for camera in rig.cameras
            if camera.name in shown - named
        ]
    for name, count in gathered.missing.items():
        sentences.append(f"{name} is missing in {count} of {gathered.count} sets")
    sentences += [f"{name} was left out: {why}" for name, why in gathered.faults.items()]
    usual = float(np.median(list(check.gains.values()))) if check.gains else 1.0
    sentences += [
        f"{name} is {'darker' if gain > 1 else 'brighter'} than its neighbours by a factor of {max(gain, 1 / gain):.1f}"
        for name, gain in ((name, gain / usual) for name, gain in check.gains.items())
        if max(gain, 1 / gain) > LARGE_GAIN
    ]
    if gathered.without_motion:
        apart = [f"{name} {1e3 * offset_s:+.0f} ms" for name, offset_s in time_offsets_s(gathered).items() if offset_s]
        sentences.append(
            f"Cameras expose at different times ({', '.join(apart)}), and no odometry moves them to one instant"
        )
    blind = 10 * int((check.horizon_seen < 0.5).sum())
    if blind:
        sentences.append(f"{blind}° of the horizon are not seen")
    return sentences


def _mounts(rig: Rig, judged: list[Seam], turns_deg: Mapping[str, Float64]) -> list[str]:
    """The cameras that look elsewhere than their calibration says, then the seams that no camera explains."""
    cameras = {camera.name: camera for camera in rig.cameras}
    said: list[tuple[float, str]] = []
    blamed = set()
    for name, turn in turns_deg.items():
        seams = [seam for seam in judged if name in (seam.first, seam.second)]
        moved = [np.median(np.linalg.norm(np.cross(turn, seam.directions), axis=1)) for seam in seams]
        size = float(max(moved))
        if any(moved_deg > limit_deg(rig, seam) for seam, moved_deg in zip(seams, moved, strict=True)):
            blamed.add(name)
            looks = _directions(*mount_change_deg(cameras[name], turn))
            said.append((size, f"{name} looks {looks} than its calibration says"))
    for seam in judged:
        if blamed & {seam.first, seam.second}:
            continue
        right, up = seam.offset_deg
        size, looks = math.hypot(right, up), _directions(-right, -up)
        if np.linalg.norm(seam.directions.mean(0)) < WIDE:
            size = seam.median_deg
            turns = camera_turns([seam])
            turn = turns[seam.second] - turns[seam.first]
            looks = _directions(*mount_change_deg(cameras[seam.second], turn))
        if size > limit_deg(rig, seam):
            said.append((size, f"{seam.second} looks {looks} than {seam.first} at their seam: check both"))
    return [sentence for _, sentence in sorted(said, reverse=True)]


def time_offsets_s(gathered: Gathered) -> dict[str, float]:
    """Median time from the set's stamp to each camera's exposure."""
    names = dict.fromkeys(name for one in gathered.sets for name in one.offsets_s)
    return {
        name: float(np.median([one.offsets_s[name] for one in gathered.sets if name in one.offsets_s]))
        for name in names
    }


def _directions(right: float, up: float, clockwise: float = 0.0) -> str:
    """In words, without what is small beside the rest."""
    words = (
        (right, f"{abs(right):.1f}° further {'right' if right > 0 else 'left'}"),
        (up, f"{abs(up):.1f}° further {'up' if up > 0 else 'down'}"),
        (clockwise, f"rolled {abs(clockwise):.1f}° further {'' if clockwise > 0 else 'counter'}clockwise"),
    )
    most = max(abs(angle) for angle, _ in words)
    parts = [text for angle, text in words if abs(angle) >= 0.3 * most]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def report(check: RigCheck) -> str:
    """All numbers as text, then the verdict."""
    gathered = check.gathered
    offsets_s = time_offsets_s(gathered)
    seen = f"{check.composed.seen.mean():.0%} of the sphere is seen"
    sets = f"{gathered.count} {'set' if gathered.count == 1 else 'sets'}"
    lines = [f"{sets}, {len(gathered.sets)} judged; {seen}", ""]
    lines.append(f"{'camera':<16}{'exposed':>12}{'brightness':>12}{'looks right':>13}{'looks up':>10}{'clockwise':>11}")
    for camera in gathered.rig.cameras:
        name = camera.name
        exposed = f"{1e3 * offsets_s[name]:+.0f} ms" if name in offsets_s else ""
        gain = (
            f"× {check.gains[name]:.2f}"
            if name in check.gains
            else "left out"
            if name in gathered.faults
            else "missing"
        )
        line = f"{name:<16}{exposed:>12}{gain:>12}"
        if name in check.turns_deg:
            right, up, clockwise = mount_change_deg(camera, check.turns_deg[name])
            line += f"{f'{right:+.2f}°':>13}{f'{up:+.2f}°':>10}{f'{clockwise:+.2f}°':>11}"
        lines.append(line)
    lines += ["", f"{'the second puts things':<30}{'features':>9}{'right':>9}{'up':>9}{'median':>9}{'near things':>13}"]
    for seam in check.seams:
        right, up = seam.offset_deg
        values = (
            f"{'few':>9}{'':>18}"
            if len(seam) < LEAST_MATCHES
            else f"{right:>+8.2f}°{up:>+8.2f}°{seam.median_deg:>8.2f}°"
        )
        allowed = parallax_deg(gathered.rig, seam.first, seam.second)
        lines.append(f"{f'{seam.first} – {seam.second}':<30}{len(seam):>9}{values}{f'up to {allowed:.1f}°':>13}")
    if not check.seams:
        lines.append("no two cameras overlap: their mounts cannot be compared")
    limits = [limit_deg(gathered.rig, seam) for seam in check.seams if len(seam) >= LEAST_MATCHES]
    fine = f"Nothing to correct; mounts that are off by less than {max(limits, default=0.0):.1f}° do not show here"
    lines += ["", "Verdict:", *(f"- {sentence}." for sentence in verdict(check) or [fine])]
    return "\n".join(lines)


def draw(check: RigCheck, path: Path, headline: str) -> None:
    """The panorama, what is seen by azimuth and elevation, and the report. Raises ConfigurationError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 12), layout="constrained")
    figure.suptitle(headline, fontsize=12)
    grid: Any = figure.add_gridspec(3, 2, height_ratios=[2.2, 0.8, 1.4], width_ratios=[4, 1])
    panorama = figure.add_subplot(grid[0, :])
    panorama.imshow(check.composed.pixels, extent=(-180, 180, -90, 90), aspect="auto")
    for camera in check.gathered.rig.cameras:
        x, y, z = camera.base_from_optical[:, 2]
        panorama.annotate(
            camera.name,
            (-math.degrees(math.atan2(y, x)), math.degrees(math.asin(max(-1.0, min(1.0, z))))),
            color="yellow",
            ha="center",
            bbox={"facecolor": "black", "alpha": 0.6, "pad": 2},
        )
    panorama.set_xlabel("azimuth to the right of base_link's x axis (°)")
    panorama.set_ylabel("elevation (°)")
    azimuth = figure.add_subplot(grid[1, 0])
    azimuth.bar(np.arange(-175, 180, 10), 100 * check.horizon_seen, width=9)
    azimuth.set(xlim=(-180, 180), ylim=(0, 105), xlabel="azimuth (°)", ylabel="seen (%)")
    azimuth.set_title("between −20° and +10° of elevation")
    elevation = figure.add_subplot(grid[1, 1])
    elevation.barh(np.arange(85, -90, -10), 100 * check.elevation_seen, height=9)
    elevation.set(xlim=(0, 105), ylim=(-90, 90), xlabel="seen (%)", title="by elevation (°)")
    words = figure.add_subplot(grid[2, :])
    words.set_axis_off()
    words.text(0.0, 1.0, report(check), family="monospace", fontsize=9, va="top", transform=words.transAxes)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--plot {path}: cannot be written ({error}); give a .png, .pdf or .svg") from error
