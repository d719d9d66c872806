"""Adapt a bundle to a camera and a region without ground truth, and keep the result only if it is better.

1. Each drive is replayed with the tracker of the parent and smoothed.
2. The student learns from the smoothed tracks of the drives to learn from, where they are certain.
3. The student is calibrated on places that were kept apart.
4. Parent and student are replayed on drives that were kept apart, as the vehicle drives and image by image.
5. The gate decides (`accept_without_truth`, or `accept` where those drives have a ground truth).
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import unifygeo_ros
from unifygeo_ros.aerial.build import build_index
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.files import write_text
from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_ros.core.time import NS_PER_S
from unifygeo_ros.evaluation.evaluate import ReplayRequest, evaluate, fingerprint, track_files
from unifygeo_ros.evaluation.metrics import acceptance
from unifygeo_ros.evaluation.metrics.acceptance import Acceptance, accept, accept_without_truth
from unifygeo_ros.evaluation.metrics.against_odometry import Agreement, against_odometry
from unifygeo_ros.evaluation.metrics.comparison import compare, to_text
from unifygeo_ros.evaluation.metrics.drive import gather
from unifygeo_ros.evaluation.metrics.results import read_frames
from unifygeo_ros.evaluation.metrics.summary import read_summary
from unifygeo_ros.evaluation.recordings.bags import Bag
from unifygeo_ros.evaluation.replay import ODOMETRY_TYPES
from unifygeo_ros.inference.bundle import ModelBundle, load_bundle, replace_manifest
from unifygeo_ros.parameters.engines import open_configured_engines
from unifygeo_ros.parameters.settings import Settings, with_values
from unifygeo_training.adapt.labels import Track, write_drives_file
from unifygeo_training.adapt.learn import calibrated, learn
from unifygeo_training.adapt.settings import LearnSettings
from unifygeo_training.adapt.stages import Stages
from unifygeo_training.calibrate import NothingRightError
from unifygeo_training.confidence import also_familiar
from unifygeo_training.files import locked, new_folder

logger = logging.getLogger(__name__)

MADE_BY = "unifygeo-train adapt"
LEAST_CERTAIN = 100
"""Images with a certain place, over all drives to learn from, under which nothing is learnt."""
JUDGED_AMBIGUITY = 0.5
"""`localizer.gate_ambiguity` of the replays image by image.

Every answer is judged that the model holds for right rather than wrong. In new surroundings few answers pass the
default of 0.1, too few to judge the covariances by, and the tracker takes in all of them.
"""
_NOTHING_RIGHT = (
    "What the student learnt is right nowhere on the places that were kept for its calibration: the tracks are wrong, "
    "or a large --share or --learning-rate has destroyed what it knew"
)
PARENT, STUDENT = "parent", "student"
Learn = Callable[[ModelBundle, Path, Path, LearnSettings], ModelBundle]


@dataclass(frozen=True)
class AdaptRequest:
    """What to adapt, on what, and where the results go."""

    bundle: Path
    drives: tuple[Path, ...]
    """Bags to learn from."""
    apart: tuple[Path, ...]
    """Bags that decide whether the result is better. Nothing is learnt from them."""
    index: Path
    """Of the parent, one index over all drives."""
    output: Path
    """Folder of the new bundle; not there if the gate refuses it."""
    work: Path
    """Folder of the steps, from which an interrupted run goes on. With another version of the software, or other
    settings, all of them are done again."""
    settings: Settings = field(default_factory=Settings)
    learning: LearnSettings = field(default_factory=LearnSettings)
    image_topic: str | None = None
    odometry_topic: str | None = None
    imu_topic: str | None = None
    truth_topic: str | None = None
    """Ground truth of the drives that are kept apart, for the gate alone; None: there is none."""


@dataclass(frozen=True)
class Outcome:
    """What became of an adaptation."""

    accepted: bool
    report: str
    """For people: the gate's conditions, and both models side by side."""


@dataclass(frozen=True)
class _Run:
    """Replays of one bundle on one drive that was kept apart."""

    name: str
    summary: Path
    """As the vehicle drives."""
    agreement: Agreement
    """Image by image."""


