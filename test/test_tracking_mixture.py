"""The mixture's bookkeeping, its reduction, and the evidence of one image, each by values worked out plainly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from unifygeo_ros.core.geodesy import Datum, LocalFrame, wrap_angle
from unifygeo_ros.core.records import (
    Distances,
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
from unifygeo_ros.inference.bundle import Calibration, Confidence
from unifygeo_ros.inference.familiarity import Familiarity, usual_features
from unifygeo_ros.localization.config import LocalizerConfig
from unifygeo_ros.motion.increments import NO_MOTION
from unifygeo_ros.motion.samples import InitialPose
from unifygeo_ros.motion.stamp_error import StampDoubt
from unifygeo_ros.tracking import reduction
from unifygeo_ros.tracking.belief import Belief, hypothesis, uniform, with_scale
from unifygeo_ros.tracking.clusters import dominant_cluster
from unifygeo_ros.tracking.config import TrackerConfig
from unifygeo_ros.tracking.decision import measured_by_image
from unifygeo_ros.tracking.evidence import Evidence, evidence_of, log_evidence_of_all, tile_weights
from unifygeo_ros.tracking.reduction import reduce
from unifygeo_ros.tracking.region import Region
from unifygeo_ros.tracking.tracker import Tracker

TURN_VARIANCE = math.pi**2 / 3
"""Of a yaw that may be anything."""


def four() -> Belief:
    """Four hypotheses that differ in everything; together 0.8."""
    sigmas = np.array([[1.0, 2.0, 0.1, 0.01], [2.0, 1.0, 0.2, 0.02], [3.0, 3.0, 0.1, 0.02], [4.0, 1.0, 0.3, 0.03]])
    covariances = np.stack([np.diag(row**2) for row in sigmas])
    covariances[:, 0, 1] = covariances[:, 1, 0] = 0.1
    means = np.arange(16.0).reshape(4, 4)
    return Belief(np.array([0.1, 0.4, 0.05, 0.25]), means, covariances, np.arange(4.0), np.array([7, 3, -1, 5]), 0.2)


# The mixture ----------------------------------------------------------------------------------------------------------


def test_no_hypotheses_is_all_uniform() -> None:
    nothing = uniform()
    assert (len(nothing), nothing.total, nothing.uniform_weight) == (0, 1.0, 1.0)
    assert nothing.means.shape == (0, 4)
    assert nothing.covariances.shape == (0, 4, 4)
    assert nothing.support.shape == nothing.tile_ids.shape == (0,)
    assert nothing.tile_ids.dtype == np.int64
    after = nothing.extended(four())
    assert len(after) == 4
    assert after.total == pytest.approx(1.8)


@pytest.mark.parametrize("chosen", [np.array([3, 1]), np.array([False, True, False, True])], ids=["indices", "mask"])
def test_selected_hypotheses_keep_all_that_belongs_to_them(chosen: np.ndarray) -> None:
    before = four()
    after = before.select(chosen)
    rows = [3, 1] if chosen.dtype != bool else [1, 3]
    for name in ("weights", "means", "covariances", "support", "tile_ids"):
        np.testing.assert_array_equal(getattr(after, name), [getattr(before, name)[row] for row in rows], err_msg=name)
    assert after.uniform_weight == 0.2
    kept = before.keep(chosen)
    np.testing.assert_array_equal(kept.means, after.means)
    assert kept.uniform_weight == pytest.approx(0.2 + 0.1 + 0.05)
    assert kept.total == pytest.approx(1.0)


def test_extended_appends_in_turn_and_normalised_divides_by_the_sum() -> None:
    first, second = four(), replace(four(), means=four().means + 100.0, uniform_weight=0.7)
    whole = first.extended(second, first.select(np.array([0])))
    assert whole.uniform_weight == 0.2
    np.testing.assert_array_equal(whole.means[:, 0], [0, 4, 8, 12, 100, 104, 108, 112, 0])
    for name in ("weights", "covariances", "support", "tile_ids"):
        parts = [getattr(first, name), getattr(second, name), getattr(first, name)[:1]]
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate(parts), err_msg=name)
    assert whole.total == pytest.approx(0.8 + 0.8 + 0.1 + 0.2)
    even = whole.normalised()
    np.testing.assert_allclose(even.weights, whole.weights / 1.9)
    assert even.uniform_weight == pytest.approx(0.2 / 1.9)


@pytest.mark.parametrize(
    "change",
    [
        (0, 0, 1.00000001e14),  # wider than 10,000 km east and west,
        (1, 1, 1.00000001e14),  # or north and south
        (2, 2, 0.0),  # flat in the pose
        (0, 0, 0.0),
        (1, 1, -1.0),
        (0, 3, math.nan),  # not finite anywhere, also outside the pose
        (3, 3, math.inf),
    ],
)
def test_hypothesis_that_says_nothing_moves_to_the_uniform_component(change: tuple[int, int, float]) -> None:
    row, column, value = change
    before = four()
    before.covariances[1, row, column] = value
    after = before.without_degenerate()
    assert after.tile_ids.tolist() == [7, -1, 5]
    assert after.uniform_weight == pytest.approx(0.2 + 0.4)


@pytest.mark.parametrize("coordinate", range(4))
def test_hypothesis_with_mean_not_finite_becomes_uniform(coordinate: int) -> None:
    before = four()
    before.means[3, coordinate] = math.inf
    assert before.without_degenerate().tile_ids.tolist() == [7, 3, -1]


def test_hypotheses_that_are_wide_but_usable_stay() -> None:
    before = four()
    before.covariances[0, 0, 0] = 0.99999999e14
    before.covariances[1, 3, 3] = 0.0  # the scale may be known exactly
    before.covariances[2, 0, 1] = before.covariances[2, 1, 0] = 8.99  # long and narrow
    assert before.without_degenerate() is before


def test_poses_become_hypotheses_with_an_odometry_of_unknown_scale() -> None:
    poses, covariances = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), np.arange(18.0).reshape(2, 3, 3)
    means, whole = with_scale(poses, covariances, 0.5)
    np.testing.assert_array_equal(means, [[1, 2, 3, 0], [4, 5, 6, 0]])
    assert whole.shape == (2, 4, 4)
    np.testing.assert_array_equal(whole[:, :3, :3], covariances)
    np.testing.assert_array_equal(whole[:, 3], [[0, 0, 0, 0.25]] * 2)
    np.testing.assert_array_equal(whole[:, :3, 3], np.zeros((2, 3)))


def test_hypothesis_of_a_pose_has_no_tile_no_support_and_wrapped_yaw() -> None:
    covariance = np.diag([4.0, 9.0, 0.01])
    belief = hypothesis(Pose2(1.0, 2.0, 2 * math.pi + 0.5), covariance, 0.05, 0.2)
    np.testing.assert_array_equal(belief.weights, [0.8])
    np.testing.assert_allclose(belief.means, [[1.0, 2.0, 0.5, 0.0]], atol=1e-12)
    np.testing.assert_allclose(belief.covariances, [np.diag([4.0, 9.0, 0.01, 0.0025])])
    assert (belief.support.tolist(), belief.tile_ids.tolist(), belief.uniform_weight) == ([0.0], [-1], 0.2)


def test_hypothesis_of_a_pose_has_all_the_weight_by_default() -> None:
    belief = hypothesis(Pose2(0.0, 0.0, 0.0), np.eye(3), 0.1)
    assert (belief.weights.tolist(), belief.uniform_weight) == ([1.0], 0.0)


# Reduction ------------------------------------------------------------------------------------------------------------


def at(*places: tuple[float, float, float], weights: list[float], sigma: float = 1.0) -> Belief:
    """Hypotheses at places (east, north, yaw) with covariance sigma² in all; the rest of the weight is uniform."""
    count = len(places)
    means = np.array([(*place, 0.01 * i) for i, place in enumerate(places)])
    covariances = np.tile(sigma**2 * np.eye(4), (count, 1, 1))
    return Belief(np.array(weights), means, covariances, np.arange(float(count)), np.arange(count), 1 - sum(weights))


def merged_by_hand(members: list[int], belief: Belief) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Weight, mean, covariance and support of a group, yaw unwrapped about the first of them."""
    share = belief.weights[members] / belief.weights[members].sum()
    states = belief.means[members].copy()
    states[:, 2] = states[0, 2] + wrap_angle(states[:, 2] - states[0, 2])
    mean = share @ states
    covariance = sum(
        part * (belief.covariances[i] + np.outer(state - mean, state - mean))
        for part, i, state in zip(share, members, states, strict=True)
    )
    mean[2] = wrap_angle(float(mean[2]))
    return float(belief.weights[members].sum()), mean, covariance, float(share @ belief.support[members])


