"""The command on regions: `unifygeo region fetch`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unifygeo_ros.aerial.tile_server import FetchSettings
from unifygeo_ros.core.options import add_settings, numbers, settings_of


def add_command(subparsers: Any) -> None:
    """Add `region` to the parser of `unifygeo`."""
    region = subparsers.add_parser("region", help="fetch the imagery of a region")
    commands = region.add_subparsers(metavar="COMMAND", required=True)
    fetch = commands.add_parser(
        "fetch",
        help="server of web tiles → folder of imagery",
        description="Fetch the tiles of a region from a server of XYZ tiles, or of WMTS tiles in spherical Mercator, "
        "one after the other. What is there is not fetched again: a download that was interrupted goes on when the "
        "same command is given again. Only fetch imagery whose licence allows it; attribution and licence go into the "
        "index and its reports.",
    )
    fetch.add_argument("url", help="with {z}, {x} and {y} in place of zoom, column and row ({-y}: from the south)")
    fetch.add_argument(
        "--bounds", required=True, type=_bounds, metavar="WEST,SOUTH,EAST,NORTH", help="of the region, degrees"
    )
    fetch.add_argument("--zoom", required=True, type=int, help="of the tiles; 19 is 0.2 m per pixel at latitude 48°")
    fetch.add_argument("--attribution", required=True, help="the text that the provider asks for")
    fetch.add_argument("--licence", required=True, help="name of the licence, and where it stands")
    fetch.add_argument("--contact", required=True, help="your e-mail address or web page, told to the server")
    fetch.add_argument("-o", "--output", required=True, type=Path, help="folder for the tiles, made when missing")
    add_settings(fetch, FetchSettings)
    fetch.set_defaults(run=_fetch)


def _bounds(text: str) -> list[float]:
    return numbers(text, (4,), "WEST,SOUTH,EAST,NORTH in degrees")


def _fetch(args: argparse.Namespace) -> int:
    from unifygeo_ros.aerial.fetch import Bounds, fetch_region, metres_per_pixel
    from unifygeo_ros.aerial.tile_server import TileServer, TileSource

    settings = settings_of(args, FetchSettings)
    source = TileSource(args.url, args.attribution, args.licence)
    bounds = Bounds(*args.bounds)
    server = TileServer(source, args.contact, settings)
    report = fetch_region(source, bounds, args.zoom, args.output, server, most_tiles=settings.most_tiles, progress=True)
    pixel_m = metres_per_pixel(args.zoom, (bounds.south + bounds.north) / 2)
    print(
        f"{report.folder}: {report.tiles} tiles of {pixel_m:.2f} m per pixel, {report.fetched} fetched now "
        f"({report.fetched_bytes / 1e6:.1f} MB), {report.missing} not on the server; {source.attribution}, "
        f"{source.licence}"
    )
    return 0
