"""The command `unifygeo locate`: images → one line of JSON each."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.options import add_settings, numbers, settings_of
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig

if TYPE_CHECKING:
    from unifygeo_ros.core.geodesy import LocalFrame
    from unifygeo_ros.core.records import CameraImage, Fix, Heading, Hypothesis, Prior, Rejection
    from unifygeo_ros.images.metadata import PanoramaMetadata
    from unifygeo_ros.localization.localizer import Localizer
    from unifygeo_ros.rig.composer import Composer
    from unifygeo_ros.rig.description import RigDescription

logger = logging.getLogger(__name__)

FIX, REJECTED, UNREADABLE = "fix", "rejection", "error"
EXIF = "exif"
"""The value of --heading-deg and --tilt-deg for "as each file states it"."""


def add_command(subparsers: Any) -> None:
    """Add `locate` to the parser of `unifygeo`."""
    locate = subparsers.add_parser(
        "locate",
        help="where were images taken",
        description="Localize equirectangular images, or those of a rig, one by one. Prints a line of JSON for each: a "
        "fix, or a rejection with its reason. The exit status is 0 if every image could be read.",
    )
    locate.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="JPEG or PNG files; with --rig: folders")
    locate.add_argument("--index", required=True, type=Path, help="folder of the index or region")
    locate.add_argument("--model", required=True, type=Path, help="folder of the model bundle that made the index")
    locate.add_argument(
        "--rig",
        type=Path,
        metavar="RIG.yaml",
        help="each IMAGE is a folder with one image for each camera of this rig file (front.jpg, left.png …), of one "
        "moment",
    )
    locate.add_argument(
        "--heading-deg",
        type=_heading_option,
        metavar="DEGREES|exif",
        help="compass heading of the vehicle: where its x axis points, clockwise from true north; exif: each image's "
        "own (GPano PoseHeadingDegrees, else EXIF GPSImgDirection); searched if not given",
    )
    locate.add_argument(
        "--declination-deg",
        type=_finite,
        metavar="DEGREES",
        help="magnetic declination, east positive: added to headings that a file states from magnetic north",
    )
    locate.add_argument(
        "--tilt-deg",
        type=_tilt_option,
        metavar="ROLL,PITCH|exif",
        help="rotation of the vehicle about its x and y axes (REP-103: roll right, nose down); exif: each image's own "
        "(GPano PoseRollDegrees, PosePitchDegrees); level if not given",
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
    from unifygeo_ros.aerial.regions import open_map
    from unifygeo_ros.inference.bundle import check_calibrated, load_bundle
    from unifygeo_ros.inference.select import open_engines
    from unifygeo_ros.localization.camera_mount import rig_mount
    from unifygeo_ros.localization.localizer import Localizer
    from unifygeo_ros.localization.panorama import composed_columns
    from unifygeo_ros.rig.composer import Composer
    from unifygeo_ros.rig.description import read_rig

    config, mount = settings_of(args, LocalizerConfig), settings_of(args, CameraMount)
    if args.plot is not None and not args.plot.parent.is_dir():
        raise ConfigurationError(f"--plot {args.plot}: there is no folder {args.plot.parent}; make it, or name another")
    bundle = load_bundle(args.model)
    check_calibrated(bundle, args.accept_uncalibrated)
    index = open_map(args.index, bundle=bundle)
    rig = None if args.rig is None else read_rig(args.rig)
    composer = None
    if rig is not None:
        for option, value in (("--heading-deg", args.heading_deg), ("--tilt-deg", args.tilt_deg)):
            if value == EXIF:
                raise ConfigurationError(f"{option} exif: not with --rig, whose images are of several cameras; give it")
        composer = Composer(rig.rig(), composed_columns(bundle.manifest.ground))
        mount = rig_mount(mount, composer.rig)
    if args.tilt_deg == EXIF and mount.upside_down:
        raise ConfigurationError("--tilt-deg exif: not for a camera that hangs upside down; give --tilt-deg ROLL,PITCH")
    prior = _prior_in_map(args, index.frame)
    unreadable = unused_headings = 0
    with open_engines(bundle, backend=args.backend, precision=args.precision) as engines:
        localizer = Localizer(index, bundle, engines, config, mount)
        for path in args.images:
            try:
                missing: dict[str, str] = {}
                if rig is None or composer is None:
                    image, metadata = _read_file(path, localizer)
                else:
                    image, metadata, missing = _read_rig(path, rig, composer, config.minimum_brightness)
                image, heading, stated = _with_options(args, path, image, metadata, localizer)
                if rig is not None:
                    stated["missing_cameras"] = missing
                plot = _plot_path(args.plot, path, len(args.images))
                record = {**_locate_image(localizer, image, prior, heading, plot), "input": stated}
                unused_headings += stated["heading_source"] is None and stated["stated_heading_deg"] is not None
            except InputError as error:
                record = {"status": UNREADABLE, "detail": str(error)}
                unreadable += 1
            print(json.dumps({"image": str(path), **record}, allow_nan=False), flush=True)
    if unused_headings:
        logger.warning(
            "%d of %d images state a heading that was not used; --heading-deg exif uses it",
            unused_headings,
            len(args.images),
        )
    return 1 if unreadable else 0


def _read_file(path: Path, localizer: Localizer) -> tuple[CameraImage, PanoramaMetadata]:
    from unifygeo_ros.localization.panorama_file import read_panorama

    if path.is_dir():
        raise InputError(f"{path}: is a folder; name its images, or give --rig if they are of a rig's cameras")
    file = read_panorama(path, localizer.mount, localizer.enough_columns)
    return file.image, file.metadata


def _read_rig(
    folder: Path, rig: RigDescription, composer: Composer, minimum_brightness: float
) -> tuple[CameraImage, PanoramaMetadata, dict[str, str]]:
    """The panorama of a folder's images, what they state about it (nothing), and why cameras are not in it.

    Raises InputError where no camera can be used, or an image has another size than its lens'.
    """
    from unifygeo_ros.core.records import CameraImage
    from unifygeo_ros.images.metadata import PanoramaMetadata
    from unifygeo_ros.rig.composer import CameraView
    from unifygeo_ros.rig.folder import read_folder
    from unifygeo_ros.rig.image_check import image_problem

    images = read_folder(folder, rig)
    missing: dict[str, str] = {}
    views = {}
    for camera in composer.rig.cameras:
        if camera.name not in images:
            missing[camera.name] = "no image"
            continue
        pixels = images[camera.name]
        try:
            composer.check(camera.name, pixels)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None
        problem = image_problem(pixels, camera.lens, minimum_brightness)
        if problem is not None:
            missing[camera.name] = problem[1]
        else:
            views[camera.name] = CameraView(pixels)
    if not views:
        listed = "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise InputError(f"{folder}: no camera of the rig can be used: {listed}")
    composed = composer.compose(views)
    return CameraImage(composed.pixels, stamp_ns=0, seen=composed.seen, composed=True), PanoramaMetadata(), missing


def _with_options(
    args: argparse.Namespace, path: Path, image: CameraImage, metadata: PanoramaMetadata, localizer: Localizer
) -> tuple[CameraImage, Heading | None, dict[str, Any]]:
    """An image with its tilt, its heading if it has one, and what was given about it, for the JSON record."""
    from unifygeo_ros.core.geodesy import azimuth_from_yaw, yaw_from_azimuth
    from unifygeo_ros.core.records import Heading, HeadingSource
    from unifygeo_ros.images.metadata import PanoramaMetadata
    from unifygeo_ros.localization.panorama_file import vehicle_attitude

    config, mount = localizer.config, localizer.mount
    stated_rad = None
    if metadata.heading_deg is not None:
        if args.heading_deg == EXIF and metadata.heading_is_magnetic and args.declination_deg is None:
            raise InputError(
                f"{path}: its heading of {metadata.heading_deg:g}° is from magnetic north; give the declination "
                "(--declination-deg), or the heading from true north"
            )
        declination_deg = (args.declination_deg or 0.0) if metadata.heading_is_magnetic else 0.0
        stated_rad = math.radians(metadata.heading_deg + declination_deg)
    attitude = vehicle_attitude(metadata if args.tilt_deg == EXIF else PanoramaMetadata(), stated_rad or 0.0, mount)
    yaw_rad, source = None, None
    if args.heading_deg == EXIF and stated_rad is not None:
        yaw_rad, source = attitude.yaw_rad, EXIF
    elif args.heading_deg is not None and args.heading_deg != EXIF:
        yaw_rad, source = float(yaw_from_azimuth(math.radians(args.heading_deg))), "option"
    roll_rad = pitch_rad = None
    if args.tilt_deg == EXIF and (metadata.roll_deg is not None or metadata.pitch_deg is not None):
        roll_rad, pitch_rad = attitude.roll_rad, attitude.pitch_rad
    elif args.tilt_deg is not None and args.tilt_deg != EXIF:
        roll_rad, pitch_rad = (math.radians(angle) for angle in args.tilt_deg)
    heading = None if yaw_rad is None else Heading(yaw_rad, config.heading_sigma_rad**2, HeadingSource.CONSTANT)
    record = {
        "heading_deg": None if yaw_rad is None else math.degrees(azimuth_from_yaw(yaw_rad)) % 360.0,
        "heading_source": source,
        "stated_heading_deg": metadata.heading_deg,
        "roll_deg": None if roll_rad is None else math.degrees(roll_rad),
        "pitch_deg": None if pitch_rad is None else math.degrees(pitch_rad),
        "seen": 1.0 if image.seen is None else round(float(image.seen.mean()), 4),
    }
    return dataclasses.replace(image, roll_rad=roll_rad, pitch_rad=pitch_rad), heading, record


def _locate_image(
    localizer: Localizer, image: CameraImage, prior: Prior | None, heading: Heading | None, plot: Path | None
) -> dict[str, Any]:
    from unifygeo_ros.core.records import Query, Rejection

    query = Query(prior, heading)
    observation = localizer.observe(image, query)
    result = observation if isinstance(observation, Rejection) else localizer.decide(observation, query)
    if plot is not None:
        from unifygeo_ros.localization.plot import draw

        draw(plot, localizer, image, observation, result)
    return json_record(result, localizer.index.frame)


def json_record(result: Fix | Rejection, frame: LocalFrame) -> dict[str, Any]:
    """A result as JSON values.

    Args:
        result: what was found.
        frame: the index's map frame, for the datum and the hypotheses' latitudes and longitudes.

    Returns:
        Angles in degrees: heading_deg clockwise from north, yaw_deg counter-clockwise from east. Hypotheses are
        positions of the camera, the fix is base_link's.
    """
    from unifygeo_ros.core.geodesy import azimuth_from_yaw
    from unifygeo_ros.core.records import Fix

    common: dict[str, Any] = {
        "hypotheses": [_hypothesis(hypothesis, frame) for hypothesis in result.hypotheses],
        "datum": dataclasses.asdict(frame.datum),
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


def _hypothesis(hypothesis: Hypothesis, frame: LocalFrame) -> dict[str, Any]:
    latitude_deg, longitude_deg = frame.geodetic_from_map(hypothesis.east_m, hypothesis.north_m).tolist()
    return {**dataclasses.asdict(hypothesis), "latitude_deg": latitude_deg, "longitude_deg": longitude_deg}


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
    return numbers(text, (1,), "a finite number")[0]


def _heading_option(text: str) -> float | str:
    return EXIF if text == EXIF else numbers(text, (1,), "a number of degrees or exif")[0]


def _tilt_option(text: str) -> list[float] | str:
    return EXIF if text == EXIF else numbers(text, (2,), "ROLL,PITCH in degrees or exif")


def _prior(text: str) -> tuple[float, float, float]:
    latitude_deg, longitude_deg, sigma_m = numbers(text, (3,), "LAT,LON,SIGMA")
    if not (abs(latitude_deg) <= 90 and abs(longitude_deg) <= 180 and sigma_m > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a latitude, a longitude and metres above 0")
    return latitude_deg, longitude_deg, sigma_m
