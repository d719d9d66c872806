"""The commands `unifygeo replay` and `unifygeo compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unifygeo_ros.core.errors import UnifyGeoError
from unifygeo_ros.core.options import add_settings, settings_of
from unifygeo_ros.evaluation.settings import Criteria, TruthSettings
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.sessions.session import SessionConfig
from unifygeo_ros.tracking.config import TrackerConfig


def add_command(subparsers: Any) -> None:
    """Add `replay` and `compare` to the parser of `unifygeo`."""
    _add_replay(subparsers)
    _add_compare(subparsers)


def _add_replay(subparsers: Any) -> None:
    replay = subparsers.add_parser(
        "replay",
        help="localize a recorded drive and judge the fixes",
        description="Run the localizer over a bag (rosbag2 folder, .mcap, .db3, or rosbag1 .bag) as the node would, "
        "write a bag with fixes and ground truth, and a report. Started again, an interrupted replay goes on where it "
        "stopped. Topics are found by type where only one serves.",
    )
    replay.add_argument("bag", type=Path, metavar="BAG", help="the recorded drive")
    replay.add_argument("--index", required=True, type=Path, help="folder of the index")
    replay.add_argument("--model", required=True, type=Path, help="folder of the model bundle that made the index")
    replay.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="OUT.mcap",
        help="bag of fixes, diagnostics and ground truth (no ending: a rosbag2 folder); results lie beside it",
    )
    replay.add_argument("--report", type=Path, metavar="REPORT.html", help="write the report, and its numbers as .json")
    replay.add_argument(
        "--params",
        type=Path,
        action=_TakeNodeParameters,
        metavar="FILE.yaml",
        help="settings from the node's parameter file; options given after it override them",
    )
    replay.add_argument("--image-topic", metavar="TOPIC", help="Image or CompressedImage")
    replay.add_argument(
        "--truth-topic", metavar="TOPIC", help="NavSatFix, Odometry, PoseStamped or PoseWithCovarianceStamped"
    )
    replay.add_argument("--truth-file", type=Path, metavar="FILE", help="TUM or CSV trajectory in place of a topic")
    replay.add_argument("--odometry-topic", metavar="TOPIC", help="Odometry of the session; none: leave it out")
    replay.add_argument("--imu-topic", metavar="TOPIC", help="Imu of the session; none: leave it out")
    replay.add_argument(
        "--camera-frame",
        default="",
        metavar="FRAME",
        help="take the place of the camera from /tf_static, not from --x-m, --y-m, --z-m, --yaw-rad, --upside-down",
    )
    replay.add_argument("--base-frame", default="base_link", metavar="FRAME", help="of the vehicle (%(default)s)")
    replay.add_argument("--max-frames", type=int, metavar="N", help="only the first N images")
    replay.add_argument("--restart", action="store_true", help="forget the results that are there")
    replay.add_argument("--quiet", action="store_true", help="no progress bar")
    replay.add_argument("--backend", default="auto", help="inference backend (%(default)s)")
    replay.add_argument("--precision", default="auto", help="fp32, fp16 or auto")
    replay.add_argument("--device", type=int, default=0, help="number of the GPU (%(default)s)")
    replay.add_argument("--threads", type=int, default=0, help="of the CPU backend; 0: one for each core")
    replay.add_argument("--cache-dir", type=Path, help="folder of compiled engines")
    for group in (TruthSettings, Criteria, CameraMount, LocalizerConfig, SessionConfig, TrackerConfig):
        add_settings(replay, group)
    replay.set_defaults(run=_replay)


class _TakeNodeParameters(argparse.Action):
    """Sets the options that a node's parameter file gives."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        from unifygeo_ros.parameters.files import read_node_parameters

        try:
            parameters = read_node_parameters(values)
        except UnifyGeoError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        for name, value in parameters.items():
            if name == "cache_dir":
                value = Path(value) if value else None
            setattr(namespace, name, value)


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


def _replay(args: argparse.Namespace) -> int:
    from unifygeo_ros.evaluation.evaluate import EngineOptions, ReplayRequest, evaluate
    from unifygeo_ros.evaluation.report.page import verdict

    summary = evaluate(
        ReplayRequest(
            bag=args.bag,
            index=args.index,
            model=args.model,
            output=args.output,
            report=args.report,
            image_topic=args.image_topic,
            truth_topic=args.truth_topic,
            odometry_topic=args.odometry_topic,
            imu_topic=args.imu_topic,
            truth_file=args.truth_file,
            truth=settings_of(args, TruthSettings),
            engines=EngineOptions(args.backend, args.precision, args.device, args.cache_dir, args.threads),
            camera=settings_of(args, CameraMount),
            camera_frame=args.camera_frame,
            base_frame=args.base_frame,
            localizer=settings_of(args, LocalizerConfig),
            session=settings_of(args, SessionConfig),
            tracker=settings_of(args, TrackerConfig),
            criteria=settings_of(args, Criteria),
            max_frames=args.max_frames,
            restart=args.restart,
            quiet=args.quiet,
        )
    )
    print(verdict(summary))
    for problem in summary.problems[:5]:
        print(f"not read: {problem}")
    for path in (args.output, args.report, args.report and args.report.with_suffix(".json")):
        if path is not None:
            print(path)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from unifygeo_ros.evaluation.metrics.comparison import compare, to_json, to_text
    from unifygeo_ros.evaluation.metrics.summary import read_summary

    comparison = compare(read_summary(args.a), read_summary(args.b), block=args.block, draws=args.draws)
    print(to_json(comparison) if args.json else to_text(comparison, args.a.name, args.b.name))
    return 1 if comparison.regressions else 0
