"""`unifygeo-train export` and `import-checkpoint`: weights to a model bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_command(subparsers: Any) -> None:
    export = subparsers.add_parser("export", help="turn a checkpoint into a model bundle")
    export.add_argument("checkpoint", type=Path, help="a checkpoint that `unifygeo-train fit` wrote")
    _add_bundle_options(export)
    export.set_defaults(run=_export)

    published = subparsers.add_parser("import-checkpoint", help="turn the published weights into a model bundle")
    published.add_argument("weights", type=Path, help="the authors' state dict (.pth) or the same as .safetensors")
    published.add_argument("--network", type=Path, help="YAML of another network config than the published one")
    _add_bundle_options(published)
    published.set_defaults(run=_import_checkpoint)


def _add_bundle_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder of the bundle; must not exist")
    parser.add_argument("--name", help="name in the manifest (default: the output's)")
    parser.add_argument("--licence", default="unstated", help="SPDX identifier of the weights' licence")
    parser.add_argument("--trained-on", help="what the weights were trained on, for the manifest")
    parser.add_argument("--precision", action="append", choices=("fp32", "fp16"), help="default: both")
    parser.add_argument(
        "--calibration", type=Path, help="what `unifygeo-train calibrate` wrote (default: the bundle is not calibrated)"
    )
    parser.add_argument("--compact", action="store_true", help="one file of float16 weights for both precisions")


def _export(options: argparse.Namespace) -> int:
    from unifygeo_training.checkpoint import load_network

    network, content = load_network(options.checkpoint)
    return _write(options, network, str(content.get("trained_on", "unstated")))


def _import_checkpoint(options: argparse.Namespace) -> int:
    from unifygeo_training.checkpoint import published_network
    from unifygeo_training.configuration import read_network_config
    from unifygeo_training.model import NetworkConfig

    config = read_network_config(options.network) if options.network else NetworkConfig()
    return _write(options, published_network(options.weights, config), f"the weights of {options.weights.name}")


def _write(options: argparse.Namespace, network: Any, trained_on: str) -> int:
    from unifygeo_ros.inference.bundle import PRECISIONS
    from unifygeo_training.calibrate import read_calibration
    from unifygeo_training.export import BundleText, export_bundle

    text = BundleText(options.name or options.output.name, options.licence, options.trained_on or trained_on)
    calibration = read_calibration(options.calibration) if options.calibration else None
    precisions = options.precision or PRECISIONS
    bundle = export_bundle(
        network, options.output, text, precisions=precisions, calibration=calibration, compact=options.compact
    )
    size = sum(file.stat().st_size for file in bundle.path.iterdir())
    print(f"{bundle.path}: weights {bundle.manifest.weights_sha256[:12]}…, {size / 1e6:.1f} MB")
    return 0
