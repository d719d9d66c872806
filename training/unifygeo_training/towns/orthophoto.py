"""The town from above: a true orthophoto, its shadows, its GeoTIFF, and tiles cut from it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
from numba import njit

from unifygeo_ros.core.arrays import Float32, UInt8
from unifygeo_training.towns.light import Appearance, shadow_heights
from unifygeo_training.towns.rays import (
    ROUND,
    SLOPE_MINUS_X,
    SLOPE_MINUS_Y,
    SLOPE_PLUS_X,
    SLOPE_PLUS_Y,
    TOP,
)
from unifygeo_training.towns.scene import AERIAL, CRS, Shape, Town
from unifygeo_training.towns.surfaces import albedo_of, normal_of

_GABLE, _HIP, _ELLIPSOID, _CONE = int(Shape.GABLE), int(Shape.HIP), int(Shape.ELLIPSOID), int(Shape.CONE)


def surface_heights(town: Town, views: int) -> tuple[Float32, npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """From straight above: height (m), object (−1: ground) and face at each raster pixel's centre, each (P, P)."""
    pixels = town.ground.shape[0]
    heights = np.zeros((pixels, pixels), np.float32)
    ids = np.full((pixels, pixels), -1, np.int32)
    faces = np.zeros((pixels, pixels), np.int8)
    _look_down(town.objects, views, town.size_m, town.metres_per_pixel, heights, ids, faces)
    return heights, ids, faces


def render_orthophoto(town: Town, light: Appearance) -> UInt8:
    """The true orthophoto, uint8 (P, P, 3) RGB, row 0 north: no building leans, each pixel shows what is below it."""
    heights, ids, faces = surface_heights(town, AERIAL)
    shadow = shadow_heights(heights, town.metres_per_pixel, light)
    colour = np.empty((*heights.shape, 3), np.uint8)
    # One table for gain and gamma: linear light in steps of 1/1024 up to 4, then square-rooted, so dark tones are fine.
    steps = np.linspace(0, 2, 2048) ** 2
    tables = np.stack([(steps * gain) ** (light.gamma / 2.2) * 210 for gain in light.gain]).astype(np.float32)
    noise = np.random.default_rng(light.seed).standard_normal(1 << 18, np.float32) * np.float32(light.noise)
    _shade_from_above(
        town.objects,
        town.ground,
        heights,
        ids,
        faces,
        shadow,
        town.size_m,
        town.metres_per_pixel,
        np.array(light.sun),
        np.array(light.sky),
        np.array(light.plants),
        light.sun_azimuth_rad,
        light.sun_elevation_rad,
        tables,
        noise,
        colour,
    )
    return colour


def lean(pixels: UInt8, town: Town, east: float, north: float) -> UInt8:
    """An orthophoto whose solids lean, as in imagery that was rectified with a terrain model alone.

    What stands z metres above the ground appears z · east, z · north away from its foot, and the faces that look the
    other way show. The pixels, uint8 (P, P, 3), are those of `render_orthophoto`. The ground that nothing hides stays
    where it is.
    """
    heights, ids, _ = surface_heights(town, AERIAL)
    out = np.empty_like(pixels)
    walls = np.stack([town.objects[name] for name in ("r", "g", "b")], axis=1).astype(np.float32)
    _lean(pixels, heights, ids, walls, east / town.metres_per_pixel, north / town.metres_per_pixel, out)
    return out


@njit(cache=True)
def _lean(pixels, heights, ids, walls, east, north, out):
    size = heights.shape[0]
    tallest = heights.max()
    step = min(0.7 / max(np.sqrt(east * east + north * north), 1e-9), tallest + 1.0)  # metres up for 0.7 pixels aside
    for r in range(size):
        for c in range(size):
            row, column = r, c
            z = tallest
            wall = -1
            while z > 0.0:
                rr, cc = round(r + z * north), round(c - z * east)
                if 0 <= rr < size and 0 <= cc < size and heights[rr, cc] >= z:
                    row, column = rr, cc
                    if heights[rr, cc] > z + 1.5 * step + 0.3:
                        wall = ids[rr, cc]
                    break
                z -= step
            for k in range(3):
                value = float(pixels[row, column, k])
                if wall >= 0:  # what the roof's light makes of the wall's colour, in half shade
                    value = 0.35 * value + 80.0 * walls[wall, k]
                out[r, c, k] = np.uint8(min(max(value, 0.0), 255.0))


def write_geotiff(
    path: Path,
    pixels: UInt8,
    origin: tuple[float, float],
    metres_per_pixel: float,
    jpeg_quality: int | None = None,
    *,
    crs: str = CRS,
    nodata: int | None = None,
) -> None:
    """Writes an orthophoto as a tiled GeoTIFF. origin: east and north of its south-west corner, metres.

    jpeg_quality: 1 … 100, as providers deliver their imagery; None: lossless, three to five times as large.
    nodata: value of all three bands where nothing is known.
    """
    if jpeg_quality is None:
        compression = {"compress": "deflate", "predictor": 2, "photometric": "RGB"}
    else:
        compression = {"compress": "jpeg", "jpeg_quality": jpeg_quality, "photometric": "YCBCR"}
    north_edge = origin[1] + pixels.shape[0] * metres_per_pixel
    transform = rasterio.transform.from_origin(origin[0], north_edge, metres_per_pixel, metres_per_pixel)
    temporary = path.with_name(path.name + ".part")
    with rasterio.open(
        temporary,
        "w",
        driver="GTiff",
        height=pixels.shape[0],
        width=pixels.shape[1],
        count=3,
        dtype="uint8",
        crs=crs,
        nodata=nodata,
        transform=transform,
        tiled=True,
        blockxsize=256,
        blockysize=256,
        **compression,
    ) as file:
        file.write(np.moveaxis(pixels, 2, 0))
    temporary.replace(path)


