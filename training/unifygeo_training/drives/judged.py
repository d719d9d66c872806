"""Drives for judging and calibrating: an evaluation set, and streets through which the whole localizer is run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyproj

from unifygeo_ros.core.arrays import Bool, Float64, Int64, UInt8
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_ros.core.time import NS_PER_S
from unifygeo_ros.localization.config import CameraMount
from unifygeo_training.drives.ground import Ground, is_known
from unifygeo_training.drives.opened import PartOfDrive
from unifygeo_training.judging.town_set import SEMI_POSITIVES
from unifygeo_training.streets import enlarged
from unifygeo_training.towns.orthophoto import write_geotiff

REACH_SIDES = 3
"""The gallery holds the tiles whose centre is at most so many tile sides from a camera, in the larger of the axes."""
_EARTH_RADIUS_M = 6_371_000.0


class DriveImages:
    """An `EvaluationSet`: half-overlapping tiles around the drives against the drives' panoramas.

    The positive is the tile whose centre is nearest to the camera, in the larger of the two axes; the semi-positives
    are the other tiles that hold the camera. Drives over the same imagery share a gallery.
    """

    def __init__(self, parts: Sequence[PartOfDrive], name: str) -> None:
        grounds = list({id(part.drive.ground): part.drive.ground for part in parts}.values())
        self._grounds, self._parts = grounds, parts
        centres, ground_of = [], []
        for number, ground in enumerate(grounds):
            cameras = np.concatenate([p.drive.positions_m[p.chosen] for p in parts if p.drive.ground is ground])
            found = gallery_centres(ground, cameras)
            centres.append(found)
            ground_of.append(np.full(len(found), number))
        self._centres_m, self._ground_of = np.concatenate(centres), np.concatenate(ground_of)
        tiles, offsets, self._queries = [], [], []
        for of, part in enumerate(parts):
            of_ground = np.flatnonzero(self._ground_of == grounds.index(part.drive.ground))
            for number in part.chosen.tolist():
                camera = part.drive.positions_m[number]
                away = np.abs(self._centres_m[of_ground] - camera).max(axis=1)
                nearest = of_ground[np.argsort(away, kind="stable")[: 1 + SEMI_POSITIVES]]
                holds = np.abs(self._centres_m[nearest] - camera).max(axis=1) <= part.drive.ground.aerial.side_m / 2
                if holds[0]:
                    row = np.full(1 + SEMI_POSITIVES, -1, np.int64)
                    row[: len(nearest)] = np.where(holds, nearest, -1)
                    tiles.append(row)
                    offsets.append(camera - self._centres_m[nearest[0]])
                    self._queries.append((of, number))
        if not tiles:
            raise InputError(f"{name}: no camera lies on a tile of its imagery; look with `unifygeo-train check-data`")
        self._tiles, self._offsets_m = np.array(tiles), np.array(offsets)
        self.name = f"{name}: {len(tiles)} images, {len(self._centres_m)} tiles"

    @property
    def tiles(self) -> Int64:
        return self._tiles

    @property
    def offsets_m(self) -> Float64:
        return self._offsets_m

    @property
    def side_m(self) -> Float64:
        return np.array([self._grounds[number].aerial.side_m for number in self._ground_of])

    def ground_image(self, query: int) -> UInt8:
        of, number = self._queries[query]
        return np.asarray(self._parts[of].drive.panoramas[number])

    def aerial_image(self, tile: int) -> UInt8:
        return self._grounds[self._ground_of[tile]].cut(self._centres_m[tile]).pixels

    def displacement_m(self, start: Int64, end: Int64) -> Float64:
        """Along the ellipsoid from one imagery to another, whose map frames differ."""
        same = self._ground_of[start] == self._ground_of[end]
        moved = self._centres_m[end] - self._centres_m[start]
        for row in np.flatnonzero(~same).tolist():
            a, b = (self._geodetic_deg(int(tiles[row])) for tiles in (np.asarray(start), np.asarray(end)))
            azimuth_deg, _, distance_m = pyproj.Geod(ellps="WGS84").inv(a[1], a[0], b[1], b[0])
            azimuth = np.radians(azimuth_deg)
            moved[row] = np.sin(azimuth) * distance_m, np.cos(azimuth) * distance_m
        return moved

    def _geodetic_deg(self, tile: int) -> Float64:
        return self._grounds[self._ground_of[tile]].frame.geodetic_from_map(*self._centres_m[tile])


class DriveStreets:
    """Drives over one imagery (`Streets`)."""

    def __init__(self, parts: Sequence[PartOfDrive], name: str, seed: int) -> None:
        """parts: all of the same ground."""
        self.name, self.seed = name, seed
        self._parts = parts
        self._images = [(of, number) for of, part in enumerate(parts) for number in part.chosen.tolist()]
        spec = parts[0].drive.ground_spec
        self.mount = CameraMount(
            elevation_top_rad=spec.elevation_top_rad, elevation_bottom_rad=spec.elevation_bottom_rad
        )
        self.columns = spec.width
        self._ground = parts[0].drive.ground
        self._cameras_m = np.array([parts[of].drive.positions_m[number] for of, number in self._images])

    def __len__(self) -> int:
        return len(self._images)

    def imagery(self, folder: Path) -> Path:
        return self._written(folder, *self._mosaic())

    def half(self, folder: Path) -> Path:
        """Across the longer of the two axes: of a drive along one street, half of the cameras are off it, too."""
        pixels, (west, south) = self._mosaic()
        middle, extent = np.median(self._cameras_m, axis=0), np.ptp(self._cameras_m, axis=0)
        east, north = (np.array(middle) - (west, south)) / self._ground.aerial.metres_per_pixel
        if extent[0] >= extent[1]:
            pixels = pixels[:, : max(round(float(east)), self._ground.aerial.size)]
        else:
            pixels = pixels[-max(round(float(north)), self._ground.aerial.size) :]
        return self._written(folder, pixels, (west, south))

    def truth(self, frame: LocalFrame) -> Float64:
        return frame.map_from_geodetic(*self._ground.frame.geodetic_from_map(*self._cameras_m.T).T)

    def camera_image(self, number: int, roll: int) -> UInt8:
        of, image = self._images[number]
        return enlarged(np.roll(self._parts[of].drive.panoramas[image], roll, axis=1), self.mount)

    def _mosaic(self) -> tuple[UInt8, tuple[float, float]]:
        """Imagery around the cameras: uint8 (H, W, 3), and east and north of its south-west corner in the map."""
        ground = self._ground
        size, side = ground.aerial.size, ground.aerial.side_m
        # One side of margin, so that every camera lies on the usual number of tiles.
        low = ground.snapped(self._cameras_m.min(axis=0) - side)
        columns, rows = np.ceil((self._cameras_m.max(axis=0) + side - low) / side).astype(int) + 1
        pixels = np.zeros((rows * size, columns * size, 3), np.uint8)
        for row in range(rows):
            for column in range(columns):
                tile = ground.cut(low + np.array([column, row]) * side)
                top = (rows - 1 - row) * size
                pixels[top : top + size, column * size : (column + 1) * size] = tile.pixels
        return pixels, (float(low[0] - side / 2), float(low[1] - side / 2))

    def _written(self, folder: Path, pixels: UInt8, origin: tuple[float, float]) -> Path:
        datum = self._ground.frame.datum
        # Within some kilometres of its origin this projection is the map frame itself, to a few millimetres.
        crs = (
            f"+proj=tmerc +lat_0={datum.latitude_deg!r} +lon_0={datum.longitude_deg!r} "
            f"+k={1 + datum.height_m / _EARTH_RADIUS_M!r} +ellps=WGS84 +datum=WGS84 +units=m"
        )
        file = folder / "drives.tif"
        write_geotiff(file, pixels, origin, self._ground.aerial.metres_per_pixel, crs=crs, nodata=0)
        return file


def gallery_centres(ground: Ground, cameras_m: Float64) -> Float64:
    """Centres, float64 (m, 2), of the half-overlapping tiles near cameras, float64 (n, 2), of which enough is known."""
    stride, reach = ground.aerial.side_m / 2, REACH_SIDES * ground.aerial.side_m
    steps = np.arange(-round(reach / stride), round(reach / stride) + 1)
    around = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    cells = np.unique(np.rint(cameras_m / stride).astype(int), axis=0)
    grid = np.unique((cells[:, None] + around).reshape(-1, 2), axis=0)
    centres = [ground.snapped(cell * stride) for cell in grid.astype(np.float64)]
    known: Bool = np.array([is_known(ground.cut(centre)) for centre in centres])
    if not known.any():
        raise InputError(f"{ground.name}: knows no tile near the drives; look with `unifygeo-train check-data`")
    return np.array(centres)[known]


def neighbouring(parts: Sequence[PartOfDrive], *, tiles: int, queries: int, seed: int) -> list[PartOfDrive]:
    """Of each imagery, images around a random one whose surroundings have at most so many half-overlapping tiles.

    Of those so many images at random are taken: what fits in memory, however long the drives are.
    """
    rng = np.random.default_rng(seed)
    found = []
    for together in _by_ground(parts):
        side = together[0].drive.ground.aerial.side_m
        cameras = np.concatenate([part.drive.positions_m[part.chosen] for part in together])
        order = np.abs(cameras - cameras[rng.integers(len(cameras))]).max(axis=1).argsort(kind="stable")
        low = np.minimum.accumulate(cameras[order], axis=0)
        high = np.maximum.accumulate(cameras[order], axis=0)
        needed = np.prod(np.ceil((high - low + 2 * side) / (side / 2)), axis=1)  # rises along the order
        near = order[: max(1, int(np.searchsorted(needed, tiles, side="right")))]
        kept = np.zeros(len(cameras), np.bool_)
        kept[rng.permutation(near)[:queries]] = True
        first = 0
        for part in together:
            own = kept[first : first + len(part)]
            first += len(part)
            if own.any():
                found.append(PartOfDrive(part.drive, part.chosen[own]))
    return found


def streets_of(parts: Sequence[PartOfDrive], name: str, seed: int) -> list[DriveStreets]:
    """The drives of each imagery."""
    return [
        DriveStreets(together, f"{name}, imagery {number}", seed + number)
        for number, together in enumerate(_by_ground(parts), 1)
    ]


def describe(parts: Sequence[PartOfDrive], file: Path, part: str) -> str:
    """Which drives, of which days, for reports and lineages."""
    drives = ", ".join(f"{_bag_name(p)} of {_day(p)} ({len(p)} images)" for p in parts)
    return f"drives of {file.name}, part {part}: {drives}"


def _bag_name(part: PartOfDrive) -> str:
    return "/".join(part.drive.recording.source.bag.resolve().parts[-2:])


def _day(part: PartOfDrive) -> str:
    last_ns = int(part.drive.exposures.stamps_ns.max())
    return datetime.fromtimestamp(last_ns / NS_PER_S, tz=timezone.utc).date().isoformat()


def _by_ground(parts: Sequence[PartOfDrive]) -> list[list[PartOfDrive]]:
    by_ground: dict[int, list[PartOfDrive]] = {}
    for part in parts:
        by_ground.setdefault(id(part.drive.ground), []).append(part)
    return list(by_ground.values())