def test_group_becomes_its_moments_under_the_heaviest_ones_tile() -> None:
    """Two groups across the wrap of the yaw; the second is heavier as a whole, and comes first."""
    belief = at(
        (0, 0, math.pi - 0.1),
        (50, 0, 1.0),
        (50.5, 0.5, 1.1),
        (0.5, 0.2, -math.pi + 0.1),
        (50, 0.2, 0.9),
        weights=[0.3, 0.2, 0.15, 0.05, 0.1],
    )
    found = reduce(belief, merge_distance2=1.0, limit=10)
    assert len(found) == 2
    assert found.tile_ids.tolist() == [1, 0]
    assert found.uniform_weight == pytest.approx(0.2)
    for row, members in enumerate(([1, 2, 4], [0, 3])):
        weight, mean, covariance, support = merged_by_hand(members, belief)
        assert found.weights[row] == pytest.approx(weight)
        np.testing.assert_allclose(found.means[row], mean, atol=1e-12)
        np.testing.assert_allclose(found.covariances[row], covariance, atol=1e-12)
        assert found.support[row] == pytest.approx(support)


def test_similar_is_within_the_distance_of_both_and_of_like_volume() -> None:
    """Squared distances 0.81 and 1.21 about a limit of 1; the volume of three dimensions differs by σ³."""
    near, far = at((0, 0, 0), (0.9, 0, 0), weights=[0.6, 0.4]), at((0, 0, 0), (1.1, 0, 0), weights=[0.6, 0.4])
    assert len(reduce(near, merge_distance2=1.0, limit=10)) == 1
    assert len(reduce(far, merge_distance2=1.0, limit=10)) == 2
    for sigma, count in ((1.3, 1), (1.5, 2), (1 / 1.3, 1), (1 / 1.5, 2)):  # 3 ln σ = ±0.79 and ±1.22
        other = at((0, 0, 0), (0, 0, 0), weights=[0.6, 0.4])
        other.covariances[1] *= sigma**2
        assert len(reduce(other, merge_distance2=1.0, limit=10)) == count
    # Near by the wide one's measure, far by the narrow one's.
    skew = at((0, 0, 0), (2.0, 0, 0), weights=[0.6, 0.4])
    skew.covariances[1] = np.diag([9.0, 1 / 3, 1 / 3, 1.0])
    assert len(reduce(skew, merge_distance2=1.0, limit=10)) == 2


