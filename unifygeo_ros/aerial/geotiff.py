"""GeoTIFFs (and whatever else GDAL georeferences) as rasters; files that share a pixel grid become one raster."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyproj
import pyproj.exceptions
import rasterio
import rasterio.errors
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.transform import Affine
from rasterio.windows import Window

from unifygeo_ros.aerial.imagery import ImageryOptions
from unifygeo_ros.aerial.raster import apply
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import UInt8

_GRID_TOLERANCE_PX = 0.01  # files whose pixels lie this close to each other's grid share it
_OPEN_FILES = 64  # for each thread
_NEARLY_BLACK = 4  # see _known_where_nothing_is_stated
_SAMPLE_PIXELS = 512  # rows and columns of each file's sample for the percentiles


@dataclass(frozen=True)
class _File:
    """What is needed of a file before it is opened for reading.

    overviews: decimation factors and the transform that GDAL gives each of them. known: how unknown pixels are marked:
    "mask" (by the file: nodata, mask or alpha), "nodata" (by the option) or "black" (by nothing).
    """

    path: Path
    crs_wkt: str
    transform: Affine
    rows: int
    columns: int
    bands: tuple[int, int, int]
    dtype: str
    palette: bool
    known: str
    overviews: tuple[tuple[int, Affine], ...]
    bytes: int
    changed_ns: int


class GeoTiffRaster:
    """Files on one pixel grid, the grid's origin being the first file's corner."""

    def __init__(self, files: Sequence[_File], options: ImageryOptions, scale: tuple[float, float] | None) -> None:
        self._files = tuple(files)
        self._scale = scale
        self.name = str(files[0].path) if len(files) == 1 else f"{files[0].path} and {len(files) - 1} more"
        try:
            self.crs = pyproj.CRS.from_wkt(files[0].crs_wkt)
        except pyproj.exceptions.CRSError as error:
            raise InputError(
                f"{self.name}: its CRS cannot be understood ({error}); set the one it was made in (gdal_edit.py -a_srs "
                "EPSG:…)"
            ) from error
        self._options = options
        self.levels = tuple(self._make_levels())

    def describe(self) -> Mapping[str, Any]:
        authority = self.crs.to_authority()
        return {
            "kind": "geotiff",
            "crs": ":".join(authority) if authority else self.crs.to_wkt(),
            "files": [file.path.name for file in self._files],
            "bands": list(self._files[0].bands),
            "scale": list(self._scale) if self._scale else None,
            "nodata": self._options.nodata,
        }

    def fingerprint(self) -> str:
        return "\n".join(f"{file.path.resolve()} {file.bytes} {file.changed_ns}" for file in self._files)

    def _make_levels(self) -> Iterator[_GeoTiffLevel]:
        first = self._files[0]
        places = []
        for file in self._files:
            column, row = apply(~first.transform, file.transform.c, file.transform.f)
            places.append((round(float(row)), round(float(column)), file.rows, file.columns))
        parts = np.array(places, np.int64)
        yield _GeoTiffLevel(self._files, parts, first.transform, None, self._options, self._scale)
        for number, (factor, transform) in enumerate(first.overviews):
            if len(self._files) == 1:
                # GDAL stretches an overview over the file where the factor does not divide its size.
                shrunk = np.array([[0, 0, -(-first.rows // factor), -(-first.columns // factor)]], np.int64)
                yield _GeoTiffLevel(self._files, shrunk, transform, number, self._options, self._scale)
            elif np.all(parts % factor == 0) and all(
                [f for f, _ in file.overviews[: number + 1]][-1:] == [factor] for file in self._files
            ):
                place = first.transform
                shared = Affine(
                    place.a * factor, place.b * factor, place.c, place.d * factor, place.e * factor, place.f
                )
                yield _GeoTiffLevel(self._files, parts // factor, shared, number, self._options, self._scale)


class _GeoTiffLevel:
    def __init__(
        self,
        files: Sequence[_File],
        parts: npt.NDArray[np.int64],
        crs_from_pixel: Affine,
        overview: int | None,
        options: ImageryOptions,
        scale: tuple[float, float] | None,
    ) -> None:
        self.crs_from_pixel = crs_from_pixel
        self._files = files
        self._parts = parts
        self._overview = overview
        self._options = options
        self._scale = scale

    def footprints(self) -> npt.NDArray[np.int64]:
        return self._parts

    def read(self, row: int, column: int, rows: int, columns: int) -> UInt8 | None:
        first = np.maximum(self._parts[:, :2], (row, column))
        last = np.minimum(self._parts[:, :2] + self._parts[:, 2:], (row + rows, column + columns))
        touched = np.flatnonzero(np.all(first < last, axis=1)).tolist()
        if not touched:
            return None
        canvas = np.zeros((rows, columns, 4), np.uint8)
        for number in touched:
            (top, left), (bottom, right) = first[number].tolist(), last[number].tolist()
            origin_row, origin_column = self._parts[number, :2].tolist()
            window = Window(left - origin_column, top - origin_row, right - left, bottom - top)
            part = _read_rgba(self._files[number], self._overview, window, self._options, self._scale)
            target = canvas[top - row : bottom - row, left - column : right - column]
            if target[:, :, 3].any():  # files overlap: the first one's pixels stay
                new = (target[:, :, 3] == 0) & (part[:, :, 3] == 255)
                target[new] = part[new]
            else:
                target[:] = part
        return canvas


def open_geotiffs(paths: Sequence[Path], options: ImageryOptions) -> list[GeoTiffRaster]:
    """Rasters of the files, in their order. Raises InputError for a file that cannot be used, with the reason."""
    files = [_inspect(path, options) for path in paths]
    deep = [file for file in files if file.dtype != "uint8"]
    deep_scale = _percentiles(deep, options) if deep and options.scale is None else options.scale
    groups: list[list[_File]] = []
    for file in files:
        for group in groups:
            if _shares_grid(group[0], file):
                group.append(file)
                break
        else:
            groups.append([file])
    return [
        GeoTiffRaster(group, options, options.scale if group[0].dtype == "uint8" else deep_scale) for group in groups
    ]


def _inspect(path: Path, options: ImageryOptions) -> _File:
    with _clear_errors(path), _georeference_is_checked_here(), rasterio.open(path) as dataset:
        if dataset.crs is None:
            raise InputError(
                f"{path}: has no CRS; set the one it was made in (gdal_edit.py -a_srs EPSG:…) and try again"
            )
        if dataset.transform == Affine.identity():
            raise InputError(f"{path}: has a CRS but no geotransform; georeference it (gdal_translate -a_ullr …)")
        kinds = set(dataset.dtypes)
        if len(kinds) != 1 or any(kind.startswith("complex") for kind in kinds):
            raise InputError(f"{path}: bands of type {sorted(kinds)}; convert it to 8 or 16 bit (gdal_translate -ot)")
        palette = dataset.count == 1 and dataset.colorinterp[0] == ColorInterp.palette
        colour_bands = [
            i for i, meaning in zip(dataset.indexes, dataset.colorinterp, strict=True) if meaning != ColorInterp.alpha
        ]
        bands = options.bands
        if bands is None:
            bands = tuple(colour_bands[:3]) if len(colour_bands) >= 3 else (colour_bands[0],) * 3
        elif max(bands) > dataset.count:
            raise InputError(f"{path}: band {max(bands)} asked for, it has {dataset.count}; choose others with --bands")
        stated = not all(MaskFlags.all_valid in flags for flags in dataset.mask_flag_enums)
        factors = dataset.overviews(1)
        overviews = []
        for number, factor in enumerate(factors):
            with rasterio.open(path, overview_level=number) as overview:
                overviews.append((int(factor), overview.transform))
        status = path.stat()
        return _File(
            path=path,
            crs_wkt=dataset.crs.to_wkt(),
            transform=dataset.transform,
            rows=dataset.height,
            columns=dataset.width,
            bands=bands,
            dtype=dataset.dtypes[0],
            palette=palette,
            known="mask" if stated else "black" if options.nodata is None else "nodata",
            overviews=tuple(overviews),
            bytes=status.st_size,
            changed_ns=status.st_mtime_ns,
        )


@contextlib.contextmanager
def _georeference_is_checked_here() -> Iterator[None]:
    """Without rasterio's warning beside the error of `_inspect`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def _shares_grid(one: _File, other: _File) -> bool:
    """Whether the pixels of both lie on one grid, and are read alike."""
    if (one.crs_wkt, one.bands, one.dtype, one.palette) != (other.crs_wkt, other.bands, other.dtype, other.palette):
        return False
    # Across the other file the two grids may drift apart by no more than the tolerance.
    corners = np.array([[0, 0], [other.columns, 0], [0, other.rows]], np.float64)
    column, row = apply(~one.transform, *apply(other.transform, corners[:, 0], corners[:, 1]))
    places = np.stack([column, row], axis=-1)
    shift = np.rint(places[0])
    return bool(np.all(np.abs(places - corners - shift) < _GRID_TOLERANCE_PX))


