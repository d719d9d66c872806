"""Web tiles as rasters in spherical Mercator: folders of XYZ or TMS tiles ({z}/{x}/{y}.png), and MBTiles."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import threading
import xml.etree.ElementTree
from pathlib import Path
from typing import Any, Iterable, Mapping, Protocol

import numpy as np
import pyproj
from rasterio.transform import Affine

from unifygeo_ros.core.arrays import Int64, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.images.files import decode_rgba, read_bytes

MAX_ZOOM = 30
"""Finest zoom that is read. At 30 a pixel is 0.15 mm; numbers beyond are damage."""

_HALF_WORLD_M = math.pi * 6378137.0
_SUFFIXES = ("png", "jpg", "jpeg", "webp")
_TMS_DESCRIPTION = "tilemapresource.xml"
PROVENANCE = "source.json"
"""Written by `unifygeo region fetch` into a folder of tiles: where they come from, and under which licence."""
_PROVENANCE_FIELDS = ("attribution", "licence", "url")
_REMEDY = "get the tiles again"


class TileStore(Protocol):
    """Where the tiles come from. Picklable, safe from several threads. Rows are counted from the north."""

    path: Path
    kind: str
    provenance: Mapping[str, str]
    """Attribution, licence and URL, as far as the tiles state them."""

    def zooms(self) -> dict[int, Int64]:
        """Every tile that is there: for each zoom int64 (n, 2), x and y."""
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
        height, self._tile_pixels = self._read_first(finest, zooms[finest][0]).shape[:2]
        if height != self._tile_pixels:
            raise InputError(f"{store.path}: tiles of {self._tile_pixels}x{height} pixels, must be square")
        needed = {(int(x), int(y)) for x, y in zooms[finest]}
        self.levels = tuple(
            _Zoom(store, zoom, tiles, self._tile_pixels)
            for zoom, tiles in sorted(zooms.items(), reverse=True)
            if {(x >> (finest - zoom), y >> (finest - zoom)) for x, y in needed} <= {(int(x), int(y)) for x, y in tiles}
        )

    def _read_first(self, zoom: int, tile: Int64) -> UInt8:
        x, y = tile.tolist()
        return decode_rgba(self._store.read(zoom, x, y), f"{self.name}, tile {zoom}/{x}/{y}")

    def describe(self) -> Mapping[str, Any]:
        return {
            "kind": self._store.kind,
            "crs": "EPSG:3857",
            "files": [self._store.path.name],
            "zooms": [level.zoom for level in self.levels],
            "tile_pixels": self._tile_pixels,
            **self._store.provenance,
        }

    def fingerprint(self) -> str:
        return self._store.fingerprint()


class _Zoom:
    def __init__(self, store: TileStore, zoom: int, tiles: Int64, tile_pixels: int) -> None:
        self.zoom = zoom
        self._store = store
        self._pixels = tile_pixels
        self._there = {(int(x), int(y)) for x, y in tiles}
        across = 1 << zoom
        if np.ptp(tiles[:, 0]) >= across / 2:  # a region across 180°: its eastern side goes on beyond the last column
            tiles = tiles + [across, 0] * (tiles[:, :1] < across / 2)
        self._parts = np.concatenate(
            [tiles[:, ::-1] * tile_pixels, np.full((len(tiles), 2), tile_pixels, np.int64)], axis=1
        )
        size_m = 2 * _HALF_WORLD_M / (tile_pixels << zoom)
        self.crs_from_pixel = Affine(size_m, 0.0, -_HALF_WORLD_M, 0.0, -size_m, _HALF_WORLD_M)

    def footprints(self) -> Int64:
        return self._parts

    def read(self, row: int, column: int, rows: int, columns: int) -> UInt8 | None:
        side, across = self._pixels, 1 << self.zoom
        wanted = [
            (x, y)
            for y in range(row // side, (row + rows - 1) // side + 1)
            for x in range(column // side, (column + columns - 1) // side + 1)
            if (x % across, y) in self._there  # columns beyond 180° are those on the other side of it
        ]
        if not wanted:
            return None
        canvas = np.zeros((rows, columns, 4), np.uint8)
        for x, y in wanted:
            name = f"{self._store.path}, tile {self.zoom}/{x % across}/{y}"
            tile = decode_rgba(self._store.read(self.zoom, x % across, y), name)
            if tile.shape[:2] != (side, side):
                raise InputError(
                    f"{name}: {tile.shape[1]}x{tile.shape[0]} pixels, the others have {side}; give all tiles one size"
                )
            top, left = y * side - row, x * side - column
            first_row, first_column = max(top, 0), max(left, 0)
            last_row, last_column = min(top + side, rows), min(left + side, columns)
            canvas[first_row:last_row, first_column:last_column] = tile[
                first_row - top : last_row - top, first_column - left : last_column - left
            ]
        return canvas


class TileFolder:
    """{z}/{x}/{y}.png, .jpg or .webp.

    Rows are counted from the north (XYZ, as OpenStreetMap and Google number them), or from the south where the folder
    holds the tilemapresource.xml of a TMS, which gdal2tiles writes by default.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind = "tms" if _is_mercator_tms(path / _TMS_DESCRIPTION) else "xyz"
        self.provenance: Mapping[str, str] = _read_provenance(path / PROVENANCE)
        self._files: dict[tuple[int, int, int], str] = {}  # names as they are: they may have leading zeros
        for file in sorted(path.glob("*/*/*")):
            zoom, x, name = file.relative_to(path).parts
            match = re.fullmatch(rf"(\d+)\.({'|'.join(_SUFFIXES)})", name, re.IGNORECASE)
            if match and zoom.isdecimal() and x.isdecimal() and int(zoom) <= MAX_ZOOM:
                row = int(match[1])
                y = (1 << int(zoom)) - 1 - row if self.kind == "tms" else row
                self._files.setdefault((int(zoom), int(x), y), f"{zoom}/{x}/{name}")

    def zooms(self) -> dict[int, Int64]:
        return _by_zoom(key for key in self._files if _is_tile(*key))

    def read(self, zoom: int, x: int, y: int) -> bytes:
        return read_bytes(self.path / self._files[zoom, x, y], _REMEDY)

    def fingerprint(self) -> str:
        status = [(self.path / name).stat() for name in self._files.values()]
        total, last = sum(s.st_size for s in status), max((s.st_mtime_ns for s in status), default=0)
        return f"{self.path.resolve()} {len(status)} {total} {last}"