def adapt(request: AdaptRequest, *, learner: Learn = learn) -> Outcome:
    """Adapt a bundle, or go on where an earlier call stopped.

    Args:
        request: What to do.
        learner: Makes the student; tests have a quick one.

    Raises:
        ConfigurationError: the request contradicts itself.
        InputError: a drive is not fit to be learnt from.
    """
    _check(request)
    parent = load_bundle(request.bundle)
    index = open_index(request.index, bundle=parent)
    with locked(request.work):
        stages = Stages(request.work, count=len(request.drives) + 3 + 5 * len(request.apart))
        common: dict[str, Any] = {
            "software": unifygeo_ros.__version__,  # the replays of parent and student must be of the same
            "parent": parent.manifest.sha256,
            "index": index.checksum,
            "settings": dataclasses.asdict(request.settings),
            "topics": {**_topics(request), "odometry_topic": request.odometry_topic},
        }
        tracks = {
            bag: _track(request, stages, common, f"track-{kind}-{number}", bag)
            for kind, bags in (("learn", request.drives), ("apart", request.apart))
            for number, bag in enumerate(bags, 1)
        }
        sources = [tracks[bag] for bag in request.drives]
        missing = _too_little(request, tracks)
        if missing is not None:
            return _finished(request, f"refused: keep the old model\nNothing was learnt: {missing}.\n", None)
        learnt_from = {
            **common,
            "tracks": _digests(stages, "learn", request.drives),
            "learning": dataclasses.asdict(request.learning),
        }
        stages.make(
            "learnt", learnt_from, lambda folder: _learn(request, parent, index.frame, sources, folder, learner)
        )
        try:
            calibrated_folder = stages.make(
                "calibrated",
                {**learnt_from, "learnt": stages.digest("learnt"), "name": request.output.resolve().name},
                lambda folder: _calibrate(request, parent, sources, folder),
            )
        except InputError as error:
            why = _NOTHING_RIGHT if isinstance(error, NothingRightError) else "The student could not be calibrated"
            return _finished(request, f"refused: keep the old model\n{why} ({error}).\n", None)
        student = load_bundle(calibrated_folder / "bundle")
        common["student"] = student.manifest.sha256
        new_index = stages.make("index", common, lambda folder: _encode(request, student, folder)) / "index"
        runs: dict[str, list[_Run]] = {PARENT: [], STUDENT: []}
        for who, model, its_index in ((PARENT, parent, request.index), (STUDENT, student, new_index)):
            inputs = {**common, "tracks": _digests(stages, "apart", request.apart)}
            if who == PARENT:
                inputs.pop("student")  # another student needs no other replays of the parent
            for number, bag in enumerate(request.apart, 1):
                runs[who].append(
                    _judged(request, stages, inputs, f"{who}-{number}", bag, tracks[bag], model, its_index)
                )
        verdict = _gate(request, runs)
        return _finished(request, _report(request, verdict, runs, tracks), student if verdict.accepted else None)


def _check(request: AdaptRequest) -> None:
    if not request.apart:
        raise ConfigurationError("no drive is kept apart; name at least one that nothing is learnt from")
    bags = [Bag(bag) for bag in (*request.drives, *request.apart)]
    for bag in bags:
        if request.odometry_topic == "none" or not any(t.type in ODOMETRY_TYPES for t in bag.topics.values()):
            raise ConfigurationError(
                f"{bag.path}: no odometry; without it there is neither a track to learn from nor anything to judge by"
            )
    if len({fingerprint(bag.files) for bag in bags}) < len(bags):
        raise ConfigurationError("a drive is named twice; what is kept apart must be another drive than what is learnt")
    if request.output.exists():
        raise ConfigurationError(f"--output {request.output} exists; remove it or choose another folder")


