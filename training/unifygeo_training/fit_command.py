"""`unifygeo-train fit` and `average`: train a network from a config file; average two checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("fit", help="train a network; run the same command again to resume")
    parser.add_argument("config", type=Path, help="YAML; see training/configs")
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints and TensorBoard logs")
    parser.add_argument(
        "--data", type=Path, help="folder of the data, or file that names the drives, instead of the config's"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting instead of the config's, such as losses.reranking=0; may be given again",
    )
    parser.add_argument("--stop-after", type=int, metavar="STEP", help="end at this step; resume later")
    parser.set_defaults(run=_run)

    average = subparsers.add_parser(
        "average", help="average the weights of a fine-tuning with those that it started from"
    )
    average.add_argument("first", type=Path, help="a checkpoint of `unifygeo-train fit`, or a bundle")
    average.add_argument("second", type=Path, help="a checkpoint of the same network")
    average.add_argument("--share", type=float, default=0.5, help="of the second, 0 to 1 (default: %(default)s)")
    average.add_argument("--output", type=Path, required=True, help="the new checkpoint; must not exist")
    average.set_defaults(run=_average)


def _run(options: argparse.Namespace) -> int:
    from unifygeo_training.configuration import read_settings
    from unifygeo_training.fit import fit
    from unifygeo_training.fit_config import FitConfig

    config = read_settings(options.config, FitConfig, options.set)
    if options.data:
        place = "file" if config.data.kind == "drives" else "folder"
        config = config.model_copy(update={"data": config.data.model_copy(update={place: options.data})})
    pairs = config.data.open(config.network)
    checkpoint = fit(config, pairs, options.output, stop_after=options.stop_after)
    print(checkpoint)
    return 0


def _average(options: argparse.Namespace) -> int:
    from unifygeo_training.averaging import average

    average(options.first, options.second, options.share, options.output)
    print(options.output)
    return 0
