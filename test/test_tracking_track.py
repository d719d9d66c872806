"""The track's memory: which images support it, how many may miss, and what a new place takes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from simulated_town import make_drive, run_drive
from test_tracking_drives import PLAIN, moved

from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.core.records import (
    ALL_SEEN,
    Fix,
    GroundFeatures,
    Heading,
    HeadingSource,
    Matches,
    Observation,
    Rejection,
    RejectionReason,
    Seen,
    TileDistribution,
)
from unifygeo_ros.core.se2 import Pose2
from unifygeo_ros.inference.bundle import Calibration
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.motion.increments import Motion
from unifygeo_ros.tracking.belief import hypothesis
from unifygeo_ros.tracking.clusters import Cluster, dominant_cluster
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.decision import decide
from unifygeo_ros.tracking.evidence import evidence_of
from unifygeo_ros.tracking.region import Region
from unifygeo_ros.tracking.track import Track, TrackState, usual_against, usual_misses
from unifygeo_ros.tracking.tracker import Tracker

HALF = Seen(azimuth=0.5)
TRACKING = Track(TrackState.TRACKING)


@pytest.mark.parametrize(
    ("seen", "misses"),
    [
        # ln 0.02 = −3.91; the shares are 1%, 4%, 16%, 31% and 46%.
        (ALL_SEEN, 0),
        (Seen(elevation=0.5), 1),
        (Seen(azimuth=0.75), 2),
        (HALF, 3),
        (Seen(azimuth=0.25), 5),
    ],
)
def test_usual_misses_are_those_that_two_of_a_hundred_right_tracks_have(seen: Seen, misses: int) -> None:
    share = 0.01 + 0.6 * (1 - seen.azimuth) + 0.06 * (1 - seen.elevation)
    assert usual_misses(seen) == misses
    assert share**misses >= 0.02 > share ** (misses + 1)


def after(track: Track, ratios: list[float], seen: Seen, novelty: float = 0.3) -> Track:
    for ratio in ratios:
        track = track.after_image(ratio, novelty, seen)
    return track


def test_image_that_does_not_support_the_track_is_tolerated_where_half_is_seen() -> None:
    whole = after(TRACKING, [5.0], ALL_SEEN)
    assert (whole.tolerated, whole.unsupported) == (False, 1)
    three = after(TRACKING, [5.0] * 3, HALF)
    assert (three.misses, three.tolerated, three.unsupported) == (3, True, 0)
    four = after(three, [5.0], HALF)
    assert (four.tolerated, four.unsupported) == (False, 1)
    # Then nothing is tolerated until an image confirms the track.
    assert not after(four, [20.0, 5.0], HALF).tolerated
    assert after(four, [20.0, 200.0, 5.0], HALF).tolerated


@pytest.mark.parametrize(
    ("seen", "images"),
    [
        # The shares are 0, 0, 8%, 17% and 25%.
        (ALL_SEEN, 0),
        (Seen(elevation=0.2), 0),
        (Seen(azimuth=0.75), 1),
        (HALF, 2),
        (Seen(azimuth=0.25), 2),
    ],
)
def test_usual_against_are_those_that_two_of_a_hundred_right_tracks_have(seen: Seen, images: int) -> None:
    share = 0.33 * (1 - seen.azimuth)
    assert usual_against(seen) == images
    assert share**images >= 0.02 > share ** (images + 1)


@pytest.mark.parametrize(
    ("ratios", "seen", "least"),
    [
        ([5.0], ALL_SEEN, 10.0),
        ([0.5], ALL_SEEN, 10.0),
        ([0.5], Seen(elevation=0.5), 1.0),
        ([0.5], HALF, 0.0),
        ([0.5, 0.5], HALF, 0.0),
        ([0.5, 0.5, 0.5], HALF, 1.0),  # the third in a row speaks against the track
        ([0.5, 5.0, 0.5], HALF, 0.0),
        ([5.0, 0.5, 0.5], HALF, 0.0),
        ([5.0, 5.0, 5.0, 0.5], HALF, 10.0),  # the fourth miss is not tolerated
        ([0.5, 0.5, 20.0, 0.5], HALF, 0.0),
    ],
)
def test_images_that_speak_against_a_track_give_fixes_as_often_as_is_usual(
    ratios: list[float], seen: Seen, least: float
) -> None:
    assert after(TRACKING, ratios, seen).least_ratio == least


def test_image_that_speaks_against_a_track_gives_no_fix_where_the_odometry_stands() -> None:
    """The vehicle may be carried away, on a trailer."""
    standing = after(TRACKING, [0.5] * 9, HALF, novelty=0.0)
    assert (standing.against, standing.least_ratio) == (0, 1.0)
    seen_driving = after(TRACKING, [0.5], HALF)
    assert seen_driving.least_ratio == 0.0
    assert after(seen_driving, [0.5], HALF, novelty=0.0).least_ratio == 1.0


@pytest.mark.parametrize(
    ("against", "fix_from", "is_fix"), [(2, "posterior", True), (3, "posterior", False), (1, "image", False)]
)
def test_fix_of_an_image_that_speaks_against_the_track(against: int, fix_from: str, is_fix: bool) -> None:
    belief = hypothesis(Pose2(3.0, 4.0, 0.5), np.diag([0.09, 0.16, 0.01]), 0.01, 0.001)
    track = Track(
        TrackState.TRACKING, "", likelihood_ratio=0.2, misses=3, against=against, tolerated=True, seen=HALF, inside=True
    )
    tile = np.array([0])
    matches = Matches(tile, np.ones(1), np.ones(1), np.zeros((1, 1, 1), np.float32), tile)
    features = GroundFeatures(np.zeros(4, np.float32), (), {})
    heading = Heading(0.5, 0.01, HeadingSource.IMU)
    pixels = np.full((8, 8), 1 / 64, np.float32)
    observation = Observation(7, matches, (TileDistribution(0, 0.0, 0.0, 8.0, pixels),), heading, features, seen=HALF)
    config = TrackerConfig(fix_from=fix_from)
    result = decide(
        observation,
        evidence_of(observation, Calibration(), config, REGION),
        belief,
        dominant_cluster(belief, 5.0),
        track,
        on_map=0.99,
        gates=LocalizerConfig(),
        config=config,
        region=REGION,
        lever_m=(0.0, 0.0),
        inflation=1.0,
        stamp_covariance=None,
    )
    if is_fix:
        assert isinstance(result, Fix)
        assert (result.east_m, result.north_m) == (3.0, 4.0)
        np.testing.assert_allclose(result.covariance_m2, np.diag([0.09, 0.16]), rtol=1e-9)
    else:
        assert isinstance(result, Rejection)
        assert result.reason is RejectionReason.UNCERTAIN
        words = "under 1 and speaks against it" if fix_from == "posterior" else "under 10 and does not support it"
        assert words in result.detail


def test_image_that_supports_the_track_ends_the_misses() -> None:
    track = after(TRACKING, [5.0, 5.0, 10.0], HALF)
    assert (track.misses, track.tolerated, track.unsupported) == (0, False, 0)


def test_standing_vehicle_counts_no_misses_and_tolerates_none_where_all_is_seen() -> None:
    standing = after(TRACKING, [5.0] * 9, ALL_SEEN, novelty=0.0)
    assert (standing.misses, standing.tolerated, standing.unsupported) == (0, False, 0)


def cluster(support: float, east_m: float = 0.0) -> Cluster:
    return Cluster(np.array([0]), 0.999, np.array([east_m, 0.0, 0.0, 0.0]), np.eye(4), support, 0)


REGION = Region(LocalFrame(Datum(48.5, 9.0)), 1e6, 70.0, np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("lost_m", "guided", "images"),
    [
        (None, True, 2.0),
        (None, False, 3.0),
        (30.0, True, 2.0),  # nearer than 30 m and three standard deviations, of 2 m for both together
        (37.0, True, 5.0),
        (37.0, False, 5.0),
    ],
)
def test_place_where_the_odometry_does_not_lead_and_searched_headings_take_more_confirming_images(
    lost_m: float | None, guided: bool, images: float
) -> None:
    tracker = Tracker(REGION, Calibration(), TrackerConfig(confirm_images=2.0))
    if lost_m is not None:
        tracker._lost = hypothesis(Pose2(lost_m, 0.0, 0.0), np.diag([3.0, 3.0, 1.0]), 0.01, 0.0)
    assert tracker._confirm_images(cluster(0.0), guided=guided) == images


def test_lost_place_moves_on_with_the_odometry_until_there_is_a_track() -> None:
    drive = make_drive(0, 20)
    places: list[tuple[float, float] | None] = []

    def note(session: Any, time_s: float) -> None:
        lost = session.tracker._lost
        places.append(None if lost is None else (float(lost.means[0, 0]), float(lost.means[0, 1])))

    _, session, _ = run_drive(moved(drive, make_drive(50, 20)), PLAIN, 0, prepare=note)
    assert places[0] is None
    found = np.array([place for place in places if place is not None])
    assert len(found) > 5
    steps = np.hypot(*np.diff(found, axis=0).T)
    assert 0.5 < np.median(steps) < 20.0
    assert (session.tracker._lost is None) == session.status().track.state.value.startswith("track")


def test_new_track_takes_as_many_confirming_images_as_are_asked_for() -> None:
    config = TrackerConfig(confirm_images=2.0)
    assert Track().after_belief(cluster(2.0), 0.0, config).tracking
    waiting = Track().after_belief(cluster(2.0), 0.0, config, confirm_images=5.0)
    assert not waiting.tracking
    assert "2.0 independent images confirm the place, 5 must" in waiting.reason
    assert Track().after_belief(cluster(5.0), 0.0, config, confirm_images=5.0).tracking
    assert TRACKING.after_belief(cluster(0.0), 0.0, config, confirm_images=5.0).tracking


@pytest.mark.parametrize("variance", [1e15, math.nan])
def test_odometry_that_says_nothing_leads_nowhere_from_the_lost_place(variance: float) -> None:
    tracker = Tracker(REGION, Calibration(), TrackerConfig(confirm_images=2.0))
    tracker._lost = hypothesis(Pose2(500.0, 0.0, 0.0), np.diag([3.0, 3.0, 1.0]), 0.01, 0.0)
    motion = Motion(1.0, 0.0, 0.0, 1.0, variance * np.eye(3), True, 1.0)
    plan = tracker.plan(motion, None, LocalizerConfig())
    tracker.skip(plan, Rejection(1, RejectionReason.BLACK_IMAGE, "black"))
    assert tracker._lost is None
    assert tracker._confirm_images(cluster(0.0), guided=True) == 2.0
