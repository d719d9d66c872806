"""`unifygeo-train towns`: render training pairs, a drive, or a picture to look at."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from unifygeo_ros.core.errors import ConfigurationError


def add_command(subparsers: Any) -> None:
    """Adds `towns` with its own subcommands."""
    parser = subparsers.add_parser("towns", help="procedural towns: training pairs, drives, pictures")
    commands = parser.add_subparsers(dest="towns_command", required=True)

    render = commands.add_parser("render", help="render towns and panoramas for training into a folder; resumable")
    render.add_argument("--seeds", type=seed_range, required=True, help="A:B, as a Python range: 0:64 is 0 to 63")
    render.add_argument("--pairs", type=int, default=600, help="panoramas a town (default: %(default)s)")
    render.add_argument("--size-m", type=float, default=600.0, help="side of a town (default: %(default)s)")
    render.add_argument("--orthophotos", type=int, default=2, help="days seen from above (default: %(default)s)")
    render.add_argument(
        "--camera-heights-m",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=[2.0, 2.0],
        help="heights of the cameras above the ground, drawn evenly between these two (default: 2 2)",
    )
    render.add_argument(
        "--kind",
        default="mixed",
        help="kind of town: mixed, city, old_town, suburb, estate, or varied, which draws one by the seed "
        "(default: %(default)s)",
    )
    render.add_argument(
        "--lean",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="in the orthophotos what stands leans by up to this much aside for each metre up (default: none)",
    )
    render.add_argument("--output", type=Path, required=True)
    render.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    render.set_defaults(run=_render)

    drive = commands.add_parser("drive", help="record a drive: orthophoto GeoTIFF and rosbag2 with ground truth")
    drive.add_argument("--seed", type=int, required=True, help="of the town; 1000 and above are never trained on")
    drive.add_argument("--length-m", type=float, default=600.0, help="at least (default: %(default)s)")
    drive.add_argument("--size-m", type=float, default=600.0, help="side of the town (default: %(default)s)")
    drive.add_argument(
        "--number", type=int, default=0, help="of the drive: others have another route and light (default: %(default)s)"
    )
    drive.add_argument(
        "--area-m",
        type=float,
        nargs=4,
        metavar=("WEST", "SOUTH", "EAST", "NORTH"),
        help="borders of the drive, metres from the town's south-west corner (default: the whole town)",
    )
    drive.add_argument(
        "--land",
        choices=("training", "other"),
        default="training",
        help="other: roofs, vegetation, light, camera and imagery as training never draws them (default: %(default)s)",
    )
    drive.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="of the other land, above 0 to 2; beyond 1 it only looks stranger (default: %(default)s)",
    )
    drive.add_argument(
        "--infrared",
        action="store_true",
        help="of the other land: imagery in colour infrared, and a camera of one channel that delivers negatives",
    )
    drive.add_argument(
        "--image-rate-hz", type=float, default=2.0, help="images a second of each camera (default: %(default)s)"
    )
    drive.add_argument("--jpeg-quality", type=int, default=92, help="of the images (default: %(default)s)")
    drive.add_argument(
        "--rig",
        type=Path,
        metavar="RIG.yaml",
        help="record these cameras in place of panoramas, with CameraInfo and TF (examples: config/rigs)",
    )
    drive.add_argument(
        "--image-scale",
        type=float,
        default=1.0,
        help="size of the rig's images against the rig file's; small ones are rendered sooner (default: %(default)s)",
    )
    drive.add_argument(
        "--exposure-spread-s",
        type=float,
        default=0.08,
        help="the rig's cameras expose one after the other, clockwise from the first one: time of a whole turn; 0: all "
        "at once (default: %(default)s)",
    )
    drive.add_argument(
        "--orthophoto-jpeg-quality", type=int, help="1 to 100 as providers deliver imagery (default: lossless)"
    )
    drive.add_argument("--output", type=Path, required=True, help="a new folder")
    drive.set_defaults(run=_drive)

    orthophoto = commands.add_parser("orthophoto", help="write a town's orthophoto as a GeoTIFF")
    orthophoto.add_argument("--seed", type=int, required=True)
    orthophoto.add_argument("--size-m", type=float, default=600.0, help="side of the town (default: %(default)s)")
    orthophoto.add_argument("--metres-per-pixel", type=float, default=0.2, help="(default: %(default)s)")
    orthophoto.add_argument("--output", type=Path, required=True, help="the file, .tif")
    orthophoto.set_defaults(run=_orthophoto)

    picture = commands.add_parser("picture", help="show panoramas of a town next to the tiles where they were taken")
    picture.add_argument("--seed", type=int, required=True)
    picture.add_argument("--panoramas", type=int, default=4, help="(default: %(default)s)")
    picture.add_argument("--output", type=Path, required=True, help="the file, .png")
    picture.set_defaults(run=_picture)


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
        concurrent.futures.ProcessPoolExecutor(args.workers, context, initializer=_use_one_thread) as pool,
        tqdm(total=len(args.seeds), unit="town") as bar,
    ):
        tasks = [
            pool.submit(
                render_pairs,
                seed,
                args.pairs,
                args.output,
                size_m=args.size_m,
                orthophotos=args.orthophotos,
                camera_heights_m=tuple(args.camera_heights_m),
                kind=args.kind,
                largest_lean=args.lean,
            )
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


def _use_one_thread() -> None:
    """OpenCV in a worker: the processes are as many as the cores that were given."""
    import cv2

    cv2.setNumThreads(1)


def _drive(args: argparse.Namespace) -> int:
    from unifygeo_ros.rig.description import read_rig
    from unifygeo_training.towns.drive import DriveSettings, record_drive
    from unifygeo_training.towns.other_land import OtherLand

    settings = DriveSettings(
        length_m=args.length_m,
        number=args.number,
        area_m=None if args.area_m is None else tuple(args.area_m),
        land=OtherLand(args.strength, args.infrared) if args.land == "other" else None,
        image_rate_hz=args.image_rate_hz,
        jpeg_quality=args.jpeg_quality,
        orthophoto_jpeg_quality=args.orthophoto_jpeg_quality,
        rig=None if args.rig is None else read_rig(args.rig),
        image_scale=args.image_scale,
        exposure_spread_s=args.exposure_spread_s,
    )
    folder = record_drive(args.seed, args.output, settings, size_m=args.size_m, progress=True)
    print((folder / "README.md").read_text())
    return 0


def _orthophoto(args: argparse.Namespace) -> int:
    import numpy as np

    from unifygeo_training.towns.light import draw_appearance
    from unifygeo_training.towns.orthophoto import render_orthophoto, write_geotiff
    from unifygeo_training.towns.town import build_town

    town = build_town(args.seed, args.size_m, args.metres_per_pixel)
    light = draw_appearance(np.random.default_rng([args.seed, 3]))
    write_geotiff(args.output, render_orthophoto(town, light), town.origin, town.metres_per_pixel)
    return 0


def _picture(args: argparse.Namespace) -> int:
    import cv2

    from unifygeo_training.towns.picture import draw_picture

    cv2.imwrite(str(args.output), draw_picture(args.seed, args.panoramas)[..., ::-1])
    return 0