def crop_tile(pixels: UInt8, metres_per_pixel: float, x: float, y: float, size: int, side_m: float) -> UInt8:
    """The north-up tile of `size` pixels and `side_m` metres centred at town point (x, y): uint8 (size, size, 3).

    Pixel-centre convention of `unifygeo_ros.core.geodesy`. Bilinear at twice the resolution, then the mean of 2 × 2, so
    that each tile pixel averages about its own square. Beyond the town's edge the border pixel is repeated.
    """
    fine = side_m / (2 * size)
    top_row = (pixels.shape[0] * metres_per_pixel - (y + side_m / 2 - fine / 2)) / metres_per_pixel - 0.5
    left_column = (x - side_m / 2 + fine / 2) / metres_per_pixel - 0.5
    step = fine / metres_per_pixel
    source_from_tile = np.array([[step, 0, left_column], [0, step, top_row]])
    doubled = cv2.warpAffine(
        pixels,
        source_from_tile,
        (2 * size, 2 * size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cv2.resize(doubled, (size, size), interpolation=cv2.INTER_AREA)


@njit(cache=True)
def _look_down(objects, views, size_m, res, heights, ids, faces):
    pixels = heights.shape[0]
    for n in range(len(objects)):
        o = objects[n]
        if o.views & views == 0:
            continue
        if o.shape <= _HIP:
            reach_x = abs(o.cos) * o.half_x + abs(o.sin) * o.half_y
            reach_y = abs(o.sin) * o.half_x + abs(o.cos) * o.half_y
        else:
            reach_x = o.half_x
            reach_y = o.half_x
        first_row = max(0, int(np.ceil((size_m - o.y - reach_y) / res - 0.5)))
        last_row = min(pixels - 1, int(np.floor((size_m - o.y + reach_y) / res - 0.5)))
        first_col = max(0, int(np.ceil((o.x - reach_x) / res - 0.5)))
        last_col = min(pixels - 1, int(np.floor((o.x + reach_x) / res - 0.5)))
        for r in range(first_row, last_row + 1):
            dy = size_m - (r + 0.5) * res - o.y
            for c in range(first_col, last_col + 1):
                dx = (c + 0.5) * res - o.x
                z = o.top
                face = TOP
                if o.shape <= _HIP:
                    lx, ly = dx * o.cos + dy * o.sin, -dx * o.sin + dy * o.cos
                    if abs(lx) > o.half_x or abs(ly) > o.half_y:
                        continue
                    if o.shape != 0:
                        z = o.top + o.rise * (1 - abs(ly) / o.half_y)
                        face = SLOPE_PLUS_Y if ly > 0 else SLOPE_MINUS_Y
                        if o.shape == _HIP:
                            end = o.top + o.rise / o.half_y * (o.half_x - abs(lx))
                            if end < z:
                                z = end
                                face = SLOPE_PLUS_X if lx > 0 else SLOPE_MINUS_X
                else:
                    q = (dx * dx + dy * dy) / (o.half_x * o.half_x)
                    if q > 1:
                        continue
                    if o.shape == _ELLIPSOID:
                        half = (o.top - o.bottom) / 2
                        z = o.bottom + half * (1 + np.sqrt(1 - q))
                        face = ROUND
                    elif o.shape == _CONE:
                        z = o.top - (o.top - o.bottom) * np.sqrt(q)
                        face = ROUND
                if z > heights[r, c]:
                    heights[r, c] = z
                    ids[r, c] = n
                    faces[r, c] = face


@njit(cache=True)
def _shade_from_above(
    objects,
    ground,
    heights,
    ids,
    faces,
    shadow,
    size_m,
    res,
    sun,
    sky,
    plants,
    sun_azimuth,
    sun_elevation,
    tables,
    noise,
    out,
):
    pixels = heights.shape[0]
    sx, sy, sz = (
        np.sin(sun_azimuth) * np.cos(sun_elevation),
        np.cos(sun_azimuth) * np.cos(sun_elevation),
        np.sin(sun_elevation),
    )
    for r in range(pixels):
        y = size_m - (r + 0.5) * res
        start = (r * 40503) & 0x3FFFF
        for c in range(pixels):
            x = (c + 0.5) * res
            z = heights[r, c]
            nx, ny, nz = 0.0, 0.0, 1.0
            if ids[r, c] < 0:
                p = ground[r, c]
                red, green, blue, veg = p[0] / 255.0, p[1] / 255.0, p[2] / 255.0, p[3] / 255.0
            else:
                o = objects[ids[r, c]]
                nx, ny, nz = normal_of(o, faces[r, c], x, y, z)
                red, green, blue, veg = albedo_of(o, faces[r, c], x, y, z)
            facing = max(0.0, nx * sx + ny * sy + nz * sz)
            direct = facing * (1 - min(max((shadow[r, c] - z - 0.05) / 0.4, 0.0), 1.0))
            open_sky = 0.62 + 0.38 * nz
            red *= 1 + veg * (plants[0] - 1)
            green *= 1 + veg * (plants[1] - 1)
            blue *= 1 + veg * (plants[2] - 1)
            light = (
                red * red * (sky[0] * open_sky + sun[0] * direct),
                green * green * (sky[1] * open_sky + sun[1] * direct),
                blue * blue * (sky[2] * open_sky + sun[2] * direct),
            )
            for k in range(3):
                step = min(int(np.sqrt(light[k]) * (2047 / 2)), 2047)
                value = tables[k, step] + noise[(start + 3 * c + k) & 0x3FFFF]
                out[r, c, k] = np.uint8(min(max(value, 0.0), 255.0))
