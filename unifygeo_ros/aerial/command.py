"""Commands on indexes: `unifygeo index build` and `unifygeo index info`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.core.options import add_settings, checked, numbers, settings_of

if TYPE_CHECKING:
    from unifygeo_ros.aerial.map_index import MapIndex
    from unifygeo_ros.core.geodesy import Datum


def add_command(subparsers: Any) -> None:
    """Add `index` to the parser of `unifygeo`."""
    index = subparsers.add_parser("index", help="build, update or merge indexes of aerial imagery, or look into one")
    commands = index.add_subparsers(metavar="COMMAND", required=True)

    build = commands.add_parser(
        "build",
        help="aerial imagery → index",
        description="Cut imagery into north-up tiles, encode them, write an index. A build that was interrupted goes "
        "on when the same command is given again.",
    )
    _add_imagery(build)
    _add_encoding(build)
    build.add_argument(
        "--datum",
        type=checked(_datum),
        metavar="LAT,LON[,HEIGHT]",
        help="origin of the map frame (middle of the imagery)",
    )
    build.add_argument("--ray", metavar="ADDRESS", help="encode on this Ray cluster: auto, ray://HOST:PORT, or local")
    build.add_argument(
        "--ray-workers", type=int, default=0, help="workers on the cluster (one a GPU, or one a machine)"
    )
    add_settings(build, BuildSettings)
    build.set_defaults(run=_build)

    update = commands.add_parser(
        "update",
        help="index and changed imagery → new index",
        description="Build the index of imagery that has changed since an index was built. Tiles with the pixels that "
        "they had are taken from that index, the others are encoded. Datum, stride and minimum coverage are those of "
        "that index, which is only read. An update that was interrupted goes on when the same command is given again.",
    )
    update.add_argument("index", type=Path, help="folder of the earlier index")
    _add_imagery(update)
    _add_encoding(update)
    update.add_argument(
        "--search", choices=("auto", "exact", "ivfpq"), default="auto", help="how the whole index is searched (auto)"
    )
    update.set_defaults(run=_update)

    merge = commands.add_parser(
        "merge",
        help="indexes on one grid → one index",
        description="Put indexes of one model, datum and stride together, without encoding. Of tiles at the same place "
        "the one that knows more pixels is taken, of equal ones that of the index named first.",
    )
    merge.add_argument("indexes", nargs="+", type=Path, metavar="index", help="folders of the indexes, at least two")
    merge.add_argument(
        "-o", "--output", required=True, type=Path, help="folder of the merged index, made by this command"
    )
    merge.set_defaults(run=_merge)

    info = commands.add_parser("info", help="show what an index holds")
    info.add_argument("index", type=Path, help="folder of the index, or a region: a folder of indexes or a YAML file")
    info.add_argument("--verify", action="store_true", help="read every file and compare its checksum")
    info.add_argument("--plot", type=Path, metavar="PNG", help="draw the coverage into this file")
    info.set_defaults(run=_info)


def _add_imagery(command: argparse.ArgumentParser) -> None:
    """The imagery and how it is read."""
    command.add_argument(
        "imagery",
        nargs="+",
        type=Path,
        help="GeoTIFF files or folders of them, folders of XYZ or TMS tiles (z/x/y.png), MBTiles files, or patterns of "
        "such names in quotes ('tiles/**/*.tif'); or one VIGOR city; or one index, whose tiles "
        "another model is to encode",
    )
    command.add_argument(
        "--bands", type=_bands, metavar="R,G,B", help="bands for red, green, blue, from 1 (as the file declares)"
    )
    command.add_argument(
        "--scale",
        type=_scale,
        metavar="LOW,HIGH",
        help="values that become black and white (8 bit: as they are; else the 0.5th and 99.5th percentile)",
    )
    command.add_argument("--nodata", type=float, help="value of unknown pixels, for files that do not say it")


def _add_encoding(command: argparse.ArgumentParser) -> None:
    """The model, how it runs, and where the index goes."""
    command.add_argument("--model", required=True, type=Path, help="folder of the model bundle")
    command.add_argument("--output", required=True, type=Path, help="folder of the index, made by this command")
    command.add_argument("--backend", default="auto", help="inference backend (%(default)s)")
    command.add_argument("--precision", default="auto", help="fp32, fp16 or auto")
    command.add_argument("--readers", type=int, default=0, help="threads that cut tiles (0: one for each core)")


def _build(args: argparse.Namespace) -> int:
    from unifygeo_ros.aerial.build import build_index
    from unifygeo_ros.aerial.cluster import RayOptions, build_index_on_ray
    from unifygeo_ros.aerial.imagery import ImageryOptions
    from unifygeo_ros.inference.bundle import load_bundle
    from unifygeo_ros.inference.select import open_engines

    bundle = load_bundle(args.model)
    options = ImageryOptions(args.bands, args.scale, args.nodata)
    common = {"datum": args.datum, "settings": settings_of(args, BuildSettings), "options": options, "progress": True}
    if args.ray is not None:
        cluster = RayOptions(args.ray, args.ray_workers, args.backend, args.precision, args.readers)
        report = build_index_on_ray(args.imagery, bundle, args.output, cluster, **common)
    else:
        with open_engines(bundle, backend=args.backend, precision=args.precision) as engines:
            report = build_index(args.imagery, bundle, engines, args.output, readers=args.readers, **common)
    print(
        f"{report.path}: {report.tiles} tiles, {report.skipped} left out as empty; {report.encoded} encoded in "
        f"{report.seconds:.1f} s, the encoder running {report.encoder_share:.0%} of it"
    )
    return 0


def _update(args: argparse.Namespace) -> int:
    from unifygeo_ros.aerial.imagery import ImageryOptions
    from unifygeo_ros.aerial.update import update_index
    from unifygeo_ros.inference.bundle import load_bundle
    from unifygeo_ros.inference.select import open_engines

    bundle = load_bundle(args.model)
    options = ImageryOptions(args.bands, args.scale, args.nodata)
    settings = BuildSettings(search=args.search)
    with open_engines(bundle, backend=args.backend, precision=args.precision) as engines:
        report = update_index(
            *(args.index, args.imagery, bundle, engines, args.output),
            settings=settings,
            options=options,
            readers=args.readers,
            progress=True,
        )
    print(
        f"{report.path}: {report.tiles} tiles, {report.skipped} left out as empty; {report.encoded} encoded in "
        f"{report.seconds:.1f} s, the others by an earlier run or taken from {args.index}"
        + (f"; {report.dropped} tiles of that index are not in this one, for lack of imagery" if report.dropped else "")
    )
    return 0


def _merge(args: argparse.Namespace) -> int:
    from unifygeo_ros.aerial.merge import merge_indexes

    report = merge_indexes(args.indexes, args.output, progress=True)
    print(f"{report.path}: {report.tiles} tiles in {report.seconds:.1f} s")
    return 0


def _info(args: argparse.Namespace) -> int:
    from unifygeo_ros.aerial.regions import RegionIndex, open_map

    index = open_map(args.index, verify=args.verify)
    rows = _rows(index)
    if isinstance(index, RegionIndex):
        rows = {"indexes": f"{len(index.indexes)}: {', '.join(path.name for path in index.indexes)}", **rows}
    if args.verify:
        rows["checksums"] = "every file read and correct"
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    if args.plot is not None:
        from unifygeo_ros.aerial.coverage import draw_coverage

        draw_coverage(index, args.plot)
    return 0


def _rows(index: MapIndex) -> dict[str, str]:
    manifest = index.manifest
    west, south = index.centres_m.min(axis=0) - manifest.side_m / 2
    east, north = index.centres_m.max(axis=0) + manifest.side_m / 2
    size = sum(record.bytes for record in manifest.files.values())
    stride = "as the data set has them" if manifest.stride_m is None else f"{manifest.stride_m:g} m apart"
    rows = {
        "tiles": f"{manifest.tiles}, {manifest.skipped} more left out as empty",
        "tile": f"{manifest.tile_size}×{manifest.tile_size} px at {manifest.metres_per_pixel:g} m/px "
        f"({manifest.side_m:g} m), {stride}",
        "datum": f"{manifest.datum.latitude_deg:.7f}, {manifest.datum.longitude_deg:.7f}, "
        f"height {manifest.datum.height_m:g} m",
        "extent": f"east {west:.1f} … {east:.1f} m, north {south:.1f} … {north:.1f} m",
        "model": manifest.model,
        "weights": manifest.weights_sha256,
        "encoder": manifest.encoder,
        "descriptor": str(manifest.descriptor_dim),
        "match map": f"{manifest.match_size}×{manifest.match_size}×{manifest.match_channels}, float16",
        "search": manifest.search,
        **({"size": f"{size / 1e6:.1f} MB"} if size else {}),
    }
    for number, source in enumerate(manifest.imagery.get("rasters", [manifest.imagery]), start=1):
        files = source.get("files", [])
        named = (
            ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
            if isinstance(files, list)
            else f"{files} files"
        )
        details = ", ".join(
            f"{key} {_crs_name(value) if key == 'crs' else value}"
            for key, value in source.items()
            if key not in ("kind", "files") and value is not None
        )
        rows[f"imagery {number}"] = f"{source.get('kind')}: {named} ({details})"
    return rows


def _crs_name(crs: str) -> str:
    """A CRS in few words: its authority's code as it is, name or projection of one that is only defined by its WKT."""
    import pyproj

    if len(crs) <= 20:
        return crs
    known = pyproj.CRS.from_user_input(crs)
    if known.name != "unknown" or known.coordinate_operation is None:
        return known.name
    return f"without a name ({known.coordinate_operation.method_name})"


def _datum(text: str) -> Datum:
    from unifygeo_ros.core.geodesy import Datum

    return Datum(*numbers(text, (2, 3), "LAT,LON or LAT,LON,HEIGHT in degrees and metres"))


def _bands(text: str) -> tuple[int, int, int]:
    wanted = "three band numbers R,G,B"
    red, green, blue = numbers(text, (3,), wanted)
    if not all(value.is_integer() for value in (red, green, blue)):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return int(red), int(green), int(blue)


def _scale(text: str) -> tuple[float, float]:
    low, high = numbers(text, (2,), "two values LOW,HIGH")
    return low, high