def _read_rgba(
    file: _File, overview: int | None, window: Window, options: ImageryOptions, scale: tuple[float, float] | None
) -> UInt8:
    """uint8 (h, w, 4): RGB and 255 where known, all 0 where not."""
    with _clear_errors(file.path):
        dataset = _opened(file, overview)
        wanted = sorted(set(file.bands))
        values = dataset.read(wanted, window=window)  # (bands, h, w)
        known = dataset.dataset_mask(window=window) >= 128 if file.known == "mask" else None
        colours = dataset.colormap(1) if file.palette else None
    if file.known == "nodata":
        known = np.any(values != options.nodata, axis=0)
    if colours is not None:
        table = np.zeros((256, 3), np.uint8)
        for value, colour in colours.items():
            table[value] = colour[:3]
        rgb = table[values[0]]
    else:
        if values.dtype.kind == "f":
            finite = np.all(np.isfinite(values), axis=0)
            known = finite if known is None else known & finite
            values = np.where(finite, values, 0)
        rgb = _to_8_bit(values, scale)[[wanted.index(band) for band in file.bands]].transpose(1, 2, 0)  # → (h, w, 3)
    if known is None:
        known = _known_where_nothing_is_stated(rgb)
    rgba = np.empty((*known.shape, 4), np.uint8)
    rgba[:, :, :3] = rgb
    rgba[:, :, 3] = 255
    if not known.all():
        rgba[~known] = 0
    return rgba


