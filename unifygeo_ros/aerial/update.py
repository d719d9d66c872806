"""An index of imagery that has changed since: tiles with the pixels that they had are taken from the earlier index.

All tiles are cut again, which costs little beside encoding them, and compared pixel by pixel with the stored ones. What
is written is what `build_index` writes for the imagery as it is now, with the earlier index's datum and grid.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Sequence

import numpy as np

from unifygeo_ros.aerial.build import BuildReport, encode_region, report_of_finished
from unifygeo_ros.aerial.imagery import ImageryOptions
from unifygeo_ros.aerial.index import open_index
from unifygeo_ros.aerial.known_tiles import KnownTiles
from unifygeo_ros.aerial.manifest import TILES, IndexManifest
from unifygeo_ros.aerial.partial import finish_rename
from unifygeo_ros.aerial.region import plan_region
from unifygeo_ros.aerial.settings import BuildSettings
from unifygeo_ros.core.errors import ConfigurationError
from unifygeo_ros.inference.bundle import ModelBundle
from unifygeo_ros.inference.engine import EngineSet


def update_index(
    earlier: Path | str,
    sources: Sequence[Path | str],
    bundle: ModelBundle,
    engines: EngineSet,
    output: Path | str,
    *,
    settings: BuildSettings | None = None,
    options: ImageryOptions | None = None,
    readers: int = 0,
    progress: bool = False,
) -> BuildReport:
    """Build the index of some imagery in the folder `output`, or finish an update that was interrupted.

    Args:
        earlier: Folder of the earlier index. It is only read, and stays as it is.
        sources: All of the imagery as it is now, as for `build_index`.
        bundle: The bundle that made the earlier index.
        engines: Of the bundle, of the backend and precision that made the earlier index.
        output: Folder of the new index.
        settings: None: the defaults. Its stride and minimum coverage are replaced by the earlier index's.
        options: How to read the imagery, as for the earlier index. Where they do not say it, the earlier index's nodata
            applies, and its scale to files that are not of 8 bit.
        readers: Threads that cut tiles; 0: one for each processor core.
        progress: Show a progress bar, on a terminal.

    Raises:
        UnifyGeoError: As for `build_index`; also where the earlier index is damaged or was made in another way.
    """
    if finish_rename(Path(output)):
        return report_of_finished(Path(output))
    index = open_index(earlier, bundle=bundle)
    manifest = index.manifest
    running = engines.aerial_encoder.description
    if running != manifest.encoder:
        raise ConfigurationError(
            f"{index.path}: was encoded by {manifest.encoder}, this run uses {running}, which gives slightly other "
            "features; choose the same --backend and --precision, or build the index again"
        )
    settings = dataclasses.replace(settings or BuildSettings(), minimum_coverage=manifest.minimum_coverage)
    if manifest.stride_m is not None:
        settings = dataclasses.replace(settings, stride=_stride_of(manifest.stride_m, manifest.side_m))
    region = plan_region(sources, _options_of(manifest, options or ImageryOptions()), bundle, manifest.datum, settings)
    known = KnownTiles(index, region.tiles.centres_m)
    if not len(known.tile_ids):
        raise ConfigurationError(
            f"{index.path}: none of its {len(index)} tiles lies in this imagery; give all of its region's imagery as "
            "it is now, or build an index of another region with `unifygeo index build`"
        )
    identity = manifest.files[TILES].sha256  # holds a checksum of every tile's content
    report = encode_region(region, bundle, engines, output, readers, progress, known, identity)
    kept = KnownTiles(index, np.asarray(open_index(report.path).centres_m)).tile_ids
    return dataclasses.replace(report, dropped=len(index) - len(kept))


def _stride_of(stride_m: float, side_m: float) -> float:
    """The setting `stride` that gives exactly this distance of centres: a user's number has few digits."""
    stride = round(stride_m / side_m, 9)
    return stride if stride * side_m == stride_m else stride_m / side_m


def _options_of(manifest: IndexManifest, options: ImageryOptions) -> ImageryOptions:
    """The options with what the earlier index says of how its GeoTIFFs were read.

    Percentiles of changed imagery are others, and would change every tile.
    """
    rasters = [raster for raster in manifest.imagery.get("rasters", ()) if raster.get("kind") == "geotiff"]
    scales = {tuple(raster["scale"]) for raster in rasters if raster.get("scale")}
    nodata = {raster["nodata"] for raster in rasters if raster.get("nodata") is not None}
    if options.scale is None and len(scales) == 1:
        low, high = scales.pop()
        options = dataclasses.replace(options, deep_scale=(low, high))
    if options.nodata is None and len(nodata) == 1:
        options = dataclasses.replace(options, nodata=float(nodata.pop()))
    return options
