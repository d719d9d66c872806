"""`unifygeo-train adapt`: a bundle and recorded drives → a bundle for this camera and region, if it is better."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_command(subparsers: Any) -> None:
    from unifygeo_ros.core.options import add_settings
    from unifygeo_ros.parameters.options import add_parameter_options
    from unifygeo_training.adapt.settings import LearnSettings

    parser = subparsers.add_parser(
        "adapt",
        help="adapt a bundle to a camera and a region from drives without ground truth",
        description="Replay drives with the bundle's tracker, learn from the smoothed tracks where they are certain, "
        "and keep the result only if it is better on drives that were kept apart. The same command goes on after an "
        "interruption. The exit status is 1 if the old bundle stays.",
    )
    parser.add_argument("bundle", type=Path, help="the model bundle; it stays as it is")
    parser.add_argument("drives", type=Path, nargs="+", metavar="DRIVE", help="bags to learn from")
    parser.add_argument("--index", type=Path, required=True, help="folder of the bundle's index over all the drives")
    parser.add_argument(
        "--keep-apart",
        type=Path,
        nargs="+",
        required=True,
        metavar="DRIVE",
        help="bags of other drives, which decide whether the result is better",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the new bundle; must not exist")
    parser.add_argument("--work", type=Path, help="folder of the steps and the report (default: OUTPUT.work)")
    parser.add_argument("--image-topic", metavar="TOPIC", help="as for `unifygeo replay`")
    parser.add_argument("--odometry-topic", metavar="TOPIC", help="as for `unifygeo replay`")
    parser.add_argument("--imu-topic", metavar="TOPIC", help="as for `unifygeo replay`")
    parser.add_argument(
        "--truth-topic", metavar="TOPIC", help="ground truth of the drives kept apart, for the decision alone"
    )
    add_parameter_options(parser)
    add_settings(parser, LearnSettings)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from unifygeo_ros.core.options import settings_of
    from unifygeo_ros.parameters.options import settings_of_options
    from unifygeo_training.adapt.adapt import AdaptRequest, adapt
    from unifygeo_training.adapt.settings import LearnSettings

    output = options.output
    outcome = adapt(
        AdaptRequest(
            bundle=options.bundle,
            drives=tuple(options.drives),
            apart=tuple(options.keep_apart),
            index=options.index,
            output=output,
            work=options.work or output.with_name(f"{output.name}.work"),
            settings=settings_of_options(options),
            learning=settings_of(options, LearnSettings),
            image_topic=options.image_topic,
            odometry_topic=options.odometry_topic,
            imu_topic=options.imu_topic,
            truth_topic=options.truth_topic,
        )
    )
    print(outcome.report, end="")
    return 0 if outcome.accepted else 1
