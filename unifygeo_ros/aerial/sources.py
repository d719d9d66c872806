"""Which reader reads a path of aerial imagery."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from unifygeo_ros.aerial.geotiff import open_geotiffs
from unifygeo_ros.aerial.imagery import Imagery, ImageryOptions
from unifygeo_ros.aerial.raster import Raster, RasterImagery
from unifygeo_ros.aerial.vigor import VigorCity, find_city
from unifygeo_ros.aerial.web_tiles import MbTiles, TileFolder, WebTilesRaster
from unifygeo_ros.core.errors import InputError

_GEOTIFF_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2")


def open_imagery(sources: Sequence[Path | str], options: ImageryOptions | None = None) -> Imagery:
    """The imagery of one region.

    Args:
        sources: GeoTIFF files, folders of them, folders of XYZ or TMS tiles, and MBTiles files. Where they overlap,
            those named first are on top, but GeoTIFFs always above web tiles. Or one VIGOR city folder alone.
        options: how GeoTIFFs are read.

    Raises:
        InputError: a source is missing, damaged or of no known kind.
    """
    options = options or ImageryOptions()
    paths = [Path(source) for source in sources]
    if not paths:
        raise InputError("no imagery given; name GeoTIFF files, tile folders, an MBTiles file or a VIGOR city folder")
    cities = [path for path in paths if path.is_dir() and find_city(path)]
    if cities:
        if len(paths) > 1:
            raise InputError(
                f"{cities[0]}: a VIGOR city cannot be mixed with other imagery ({len(paths)} sources given), its tiles "
                "have a scale of their own; build one index for each city"
            )
        return VigorCity(paths[0])
    rasters: list[Raster] = []
    geotiffs: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: does not exist; check the path")
        if path.is_file() and path.suffix.lower() == ".mbtiles":
            rasters.append(WebTilesRaster(MbTiles(path)))
        elif path.is_file():
            geotiffs.append(path)
        elif not path.is_dir():
            raise InputError(f"{path}: is neither a file nor a folder; give imagery that is")
        elif files := sorted(file for file in path.iterdir() if file.suffix.lower() in _GEOTIFF_SUFFIXES):
            geotiffs.extend(files)
        else:
            rasters.append(WebTilesRaster(TileFolder(path)))
    # Files that share a grid are one raster, wherever they stand in the list.
    return RasterImagery([*open_geotiffs(geotiffs, options), *rasters])