def test_reduce_merges_no_hypothesis_into_a_merged_one() -> None:
    """A chain of neighbours 0.9 apart: the second joins the first, so the third stays for itself."""
    found = reduce(at((0, 0, 0), (0.9, 0, 0), (1.8, 0, 0), weights=[0.5, 0.3, 0.2]), merge_distance2=1.0, limit=10)
    np.testing.assert_allclose(found.weights, [0.8, 0.2])
    assert found.tile_ids.tolist() == [0, 2]


def test_reduce_of_no_and_of_few_hypotheses_changes_nothing() -> None:
    nothing = uniform()
    assert reduce(nothing, merge_distance2=1.0, limit=5) is nothing
    belief = at((0, 0, 0), (9, 0, 0), weights=[0.2, 0.7])
    found = reduce(belief, merge_distance2=1.0, limit=2)
    np.testing.assert_allclose(found.weights, [0.7, 0.2])
    np.testing.assert_allclose(found.means, belief.means[::-1])
    assert found.uniform_weight == pytest.approx(0.1)


@pytest.mark.parametrize(("apart", "merge"), [(3.0, True), (15.0, True), (17.0, False)])
def test_too_many_light_ones_are_merged_more_and_more_coarsely(apart: float, merge: bool) -> None:
    """Four heavy ones far from each other, and three light ones in a row: a limit of six merges two of the light ones,
    at up to 16 times the distance, or lets go of the lightest."""
    places = [(1000.0 * i, 0.0, 0.0) for i in range(1, 5)] + [(0.0, 0.0, 0.0), (apart, 0.0, 0.0), (500.0, 0.0, 0.0)]
    belief = at(*places, weights=[0.2, 0.19, 0.18, 0.17, 0.04, 0.03, 0.02])
    found = reduce(belief, merge_distance2=1.0, limit=6)
    assert len(found) == 6
    np.testing.assert_allclose(found.weights[:4], [0.2, 0.19, 0.18, 0.17])
    np.testing.assert_allclose(found.weights[4:], [0.07, 0.02] if merge else [0.04, 0.03])
    assert found.uniform_weight == pytest.approx(0.17 if merge else 0.19)
    assert found.total == pytest.approx(1.0)


