"""`unifygeo demo`: see a vehicle being localized, on a machine without ROS, GPU or data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

THIS_FILE = Path(__file__).resolve()


def shipped_folder(name: str, module: Path = THIS_FILE) -> Path:
    """A folder that ships with the package, `demo` or `models`.

    Args:
        name: of the folder.
        module: this file: CHECKOUT/unifygeo_ros/demo/command.py, or, installed by pip or colcon,
            PREFIX/lib/python3.*/site-packages/unifygeo_ros/demo/command.py.

    Returns:
        The folder of the checkout if it is there, else of PREFIX/share/unifygeo_ros.
    """
    package = module.parent.parent
    in_checkout = package.parent / name
    if in_checkout.is_dir() or package.parent.name not in ("site-packages", "dist-packages"):
        return in_checkout
    return package.parents[3] / "share" / "unifygeo_ros" / name


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
        "--model", type=Path, default=shipped_folder("models") / "towns-photo", help="folder of the model bundle"
    )
    demo.add_argument("--output", type=Path, default=Path("out/demo"), help="folder of the results (%(default)s)")
    demo.add_argument("--rate", type=float, default=1.0, help="seconds of the drive a second (%(default)s)")
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
