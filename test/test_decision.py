"""Answer, covariance, ambiguity and gates, on distributions worked by hand and on any that hypothesis finds."""

import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unifygeo_ros.core.errors import BundleError
from unifygeo_ros.core.geodesy import Datum, LocalFrame
from unifygeo_ros.core.records import (
    Fix,
    GroundFeatures,
    Heading,
    HeadingSource,
    Matches,
    Observation,
    Prior,
    Query,
    Rejection,
    RejectionReason,
    Seen,
    TileDistribution,
)
from unifygeo_ros.inference.bundle import Calibration, Clues, Confidence
from unifygeo_ros.localization.config import CameraMount, LocalizerConfig
from unifygeo_ros.localization.decision import (
    answer,
    decide,
    mass_within,
    match_peaks_m,
    most_probable_position,
    second_moment_m2,
    tile_beliefs,
)
from unifygeo_ros.localization.decoding import probabilities

SIDE_M, PIXELS, CELLS = 64.0, 32, 8  # pixels of 2 m, cells of 8 m
CALIBRATION = Calibration(tile_temperature=0.1, position_floor_m=0.5)
FRAME = LocalFrame(Datum(48.5, 9.0))
NORTH = Heading(math.pi / 2, 0.0, HeadingSource.CONSTANT)


def distribution(mass, tile_id=0, centre=(0.0, 0.0)):
    """D from {(row, column): mass}."""
    probability = np.zeros((PIXELS, PIXELS), np.float32)
    for place, value in mass.items():
        probability[place] = value
    return TileDistribution(tile_id, *centre, SIDE_M / PIXELS, probability)


def gaussian(east, north, covariance, tile_id=0):
    pixels = (np.arange(PIXELS) - (PIXELS - 1) / 2) * SIDE_M / PIXELS
    away = np.stack(np.meshgrid(pixels - east, -pixels - north), axis=-1)
    density = np.exp(-0.5 * np.einsum("rci,ij,rcj->rc", away, np.linalg.inv(covariance), away))
    return TileDistribution(tile_id, 0.0, 0.0, SIDE_M / PIXELS, (density / density.sum()).astype(np.float32))


def matches_of(scores, peak_cells):
    """Candidates 0, 1, … with their scores; each one's M⁰ peaks in its cell."""
    maps = np.zeros((len(scores), CELLS, CELLS), np.float32)
    for place, cell in enumerate(peak_cells):
        maps[place][cell] = 0.5
    scores = np.array(scores, np.float32)
    ids = np.arange(len(scores))
    return Matches(ids, scores, scores - 0.5, maps, ids)


def observed(distributions, matches=None, heading=NORTH):
    distributions = distributions if isinstance(distributions, tuple) else (distributions,)
    return Observation(
        5,
        matches or matches_of([1.0], [(4, 4)]),
        distributions,
        heading,
        GroundFeatures(np.zeros(4, np.float32), (), {}),
    )


def answered(observation, centres=((0.0, 0.0),), config=None, calibration=CALIBRATION):
    return answer(observation, np.array(centres), SIDE_M, config or LocalizerConfig(), calibration)


def decided(
    observation,
    prior=None,
    config=None,
    mount=None,
    centres=((0.0, 0.0),),
    calibration=CALIBRATION,
    stamp_covariance=None,
):
    config = config or LocalizerConfig()
    found = answered(observation, centres, config, calibration)
    return decide(
        observation,
        found,
        Query(prior, stamp_covariance=stamp_covariance),
        config,
        calibration,
        mount or CameraMount(),
        FRAME,
    )


def test_most_probable_position_is_a_pixel_centre():
    # Row 0 is the northern edge: its centres are 31 m north of the tile's centre.
    d = distribution({(0, 31): 0.6, (31, 0): 0.4}, centre=(100.0, 200.0))
    np.testing.assert_allclose(most_probable_position(d), [131.0, 231.0])


