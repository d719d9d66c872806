"""Equirectangular panoramas of a town: exact rays, procedural surfaces, light, sky, camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import cv2
import numpy as np
from numba import njit

from unifygeo_ros.core.arrays import Float32, Float64, UInt8
from unifygeo_training.towns.light import Appearance, shadow_heights
from unifygeo_training.towns.orthophoto import surface_heights
from unifygeo_training.towns.rays import FLOOR, SKY, Grid, cast, column_azimuths, row_elevations, sort_into_grid
from unifygeo_training.towns.scene import GROUND, Town
from unifygeo_training.towns.surfaces import albedo_of, normal_of, smooth_noise

FAR_M = 320.0
LEVELS = 4
GROUND_SAMPLES = 4
"""Samples of the ground for each pixel, at least: at grazing angles its footprint is long and narrow."""


@dataclass(frozen=True)
class View:
    """Size and field of view of a panorama: rows from top_rad to bottom_rad of elevation, columns all around."""

    height: int
    width: int
    top_rad: float
    bottom_rad: float


TRAINING_VIEW = View(96, 320, np.pi / 4, -np.pi / 4)
FULL_SPHERE = View(384, 768, np.pi / 2, -np.pi / 2)


@dataclass(frozen=True)
class Stage:
    """A town made ready for panoramas: solids in a grid, ground at several resolutions, surface heights."""

    town: Town
    grid: Grid
    pyramid: tuple[UInt8, ...]
    heights_m: Float32


@dataclass(frozen=True)
class LitStage:
    """A stage under one appearance."""

    stage: Stage
    appearance: Appearance
    shadow_m: Float32
    """The heights below which its points lie in shadow."""


def set_stage(town: Town) -> Stage:
    """Prepares a town once for any number of panoramas."""
    pyramid = [np.ascontiguousarray(town.ground)]
    for _ in range(LEVELS - 1):
        size = pyramid[-1].shape[0] // 2
        pyramid.append(cv2.resize(pyramid[-1], (size, size), interpolation=cv2.INTER_AREA))
    heights, _, _ = surface_heights(town, GROUND)
    return Stage(town, sort_into_grid(town.objects, town.size_m), tuple(pyramid), heights)


def light_stage(stage: Stage, appearance: Appearance) -> LitStage:
    """Casts the shadows of one appearance."""
    return LitStage(stage, appearance, shadow_heights(stage.heights_m, stage.town.metres_per_pixel, appearance))


def render_panorama(
    lit: LitStage,
    x: float,
    y: float,
    view: View = TRAINING_VIEW,
    *,
    height_m: float = 2.0,
    azimuth_rad: float = 0.0,
    noise_seed: int = 0,
    samples: int = 2,
) -> UInt8:
    """The panorama seen from town position (x, y): uint8 (H, W, 3) RGB, centre column towards azimuth_rad.

    Each pixel is the mean light of samples × samples rays, so that edges are smooth, as a lens makes them.
    """
    colour = render_light(
        lit,
        x,
        y,
        height_m,
        column_azimuths(view.width * samples, azimuth_rad),
        row_elevations(view.height * samples, view.top_rad, view.bottom_rad),
        samples,
    )
    if samples > 1:
        colour = cv2.resize(colour, (view.width, view.height), interpolation=cv2.INTER_AREA)
    return develop(colour, lit.appearance, noise_seed)


def render_light(
    lit: LitStage,
    x: float,
    y: float,
    height_m: float,
    azimuths_rad: Float64,
    elevations_rad: Float64,
    samples: int = 1,
) -> Float32:
    """The light that reaches town position (x, y) along each azimuth and elevation, before the camera.

    Args:
        lit: The town.
        x: Metres east.
        y: Metres north.
        height_m: Above the ground.
        azimuths_rad: float64 (W,), clockwise from north, evenly spaced and rising.
        elevations_rad: float64 (H,), evenly spaced and falling, two or more.
        samples: So many rows and columns belong to one pixel. W and H are multiples of it.

    Returns:
        float32 (H, W, 3) RGB, linear.
    """
    town, light = lit.stage.town, lit.appearance
    hits = cast(town.objects, lit.stage.grid, GROUND, x, y, height_m, azimuths_rad, elevations_rad, FAR_M)
    colour = np.empty((len(elevations_rad), len(azimuths_rad), 3), np.float32)
    _shade(
        town.objects,
        lit.stage.pyramid,
        lit.shadow_m,
        town.size_m,
        town.metres_per_pixel,
        x,
        y,
        height_m,
        azimuths_rad,
        elevations_rad,
        hits.objects,
        hits.faces,
        hits.distance_m,
        np.array(light.sun),
        np.array(light.sky),
        np.array(light.plants),
        light.sun_azimuth_rad,
        light.sun_elevation_rad,
        light.haze_m,
        light.clouds,
        light.seed & 0xFFFF,
        samples,
        max(1, GROUND_SAMPLES // samples**2),
        colour,
    )
    return colour


def develop(colour: Float32, light: Appearance, noise_seed: int | Sequence[int]) -> UInt8:
    """The camera: gain, gamma, noise, 8 bits. colour: float32 (H, W, 3), linear."""
    values = colour * np.asarray(light.gain, np.float32)
    np.power(values, np.float32(light.gamma / 2.2), out=values)
    values *= 210
    values += np.random.default_rng(noise_seed).standard_normal(values.shape, np.float32) * np.float32(light.noise)
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


@njit(cache=True)
def _ground(level, res, size_m, x, y):
    """Bilinear albedo RGB and vegetation (0 … 1) of a raster level at a town point; clamped at the town's edge."""
    n = level.shape[0]
    row = min(max((size_m - y) / res - 0.5, 0.0), n - 1.001)
    col = min(max(x / res - 0.5, 0.0), n - 1.001)
    r, c = int(row), int(col)
    fr, fc = row - r, col - c
    w00, w01, w10, w11 = (1 - fr) * (1 - fc), (1 - fr) * fc, fr * (1 - fc), fr * fc
    a, b, d, e = level[r, c], level[r, c + 1], level[r + 1, c], level[r + 1, c + 1]
    k = 1 / 255.0
    return (
        (w00 * a[0] + w01 * b[0] + w10 * d[0] + w11 * e[0]) * k,
        (w00 * a[1] + w01 * b[1] + w10 * d[1] + w11 * e[1]) * k,
        (w00 * a[2] + w01 * b[2] + w10 * d[2] + w11 * e[2]) * k,
        (w00 * a[3] + w01 * b[3] + w10 * d[3] + w11 * e[3]) * k,
    )


