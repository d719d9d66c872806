"""XYZ tile folders ({z}/{x}/{y}.png) and MBTiles as rasters in spherical Mercator."""

from __future__ import annotations

import math
import re
import sqlite3
import threading
from pathlib import Path
from typing import Any, Mapping, Protocol

import numpy as np
import numpy.typing as npt
import pyproj
from rasterio.transform import Affine

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import UInt8
from unifygeo_ros.images.tiles import decode_rgba

_HALF_WORLD_M = math.pi * 6378137.0
_SUFFIXES = ("png", "jpg", "jpeg", "webp")

TileNumbers = npt.NDArray[np.int64]  # (n, 2): x, y with y counted from the north


class TileStore(Protocol):
    """Where the tiles come from. Picklable, safe from several threads."""

    path: Path
    kind: str

    def zooms(self) -> dict[int, TileNumbers]:
        """Every tile that is there, by zoom."""
        ...

    def read(self, zoom: int, x: int, y: int) -> bytes: ...

    def fingerprint(self) -> str: ...


class WebTilesRaster:
    """A pyramid of web tiles. Its levels are the zooms; a zoom that lacks parts of the finest one is not used."""

    def __init__(self, store: TileStore) -> None:
        self._store = store
        self.name = str(store.path)
        self.crs = pyproj.CRS.from_epsg(3857)
        zooms = store.zooms()
        if not zooms:
            raise InputError(
                f"{store.path}: holds no tiles of the form z/x/y ({', '.join(_SUFFIXES)}); check the folder"
            )
        finest = max(zooms)
        self._tile_pixels = self._read_first(finest, zooms[finest][0]).shape[0]
        needed = {(int(x), int(y)) for x, y in zooms[finest]}
        self.levels = tuple(
            _Zoom(store, zoom, tiles, self._tile_pixels)
            for zoom, tiles in sorted(zooms.items(), reverse=True)
            if {(x >> (finest - zoom), y >> (finest - zoom)) for x, y in needed} <= {(int(x), int(y)) for x, y in tiles}
        )

    def _read_first(self, zoom: int, tile: npt.NDArray[np.int64]) -> UInt8:
        x, y = tile.tolist()
        return decode_rgba(self._store.read(zoom, x, y), f"{self.name}, tile {zoom}/{x}/{y}")

    def describe(self) -> Mapping[str, Any]:
        return {
            "kind": self._store.kind,
            "crs": "EPSG:3857",
            "files": [self._store.path.name],
            "zooms": [level.zoom for level in self.levels],
            "tile_pixels": self._tile_pixels,
        }

    def fingerprint(self) -> str:
        return self._store.fingerprint()


