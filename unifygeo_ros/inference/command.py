"""Commands on model bundles: `unifygeo bundle info`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any


def add_command(subparsers: Any) -> None:
    """Add `bundle` to the parser of `unifygeo`."""
    bundle = subparsers.add_parser("bundle", help="look into a model bundle")
    commands = bundle.add_subparsers(metavar="COMMAND", required=True)
    info = commands.add_parser("info", help="verify a bundle's files and show what its manifest says")
    info.add_argument("bundle", type=Path, help="folder of the model bundle")
    info.set_defaults(run=_info)


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
        "licence": manifest.licence,
    }
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
