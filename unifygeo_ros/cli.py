"""The command `unifygeo`.

Each subcommand is defined next to the code it starts, in a module with `add_command(subparsers)`. Such modules import
what is heavy only when they run, so `unifygeo --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import signal
import sys
from typing import Sequence

import unifygeo_ros
from unifygeo_ros.core.errors import UnifyGeoError
from unifygeo_ros.core.options import CommandParser

COMMAND_MODULES: tuple[str, ...] = (
    "unifygeo_ros.aerial.command",
    "unifygeo_ros.aerial.region_command",
    "unifygeo_ros.inference.command",
    "unifygeo_ros.localization.command",
    "unifygeo_ros.evaluation.command",
    "unifygeo_ros.evaluation.forecast.command",
    "unifygeo_ros.evaluation.mounting.command",
    "unifygeo_ros.demo.command",
    "unifygeo_ros.watch.command",
)
"""Modules with `add_command(subparsers) -> None`, which sets `run=` to a function (args) -> exit status."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = CommandParser(prog="unifygeo", description=unifygeo_ros.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {unifygeo_ros.__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done and which choices are made")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in COMMAND_MODULES:
        importlib.import_module(module).add_command(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The subcommand's exit status. 2 after one line on stderr for an error that the user can correct, a library
        that is not installed or cannot be loaded among them. 141 where the reader of the output went away
        (`unifygeo … | head`), 130 where the user interrupted it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the encoding of the locale lacks, such as …, and names of files that are no text: shown as numbers.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args = build_parser().parse_args(argv)
        logging.basicConfig(
            level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
        )
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except UnifyGeoError as error:
        print(f"unifygeo: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("unifygeo: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Python flushes stdout again when it ends; the pipe must not be there any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ImportError as error:
        if (error.name or "").startswith("unifygeo_"):
            raise  # a fault of this package, not of its installation
        remedy = (
            "install what all commands need: in the root of the repository "
            '`pip install ".[cpu,tools]"`, in a ROS workspace `rosdep install --from-paths src --ignore-src`'
        )
        if not isinstance(error, ModuleNotFoundError):
            remedy = (
                f"{error.name} is installed but cannot be loaded; where a library of the system is missing, install it "
                "(for OpenCV in a small container: `apt-get install libgl1 libglib2.0-0 libxcb1`)"
            )
        print(f"unifygeo: {error}; {remedy}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
