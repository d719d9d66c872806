"""A route that is still to be driven: GeoJSON or GPX, in WGS84, as points in the map frame."""

from __future__ import annotations

import itertools
import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pyproj

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import LocalFrame

JOINED_M = 100.0
"""Lines of a file are one route where each begins within this distance of the end of the one before."""

MOST_POINTS = 200_000
"""A sampled route has at most so many points: 1,000 km at 5 m."""

_WGS84 = ("CRS84", "EPSG::4326", "EPSG:4326")

_GEODESIC = pyproj.Geod(ellps="WGS84")


@dataclass(frozen=True)
class Route:
    """Points along a route, evenly spaced."""

    name: str
    geodetic_deg: Float64
    """float64 (n, 2): latitude and longitude."""
    points_m: Float64
    """float64 (n, 2): east and north in the map frame; NaN further from the datum than the frame reaches."""
    along_m: Float64
    """float64 (n,): distance from the start, on the ground."""

    @property
    def length_m(self) -> float:
        return float(self.along_m[-1])


def read_route(path: Path, frame: LocalFrame, step_m: float) -> Route:
    """Read a route and sample it.

    Args:
        path: GeoJSON (RFC 7946) with one LineString, or with several that follow each other; or GPX with one track or
            route.
        frame: of the index.
        step_m: distance of the points.

    Raises:
        InputError: the file cannot be read, or holds no route.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a route as GeoJSON or GPX") from error
    lines = _gpx_lines(text, path) if text.lstrip().startswith("<") else _geojson_lines(text, path)
    return sampled(path.name, _joined(lines, path), frame, step_m)


def sampled(name: str, geodetic_deg: Float64, frame: LocalFrame, step_m: float) -> Route:
    """A route from its corners.

    Args:
        name: for people.
        geodetic_deg: float64 (m, 2), latitude and longitude of the corners.
        frame: of the index.
        step_m: distance of the points; the last one is the route's end.

    Raises:
        InputError: it has no length, or too many points.
    """
    latitude, longitude = geodetic_deg.T
    azimuth, _, legs = _GEODESIC.inv(longitude[:-1], latitude[:-1], longitude[1:], latitude[1:])
    corners_m = np.concatenate([[0.0], np.cumsum(legs)])
    length_m = float(corners_m[-1])
    if not length_m > 0:
        raise InputError(f"{name}: the route is {length_m:g} m long; give one with at least two different points")
    count = math.ceil(length_m / step_m) + 1
    if count > MOST_POINTS:
        raise InputError(
            f"{name}: the route is {length_m / 1e3:.0f} km long, at most {MOST_POINTS * step_m / 1e3:.0f} km are "
            "forecast at once; give it in parts"
        )
    along_m = np.append(np.arange(count - 1) * step_m, length_m)
    leg = np.clip(np.searchsorted(corners_m, along_m, side="right") - 1, 0, len(legs) - 1)
    longitudes, latitudes, _ = _GEODESIC.fwd(longitude[leg], latitude[leg], azimuth[leg], along_m - corners_m[leg])
    points_m = frame.map_from_geodetic(latitudes, longitudes)
    datum = frame.datum
    start_longitude, start_latitude = np.full(count, datum.longitude_deg), np.full(count, datum.latitude_deg)
    _, _, distance_m = _GEODESIC.inv(start_longitude, start_latitude, longitudes, latitudes)
    points_m[distance_m > frame.range_m] = np.nan
    return Route(name, np.stack([latitudes, longitudes], axis=-1), points_m, along_m)


def _joined(lines: list[Float64], path: Path) -> Float64:
    """Lines that follow each other as one: float64 (m, 2). Raises InputError."""
    if not lines:
        raise InputError(f"{path}: holds no line; give a LineString (GeoJSON), or a track or route (GPX)")
    for number, (before, after) in enumerate(itertools.pairwise(lines), start=2):
        gap_m = _GEODESIC.inv(before[-1, 1], before[-1, 0], after[0, 1], after[0, 0])[2]
        if gap_m > JOINED_M:
            raise InputError(
                f"{path}: line {number} begins {gap_m:.0f} m from the end of the one before, at most {JOINED_M:g} m "
                "are bridged; give a file with one route"
            )
    return np.concatenate(lines)


def _geojson_lines(text: str, path: Path) -> list[Float64]:
    try:
        content = json.loads(text)
        _check_crs(content, path)
        return [_checked(line, path) for line in _lines_of(content)]
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(
            f"{path}: is neither GeoJSON nor GPX ({error}); convert it, for instance with ogr2ogr"
        ) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is no GeoJSON by RFC 7946 ({error!r}); write it again") from error


def _lines_of(item: Any) -> Iterator[Any]:
    """Coordinates of the LineStrings in a GeoJSON object; points and areas beside them are left out."""
    kind = item["type"]
    if kind == "FeatureCollection":
        for feature in item["features"]:
            yield from _lines_of(feature)
    elif kind == "Feature":
        if item["geometry"] is not None:
            yield from _lines_of(item["geometry"])
    elif kind == "GeometryCollection":
        for geometry in item["geometries"]:
            yield from _lines_of(geometry)
    elif kind == "LineString":
        yield [position[1::-1] for position in item["coordinates"]]
    elif kind == "MultiLineString":
        for line in item["coordinates"]:
            yield [position[1::-1] for position in line]


def _check_crs(content: Any, path: Path) -> None:
    """GeoJSON is in WGS84; older files may name another system. Raises InputError."""
    crs = content.get("crs")
    if crs is None:
        return
    name = str(crs.get("properties", {}).get("name", crs))
    if not name.endswith(_WGS84):
        raise InputError(
            f"{path}: is in {name}; write it in WGS84 (EPSG:4326), as RFC 7946 says, for instance by "
            "`ogr2ogr -t_srs EPSG:4326 -lco RFC7946=YES`"
        )


def _gpx_lines(text: str, path: Path) -> list[Float64]:
    """Tracks of a GPX file, or its routes where it has no track."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: is no GPX ({error}); write it again") from error
    if not root.tag.endswith("gpx"):
        raise InputError(f"{path}: is {root.tag.rpartition('}')[2]}, not GPX; convert it, for instance with ogr2ogr")
    for line_tag, point_tag in (("trkseg", "trkpt"), ("rte", "rtept")):
        lines = [
            [(point.get("lat"), point.get("lon")) for point in line.iterfind(f"{{*}}{point_tag}")]
            for line in root.iterfind(f".//{{*}}{line_tag}")
        ]
        if any(lines):
            return [_checked(line, path) for line in lines if line]
    return []


def _checked(line: Any, path: Path) -> Float64:
    """Latitudes and longitudes: float64 (m, 2). Raises InputError."""
    try:
        points = np.array(line, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a point of its line is no position ({error}); write it again") from error
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"{path}: a point of its line is no position; give longitude and latitude for each")
    good = np.isfinite(points).all(axis=1) & (np.abs(points[:, 0]) <= 90) & (np.abs(points[:, 1]) <= 540)
    if not good.all():
        latitude, longitude = points[~good][0]
        raise InputError(
            f"{path}: latitude {latitude:g}, longitude {longitude:g} is no place; GeoJSON has the longitude first, in "
            "degrees"
        )
    return points
