"""Fixes of single images against the odometry: covariances and wrong places without ground truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from odometry_drives import driven, judged

from unifygeo_ros.core.se2 import rotation_matrix
from unifygeo_ros.evaluation.metrics.definitions import consistency


def anees(squared: np.ndarray) -> float:
    return float(squared.mean()) / 2


def test_right_covariances_have_an_anees_of_one_and_no_contradiction() -> None:
    found = judged(driven(images=1500))
    assert found.judged.sum() == 1500
    assert found.contradicted.sum() == 0
    assert anees(found.squared) == pytest.approx(1.0, abs=0.12)


def test_right_covariances_are_within_the_bounds_about_nineteen_times_in_twenty() -> None:
    """Pairs that share a fix would be correlated, and refuse a right model more often."""
    drives = [consistency(judged(driven(images=150, seed=seed)).squared) for seed in range(40)]
    within = sum(found is not None and found.within_effective_bounds for found in drives)
    assert within >= 35


@pytest.mark.parametrize("claimed", [0.5, 2.0])
def test_covariances_that_are_wrong_by_a_factor_show_it(claimed: float) -> None:
    """The fixes' part of S is nearly all of it: σ of 1 m and a yaw of 1° over 20 m."""
    drive = driven(images=1500)
    squared = judged(dataclasses.replace(drive, covariance_m2=drive.covariance_m2 * claimed**2)).squared
    assert anees(squared) == pytest.approx(1 / claimed**2, rel=0.2)


def test_yaw_that_is_worse_than_it_says_shows_in_the_anees() -> None:
    drive = driven(images=1500)
    turned = dataclasses.replace(drive, yaw_rad=drive.yaw_rad + np.random.default_rng(1).normal(0, 0.15, 1500))
    assert anees(judged(turned).squared) > 2.0


def test_fixes_at_wrong_places_are_found_and_no_others() -> None:
    drive = driven(images=400)
    wrong = np.random.default_rng(2).random(400) < 0.2
    drive.fix_m[wrong] += rotation_matrix(np.linspace(0, 40, wrong.sum())) @ np.array([30.0, 0.0])
    found = judged(drive)
    assert np.array_equal(found.contradicted, wrong)
    assert anees(found.squared) == pytest.approx(1.0, abs=0.3)  # of the others


def test_odometry_in_a_frame_of_its_own_is_judged_the_same() -> None:
    drive = driven(images=300)
    turn = rotation_matrix(2.0)
    own = np.column_stack([drive.odometry[:, :2] @ turn.T + [500.0, -80.0], drive.odometry[:, 2] + 2.0])
    assert judged(dataclasses.replace(drive, odometry=own)).squared == pytest.approx(judged(drive).squared)


def test_shift_of_all_fixes_cannot_be_seen() -> None:
    """Imagery that lies 30 m beside the truth: only a ground truth, or a track from before, shows that."""
    drive = driven(images=300)
    moved = dataclasses.replace(drive, fix_m=drive.fix_m + np.array([30.0, 0.0]))
    assert judged(moved).contradicted.sum() == 0
    assert judged(moved).squared == pytest.approx(judged(drive).squared)


def test_drive_without_fixes_or_odometry_or_motion_is_not_judged() -> None:
    drive = driven(images=50)
    nothing = [
        dataclasses.replace(drive, fixed=np.zeros(50, np.bool_)),
        dataclasses.replace(drive, odometry=np.full((50, 3), np.nan)),
        dataclasses.replace(drive, odometry=np.zeros((50, 3))),  # stands
    ]
    for one in nothing:
        found = judged(one)
        assert not found.judged.any()
        assert not len(found.squared)
    gap = drive.odometry.copy()
    gap[10:20] = np.nan
    found = judged(dataclasses.replace(drive, odometry=gap))
    assert not found.judged[10:20].any()
    assert found.judged[:10].all()