def test_heavy_half_is_never_merged_more_coarsely() -> None:
    """Heavy ones three standard deviations apart, light ones too: only the light ones may become one."""
    places = [(3.0 * i, 0.0, 0.0) for i in range(4)] + [(500.0 + 3.0 * i, 0.0, 0.0) for i in range(4)]
    weights = [0.2, 0.18, 0.16, 0.14, 0.05, 0.04, 0.03, 0.02]
    found = reduce(at(*places, weights=weights), merge_distance2=1.0, limit=7)
    heavy = found.means[:, 0] < 100
    np.testing.assert_allclose(np.sort(found.weights[heavy])[::-1][:3], [0.2, 0.18, 0.16])
    assert found.weights[~heavy].sum() == pytest.approx(0.14)
    assert found.uniform_weight == pytest.approx(0.18)


def test_steps_of_coarser_merging_are_squared_distances() -> None:
    assert reduction.COARSER == (4.0, 16.0, 64.0, 256.0)


# Evidence -------------------------------------------------------------------------------------------------------------

REGION = Region(
    LocalFrame(Datum(47.0, 8.0, 0.0)),
    area_m2=40_000.0,
    tile_side_m=60.0,
    centres_m=np.array([[0.0, 0.0], [100.0, 50.0], [7.0, 9.0]]),
)
CALIBRATION = Calibration(
    tile_temperature=0.2, minimum_score=0.5, covariance_scale=0.5, position_floor_m=0.3, heading_lever_m=2.0
)
CONFIG = TrackerConfig(outlier=0.1, searched_outlier=0.25)


def one_pixel(tile_id: int, row: int, column: int, heading: Heading | None = None) -> TileDistribution:
    """D of 12 × 12 pixels of 5 m with everything in one of them."""
    probability = np.zeros((12, 12), np.float32)
    probability[row, column] = 1.0
    east_m, north_m = REGION.centres_m[tile_id]
    return TileDistribution(tile_id, float(east_m), float(north_m), 5.0, probability, heading)


def observation(heading: Heading, *distributions: TileDistribution, scores: tuple[float, ...]) -> Observation:
    k = len(scores)
    order = [d.tile_id for d in distributions]
    order += [tile for tile in (1, 0, 2) if tile not in order]
    matches = Matches(
        np.array(order[:k]), np.array(scores, np.float32), np.zeros(k, np.float32), np.zeros((k, 1, 1)), np.arange(k)
    )
    return Observation(0, matches, distributions, heading, GroundFeatures(np.zeros(4, np.float32), (), {}))


def softmax(scores: tuple[float, ...], rivals: float = 0.0) -> tuple[np.ndarray, float]:
    e = np.exp(np.array(np.float32(scores), float) / 0.2)
    return e / (e.sum() + rivals), rivals / (e.sum() + rivals)


def found(seen: Observation, **options: Any) -> Evidence:
    return evidence_of(seen, CALIBRATION, CONFIG, REGION, **options)


def test_evidence_with_a_given_heading() -> None:
    """A decoded tile gives its pixel, the two others the moments of their squares, all with the given heading."""
    seen = observation(Heading(0.7, 0.04, HeadingSource.IMU), one_pixel(1, 2, 9), scores=(0.9, 0.8, 0.6))
    e = found(seen)
    weights, _ = softmax((0.9, 0.8, 0.6))
    np.testing.assert_allclose(e.weights, 0.9 * weights, rtol=1e-6)
    # Column 9 of 12 is 3.5 pixels east of the middle, row 2 is 3.5 north of it.
    np.testing.assert_allclose(e.means_m, [[100 + 17.5, 50 + 17.5], [0, 0], [7, 9]], atol=1e-9)
    pixel = 0.5 * 25 / 12 + 0.3**2 + 2.0**2 * 0.04
    square = 60.0**2 / 12 + 0.3**2
    np.testing.assert_allclose(e.covariances_m2, [v * np.eye(2) for v in (pixel, square, square)], rtol=1e-9)
    assert e.yaw_rad.tolist() == [0.7] * 3
    assert e.yaw_variance_rad2.tolist() == [0.04] * 3
    assert e.tile_ids.tolist() == [1, 0, 2]
    assert len(e) == 3
    assert (e.open_share, e.near_share) == pytest.approx((0.1, 0.1))
    assert e.assumed_yaw_rad is None
    assert not e.measures_yaw


