"""Aerial imagery made in tests: pictures with marks whose place on the ground is known from pyproj alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyproj
import rasterio
from rasterio.transform import Affine, from_origin


def textured(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """A smooth coloured picture in which no two places look alike: uint8 (rows, columns, 3), no pixel nearly black."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 230, (rows // 16 + 2, columns // 16 + 2, 3)).astype(np.float32)
    picture = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture + rng.normal(0, 6, picture.shape), 12, 255).astype(np.uint8)


def write_geotiff(
    path: Path, pixels: np.ndarray, crs: str | None, transform: Affine, *, overviews: tuple[int, ...] = (), **profile
) -> Path:
    """pixels: (rows, columns) or (rows, columns, bands)."""
    bands = pixels[..., None] if pixels.ndim == 2 else pixels
    settings = {"driver": "GTiff", "height": bands.shape[0], "width": bands.shape[1], "count": bands.shape[2]}
    settings |= {"dtype": bands.dtype.name, "crs": crs, "transform": transform} | profile
    with rasterio.open(path, "w", **settings) as dataset:
        dataset.write(np.moveaxis(bands, -1, 0))
        if overviews:
            dataset.build_overviews(list(overviews), rasterio.enums.Resampling.average)
    return path


def town(path: Path, *, metres: float = 160.0, resolution: float = 0.5, seed: int = 0, **profile) -> Path:
    """A square GeoTIFF in UTM 32N about 48.5°N, 9.0°E."""
    east, north = pyproj.Transformer.from_crs(4326, 32632, always_xy=True).transform(9.0, 48.5)
    count = round(metres / resolution)
    transform = from_origin(round(east) - metres / 2, round(north) + metres / 2, resolution, resolution)
    return write_geotiff(path, textured(count, count, seed), "EPSG:32632", transform, **profile)
