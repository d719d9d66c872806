"""Geodesy against pyproj's geodesic and its own inverse."""

import numpy as np
import pyproj
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.geodesy import (
    Datum,
    LocalFrame,
    azimuth_from_yaw,
    map_from_tile,
    tile_from_map,
    wrap_angle,
    yaw_from_azimuth,
)

latitudes = st.floats(-80, 80)
longitudes = st.floats(-179.9, 179.9)
offsets = st.floats(-20_000, 20_000)


@given(latitudes, longitudes, st.floats(-100, 4000), offsets, offsets)
def test_map_and_geodetic_are_inverses_to_a_micrometre(latitude, longitude, height, east, north):
    frame = LocalFrame(Datum(latitude, longitude, height))
    position = frame.geodetic_from_map(east, north)
    np.testing.assert_allclose(frame.map_from_geodetic(position[0], position[1]), [east, north], atol=1e-6)


@given(latitudes, longitudes, st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_near_the_datum_the_map_agrees_with_geodesics_to_a_millimetre(latitude, longitude, east, north):
    frame = LocalFrame(Datum(latitude, longitude))
    other_latitude, other_longitude = frame.geodetic_from_map(east, north)
    azimuth_deg, _, distance_m = pyproj.Geod(ellps="WGS84").inv(longitude, latitude, other_longitude, other_latitude)
    geodesic = [
        distance_m * np.sin(np.radians(azimuth_deg)),
        distance_m * np.cos(np.radians(azimuth_deg)),
    ]
    np.testing.assert_allclose(geodesic, [east, north], atol=1e-3)


def test_points_out_of_range_are_refused_with_the_limit():
    with pytest.raises(InputError, match="50000"):
        LocalFrame(Datum(48.0, 9.0)).geodetic_from_map([0.0, 60_000.0], [0.0, 0.0])


def test_tile_pixels_follow_the_pixel_centre_convention():
    # A tile of 4 pixels of 0.5 m centred on (100, 200): its north-west corner is at (99, 201).
    np.testing.assert_allclose(map_from_tile(-0.5, -0.5, 100.0, 200.0, 4, 0.5), [99.0, 201.0])
    np.testing.assert_allclose(map_from_tile(0, 0, 100.0, 200.0, 4, 0.5), [99.25, 200.75])
    np.testing.assert_allclose(tile_from_map(100.0, 200.0, 100.0, 200.0, 4, 0.5), [1.5, 1.5])


@given(st.lists(st.tuples(st.floats(-10, 400), st.floats(-10, 400)), min_size=1, max_size=5))
def test_tile_and_map_are_inverses(pixels):
    rows, columns = np.array(pixels).T
    position = map_from_tile(rows, columns, -35.0, 12.0, 384, 0.1822)
    back = tile_from_map(position[:, 0], position[:, 1], -35.0, 12.0, 384, 0.1822)
    np.testing.assert_allclose(back, np.stack([rows, columns], axis=-1), atol=1e-9)


@pytest.mark.parametrize(("azimuth_deg", "yaw_deg"), [(0, 90), (90, 0), (180, -90), (270, -180), (45, 45)])
def test_yaw_is_counter_clockwise_from_east(azimuth_deg, yaw_deg):
    assert np.degrees(yaw_from_azimuth(np.radians(azimuth_deg))) == pytest.approx(yaw_deg)
    assert wrap_angle(azimuth_from_yaw(np.radians(yaw_deg)) - np.radians(azimuth_deg)) == pytest.approx(0, abs=1e-12)
