"""The command `unifygeo locate`: images → one line of JSON each."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.options import add_settings, settings_of
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig

if TYPE_CHECKING:
    from unifygeo_ros.core.records import Fix, Heading, Prior, Rejection
    from unifygeo_ros.localization.localizer import Localizer

FIX, REJECTED, UNREADABLE = "fix", "rejection", "error"


def add_command(subparsers: Any) -> None:
    """Add `locate` to the parser of `unifygeo`."""
    locate = subparsers.add_parser(
        "locate",
        help="where were images taken",
        description="Localize equirectangular images one by one. Prints a line of JSON for each: a fix, or a rejection "
        "with its reason. The exit status is 0 if every image could be read.",
    )
    locate.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="JPEG or PNG files")
    locate.add_argument("--index", required=True, type=Path, help="folder of the index")
    locate.add_argument("--model", required=True, type=Path, help="folder of the model bundle that made the index")
    locate.add_argument(
        "--heading-deg",
        type=_finite,
        metavar="DEGREES",
        help="compass heading of the vehicle: where its x axis points, clockwise from north; searched if not given",
    )
    locate.add_argument(
        "--prior", type=_prior, metavar="LAT,LON,SIGMA", help="where the vehicle is believed to be, sigma in metres"
    )
    locate.add_argument(
        "--plot",
        type=Path,
        metavar="PNG",
        help="draw panorama, candidates and distribution; with several images, the image's name is added to the file's",
    )
    locate.add_argument("--backend", default="auto", help="inference backend (%(default)s)")
    locate.add_argument("--precision", default="auto", help="fp32, fp16 or auto")
    locate.add_argument(
        "--accept-uncalibrated",
        action="store_true",
        help="localize with a bundle that was not calibrated: covariances and ambiguities are then rough guesses",
    )
    add_settings(locate, CameraMount)
    add_settings(locate, LocalizerConfig)
    locate.set_defaults(run=_locate)


def _locate(args: argparse.Namespace) -> int:
    from unifygeo_ros.aerial.index import open_index
    from unifygeo_ros.inference.bundle import check_calibrated, load_bundle
    from unifygeo_ros.inference.select import open_engines
    from unifygeo_ros.localization.localizer import Localizer

    config, mount = settings_of(args, LocalizerConfig), settings_of(args, CameraMount)
    bundle = load_bundle(args.model)
    check_calibrated(bundle, args.accept_uncalibrated)
    index = open_index(args.index, bundle=bundle)
    heading, prior = _heading(args, config), _prior_in_map(args, index.frame)
    unreadable = 0
    with open_engines(bundle, backend=args.backend, precision=args.precision) as engines:
        localizer = Localizer(index, bundle, engines, config, mount)
        for path in args.images:
            try:
                record = _locate_file(localizer, path, prior, heading, _plot_path(args.plot, path, len(args.images)))
            except InputError as error:
                record = {"status": UNREADABLE, "detail": str(error)}
                unreadable += 1
            print(json.dumps({"image": str(path), **record}, allow_nan=False), flush=True)
    return 1 if unreadable else 0


def _locate_file(
    localizer: Localizer, path: Path, prior: Prior | None, heading: Heading | None, plot: Path | None
) -> dict[str, Any]:
    from unifygeo_ros.core.records import CameraImage, Query, Rejection
    from unifygeo_ros.images.files import read_image

    image = CameraImage(read_image(path), stamp_ns=0)
    query = Query(prior, heading)
    observation = localizer.observe(image, query)
    result = observation if isinstance(observation, Rejection) else localizer.decide(observation, query)
    if plot is not None:
        from unifygeo_ros.localization.plot import draw

        draw(plot, localizer, image, observation, result)
    return json_record(result)


def json_record(result: Fix | Rejection) -> dict[str, Any]:
    """A result as JSON values. Angles in degrees: heading_deg clockwise from north, yaw_deg from east."""
    from unifygeo_ros.core.geodesy import azimuth_from_yaw
    from unifygeo_ros.core.records import Fix

    common: dict[str, Any] = {
        "hypotheses": [dataclasses.asdict(hypothesis) for hypothesis in result.hypotheses],
        "timings_ms": {stage: round(value, 3) for stage, value in result.timings_ms.items()},
    }
    if not isinstance(result, Fix):
        return {"status": REJECTED, "reason": result.reason.value, "detail": result.detail, **common}
    return {
        "status": FIX,
        "latitude_deg": result.latitude_deg,
        "longitude_deg": result.longitude_deg,
        "east_m": result.east_m,
        "north_m": result.north_m,
        "covariance_m2": result.covariance_m2.tolist(),
        "heading_deg": math.degrees(azimuth_from_yaw(result.yaw_rad)) % 360.0,
        "yaw_deg": math.degrees(result.yaw_rad),
        "yaw_sigma_deg": math.degrees(math.sqrt(result.yaw_variance_rad2)),
        "tile_id": result.tile_id,
        "score": result.score,
        "ambiguity": result.ambiguity,
        **common,
    }


def _heading(args: argparse.Namespace, config: LocalizerConfig) -> Heading | None:
    from unifygeo_ros.core.geodesy import yaw_from_azimuth
    from unifygeo_ros.core.records import Heading, HeadingSource

    if args.heading_deg is None:
        return None
    return Heading(
        float(yaw_from_azimuth(math.radians(args.heading_deg))), config.heading_sigma_rad**2, HeadingSource.CONSTANT
    )


def _prior_in_map(args: argparse.Namespace, frame: Any) -> Prior | None:
    import numpy as np

    from unifygeo_ros.core.records import Prior

    if args.prior is None:
        return None
    latitude_deg, longitude_deg, sigma_m = args.prior
    east_m, north_m = frame.map_from_geodetic(latitude_deg, longitude_deg)
    return Prior(float(east_m), float(north_m), sigma_m**2 * np.eye(2))


def _plot_path(plot: Path | None, image: Path, images: int) -> Path | None:
    return plot if plot is None or images == 1 else plot.with_name(f"{plot.stem}_{image.stem}{plot.suffix}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return value


def _prior(text: str) -> tuple[float, float, float]:
    try:
        latitude_deg, longitude_deg, sigma_m = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not LAT,LON,SIGMA") from error
    if not (abs(latitude_deg) <= 90 and abs(longitude_deg) <= 180 and 0 < sigma_m < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is not a latitude, a longitude and metres above 0")
    return latitude_deg, longitude_deg, sigma_m
