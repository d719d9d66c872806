"""Which reader reads a path of aerial imagery."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Iterator, Sequence

from unifygeo_ros.aerial.geotiff import open_geotiffs
from unifygeo_ros.aerial.imagery import Imagery, ImageryOptions
from unifygeo_ros.aerial.index_imagery import IndexImagery, is_index
from unifygeo_ros.aerial.raster import Raster, RasterImagery
from unifygeo_ros.aerial.vigor import VigorCity, find_city
from unifygeo_ros.aerial.web_tiles import MbTiles, TileFolder, WebTilesRaster
from unifygeo_ros.core.errors import InputError

_GEOTIFF_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2")


def open_imagery(sources: Sequence[Path | str], options: ImageryOptions | None = None) -> Imagery:
    """The imagery of one region.

    Args:
        sources: GeoTIFF files, folders of them, folders of XYZ or TMS tiles, MBTiles files, and patterns of such
            names (`*`, `?`, `[…]`; `**` for folders at any depth). Where they overlap, those named first are on top, in
            a folder or pattern those first by name, but GeoTIFFs always above web tiles. Or one VIGOR city folder
            alone, or the folder of one index, whose tiles are taken as they are.
        options: how GeoTIFFs are read.

    Raises:
        InputError: a source is missing, damaged or of no known kind.
    """
    options = options or ImageryOptions()
    paths = [path for source in sources for path in _named(source)]
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
    indexes = [path for path in paths if is_index(path)]
    if indexes:
        if len(paths) > 1:
            raise InputError(
                f"{indexes[0]}: an index cannot be mixed with other imagery ({len(paths)} sources given), since its "
                "tiles stay where they are; build one index for each, and merge them"
            )
        return IndexImagery(paths[0])
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
    # A file that is named twice, by a folder and by its own name for instance, is read once.
    geotiffs = list(dict.fromkeys(geotiffs))
    # Files that share a grid are one raster, wherever they stand in the list.
    return RasterImagery([*open_geotiffs(geotiffs, options), *rasters])


def _named(source: Path | str) -> Iterator[Path]:
    """The paths that a source names: itself, or those that fit it as a pattern."""
    path = Path(source)
    if path.exists() or not glob.has_magic(str(source)):
        yield path
        return
    found = sorted(glob.glob(str(path.expanduser()), recursive=True))
    if not found:
        raise InputError(f"{source}: no file fits this pattern; check it, ** stands for folders at any depth")
    yield from map(Path, found)