def _too_little(request: AdaptRequest, tracks: Mapping[Path, Track]) -> str | None:
    """Why the tracks are no ground to learn or to judge on; None: they are."""
    for purpose, bags, least in (
        ("to learn from", request.drives, LEAST_CERTAIN),
        ("kept apart", request.apart, 0 if request.truth_topic else acceptance.LEAST_IMAGES),
    ):
        found = [tracks[bag] for bag in bags]
        certain, images = sum(track.certain for track in found), sum(track.images for track in found)
        if certain < least:
            return f"{certain} of {images} images of the drives {purpose} have a certain place, at least {least} must"
        empty = [_name(track.bag) for track in found if track.certain < 2]
        if least and empty:
            return f"no image of {', '.join(empty)} has a certain place; leave it out"
    return None


def _topics(request: AdaptRequest) -> dict[str, str | None]:
    return {"image_topic": request.image_topic, "imu_topic": request.imu_topic}


def _digests(stages: Stages, kind: str, bags: tuple[Path, ...]) -> list[str]:
    return [stages.digest(f"track-{kind}-{number}") for number in range(1, len(bags) + 1)]


def _replay(request: AdaptRequest, bag: Path, bundle: ModelBundle, index: Path, output: Path, mode: str,
            *, on_earth: bool = False, **changes: Any) -> None:  # fmt: skip
    """Replay a drive. on_earth: covariances hold the imagery's error, which labels and innovations do not have."""
    values: dict[str, Any] = {"session.mode": mode}
    if not on_earth:
        values["localizer.imagery_sigma_m"] = 0.0
    if mode == "sequence":
        values["session.prior_source"] = "none"
    else:
        values["localizer.gate_ambiguity"] = JUDGED_AMBIGUITY
    evaluate(
        ReplayRequest(
            bag=bag,
            index=index,
            model=bundle.path,
            output=output,
            image_topic=request.image_topic,
            odometry_topic=request.odometry_topic,
            imu_topic=request.imu_topic,
            settings=with_values(request.settings, values),
            **{"truth_topic": "none", **changes},
        )
    )


def _track(request: AdaptRequest, stages: Stages, common: Mapping[str, Any], name: str, bag: Path) -> Track:
    """Replay a drive with the parent and smooth it."""

    def work(folder: Path) -> None:
        _replay(request, bag, load_bundle(request.bundle), request.index, folder / "out.mcap", "sequence", smooth=True)

    folder = stages.make(name, {**common, "bag": fingerprint(Bag(bag).files)}, work)
    images = sum(1 for _ in read_frames(folder / "out.frames.jsonl"))
    track = Track(bag, track_files(folder / "out.mcap")[1], images)
    logger.info("%s: %d of %d images have a certain place", _name(bag), track.certain, images)
    return track


def _learn(
    request: AdaptRequest, parent: ModelBundle, frame: LocalFrame, sources: list[Track], folder: Path, learner: Learn
) -> None:
    file = folder / "drives.yaml"
    guard_m = parent.manifest.aerial.side_m / 2
    write_drives_file(file, sources, request.index, frame, request.settings, _topics(request), guard_m)
    learner(parent, file, folder, request.learning)


def _calibrate(request: AdaptRequest, parent: ModelBundle, sources: list[Track], folder: Path) -> None:
    """Calibrate a copy of the student, with its lineage."""
    learnt = request.work / "learnt"
    shutil.rmtree(folder / "bundle", ignore_errors=True)  # of an interrupted call
    shutil.copytree(learnt / "bundle", folder / "bundle")
    drives = ", ".join(f"{_name(t.bag)} of {_day(t.bag)} ({t.certain} of {t.images} images)" for t in sources)
    apart = ", ".join(f"{_name(bag)} of {_day(bag)}" for bag in request.apart)
    step = {
        "made_by": MADE_BY,
        "parent_sha256": parent.manifest.sha256,
        "data": f"smoothed tracks of {drives}; judged on {apart}",
    }
    student = load_bundle(folder / "bundle")
    name = request.output.resolve().name
    lineage = (*parent.manifest.lineage, step)
    student = replace_manifest(student, dataclasses.replace(student.manifest, name=name, lineage=lineage))
    student = calibrated(student, learnt / "drives.yaml", MADE_BY, parent.manifest.calibration)
    if parent.manifest.calibration.familiarity is not None:
        # The drives' pictures are familiar now; those that the parent was calibrated on are still.
        known = also_familiar(student.manifest.calibration, parent)
        replace_manifest(student, dataclasses.replace(student.manifest, calibration=known))


