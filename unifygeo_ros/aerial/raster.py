"""Rasters in any CRS → north-up tiles on a grid of the map frame.

A `Raster` is pixels on a regular grid of one CRS at one or more resolutions, from one file or many. A tile is cut from
it in one warp. Over a tile the way from map metres to raster pixels is affine to well below a pixel: projections of
aerial imagery bend by d²/2R · tan(latitude), which for a tile of 384 pixels at 0.2 m is 0.2 mm · tan(latitude). The
residual at nine points is checked for every tile, so a projection that bends more is refused, not warped wrongly.

GDAL's WarpedVRT (rasterio) does not do this: it warps between CRSs, and the map is none. It is the plane through the
datum at its ellipsoidal height; PROJ's orthographic projection is that plane at height 0 only. Web tiles would keep
their own code either way.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Mapping, Protocol, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pyproj
import pyproj.exceptions
from rasterio.transform import Affine

from unifygeo_ros.aerial.imagery import COARSEST, TileImage
from unifygeo_ros.aerial.manifest import cell_key, cell_keys
from unifygeo_ros.core.arrays import Float64, Int64, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import MAX_RANGE_M, Datum, LocalFrame
from unifygeo_ros.inference.bundle import AerialSpec

MAX_AFFINE_RESIDUAL_PX = 0.1
"""Largest distance, in raster pixels, between a tile's true place and its affine approximation."""

_EDGE_POINTS = 17
"""Points along each edge of a footprint: its straight edges are curves in the map."""
_CHUNK_POINTS = 1 << 20
_STRIP_PIXELS = 1 << 22


class RasterLevel(Protocol):
    """A raster at one resolution."""

    @property
    def crs_from_pixel(self) -> Affine:
        """CRS coordinates of (column, row); integers are pixel corners, as in GDAL."""
        ...

    def footprints(self) -> Int64:
        """First row, first column, rows and columns of the parts that hold pixels: int64 (n, 4), n at least 1.

        The parts are files, web tiles, or rectangles of stored blocks of a sparse file.
        """
        ...

    def read(self, row: int, column: int, rows: int, columns: int) -> UInt8 | None:
        """Read a window, which may reach beyond the raster. May be called from any thread.

        Returns:
            uint8 (rows, columns, 4): RGB and 255 where it is known, all 0 where it is not. None if it touches no part.

        Raises:
            InputError: a file cannot be read.
        """
        ...


class Raster(Protocol):
    """Pixels on a regular grid of one CRS. Picklable: workers open the files themselves."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def crs(self) -> pyproj.CRS: ...

    @property
    def levels(self) -> Sequence[RasterLevel]:
        """From the finest to the coarsest."""
        ...

    def describe(self) -> Mapping[str, Any]: ...

    def fingerprint(self) -> str: ...


class RasterImagery:
    """Rasters laid over each other; where several know a pixel, the first one's counts."""

    def __init__(self, rasters: Sequence[Raster]) -> None:
        self._rasters = tuple(rasters)

    def centre_deg(self) -> tuple[float, float]:
        corners = np.concatenate([_geodetic_outline(raster).reshape(-1, 2) for raster in self._rasters])
        # The middle on the sphere, which no date line disturbs.
        latitude, longitude = np.radians(corners.T)
        x, y, z = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
        (x_min, y_min, z_min), (x_max, y_max, z_max) = ((f(x), f(y), f(z)) for f in (np.min, np.max))
        x, y, z = (x_min + x_max) / 2, (y_min + y_max) / 2, (z_min + z_max) / 2
        return math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x))

    def describe(self) -> Mapping[str, Any]:
        return {"rasters": [raster.describe() for raster in self._rasters]}

    def fingerprint(self) -> str:
        return "\n".join(raster.fingerprint() for raster in self._rasters)

    def tiles(self, frame: LocalFrame, aerial: AerialSpec, stride: float) -> RasterTiles:
        levels = []
        for raster in self._rasters:
            level = _choose_level(raster, aerial.metres_per_pixel)
            outline = frame.map_from_geodetic(*np.moveaxis(_geodetic_outline(raster), -1, 0))
            farthest = float(np.max(np.hypot(outline[..., 0], outline[..., 1])))
            if not farthest <= MAX_RANGE_M:
                raise InputError(
                    f"{raster.name}: reaches {farthest:.0f} m from the datum ({frame.datum.latitude_deg:.7f}, "
                    f"{frame.datum.longitude_deg:.7f}), the map frame {MAX_RANGE_M:.0f} m; "
                    "check the georeference and the datum, or build several indexes"
                )
            levels.append(_LevelInMap(raster, level, frame))
        stride_m = stride * aerial.side_m
        boxes = [level.boxes_m() for level in levels]
        centres = _grid_centres(boxes, aerial.side_m, stride_m)
        return RasterTiles(levels, boxes, centres, aerial, stride_m)


