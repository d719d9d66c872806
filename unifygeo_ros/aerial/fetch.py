"""Imagery of a region from a server of web tiles → a folder of XYZ tiles, with its source and licence in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

from tqdm import tqdm

from unifygeo_ros.aerial.tile_server import TileServer, TileSource
from unifygeo_ros.aerial.web_tiles import MAX_ZOOM, PROVENANCE
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.core.files import new_file, write_text
from unifygeo_ros.images.files import decode_rgba

MISSING = "missing.txt"
"""The tiles that the server does not have, one a line: they are not asked for again."""

MAX_LATITUDE_DEG = math.degrees(math.atan(math.sinh(math.pi)))
"""Where web tiles end, 85.05°."""

_FORMATS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}
_LINE = re.compile(r"(\d+)/(\d+)/(\d+)")
_MISSING_AT_THE_START = 50
"""If so many tiles are missing before one is there, the URL or the zoom is wrong."""


@dataclass(frozen=True)
class Bounds:
    """A box of WGS84 degrees. West may be greater than east: then the box lies across 180°."""

    west: float
    south: float
    east: float
    north: float

    def __post_init__(self) -> None:
        limits = (180.0, MAX_LATITUDE_DEG, 180.0, MAX_LATITUDE_DEG)
        inside = all(abs(value) <= limit for value, limit in zip(self._values(), limits, strict=True))
        if not inside or not self.south < self.north or self.west == self.east:
            raise ConfigurationError(
                f"bounds {', '.join(f'{value:g}' for value in self._values())}: must be west, south, east, north in "
                f"degrees, south below north, latitudes within ±{MAX_LATITUDE_DEG:.2f}"
            )

    def _values(self) -> tuple[float, float, float, float]:
        return self.west, self.south, self.east, self.north

    def tiles(self, zoom: int) -> tuple[list[int], list[int]]:
        """Columns, from west to east, and rows, from north to south, of the tiles that the box touches."""
        across = 1 << zoom
        first_column = min(_floor(_column(self.west, zoom)), across - 1)
        last_column = max(-_floor(-_column(self.east, zoom)) - 1, 0)
        if self.west < self.east:
            columns = list(range(first_column, max(last_column, first_column) + 1))
        else:
            columns = list(dict.fromkeys([*range(first_column, across), *range(last_column + 1)]))
        first_row = max(_floor(_row(self.north, zoom)), 0)
        last_row = min(-_floor(-_row(self.south, zoom)) - 1, across - 1)
        return columns, list(range(first_row, max(first_row, last_row) + 1))


@dataclass(frozen=True)
class FetchReport:
    """What a download did."""

    folder: Path
    tiles: int
    """Tiles of the region that are in the folder now."""
    fetched: int
    """Of these, tiles that were fetched by this run."""
    missing: int
    """Tiles of the region that the server does not have."""
    fetched_bytes: int


def fetch_region(
    source: TileSource,
    bounds: Bounds,
    zoom: int,
    folder: Path | str,
    server: TileServer,
    *,
    most_tiles: int,
    progress: bool = False,
) -> FetchReport:
    """Fetch the tiles of a region that the folder does not hold yet.

    Each tile is written whole or not at all, so the same call goes on after a kill. A folder may take further regions
    of its source. A download that fails before its first tile leaves nothing behind.

    Args:
        source: Whose tiles the folder holds.
        bounds: The region.
        zoom: Of the tiles.
        folder: Made when missing.
        server: Of the source.
        most_tiles: Limit of the tiles of the region.
        progress: Show a progress bar, on a terminal.

    Raises:
        ConfigurationError: The region is too large, or the folder holds other tiles or cannot be written.
        InputError: The server does not give the tiles.
    """
    folder = Path(folder)
    if not 0 <= zoom <= MAX_ZOOM:
        raise ConfigurationError(f"zoom {zoom}: must be between 0 and {MAX_ZOOM}")
    columns, rows = bounds.tiles(zoom)
    total = len(columns) * len(rows)
    if total > most_tiles:
        middle = (bounds.south + bounds.north) / 2
        raise ConfigurationError(
            f"the region has {total} tiles of zoom {zoom} ({metres_per_pixel(zoom, middle):.2f} m per pixel), at most "
            f"{most_tiles} are fetched; choose a coarser zoom or a smaller region, ask the provider for files, or "
            "raise --most-tiles if its terms allow it"
        )
    with _folder_errors(folder), _locked(folder):
        new = not (folder / PROVENANCE).exists()
        _check_provenance(folder, source, zoom, bounds)
        run = _Run(folder, zoom, source, server)
        try:
            for y in rows:
                for x in tqdm(columns, desc=f"Row {y}", unit="tile", leave=False, disable=None if progress else True):
                    run.take(x, y, total)
        finally:
            run.close(remove=new and run.found + run.fetched == 0)
        return FetchReport(folder, run.found + run.fetched, run.fetched, run.absent, run.fetched_bytes)


class _Run:
    """One run of a download, and what it has done so far."""

    def __init__(self, folder: Path, zoom: int, source: TileSource, server: TileServer) -> None:
        self.found = self.fetched = self.fetched_bytes = self.absent = 0
        self._folder = folder
        self._zoom = zoom
        self._source = source
        self._server = server
        self._side: int | None = None
        self._missing = _read_missing(folder / MISSING)
        self._missing_file = (folder / MISSING).open("a", encoding="ascii")
        self._missing_file.write("\n")  # ends a line that a kill cut off

    def take(self, x: int, y: int, total: int) -> None:
        """See to one of `total` tiles: it is there, or is fetched, or is known to be missing."""
        tile = (self._zoom, x, y)
        if _exists(self._folder, tile):
            self.found += 1
            return
        data = None if tile in self._missing else self._server.get(*tile)
        if data is not None:
            self._side = _write_tile(self._folder, tile, data, self._side)
            self.fetched += 1
            self.fetched_bytes += len(data)
            return
        self.absent += 1
        if tile not in self._missing:
            self._missing_file.write("/".join(map(str, tile)) + "\n")
            self._missing_file.flush()
        if self.found + self.fetched == 0 and self.absent >= min(_MISSING_AT_THE_START, total):
            raise InputError(
                f"{self._source.public_url}: the first {self.absent} tiles of the region are all missing; check the "
                f"bounds, the zoom ({self._zoom}) and the order of {{x}} and {{y}} in the URL"
            )

    def close(self, remove: bool) -> None:
        """remove: leave nothing behind."""
        self._missing_file.close()
        if remove:
            for name in (MISSING, PROVENANCE):
                (self._folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it was there before, with something in it
                self._folder.rmdir()


def metres_per_pixel(zoom: int, latitude_deg: float, tile_pixels: int = 256) -> float:
    """Length on the ground of a pixel of a web tile."""
    return 2 * math.pi * 6378137.0 * math.cos(math.radians(latitude_deg)) / (tile_pixels << zoom)


def _floor(value: float) -> int:
    """The whole number below; a value that rounding left just under the next one counts as that."""
    return math.floor(value + 1e-9)


def _column(longitude_deg: float, zoom: int) -> float:
    return (longitude_deg + 180) / 360 * (1 << zoom)


def _row(latitude_deg: float, zoom: int) -> float:
    return (1 - math.asinh(math.tan(math.radians(latitude_deg))) / math.pi) / 2 * (1 << zoom)


def _exists(folder: Path, tile: tuple[int, int, int]) -> bool:
    zoom, x, y = tile
    return any((folder / f"{zoom}/{x}/{y}.{suffix}").exists() for suffix in _FORMATS.values())


def _write_tile(folder: Path, tile: tuple[int, int, int], data: bytes, side: int | None) -> int:
    """Write a tile. Returns its side in pixels, which must be that of the others."""
    zoom, x, y = tile
    height, width = decode_rgba(data, f"tile {zoom}/{x}/{y}").shape[:2]
    if height != width or side not in (None, width):
        raise InputError(
            f"tile {zoom}/{x}/{y} has {width}x{height} pixels, the others {side}; the server sends something else than "
            "map tiles, check the URL"
        )
    suffix = next((suffix for start, suffix in _FORMATS.items() if data.startswith(start)), "png")
    path = folder / f"{zoom}/{x}/{y}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as stream:
        stream.write(data)
    return int(width)


def _read_missing(path: Path) -> set[tuple[int, int, int]]:
    """The tiles of whole lines; a line that a kill cut off has no end."""
    if not path.exists():
        return set()
    lines = path.read_text(encoding="ascii", errors="replace").split("\n")[:-1]
    matches = (_LINE.fullmatch(line) for line in lines)
    return {(int(match[1]), int(match[2]), int(match[3])) for match in matches if match}


def _check_provenance(folder: Path, source: TileSource, zoom: int, bounds: Bounds) -> None:
    """Write what the folder holds, or compare it with what it is to hold."""
    path = folder / PROVENANCE
    wanted = {
        "format": "unifygeo-imagery",
        "url": source.public_url,
        "zoom": zoom,
        "attribution": source.attribution,
        "licence": source.licence,
    }
    regions: list[Any] = []
    if path.exists():
        try:
            held = dict(json.loads(path.read_text(encoding="utf-8")))
            regions = list(held.pop("bounds", []))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{path}: damaged ({error}); remove the folder or choose another") from error
        differing = sorted(name for name in wanted if held.get(name) != wanted[name])
        if differing:
            name = differing[0]
            raise ConfigurationError(
                f"{folder}: holds tiles of {name} {held.get(name)!r}, not {wanted[name]!r}; choose another folder"
            )
    elif strangers := sorted(item.name for item in folder.iterdir()):
        raise ConfigurationError(f"{folder}: holds {strangers[0]}, and no {PROVENANCE}; choose an empty folder")
    region = list(bounds._values())
    if region not in regions:
        text = json.dumps({**wanted, "bounds": [*regions, region]}, indent=2, ensure_ascii=False, sort_keys=True)
        write_text(path, text + "\n")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"{folder}: another download is writing it; wait for it") from None
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{folder}: cannot be written ({error}); free space or choose another folder, and give the same command "
            "again: it goes on where it stopped"
        ) from error