def _read_provenance(path: Path) -> dict[str, str]:
    """What a folder's source.json says that must be passed on. Raises InputError for a damaged one."""
    if not path.exists():
        return {}
    try:
        content = json.loads(read_bytes(path, _REMEDY))
        return {name: str(content[name]) for name in _PROVENANCE_FIELDS}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: cannot be read ({error!r}); fetch the tiles again, so that attribution and licence are known"
        ) from error


def _is_mercator_tms(description: Path) -> bool:
    """Whether a folder is a TMS in spherical Mercator. Raises InputError for a TMS in another projection."""
    if not description.exists():
        return False
    data = read_bytes(description, "make the tiles again, or remove it if rows are counted from the north")
    try:
        root = xml.etree.ElementTree.fromstring(data)
    except xml.etree.ElementTree.ParseError as error:
        raise InputError(
            f"{description}: cannot be read ({error}); make the tiles again, or remove it if rows are counted from the "
            "north"
        ) from error
    sets = root.find("TileSets")
    profile = "" if sets is None else sets.get("profile", "")
    if profile not in ("mercator", "global-mercator"):
        raise InputError(
            f"{description}: tiles of profile {profile or 'unknown'!r}, only mercator can be read; make them with "
            "gdal2tiles --profile=mercator, or give the raster they were made of"
        )
    return True


class MbTiles:
    """MBTiles 1.3: an SQLite file whose rows are counted from the south."""

    kind = "mbtiles"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections = threading.local()
        views = self._query("SELECT name, sql FROM sqlite_master WHERE type = 'view'")
        for name, statement in views:
            if re.search(r"\bWITH\b", str(statement), re.IGNORECASE):
                raise InputError(
                    f"{path}: its view {name} has a WITH clause, which may never end; store the tiles in a table or in "
                    "a plain view"
                )
        metadata = dict(self._query("SELECT name, value FROM metadata"))
        stated = metadata.get("attribution")
        self.provenance: Mapping[str, str] = {"attribution": stated} if isinstance(stated, str) and stated else {}
        kind = metadata.get("format", "png")
        if kind not in _SUFFIXES:
            raise InputError(f"{path}: holds tiles of format {kind}, must be one of {', '.join(_SUFFIXES)}")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "provenance": self.provenance}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.path = state["path"]
        self.provenance = state["provenance"]
        self._connections = threading.local()

    def zooms(self) -> dict[int, Int64]:
        return _by_zoom(self._tiles())

    def _tiles(self) -> Iterable[tuple[int, int, int]]:
        for zoom, x, row in self._query("SELECT zoom_level, tile_column, tile_row FROM tiles ORDER BY 1, 2, 3"):
            if not _is_tile(zoom, x, row):
                raise InputError(
                    f"{self.path}: has a tile of zoom {zoom!r}, column {x!r}, row {row!r}; zooms are integers from 0 "
                    f"to {MAX_ZOOM}, columns and rows from 0 to 2^zoom - 1; make the file again"
                )
            yield zoom, x, (1 << zoom) - 1 - row

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
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise InputError(f"{self.path}: cannot be read as MBTiles ({error}); get the file again") from error


def _is_tile(zoom: Any, x: Any, y: Any) -> bool:
    """Whether three values from outside are the numbers of a tile."""
    integers = all(isinstance(value, int) for value in (zoom, x, y))
    return integers and 0 <= zoom <= MAX_ZOOM and 0 <= x < 1 << zoom and 0 <= y < 1 << zoom


def _by_zoom(tiles: Iterable[tuple[int, int, int]]) -> dict[int, Int64]:
    zooms: dict[int, list[tuple[int, int]]] = {}
    for zoom, x, y in tiles:
        zooms.setdefault(zoom, []).append((x, y))
    return {zoom: np.array(numbers, np.int64) for zoom, numbers in zooms.items()}
