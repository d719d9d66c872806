"""The command `unifygeo-train`: one line for each subcommand, each in a module of its own."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

try:
    from unifygeo_ros.core.errors import UnifyGeoError
except ModuleNotFoundError as error:
    sys.exit(f'unifygeo-train: {error}; in the root of the repository: pip install ".[cpu,tools]" ./training')

COMMAND_MODULES = (
    "unifygeo_training.towns.command",
    "unifygeo_training.data.command",
    "unifygeo_training.fit_command",
    "unifygeo_training.judging.command",
    "unifygeo_training.calibrate_command",
    "unifygeo_training.export_command",
    "unifygeo_training.adapt.command",
)
"""Modules with `add_command(subparsers)`; they import what is heavy only when they run."""


TALKATIVE = ("faiss.loader", "onnx_ir", "onnxscript", "torch.onnx")
"""Loggers of libraries whose INFO is about their own inside: a line for every replaced initializer."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="unifygeo-train", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMAND_MODULES:
        importlib.import_module(name).add_command(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand. An error that the user can correct is one line on stderr and exit status 2."""
    program = "unifygeo-train"
    try:
        options = build_parser().parse_args(arguments)
        program += f" {options.command}"
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        return int(options.run(options))
    except UnifyGeoError as error:
        print(f"{program}: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("unifygeo_"):
            raise
        print(
            f"{program}: {error}; `make training`, or in the root of the repository: "
            'pip install ".[cpu,tools]" ./training',
            file=sys.stderr,
        )
    return 2


if __name__ == "__main__":
    sys.exit(main())