def _name(bag: Path) -> str:
    """With its folder, since bags are often called bag."""
    return "/".join(bag.resolve().parts[-2:])


def _day(bag: Path) -> str:
    first = next(iter(Bag(bag).messages(list(Bag(bag).topics))))
    return datetime.fromtimestamp(first.log_time_ns / NS_PER_S, tz=timezone.utc).date().isoformat()


def _encode(request: AdaptRequest, student: ModelBundle, folder: Path) -> None:
    with open_configured_engines(student, request.settings.node) as engines:
        build_index([request.index], student, engines, folder / "index", progress=True)


def _judged(
    request: AdaptRequest,
    stages: Stages,
    inputs: Mapping[str, Any],
    name: str,
    bag: Path,
    track: Track,
    bundle: ModelBundle,
    index: Path,
) -> _Run:
    """Replay a drive that was kept apart, as the vehicle drives and image by image."""
    truth: dict[str, Any] = {"truth_topic": None, "truth_file": track.file}
    if request.truth_topic is not None:
        truth = {"truth_topic": request.truth_topic}
    inputs = {**inputs, "bag": fingerprint(Bag(bag).files), "truth": request.truth_topic}

    def sequence(folder: Path) -> None:
        report = folder / "report.html"
        _replay(request, bag, bundle, index, folder / "out.mcap", "sequence", on_earth=True, report=report, **truth)

    def single(folder: Path) -> None:
        _replay(request, bag, bundle, index, folder / "out.mcap", "single")

    driven = stages.make(f"{name}-sequence", inputs, sequence)
    alone = stages.make(f"{name}-single", {**inputs, "gate_ambiguity": JUDGED_AMBIGUITY}, single)
    settings = request.settings
    agreement = against_odometry(
        gather(read_frames(alone / "out.frames.jsonl"), settings.camera),
        settings.odometry,
        correlation_m=settings.tracker.correlation_m,
        alert_limit_m=read_summary(driven / "report.json")["criteria"]["alert_limit_m"],
    )
    return _Run(_name(bag), driven / "report.json", agreement)


def _gate(request: AdaptRequest, runs: Mapping[str, list[_Run]]) -> Acceptance:
    before, after = ([read_summary(run.summary) for run in runs[who]] for who in (PARENT, STUDENT))
    if request.truth_topic is not None:
        return accept(before, after)
    pairs = zip(runs[PARENT], runs[STUDENT], strict=True)
    return accept_without_truth(before, after, [(old.agreement, new.agreement) for old, new in pairs])


def _report(
    request: AdaptRequest, verdict: Acceptance, runs: Mapping[str, list[_Run]], tracks: Mapping[Path, Track]
) -> str:
    against = "its ground truth" if request.truth_topic else "the parent's smoothed track"
    parts = [str(verdict), "", "Certain places of the parent's smoothed tracks:"]
    parts += [f"  {_name(bag)}: {track.certain} of {track.images} images" for bag, track in tracks.items()]
    for old, new in zip(runs[PARENT], runs[STUDENT], strict=True):
        comparison = compare(read_summary(old.summary), read_summary(new.summary))
        parts += ["", f"{old.name}, against {against}:", to_text(comparison, PARENT, STUDENT)]
        parts += [f"  {run.summary.with_suffix('.html')}" for run in (old, new)]
    return "\n".join(parts) + "\n"


def _finished(request: AdaptRequest, text: str, student: ModelBundle | None) -> Outcome:
    """Write the report, and the new bundle where it was accepted."""
    if student is not None:
        with locked(request.output), new_folder(request.output) as folder:
            shutil.copytree(student.path, folder, dirs_exist_ok=True)
            load_bundle(folder)
        text += f"\nThe new bundle is {request.output}, its index {request.work / 'index' / 'index'}.\n"
    write_text(request.work / "report.txt", text)
    return Outcome(student is not None, text)
