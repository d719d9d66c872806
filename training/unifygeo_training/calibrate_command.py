"""`unifygeo-train calibrate` and `unifygeo-train parity`: what must be measured before a bundle goes to a robot."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_command(subparsers: Any) -> None:
    calibrate = subparsers.add_parser("calibrate", help="fit a bundle's calibration on validation towns")
    calibrate.add_argument("checkpoint", type=Path, help="a checkpoint that `unifygeo-train fit` wrote")
    calibrate.add_argument("towns", type=Path, nargs="+", help="cached towns, neither trained on nor tested on")
    calibrate.add_argument("--output", type=Path, required=True, help="JSON, for `unifygeo-train export --calibration`")
    calibrate.set_defaults(run=_calibrate)

    parity = subparsers.add_parser("parity", help="compare a bundle with its network on real images")
    parity.add_argument("checkpoint", type=Path, help="the checkpoint that the bundle was exported from")
    parity.add_argument("bundle", type=Path, help="the bundle")
    parity.add_argument("town", type=Path, help="a cached town to take images from")
    parity.add_argument("--output", type=Path, help="the report (default: BUNDLE.parity.json, beside the bundle)")
    parity.add_argument("--pairs", type=int, default=64, help="(default: %(default)s)")
    parity.set_defaults(run=_parity)


def _calibrate(options: argparse.Namespace) -> int:
    from unifygeo_ros.core.errors import ConfigurationError
    from unifygeo_training.calibrate import calibrate
    from unifygeo_training.checkpoint import load_network
    from unifygeo_training.confidence import with_confidence
    from unifygeo_training.judging.town_set import TownImages
    from unifygeo_training.towns.pairs import load_town
    from unifygeo_training.towns.town import FIRST_HELD_OUT_SEED

    network, content = load_network(options.checkpoint)
    towns = [load_town(folder) for folder in options.towns]
    data = content.get("config", {}).get("data", {})
    for town in towns:
        seed = town.record.seed
        if seed >= FIRST_HELD_OUT_SEED or data.get("first_seed", 0) <= seed <= data.get("last_seed", -1):
            raise ConfigurationError(
                f"town {seed} is for testing or was trained on; calibrate on towns with seeds outside both"
            )
    report = with_confidence(network, calibrate(network, [TownImages(t, network.config) for t in towns]), towns)
    options.output.write_text(report.to_json(), encoding="utf-8")
    print(report.to_json(), end="")
    return 0


def _parity(options: argparse.Namespace) -> int:
    import numpy as np

    from unifygeo_ros.core.errors import BundleError
    from unifygeo_ros.inference.bundle import load_bundle
    from unifygeo_training.checkpoint import load_network, weights_sha256
    from unifygeo_training.compact import round_to_float16
    from unifygeo_training.judging.town_set import TownImages
    from unifygeo_training.parity import check_parity
    from unifygeo_training.towns.pairs import load_town

    network, _ = load_network(options.checkpoint)
    bundle = load_bundle(options.bundle)
    if weights_sha256(network) != bundle.manifest.weights_sha256:
        round_to_float16(network)  # a compact bundle's weights
    if weights_sha256(network) != bundle.manifest.weights_sha256:
        raise BundleError(
            f"{bundle.path} holds weights {bundle.manifest.weights_sha256[:12]}…, which are not those of "
            f"{options.checkpoint}; give the checkpoint that it was exported from"
        )
    data = TownImages(load_town(options.town), network.config)
    queries = range(min(options.pairs, len(data.tiles)))
    panoramas = np.stack([data.ground_image(query) for query in queries])
    tiles = np.stack([data.aerial_image(int(data.tiles[query, 0])) for query in queries])
    report = check_parity(network, bundle, panoramas, tiles, data.name)
    output = options.output or bundle.path.resolve().with_name(f"{bundle.path.resolve().name}.parity.json")
    output.write_text(report.to_json(), encoding="utf-8")
    print(report.to_json(), end="")
    return 0 if report.passed else 1
