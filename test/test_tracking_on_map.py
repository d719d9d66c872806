"""Off the map no track gives a fix, however well the images agree with one another, and fixes end at the border."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from simulated_town import ObservationModel, make_drive, run_drive

from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.core.records import Fix, HeadingSource, RejectionReason, Seen
from unifygeo_ros.inference.bundle import Confidence
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.on_map import RATIO_LIMIT, after_image, after_way
from unifygeo_ros.tracking.region import Region
from unifygeo_ros.tracking.track import Track, TrackState

CLEAN = ObservationModel(outliers=0.0)


def looks(ratio: float, searched: float | None = None) -> tuple[Confidence, Confidence]:
    """Every image is this many times likelier off the map; with a heading, and with a searched one (None: the same)."""
    ratios = ratio, ratio if searched is None else searched
    given, found = (Confidence(bias=-math.log(value), belief_weight=0.0) for value in ratios)
    return given, found


def test_bayes_rule_with_an_image_by_hand() -> None:
    # Odds 3 : 1 on the map, an image four times likelier off it, half of which is new: odds 3 : 2.
    assert after_image(0.75, 4.0, 0.5) == pytest.approx(0.6)
    assert after_image(0.75, 4.0, 0.0) == 0.75
    assert after_image(1.0, 4.0, 1.0) == 1.0  # on_map_prior 1: it never leaves
    assert after_image(0.5, 1e9, 1.0) == pytest.approx(1 / (1 + RATIO_LIMIT))
    assert after_image(0.5, 1e-9, 1.0) == pytest.approx(RATIO_LIMIT / (1 + RATIO_LIMIT))


def test_way_without_images_approaches_the_prior() -> None:
    assert after_way(1.0, 0.0, 0.5, 0.002) == 1.0
    assert after_way(1.0, 500.0, 0.5, 0.002) == pytest.approx(0.5 + 0.5 * math.exp(-1))
    assert after_way(0.0, math.inf, 0.8, 0.002) == 0.8


def test_border_crossings_of_straight_ways_through_a_square_by_counting() -> None:
    rng = np.random.default_rng(0)
    side_m, ways = 300.0, 2_000_000
    # Ways of 1 m from anywhere in the square, in any direction: how many leave it?
    start = rng.uniform(0, side_m, (ways, 2))
    angle = rng.uniform(0, 2 * math.pi, ways)
    end = start + np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    left = ((end < 0) | (end > side_m)).any(1).mean()
    region = Region(LocalFrame(Datum(48.5, 9.0)), side_m**2, 70.0, np.zeros((1, 2)))
    assert region.border_rate_per_m == pytest.approx(left, rel=0.04)


def test_region_covers_its_tiles_and_nothing_else() -> None:
    region = Region(LocalFrame(Datum(48.5, 9.0)), 1e4, 70.0, np.array([[0.0, 0.0], [200.0, 0.0]]))
    positions = np.array([[34.9, -34.9], [35.1, 0.0], [165.1, 34.0], [100.0, 0.0], [0.0, 1e6]])
    assert region.covers(positions).tolist() == [True, False, True, False, False]


def test_images_that_agree_but_look_off_the_map_give_no_fix() -> None:
    """The worst case: every image agrees perfectly with one place that moves along as the odometry does.

    Then each new image counts 0.4 times for it, so looks outweigh it if they are more than 2.5 times against the map.
    """
    run, _, _ = run_drive(make_drive(0, 40), CLEAN, 0, on_map=looks(9.0))
    assert not any(isinstance(result, Fix) for result in run.results)
    assert run.results[-1].reason is RejectionReason.OFF_MAP


def test_same_images_give_fixes_where_they_look_on_the_map() -> None:
    run, _, _ = run_drive(make_drive(0, 40), CLEAN, 0, on_map=looks(1 / 3))
    assert run.availability(first_s=10.0) > 0.95
    ambiguities = [result.ambiguity for result in run.results if isinstance(result, Fix)]
    assert max(ambiguities) <= 0.3


def test_track_begins_with_fixes_at_a_lower_limit_than_it_ends_with_them_at() -> None:
    config = TrackerConfig(enter_off_map_ambiguity=0.1, off_map_ambiguity=0.3)
    tracking = Track(TrackState.TRACKING)
    inside = tracking.after_on_map(0.91, config)
    assert [tracking.after_on_map(on_map, config).inside for on_map in (0.89, 0.91)] == [False, True]
    assert [inside.after_on_map(on_map, config).inside for on_map in (0.69, 0.71)] == [False, True]
    left = inside.after_on_map(0.69, config)
    assert not left.after_on_map(0.89, config).inside
    assert not Track(TrackState.LOST).after_on_map(1.0, config).inside
    lost = inside.after_belief(None, 1.0, config)
    assert (lost.state, lost.inside) == (TrackState.LOST, False)


@pytest.mark.parametrize(("surely_until_s", "gets_fixes"), [(0.0, False), (20.0, True)])
def test_place_found_while_it_may_be_off_the_map_gets_no_fix_and_one_found_before_keeps_them(
    surely_until_s: float, gets_fixes: bool
) -> None:
    def belief(session: Any, time_s: float) -> None:
        session.tracker._outside_ratio = lambda *_, near: 1.0
        session.tracker._on_map = 0.97 if time_s < surely_until_s else 0.8

    run, _, _ = run_drive(make_drive(0, 40), CLEAN, 0, on_map=looks(1.0), prepare=belief)
    assert "tracking" in run.states
    late = [result for time_s, result in zip(run.time_s, run.results, strict=True) if time_s > 25.0]
    assert {isinstance(result, Fix) for result in late} == {gets_fixes}


@pytest.mark.parametrize(("likelihood_ratio", "outside_ratio"), [(100.0, 0.4), (99.0, 1.0), (10.0, 1.0), (9.0, 2.0)])
def test_image_that_confirms_a_track_speaks_for_the_map_and_one_that_does_not_support_it_against(
    likelihood_ratio: float, outside_ratio: float
) -> None:
    assert Track(TrackState.TRACKING, likelihood_ratio=likelihood_ratio).outside_ratio == outside_ratio


@pytest.mark.parametrize(("azimuth", "outside_ratio"), [(1.0, 0.4), (0.75, 0.2551), (0.5, 0.1626), (0.25, 0.1037)])
def test_image_that_confirms_a_track_says_more_for_the_map_the_fewer_azimuths_it_shows(
    azimuth: float, outside_ratio: float
) -> None:
    """Off the map a part seldom agrees with a track by chance: 0.4 · exp(−1.8 · what is not seen)."""
    track = Track(TrackState.TRACKING).after_image(100.0, 0.3, Seen(azimuth=azimuth, elevation=0.5))
    assert track.outside_ratio == pytest.approx(outside_ratio, abs=1e-4)
    assert track.after_image(9.0, 0.3, Seen(azimuth=azimuth)).outside_ratio == 2.0


def test_images_looked_for_near_the_track_are_judged_by_the_odds_for_that() -> None:
    noted: list[bool] = []

    def note(session: Any, _time_s: float) -> None:
        session.tracker._outside_ratio = lambda *_, near: noted.append(near) or 1 / 3

    _, _, localizer = run_drive(make_drive(0, 20), CLEAN, 0, on_map=looks(1.0), prepare=note)
    near = [request.prior is not None for request in localizer.requests]
    assert noted == near
    assert set(near) == {True, False}


def test_partly_seen_images_that_tell_nothing_are_on_the_map_when_a_track_goes_on_to_agree() -> None:
    def blank(session: Any, _time_s: float) -> None:
        session.tracker._outside_ratio = lambda *_, near: 1.0

    run, session, _ = run_drive(make_drive(0, 40), CLEAN, 0, on_map=looks(1.0), prepare=blank)
    assert session.status().track.on_map > 0.95
    assert run.availability(first_s=25.0) > 0.95


def test_track_is_found_although_searched_headings_look_off_map() -> None:
    run, _, _ = run_drive(make_drive(0, 60), CLEAN, 0, heading="none", on_map=looks(1 / 10, searched=2.0))
    assert run.availability(first_s=40.0) > 0.8


def test_track_whose_own_heading_never_looks_right_gives_no_fix() -> None:
    """Found with searched headings that look on the map, it is surely on the map when the first image under its own
    heading comes: that image must look right by itself."""
    for seed in (0, 1):
        run, _, _ = run_drive(make_drive(seed, 60), CLEAN, seed, heading="none", on_map=looks(9.0, searched=0.1))
        assert "tracking" in run.states
        assert not any(isinstance(result, Fix) for result in run.results)


def test_images_under_a_leading_places_heading_leave_open_whether_it_is_the_map() -> None:
    """Before there is a track they say nothing of the map, whatever they look like: the heading may be wrong."""
    run, session, localizer = run_drive(make_drive(0, 5), CLEAN, 0, heading="none", on_map=looks(300.0, searched=0.5))
    sources = [None if r.heading is None else r.heading.source for r in localizer.requests]
    assert HeadingSource.TRACK in sources
    assert "tracking" not in run.states
    assert session.status().track.on_map > 0.6  # by the searched ones alone; with the others it is far below


def test_vehicle_that_leaves_the_map_gets_no_more_fixes() -> None:
    """The index ends where the vehicle drives on; the simulated images go on to agree with the tiles at its edge."""
    drive = make_drive(0, 40)
    border = float(np.median(drive.pose[:, 0]))

    def crop(session: object, _time_s: float) -> None:
        region = session.tracker._region  # type: ignore[attr-defined]
        centres = region.centres_m
        region.__dict__["_centres"] = type(region._centres)(centres[centres[:, 0] + region.tile_side_m / 2 <= border])

    run, _, _ = run_drive(drive, CLEAN, 0, prepare=crop, on_map=looks(1 / 3))
    outside = [result for result in run.results if isinstance(result, Fix) and result.east_m > border + 1.0]
    assert not outside
    assert any(isinstance(result, Fix) for result in run.results)
    reasons = {getattr(result, "reason", None) for result in run.results}
    assert RejectionReason.OFF_MAP in reasons


def test_prepared_region_has_its_search() -> None:
    region = Region(LocalFrame(Datum(48.5, 9.0)), 1e4, 70.0, np.array([[0.0, 0.0], [200.0, 0.0]]))
    assert "_centres" not in vars(region)
    region.prepare()
    assert "_centres" in vars(region)
    assert region.covers(np.array([[210.0, -20.0], [100.0, 0.0]])).tolist() == [True, False]
