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


@pytest.mark.parametrize("values", [(89.0, 180.0), (-89.0, -180.0)])
def test_datum_may_lie_on_its_limits(values):
    assert Datum(*values).height_m == 0.0


@pytest.mark.parametrize("values", [(89.01, 0.0), (-89.01, 0.0), (0.0, 180.01), (0.0, -180.01), (float("nan"), 0.0)])
def test_datum_beyond_its_limits_is_refused(values):
    with pytest.raises(InputError, match="latitude ±89°, longitude ±180°"):
        Datum(*values)


def from_the_earths_centre(latitude_deg, longitude_deg, height_m):
    """Textbook formula of WGS84: x, y, z in metres."""
    a, f = 6378137.0, 1 / 298.257223563
    latitude, longitude, e2 = np.radians(latitude_deg), np.radians(longitude_deg), f * (2 - f)
    n = a / np.sqrt(1 - e2 * np.sin(latitude) ** 2)
    return np.array(
        [
            (n + height_m) * np.cos(latitude) * np.cos(longitude),
            (n + height_m) * np.cos(latitude) * np.sin(longitude),
            (n * (1 - e2) + height_m) * np.sin(latitude),
        ]
    )


def test_points_up_to_the_limit_agree_with_the_textbook_formula():
    latitude, longitude, height = 47.5, 8.5, 3000.0
    east = np.array([[0.0, 50_000.0, -40_000.0], [30_000.0, 12.5, 0.0]])
    north = np.array([[50_000.0, 0.0, -30_000.0], [-40_000.0, 7.5, 0.0]])
    answer = LocalFrame(Datum(latitude, longitude, height)).geodetic_from_map(east, north)
    assert answer.shape == (2, 3, 2)
    la, lo = np.radians(latitude), np.radians(longitude)
    to_east = np.array([-np.sin(lo), np.cos(lo), 0.0])
    to_north = np.array([-np.sin(la) * np.cos(lo), -np.sin(la) * np.sin(lo), np.cos(la)])
    from_datum = from_the_earths_centre(answer[..., 0], answer[..., 1], height) - from_the_earths_centre(
        latitude, longitude, height
    ).reshape(3, 1, 1)
    np.testing.assert_allclose(np.tensordot(to_east, from_datum, 1), east, atol=1e-6)
    np.testing.assert_allclose(np.tensordot(to_north, from_datum, 1), north, atol=1e-6)
    back = LocalFrame(Datum(latitude, longitude, height)).map_from_geodetic(answer[..., 0], answer[..., 1])
    np.testing.assert_allclose(back, np.stack([east, north], axis=-1), atol=1e-6)


def test_no_points_give_no_positions():
    frame = LocalFrame(Datum(48.0, 9.0))
    assert frame.geodetic_from_map([], []).shape == (0, 2)
    assert frame.map_from_geodetic([], []).shape == (0, 2)


def test_angles_are_wrapped_to_minus_pi_inclusive_and_pi_exclusive():
    angles = np.array([np.pi, -np.pi, 3 * np.pi, 0.5, 2 * np.pi + 0.5, -3.5])
    np.testing.assert_allclose(wrap_angle(angles), [-np.pi, -np.pi, -np.pi, 0.5, 0.5, 2 * np.pi - 3.5], atol=1e-12)


def test_pixels_of_a_tile_with_an_odd_number_of_rows():
    # The middle pixel of three is the centre; rows and columns may each be an array, the scale one for all.
    np.testing.assert_allclose(map_from_tile([0, 1], [1, 2], 10.0, 20.0, 3, 0.5), [[10.0, 20.5], [10.5, 20.0]])
    np.testing.assert_allclose(tile_from_map([10.0, 10.5], [20.5, 20.0], 10.0, 20.0, 3, 0.5), [[0, 1], [1, 2]])