class _Zoom:
    def __init__(self, store: TileStore, zoom: int, tiles: TileNumbers, tile_pixels: int) -> None:
        self.zoom = zoom
        self._store = store
        self._pixels = tile_pixels
        self._there = {(int(x), int(y)) for x, y in tiles}
        self._parts = np.concatenate(
            [tiles[:, ::-1] * tile_pixels, np.full((len(tiles), 2), tile_pixels, np.int64)], axis=1
        )
        size_m = 2 * _HALF_WORLD_M / (tile_pixels << zoom)
        self.crs_from_pixel = Affine(size_m, 0.0, -_HALF_WORLD_M, 0.0, -size_m, _HALF_WORLD_M)

    def footprints(self) -> npt.NDArray[np.int64]:
        return self._parts

    def read(self, row: int, column: int, rows: int, columns: int) -> UInt8 | None:
        side = self._pixels
        wanted = [
            (x, y)
            for y in range(row // side, (row + rows - 1) // side + 1)
            for x in range(column // side, (column + columns - 1) // side + 1)
            if (x, y) in self._there
        ]
        if not wanted:
            return None
        canvas = np.zeros((rows, columns, 4), np.uint8)
        for x, y in wanted:
            name = f"{self._store.path}, tile {self.zoom}/{x}/{y}"
            tile = decode_rgba(self._store.read(self.zoom, x, y), name)
            if tile.shape[:2] != (side, side):
                raise InputError(
                    f"{name}: {tile.shape[1]}x{tile.shape[0]} pixels, the others have {side}; make all alike"
                )
            top, left = y * side - row, x * side - column
            first_row, first_column = max(top, 0), max(left, 0)
            last_row, last_column = min(top + side, rows), min(left + side, columns)
            canvas[first_row:last_row, first_column:last_column] = tile[
                first_row - top : last_row - top, first_column - left : last_column - left
            ]
        return canvas


class XyzFolder:
    """{z}/{x}/{y}.png or .jpg, y from the north (as OpenStreetMap and Google number them)."""

    kind = "xyz"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._suffixes: dict[tuple[int, int, int], str] = {}
        for file in sorted(path.glob("*/*/*")):
            zoom, x, name = file.relative_to(path).parts
            match = re.fullmatch(rf"(\d+)\.({'|'.join(_SUFFIXES)})", name, re.IGNORECASE)
            if match and zoom.isdecimal() and x.isdecimal():
                self._suffixes.setdefault((int(zoom), int(x), int(match[1])), match[2])

    def zooms(self) -> dict[int, TileNumbers]:
        return _by_zoom(list(self._suffixes))

    def read(self, zoom: int, x: int, y: int) -> bytes:
        return _file_bytes(self._file((zoom, x, y)))

    def fingerprint(self) -> str:
        status = [self._file(key).stat() for key in self._suffixes]
        total, last = sum(s.st_size for s in status), max((s.st_mtime_ns for s in status), default=0)
        return f"{self.path.resolve()} {len(status)} {total} {last}"

    def _file(self, key: tuple[int, int, int]) -> Path:
        zoom, x, y = key
        return self.path / str(zoom) / str(x) / f"{y}.{self._suffixes[key]}"


class MbTiles:
    """MBTiles 1.3: an SQLite file whose rows are counted from the south."""

    kind = "mbtiles"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections = threading.local()
        kind = dict(self._query("SELECT name, value FROM metadata")).get("format", "png")
        if kind not in _SUFFIXES:
            raise InputError(f"{path}: holds tiles of format {kind}, must be one of {', '.join(_SUFFIXES)}")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.path = state["path"]
        self._connections = threading.local()

    def zooms(self) -> dict[int, TileNumbers]:
        rows = self._query("SELECT zoom_level, tile_column, tile_row FROM tiles ORDER BY 1, 2, 3")
        try:
            return _by_zoom([(int(z), int(x), (1 << int(z)) - 1 - int(row)) for z, x, row in rows])
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.path}: tile numbers that are no integers ({error}); make the file again"
            ) from error

    def read(self, zoom: int, x: int, y: int) -> bytes:
        rows = self._query(
            "SELECT tile_data FROM tiles WHERE zoom_level = ? AND tile_column = ? AND tile_row = ?",
            (zoom, x, (1 << zoom) - 1 - y),
        )
        if not rows or not isinstance(rows[0][0], bytes):
            raise InputError(f"{self.path}: tile {zoom}/{x}/{y} holds no image; make the file again")
        return bytes(rows[0][0])

    def fingerprint(self) -> str:
        status = self.path.stat()
        return f"{self.path.resolve()} {status.st_size} {status.st_mtime_ns}"

    def _query(self, statement: str, values: tuple[int, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            if not hasattr(self._connections, "connection"):
                self._connections.connection = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)
            return list(self._connections.connection.execute(statement, values))
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: cannot be read as MBTiles ({error}); get the file again") from error


def _by_zoom(tiles: list[tuple[int, int, int]]) -> dict[int, TileNumbers]:
    zooms: dict[int, list[tuple[int, int]]] = {}
    for zoom, x, y in tiles:
        if 0 <= zoom <= 30 and 0 <= x < 1 << zoom and 0 <= y < 1 << zoom:
            zooms.setdefault(zoom, []).append((x, y))
    return {zoom: np.array(numbers, np.int64) for zoom, numbers in zooms.items()}


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); get the tiles again") from error