class RasterTiles:
    """Tiles on a grid of the map frame, one of whose centres is the datum."""

    def __init__(
        self,
        levels: Sequence[_LevelInMap],
        boxes_m: Sequence[Float64],
        centres_m: Float64,
        aerial: AerialSpec,
        stride_m: float,
    ) -> None:
        """boxes_m: of each level, `_LevelInMap.boxes_m`."""
        self._levels = tuple(levels)
        corners = [np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)]) for boxes in boxes_m]
        self._boxes_m = np.array(corners)  # west, south, east, north of each level
        self._aerial = aerial
        self.centres_m = centres_m
        self.metres_per_pixel = aerial.metres_per_pixel
        self.stride_m = stride_m

    def read(self, number: int) -> TileImage:
        east, north = self.centres_m[number].tolist()
        return self.at(east, north)

    def at(self, east_m: float, north_m: float) -> TileImage:
        """The tile with any centre in the map. Raises InputError, which names the file."""
        size = self._aerial.size
        pixels = np.zeros((size, size, 3), np.uint8)
        valid = np.zeros((size, size), np.bool_)
        # Half a tile, and as much again for what interpolation takes from beyond the tile's edge.
        reach = self._aerial.side_m
        low, high = self._boxes_m[:, :2] - reach, self._boxes_m[:, 2:] + reach
        centre = np.array([east_m, north_m])
        for number in np.flatnonzero(np.all((low <= centre) & (centre <= high), axis=1)).tolist():
            tile: TileImage | None = self._levels[number].cut(east_m, north_m, size, self.metres_per_pixel)
            if tile is None:
                continue
            if tile.valid.all() and not valid.any():
                return tile
            new = tile.valid & ~valid
            pixels[new] = tile.pixels[new]
            valid |= new
            if valid.all():
                break
        return TileImage(pixels, valid)