def test_answer_position_is_refined_by_neighbouring_pixels():
    # A quarter of the mass one column (2 m) to the east and one row to the south; (10, 10) is at (−11, 11).
    d = distribution({(10, 10): 0.6, (11, 11): 0.2, (20, 20): 0.2})
    np.testing.assert_allclose(most_probable_position(d), [-11.0 + 0.5, 11.0 - 0.5], atol=1e-6)
    # On the edge one side is missing: nothing is refined across it, along it as ever.
    d = distribution({(0, 10): 0.6, (1, 11): 0.2, (0, 11): 0.2})
    np.testing.assert_allclose(most_probable_position(d), [-11.0 + 0.5, 31.0], atol=1e-6)


@pytest.mark.parametrize(("row", "column", "toward"), [(1, 1, -1), (30, 30, 1)])
def test_answer_is_refined_up_to_the_last_pixel_but_one(row, column, toward):
    # A quarter of the mass on the tile's corner pixel: half a metre towards it in each direction.
    d = distribution({(row, column): 0.6, (row + toward, column + toward): 0.2, (20, 20): 0.2})
    middle = 2.0 * (column - 15.5)
    np.testing.assert_allclose(most_probable_position(d), [middle + 0.5 * toward, -middle - 0.5 * toward], atol=1e-6)


def test_second_moment_is_about_the_answer_in_metres():
    # Half the mass at the answer, half 2 columns (4 m) east and 1 row (2 m) south.
    d = distribution({(10, 10): 0.5, (11, 12): 0.5})
    east, north = most_probable_position(d)
    pixel = np.eye(2) * 2.0**2 / 12
    np.testing.assert_allclose(second_moment_m2(d, east, north, 5.0) - pixel, [[8.0, -4.0], [-4.0, 2.0]], atol=1e-5)
    # √20 m away: further than 4 m.
    np.testing.assert_allclose(second_moment_m2(d, east, north, 4.0), pixel, atol=1e-5)


def test_position_covariance_of_a_gaussian_is_its_own():
    covariance = np.array([[30.0, 12.0], [12.0, 20.0]])
    d = gaussian(1.0, 1.0, covariance)
    np.testing.assert_allclose(second_moment_m2(d, 1.0, 1.0, math.inf), covariance, rtol=0.02)


def test_position_covariance_at_the_tile_edge_keeps_the_spread():
    variance = np.diag([36.0, 36.0])
    at_edge = gaussian(31.0, 0.0 + 1.0, variance)
    east, north = most_probable_position(at_edge)
    assert (east, north) == (31.0, 1.0)
    # The half that is left has the same second moment about its peak (up to the peak's own column being counted whole).
    assert second_moment_m2(at_edge, east, north, math.inf)[0, 0] == pytest.approx(36.0, rel=0.2)


def test_answer_radius_below_a_pixel_holds_the_answers_pixel():
    d = distribution({(10, 10): 0.5, (11, 11): 0.5})
    east, north = most_probable_position(d)
    assert np.linalg.eigvalsh(second_moment_m2(d, east, north, 0.1))[0] > 0


def test_fix_covariance_sums_spread_floor_and_heading_error():
    calibration = dataclasses.replace(CALIBRATION, covariance_scale=0.6, heading_lever_m=3.0)
    found = answered(
        observed(distribution({(16, 16): 0.9, (2, 2): 0.1}), heading=Heading(0.0, 0.04, HeadingSource.CONSTANT)),
        calibration=calibration,
    )
    np.testing.assert_allclose(found.covariance_m2, np.eye(2) * (0.6 * 2.0**2 / 12 + 0.5**2 + 3.0**2 * 0.04), rtol=1e-6)
    assert found.ambiguity == pytest.approx(0.1)


def test_mass_near_a_point():
    d = distribution({(16, 16): 0.5, (16, 18): 0.3, (16, 25): 0.2})  # 4 m and 18 m away
    east, north = most_probable_position(d)
    assert mass_within(d, east, north, 3.9) == pytest.approx(0.5)
    assert mass_within(d, east, north, 4.0) == pytest.approx(0.8)


