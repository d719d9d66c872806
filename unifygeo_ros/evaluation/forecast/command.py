"""The command `unifygeo forecast`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unifygeo_ros.core.errors import ConfigurationError, InputError

STRETCH_M = 100.0
SPEED_M_S = 8.0


def add_command(subparsers: Any) -> None:
    """Add `forecast` to the parser of `unifygeo`."""
    command = subparsers.add_parser(
        "forecast",
        help="where along a route fixes will come, from the index alone",
        description="Forecast a drive before it is driven: how alike the places along a route are for the index's own "
        "network, when the first fix is to be expected, the share of the route with fixes, and stretches at risk.",
    )
    command.add_argument("index", type=Path, metavar="INDEX", help="folder of the index, or of a region")
    command.add_argument(
        "--route", required=True, type=Path, metavar="ROUTE", help="GeoJSON (LineString, WGS84) or GPX (track or route)"
    )
    command.add_argument("--report", type=Path, metavar="REPORT.html", help="write a page with map and chart")
    command.add_argument("--output", type=Path, metavar="OUT.geojson", help="write the stretches as GeoJSON")
    command.add_argument("--stretch-m", type=float, default=STRETCH_M, help="length of a stretch (%(default)g)")
    command.add_argument("--speed-m-s", type=float, default=SPEED_M_S, help="to give times for distances (%(default)g)")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from unifygeo_ros.aerial.regions import open_map
    from unifygeo_ros.evaluation.forecast.forecast import STEP_M, forecast
    from unifygeo_ros.evaluation.forecast.page import verdict, write_geojson, write_page
    from unifygeo_ros.evaluation.forecast.route import read_route

    for name, value, least in (("--stretch-m", args.stretch_m, STEP_M), ("--speed-m-s", args.speed_m_s, 0.1)):
        if not least <= value < float("inf"):
            raise ConfigurationError(f"{name} {value:g}, must be at least {least:g}")
    index = open_map(args.index)
    found = forecast(index, read_route(args.route, index.frame, STEP_M), args.stretch_m)
    print(verdict(found, args.speed_m_s))
    for one in found.at_risk:
        print(f"- {one.start_m:.0f} to {one.end_m:.0f} m: {one.availability:.0%} of single images, {one.reason}")
    if not found.fitted:
        print("The constants were fitted with another model: believe the order of the stretches more than the shares.")
    try:
        if args.report is not None:
            write_page(args.report, found, index, args.speed_m_s)
            print(args.report)
        if args.output is not None:
            write_geojson(args.output, found)
            print(args.output)
    except OSError as error:
        raise InputError(
            f"{error.filename or args.report}: cannot be written ({error.strerror or error}); choose another --report "
            "and --output"
        ) from error
    return 0