def test_evidence_within_a_gate_leaves_to_the_rivals_their_share() -> None:
    seen = observation(Heading(0.7, 0.04, HeadingSource.ODOMETRY), one_pixel(1, 2, 9), scores=(0.9, 0.8))
    e = found(seen, log_rivals=4.0, new_share=0.25)
    weights, outside = softmax((0.9, 0.8), math.exp(4.0))
    np.testing.assert_allclose(e.weights, 0.9 * weights, rtol=1e-6)
    assert e.open_share == pytest.approx(0.1 + 0.9 * outside, rel=1e-6)
    assert e.near_share == pytest.approx(0.1)
    assert e.weights.sum() + e.open_share == pytest.approx(1.0)
    # A quarter of D's error is new: four times the covariance. That of an undecoded tile stays.
    assert e.covariances_m2[0, 0, 0] == pytest.approx(4 * (0.5 * 25 / 12 + 0.09 + 4 * 0.04))
    assert e.covariances_m2[1, 0, 0] == pytest.approx(300.09)


def test_doubt_about_the_stamp_widens_an_image_along_the_way_and_the_tracker_trusts_it_less_there() -> None:
    """A vehicle that drives north at 10 m/s, stamps that are wrong by 0.2 s: σ = 2 m along north."""
    doubt = np.diag([(10 * 0.2) ** 2, 0.0, 0.0])  # in base_link: forward, left, yaw
    seen = observation(Heading(math.pi / 2, 1e-4, HeadingSource.IMU), one_pixel(1, 2, 9), scores=(0.9,))
    pixel = 0.5 * 25 / 12 + 0.3**2 + 2.0**2 * 1e-4
    e = found(seen, stamp_covariance=doubt, new_share=0.5)
    # It is no error of D: however little of the image is new, it is there once.
    np.testing.assert_allclose(e.covariances_m2[0], np.diag([2 * pixel, 2 * pixel + 4.0]), rtol=1e-6, atol=1e-9)
    # Where the vehicle was at the exposure does not depend on it.
    cluster = dominant_cluster(hypothesis(Pose2(117.5, 67.5, math.pi / 2), np.diag([4.0, 4.0, 1e-4]), 0.01), 10.0)
    assert cluster is not None
    for stamp_covariance in (None, doubt):
        e = found(seen, stamp_covariance=stamp_covariance, new_share=0.5)
        at_exposure = measured_by_image(e, cluster, (0.0, 0.0), inflation=0.5, at_exposure=True)
        assert at_exposure is not None
        np.testing.assert_allclose(at_exposure[1][:2, :2], pixel * np.eye(2), rtol=1e-6, atol=1e-9)
    # The tracker: a Kalman filter's step from what the operator said, 1 m to the south.
    said = np.diag([4.0, 4.0, 1e-4])
    for stamp, added in ((None, 0.0), (StampDoubt(0.04, None, doubt), 4.0)):
        tracker = Tracker(REGION, CALIBRATION, replace(CONFIG, outlier=0.001))
        tracker.set_initial_pose(InitialPose(0, 117.5, 66.5, math.pi / 2, said))
        plan = tracker.plan(NO_MOTION, Heading(math.pi / 2, 1e-4, HeadingSource.IMU), LocalizerConfig(), stamp)
        tracker.update(plan, seen)
        best = tracker.belief.weights.argmax()
        gain = np.array([4 / (4 + pixel), 4 / (4 + pixel + added)])
        np.testing.assert_allclose(np.diag(tracker.belief.covariances[best])[:2], 4 * (1 - gain), rtol=0.02)
        np.testing.assert_allclose(tracker.belief.means[best, :2], [117.5, 66.5 + gain[1]], atol=0.02)


def test_components_widen_with_what_is_not_seen_as_answers_do() -> None:
    calibration = replace(CALIBRATION, elevation_widening=math.log(16.0))
    whole = observation(Heading(0.7, 0.04, HeadingSource.IMU), one_pixel(1, 2, 9), scores=(0.9, 0.8))
    partly = replace(whole, seen=Seen(elevation=0.5))
    before, after = (evidence_of(one, calibration, CONFIG, REGION) for one in (whole, partly))
    assert before.covariances_m2[0, 0, 0] == pytest.approx(0.5 * 25 / 12 + 0.09 + 4 * 0.04)
    np.testing.assert_allclose(after.covariances_m2[0], 4 * before.covariances_m2[0], rtol=1e-12)
    # Of a tile that was not decoded nothing but the tile is known anyway.
    np.testing.assert_array_equal(after.covariances_m2[1], before.covariances_m2[1])
    np.testing.assert_array_equal(after.weights, before.weights)


