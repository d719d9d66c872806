"""Commands on model bundles: `unifygeo bundle info` and `unifygeo compile`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.inference.engine import BackendUnavailable

if TYPE_CHECKING:
    from unifygeo_ros.inference.tensorrt_library import Library


def add_command(subparsers: Any) -> None:
    """Add `bundle` and `compile` to the parser of `unifygeo`."""
    bundle = subparsers.add_parser("bundle", help="look into a model bundle")
    commands = bundle.add_subparsers(metavar="COMMAND", required=True)
    info = commands.add_parser("info", help="verify a bundle's files and show what its manifest says")
    info.add_argument("bundle", type=Path, help="folder of the model bundle")
    info.set_defaults(run=_info)

    migrate = commands.add_parser(
        "migrate", help="rewrite the manifest of a bundle of the first edition, which had no checksum of itself"
    )
    migrate.add_argument("bundle", type=Path, help="folder of the model bundle")
    migrate.set_defaults(run=_migrate)

    build = subparsers.add_parser(
        "compile", help="build a bundle's TensorRT engines where they will run, or ahead of time"
    )
    build.add_argument("bundle", type=Path, help="folder of the model bundle")
    build.add_argument(
        "--backend",
        choices=("auto", "tensorrt", "tensorrt_rtx"),
        default="auto",
        help="auto: the first of the two that is installed",
    )
    build.add_argument(
        "--precision",
        choices=("auto", "fp16", "fp32", "int8"),
        default="auto",
        help="auto: fp16, where the bundle holds it",
    )
    build.add_argument("--device", type=int, default=0, help="number of the GPU")
    build.add_argument("--cache", type=Path, help="folder of compiled engines (default: ~/.cache/unifygeo/engines)")
    build.add_argument(
        "--compute-capability",
        metavar="X.Y",
        help="build for that GPU instead of the one in this machine, which then needs none (tensorrt_rtx)",
    )
    build.add_argument("--rebuild", action="store_true", help="build engines that exist, too")
    build.add_argument(
        "--prune",
        action="store_true",
        help="then remove from the cache what is not of these engines: other bundles, precisions, library versions",
    )
    build.set_defaults(run=_compile)


def _info(args: argparse.Namespace) -> int:
    from unifygeo_ros.inference.bundle import load_bundle

    manifest = load_bundle(args.bundle).manifest
    ground, aerial = manifest.ground, manifest.aerial
    top, bottom = math.degrees(ground.elevation_top_rad), math.degrees(ground.elevation_bottom_rad)
    rows = {
        "name": manifest.name,
        "weights": manifest.weights_sha256,
        "ground image": f"{ground.height}×{ground.width} px, elevations {bottom:+.1f}° … {top:+.1f}°, "
        f"{ground.columns} columns",
        "aerial image": f"{aerial.size}×{aerial.size} px at {aerial.metres_per_pixel:g} m/px ({aerial.side_m:g} m)",
        "descriptor": str(manifest.descriptor_dim),
        "pyramid": ", ".join(f"{channels} @ {size}×{size}" for channels, size in manifest.pyramid),
        "distribution": f"{manifest.distribution_size}×{manifest.distribution_size}",
        "trained on": manifest.trained_on,
        "calibration": manifest.calibration_text,
        "familiarity": manifest.familiarity_text,
        "licence": manifest.licence,
    }
    for number, step in enumerate(manifest.lineage, 1):
        rows[f"step {number}"] = f"{step['made_by']} on {step.get('data', 'unknown data')}"
        for what, found in step.get("accuracy", {}).items():
            rows[f"  {what.replace('_', ' ')}"] = accuracy_text(found)
    for graph, files in manifest.graphs.items():
        sizes = (
            f"{precision} {(args.bundle / entry.file).stat().st_size / 1e6:.1f} MB"
            for precision, entry in files.items()
        )
        rows[graph] = ", ".join(sizes)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    return 0


def accuracy_text(found: Mapping[str, float]) -> str:
    """An entry of the accuracy that a step of a lineage states."""
    return f"R@5 {found['recall_5']:.1f}%, within 5 m {found['within_5_m']:.1f}%, median {found['median_m']:.3f} m"


def _migrate(args: argparse.Namespace) -> int:
    from unifygeo_ros.inference.bundle import FORMAT, migrate_bundle

    manifest = migrate_bundle(args.bundle)
    print(f"{args.bundle}: rewritten as format version {FORMAT.version}. Nothing vouched for these values; check them:")
    for name, value in dataclasses.asdict(manifest.calibration).items() if manifest.calibrated else ():
        print(f"  {name}: {value}")
    print(f"  calibration: {manifest.calibration_text}")
    print(f"  aerial image: {manifest.aerial.size} px at {manifest.aerial.metres_per_pixel:g} m/px")
    return 0


def _compile(args: argparse.Namespace) -> int:
    from unifygeo_ros.inference.bundle import GRAPHS, load_bundle
    from unifygeo_ros.inference.cuda import CudaDevice
    from unifygeo_ros.inference.engine_cache import EngineCache
    from unifygeo_ros.inference.select import choose_precision
    from unifygeo_ros.inference.tensorrt_engine import Target, compile_engine

    logging.getLogger("unifygeo_ros.inference").setLevel(logging.INFO)  # the build's progress
    ahead_of_time = args.compute_capability is not None
    target = Target(_compute_capability(args.compute_capability)) if ahead_of_time else None
    bundle = load_bundle(args.bundle)
    library = _library(args.backend, ahead_of_time)
    if ahead_of_time and not library.is_rtx:
        raise ConfigurationError(
            "--compute-capability: tensorrt builds only for the GPU in its machine; leave it out, or use tensorrt_rtx"
        )
    precision = choose_precision(bundle, library.backend, args.precision)
    cache = EngineCache(args.cache)
    device = None
    if target is None:
        device = CudaDevice(args.device)
        target = Target.of(device)
    kept = []
    for graph in GRAPHS:
        compiled = compile_engine(
            bundle,
            graph,
            precision,
            library,
            cache,
            target,
            rebuild=args.rebuild,
        )
        kept.append(compiled.key)
        what = f"built in {compiled.seconds:.1f} s" if compiled.seconds else "already there"
        print(f"{graph} {precision}: {what}, {len(compiled.plan) / 1e6:.1f} MB, {compiled.path}")
    if device:
        device.close()
    if args.prune:
        for path in cache.prune(kept):
            print(f"removed {path}")
    return 0


def _library(backend: str, ahead_of_time: bool) -> Library:
    """The library asked for; "auto": the first that is installed (and can build ahead of time, if that is wanted)."""
    from unifygeo_ros.inference.tensorrt_library import load_library

    if backend != "auto":
        return load_library(backend)
    reasons = []
    for name in ("tensorrt_rtx",) if ahead_of_time else ("tensorrt", "tensorrt_rtx"):
        try:
            return load_library(name)
        except BackendUnavailable as error:
            reasons.append(str(error))
    raise BackendUnavailable("no TensorRT to compile with:\n" + "\n".join(reasons))


def _compute_capability(text: str) -> tuple[int, int]:
    major, dot, minor = text.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise ConfigurationError(f"--compute-capability is {text!r}, must be as 8.9; see the GPU's data sheet")
    return int(major), int(minor)
