"""Frames and their conversions: WGS84 ↔ map ↔ tile pixels, headings ↔ yaw.

Frames
------
* *geodetic*: WGS84 latitude and longitude in degrees.
* *map*: local east-north-up about a datum (REP-105 ``map``), metres. The fix is two-dimensional:
  a point of the map is a point at the datum's ellipsoidal height, so that east and north are exact
  topocentric coordinates and invert exactly.
* *tile*: pixels of one north-up aerial tile as (row, column). **Pixel-centre convention**: integer
  coordinates are pixel centres; the tile's upper left corner is (−0.5, −0.5).

Angles
------
* *azimuth*: clockwise from north, the convention of cameras, compasses and columns of a panorama.
* *yaw*: counter-clockwise from east (REP-103).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyproj

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import InputError

AngleT = TypeVar("AngleT", float, Float64)

MAX_RANGE_M = 50_000.0
"""Largest distance from the datum at which the map frame of one index is used. There, a tile's north edge and
true north differ by up to 0.45° · tan(latitude), the stated error of treating tiles as aligned with the map."""

_HEIGHT_TOLERANCE_M = 1e-7


@dataclass(frozen=True)
class Datum:
    """Origin of a map frame."""

    latitude_deg: float
    """WGS84 degrees."""
    longitude_deg: float
    """WGS84 degrees."""
    height_m: float = 0.0
    """Ellipsoidal height, metres."""

    def __post_init__(self) -> None:
        if not (abs(self.latitude_deg) <= 89.0 and abs(self.longitude_deg) <= 180.0):
            raise InputError(
                f"datum {self.latitude_deg}, {self.longitude_deg} is outside latitude ±89°, longitude ±180°; "
                "give it as WGS84 degrees, latitude first"
            )


class LocalFrame:
    """The map frame: topocentric east-north-up about a datum, restricted to the datum's height."""

    def __init__(self, datum: Datum, range_m: float = MAX_RANGE_M) -> None:
        """range_m: largest distance from the datum at which it is used."""
        self.datum = datum
        self.range_m = range_m

    @functools.cached_property
    def _topocentric(self) -> pyproj.Transformer:
        d = self.datum
        return pyproj.Transformer.from_pipeline(
            "+proj=pipeline +step +proj=unitconvert +xy_in=deg +xy_out=rad "
            "+step +proj=cart +ellps=WGS84 "
            f"+step +proj=topocentric +ellps=WGS84 +lon_0={d.longitude_deg!r} +lat_0={d.latitude_deg!r} "
            f"+h_0={d.height_m!r}"
        )

    def map_from_geodetic(self, latitude_deg: npt.ArrayLike, longitude_deg: npt.ArrayLike) -> Float64:
        """Map position of points at the datum's height.

        latitude_deg, longitude_deg: any equal shape S, WGS84 degrees. Returns float64 S + (2,): east, north in metres.
        """
        latitude = np.asarray(latitude_deg, np.float64)
        longitude = np.asarray(longitude_deg, np.float64)
        height = np.full(latitude.shape, self.datum.height_m)
        east, north, _up = self._topocentric.transform(longitude, latitude, height)
        return np.stack([np.asarray(east), np.asarray(north)], axis=-1)

    def geodetic_from_map(self, east_m: npt.ArrayLike, north_m: npt.ArrayLike) -> Float64:
        """Inverse of `map_from_geodetic`, to better than a micrometre.

        east_m, north_m: any equal shape S, metres. Returns float64 S + (2,): latitude, longitude in degrees.
        Raises InputError beyond `range_m` from the datum.
        """
        east = np.asarray(east_m, np.float64)
        north = np.asarray(north_m, np.float64)
        distance = np.hypot(east, north)
        if distance.size and not float(np.max(distance)) <= self.range_m:
            raise InputError(
                f"a point {float(np.max(distance)):.0f} m from the datum is outside the map frame's range of "
                f"{self.range_m:.0f} m; split the region and give each part its own datum"
            )
        # The plane point lies above the surface of constant height; lower it until the height fits.
        up = -(distance**2) / (2 * 6_371_000.0)
        for _ in range(8):
            longitude, latitude, height = self._topocentric.transform(east, north, up, direction="INVERSE")
            excess = np.asarray(height) - self.datum.height_m
            if excess.size == 0 or float(np.max(np.abs(excess))) < _HEIGHT_TOLERANCE_M:
                break
            up = up - excess
        return np.stack([np.asarray(latitude), np.asarray(longitude)], axis=-1)


def map_from_tile(
    row: npt.ArrayLike,
    column: npt.ArrayLike,
    centre_east_m: npt.ArrayLike,
    centre_north_m: npt.ArrayLike,
    size: int,
    metres_per_pixel: npt.ArrayLike,
) -> Float64:
    """Map position of tile pixels. All arguments broadcast to a shape S; returns float64 S + (2,): east, north (m).

    size: rows = columns of the tile; its centre is at pixel ((size − 1)/2, (size − 1)/2).
    """
    middle = (size - 1) / 2
    scale = np.asarray(metres_per_pixel, np.float64)
    east = np.asarray(centre_east_m) + (np.asarray(column, np.float64) - middle) * scale
    north = np.asarray(centre_north_m) - (np.asarray(row, np.float64) - middle) * scale
    return np.stack(np.broadcast_arrays(east, north), axis=-1)


def tile_from_map(
    east_m: npt.ArrayLike,
    north_m: npt.ArrayLike,
    centre_east_m: npt.ArrayLike,
    centre_north_m: npt.ArrayLike,
    size: int,
    metres_per_pixel: npt.ArrayLike,
) -> Float64:
    """Inverse of `map_from_tile`: returns float64 S + (2,): row, column (fractional pixels)."""
    middle = (size - 1) / 2
    scale = np.asarray(metres_per_pixel, np.float64)
    column = (np.asarray(east_m, np.float64) - np.asarray(centre_east_m)) / scale + middle
    row = (np.asarray(centre_north_m) - np.asarray(north_m, np.float64)) / scale + middle
    return np.stack(np.broadcast_arrays(row, column), axis=-1)


def wrap_angle(angle_rad: AngleT) -> AngleT:
    """The same angle in [−π, π)."""
    return (angle_rad + np.pi) % (2 * np.pi) - np.pi


def yaw_from_azimuth(azimuth_rad: AngleT) -> AngleT:
    """REP-103 yaw (counter-clockwise from east) of an azimuth (clockwise from north), in [−π, π)."""
    return wrap_angle(np.pi / 2 - azimuth_rad)


def azimuth_from_yaw(yaw_rad: AngleT) -> AngleT:
    """Inverse of `yaw_from_azimuth`, in [−π, π)."""
    return wrap_angle(np.pi / 2 - yaw_rad)
