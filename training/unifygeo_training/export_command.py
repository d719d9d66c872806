"""`unifygeo-train export` and `import-checkpoint`: weights to a model bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unifygeo_ros.inference.bundle import ModelBundle


def add_command(subparsers: Any) -> None:
    export = subparsers.add_parser("export", help="turn a checkpoint into a model bundle, or make an INT8 bundle")
    export.add_argument(
        "checkpoint",
        type=Path,
        help="a checkpoint that `unifygeo-train fit` wrote; or a bundle, whose graphs are written anew or quantised",
    )
    _add_bundle_options(export)
    _add_quantise_options(export)
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


def _add_quantise_options(parser: argparse.ArgumentParser) -> None:
    """The defaults of the numbers are those of `unifygeo_training.quantise.bundle`, which is slow to import."""
    group = parser.add_argument_group("INT8")
    group.add_argument(
        "--quantise",
        type=Path,
        nargs="+",
        metavar="DATA",
        help="write INT8 graphs instead, made with this data: cached towns, neither trained on nor tested on, or a "
        "file that names drives",
    )
    group.add_argument(
        "--error-budget",
        type=float,
        metavar="SHARE",
        help="error of a graph's outputs that its INT8 layers may make together; the most sensitive layers beyond it "
        "stay in fp32 (default: 0.15)",
    )
    group.add_argument(
        "--where-faster",
        action="store_true",
        help="leave layers in fp32 that ONNX Runtime computes no faster in INT8 on this processor: for a bundle that "
        "runs on CPUs",
    )
    group.add_argument(
        "--accept-loss",
        nargs=3,
        type=float,
        metavar=("R@5", "WITHIN_5_M", "MEDIAN_M"),
        help="largest loss of accuracy with which the bundle is written: points, points, metres (default: 1 1 0.03)",
    )


def _export(options: argparse.Namespace) -> int:
    from unifygeo_ros.core.errors import ConfigurationError
    from unifygeo_training.checkpoint import load_network

    if options.quantise:
        return _quantise(options)
    if options.error_budget is not None or options.accept_loss is not None or options.where_faster:
        raise ConfigurationError(
            "--error-budget, --accept-loss and --where-faster are for INT8; give --quantise DATA, too"
        )
    if options.checkpoint.is_dir():
        return _rewrite(options)
    network, content = load_network(options.checkpoint)
    return _write(options, network, str(content.get("trained_on", "unstated")))


def _rewrite(options: argparse.Namespace) -> int:
    from unifygeo_ros.core.errors import ConfigurationError
    from unifygeo_ros.inference.bundle import load_bundle
    from unifygeo_training.rewritten import rewrite_bundle

    if options.precision or options.compact or options.calibration or options.trained_on:
        raise ConfigurationError(
            f"{options.checkpoint} is a bundle, whose graphs are written anew as they are; leave --precision, "
            "--compact, --calibration and --trained-on out, or give the checkpoint"
        )
    _print_size(
        rewrite_bundle(load_bundle(options.checkpoint), options.output, name=options.name or options.output.name)
    )
    return 0


def _quantise(options: argparse.Namespace) -> int:
    import dataclasses
    import tempfile

    from unifygeo_ros.core.errors import ConfigurationError
    from unifygeo_ros.inference.bundle import load_bundle
    from unifygeo_ros.inference.command import accuracy_text
    from unifygeo_training.calibrate import read_calibration
    from unifygeo_training.checkpoint import load_network
    from unifygeo_training.configuration import check_settings
    from unifygeo_training.export import BundleText, export_bundle
    from unifygeo_training.model import NetworkConfig
    from unifygeo_training.quantise.bundle import ERROR_BUDGET, Limits, quantise_bundle
    from unifygeo_training.quantise.data import open_sets

    budget = ERROR_BUDGET if options.error_budget is None else options.error_budget
    limits = Limits(*options.accept_loss) if options.accept_loss else Limits()
    if not 0 < budget < float("inf"):
        raise ConfigurationError(f"--error-budget is {budget:g}, must be above 0; 0.15 is usual")
    if not all(0 <= value < float("inf") for value in dataclasses.astuple(limits)):
        raise ConfigurationError(f"--accept-loss is {options.accept_loss}, must be three numbers of at least 0")
    if options.precision or options.compact:
        raise ConfigurationError("an INT8 bundle holds INT8 graphs alone; leave --precision and --compact out")
    if options.output.exists():
        raise ConfigurationError(f"{options.output} exists; remove it or choose another --output")

    def quantised(parent: ModelBundle) -> ModelBundle:
        config = check_settings(parent.manifest.network, NetworkConfig, str(parent.path))
        sets = open_sets(options.quantise, config)
        name = options.name or options.output.name
        return quantise_bundle(
            parent,
            sets,
            options.output,
            name=name,
            limits=limits,
            error_budget=budget,
            where_faster=options.where_faster,
        )

    if options.checkpoint.is_dir():
        if options.calibration or options.trained_on or options.licence != "unstated":
            raise ConfigurationError(
                f"calibration, licence and data are those of the bundle {options.checkpoint}; leave --calibration, "
                "--licence and --trained-on out"
            )
        bundle = quantised(load_bundle(options.checkpoint))
    else:
        network, content = load_network(options.checkpoint)
        text = BundleText(
            options.output.name, options.licence, options.trained_on or str(content.get("trained_on", "unstated"))
        )
        calibration = read_calibration(options.calibration) if options.calibration else None
        with tempfile.TemporaryDirectory() as scratch:
            parent = export_bundle(network, Path(scratch) / "fp32", text, precisions=("fp32",), calibration=calibration)
            bundle = quantised(parent)
    _print_size(bundle)
    for graph, found in bundle.manifest.lineage[-1]["graphs"].items():
        before_ms, after_ms = found["milliseconds"]
        print(f"{graph}: {found['int8_layers']} layers in INT8, {before_ms:.2f} → {after_ms:.2f} ms on this processor")
    for what, found in bundle.manifest.lineage[-1]["accuracy"].items():
        print(f"{what.replace('_', ' ')}: {accuracy_text(found)}")
    return 0


def _import_checkpoint(options: argparse.Namespace) -> int:
    from unifygeo_training.checkpoint import published_network
    from unifygeo_training.configuration import read_network_config
    from unifygeo_training.model import NetworkConfig

    config = read_network_config(options.network) if options.network else NetworkConfig()
    return _write(options, published_network(options.weights, config), f"the weights of {options.weights.name}")


def _write(options: argparse.Namespace, network: Any, trained_on: str) -> int:
    from unifygeo_ros.inference.bundle import FLOAT_PRECISIONS
    from unifygeo_training.calibrate import read_calibration
    from unifygeo_training.export import BundleText, export_bundle

    text = BundleText(options.name or options.output.name, options.licence, options.trained_on or trained_on)
    calibration = read_calibration(options.calibration) if options.calibration else None
    precisions = options.precision or FLOAT_PRECISIONS
    bundle = export_bundle(
        network, options.output, text, precisions=precisions, calibration=calibration, compact=options.compact
    )
    _print_size(bundle)
    return 0


def _print_size(bundle: ModelBundle) -> None:
    size = sum(file.stat().st_size for file in bundle.path.iterdir())
    print(f"{bundle.path}: weights {bundle.manifest.weights_sha256[:12]}…, {size / 1e6:.1f} MB")
