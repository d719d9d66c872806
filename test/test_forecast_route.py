"""Routes from GeoJSON and GPX: the right places, evenly spaced, and one clear error for what is no route."""

import json

import numpy as np
import pyproj
import pytest

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.evaluation.forecast.route import read_route

FRAME = LocalFrame(Datum(48.5, 9.0))
CORNERS = [[9.0, 48.5], [9.002, 48.5], [9.002, 48.501]]
"""Longitude first, as GeoJSON has it."""
GEODESIC = pyproj.Geod(ellps="WGS84")
LENGTH_M = GEODESIC.line_length(*np.array(CORNERS).T)


def line(coordinates):
    return {"type": "LineString", "coordinates": coordinates}


def feature(geometry):
    return {"type": "Feature", "properties": {"name": "way"}, "geometry": geometry}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def gpx(line_tag, point_tag, segment="", namespace=' xmlns="http://www.topografix.com/GPX/1/1"'):
    points = "".join(f'<{point_tag} lat="{lat}" lon="{lon}"><ele>3</ele></{point_tag}>' for lon, lat in CORNERS)
    inside = f"<{segment}>{points}</{segment}>" if segment else points
    return f'<?xml version="1.0"?><gpx version="1.1"{namespace}><{line_tag}>{inside}</{line_tag}></gpx>'


GOOD = {
    "LineString": json.dumps(line(CORNERS)),
    "heights and a byte order mark": "\ufeff" + json.dumps(line([[*corner, 400.0] for corner in CORNERS])),
    "Feature": json.dumps(feature(line(CORNERS))),
    "FeatureCollection beside a point": json.dumps(
        collection(feature({"type": "Point", "coordinates": [1, 2]}), feature(None), feature(line(CORNERS)))
    ),
    "lines that follow each other": json.dumps(collection(feature(line(CORNERS[:2])), feature(line(CORNERS[1:])))),
    "MultiLineString": json.dumps({"type": "MultiLineString", "coordinates": [CORNERS[:2], CORNERS[1:]]}),
    "GeometryCollection": json.dumps({"type": "GeometryCollection", "geometries": [line(CORNERS)]}),
    "WGS84 by an older name": json.dumps(
        {**line(CORNERS), "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}}
    ),
    "GPX track": gpx("trk", "trkpt", "trkseg"),
    "GPX route": gpx("rte", "rtept"),
    "GPX without a namespace": gpx("trk", "trkpt", "trkseg", namespace=""),
}


@pytest.mark.parametrize("kind", GOOD)
def test_route_is_sampled_evenly_along_its_geodesics(kind, tmp_path):
    path = tmp_path / "route"
    path.write_text(GOOD[kind], encoding="utf-8")
    route = read_route(path, FRAME, 5.0)
    assert route.length_m == pytest.approx(LENGTH_M, abs=1e-6)
    np.testing.assert_allclose(np.diff(route.along_m)[:-1], 5.0)
    assert 0 < np.diff(route.along_m)[-1] <= 5.0
    np.testing.assert_allclose(route.geodetic_deg[[0, -1]], [CORNERS[0][::-1], CORNERS[-1][::-1]], atol=1e-9)
    # 20 points along, on the first leg: 100 m east of its start by pyproj.
    longitude, latitude, _ = GEODESIC.fwd(9.0, 48.5, 90.0, 100.0)
    np.testing.assert_allclose(route.geodetic_deg[20], [latitude, longitude], atol=1e-7)
    np.testing.assert_allclose(route.points_m[20], [100.0, 0.0], atol=0.01)
    # On the second leg it goes north: no point cuts the corner.
    assert np.all(route.points_m[:, 0] < 147.9)
    assert route.points_m[-1] == pytest.approx(FRAME.map_from_geodetic(48.501, 9.002), abs=1e-6)


def test_route_across_180_degrees_and_beyond_the_maps_range(tmp_path):
    path = tmp_path / "route.geojson"
    path.write_text(json.dumps(line([[179.999, -17.0], [-179.999, -17.0]])))
    route = read_route(path, LocalFrame(Datum(-17.0, 180.0)), 5.0)
    assert route.length_m == pytest.approx(213.0, abs=1.0)
    assert np.abs(route.points_m).max() < 107.0
    # The other side of the Earth has map coordinates near 0, too; they must not be taken for the datum's place.
    assert np.isnan(read_route(path, LocalFrame(Datum(17.0, 0.0)), 5.0).points_m).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no route", "is neither GeoJSON nor GPX .*ogr2ogr"),
        ("[1, 2]", "is no GeoJSON by RFC 7946"),
        ('{"type": "LineString"}', "is no GeoJSON by RFC 7946"),
        (json.dumps(collection()), "holds no line; give a LineString"),
        (json.dumps({"type": "Polygon", "coordinates": [CORNERS]}), "holds no line"),
        (json.dumps(line([[48.5, 91.0], [48.6, 92.0]])), "latitude 91, longitude 48.5 is no place; .*longitude first"),
        (json.dumps(line([[9.0, 48.5], [9.0, None]])), "no place|no position"),
        (json.dumps(line([[9.0, 48.5], [9.0]])), "no position"),
        (json.dumps(line([[9.0, 48.5], ["x", 48.5]])), "no position"),
        (json.dumps(line([])), "no position"),
        (json.dumps(line([[9.0, 48.5], [9.0, 48.5]])), "the route is 0 m long"),
        (json.dumps(line([[9.0, 48.5]])), "the route is 0 m long"),
        (json.dumps(line([[0.0, 0.0], [20.0, 0.0]])), r"2226 km long, at most 1000 km .*in parts"),
        (json.dumps(collection(feature(line(CORNERS)), feature(line([[9.1, 48.5], [9.2, 48.5]])))),
         "line 2 begins .* m from the end of the one before, at most 100 m are bridged"),
        (json.dumps({**line(CORNERS), "crs": {"properties": {"name": "urn:ogc:def:crs:EPSG::25832"}}}),
         "EPSG::25832; write it in WGS84"),
        ("<gpx><trk>", "is no GPX"),
        ("<kml></kml>", "is kml, not GPX; convert it"),
        ("<gpx></gpx>", "holds no line"),
        ('<gpx><trk><trkseg><trkpt lat="48.5"/></trkseg></trk></gpx>', "no place|no position"),
    ],
)  # fmt: skip
def test_what_is_no_route_is_one_error_with_the_remedy(content, message, tmp_path):
    path = tmp_path / "route.geojson"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_route(path, FRAME, 5.0)
    assert "route" in str(error.value)


def test_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.geojson: cannot be read"):
        read_route(tmp_path / "nowhere.geojson", FRAME, 5.0)
    (tmp_path / "drive.fit").write_bytes(b"\x0e\x10\xff\xfe\x00")
    with pytest.raises(InputError, match=r"drive\.fit: cannot be read"):
        read_route(tmp_path / "drive.fit", FRAME, 5.0)