def test_unfamiliar_image_says_less_and_beyond_the_limit_nothing() -> None:
    usual = usual_features([np.random.default_rng(0).standard_normal((50, 2))])
    calibration = replace(
        CALIBRATION,
        confidence=Confidence(unfamiliar_weight=-2.0),
        familiarity=Familiarity(usual, usual, ground_limit=2.0, aerial_limit=2.0),
    )
    heading = Heading(0.7, 0.04, HeadingSource.IMU)
    seen = observation(heading, one_pixel(1, 2, 9), scores=(0.9, 0.8, 0.6))
    for distances, odds in ((None, 9.0), (Distances(0.9, 1.0), 9.0), (Distances(1.5, 0.2), 9.0 / math.e)):
        e = evidence_of(replace(seen, distances=distances), calibration, CONFIG, REGION)
        assert e.open_share == pytest.approx(1 / (1 + odds))
        assert e.weights.sum() == pytest.approx(odds / (1 + odds))
    tracker = Tracker(REGION, calibration, CONFIG)
    tracker.set_initial_pose(InitialPose(0, 117.5, 67.5, 0.7, np.diag([4.0, 4.0, 0.04])))
    plan = tracker.plan(NO_MOTION, heading, LocalizerConfig())
    result = tracker.update(plan, replace(seen, distances=Distances(0.5, 2.1)))
    assert isinstance(result, Rejection)
    assert result.reason is RejectionReason.UNFAMILIAR
    assert "the aerial imagery is 2.10 times as far" in result.detail
    assert tracker.belief is plan.belief
    assert tracker.status.images == 1


def test_evidence_with_a_searched_heading_has_a_heading_of_each_tile() -> None:
    """The belief in the peak is 1 − variance / (π²/3); what is not in it goes to the tile without heading."""
    sharp = Heading(0.2, 0.001, HeadingSource.SEARCH)
    doubtful = Heading(-1.0, 0.25 * TURN_VARIANCE, HeadingSource.SEARCH)
    seen = observation(sharp, one_pixel(1, 2, 9), one_pixel(0, 6, 5, doubtful), scores=(0.9, 0.8, 0.6))
    e = found(seen)
    weights, _ = softmax((0.9, 0.8, 0.6))
    right = [1 - 0.001 / TURN_VARIANCE, 0.75]
    expected = [
        weights[0] * right[0],
        weights[1] * right[1],
        weights[0] * (1 - right[0]),
        weights[1] * 0.25,
        weights[2],
    ]
    np.testing.assert_allclose(e.weights, 0.75 * np.array(expected), rtol=1e-6)
    assert e.tile_ids.tolist() == [1, 0, 1, 0, 2]
    assert e.yaw_rad[:2].tolist() == [0.2, -1.0]
    eight_degrees = math.radians(8.0) ** 2
    np.testing.assert_allclose(e.yaw_variance_rad2, [0.001, eight_degrees, *[TURN_VARIANCE] * 3])
    # The variance of the heading about its peak widens the place; column 5 and row 6 are half a pixel off the middle.
    for row, (variance, place) in enumerate(((0.001, (117.5, 67.5)), (eight_degrees, (-2.5, -2.5)))):
        np.testing.assert_allclose(e.means_m[row], place, atol=1e-9)
        assert e.covariances_m2[row, 1, 1] == pytest.approx(0.5 * 25 / 12 + 0.09 + 4 * variance)
    assert e.measures_yaw
    assert (e.open_share, e.near_share) == pytest.approx((0.25, 0.25))


def test_search_that_found_no_heading_keeps_a_twentieth_of_its_peak() -> None:
    nowhere = Heading(0.2, 2 * TURN_VARIANCE, HeadingSource.SEARCH)
    e = found(observation(nowhere, one_pixel(1, 2, 9), scores=(0.9,)))
    np.testing.assert_allclose(e.weights, [0.75 * 0.05, 0.75 * 0.95])
    np.testing.assert_allclose(e.yaw_variance_rad2, [math.radians(8.0) ** 2, TURN_VARIANCE])


