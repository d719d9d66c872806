"""`unifygeo-train calibrate` and `unifygeo-train parity`: what must be measured before a bundle goes to a robot."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

from unifygeo_training.data.command import SPLITS, add_split_options, load_split

logger = logging.getLogger(__name__)


def add_command(subparsers: Any) -> None:
    calibrate = subparsers.add_parser("calibrate", help="fit a bundle's calibration on validation data")
    calibrate.add_argument(
        "weights", type=Path, help="a checkpoint of `unifygeo-train fit`, a bundle, or published weights"
    )
    calibrate.add_argument(
        "data",
        type=Path,
        nargs="+",
        help="cached towns, neither trained on nor tested on; the root of VIGOR; or a file that names drives",
    )
    calibrate.add_argument("--output", type=Path, help="JSON, for `--calibration` of export and import")
    target = calibrate.add_mutually_exclusive_group()
    target.add_argument(
        "--bundle", type=Path, help="write a calibrated copy of the bundle here (where the weights are a bundle)"
    )
    target.add_argument("--in-place", action="store_true", help="replace the manifest of the bundle itself")
    _add_data_options(calibrate)
    calibrate.add_argument(
        "--part",
        choices=("val", "all"),
        default="val",
        help="of drives: the places kept for it, or all, for weights that never saw the drives (default: %(default)s)",
    )
    calibrate.add_argument(
        "--tiles", type=int, default=1500, help="of VIGOR and drives: neighbouring ones (default: %(default)s)"
    )
    calibrate.add_argument(
        "--queries", type=int, default=400, help="of VIGOR and drives: at most (default: %(default)s)"
    )
    calibrate.add_argument("--seed", type=int, default=0, help="of VIGOR and drives: which part (default: %(default)s)")
    calibrate.add_argument(
        "--also-familiar",
        type=Path,
        metavar="BUNDLE",
        help="the calibrated bundle that the weights started from, or themselves before this calibration: its pictures "
        "are not refused as unfamiliar then",
    )
    calibrate.set_defaults(run=_calibrate)

    confidence = subparsers.add_parser(
        "confidence",
        help="fit a bundle's probabilities of a wrong place again, on validation towns, and rewrite its manifest",
    )
    confidence.add_argument("bundle", type=Path, help="a calibrated bundle; its manifest is replaced")
    confidence.add_argument(
        "towns", type=Path, nargs="+", help="two or more cached towns, neither trained on nor tested on"
    )
    confidence.add_argument(
        "--missing-only",
        action="store_true",
        help="fit only what it means that parts are not seen, and that only tiles near a place are looked at",
    )
    confidence.set_defaults(run=_confidence)

    parity = subparsers.add_parser("parity", help="compare a bundle with its network on real images")
    parity.add_argument("checkpoint", type=Path, help="the checkpoint or the weights that the bundle was made from")
    parity.add_argument("bundle", type=Path, help="the bundle")
    parity.add_argument(
        "data", type=Path, help="a cached town to take images from, the root of a data set, or a file that names drives"
    )
    parity.add_argument("--output", type=Path, help="the report (default: BUNDLE.parity.json, next to the bundle)")
    parity.add_argument("--pairs", type=int, default=64, help="(default: %(default)s)")
    _add_data_options(parity)
    parity.set_defaults(run=_parity)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    choices = ("town", "drives", *sorted(SPLITS))
    parser.add_argument("--dataset", choices=choices, default="town", help="(default: %(default)s)")
    parser.add_argument("--network", type=Path, help="YAML of the network config of published weights, if another")
    add_split_options(parser)


def _split(options: argparse.Namespace, root: Path, network: Any) -> Any:
    """The last part of the data set, which is not for training."""
    from unifygeo_training.judging.evaluation_set import JudgedSplit

    part, skip_missing = SPLITS[options.dataset][-1], options.missing == "skip"
    split = load_split(options.dataset, root, part, options.labels, skip_missing=skip_missing)
    return JudgedSplit(split, network.config, resize=options.resize)


def _calibrate(options: argparse.Namespace) -> int:
    import itertools

    import numpy as np

    from unifygeo_ros.core.errors import ConfigurationError
    from unifygeo_ros.inference.bundle import load_bundle, replace_manifest
    from unifygeo_training.calibrate import WORTH_CORRECTING_M, calibrate, offset_in_words
    from unifygeo_training.confidence import (
        also_familiar,
        calibrated_manifest,
        known_pictures,
        with_confidence,
        write_calibrated,
    )
    from unifygeo_training.drives.judged import DriveImages, describe, neighbouring, streets_of
    from unifygeo_training.drives.opened import open_part
    from unifygeo_training.judging.region import Region
    from unifygeo_training.judging.town_set import TownImages
    from unifygeo_training.streets import RegionStreets, TownStreets
    from unifygeo_training.towns.pairs import load_town
    from unifygeo_training.towns.town import FIRST_HELD_OUT_SEED
    from unifygeo_training.weights import open_weights

    if not (options.output or options.bundle or options.in_place):
        raise ConfigurationError("nothing would be kept; give --output, --bundle or --in-place")
    weights = open_weights(options.weights, options.network)
    if (options.bundle or options.in_place) and weights.bundle is None:
        raise ConfigurationError(f"{options.weights} is no bundle to be calibrated; use `export --calibration`")
    if options.bundle and options.bundle.exists():
        raise ConfigurationError(f"--bundle {options.bundle} exists; remove it or choose another folder")
    network = weights.network
    parent = load_bundle(options.also_familiar) if options.also_familiar else None
    if parent is not None:
        known_pictures(parent)  # an error before anything is computed
    if options.dataset == "town":
        towns = [load_town(folder) for folder in options.data]
        for town in towns:
            seed = town.record.seed
            if seed >= FIRST_HELD_OUT_SEED or weights.data.get("first_seed", 0) <= seed <= weights.data.get(
                "last_seed", -1
            ):
                raise ConfigurationError(
                    f"town {seed} is for testing or was trained on; calibrate on towns with seeds outside both"
                )
        sets: list[Any] = [TownImages(town, network.config) for town in towns]
        streets: list[Any] = [TownStreets(town) for town in towns]
    elif options.dataset == "drives":
        limits = {"tiles": options.tiles, "queries": options.queries, "seed": options.seed}
        opened = [neighbouring(open_part(file, network.config, options.part), **limits) for file in options.data]
        names = [describe(parts, file, options.part) for parts, file in zip(opened, options.data, strict=True)]
        sets = [DriveImages(parts, name) for parts, name in zip(opened, names, strict=True)]
        streets = list(
            itertools.chain(*(streets_of(parts, name, options.seed) for parts, name in zip(opened, names, strict=True)))
        )
    else:
        sets = [
            Region(_split(options, root, network), tiles=options.tiles, queries=options.queries, seed=options.seed)
            for root in options.data
        ]
        streets = [RegionStreets(region, options.seed) for region in sets]
    report = with_confidence(network, calibrate(network, sets), streets, weights.bundle)
    if parent is not None:
        data = f"{report.data}; familiar is also what {parent.manifest.name} knows ({parent.manifest.sha256[:12]})"
        report = dataclasses.replace(report, calibration=also_familiar(report.calibration, parent), data=data)
    if options.output:
        options.output.write_text(report.to_json(), encoding="utf-8")
    print(report.for_people(), end="")
    for data, offset_m in zip(sets, report.imagery_offsets_m, strict=True):
        worth = float(np.hypot(*offset_m)) >= WORTH_CORRECTING_M
        logger.log(logging.WARNING if worth else logging.INFO, offset_in_words(data.name, *offset_m))
    if options.bundle:
        assert weights.bundle is not None
        print(write_calibrated(weights.bundle, report, options.bundle).path)
    elif options.in_place:
        assert weights.bundle is not None
        print(replace_manifest(weights.bundle, calibrated_manifest(weights.bundle, report)).path)
    return 0


def _confidence(options: argparse.Namespace) -> int:
    import json

    from unifygeo_ros.core.errors import ConfigurationError
    from unifygeo_ros.inference.bundle import check_calibrated, load_bundle, replace_manifest, with_calibration
    from unifygeo_training.confidence import fit_bundle, fit_missing
    from unifygeo_training.streets import TownStreets
    from unifygeo_training.towns.pairs import load_town
    from unifygeo_training.towns.town import FIRST_HELD_OUT_SEED

    bundle = load_bundle(options.bundle)
    check_calibrated(bundle, accept_uncalibrated=False)
    towns = [load_town(folder) for folder in options.towns]
    for town in towns:
        if town.record.seed >= FIRST_HELD_OUT_SEED:
            raise ConfigurationError(f"town {town.record.seed} is for testing; take seeds under {FIRST_HELD_OUT_SEED}")
    streets = [TownStreets(town) for town in towns]
    data = ", ".join(f"town {town.record.seed}" for town in towns)
    calibration, answers = fit_missing(bundle, streets) if options.missing_only else fit_bundle(bundle, streets)
    data += ", partly seen" if options.missing_only else ""
    replace_manifest(bundle, with_calibration(bundle.manifest, calibration, "unifygeo-train confidence", data))
    print(json.dumps(answers, indent=2))
    return 0


def _parity(options: argparse.Namespace) -> int:
    import numpy as np

    from unifygeo_ros.core.errors import BundleError, ConfigurationError
    from unifygeo_ros.inference.bundle import load_bundle
    from unifygeo_training.checkpoint import weights_sha256
    from unifygeo_training.drives.judged import DriveImages
    from unifygeo_training.drives.opened import open_part
    from unifygeo_training.judging.town_set import TownImages
    from unifygeo_training.parity import check_parity
    from unifygeo_training.shared_weights import round_to_float16
    from unifygeo_training.towns.pairs import load_town
    from unifygeo_training.weights import open_weights

    weights = open_weights(options.checkpoint, options.network)
    if weights.bundle is not None:
        raise ConfigurationError(f"{options.checkpoint} is a bundle; give what {options.bundle} was made from")
    network = weights.network
    bundle = load_bundle(options.bundle)
    if weights_sha256(network) != bundle.manifest.weights_sha256:
        round_to_float16(network)  # a compact bundle's weights
    if weights_sha256(network) != bundle.manifest.weights_sha256:
        raise BundleError(
            f"{bundle.path} holds weights {bundle.manifest.weights_sha256[:12]}…, which are not those of "
            f"{options.checkpoint}; give the checkpoint that it was exported from"
        )
    if options.dataset == "town":
        data: Any = TownImages(load_town(options.data), network.config)
    elif options.dataset == "drives":
        data = DriveImages(open_part(options.data, network.config, "all"), str(options.data))
    else:
        data = _split(options, options.data, network)
    queries = range(min(options.pairs, len(data.tiles)))
    panoramas = np.stack([data.ground_image(query) for query in queries])
    tiles = np.stack([data.aerial_image(int(data.tiles[query, 0])) for query in queries])
    report = check_parity(network, bundle, panoramas, tiles, data.name)
    output = options.output or bundle.path.resolve().with_name(f"{bundle.path.resolve().name}.parity.json")
    output.write_text(report.to_json(), encoding="utf-8")
    print(report.to_json(), end="")
    return 0 if report.passed else 1
