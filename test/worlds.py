"""A flat world of random colours, as a GeoTIFF and as panoramas taken in it: enough for the bundle of `bundles.py` to
localize, and known exactly."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyproj
import rasterio
from rasterio.transform import from_origin

from unifygeo_ros.core.geodesy import LocalFrame
from unifygeo_ros.localization.panorama import FILL_RGB

CRS = "EPSG:32632"
CENTRE_E_M, CENTRE_N_M = 500_000.0, 5_372_000.0  # on the central meridian: grid north is north
CAMERA_HEIGHT_M = 2.0


@functools.cache
def to_geodetic() -> pyproj.Transformer:
    """From CRS to longitude and latitude."""
    return pyproj.Transformer.from_crs(CRS, "EPSG:4326", always_xy=True)


@dataclass(frozen=True, eq=False)
class World:
    """pixels: uint8 (S, S, 3), north up, centred on CENTRE_E_M, CENTRE_N_M."""

    pixels: np.ndarray
    metres_per_pixel: float

    def write_geotiff(self, path: Path) -> Path:
        size, scale = len(self.pixels), self.metres_per_pixel
        transform = from_origin(CENTRE_E_M - size / 2 * scale, CENTRE_N_M + size / 2 * scale, scale, scale)
        with rasterio.open(
            path, "w", driver="GTiff", width=size, height=size, count=3, dtype="uint8", crs=CRS, transform=transform
        ) as file:
            file.write(np.moveaxis(self.pixels, 2, 0))
        return path

    def panorama(self, x_m: float, y_m: float, azimuth_rad: float = 0.0, height: int = 128) -> np.ndarray:
        """Full sphere from a camera x_m east and y_m north of the centre whose middle column faces azimuth_rad."""
        azimuth = azimuth_rad + (np.arange(2 * height) + 0.5) / (2 * height) * 2 * np.pi - np.pi
        elevation = (np.pi / 2 - (np.arange(height) + 0.5) / height * np.pi)[:, None]
        distance = np.where(elevation < -0.02, CAMERA_HEIGHT_M / np.tan(np.maximum(-elevation, 0.02)), 0.0)
        middle = (len(self.pixels) - 1) / 2
        column = middle + (x_m + distance * np.sin(azimuth)) / self.metres_per_pixel
        row = middle - (y_m + distance * np.cos(azimuth)) / self.metres_per_pixel
        seen = cv2.remap(
            self.pixels, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )  # fmt: skip
        return np.where((elevation < 0)[:, :, None], seen, np.array(FILL_RGB)).astype(np.uint8)

    @staticmethod
    def in_map(frame: LocalFrame, x_m: float, y_m: float) -> np.ndarray:
        """Map position (2,) of a point x_m east and y_m north of the centre, by way of pyproj."""
        longitude, latitude = to_geodetic().transform(CENTRE_E_M + x_m, CENTRE_N_M + y_m)
        return frame.map_from_geodetic(latitude, longitude)


def colour_world(seed: int = 0, side_m: float = 128.0, metres_per_pixel: float = 0.5, patch_m: float = 6.0) -> World:
    """Random colours that change over patch_m."""
    size = round(side_m / metres_per_pixel)
    patches = math.ceil(side_m / patch_m)
    noise = np.random.default_rng(seed).integers(0, 256, (patches, patches, 3), dtype=np.uint8)
    return World(cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC), metres_per_pixel)