def test_confidence_allows_that_all_candidates_are_wrong():
    """Bias −ln 3: even odds among the candidates are odds of one to three. Rivals keep theirs against the answer."""
    calibration = dataclasses.replace(CALIBRATION, confidence=Confidence(bias=-math.log(3.0)))
    d = distribution({(16, 16): 0.5, (4, 4): 0.5})
    found = answered(observed(d), calibration=calibration)
    assert found.clues.belief == pytest.approx(0.5)
    assert found.ambiguity == pytest.approx(0.75)
    assert [h.weight for h in found.hypotheses] == pytest.approx([0.25, 0.25])
    sure = dataclasses.replace(CALIBRATION, confidence=Confidence(bias=math.log(3.0)))
    assert [h.weight for h in answered(observed(d), calibration=sure).hypotheses] == pytest.approx([0.75, 0.25])


def test_confidence_of_a_searched_heading_has_its_own_constants():
    calibration = dataclasses.replace(CALIBRATION, searched_confidence=Confidence(bias=-2.0, score_weight=1.0))
    d = distribution({(16, 16): 0.5, (4, 4): 0.5})
    searched = dataclasses.replace(d, heading=NORTH)
    assert answered(observed(d), calibration=calibration).ambiguity == pytest.approx(0.5)
    # The score of `observed` is 1: the exponent is −2 + 0 + 1.
    assert answered(observed(searched), calibration=calibration).ambiguity == pytest.approx(1 / (1 + math.exp(-1.0)))


def test_off_map_probability_is_a_third_hypothesis():
    """right : wrong : outside = 1 : 1/a : (1 − π) / (π b), worked by hand."""
    calibration = dataclasses.replace(
        CALIBRATION,
        confidence=Confidence(bias=math.log(4.0), belief_weight=0.0),
        on_map_confidence=Confidence(bias=math.log(2.0), belief_weight=0.0),
        searched_on_map_confidence=Confidence(bias=math.log(0.5), belief_weight=0.0),
    )
    d = distribution({(16, 16): 1.0})
    found = answered(observed(d), calibration=calibration, config=LocalizerConfig(on_map_prior=0.8))
    # 1 : 1/4 : (0.2 / 0.8) / 2 = 8 : 2 : 1
    assert (found.ambiguity, found.outside) == pytest.approx((3 / 11, 1 / 11))
    found = answered(observed(d), calibration=calibration, config=LocalizerConfig(on_map_prior=1.0))
    assert (found.ambiguity, found.outside) == pytest.approx((1 / 5, 0.0))
    searched = dataclasses.replace(d, heading=NORTH)  # searched_confidence: as sure as the belief, which is 1 − 10⁻⁴
    found = answered(observed(searched), calibration=calibration, config=LocalizerConfig(on_map_prior=0.5))
    assert found.outside == pytest.approx(2 / 3, abs=1e-3)


def test_clues_are_belief_score_spread_and_agreeing_candidates():
    matches = matches_of(
        [1.0, 1.0, 1.0], [(4, 4), (4, 0), (0, 0)]
    )  # as below: candidate 1 agrees, candidate 2 does not
    two = distribution({(16, 16): 0.5, (16, 17): 0.5})
    found = answered(observed(two, matches), centres=((0.0, 0.0), (32.0, 0.0), (0.0, 32.0)))
    assert (found.clues.belief, found.clues.score, found.clues.agreeing) == pytest.approx((2 / 3, 1.0, 1.0))
    assert found.clues.spread == pytest.approx(math.log(2 * 2.0**2))  # two pixels of 2 m
    four = distribution({(16, 16): 0.25, (16, 17): 0.25, (17, 16): 0.25, (17, 17): 0.25})
    assert answered(observed(four)).clues.spread == pytest.approx(math.log(4 * 2.0**2))