@njit(cache=True)
def _lit_share(shadow, res, size_m, x, y, z):
    """Share of the sun that reaches a point, 0 … 1, soft over 0.4 m of height."""
    n = shadow.shape[0]
    row = min(max((size_m - y) / res - 0.5, 0.0), n - 1.001)
    col = min(max(x / res - 0.5, 0.0), n - 1.001)
    r, c = int(row), int(col)
    fr, fc = row - r, col - c
    s = (1 - fr) * ((1 - fc) * shadow[r, c] + fc * shadow[r, c + 1]) + fr * (
        (1 - fc) * shadow[r + 1, c] + fc * shadow[r + 1, c + 1]
    )
    return 1 - min(max((s - z) / 0.4, 0.0), 1.0)


@njit(cache=True)
def _shade(
    objects,
    pyramid,
    shadow,
    size_m,
    res,
    x,
    y,
    h,
    azimuths,
    elevations,
    ids,
    faces,
    distances,
    sun,
    sky,
    plants,
    sun_azimuth,
    sun_elevation,
    haze_m,
    clouds,
    cloud_seed,
    samples,
    taps,
    out,
):
    rows, columns = ids.shape
    row_step = (elevations[0] - elevations[-1]) / (rows - 1)
    column_step = azimuths[1] - azimuths[0]
    sx, sy, sz = (
        np.sin(sun_azimuth) * np.cos(sun_elevation),
        np.cos(sun_azimuth) * np.cos(sun_elevation),
        np.sin(sun_elevation),
    )
    horizon = (sky[0] * 1.25 + sun[0] * 0.12, sky[1] * 1.3 + sun[1] * 0.14, sky[2] * 1.35 + sun[2] * 0.2)
    toward_x, toward_y = np.sin(azimuths), np.cos(azimuths)
    taps_x = np.empty(taps)
    for r in range(rows):
        slope = np.tan(elevations[r])
        if slope < 0:
            for k in range(taps):
                e = elevations[r] + ((k + 0.5) / taps - 0.5) * row_step
                taps_x[k] = min(-h / np.tan(e), FAR_M) if e < -1e-4 else FAR_M
        for c in range(columns):
            ux, uy = toward_x[c], toward_y[c]
            who = ids[r, c]
            t = distances[r, c]
            if who == SKY:
                # Clouds are soft: one sample does for a pixel that is all sky.
                first_r, first_c = r - r % samples, c - c % samples
                whole = True
                for i in range(samples):
                    for j in range(samples):
                        whole &= ids[first_r + i, first_c + j] == SKY
                if whole:
                    if r == first_r and c == first_c:
                        colour = _sky(ux, uy, slope, horizon, sun, sky, sx, sy, sz, clouds, cloud_seed)
                        for i in range(samples):
                            for j in range(samples):
                                out[r + i, c + j, 0] = colour[0]
                                out[r + i, c + j, 1] = colour[1]
                                out[r + i, c + j, 2] = colour[2]
                else:
                    out[r, c, 0], out[r, c, 1], out[r, c, 2] = _sky(
                        ux, uy, slope, horizon, sun, sky, sx, sy, sz, clouds, cloud_seed
                    )
                continue
            if who == FLOOR:
                red, green, blue, veg, lit = 0.0, 0.0, 0.0, 0.0, 0.0
                footprint = t * column_step / res
                level = 0
                while footprint > 2 and level < len(pyramid) - 1:
                    footprint /= 2
                    level += 1
                for k in range(taps):
                    px, py = x + ux * taps_x[k], y + uy * taps_x[k]
                    p = _ground(pyramid[level], res * (1 << level), size_m, px, py)
                    red += p[0]
                    green += p[1]
                    blue += p[2]
                    veg += p[3]
                    lit += _lit_share(shadow, res, size_m, px, py, 0.0)
                red, green, blue = red / taps, green / taps, blue / taps
                veg, lit = veg / taps, lit / taps
                facing, open_sky = sz, 1.0
            else:
                o = objects[who]
                px, py, pz = x + ux * t, y + uy * t, h + slope * t
                nx, ny, nz = normal_of(o, faces[r, c], px, py, pz)
                red, green, blue, veg = albedo_of(o, faces[r, c], px, py, pz)
                facing = nx * sx + ny * sy + nz * sz
                lit = 0.0
                if facing > 0:
                    lit = _lit_share(shadow, res, size_m, px + 0.45 * nx, py + 0.45 * ny, pz + 0.45 * nz + 0.25)
                else:
                    facing = 0.0
                open_sky = 0.62 + 0.38 * nz
                if pz < 3:
                    open_sky *= 0.8 + 0.2 * pz / 3
            red *= 1 + veg * (plants[0] - 1)
            green *= 1 + veg * (plants[1] - 1)
            blue *= 1 + veg * (plants[2] - 1)
            clear = np.exp(-t / haze_m)
            direct = facing * lit
            # Albedo is stored as it looks (gamma 2); light is linear.
            out[r, c, 0] = clear * red * red * (sky[0] * open_sky + sun[0] * direct) + (1 - clear) * horizon[0] * 0.6
            out[r, c, 1] = (
                clear * green * green * (sky[1] * open_sky + sun[1] * direct) + (1 - clear) * horizon[1] * 0.6
            )
            out[r, c, 2] = clear * blue * blue * (sky[2] * open_sky + sun[2] * direct) + (1 - clear) * horizon[2] * 0.6