def _known_where_nothing_is_stated(rgb: UInt8) -> npt.NDArray[np.bool_]:
    """Files without nodata, mask or alpha are often black where they end, with the noise of JPEG. Such pixels do not
    count as known; a shadow this dark says nothing either."""
    return np.asarray(rgb.max(axis=-1) > _NEARLY_BLACK)


def _to_8_bit(values: npt.NDArray[Any], scale: tuple[float, float] | None) -> UInt8:
    if scale is None:
        return np.asarray(values, np.uint8)
    low, high = scale
    scaled = (values.astype(np.float32) - low) * (255.0 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


def _percentiles(files: Sequence[_File], options: ImageryOptions) -> tuple[float, float]:
    """0.5th and 99.5th percentile of the known values of all the files together, from a thinned sample of each."""
    samples = []
    for file in files:
        with _clear_errors(file.path), rasterio.open(file.path) as dataset:
            shape = (min(file.rows, _SAMPLE_PIXELS), min(file.columns, _SAMPLE_PIXELS))
            values = dataset.read(sorted(set(file.bands)), out_shape=(len(set(file.bands)), *shape))
            known = dataset.dataset_mask(out_shape=shape) >= 128
        if options.nodata is not None:
            known &= np.any(values != options.nodata, axis=0)
        chosen = values[:, known].astype(np.float64)
        samples.append(chosen[np.isfinite(chosen)])
    pooled = np.concatenate(samples)
    low, high = np.percentile(pooled, [0.5, 99.5]) if pooled.size else (0.0, 0.0)
    if not low < high:
        raise InputError(
            f"{files[0].path}: its values run from {low:g} to {high:g}, which cannot be scaled to 8 bit; "
            "state the values that are black and white with --scale LOW,HIGH"
        )
    return float(low), float(high)


class _OpenFiles(threading.local):
    """Datasets may not be shared between threads, so each thread keeps its own."""

    def __init__(self) -> None:
        self.datasets: OrderedDict[tuple[_File, int | None], Any] = OrderedDict()


_open_files = _OpenFiles()


def _opened(file: _File, overview: int | None) -> Any:
    """This thread's handle of a file; the handles used longest ago are closed."""
    datasets = _open_files.datasets
    key = (file, overview)
    if key not in datasets:
        if len(datasets) >= _OPEN_FILES:
            datasets.popitem(last=False)[1].close()
        level = {} if overview is None else {"overview_level": overview}
        datasets[key] = rasterio.open(file.path, **level)
    datasets.move_to_end(key)
    return datasets[key]


@contextlib.contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """GDAL's errors as InputError. A JPEG that ends early or holds garbage is an error too, not a grey area."""
    try:
        with rasterio.Env(GDAL_ERROR_ON_LIBJPEG_WARNING="YES", GTIFF_IGNORE_READ_ERRORS="NO"):
            yield
    except (rasterio.errors.RasterioError, OSError) as error:
        raise InputError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); the file is missing, damaged or no "
            "georeferenced raster, get it again"
        ) from error
