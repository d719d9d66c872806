"""`unifygeo demo`: see a vehicle being localized, on a machine without ROS, GPU or data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
INSTALLED_SHARE = Path(__file__).resolve().parents[5] / "share" / "unifygeo_ros"
"""Of pip and of colcon: PREFIX/lib/python3.*/site-packages/unifygeo_ros/demo/command.py."""


def shipped_folder(name: str) -> Path:
    """A folder that ships with the package, `demo` or `models`: in the checkout, or below share/ of an installation."""
    in_checkout = REPOSITORY / name
    return in_checkout if in_checkout.is_dir() else INSTALLED_SHARE / name


def add_command(subparsers: Any) -> None:
    demo = subparsers.add_parser(
        "demo",
        help="see a vehicle being localized: index, node, drive, report",
        description="Build the index of the demo's town, start the real lifecycle node in its own process, play the "
        "recorded drive to it over DDS, judge its fixes, and write a report. Needs rclpy "
        "(docs/how-to/ros_without_ros.md).",
    )
    demo.add_argument(
        "--data", type=Path, default=shipped_folder("demo"), help="folder of town.tif, drive and localizer.yaml"
    )
    demo.add_argument(
        "--model", type=Path, default=shipped_folder("models") / "towns-atto", help="folder of the model bundle"
    )
    demo.add_argument("--output", type=Path, default=Path("out/demo"), help="folder of the results (%(default)s)")
    demo.add_argument("--rate", type=float, default=3.0, help="seconds of the drive a second (%(default)s)")
    demo.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from unifygeo_ros.core.errors import ConfigurationError

    try:
        import rclpy  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"rclpy cannot be imported ({error}); source your ROS 2 installation, or `make demo`, which installs one"
        ) from error
    from unifygeo_ros.demo.run import run_demo

    run_demo(args.data, args.model, args.output, args.rate)
    return 0
