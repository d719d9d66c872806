"""Confidence: the fit finds the odds that made the outcomes, and answers are counted at the right gate."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize, special

from unifygeo_ros.core.arrays import UInt8
from unifygeo_ros.core.errors import ConfigurationError, InputError
from unifygeo_ros.inference.bundle import MISSING_PARTS, Calibration, Clues, Confidence, load_bundle, log_odds
from unifygeo_ros.inference.familiarity import Familiarity, UsualFeatures, usual_features
from unifygeo_ros.localization.config import CameraMount
from unifygeo_training.confidence import (
    FIELDS_DEG,
    STYLES,
    Gathered,
    Outcomes,
    also_familiar,
    familiarity_of,
    field_mask,
    fit_confidence,
    fit_elevation_widening,
    fit_near,
    fit_on_map,
    gather,
    joined,
    judge,
    near_outcomes,
    opened,
    photographed_outcomes,
    places_elsewhere,
    squared_distances,
    unfamiliar_weights,
    with_missing_weights,
)
from unifygeo_training.streets import TownStreets
from unifygeo_training.towns.pairs import load_town, render_pairs

SHIPPED = Path(__file__).parents[2] / "models" / "towns-atto"


def outcomes_of(
    beliefs: Any,
    scores: Any,
    right: Any,
    *,
    spreads: Any = None,
    agreeing: Any = None,
    outside: Any = None,
    panoramas: Any = None,
    tiles: Any = None,
    blind: Any = None,
    distances2: Any = None,
) -> Outcomes:
    zeros = np.zeros(len(right))
    return Outcomes(
        np.asarray(beliefs),
        np.asarray(scores),
        zeros if spreads is None else spreads,
        zeros if agreeing is None else agreeing,
        zeros[:, None] if panoramas is None else panoramas,
        zeros[:, None] if tiles is None else tiles,
        np.zeros((len(right), 2)) if blind is None else blind,
        zeros if distances2 is None else distances2,
        np.asarray(right, np.bool_),
        np.zeros(len(right), np.bool_) if outside is None else np.asarray(outside, np.bool_),
    )


def probability(confidence: Confidence, clues: Clues) -> float:
    return float(1 / (1 + np.exp(-confidence.log_odds(clues))))


def test_fit_confidence_recovers_the_true_odds() -> None:
    rng = np.random.default_rng(0)
    beliefs, scores = rng.uniform(0.2, 1.0, 40_000), rng.normal(1.2, 0.3, 40_000)
    spreads, agreeing = rng.normal(3.0, 1.0, 40_000), rng.integers(0, 4, 40_000).astype(float)
    true = 1 / (1 + np.exp(-(-1.0 + 0.5 * log_odds(beliefs) + 3.0 * scores - 1.5 * spreads + 0.4 * agreeing)))
    found = fit_confidence(outcomes_of(beliefs, scores, rng.random(40_000) < true, spreads=spreads, agreeing=agreeing))
    weights = (found.belief_weight, found.score_weight, found.spread_weight, found.agreeing_weight)
    assert weights == pytest.approx((0.5, 3.0, -1.5, 0.4), rel=0.15)
    assert found.bias == pytest.approx(-1.0, abs=0.3)


def test_right_against_off_the_map_is_the_ratio_of_the_likelihoods() -> None:
    """Scores on the map N(2, 1), off it N(1, 1): the likelihood ratio is exp(score − 1.5), whatever the counts are.
    With the prior, and the share of right answers on the map, the probabilities come true."""
    rng = np.random.default_rng(3)
    on, off = 30_000, 6_000
    scores = np.concatenate([rng.normal(2.0, 1.0, on), rng.normal(1.0, 1.0, off)])
    right = np.concatenate([rng.random(on) < 0.8, np.zeros(off, bool)])  # by chance, whatever the score
    outside = np.repeat([False, True], [on, off])
    outcomes = outcomes_of(np.full(on + off, 0.5), scores, right, outside=outside)
    on_map = fit_on_map(outcomes)
    assert on_map.score_weight == pytest.approx(1.0, abs=0.06)
    calibration = Calibration(confidence=fit_confidence(outcomes), on_map_confidence=on_map)
    prior = on / (on + off)
    wrong = [calibration.wrong_probabilities(c, searched=False, on_map_prior=prior) for c in outcomes.clues()]
    ambiguity, gone = np.array(wrong).T
    for low in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5):
        some = (scores > low) & (scores <= low + 0.5)
        assert ambiguity[some].mean() == pytest.approx(np.mean(~right[some]), abs=0.02)
        assert gone[some].mean() == pytest.approx(outside[some].mean(), abs=0.02)


@pytest.mark.parametrize("count", [30, 30_000])
def test_constants_of_before_hold_where_the_answers_do_not_tell(count: int) -> None:
    """Answers with the odds ln = −12 + 12 · score: thirty find less than half of that from nothing, thousands find it
    from anywhere."""
    rng = np.random.default_rng(4)
    scores = rng.normal(1.0, 0.2, count)
    right = rng.random(count) < special.expit(-12.0 + 12.0 * scores)
    outside = ~right
    fits: list[Any] = [
        lambda before: fit_confidence(outcomes_of(np.full(count, 0.5), scores, right), before),
        lambda before: fit_on_map(outcomes_of(np.full(count, 0.5), scores, right, outside=outside), before),
    ]
    before = Confidence(bias=-12.0, belief_weight=0.0, score_weight=12.5, spread_weight=-2.0, agreeing_weight=0.5)
    for fitted in fits:
        from_nothing, from_before = fitted(None), fitted(before)
        if count == 30:
            assert from_nothing.score_weight < 6.0
            assert from_before.score_weight == pytest.approx(12.5, abs=1.5)
        else:
            assert (from_nothing.score_weight, from_before.score_weight) == pytest.approx((12.0, 12.0), abs=0.5)
        # Without spreads and agreeing tiles nothing speaks against what was known of them.
        assert (from_before.spread_weight, from_before.agreeing_weight) == pytest.approx((-2.0, 0.5), abs=0.01)


def test_constants_of_missing_parts_of_before_hold_where_all_is_seen() -> None:
    rng = np.random.default_rng(4)
    scores = rng.normal(1.0, 0.3, 200)
    outside = rng.random(200) > special.expit(8 * (scores - 1.0))
    answers = outcomes_of(np.full(200, 0.5), scores, ~outside, outside=outside)
    before = Confidence(0.0, 0.0, 12.0, azimuth_weight=20.0, elevation_weight=12.0, azimuth_fade=1.4, unseen_bias=-9.0)
    known = known_by_one_number()
    found = fit_near(answers, answers, known, before)
    assert [getattr(found, name) for name in MISSING_PARTS] == pytest.approx(
        [getattr(before, name) for name in MISSING_PARTS], abs=0.01
    )
    assert [getattr(fit_near(answers, answers, known), name) for name in MISSING_PARTS] == pytest.approx([0.0] * 5)
    pair = with_missing_weights(answers, known, before, before, (before, before))
    assert [one.azimuth_weight for one in pair] == pytest.approx([20.0, 20.0], abs=0.01)


def test_without_images_off_the_map_there_is_nothing_to_fit() -> None:
    with pytest.raises(InputError, match="no image off the map"):
        fit_on_map(outcomes_of([0.9, 0.9], [1.0, 1.0], [True, True]))


def test_without_images_off_the_map_what_was_known_before_holds() -> None:
    before = Confidence(bias=-12.0, belief_weight=0.0, score_weight=12.5)
    assert fit_on_map(outcomes_of([0.9, 0.9, 0.9], [1.0, 1.0, 0.5], [True, True, False]), before) == before


def test_fit_confidence_without_errors_keeps_the_confidence() -> None:
    beliefs = np.linspace(0.5, 0.99, 50)
    found = fit_confidence(outcomes_of(beliefs, np.full(50, 1.0), np.ones(50)))
    assert all(probability(found, Clues(b, 1.0)) >= b for b in beliefs)


def test_fit_confidence_ignores_an_uninformative_score() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(1.0, 0.3, 5000)
    found = fit_confidence(outcomes_of(np.full(5000, 0.8), scores, scores < 1.0))  # the worse the better
    assert found.score_weight == 0.0
    assert probability(found, Clues(0.8, 1.0)) == pytest.approx(0.5, abs=0.05)


def known_by_one_number() -> Familiarity:
    """Distance of both views: |feature| / 2."""
    usual = UsualFeatures(*(base64.b64encode(np.array([v], "<f4").tobytes()).decode() for v in (0.0, 0.5)))
    return Familiarity(usual, usual, 100.0, 100.0)


def test_weight_of_unfamiliarity_is_that_of_the_odds_which_made_the_outcomes() -> None:
    """On the map ln(odds) = 1 + ln(belief / (1 − belief)) − 0.7 · unfamiliarity; off it unfamiliarity says nothing that
    the base does not say: half of the images are there, with the same clues."""
    rng = np.random.default_rng(5)
    count = 15_000
    beliefs, panoramas, tiles = rng.uniform(0.2, 0.98, count), rng.uniform(0, 6, count), rng.uniform(0, 6, count)
    unfamiliarity = np.maximum(panoramas / 2 - 1, 0) + np.maximum(tiles / 2 - 1, 0)
    right = rng.random(count) < 1 / (1 + np.exp(-(1.0 + log_odds(beliefs) - 0.7 * unfamiliarity)))
    outcomes = outcomes_of(beliefs, np.ones(count), right, panoramas=panoramas[:, None], tiles=tiles[:, None])
    known = known_by_one_number()
    assert [one.unfamiliarity for one in outcomes.clues(known)] == pytest.approx(unfamiliarity.tolist())
    base = Confidence(bias=1.0)
    weight, _ = unfamiliar_weights(outcomes, known, base, base)
    assert weight == pytest.approx(-0.7, abs=0.08)
    # Answers that become better with the distance do not make it count the other way.
    better = outcomes_of(beliefs, np.ones(count), unfamiliarity > 1, panoramas=panoramas[:, None], tiles=tiles[:, None])
    assert unfamiliar_weights(better, known, base, base)[0] == pytest.approx(0.0, abs=1e-3)


def odds_of_partly_seen(shown: np.ndarray, blind: np.ndarray) -> np.ndarray:
    """ln(odds) with weights 3 and −2, fades 1.5 and 0.5 and an unseen_bias of −1. shown: of images that show all."""
    trust = np.exp(-(blind @ (1.5, 0.5)))
    return np.asarray(trust * (shown + blind @ (3.0, -2.0)) + (1 - trust) * -1.0)


def test_constants_of_missing_parts_are_those_of_the_odds_which_made_the_outcomes() -> None:
    """On the map, where all is seen, ln(odds) = 1 + 2 · ln(belief / (1 − belief))."""
    rng = np.random.default_rng(7)
    count = 12_000
    beliefs, blind = rng.uniform(0.02, 0.98, count), rng.uniform(0.0, 0.75, (count, 2))
    odds = odds_of_partly_seen(1.0 + 2 * log_odds(beliefs), blind)
    right = rng.random(count) < 1 / (1 + np.exp(-odds))
    outcomes = outcomes_of(beliefs, np.ones(count), right, blind=blind)
    clues = outcomes.clues()
    assert clues[5].blind_elevation == blind[5, 1]
    base = Confidence(bias=1.0, belief_weight=2.0, score_weight=0.0)
    found, _ = with_missing_weights(outcomes, known_by_one_number(), replace(base, azimuth_weight=9.0), base)
    assert np.abs(np.array([found.log_odds(one) for one in clues[:300]]) - odds[:300]).mean() < 0.15
    assert (found.azimuth_fade, found.elevation_fade) == pytest.approx((1.5, 0.5), abs=0.2)
    assert (found.bias, found.belief_weight) == (1.0, 2.0)


def test_constants_of_missing_parts_against_off_the_map_are_those_of_the_images_on_it() -> None:
    """ln(on : off) = ln(1 + wrong : right) + that of the partly seen, whether right or not.

    The first term is the same everywhere, and such that half of the images are on the map.
    """
    rng = np.random.default_rng(8)
    count = 12_000
    beliefs, blind = rng.uniform(0.02, 0.98, count), rng.uniform(0.0, 0.75, (count, 2))
    odds = odds_of_partly_seen(2 * log_odds(beliefs), blind)
    first = optimize.brentq(lambda term: special.expit(term + odds).mean() - 0.5, 0.0, 10.0)
    outside = rng.random(count) > special.expit(first + odds)
    right = ~outside & (rng.random(count) < np.exp(-first))
    outcomes = outcomes_of(beliefs, np.ones(count), right, outside=outside, blind=blind)
    wrong_to_right = float(np.log(np.expm1(first)))
    place = Confidence(bias=-wrong_to_right, belief_weight=0.0, unseen_bias=-wrong_to_right)
    _, found = with_missing_weights(outcomes, known_by_one_number(), place, Confidence(belief_weight=2.0))
    assert np.abs(np.array([found.log_odds(one) for one in outcomes.clues()[:300]]) - odds[:300]).mean() < 0.15
    assert (found.azimuth_fade, found.elevation_fade) == pytest.approx((1.5, 0.5), abs=0.2)


@pytest.mark.parametrize("widening", [0.7, 2.5])
def test_elevation_widening_is_that_of_the_errors_which_made_the_outcomes(widening: float) -> None:
    """Squared distances of errors in the plane are χ² with two degrees of freedom, times the widening."""
    rng = np.random.default_rng(11)
    count = 20_000
    blind = np.stack([np.where(rng.random(count) < 0.5, 0.0, 0.25), rng.uniform(0.0, 0.75, count)], axis=-1)
    distances2 = rng.chisquare(2, count) * np.exp(blind[:, 1] * widening)
    right = rng.random(count) < 0.8
    distances2[~right | (blind[:, 0] > 0)] = 1e4  # wrong places, and without some of the azimuths
    made = outcomes_of(np.full(count, 0.9), np.ones(count), right, blind=blind, distances2=distances2)
    assert fit_elevation_widening(made) == pytest.approx(widening, abs=0.06)
    # Errors that are smaller where less is seen do not narrow the covariance.
    assert fit_elevation_widening(replace(made, distances2=np.full(count, 0.1))) == 0.0
    # Nothing is known without a right answer, or where all elevations are seen.
    assert fit_elevation_widening(replace(made, right=np.zeros(count, np.bool_))) == 0.0
    assert fit_elevation_widening(replace(made, blind=np.zeros((count, 2)))) == 0.0


def test_distances_of_errors_do_not_see_that_the_imagery_is_shifted() -> None:
    """By 3 m to the east and 2 m to the south; a wrong place does not count for that."""
    rng = np.random.default_rng(12)
    shape = np.array([[4.0, 1.0], [1.0, 2.0]])
    errors = rng.multivariate_normal([3.0, -2.0], shape, 20_000)
    errors[::4] = 400.0
    right = (np.arange(20_000) % 4 > 0).tolist()
    found = squared_distances(errors, np.broadcast_to(shape, (20_000, 2, 2)), right)
    assert found[right].mean() == pytest.approx(2.0, abs=0.05)
    by_hand = np.array([3.5, -1.0]) - np.median(errors[right], axis=0)
    assert squared_distances(
        np.array([*errors[right], [3.5, -1.0]]), np.broadcast_to(shape, (15_001, 2, 2)), [True] * 15_001
    )[-1] == pytest.approx((2 * by_hand[0] ** 2 - 2 * by_hand[0] * by_hand[1] + 4 * by_hand[1] ** 2) / 7, rel=1e-3)
    alone = squared_distances(np.array([[3.0, 4.0]]), np.array([np.diag([9.0, 4.0])]), [False])
    assert alone == pytest.approx([1.0 + 4.0])


def test_constants_near_a_place_are_those_of_the_odds_which_made_the_outcomes() -> None:
    """Of whole panoramas ln(on : off) = −5 + 4 · score − spread / 2, and of parts as above."""
    rng = np.random.default_rng(9)
    count = 12_000

    def answers(blind: np.ndarray, seen: bool) -> tuple[Outcomes, np.ndarray]:
        scores, spreads = rng.normal(1.5, 0.6, count), rng.normal(2.0, 1.0, count)
        odds = -5.0 + 4.0 * scores - spreads / 2
        odds = odds if seen else odds_of_partly_seen(odds, blind)
        odds -= optimize.brentq(lambda shift: special.expit(odds - shift).mean() - 0.5, -9.0, 9.0)
        outside = rng.random(count) > special.expit(odds)
        beliefs = np.full(count, 0.5)  # says nothing
        return outcomes_of(beliefs, scores, ~outside, spreads=spreads, outside=outside, blind=blind), odds

    whole, of_whole = answers(np.zeros((count, 2)), True)
    partly, of_partly = answers(rng.uniform(0.0, 0.75, (count, 2)), False)
    found = fit_near(whole, partly, known_by_one_number())
    assert (found.score_weight, found.spread_weight) == pytest.approx((4.0, -0.5), abs=0.15)
    for outcomes, odds in ((whole, of_whole), (partly, of_partly)):
        differences = np.array([found.log_odds(one) for one in outcomes.clues()[:300]]) - odds[:300]
        assert np.abs(differences).mean() < 0.25


def test_place_elsewhere_is_one_of_those_that_are_far_enough() -> None:
    """A tile of 70 m that holds a place 69 m east may hold the camera; 71 m away in either axis none does."""
    places = np.array([[0.0, 0.0], [69.0, 69.0], [-71.0, 5.0], [3.0, 200.0]])
    drawn = {tuple(places_elsewhere(places[:1], places, 70.0, np.random.default_rng(n))[0]) for n in range(40)}
    assert drawn == {(-71.0, 5.0), (3.0, 200.0)}
    assert np.isnan(places_elsewhere(places[:1], places[:2], 70.0, np.random.default_rng(0))).all()


@pytest.mark.parametrize("field_deg", FIELDS_DEG)
def test_field_mask_shows_the_directions_of_its_field(field_deg: tuple[float, float, float]) -> None:
    mount = CameraMount(elevation_top_rad=np.pi / 4, elevation_bottom_rad=-np.pi / 2)
    shown = field_mask(mount, (135, 360), field_deg)  # one pixel for each degree
    width, low, high = field_deg
    rows = min(high, 45.0) - max(low, -90.0)
    assert shown.sum() == width * rows
    assert shown[45, 180] == (high > -0.5 > low)  # the horizon, straight ahead
    assert shown[:, 0].any() == (width == 360.0)  # behind


def test_limits_hold_99_of_100_right_answers_and_are_not_below_the_least() -> None:
    rng = np.random.default_rng(6)
    features = rng.normal(0.0, 1.0, (3000, 1))
    far = np.where(np.arange(3000)[:, None] < 1500, features, 4 * features)  # photographed: four times as far
    right = np.ones(3000, bool)
    usual = outcomes_of(np.full(3000, 0.5), np.ones(3000), right, panoramas=features, tiles=features)
    changed = outcomes_of(np.full(3000, 0.5), np.ones(3000), right, panoramas=far, tiles=features)
    gathered = [Gathered(usual, usual, features), Gathered(usual, usual, features)]
    known = familiarity_of(gathered, joined([usual, changed]))
    assert known.aerial_limit == 1.2  # the least
    assert known.ground_limit == pytest.approx(
        np.quantile(abs(np.concatenate([features, far])), 0.99) / 2.576, rel=0.05
    )


def test_what_the_parent_knows_stays_familiar_and_the_limits_are_the_new_ones() -> None:
    rng = np.random.default_rng(0)
    once, now = (usual_features([rng.standard_normal((200, 2)) + shift for _ in range(2)]) for shift in (0.0, 20.0))
    parent = load_bundle(SHIPPED)
    known = replace(parent.manifest.calibration, familiarity=Familiarity(once, once, 1.5, 1.6))
    parent = replace(parent, manifest=replace(parent.manifest, calibration=known))
    tuned = also_familiar(replace(known, familiarity=Familiarity(now, now, 1.3, 1.4)), parent).familiarity
    assert tuned is not None
    assert (tuned.ground_limit, tuned.aerial_limit) == (1.3, 1.4)
    assert tuned.ground.distances(np.array([[0.0, 0.0], [20.0, 20.0]])).max() < 1
    unknowing = replace(parent, manifest=replace(parent.manifest, calibration=replace(known, familiarity=None)))
    with pytest.raises(ConfigurationError, match="does not know what is familiar"):
        also_familiar(known, unknowing)


def test_answers_are_counted_at_each_gate_on_the_map_and_off_it() -> None:
    outcomes = outcomes_of(
        [0.99, 0.95, 0.92, 0.5, 0.96, 0.4], np.ones(6), [1, 0, 1, 0, 0, 0], outside=[0, 0, 0, 0, 1, 1]
    )
    judged = judge(outcomes, Calibration())  # which knows nothing of places off the map
    assert (judged.count, judged.right, judged.outside) == (4, 0.5, 2)
    assert dict(zip(judged.gates, judged.accepted, strict=True))[0.1] == 0.75
    wrong = dict(zip(judged.gates, judged.wrong_among_accepted, strict=True))
    assert (wrong[0.02], wrong[0.1], wrong[0.5]) == pytest.approx((0.0, 1 / 3, 0.5))
    outside = dict(zip(judged.gates, judged.accepted_outside, strict=True))
    assert (outside[0.02], outside[0.1]) == (0.0, 0.5)


@pytest.mark.slow
def test_shipped_model_localizes_in_a_small_town(tmp_path: Path) -> None:
    """Positions and headings are right. By chance one answer in 600 would be; a searched heading is found for few. In
    the index of its western half the panoramas of the eastern half are off the map."""
    town = TownStreets(load_town(render_pairs(903, 8, tmp_path, size_m=240.0)))
    bundle = load_bundle(SHIPPED)
    with opened(bundle) as runtime:
        gathered = gather(runtime, town, town)
        given, searched = gathered.given, gathered.searched
        on_map = ~given.outside
        assert on_map.sum() == (~searched.outside).sum() == 8
        assert 1 <= given.outside.sum() <= 6
        assert not given.right[given.outside].any()
        assert given.right[on_map].mean() > 0.6
        assert searched.right.any()
        # Photographed by another camera, over another provider's imagery, the places are where they were, and the model
        # knows the pictures less.
        known = familiarity_of([gathered, gathered], given)
        other = photographed_outcomes(runtime, [town])
        # Too dark ones are left out, as the localizer refuses them. Off the map are those that its other half shows.
        assert 8 < (~other.outside).sum() <= 8 * len(STYLES)
        assert 1 <= other.outside.sum() <= 6 * len(STYLES)
        assert other.right.any()

        def median(outcomes: Outcomes) -> float:
            return float(np.median([d.ground + d.aerial for d in outcomes.distances(known)]))

        assert median(given.select(on_map)) < median(other)
        # Looked for near its place more are right than in the whole index.
        near = near_outcomes(runtime, [town])
        assert near.right[~near.outside].mean() > given.right[on_map].mean()

        class Capped(TownStreets):
            """The lens cap is on, but for a few images."""

            def camera_image(self, number: int, roll: int) -> UInt8:
                return super().camera_image(number, roll) // (1 if number < 4 else 200)

        capped = Capped(town.town)
        with pytest.raises(InputError, match="panorama 4: mean brightness"):
            gather(runtime, capped, capped)
        # Bright noise of some styles is looked at, for all that.
        assert len(photographed_outcomes(runtime, [capped])) < len(other)
