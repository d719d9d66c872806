"""Panoramas and imagery with which the whole localizer can be run: of a town, or of a part of VIGOR."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import rasterio

from unifygeo_ros.core.arrays import Float64, Int64, UInt8
from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_ros.images.files import read_image
from unifygeo_ros.localization.config import CameraMount
from unifygeo_training.data.photography import PhotographyConfig, photograph_from_above, photograph_street
from unifygeo_training.judging.region import Region
from unifygeo_training.towns.orthophoto import write_geotiff
from unifygeo_training.towns.pairs import CachedTown
from unifygeo_training.towns.scene import geodetic_from_town

ENLARGED = 4
"""Factor on the cached panoramas' size, so that the localizer's own resampling finds them sharp."""


class Streets(Protocol):
    """Where panoramas and tiles of an evaluation come from."""

    name: str
    """Name for messages."""
    seed: int
    """Seed of everything that is drawn at random."""
    mount: CameraMount
    """Mount of the camera."""
    columns: int
    """Steps of a turn in which a panorama can be rolled."""

    def __len__(self) -> int:
        """Panoramas."""
        ...

    def imagery(self, folder: Path) -> Path:
        """Write the imagery into a folder; what `build_index` takes."""
        ...

    def half(self, folder: Path) -> Path:
        """Write half of the imagery into a folder, as `imagery` does the whole."""
        ...

    def truth(self, frame: LocalFrame) -> Float64:
        """The cameras in the map frame, float64 (n, 2), metres."""
        ...

    def camera_image(self, number: int, roll: int) -> UInt8:
        """A panorama whose centre column faced north before it was rolled by so many of `columns`."""
        ...


class TownStreets:
    """A cached town."""

    def __init__(self, town: CachedTown) -> None:
        record = town.record
        self.town, self.name, self.seed = town, f"town {record.seed}", record.seed
        self.mount = CameraMount(
            elevation_top_rad=record.panorama_top_rad, elevation_bottom_rad=record.panorama_bottom_rad
        )
        self.columns = town.panoramas.shape[2]
        self._origin = (record.origin_east_m, record.origin_north_m)

    def __len__(self) -> int:
        return len(self.town.panoramas)

    def imagery(self, folder: Path) -> Path:
        return self._written(folder, np.asarray(self.town.orthophotos[0]))

    def half(self, folder: Path) -> Path:
        pixels = np.asarray(self.town.orthophotos[0])
        return self._written(folder, pixels[:, : pixels.shape[1] // 2])

    def _written(self, folder: Path, pixels: UInt8) -> Path:
        file = folder / "town.tif"
        write_geotiff(file, pixels, self._origin, self.town.record.metres_per_pixel)
        return file

    def truth(self, frame: LocalFrame) -> Float64:
        return frame.map_from_geodetic(*geodetic_from_town(self._origin, self.town.positions).T)

    def camera_image(self, number: int, roll: int) -> UInt8:
        """Enlarged to the square pixels of a camera: the cached ones are higher than wide."""
        return enlarged(np.roll(self.town.panoramas[number], roll, axis=1), self.mount)


def enlarged(panorama: UInt8, mount: CameraMount) -> UInt8:
    """A panorama of a network's size as a camera with the mount's elevations and square pixels would give it."""
    rows = ENLARGED * len(panorama)
    field = mount.elevation_top_rad - mount.elevation_bottom_rad
    return np.asarray(cv2.resize(panorama, (round(rows * 2 * np.pi / field), rows), interpolation=cv2.INTER_CUBIC))


class RegionStreets:
    """A part of VIGOR, with its tiles as they are."""

    columns = 2048

    def __init__(self, region: Region, seed: int) -> None:
        split = region.data.split
        self.region, self.name, self.seed = region, region.name, seed
        self.mount = CameraMount(elevation_top_rad=split.ground_top_rad, elevation_bottom_rad=split.ground_bottom_rad)

    def __len__(self) -> int:
        return len(self.region.queries)

    def imagery(self, folder: Path) -> Path:
        return self._linked(folder, self.region.rows)

    def half(self, folder: Path) -> Path:
        longitude_deg = self.region.data.split.gallery_lat_lon[self.region.rows][:, 1]
        return self._linked(folder, self.region.rows[longitude_deg < np.median(longitude_deg)])

    def _linked(self, folder: Path, rows: Int64) -> Path:
        files = [self.region.data.split.gallery[row] for row in rows]
        parent = files[0].parent  # {City}/satellite or satellite/{City}
        city = folder / (parent.parent.name if parent.name == "satellite" else parent.name)
        (city / "satellite").mkdir(parents=True)
        for file in files:
            (city / "satellite" / file.name).symlink_to(file.resolve())
        return city

    def truth(self, frame: LocalFrame) -> Float64:
        centres_deg = self.region.data.split.gallery_lat_lon[self.region.rows[self.region.tiles[:, 0]]]
        return frame.map_from_geodetic(*centres_deg.T) + self.region.offsets_m

    def camera_image(self, number: int, roll: int) -> UInt8:
        panorama = read_image(self.region.data.split.ground[self.region.queries[number]])
        return np.roll(panorama, round(roll / self.columns * panorama.shape[1]), axis=1)


class PhotographedStreets:
    """Streets as other cameras and another provider show them: every place is where it was."""

    def __init__(self, streets: Streets, config: PhotographyConfig, seed: int) -> None:
        """seed: of the changes. The imagery as a whole is changed in one way, each panorama in its own."""
        self._streets, self._config, self._seed = streets, config, seed
        self.name, self.seed, self.mount = f"{streets.name}, photographed", streets.seed, streets.mount
        self.columns = streets.columns

    def __len__(self) -> int:
        return len(self._streets)

    def imagery(self, folder: Path) -> Path:
        return self._changed(self._streets.imagery(folder))

    def half(self, folder: Path) -> Path:
        return self._changed(self._streets.half(folder))

    def truth(self, frame: LocalFrame) -> Float64:
        return self._streets.truth(frame)

    def camera_image(self, number: int, roll: int) -> UInt8:
        rng = np.random.default_rng([self._seed, number])
        return photograph_street(self._streets.camera_image(number, roll), rng, self._config)

    def _changed(self, imagery: Path) -> Path:
        """Rewrite the rasters and pictures of some imagery, which may be links to originals."""
        files = [imagery] if imagery.is_file() else sorted(file for file in imagery.rglob("*") if file.is_file())
        for file in files:
            with rasterio.open(file) as source:
                profile, pixels = source.profile, np.moveaxis(source.read([1, 2, 3]), 0, 2)
            # The same random numbers for all: one provider.
            changed = photograph_from_above(pixels, np.random.default_rng(self._seed), self._config)
            file.unlink()
            with rasterio.open(file, "w", **{**profile, "count": 3}) as target:
                target.write(np.moveaxis(changed, 2, 0))
        return imagery