def test_log_odds_add_each_clue_by_its_weight():
    confidence = Confidence(bias=0.5, belief_weight=2.0, score_weight=3.0, spread_weight=-0.25, agreeing_weight=0.125)
    clues = Clues(belief=1 / (1 + math.exp(-1.0)), score=1.5, spread=4.0, agreeing=2.0)
    assert confidence.log_odds(clues) == pytest.approx(0.5 + 2.0 + 4.5 - 1.0 + 0.25)
    with pytest.raises(BundleError, match="spread_weight and unfamiliar_weight at most 0"):
        Confidence(spread_weight=0.1)
    partly = dataclasses.replace(confidence, azimuth_weight=4.0, elevation_weight=-2.0)
    seen = dataclasses.replace(clues, blind_azimuth=0.25, blind_elevation=0.75)
    assert partly.log_odds(seen) - confidence.log_odds(seen) == pytest.approx(1.0 - 1.5)
    faded = dataclasses.replace(partly, azimuth_fade=math.log(16.0), elevation_fade=0.0, unseen_bias=-3.0)
    assert faded.log_odds(seen) == pytest.approx(0.5 * partly.log_odds(seen) + 0.5 * -3.0)
    assert faded.log_odds(clues) == confidence.log_odds(clues)
    assert dataclasses.replace(partly, elevation_fade=math.log(2.0) / 0.75).log_odds(seen) == pytest.approx(
        0.5 * partly.log_odds(seen)
    )
    with pytest.raises(BundleError, match="must be finite"):
        Confidence(azimuth_fade=-0.1)
    with pytest.raises(BundleError, match="must be finite"):
        Confidence(azimuth_weight=math.inf)
    calibration = Calibration(confidence=confidence, on_map_confidence=Confidence(bias=1.0, belief_weight=0.0))
    ratio = calibration.outside_ratio(clues, searched=False)
    assert ratio == pytest.approx(math.exp(-1.0) / (1 + math.exp(-6.25)))
    assert calibration.outside_ratio(clues, searched=False, near=True) == ratio  # a bundle of before
    near = dataclasses.replace(calibration, near_on_map_confidence=Confidence(bias=2.0, belief_weight=0.0))
    assert near.outside_ratio(clues, searched=False, near=True) == pytest.approx(math.exp(-2.0))
    assert near.outside_ratio(clues, searched=False) == ratio
    assert near.outside_ratio(clues, searched=True, near=True) == near.outside_ratio(clues, searched=True)
    assert calibration.place_log_odds(clues) == 1.0
    assert Calibration(confidence=confidence).place_log_odds(clues) == pytest.approx(
        6.25
    )  # knows no places off the map


def test_covariance_widens_with_the_elevations_that_are_not_seen_and_nothing_else_changes():
    observation = observed(gaussian(3.0, -2.0, np.array([[9.0, 4.0], [4.0, 16.0]])))
    partly = dataclasses.replace(observation, seen=Seen(azimuth=0.5, elevation=0.75))
    calibration = dataclasses.replace(CALIBRATION, elevation_widening=math.log(81.0))
    whole, widened = answered(observation, calibration=calibration), answered(partly, calibration=calibration)
    np.testing.assert_array_equal(whole.covariance_m2, answered(observation).covariance_m2)
    # exp(ln 81 · 1/4) = 3, whatever share of the azimuths is seen
    np.testing.assert_allclose(widened.covariance_m2, 3.0 * whole.covariance_m2, rtol=1e-12)
    assert (widened.east_m, widened.north_m, widened.ambiguity) == (whole.east_m, whole.north_m, whole.ambiguity)
    # A bundle of before knows no widening, and none is negative.
    np.testing.assert_array_equal(answered(partly).covariance_m2, whole.covariance_m2)
    with pytest.raises(BundleError, match=r"elevation_widening is -0\.1, must be finite and at least 0"):
        Calibration(elevation_widening=-0.1)
    with pytest.raises(BundleError, match="elevation_widening is nan, must be finite and at least 0"):
        Calibration(elevation_widening=math.nan)


