"""GeoTIFFs (and other formats that GDAL georeferences) as rasters; files that share a pixel grid become one raster."""

from __future__ import annotations

import contextlib
import math
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
from rasterio._err import CPLE_BaseError  # GDAL's own errors, which some properties of a dataset raise as they are
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.transform import Affine
from rasterio.windows import Window

from unifygeo_ros.aerial.imagery import ImageryOptions
from unifygeo_ros.aerial.raster import apply
from unifygeo_ros.core.arrays import Bool, Int64, UInt8
from unifygeo_ros.core.errors import InputError

_GRID_TOLERANCE_PX = 0.01
"""Files whose pixels are this close to one common grid are read as one raster."""
_OPEN_FILES = 256
"""Limit of files that all threads together hold open, beyond one for each thread. Many systems allow 1024."""
_NEARLY_BLACK = 4
"""Largest value of a fill pixel; see `_known_where_nothing_is_stated`."""
_SAMPLE_PIXELS = 512
"""Largest number of rows and columns of a file's sample for the percentiles."""
_POOLED_PIXELS = 16 * _SAMPLE_PIXELS**2
"""All samples together hold no more pixels than this, unless the files are so many that each gives its fewest."""
_FEWEST_SAMPLE_PIXELS = 16
"""Smallest number of rows and columns of a file's sample."""
_MOST_BLOCKS = 1 << 21
"""Limit of the blocks that are queried one by one; a query takes 17 µs."""
_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_OTHER_COLOURS = {
    *(ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow, ColorInterp.black),
    *(ColorInterp.hue, ColorInterp.saturation, ColorInterp.lightness),
    *(ColorInterp.Y, ColorInterp.Cb, ColorInterp.Cr),
}


