"""The command `unifygeo mount`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.parameters.options import add_parameter_options, settings_of_options


def add_command(subparsers: Any) -> None:
    """Add `mount` to the parser of `unifygeo`."""
    mount = subparsers.add_parser(
        "mount",
        help="estimate delay, camera mount, IMU offset and odometry scale from a recorded drive",
        description="Estimate from a drive what is easily set up wrongly: the delay of the images' stamps, the "
        "camera's place, yaw, pitch and roll on the vehicle, the IMU's yaw offset, the odometry's scale. Prints "
        "estimates with standard deviations and what the drive does not tell, and writes a parameter file. The exit "
        "status is 1 if the drive tells nothing.",
    )
    mount.add_argument("bag", type=Path, metavar="BAG", help="the recorded drive, with odometry: some hundred metres "
                       "with turns and changes of speed")  # fmt: skip
    mount.add_argument("--index", type=Path, help="folder of the index (or the parameter `index`)")
    mount.add_argument(
        "--model", type=Path, help="folder of the model bundle that made the index (or the parameter `bundle`)"
    )
    mount.add_argument("--output", type=Path, metavar="MOUNT.yaml", help="write the values as a parameter file")
    mount.add_argument("--image-topic", metavar="TOPIC", help="Image or CompressedImage of the panoramas")
    mount.add_argument("--odometry-topic", metavar="TOPIC", help="Odometry that drifts and does not jump")
    mount.add_argument("--imu-topic", metavar="TOPIC", help="Imu; none: leave it out")
    mount.add_argument("--max-frames", type=int, metavar="N", help="only the first N images")
    mount.add_argument("--images", type=int, metavar="N", help="images that are aligned, at most")
    mount.add_argument("--quiet", action="store_true", help="no progress bar")
    add_parameter_options(mount)
    mount.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from unifygeo_ros.evaluation.mounting.estimate import LEAST_IMAGES, MOST_IMAGES
    from unifygeo_ros.evaluation.mounting.pipeline import MountRequest, estimate_mount
    from unifygeo_ros.evaluation.mounting.report import findings, parameter_text, table, write_parameters

    images = MOST_IMAGES if args.images is None else args.images
    if images < LEAST_IMAGES:
        raise ConfigurationError(f"--images {images}, must be at least {LEAST_IMAGES}")
    request = MountRequest(
        bag=args.bag,
        index=args.index,
        model=args.model,
        settings=settings_of_options(args),
        image_topic=args.image_topic,
        odometry_topic=args.odometry_topic,
        imu_topic=args.imu_topic,
        max_frames=args.max_frames,
        images=images,
        quiet=args.quiet,
    )
    estimate, settings = estimate_mount(request)
    found = findings(estimate, settings)
    print(table(found, estimate))
    for warning in estimate.warnings[:5]:
        print(f"while localizing: {warning}")
    text = parameter_text(found, settings, args.bag.name)
    if text is None:
        print("This drive tells none of these values: no parameter file is written.")
        return 1
    if args.output is not None:
        try:
            write_parameters(args.output, text)
        except OSError as error:
            raise InputError(
                f"{args.output}: cannot be written ({error.strerror or error}); choose another --output"
            ) from error
        print(args.output)
    return 0