def test_second_mode_adds_ambiguity_and_a_hypothesis():
    d = distribution({(16, 16): 0.6, (16, 17): 0.1, (4, 4): 0.2, (4, 5): 0.05, (28, 28): 0.05})
    found = answered(observed(d))
    assert found.ambiguity == pytest.approx(0.3, abs=1e-6)
    assert [round(h.weight, 3) for h in found.hypotheses] == [0.7, 0.25, 0.05]
    assert (found.hypotheses[0].east_m, found.hypotheses[0].north_m) == pytest.approx((1.0 + 2.0 / 7, -1.0))
    assert (found.hypotheses[1].east_m, found.hypotheses[1].north_m) == (-23.0, 23.0)


def test_candidates_within_the_answer_radius_agree():
    # The answer is at (1, −1). Tile 1 is centred 32 m east: its cell (4, 0) is at (4, −4): agreement. Tile 2's is not.
    matches = matches_of([1.0, 1.0, 1.0], [(4, 4), (4, 0), (0, 0)])
    np.testing.assert_allclose(match_peaks_m(matches, np.array([[0, 0], [32, 0], [0, 32.0]]), SIDE_M)[1], [4.0, -4.0])
    found = answered(observed(distribution({(16, 16): 1.0}), matches), centres=((0.0, 0.0), (32.0, 0.0), (0.0, 32.0)))
    assert found.ambiguity == pytest.approx(1 / 3, abs=1e-6)
    assert [(h.tile_id, round(h.weight, 3)) for h in found.hypotheses] == [(0, 0.667), (2, 0.333)]


@pytest.mark.parametrize(("east_m", "ambiguity"), [(15.6, 0.0), (15.7, 0.5)])
def test_candidate_agrees_within_radius_and_half_a_cell(east_m, ambiguity):
    # 10 m and √2 · 4 m: 15.66 m. The answer is at (1, −1), the middle of cell (4, 4) 4 m east and south of a tile's.
    matches = matches_of([1.0, 1.0], [(4, 4), (4, 4)])
    centres = ((0.0, 0.0), (1.0 + east_m - 4.0, -1.0 + 4.0))
    config = LocalizerConfig(answer_radius_m=10.0)
    found = answered(observed(distribution({(16, 16): 1.0}), matches), centres=centres, config=config)
    assert found.ambiguity == pytest.approx(ambiguity, abs=1e-3)
    rivals = [(h.east_m, h.north_m, h.tile_id) for h in found.hypotheses[1:]]
    np.testing.assert_allclose(rivals, [(1.0 + east_m, -1.0, 1)] if ambiguity else np.zeros((0,)), atol=1e-6)


def test_rivals_at_one_place_are_one_hypothesis_with_both_weights():
    matches = matches_of([1.0, 1.0, 1.0], [(4, 4), (0, 0), (0, 0)])
    found = answered(observed(distribution({(16, 16): 1.0}), matches), centres=((0.0, 0.0), (0.0, 0.0), (3.0, 0.0)))
    assert [(h.tile_id, round(h.weight, 3)) for h in found.hypotheses] == [(0, 0.333), (1, 0.667)]
    assert (found.hypotheses[1].east_m, found.hypotheses[1].north_m) == (-28.0, 28.0)


def test_ambiguity_counts_a_decoded_rival_by_its_distribution():
    matches = matches_of([1.0, 1.0], [(4, 4), (4, 4)])
    first = distribution({(16, 16): 1.0})
    second = distribution({(16, 16): 0.25, (2, 2): 0.75}, tile_id=1)
    found = answered(observed((first, second), matches), centres=((0.0, 0.0), (0.0, 0.0)))
    assert found.ambiguity == pytest.approx(0.375, abs=1e-6)


def test_beliefs_are_the_softmax_of_the_scores():
    beliefs = tile_beliefs(matches_of([1.2, 1.0], [(0, 0), (0, 0)]), 0.1)
    np.testing.assert_allclose(beliefs, [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))], rtol=1e-6)


