"""Light and season of one view, and the shadows that its sun casts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from unifygeo_ros.core.arrays import Float32


@dataclass(frozen=True)
class Appearance:
    """What differs between two pictures of the same town."""

    sun_azimuth_rad: float
    """Clockwise from north, towards the sun."""
    sun_elevation_rad: float
    sun: tuple[float, float, float]
    """(3,) strengths of direct and diffuse light, RGB."""
    sky: tuple[float, float, float]
    """(3,) strengths of direct and diffuse light, RGB."""
    plants: tuple[float, float, float]
    """(3,) factors on the albedo of vegetation, RGB."""
    haze_m: float
    """Distance at which haze hides 63%."""
    gain: tuple[float, float, float]
    """(3,) factors of the camera, RGB."""
    gamma: float
    noise: float
    """Standard deviation in 8-bit counts."""
    clouds: float
    """Share of sky, 0 … 1."""
    seed: int


def draw_appearance(rng: np.random.Generator) -> Appearance:
    """A day, a season and a camera at random: from clear noon to an overcast evening, from spring to late autumn."""
    elevation = np.radians(rng.uniform(18, 62))
    overcast = rng.random() < 0.25
    clouds = float(rng.uniform(0.75, 1.0) if overcast else rng.uniform(0.0, 0.7))
    direct = rng.uniform(0.0, 0.25) if overcast else rng.uniform(0.7, 1.15)
    warmth = 0.25 * (1 - np.sin(elevation))
    ambient = rng.uniform(0.62, 0.85) if overcast else rng.uniform(0.32, 0.5)
    blue = 0.03 if overcast else rng.uniform(0.05, 0.16)
    # Season: from fresh green (0) to brown (1).
    season = rng.beta(1.2, 2.0)
    plants = np.array([1 + 0.55 * season, 1.0 + 0.05 * season, 1 - 0.15 * season]) * rng.uniform(0.75, 1.2)
    # The camera exposes for what falls on the ground, and errs.
    exposure = 1.25 / (ambient + direct * np.sin(elevation)) * np.exp(rng.normal(0, 0.18))
    white = np.exp(rng.normal(0, 0.05, 3))
    return Appearance(
        float(rng.uniform(np.radians(75), np.radians(285))),
        float(elevation),
        (float(direct * (1 + warmth)), float(direct), float(direct * (1 - warmth))),
        (float(ambient * (1 - blue)), float(ambient), float(ambient * (1 + blue))),
        (float(plants[0]), float(plants[1]), float(plants[2])),
        float(np.exp(rng.uniform(np.log(250), np.log(1500)))),
        tuple(float(g) for g in exposure * white),
        float(np.exp(rng.normal(0, 0.12))),
        float(rng.uniform(1.0, 6.0)),
        clouds,
        int(rng.integers(1 << 30)),
    )


def shadow_heights(heights_m: Float32, metres_per_pixel: float, appearance: Appearance) -> Float32:
    """Height below which a point stands in shadow, float32 (P, P), of a height raster (P, P), row 0 north.

    One sweep against the sun: a pixel's shadow reaches as high as the surface or the shadow one step towards the sun,
    whichever is higher, less the drop of the sun's ray on that step.
    """
    shadow = np.zeros_like(heights_m)
    _sweep(
        heights_m,
        shadow,
        np.sin(appearance.sun_azimuth_rad),
        np.cos(appearance.sun_azimuth_rad),
        np.tan(appearance.sun_elevation_rad) * metres_per_pixel,
    )
    return shadow


@njit(cache=True)
def _sweep(heights, shadow, east, north, drop_per_pixel):
    size = heights.shape[0]
    along_columns = abs(east) >= abs(north)
    major, minor = (east, -north) if along_columns else (-north, east)  # raster steps towards the sun
    step = 1 if major > 0 else -1
    slip = minor / abs(major)
    drop = drop_per_pixel / abs(major)
    for a in range(1, size):
        here = size - 1 - a if step > 0 else a
        there = here + step
        for b in range(size):
            at = b + slip
            low = int(np.floor(at))
            if low < 0 or low + 1 >= size:
                continue
            w = at - low
            if along_columns:
                u = max(heights[low, there], shadow[low, there])
                v = max(heights[low + 1, there], shadow[low + 1, there])
                shadow[b, here] = max((1 - w) * u + w * v - drop, 0.0)
            else:
                u = max(heights[there, low], shadow[there, low])
                v = max(heights[there, low + 1], shadow[there, low + 1])
                shadow[here, b] = max((1 - w) * u + w * v - drop, 0.0)
