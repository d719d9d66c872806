"""How far a track lies behind for images that are stamped late: against tracks of the same drive, late and not."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_town import ODOMETRY_HZ, ObservationModel, SimulatedLocalizer, make_drive, run_drive

from unifygeo_ros.core.records import Fix
from unifygeo_ros.motion.stamp_error import Velocity
from unifygeo_ros.sessions.config import SessionConfig
from unifygeo_ros.sessions.sequence import SequenceSession
from unifygeo_ros.tracking.clusters import Cluster
from unifygeo_ros.tracking.stamp_lag import fresh_lag, lag_after_image

LATE_S = 1 / ODOMETRY_HZ
CLEAR = ObservationModel(outliers=0.0, second_mode=0.0)


Seen = tuple[np.ndarray | None, Cluster | None]


def driven(*, late: bool) -> tuple[list[Fix | None], list[Seen]]:
    """The fix of each image, and the tracker's lag and cluster after it."""
    seen: list[Seen] = []

    def prepare(session: SequenceSession, time_s: float) -> None:
        localizer = session._localizer
        assert isinstance(localizer, SimulatedLocalizer)
        localizer._age = lambda pose: None  # type: ignore[method-assign]  # its errors stay those of the other drive
        if late and not seen:
            stamps = sorted(localizer._truth)
            earlier = [localizer._truth[stamp] for stamp in [stamps[0], *stamps[:-1]]]
            localizer._truth = dict(zip(stamps, earlier, strict=True))
        seen.append((session.tracker._lag, session.tracker.cluster))

    run, session, _ = run_drive(make_drive(3, 90.0, drift=0.0), CLEAR, 3, prepare=prepare)
    fixes = [result if isinstance(result, Fix) else None for result in run.results]
    return fixes, [*seen[1:], (session.tracker._lag, session.tracker.cluster)]


def test_track_of_late_images_lies_behind_by_the_lag_which_is_across_the_street_behind_bends() -> None:
    exact, seen = driven(late=False)
    late, _ = driven(late=True)
    behind, expected, across = [], [], []
    for one, other, (lag, _) in zip(exact, late, seen, strict=True):
        if one is not None and other is not None and lag is not None:
            behind.append([one.east_m - other.east_m, one.north_m - other.north_m])
            expected.append(LATE_S * lag[:2])
            across.append(abs(LATE_S * (lag[1] * np.cos(one.yaw_rad) - lag[0] * np.sin(one.yaw_rad))))
    assert len(behind) > 120
    way_m = 8.0 * LATE_S
    difference_m = np.hypot(*(np.array(behind) - expected).T)
    assert np.median(np.hypot(*np.array(behind).T)) == pytest.approx(way_m, rel=0.05)
    assert np.max(across) > 0.6 * way_m
    assert np.median(difference_m) < 0.08 * way_m
    assert np.quantile(difference_m, 0.9) < 0.2 * way_m


def test_doubt_about_the_stamps_widens_a_fix_in_the_direction_of_the_lag() -> None:
    """By E[τ²] b bᵀ, where E[τ²] is at most the square of `stamp_sigma_s`."""
    checked = 0
    for fix, (lag, cluster) in zip(*driven(late=False), strict=True):
        if fix is not None and lag is not None and cluster is not None:
            added = fix.covariance_m2 - cluster.covariance[:2, :2]
            along, across = lag[:2] / np.hypot(*lag[:2]), np.array([-lag[1], lag[0]]) / np.hypot(*lag[:2])
            assert across @ added @ across == pytest.approx(0.0, abs=1e-9)
            assert 1e-5 < along @ added @ along / (lag[:2] @ lag[:2]) < 1.001 * SessionConfig().stamp_sigma_s ** 2
            checked += 1
    assert checked > 120


def test_lag_of_a_linear_filter_is_the_difference_of_two_filters() -> None:
    """A Kalman filter of four states, written out, whose measurements are shifted or not."""
    rng = np.random.default_rng(0)
    covariance = np.diag([4.0, 4.0, 0.01, 1e-4])
    mean = shifted = rng.normal(size=4)
    lag = np.zeros(4)
    for _ in range(30):
        by_state = np.eye(4) + 0.1 * rng.normal(size=(4, 4))
        covariance = by_state @ covariance @ by_state.T + np.diag([0.1, 0.1, 1e-4, 1e-7])
        by_position = np.concatenate([np.eye(2), rng.normal(size=(2, 1)), np.zeros((2, 1))], axis=1)
        total = by_position @ covariance @ by_position.T + 2.0 * np.eye(2)
        gain = covariance @ by_position.T @ np.linalg.inv(total)
        measured, velocity = rng.normal(size=2), Velocity(*rng.normal(size=3))
        fresh = fresh_lag(0.7, velocity, measures_yaw=False)
        mean, shifted, lag = by_state @ mean, by_state @ shifted, by_state @ lag
        mean = mean + gain @ (measured - by_position @ mean)
        shifted = shifted + gain @ (measured - fresh[:2] - by_position @ shifted)
        after = covariance - gain @ total @ gain.T
        lag = lag_after_image(lag, fresh, covariance, after)
        covariance = after
        assert lag == pytest.approx(mean - shifted, rel=1e-6, abs=1e-9)


def test_odometry_of_known_scale_leaves_its_lag_alone() -> None:
    before = np.diag([1.0, 1.0, 0.01, 0.0])
    lag = lag_after_image(np.array([1.0, 2.0, 0.0, 0.0]), np.array([5.0, 2.0, 0.0, 0.0]), before, before / 2)
    assert lag == pytest.approx([3.0, 2.0, 0.0, 0.0])


def test_image_that_made_the_place_less_certain_moves_the_lag_nowhere() -> None:
    before, lag = np.diag([1.0, 1.0, 0.01, 1e-4]), np.array([1.0, 2.0, 0.0, 0.0])
    assert lag_after_image(lag, np.full(4, 9.0), before, 4 * before) == pytest.approx(lag)


def test_yaw_that_the_image_shows_lies_behind_too() -> None:
    velocity = Velocity(5.0, 1.0, 0.3)
    assert fresh_lag(np.pi / 2, velocity, measures_yaw=True) == pytest.approx([-1.0, 5.0, 0.3, 0.0])
    assert fresh_lag(np.pi / 2, velocity, measures_yaw=False) == pytest.approx([-1.0, 5.0, 0.0, 0.0])
