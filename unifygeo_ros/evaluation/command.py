"""The commands `unifygeo replay`, `compare`, `accept` and `rig`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.options import add_settings, settings_of
from unifygeo_ros.core.paths import folder_option
from unifygeo_ros.evaluation.settings import Criteria, TruthSettings
from unifygeo_ros.parameters.options import add_parameter_options, settings_of_options
from unifygeo_ros.parameters.settings import with_values


def add_command(subparsers: Any) -> None:
    """Add `replay`, `compare`, `accept` and `rig` to the parser of `unifygeo`."""
    _add_replay(subparsers)
    _add_compare(subparsers)
    _add_accept(subparsers)
    _add_rig(subparsers)


def _add_replay(subparsers: Any) -> None:
    replay = subparsers.add_parser(
        "replay",
        help="localize a recorded drive and judge the fixes",
        description="Run the localizer over a bag (rosbag2 folder, .mcap, .db3, or rosbag1 .bag) as the node would, "
        "write a bag with fixes and ground truth, and a report. Started again, an interrupted replay resumes where it "
        "stopped. Topics are found by type where only one serves.",
    )
    replay.add_argument("bag", type=Path, metavar="BAG", help="the recorded drive")
    replay.add_argument("--index", type=Path, help="folder of the index or region (or the parameter `index`)")
    replay.add_argument(
        "--model", type=Path, help="folder of the model bundle that made the index (or the parameter `bundle`)"
    )
    replay.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="OUT.mcap",
        help="bag of fixes, diagnostics and ground truth (no ending: a rosbag2 folder); results are written next to it",
    )
    replay.add_argument("--report", type=Path, metavar="REPORT.html", help="write the report, and its numbers as .json")
    replay.add_argument("--image-topic", metavar="TOPIC", help="Image or CompressedImage")
    replay.add_argument(
        "--rig",
        metavar="RIG.yaml|auto",
        help="several cameras in place of one panoramic camera, as the rig file says (or the parameter `rig.file`); "
        "auto: all cameras of the bag that bring a CameraInfo, mounted as /tf_static says",
    )
    replay.add_argument(
        "--truth-topic", metavar="TOPIC", help="NavSatFix, Odometry, PoseStamped or PoseWithCovarianceStamped"
    )
    replay.add_argument("--truth-file", type=Path, metavar="FILE", help="TUM or CSV trajectory in place of a topic")
    replay.add_argument("--odometry-topic", metavar="TOPIC", help="Odometry of the session; none: leave it out")
    replay.add_argument("--imu-topic", metavar="TOPIC", help="Imu of the session; none: leave it out")
    replay.add_argument(
        "--smooth",
        action="store_true",
        help="in mode sequence: also where base_link was, given the whole drive: a topic of OUT and OUT.smoothed.tum "
        "and .csv next to it, only where it is certain",
    )
    replay.add_argument("--max-frames", type=int, metavar="N", help="only the first N images")
    replay.add_argument("--restart", action="store_true", help="forget the results that are there")
    replay.add_argument("--quiet", action="store_true", help="no progress bar")
    add_parameter_options(replay)
    for group in (TruthSettings, Criteria):
        add_settings(replay, group)
    replay.set_defaults(run=_replay)


def _add_rig(subparsers: Any) -> None:
    rig = subparsers.add_parser("rig", help="check the description of several cameras")
    actions = rig.add_subparsers(title="actions", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="compose a rig's images and judge how they fit together",
        description="Compose the images of a bag, or of a folder with one image for each camera (front.jpg …), and "
        "compare what two cameras see: mounts, exposures, times, and what no camera sees. The exit status is 1 if "
        "something should be corrected.",
    )
    check.add_argument("source", type=Path, metavar="BAG|FOLDER", help="recorded drive, or images named after cameras")
    check.add_argument("--rig", metavar="RIG.yaml|auto", help="as for replay (or the parameter `rig.file`)")
    check.add_argument("--plot", type=Path, metavar="PNG", help="draw the panorama and the numbers")
    check.add_argument("--sets", type=int, default=5, metavar="N", help="judge so many sets of a bag (%(default)s)")
    add_parameter_options(check)
    check.set_defaults(run=_check_rig)


def _check_rig(args: argparse.Namespace) -> int:
    from unifygeo_ros.evaluation.rig_check import check_rig, draw, gather, report, verdict

    settings = settings_of_options(args)
    if args.rig is not None:
        settings = with_values(settings, {"rig.file": args.rig})
    if not settings.rig:
        raise ConfigurationError("--rig is missing; give the rig file, or auto for the bag's own CameraInfo")
    if args.sets < 1:
        raise ConfigurationError(f"--sets {args.sets}, must be at least 1")
    found = check_rig(gather(args.source, args.sets, settings))
    print(report(found))
    if args.plot is not None:
        draw(found, args.plot, f"{args.source.name}: {settings.rig.file or settings.rig.cameras}")
    return 1 if verdict(found) else 0


def _add_compare(subparsers: Any) -> None:
    compare = subparsers.add_parser(
        "compare",
        help="set two replays of the same drive side by side",
        description="Compare the numbers of two replays of the same bag, image by image, with bootstrap intervals of "
        "the differences. The exit status is 1 if B is certainly worse than A in anything.",
    )
    compare.add_argument("a", type=Path, metavar="A.json", help="numbers that `unifygeo replay --report` wrote")
    compare.add_argument("b", type=Path, metavar="B.json", help="the same of the other run")
    compare.add_argument("--block", type=int, default=20, help="images that are drawn together (%(default)s)")
    compare.add_argument("--draws", type=int, default=2000, help="bootstrap draws (%(default)s)")
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(run=_compare)


def _add_accept(subparsers: Any) -> None:
    accept = subparsers.add_parser(
        "accept",
        help="decide whether a changed model may take the place of the old one",
        description="Compare replays of drives that were kept apart, with the old and with the new model. A model is "
        "accepted if it has no more false fixes on any drive, an ANEES inside its bounds, and certainly more fixes. "
        "The exit status is 1 if it is refused.",
    )
    accept.add_argument("--before", type=Path, nargs="+", required=True, metavar="A.json", help="replays, old model")
    accept.add_argument("--after", type=Path, nargs="+", required=True, metavar="B.json", help="the same, new model")
    accept.set_defaults(run=_accept)


def _replay(args: argparse.Namespace) -> int:
    from unifygeo_ros.evaluation.evaluate import ReplayRequest, evaluate, track_files
    from unifygeo_ros.evaluation.report.page import verdict

    settings = settings_of_options(args)
    if args.rig is not None:
        settings = with_values(settings, {"rig.file": args.rig})
    request = ReplayRequest(
        bag=args.bag,
        index=folder_option(args.index, settings.node.index, "--index", "index"),
        model=folder_option(args.model, settings.node.bundle, "--model", "bundle"),
        output=args.output,
        report=args.report,
        image_topic=args.image_topic,
        truth_topic=args.truth_topic,
        odometry_topic=args.odometry_topic,
        imu_topic=args.imu_topic,
        truth_file=args.truth_file,
        truth=settings_of(args, TruthSettings),
        settings=settings,
        criteria=settings_of(args, Criteria),
        smooth=args.smooth,
        max_frames=args.max_frames,
        restart=args.restart,
        quiet=args.quiet,
    )
    try:
        summary = evaluate(request)
    except OSError as error:  # what is read has errors of its own: this is a full or read-only disk
        raise InputError(
            f"{error.filename or args.output}: cannot be written ({error.strerror or error}); free some space or "
            "choose another --output and --report. Finished images are kept: the same command resumes from there"
        ) from error
    print(verdict(summary))
    print(summary.setup)
    if summary.advice:
        print("What to check:")
    for line in summary.advice:
        print(f"- {line}")
    for problem in summary.problems[:5]:
        print(f"problem: {problem}")
    tracks = track_files(args.output) if args.smooth else ()
    for path in (args.output, args.report, args.report and args.report.with_suffix(".json"), *tracks):
        if path is not None:
            print(path)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from unifygeo_ros.evaluation.metrics.comparison import compare, to_json, to_text
    from unifygeo_ros.evaluation.metrics.summary import read_summary

    comparison = compare(read_summary(args.a), read_summary(args.b), block=args.block, draws=args.draws)
    print(to_json(comparison) if args.json else to_text(comparison, args.a.name, args.b.name))
    return 1 if comparison.regressions else 0


def _accept(args: argparse.Namespace) -> int:
    from unifygeo_ros.evaluation.metrics.acceptance import accept
    from unifygeo_ros.evaluation.metrics.summary import read_summary

    verdict = accept([read_summary(path) for path in args.before], [read_summary(path) for path in args.after])
    print(verdict)
    return 0 if verdict.accepted else 1