@dataclass(frozen=True)
class _File:
    """What is needed of a file before it is opened for reading."""

    path: Path
    crs_wkt: str
    transform: Affine
    rows: int
    columns: int
    bands: tuple[int, int, int]
    """Numbers from 1 of the bands for red, green and blue."""
    dtype: str
    palette: bool
    known: str
    """How unknown pixels are marked: "mask" (by the file: nodata, mask or alpha), "nodata" (by the option) or "black"
    (by nothing)."""
    fill: float | None
    """The value that GDAL returns for blocks that a sparse file does not store; None where such a file marks unknown
    pixels with a mask of its own, which may call them known."""
    stored: tuple[tuple[int, int, int, int], ...]
    """First row, first column, rows and columns of the rectangles whose blocks the file stores; the whole file if it
    stores all of them."""
    copyright: str
    """What the file says of its own (TIFFTAG_COPYRIGHT), empty if nothing."""
    overviews: tuple[tuple[int, Affine], ...]
    """Decimation factors, and the transform that GDAL gives each of them."""
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
        stated = "; ".join(dict.fromkeys(file.copyright for file in self._files if file.copyright))
        return {
            "kind": "geotiff",
            "crs": ":".join(authority) if authority else self.crs.to_wkt(),
            "files": [file.path.name for file in self._files],
            "bands": list(self._files[0].bands),
            "scale": list(self._scale) if self._scale else None,
            "nodata": self._options.nodata,
            **({"attribution": stated} if stated else {}),
        }

    def fingerprint(self) -> str:
        return "\n".join(f"{file.path.resolve()} {file.bytes} {file.changed_ns}" for file in self._files)

    def _make_levels(self) -> Iterator[_GeoTiffLevel]:
        first = self._files[0]
        corners = []
        for file in self._files:
            column, row = apply(~first.transform, file.transform.c, file.transform.f)
            corners.append((round(float(row)), round(float(column)), file.rows, file.columns))
        parts = np.array(corners, np.int64)
        footprints = self._footprints(parts)
        yield _GeoTiffLevel(self._files, parts, footprints, first.transform, None, self._options, self._scale)
        for number, (factor, transform) in enumerate(first.overviews):
            # Rectangles grow to whole pixels of the overview, and to those that an average may have reached.
            shrunk = np.concatenate([footprints[:, :2], footprints[:, :2] + footprints[:, 2:]], axis=1)
            shrunk = np.concatenate([shrunk[:, :2] // factor - 1, -(-shrunk[:, 2:] // factor) + 1], axis=1)
            if len(self._files) == 1:
                # GDAL stretches an overview over the file where the factor does not divide its size.
                windows, shared = np.array([[0, 0, -(-first.rows // factor), -(-first.columns // factor)]]), transform
            elif np.all(parts % factor == 0) and all(
                [f for f, _ in file.overviews[: number + 1]][-1:] == [factor] for file in self._files
            ):
                base = first.transform
                windows = parts // factor
                shared = Affine(base.a * factor, base.b * factor, base.c, base.d * factor, base.e * factor, base.f)
            else:
                continue
            corner, end = windows[:, :2].min(0), (windows[:, :2] + windows[:, 2:]).max(0)
            start = np.maximum(shrunk[:, :2], corner)
            covered = np.concatenate([start, np.minimum(shrunk[:, 2:], end) - start], axis=1)
            yield _GeoTiffLevel(self._files, windows, covered, shared, number, self._options, self._scale)

    def _footprints(self, parts: Int64) -> Int64:
        """What the files store, as `RasterLevel.footprints` of the first level."""
        found = []
        for file, part in zip(self._files, parts.tolist(), strict=True):
            if file.fill is None or self._is_known(file, file.fill):
                found.append(tuple(part))
            else:
                found.extend(
                    (row + part[0], column + part[1], rows, columns) for row, column, rows, columns in file.stored
                )
        if not found:
            raise InputError(
                f"{self.name}: stores no pixels at all (a sparse file that was never written to); get the imagery again"
            )
        return np.array(found, np.int64)

    def _is_known(self, file: _File, fill: float) -> bool:
        """Whether pixels that the file does not store count as known."""
        if file.known == "mask":
            return False  # the fill is then the file's nodata value, or a transparent pixel
        if file.known == "nodata":
            return fill != self._options.nodata
        if file.palette:
            return True  # its first colour, whichever that is
        return bool(_to_8_bit(np.array([fill]), self._scale)[0] > _NEARLY_BLACK)


class _GeoTiffLevel:
    def __init__(
        self,
        files: Sequence[_File],
        parts: Int64,
        footprints: Int64,
        crs_from_pixel: Affine,
        overview: int | None,
        options: ImageryOptions,
        scale: tuple[float, float] | None,
    ) -> None:
        """Take the files and their places in the grid.

        parts is int64 (files, 4): first row, first column, rows and columns of each file; footprints is int64 (n, 4),
        the same of what they store.
        """
        self.crs_from_pixel = crs_from_pixel
        self._files = files
        self._parts = parts
        self._footprints = footprints
        self._overview = overview
        self._options = options
        self._scale = scale

    def footprints(self) -> Int64:
        return self._footprints

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
    deep_scale = options.scale or options.deep_scale or (_percentiles(deep, options) if deep else None)
    groups: list[list[_File]] = []
    alike: dict[Any, list[list[_File]]] = {}  # the groups by what can be compared at once
    for file in files:
        place = file.transform
        size = math.sqrt(abs(place.determinant))
        turn = tuple(round(value / size, 3) for value in (place.a, place.b, place.d, place.e))
        key = (file.crs_wkt, file.bands, file.dtype, file.palette, f"{size:.3g}", turn)
        for group in alike.setdefault(key, []):
            if _shares_grid(group[0], file):
                group.append(file)
                break
        else:
            groups.append([file])
            alike[key].append(groups[-1])
    return [
        GeoTiffRaster(group, options, options.scale if group[0].dtype == "uint8" else deep_scale) for group in groups
    ]


def _inspect(path: Path, options: ImageryOptions) -> _File:
    with _clear_errors(path), _georeference_is_checked_here(), rasterio.open(path) as dataset:
        _check_georeference(path, dataset)
        kinds = set(dataset.dtypes)
        if len(kinds) != 1 or any(kind.startswith("complex") for kind in kinds):
            raise InputError(f"{path}: bands of type {sorted(kinds)}; convert it to 8 or 16 bit (gdal_translate -ot)")
        stated = not all(MaskFlags.all_valid in flags for flags in dataset.mask_flag_enums)
        own_mask = any(
            MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in dataset.mask_flag_enums
        )
        bands = _choose_bands(path, dataset, options)
        overviews = []
        for number, factor in enumerate(dataset.overviews(1)):
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
            palette=dataset.count == 1 and dataset.colorinterp[0] == ColorInterp.palette,
            known="mask" if stated else "black" if options.nodata is None else "nodata",
            fill=None if own_mask else 0.0,
            stored=_stored_rectangles(dataset),
            copyright=dataset.tags().get("TIFFTAG_COPYRIGHT", "").strip(),
            overviews=tuple(overviews),
            bytes=status.st_size,
            changed_ns=status.st_mtime_ns,
        )


def _check_georeference(path: Path, dataset: Any) -> None:
    """Raises InputError for a file whose place on the ground is not stated, or stated by nonsense."""
    transform = dataset.transform
    if dataset.gcps[0] and (dataset.crs is None or transform == Affine.identity()):
        raise InputError(
            f"{path}: is georeferenced by {len(dataset.gcps[0])} ground control points only; warp it to a grid first "
            "(gdalwarp -t_srs EPSG:…)"
        )
    if dataset.crs is None and dataset.rpcs is not None:
        raise InputError(
            f"{path}: is georeferenced by RPCs only, it is no orthophoto; orthorectify it first (gdalwarp -rpc with an "
            "elevation model)"
        )
    if dataset.crs is None:
        raise InputError(f"{path}: has no CRS; set the one it was made in (gdal_edit.py -a_srs EPSG:…) and try again")
    if transform == Affine.identity():
        raise InputError(f"{path}: has a CRS but no geotransform; georeference it (gdal_translate -a_ullr …)")
    # An inverse that overflows is none: damaged numbers may be finite and their determinant hardly above 0.
    if not np.all(np.isfinite(transform[:6])) or transform.is_degenerate or not _invertible(transform):
        raise InputError(
            f"{path}: its geotransform {tuple(transform[:6])} gives pixels no area or no place; georeference it again "
            "(gdal_edit.py -a_ullr …)"
        )


def _invertible(transform: Affine) -> bool:
    """Whether the inverse of a transform, and the file's own corner in its own pixels, are finite."""
    with np.errstate(all="ignore"):
        inverse = ~transform
        corner = inverse * (transform.c, transform.f)
    return bool(np.all(np.isfinite([*inverse[:6], *corner])))


def _choose_bands(path: Path, dataset: Any, options: ImageryOptions) -> tuple[int, int, int]:
    """Numbers of the bands for red, green and blue.

    Those of the options, else those that the file declares so, else the first three (of fewer than three: the first).
    Raises InputError.
    """
    if options.bands is not None:
        if max(options.bands) > dataset.count:
            raise InputError(
                f"{path}: band {max(options.bands)} asked for, it has {dataset.count}; choose others with --bands"
            )
        return options.bands
    meanings = dict(zip(dataset.indexes, dataset.colorinterp, strict=True))
    other = [meaning.name for meaning in meanings.values() if meaning in _OTHER_COLOURS]
    if other:
        raise InputError(
            f"{path}: its bands are {', '.join(other)}, not red, green and blue; convert it to RGB, or choose bands "
            "that can be used as they are with --bands"
        )
    declared = [[number for number, meaning in meanings.items() if meaning == colour] for colour in _RGB]
    if all(declared):
        red, green, blue = (numbers[0] for numbers in declared)
        return red, green, blue
    colour_bands = [number for number, meaning in meanings.items() if meaning != ColorInterp.alpha]
    if not colour_bands:
        raise InputError(f"{path}: has an alpha band only; give imagery")
    first, second, third = colour_bands[:3] if len(colour_bands) >= 3 else (colour_bands[0],) * 3
    return first, second, third


def _stored_rectangles(dataset: Any) -> tuple[tuple[int, int, int, int], ...]:
    """First row, first column, rows and columns of the rectangles whose blocks a file stores.

    A sparse GeoTIFF leaves out empty blocks; its table of blocks says which, so that nothing needs to be decoded.
    """
    whole = ((0, 0, dataset.height, dataset.width),)
    if dataset.driver != "GTiff" or len(set(dataset.block_shapes)) != 1:
        return whole
    height, width = dataset.block_shapes[0]
    down, across = -(-dataset.height // height), -(-dataset.width // width)
    if down * across > _MOST_BLOCKS:
        return whole
    planes = dataset.indexes if dataset.interleaving == Interleaving.band else dataset.indexes[:1]
    stored = np.array(
        [
            [
                any(dataset.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=plane) for plane in planes)
                for column in range(across)
            ]
            for row in range(down)
        ],
        np.bool_,
    )
    if stored.all():
        return whole
    rectangles = []
    for top, bottom, left, right in _rectangles(stored):
        row, column = top * height, left * width
        rectangles.append(
            (row, column, min(bottom * height, dataset.height) - row, min(right * width, dataset.width) - column)
        )
    return tuple(rectangles)


def _rectangles(cells: Bool) -> Iterator[tuple[int, int, int, int]]:
    """Top, bottom, left and right of rectangles that cover the True cells and no other.

    They are runs of columns, joined over the rows that have the same run.
    """
    open_runs: dict[tuple[int, int], int] = {}
    for row in range(len(cells) + 1):
        edges = np.flatnonzero(np.diff(cells[row].astype(np.int8), prepend=0, append=0)) if row < len(cells) else ()
        runs = set(zip(edges[::2], edges[1::2], strict=True))
        for run in [run for run in open_runs if run not in runs]:
            yield open_runs.pop(run), row, int(run[0]), int(run[1])
        for run in runs:
            open_runs.setdefault(run, row)


@contextlib.contextmanager
def _georeference_is_checked_here() -> Iterator[None]:
    """Without rasterio's warning, which would repeat the error of `_inspect`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def _shares_grid(one: _File, other: _File) -> bool:
    """Whether the pixels of both lie on one grid and are read in the same way."""
    if (one.crs_wkt, one.bands, one.dtype, one.palette) != (other.crs_wkt, other.bands, other.dtype, other.palette):
        return False
    # Across the other file the two grids may drift apart by no more than the tolerance.
    corners = np.array([[0, 0], [other.columns, 0], [0, other.rows]], np.float64)
    column, row = apply(~one.transform, *apply(other.transform, corners[:, 0], corners[:, 1]))
    moved = np.stack([column, row], axis=-1)
    shift = np.rint(moved[0])
    return bool(np.all(np.abs(moved - corners - shift) < _GRID_TOLERANCE_PX))


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


def _known_where_nothing_is_stated(rgb: UInt8) -> Bool:
    """Which pixels of a file without nodata, mask or alpha are known: all that are not nearly black.

    Such files are often black beyond their edge, with the noise of JPEG. A shadow this dark shows nothing either.
    """
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
    side = min(_SAMPLE_PIXELS, max(_FEWEST_SAMPLE_PIXELS, math.isqrt(_POOLED_PIXELS // len(files))))
    for file in files:
        with _clear_errors(file.path), rasterio.open(file.path) as dataset:
            shape = (min(file.rows, side), min(file.columns, side))
            values = dataset.read(sorted(set(file.bands)), out_shape=(len(set(file.bands)), *shape))
            known = dataset.dataset_mask(out_shape=shape) >= 128
        if options.nodata is not None:
            known &= np.any(values != options.nodata, axis=0)
        chosen = values[:, known].astype(np.float64)
        samples.append(chosen[np.isfinite(chosen)])
    pooled = np.concatenate(samples)
    if not pooled.size:
        raise InputError(
            f"{files[0].path}: none of its sampled pixels is known (nodata, mask and alpha leave nothing); check its "
            "nodata value (gdalinfo), or state the values that are black and white with --scale LOW,HIGH"
        )
    low, high = np.percentile(pooled, [0.5, 99.5])
    if not low < high:
        raise InputError(
            f"{files[0].path}: its values run from {low:g} to {high:g}, which cannot be scaled to 8 bit; "
            "state the values that are black and white with --scale LOW,HIGH"
        )
    return float(low), float(high)


class _ThreadsFiles:
    """The datasets that one thread holds open: they may not be shared between threads. It goes with its thread."""

    total = 0
    """Datasets that are open in all threads."""
    _counting = threading.Lock()

    def __init__(self) -> None:
        self._datasets: OrderedDict[tuple[Path, int, int | None], Any] = OrderedDict()

    def opened(self, file: _File, overview: int | None) -> Any:
        """The handle of a file. Where all threads together hold too many, this thread's oldest are closed."""
        key = (file.path, file.changed_ns, overview)
        if key not in self._datasets:
            while self._datasets and self.total >= _OPEN_FILES:
                self._datasets.popitem(last=False)[1].close()
                self._count(-1)
            level = {} if overview is None else {"overview_level": overview}
            self._datasets[key] = rasterio.open(file.path, **level)
            self._count(1)
        self._datasets.move_to_end(key)
        return self._datasets[key]

    def __del__(self) -> None:
        self._count(-len(self._datasets))

    @classmethod
    def _count(cls, change: int) -> None:
        with cls._counting:
            cls.total += change


_threads = threading.local()


def _opened(file: _File, overview: int | None) -> Any:
    """This thread's handle of a file."""
    if not hasattr(_threads, "files"):
        _threads.files = _ThreadsFiles()
    return _threads.files.opened(file, overview)


@contextlib.contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """GDAL's errors as InputError. A JPEG that ends early or holds garbage is an error too, not a grey area."""
    try:
        with rasterio.Env(GDAL_ERROR_ON_LIBJPEG_WARNING="YES", GTIFF_IGNORE_READ_ERRORS="NO"):
            yield
    except (rasterio.errors.RasterioError, CPLE_BaseError, OSError) as error:
        raise InputError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); the file is missing, damaged or no "
            "georeferenced raster, get it again"
        ) from error
