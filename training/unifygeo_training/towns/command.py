"""`unifygeo-train towns`: render training pairs, a drive, or a picture to look at."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from unifygeo_ros.errors import ConfigurationError


def add_command(subparsers: Any) -> None:
    """Adds `towns` with its own subcommands."""
    parser = subparsers.add_parser("towns", help="procedural towns: training pairs, drives, pictures")
    commands = parser.add_subparsers(dest="towns_command", required=True)

    render = commands.add_parser("render", help="render towns and panoramas for training into a folder; resumable")
    render.add_argument("--seeds", type=seed_range, required=True, help="A:B, as a Python range: 0:64 is 0 to 63")
    render.add_argument("--pairs", type=int, default=600, help="panoramas a town (default: %(default)s)")
    render.add_argument("--size-m", type=float, default=600.0, help="side of a town (default: %(default)s)")
    render.add_argument("--orthophotos", type=int, default=2, help="days seen from above (default: %(default)s)")
    render.add_argument("--output", type=Path, required=True)
    render.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    render.set_defaults(run=_render)


def seed_range(text: str) -> range:
    """The seeds of A:B or of one number."""
    if re.fullmatch(r"\d+", text):
        return range(int(text), int(text) + 1)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with A < B, such as 0:64")
    return range(int(match[1]), int(match[2]))


def _render(args: argparse.Namespace) -> int:
    import concurrent.futures
    import multiprocessing

    from tqdm import tqdm

    from unifygeo_training.towns.pairs import render_pairs

    if args.workers < 1 or args.pairs < 1:
        raise ConfigurationError(f"--workers {args.workers} and --pairs {args.pairs} must be at least 1")
    args.output.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(args.workers, mp_context=context) as pool,
        tqdm(total=len(args.seeds), unit="town") as bar,
    ):
        tasks = [
            pool.submit(render_pairs, seed, args.pairs, args.output, size_m=args.size_m, orthophotos=args.orthophotos)
            for seed in args.seeds
        ]
        try:
            for task in concurrent.futures.as_completed(tasks):
                task.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return 0
