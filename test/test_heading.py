"""The heading search's parts, on features made by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unifygeo_ros.core.geodesy import azimuth_from_yaw, wrap_angle
from unifygeo_ros.core.records import HeadingSource
from unifygeo_ros.localization.heading import (
    HeadingSearch,
    encoding_azimuths,
    estimate_heading,
    heading_search,
    rolled_columns,
)

COLUMNS = 12
SECTOR = 2 * math.pi / COLUMNS


def test_roll_r_moves_the_content_r_sectors_to_the_right():
    f0 = np.arange(8, dtype=np.float32)  # 4 columns of 2 channels
    np.testing.assert_array_equal(
        rolled_columns(f0, 4),
        [[0, 1, 2, 3, 4, 5, 6, 7], [6, 7, 0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 0, 1, 2, 3], [2, 3, 4, 5, 6, 7, 0, 1]],
    )


@given(st.integers(1, 36), st.integers(4, 36))
def test_rolls_of_all_encodings_are_evenly_spaced(encodings, columns):
    azimuths = encoding_azimuths(encodings, columns)
    assert azimuths[0] == 0
    assert len(azimuths) == encodings
    rolls = (azimuths[:, None] + np.arange(columns) * 2 * np.pi / columns).ravel() % (2 * np.pi)
    rolls.sort()
    gaps = np.diff(np.append(rolls, rolls[0] + 2 * np.pi))
    np.testing.assert_allclose(gaps, 2 * np.pi / (encodings * columns), rtol=1e-6)
    assert np.diff(azimuths).min(initial=1) > 0


def search_of(profile, encodings=1, tiles=1):
    """A search whose scores for every tile are profile(azimuth of the roll)."""
    azimuths = encoding_azimuths(encodings, COLUMNS)[:, None] + np.arange(COLUMNS) * SECTOR
    scores = np.stack([profile(azimuths)] * tiles).astype(np.float32)
    return HeadingSearch(np.arange(tiles), azimuths, scores)


def bump(centre, width=0.6, height=1.0):
    return lambda azimuth: height * np.exp(-0.5 * (wrap_angle(azimuth - centre) / width) ** 2)


@given(st.floats(-math.pi, math.pi), st.integers(1, 4))
def test_peak_is_found_between_the_rolls(azimuth, encodings):
    heading = estimate_heading(search_of(bump(azimuth), encodings), 0.01)
    assert heading.source is HeadingSource.SEARCH
    assert abs(wrap_angle(azimuth_from_yaw(heading.yaw_rad) - azimuth)) < 0.12 * SECTOR
    assert 0 < heading.variance_rad2 < SECTOR**2


def test_rival_heading_shows_in_the_variance():
    def two(azimuth):
        return bump(0.0)(azimuth) + bump(math.pi, height=0.97)(azimuth)

    assert estimate_heading(search_of(bump(0.0)), 0.03).variance_rad2 < 0.1
    assert estimate_heading(search_of(two), 0.03).variance_rad2 > 1.0


def test_each_tile_has_its_own_heading():
    search = search_of(bump(0.0), tiles=2)
    scores = search.scores.copy()
    scores[1] = bump(2 * SECTOR, height=0.9)(search.azimuths_rad)
    search = HeadingSearch(np.array([7, 9]), search.azimuths_rad, scores)
    for tile_id, azimuth in ((None, 0.0), (7, 0.0), (9, 2 * SECTOR)):
        heading = estimate_heading(search, 0.01, tile_id)
        assert azimuth_from_yaw(heading.yaw_rad) == pytest.approx(azimuth, abs=1e-3)


def test_roll_takes_the_similarity_of_the_encoding_nearest_to_it():
    # Two encodings of 4 columns, at 0° and at 225° (half the circle and half a sector).
    azimuths = encoding_azimuths(2, 4)[:, None] + np.arange(4) * np.pi / 2
    np.testing.assert_allclose(np.degrees(azimuths) % 360, [[0, 90, 180, 270], [225, 315, 45, 135]])
    similarities = np.array([[0.1, 0.7]], np.float32)
    search = heading_search(np.array([3]), azimuths, similarities, np.zeros((1, 2, 4), np.float32))
    np.testing.assert_allclose(search.scores[0], [[0.1, 0.1, 0.7, 0.7], [0.7, 0.1, 0.1, 0.7]])
    assert search.best_tile == 3
