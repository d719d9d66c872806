"""From files to a judged drive: replay, output bag, numbers, report."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

import unifygeo_ros
from unifygeo_ros.aerial.map_index import MapIndex
from unifygeo_ros.aerial.regions import open_map
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.core.files import write_text
from unifygeo_ros.evaluation.metrics.drive import Drive, gather
from unifygeo_ros.evaluation.metrics.results import FrameResult, ResultFile, read_timings
from unifygeo_ros.evaluation.metrics.summary import Summary, judge, summarise
from unifygeo_ros.evaluation.recordings.bags import Bag
from unifygeo_ros.evaluation.recordings.output_bag import check_output_path, write_output_bag
from unifygeo_ros.evaluation.recordings.recorded_mount import panorama_mount
from unifygeo_ros.evaluation.recordings.recorded_rig import RecordedRig, recorded_rig
from unifygeo_ros.evaluation.recordings.smoothed_track import write_csv, write_tum
from unifygeo_ros.evaluation.recordings.static_transforms import RecordedFrames, StaticTransforms
from unifygeo_ros.evaluation.recordings.truth import Truth
from unifygeo_ros.evaluation.recordings.truth_sources import read_truth_file
from unifygeo_ros.evaluation.replay import Topics, choose_topics, image_again, read_truth, replay
from unifygeo_ros.evaluation.report.drive_map import draw_map
from unifygeo_ros.evaluation.report.frame_details import render_frame_details, worst_frames
from unifygeo_ros.evaluation.report.page import write_report
from unifygeo_ros.evaluation.settings import Criteria, TruthSettings
from unifygeo_ros.evaluation.setup_notes import advice, frame_notes, mount_note, setup_text, truth_note
from unifygeo_ros.inference.bundle import ModelBundle, check_calibrated, load_bundle
from unifygeo_ros.localization.fixes import with_imagery_error
from unifygeo_ros.localization.localizer import Localizer
from unifygeo_ros.parameters.engines import open_configured_engines
from unifygeo_ros.parameters.settings import Settings
from unifygeo_ros.tracking.region import region_of
from unifygeo_ros.tracking.smoothing import SmoothedPose, Step, smooth

LEAST_INTEGRITY = 0.9
"""Of the poses of a smoothed track. A single Gaussian has 0.95: at most 5% of the belief may be in other places."""

_FINGERPRINT_BYTES = 1 << 20

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplayRequest:
    """What to replay, with which settings, and where the results go."""

    bag: Path
    index: Path
    model: Path
    output: Path
    """The bag. The results that a replay resumes from are in the same folder."""
    report: Path | None = None
    """HTML file; its numbers are written next to it as JSON. None: no report."""
    image_topic: str | None = None
    """Name of the topic, or None to find it by type. Of the other topics "none" leaves them out."""
    truth_topic: str | None = None
    odometry_topic: str | None = None
    imu_topic: str | None = None
    truth_file: Path | None = None
    """TUM or CSV trajectory in place of a topic."""
    truth: TruthSettings = field(default_factory=TruthSettings)
    settings: Settings = field(default_factory=Settings)
    """Of the node. Its camera, localizer, session and tracker act as on the vehicle, as do the engine's and
    camera_frame, base_frame, map_frame and input_frames; what concerns ROS topics and lifecycle does not."""
    criteria: Criteria = field(default_factory=Criteria)
    smooth: bool = False
    """Also write the smoothed track, as a topic of the output and as files next to it (mode sequence)."""
    max_frames: int | None = None
    restart: bool = False
    """Replace the results that are there."""
    quiet: bool = False


def evaluate(request: ReplayRequest) -> Summary:
    """Replay (or finish a replay), write the output bag, the numbers and the report."""
    if request.truth_file is not None and request.truth_topic is not None:
        raise ConfigurationError("both --truth-topic and --truth-file are given; choose one")
    check_output_path(request.output)
    bundle = load_bundle(request.model)
    check_calibrated(bundle, request.settings.node.accept_uncalibrated)
    node = request.settings.node
    index = open_map(request.index, bundle=bundle, search_device=node.index_search, gpu=node.device)
    index.open_gpu_search()
    bag = Bag(request.bag)
    settings = request.settings
    transforms = StaticTransforms(bag)
    rig = recorded_rig(bag, settings.rig, transforms, node.base_frame) if settings.rig else None
    topics = choose_topics(
        bag,
        image=request.image_topic,
        truth=request.truth_topic,
        odometry=request.odometry_topic,
        imu=request.imu_topic,
        truth_from_file=request.truth_file is not None,
        rig=rig,
    )
    frames = RecordedFrames(transforms, settings.node.base_frame, settings.node.input_frames)
    settings = dataclasses.replace(settings, camera=panorama_mount(settings, transforms, rig))
    request = dataclasses.replace(request, settings=settings)
    truth = _open_truth(request, bag, topics, index)
    node = settings.node
    with open_configured_engines(bundle, node) as engines:
        localizer = Localizer(index, bundle, engines, settings.localizer, settings.camera)
        identity = _identity(request, bag, topics, truth, bundle, index, engines.description)
        frames_path = request.output.with_name(f"{request.output.stem}.frames.jsonl")
        if request.restart:
            frames_path.unlink(missing_ok=True)
        found = [None if rig is not None else mount_note(bag, transforms, topics.image.name, settings)]
        found += frame_notes(bag, topics, frames)
        if topics.truth is not None and not (request.truth.truth_x_m or request.truth.truth_y_m):
            found.append(truth_note(bag, transforms, topics.truth, settings))
        notes = [text for text in found if text is not None]
        for text in notes:
            _logger.warning(text)
        with ResultFile(frames_path, identity) as results:
            steps: list[Step] | None = [] if request.smooth else None
            _replay_with_progress(request, bag, topics, localizer, frames, truth, results, steps)
            smoothed = None if steps is None else _smoothed(request, steps, localizer)
            write_output_bag(
                request.output, results.frames(), index.frame, with_truth=truth is not None, smoothed=smoothed
            )
            drive = gather(results.frames(), settings.camera)
            hints = advice(results.frames(), settings, topics)
            summary = summarise(
                drive,
                request.criteria,
                identity=identity,
                latency_ms=read_timings(results.timings_path),
                problems=results.problems,
                setup=setup_text(settings, topics, frames),
                advice=(*notes, *hints),
                imagery_sigma_m=settings.localizer.imagery_sigma_m,
            )
            if request.report is not None:
                _write_report(request, summary, drive, bag, topics, localizer, frames, results)
    return summary


def _write_report(
    request: ReplayRequest,
    summary: Summary,
    drive: Drive,
    bag: Bag,
    topics: Topics,
    localizer: Localizer,
    frames: RecordedFrames,
    results: ResultFile,
) -> None:
    assert request.report is not None
    write_text(request.report.with_suffix(".json"), summary.to_json())
    judged = judge(drive, request.criteria)
    worst = worst_frames(drive, judged).tolist()
    by_number = {frame.number: frame for frame in results.frames() if frame.number in worst}
    again = functools.partial(image_again, bag, topics, localizer, request.settings, frames)
    looks = render_frame_details(again, localizer, drive, judged, [by_number[number] for number in worst])
    write_report(request.report, summary, drive, judged, draw_map(drive, judged, localizer.index), looks)


def _open_truth(request: ReplayRequest, bag: Bag, topics: Topics, index: MapIndex) -> Truth | None:
    if request.truth_file is not None:
        recording = read_truth_file(request.truth_file)
    elif topics.truth is not None:
        recording = read_truth(bag, topics.truth)
    else:
        return None
    settings = request.truth
    return Truth(
        recording,
        index.frame,
        plane_frame=settings.truth_frame,
        max_gap_s=settings.truth_max_gap_s,
        default_sigma_m=settings.truth_sigma_m,
        lever_arm_m=(settings.truth_x_m, settings.truth_y_m),
    )


def _replay_with_progress(
    request: ReplayRequest,
    bag: Bag,
    topics: Topics,
    localizer: Localizer,
    frames: RecordedFrames,
    truth: Truth | None,
    results: ResultFile,
    steps: list[Step] | None,
) -> None:
    images = min(topics.image_count, request.max_frames or topics.image_count)
    hidden = True if request.quiet or (results.complete and steps is None) else None  # None: shown on a terminal only
    with tqdm(total=images, unit="image", desc="replay", disable=hidden, file=sys.stderr) as bar:
        fixes = 0

        def advance(result: FrameResult) -> None:
            nonlocal fixes
            fixes += not hasattr(result.outcome, "reason")
            bar.set_postfix_str(f"{fixes} fixes", refresh=False)
            bar.update()

        replay(
            bag,
            topics,
            localizer,
            request.settings,
            truth,
            results,
            frames=frames,
            max_frames=request.max_frames,
            progress=advance,
            steps=steps,
        )


def track_files(output: Path) -> tuple[Path, Path]:
    """Names of the TUM and the CSV file of the smoothed track that belongs to an output bag."""
    return output.with_name(f"{output.stem}.smoothed.tum"), output.with_name(f"{output.stem}.smoothed.csv")


def _smoothed(request: ReplayRequest, steps: list[Step], localizer: Localizer) -> list[SmoothedPose]:
    """The smoothed track, written into its files."""
    camera = localizer.mount
    poses = smooth(
        steps,
        area_m2=region_of(localizer.index).area_m2,
        config=request.settings.tracker,
        noise=request.settings.odometry,
        radius_m=request.settings.localizer.answer_radius_m,
        lever_m=(camera.x_m, camera.y_m),
        least_integrity=LEAST_INTEGRITY,
    )
    sigma_m = request.settings.localizer.imagery_sigma_m
    poses = [dataclasses.replace(pose, covariance=with_imagery_error(pose.covariance, sigma_m)) for pose in poses]
    tum, table = track_files(request.output)
    write_tum(tum, poses)
    write_csv(table, poses)
    return poses


def _identity(
    request: ReplayRequest,
    bag: Bag,
    topics: Topics,
    truth: Truth | None,
    bundle: ModelBundle,
    index: MapIndex,
    engines: str,
) -> dict[str, Any]:
    """What the results depend on, without paths: moving the files changes nothing."""
    names = {
        "image": topics.image if topics.rig is None else None,
        "truth": topics.truth,
        "odometry": topics.odometry,
        "imu": topics.imu,
    }
    datum = index.manifest.datum
    return {
        "bag": {"name": request.bag.name, "fingerprint": fingerprint(bag.files)},
        "topics": {purpose: topic.name if topic else None for purpose, topic in names.items()},
        "truth": {
            "source": topics.truth.name if topics.truth else Path(truth.source).name if truth else None,
            "fingerprint": fingerprint([request.truth_file]) if request.truth_file else None,
            **dataclasses.asdict(request.truth),
        },
        "model": {
            "name": bundle.manifest.name,
            "weights_sha256": bundle.manifest.weights_sha256,
            "engines": engines,
        },
        "index": {
            "name": index.path.name,
            "manifest_sha256": index.checksum,
            "attributions": list(index.manifest.attributions),
            "tiles": len(index),
            "datum": f"{datum.latitude_deg:.7f}, {datum.longitude_deg:.7f}, {datum.height_m:g} m",
        },
        "frames": {name: getattr(request.settings.node, name) for name in ("base_frame", "map_frame", "input_frames")},
        "camera": dataclasses.asdict(request.settings.camera),
        "rig": {**dataclasses.asdict(request.settings.rig), "file": Path(request.settings.rig.file).name},
        **({} if topics.rig is None else {"rig_cameras": _rig_identity(topics.rig)}),
        "localizer": dataclasses.asdict(request.settings.localizer),
        "session": dataclasses.asdict(request.settings.session),
        "odometry": dataclasses.asdict(request.settings.odometry),
        "tracker": dataclasses.asdict(request.settings.tracker),
        "max_frames": request.max_frames,
        "software": unifygeo_ros.__version__,
    }


def _rig_identity(rig: RecordedRig) -> dict[str, Any]:
    return {
        "topics": {topic: list(cameras) for topic, cameras in rig.sources.items()},
        "sha256": hashlib.sha256(repr(rig.rig).encode()).hexdigest(),
    }


def fingerprint(files: list[Path]) -> str:
    """SHA-256 of each file's size, first and last MiB: distinguishes large bags without reading them whole."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            digest.update(stream.read(_FINGERPRINT_BYTES))
            stream.seek(max(0, size - _FINGERPRINT_BYTES))
            digest.update(stream.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()