class _LevelInMap:
    """A raster level seen from the map frame."""

    def __init__(self, raster: Raster, level: RasterLevel, frame: LocalFrame) -> None:
        self._raster = raster
        self._level = level
        self._frame = frame
        self._pixel_from_crs = ~level.crs_from_pixel
        row, column, rows, columns = _bounding_box(level.footprints()).tolist()
        middle_x, _ = apply(level.crs_from_pixel, column + columns / 2, row + rows / 2)
        self._middle_x = float(middle_x)
        self._turn_x = _turn_in_crs(raster)

    @functools.cached_property
    def _crs_from_geodetic(self) -> pyproj.Transformer:
        return _transformer(self._raster)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_crs_from_geodetic"}

    def boxes_m(self) -> Float64:
        """float64 (n, 4): west, south, east, north of each part in the map."""
        parts = self._level.footprints()
        boxes = np.empty((len(parts), 4))
        step = max(1, _CHUNK_POINTS // (4 * _EDGE_POINTS))
        for start in range(0, len(parts), step):
            outline = _outline(parts[start : start + step], self._level.crs_from_pixel)
            geodetic = _geodetic_from_crs(self._raster, outline)
            points = self._frame.map_from_geodetic(geodetic[..., 0], geodetic[..., 1])
            boxes[start : start + step] = np.concatenate([points.min(1), points.max(1)], axis=-1)
        return boxes

    def cut(self, east_m: float, north_m: float, size: int, metres_per_pixel: float) -> TileImage | None:
        """One tile; None where the raster has nothing."""
        raster_from_tile = self._raster_from_tile(east_m, north_m, size, metres_per_pixel)
        corners = raster_from_tile @ np.array(
            [[-0.5, size - 0.5, -0.5, size - 0.5], [-0.5, -0.5, size - 0.5, size - 0.5], [1] * 4]
        )
        margin = 2
        column, row = np.floor(corners.min(1)).astype(int) - margin
        columns, rows = np.ceil(corners.max(1)).astype(int) + margin + 1 - (column, row)
        # Raster pixels for one tile pixel. Whole multiples are averaged first, on blocks whose corners are multiples of
        # the block in the raster, so that neighbouring tiles and files see the same averages.
        shrink = math.sqrt(abs(np.linalg.det(raster_from_tile[:, :2])))
        block = max(1, math.floor(shrink))
        column, row = column - column % block, row - row % block
        columns, rows = -(-columns // block) * block + block, -(-rows // block) * block + block
        window = self._read_averaged(row, column, rows, columns, block)
        if window is None or not window[:, :, 3].any():
            return None
        # Pixel centres: window pixel = (raster pixel + 0.5 − corner) / block − 0.5
        window_from_tile = raster_from_tile.copy()
        window_from_tile[:, 2] += 0.5 - np.array([column, row])
        window_from_tile /= block
        window_from_tile[:, 2] -= 0.5
        return _warp(window, window_from_tile, size)

    def _read_averaged(self, row: int, column: int, rows: int, columns: int, block: int) -> UInt8 | None:
        """The window with blocks of block × block pixels averaged; rows and columns are multiples of block.

        It is read in strips, so that a tile of very fine imagery takes little memory.
        """
        if block == 1:
            return self._level.read(row, column, rows, columns)
        height = max(1, _STRIP_PIXELS // (columns * block)) * block
        averaged = np.zeros((rows // block, columns // block, 4), np.uint8)
        anything = False
        for top in range(0, rows, height):
            strip = self._level.read(row + top, column, min(height, rows - top), columns)
            if strip is not None:
                anything = True
                size = (columns // block, strip.shape[0] // block)
                averaged[top // block : top // block + size[1]] = cv2.resize(strip, size, interpolation=cv2.INTER_AREA)
        return averaged if anything else None

    def _raster_from_tile(self, east_m: float, north_m: float, size: int, metres_per_pixel: float) -> Float64:
        """float64 (2, 3): raster (column, row) from tile (column, row, 1), integers being pixel centres in both."""
        probes = np.array([-0.5, (size - 1) / 2, size - 0.5])
        tile_column, tile_row = (axis.ravel() for axis in np.meshgrid(probes, probes))
        middle = (size - 1) / 2
        geodetic = self._frame.geodetic_from_map(
            east_m + (tile_column - middle) * metres_per_pixel, north_m - (tile_row - middle) * metres_per_pixel
        )
        x, y = self._crs_from_geodetic.transform(geodetic[:, 1], geodetic[:, 0])
        if self._turn_x is not None:  # of all the x that mean the same meridian, that of the raster's own side of 180°
            x = _nearest_turn(x, x[4], self._turn_x)
            x += _nearest_turn(x[4], self._middle_x, self._turn_x) - x[4]
        column, row = apply(self._pixel_from_crs, x, y)
        exact = np.stack([column - 0.5, row - 0.5], axis=-1)  # GDAL's corners → pixel centres
        points = np.stack([tile_column, tile_row, np.ones(9)], axis=-1)
        if not np.all(np.isfinite(exact)):
            raise InputError(
                f"{self._raster.name}: a tile at {geodetic[4, 0]:.6f}, {geodetic[4, 1]:.6f} lies outside the domain of "
                f"its CRS ({self._raster.crs.name}); check the CRS or reproject the imagery"
            )
        solution, *_ = np.linalg.lstsq(points, exact, rcond=None)
        residual = float(np.max(np.abs(points @ solution - exact)))
        if residual > MAX_AFFINE_RESIDUAL_PX:
            raise InputError(
                f"{self._raster.name}: its projection bends by {residual:.3f} pixels over one tile, at most "
                f"{MAX_AFFINE_RESIDUAL_PX} can be used; reproject the imagery, to UTM for instance"
            )
        return np.ascontiguousarray(solution.T)


def _warp(window: UInt8, window_from_tile: Float64, size: int) -> TileImage:
    """window: uint8 (h, w, 4), unknown pixels all 0. Bilinear, or twice as fine and averaged where the tile is coarser.

    Normalised by the known share of what each tile pixel was mixed from, so that the edge of the known area neither
    darkens nor loses half a pixel.
    """
    fine = 1 if math.sqrt(abs(np.linalg.det(window_from_tile[:, :2]))) <= 1.01 else 2
    # Pixel centres: tile pixel = (fine pixel + 0.5) / fine − 0.5
    matrix = window_from_tile.copy()
    matrix[:, :2] /= fine
    matrix[:, 2] += window_from_tile[:, :2] @ np.full(2, 0.5 / fine - 0.5)
    warped = cv2.warpAffine(
        window,
        matrix,
        (size * fine, size * fine),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0, 0),
    )
    if fine > 1:
        warped = cv2.resize(warped, (size, size), interpolation=cv2.INTER_AREA)
    known = warped[:, :, 3]
    valid = known >= 128  # half of it
    pixels = np.ascontiguousarray(warped[:, :, :3])
    if not valid.all():
        pixels[~valid] = 0
    partly = valid & (known < 255)
    if partly.any():
        share = known[partly, None] / 255.0
        pixels[partly] = np.minimum(np.rint(pixels[partly] / share), 255).astype(np.uint8)
    return TileImage(pixels, valid)


def apply(transform: Affine, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Float64, Float64]:
    """The affine map of points whose coordinates x and y have any equal shape."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return (
        transform.a * x + transform.b * y + transform.c,
        transform.d * x + transform.e * y + transform.f,
    )


def ground_resolution_m(raster: Raster, level: RasterLevel) -> float:
    """Metres on the ground for one pixel in the middle of the first part of a level (geometric mean of both axes)."""
    row, column, rows, columns = level.footprints()[0].tolist()
    middle = np.array([column + columns / 2, row + rows / 2])
    steps = middle + np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    x, y = apply(level.crs_from_pixel, steps[:, 0], steps[:, 1])
    geodetic = _geodetic_from_crs(raster, np.stack([x, y], axis=-1))
    latitude, longitude = geodetic[0].tolist()
    if not abs(latitude) <= 89:
        raise InputError(
            f"{raster.name}: its middle lies at latitude {latitude:.6g}°, the map frame reaches ±89°; check its "
            "georeference and the order of its axes"
        )
    frame = LocalFrame(Datum(latitude, (longitude + 180) % 360 - 180))
    points = frame.map_from_geodetic(geodetic[:, 0], geodetic[:, 1])
    return math.sqrt(abs(np.linalg.det(points[1:] - points[0])))


def _choose_level(raster: Raster, metres_per_pixel: float) -> RasterLevel:
    """The coarsest level that is as fine as the model, else the finest. Raises InputError for too coarse a raster."""
    levels = raster.levels
    resolutions = [ground_resolution_m(raster, level) for level in levels]
    if resolutions[0] > COARSEST * metres_per_pixel:
        raise InputError(
            f"{raster.name}: {resolutions[0]:.4g} m per pixel, the model can use at most "
            f"{COARSEST * metres_per_pixel:.4g} m ({COARSEST:g} times the {metres_per_pixel:.4g} m it was trained at); "
            "get finer imagery or a model trained on coarser"
        )
    # 1 % of tolerance: a level of the model's own resolution serves it despite the rounding of the CRS.
    fine_enough = [i for i, resolution in enumerate(resolutions) if resolution <= metres_per_pixel * 1.01]
    return levels[fine_enough[-1] if fine_enough else 0]


def _grid_centres(boxes_m: Sequence[Float64], side_m: float, stride_m: float) -> Float64:
    """Centres of the tiles that touch the box of a part, sorted as the index wants them. float64 (n, 2).

    boxes_m: of each level, `_LevelInMap.boxes_m`.
    """
    found = [np.empty(0, np.int64)]
    for boxes in boxes_m:
        for west, south, east, north in boxes.tolist():
            columns = np.arange(*_span(west, east, side_m, stride_m), dtype=np.int64)
            rows = np.arange(*_span(south, north, side_m, stride_m), dtype=np.int64)
            found.append(cell_key(rows[:, None], columns).ravel())
    keys = np.unique(np.concatenate(found))  # one number for each place of the grid
    rows = (keys + 2**31) >> 32
    steps = np.stack([keys - cell_key(rows, 0), rows], axis=-1)
    centres = np.asarray(steps * stride_m, np.float64)
    order = np.lexsort((steps[:, 0], steps[:, 1], cell_keys(centres, side_m)))
    return np.ascontiguousarray(centres[order])


def _span(low: float, high: float, side_m: float, stride_m: float) -> tuple[int, int]:
    """Grid numbers whose tiles overlap the stretch low … high."""
    return math.floor((low - side_m / 2) / stride_m) + 1, math.ceil((high + side_m / 2) / stride_m)


def _outline(parts: Int64, crs_from_pixel: Affine) -> Float64:
    """CRS coordinates of points around each part: (n, 4) → float64 (n, 4 · _EDGE_POINTS, 2)."""
    share = np.linspace(0.0, 1.0, _EDGE_POINTS)
    one, zero = np.ones_like(share), np.zeros_like(share)
    along_columns = np.concatenate([share, one, share, zero])
    along_rows = np.concatenate([zero, share, one, share])
    row, column, rows, columns = (parts[:, i, None].astype(np.float64) for i in range(4))
    x, y = apply(crs_from_pixel, column + columns * along_columns, row + rows * along_rows)
    return np.stack([x, y], axis=-1)


def _geodetic_outline(raster: Raster) -> Float64:
    """WGS84 points around all the parts of a raster together: float64 (1, 4 · _EDGE_POINTS, 2), latitude first."""
    level = raster.levels[0]
    return _geodetic_from_crs(raster, _outline(_bounding_box(level.footprints())[None], level.crs_from_pixel))


def _bounding_box(parts: Int64) -> Int64:
    """First row, first column, rows and columns of all parts together: int64 (4,)."""
    first = parts[:, :2].min(0)
    return np.concatenate([first, (parts[:, :2] + parts[:, 2:]).max(0) - first])


def _turn_in_crs(raster: Raster) -> float | None:
    """How far CRS x grows over 360° of longitude; None where it depends on more than the longitude.

    x is in proportion to the longitude in geographic coordinates and Mercator: there, x on the other side of 180° may
    be off by a whole turn.
    """
    _transformer(raster)  # for its error
    return _turn_of(raster.crs.to_wkt())


@functools.lru_cache(maxsize=64)
def _turn_of(wkt: str) -> float | None:
    longitudes = np.arange(-180.0, 180.0)
    transformer = _transformer_of(wkt)
    x, other_x = (np.asarray(transformer.transform(longitudes, np.full(360, lat))[0]) for lat in (0.0, 40.0))
    if not (np.all(np.isfinite(x)) and np.array_equal(x, other_x)):
        return None
    steps = np.diff(x)
    step = float(np.median(steps))
    proportional = np.isclose(steps, step, rtol=1e-9, atol=0.0)
    return 360 * step if np.count_nonzero(~proportional) <= 1 else None


def _nearest_turn(x: Any, near: float, turn: float) -> Any:
    """x moved by whole turns to within half a turn of `near`."""
    return x + turn * np.rint((near - x) / turn)


def _transformer(raster: Raster) -> pyproj.Transformer:
    """From WGS84 longitude, latitude to the raster's CRS. Raises InputError for a CRS that is not tied to the Earth."""
    try:
        return _transformer_of(raster.crs.to_wkt())
    except pyproj.exceptions.ProjError as error:
        raise InputError(
            f"{raster.name}: its CRS ({raster.crs.name}) cannot be brought to WGS84 ({error}); set the one it was made "
            "in (gdal_edit.py -a_srs EPSG:…)"
        ) from error


@functools.lru_cache(maxsize=64)
def _transformer_of(wkt: str) -> pyproj.Transformer:
    """One for all rasters of a CRS: there may be thousands of them, and making it takes milliseconds."""
    return pyproj.Transformer.from_crs(4326, pyproj.CRS.from_wkt(wkt), always_xy=True)


def _geodetic_from_crs(raster: Raster, points: Float64) -> Float64:
    """WGS84 latitude, longitude of CRS points (…, 2). Raises InputError outside the CRS's domain."""
    longitude, latitude = _transformer(raster).transform(points[..., 0], points[..., 1], direction="INVERSE")
    geodetic = np.stack([np.asarray(latitude), np.asarray(longitude)], axis=-1)
    if not np.all(np.isfinite(geodetic)):
        raise InputError(
            f"{raster.name}: its corners lie outside the domain of its CRS ({raster.crs.name}); the georeference is "
            "damaged, set it again"
        )
    return geodetic