def test_fix_is_moved_by_the_lever_arm_to_base_link():
    # Facing north, the camera 2 m ahead and 1 m to the left: 2 m north and 1 m west of base_link.
    observation = observed(distribution({(16, 16): 1.0}), heading=Heading(math.pi / 2, 0.01, HeadingSource.CONSTANT))
    fix = decided(observation, mount=CameraMount(x_m=2.0, y_m=1.0))
    assert isinstance(fix, Fix)
    assert (fix.east_m, fix.north_m) == pytest.approx((1.0 + 1.0, -1.0 - 2.0))
    np.testing.assert_allclose(FRAME.map_from_geodetic(fix.latitude_deg, fix.longitude_deg), [2.0, -3.0], atol=1e-6)
    plain = decided(observation)
    # The offset (−1, 2) turns by 0.1 rad: it moves along (−2, −1).
    np.testing.assert_allclose(fix.covariance_m2 - plain.covariance_m2, 0.01 * np.array([[4, 2], [2, 1]]), atol=1e-9)


SHARP = distribution({(16, 16): 1.0})


@pytest.mark.parametrize(
    ("observation", "prior", "config", "reason", "words"),
    [
        (
            observed(SHARP),
            None,
            LocalizerConfig(gate_score=3.5),
            RejectionReason.LOW_SCORE,
            r"1\.000 of the best tile is under 1\.500 .*plus gate_score 3\.5\): .*check that the vehicle is inside",
        ),
        (
            observed(distribution({(16, 16): 0.7, (2, 2): 0.3})),
            None,
            LocalizerConfig(),
            RejectionReason.AMBIGUOUS,
            r"wrong with a probability of 30% \(0%: not on the map, for on_map_prior 0\.5\), above gate_ambiguity 15%",
        ),
        (
            observed(gaussian(1.0, 1.0, np.diag([144.0, 9.0]))),
            None,
            LocalizerConfig(answer_radius_m=60.0),
            RejectionReason.UNCERTAIN,
            "standard deviation 11.* m along the long axis, above gate_sigma_m 10",
        ),
        (
            observed(SHARP, heading=Heading(0.0, 1.0, HeadingSource.IMU)),
            None,
            LocalizerConfig(),
            RejectionReason.NO_HEADING,
            r"heading \(imu\) has a standard deviation of 1\.000 rad",
        ),
        (
            observed(SHARP),
            Prior(21.0, -1.0, np.eye(2) * 9.0),
            LocalizerConfig(),
            RejectionReason.PRIOR_CONFLICT,
            "20.0 m from the prior, Mahalanobis distance 6",
        ),
    ],
)
def test_each_gate_names_value_and_limit(observation, prior, config, reason, words):
    rejection = decided(observation, prior, config)
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, rejection.stamp_ns) == (reason, 5)
    assert re.search(words, rejection.detail), rejection.detail
    assert rejection.hypotheses


def test_doubt_about_the_stamp_widens_the_fix_along_the_way():
    """8 m/s northwards, 0.1 s: 0.8 m along north; 0.5 rad/s: 0.05 rad."""
    observation = observed(gaussian(0.0, 0.0, 4 * np.eye(2)), heading=Heading(math.pi / 2, 1e-4, HeadingSource.IMU))
    way = 0.1 * np.array([8.0, 0.0, 0.5])
    exact = decided(observation)
    late = decided(observation, stamp_covariance=np.outer(way, way))
    np.testing.assert_allclose(late.covariance_m2 - exact.covariance_m2, np.diag([0.0, 0.8**2]), atol=1e-9)
    assert late.yaw_variance_rad2 - exact.yaw_variance_rad2 == pytest.approx(0.05**2)
    assert (late.east_m, late.north_m) == (exact.east_m, exact.north_m)