@pytest.mark.parametrize(
    ("score", "source", "outlier"),
    [
        (0.5, HeadingSource.IMU, 0.1),  # the minimum itself is enough
        (0.4375, HeadingSource.IMU, 0.8),
        (0.4375, HeadingSource.SEARCH, 0.8),
        (0.5, HeadingSource.SEARCH, 0.25),
    ],
)
def test_evidence_of_a_score_below_the_minimum_has_open_share_0_8(
    score: float, source: HeadingSource, outlier: float
) -> None:
    e = found(observation(Heading(0.0, 0.01, source), one_pixel(1, 2, 9), scores=(score, 0.25)))
    assert (e.open_share, e.near_share) == pytest.approx((outlier, outlier))
    assert e.weights.sum() == pytest.approx(1 - outlier)


def test_outlier_share_above_that_of_low_scores_stays() -> None:
    seen = observation(Heading(0.0, 0.01, HeadingSource.IMU), one_pixel(1, 2, 9), scores=(0.1,))
    config = replace(CONFIG, outlier=0.9)
    assert evidence_of(seen, CALIBRATION, config, REGION).near_share == pytest.approx(0.9)


def test_evidence_names_an_assumed_heading_and_bounds_its_variance() -> None:
    e = found(observation(Heading(1.3, 1e-9, HeadingSource.TRACK), one_pixel(1, 2, 9), scores=(0.9,)))
    assert e.assumed_yaw_rad == 1.3
    assert e.yaw_variance_rad2.tolist() == [1e-6]
    wide = found(observation(Heading(1.3, 99.0, HeadingSource.IMU), one_pixel(1, 2, 9), scores=(0.9,)))
    assert wide.yaw_variance_rad2 == pytest.approx([TURN_VARIANCE])


@pytest.mark.parametrize(
    ("source", "outside_ratio", "fit"),
    [
        (HeadingSource.TRACK, 0.05, 1.0),  # looks as it should: nothing against the heading, and nothing for it
        (HeadingSource.TRACK, 0.0, 1.0),  # of a bundle that does not know
        (HeadingSource.TRACK, 8.0, 0.125),
        (HeadingSource.TRACK, 1e9, 0.01),  # one image says only so much
        (HeadingSource.IMU, 8.0, 1.0),
        (HeadingSource.SEARCH, 8.0, 1.0),
    ],
)
def test_evidence_weighs_a_heading_of_the_track_by_how_the_image_looks(
    source: HeadingSource, outside_ratio: float, fit: float
) -> None:
    seen = observation(Heading(0.0, 0.01, source), one_pixel(1, 2, 9), scores=(0.9,))
    assert evidence_of(seen, CALIBRATION, CONFIG, REGION, outside_ratio=outside_ratio).heading_fit == pytest.approx(fit)


def test_tile_weights_where_nothing_is_known() -> None:
    weights, outside = tile_weights([], 0.2)
    assert (weights.tolist(), outside) == ([], 1.0)
    weights, outside = tile_weights([], 0.2, 3.0)
    assert (weights.tolist(), outside) == ([], 1.0)
    # Logits of thousands, as a small temperature makes them, stay finite.
    weights, outside = tile_weights([1000.0, 999.9], 0.1, 9999.0)
    np.testing.assert_allclose([*weights, outside], np.array([1.0, math.exp(-1), math.exp(-1)]) / (1 + 2 / math.e))


def test_rival_evidence_by_hand() -> None:
    """Logits 2, 1, 0: λ = 1, so the integral over ten tiles is ln(10 / 3). Logits 1, 0.5, 0: λ = 0.5."""
    e = math.e
    assert log_evidence_of_all(np.array([2.0, 1.0, 0.0]), 10) == pytest.approx(
        math.log(e**2 + e + 1 + 3 * math.log(10 / 3))
    )
    integral = ((10 / 3) ** 0.5 - 1) / 0.5
    assert log_evidence_of_all(np.array([1.0, 0.5, 0.0]), 10) == pytest.approx(math.log(e + e**0.5 + 1 + 3 * integral))
    # All tiles are known, or more than the region has: nothing is added.
    for tiles in (3, 2, 0):
        assert log_evidence_of_all(np.array([2.0, 1.0, 0.0]), tiles) == pytest.approx(math.log(e**2 + e + 1))
    assert log_evidence_of_all(np.zeros(0), 10) == -math.inf