@njit(cache=True)
def _sky(ux, uy, slope, horizon, sun, sky, sx, sy, sz, clouds, seed):
    """Colour of the sky. Clouds lie on a plane overhead, so they have no seam at any azimuth."""
    rise = slope / np.sqrt(1 + slope * slope) if slope < 1e8 else 1.0
    flat = np.sqrt(max(0.0, 1 - rise * rise))
    up = max(rise, 0.0)
    blend = (1 - up) ** 3
    red = blend * horizon[0] + (1 - blend) * (sky[0] * 0.35 + sun[0] * 0.10)
    green = blend * horizon[1] + (1 - blend) * (sky[1] * 0.6 + sun[1] * 0.16)
    blue = blend * horizon[2] + (1 - blend) * (sky[2] * 1.1 + sun[2] * 0.38)
    u, v = ux * flat / (up + 0.12) * 1.6, uy * flat / (up + 0.12) * 1.6
    n = (
        0.55 * smooth_noise(u, v, seed)
        + 0.28 * smooth_noise(2.1 * u + 5, 2.1 * v, seed + 1)
        + 0.17 * smooth_noise(4.3 * u, 4.3 * v + 9, seed + 2)
    )
    cover = min(max((n - (0.85 - 0.7 * clouds)) * 5, 0.0), 1.0) * min(1.0, up * 8)
    white = 0.75 + 0.5 * (n - 0.5)
    for_sun = max(0.0, (ux * sx + uy * sy) * flat + rise * sz)
    glow = for_sun**24 * (1 - 0.7 * cover)
    red = (1 - cover) * red + cover * white * (sky[0] * 1.25 + sun[0] * 0.45) + glow * sun[0] * 0.5
    green = (1 - cover) * green + cover * white * (sky[1] * 1.25 + sun[1] * 0.45) + glow * sun[1] * 0.5
    blue = (1 - cover) * blue + cover * white * (sky[2] * 1.25 + sun[2] * 0.45) + glow * sun[2] * 0.45
    return red, green, blue