def test_imagery_error_widens_the_fix_and_counts_for_the_gates():
    """The imagery lies 3 m off in each axis: no image is more accurate on the earth."""
    observation = observed(gaussian(0.0, 0.0, 4 * np.eye(2)))
    exact = decided(observation)
    config = LocalizerConfig(imagery_sigma_m=3.0)
    shifted = decided(observation, config=config)
    np.testing.assert_allclose(shifted.covariance_m2 - exact.covariance_m2, 9.0 * np.eye(2), atol=1e-9)
    assert (shifted.east_m, shifted.yaw_variance_rad2) == (exact.east_m, exact.yaw_variance_rad2)
    refused = decided(observation, config=dataclasses.replace(config, gate_sigma_m=3.0))
    assert (refused.reason, "above gate_sigma_m 3" in refused.detail) == (RejectionReason.UNCERTAIN, True)
    # 10 m from a prior of 1 m: 3.7 standard deviations of √(1 + 4.5) m, not of √(1 + 4.5 + 9) m.
    prior = Prior(10.0, 0.0, np.eye(2))
    assert decided(observation, prior).reason is RejectionReason.PRIOR_CONFLICT
    assert isinstance(decided(observation, prior, config), Fix)


def test_prior_that_agrees_lets_the_fix_pass_unchanged():
    fix = decided(observed(SHARP), Prior(4.0, -1.0, np.eye(2) * 9.0))
    assert isinstance(fix, Fix)
    assert (fix.east_m, fix.north_m) == (1.0, -1.0)  # the prior decides, it does not move


LOGITS = st.one_of(
    hnp.arrays(np.float32, (PIXELS, PIXELS), elements=st.floats(-1e4, 1e4, width=32)),
    hnp.arrays(np.float32, (PIXELS, PIXELS), elements=st.floats(-3, 3, width=32)),
    st.just(np.zeros((PIXELS, PIXELS), np.float32)),
    st.just(np.full((PIXELS, PIXELS), -3e38, np.float32)),
    st.integers(0, PIXELS**2 - 1).map(
        lambda place: np.eye(1, PIXELS**2, place, dtype=np.float32).reshape(PIXELS, -1) * 3e38
    ),
)


@given(LOGITS, st.floats(0.01, 100), st.floats(0, 9), st.floats(-50, 50), st.floats(-50, 50))
@settings(max_examples=150)
def test_covariance_of_random_decoder_outputs_is_positive_definite(logits, temperature, variance, x, y):
    probability = probabilities(logits, temperature)
    assert probability.dtype == np.float32
    assert probability.min() >= 0
    assert probability.sum(dtype=np.float64) == pytest.approx(1.0, abs=1e-4)
    d = TileDistribution(0, 10.0, -20.0, SIDE_M / PIXELS, probability)
    config = LocalizerConfig(gate_ambiguity=1.0, gate_sigma_m=1000.0, gate_heading_sigma_rad=math.pi)
    result = decided(
        observed(d, heading=Heading(1.0, variance, HeadingSource.CONSTANT)),
        config=config,
        mount=CameraMount(x_m=x, y_m=y),
    )
    assert isinstance(result, Fix)
    covariance = result.covariance_m2
    assert np.isfinite(covariance).all()
    assert (covariance == covariance.T).all()
    # Up to the rounding of the largest variance, 50² · 9 m².
    assert np.linalg.eigvalsh(covariance)[0] >= CALIBRATION.position_floor_m**2 * (1 - 1e-6)
    assert 0.0 <= result.ambiguity <= 1.0
    numbers = [result.east_m, result.north_m, result.latitude_deg, result.longitude_deg, result.score]
    assert np.isfinite(numbers).all()
    assert sum(h.weight for h in result.hypotheses) <= 1 + 1e-6
    assert result.hypotheses[0].weight == pytest.approx(1 - result.ambiguity)


def test_probabilities_are_the_softmax():
    logits = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)
    weights = np.exp(np.array([[0.0, 0.5], [1.0, 1.5]]))
    np.testing.assert_allclose(probabilities(logits, 2.0), weights / weights.sum(), rtol=1e-6)
