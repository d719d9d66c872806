"""Confidence: the fit finds the odds that made the outcomes, and answers are counted at the right gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unifygeo_ros.inference.bundle import Confidence, load_bundle, log_odds
from unifygeo_training.confidence import Outcomes, fit_confidence, gather, judge
from unifygeo_training.streets import TownStreets
from unifygeo_training.towns.pairs import load_town, render_pairs

SHIPPED = Path(__file__).parents[2] / "models" / "towns-atto"


def test_the_odds_that_made_the_outcomes_are_found_again() -> None:
    rng = np.random.default_rng(0)
    beliefs, scores = rng.uniform(0.2, 1.0, 40_000), rng.normal(1.2, 0.3, 40_000)
    probability = 1 / (1 + np.exp(-(-4.0 + 0.5 * log_odds(beliefs) + 3.0 * scores)))
    found = fit_confidence(Outcomes(beliefs, scores, rng.random(40_000) < probability))
    assert (found.bias, found.belief_weight, found.score_weight) == pytest.approx((-4.0, 0.5, 3.0), rel=0.25)
    made = np.array([found.probability(b, s) for b, s in zip(beliefs, scores, strict=True)])
    for low in np.arange(0.1, 0.9, 0.1):
        of_those = (made > low) & (made <= low + 0.1)
        assert probability[of_those].mean() == pytest.approx(low + 0.05, abs=0.03)


def test_without_errors_it_stays_as_sure_as_it_was_at_least() -> None:
    beliefs = np.linspace(0.5, 0.99, 50)
    found = fit_confidence(Outcomes(beliefs, np.full(50, 1.0), np.ones(50, np.bool_)))
    assert all(found.probability(b, 1.0) >= b for b in beliefs)


def test_a_score_that_says_nothing_is_not_used_against_an_answer() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(1.0, 0.3, 5000)
    found = fit_confidence(Outcomes(np.full(5000, 0.8), scores, scores < 1.0))  # the worse the better
    assert found.score == 0.0
    assert found.probability(0.8, 1.0) == pytest.approx(0.5, abs=0.05)


def test_answers_are_counted_at_each_gate() -> None:
    outcomes = Outcomes(np.array([0.99, 0.95, 0.92, 0.5]), np.ones(4), np.array([True, False, True, False]))
    judged = judge(outcomes, Confidence())
    assert (judged.count, judged.right) == (4, 0.5)
    assert dict(zip(judged.gates, judged.accepted, strict=True))[0.1] == 0.75
    wrong = dict(zip(judged.gates, judged.wrong_among_accepted, strict=True))
    assert (wrong[0.02], wrong[0.1], wrong[0.5]) == pytest.approx((0.0, 1 / 3, 0.5))


def test_the_shipped_model_finds_its_way_in_a_small_town(tmp_path: Path) -> None:
    """Positions and headings are right. By chance one answer in 600 would be; a searched heading is found for few."""
    town = load_town(render_pairs(902, 24, tmp_path, size_m=300.0))
    bundle = load_bundle(SHIPPED)
    given, searched = gather(bundle, TownStreets(town))
    assert len(given.right) == len(searched.right) == 24
    assert given.right.mean() > 0.6
    assert searched.right.sum() >= 2
