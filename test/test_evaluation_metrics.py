"""Metrics against cases worked by hand, and on the degenerate ones."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.evaluation.metrics import definitions as metrics


def test_error_statistics_worked_by_hand():
    result = metrics.error_statistics([3.0, 4.0, 0.0, 5.0, 8.0])
    assert result.count == 5
    assert result.mean == pytest.approx(4.0)
    assert result.rmse == pytest.approx(math.sqrt((9 + 16 + 25 + 64) / 5))
    assert result.median == 4.0
    # Sorted 0 3 4 5 8: the 95% point lies at place 3.8, between 5 and 8; the 99% point at 3.96.
    assert result.p95 == pytest.approx(7.4)
    assert result.p99 == pytest.approx(7.88)
    assert result.maximum == 8.0


def test_error_statistics_of_one_error():
    result = metrics.error_statistics([2.5])
    assert (result.mean, result.rmse, result.median, result.p95, result.maximum) == (2.5,) * 5


def test_metrics_of_no_frames_are_none():
    assert metrics.error_statistics([]) is None
    assert metrics.signed_statistics([]) is None
    assert metrics.consistency([]) is None
    assert metrics.share(0, 0) is None
    assert metrics.risk_coverage([], [], 4) is None
    assert metrics.longest_outage([], []) is None
    assert metrics.time_to_first([], []) is None
    assert metrics.shares_within([], [1.0, 5.0], 0) == (None, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_metrics_refuse_values_that_are_not_finite(bad):
    for function in (metrics.error_statistics, metrics.signed_statistics, metrics.consistency):
        with pytest.raises(InputError, match="entry 1"):
            function([1.0, bad])
    with pytest.raises(InputError, match="entry 1"):
        metrics.shares_within([1.0, bad], [5.0], 2)
    with pytest.raises(InputError, match="entry 0"):
        metrics.horizontal_errors([[bad, 0.0]], [[0.0, 0.0]])


def test_signed_statistics_worked_by_hand():
    result = metrics.signed_statistics([-1.0, 3.0])
    assert (result.bias, result.standard_deviation) == (1.0, 2.0)
    assert (result.median_magnitude, result.p95_magnitude) == (2.0, pytest.approx(2.9))


def test_horizontal_errors():
    np.testing.assert_allclose(metrics.horizontal_errors([[3.0, 4.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]), [5, 0])


def test_along_and_cross_track():
    errors = [[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [1.0, 1.0]]
    east, north, northeast = 0.0, math.pi / 2, math.pi / 4
    along, cross = metrics.along_and_cross_track(errors, [east, east, north, northeast])
    np.testing.assert_allclose(along, [2.0, 0.0, 0.0, math.sqrt(2)], atol=1e-12)
    # Travelling north, an answer too far east lies to the right: negative.
    np.testing.assert_allclose(cross, [0.0, 2.0, -2.0, 0.0], atol=1e-12)


def test_recall_counts_missing_fixes_as_misses_and_limits_as_hits():
    errors = [0.5, 1.0, 4.0]
    assert metrics.shares_within(errors, [1.0, 5.0], total=3) == (pytest.approx(2 / 3), 1.0)
    assert metrics.shares_within(errors, [1.0, 5.0], total=6) == (pytest.approx(1 / 3), 0.5)
    with pytest.raises(InputError, match="total of 2"):
        metrics.shares_within(errors, [1.0], total=2)


def test_error_distribution_steps_once_at_ties():
    errors, shares = metrics.error_distribution([2.0, 1.0, 2.0, 5.0])
    np.testing.assert_array_equal(errors, [1.0, 2.0, 5.0])
    np.testing.assert_allclose(shares, [0.25, 0.75, 1.0])


def test_time_to_first_and_longest_outage():
    stamps = [10.0, 11.0, 12.0, 15.0, 16.0, 20.0]
    answered = [False, True, True, False, True, False]
    assert metrics.time_to_first(stamps, answered) == 1.0
    # Answers at 11, 12 and 16: the gaps are 1 (before), 1, 4, and 4 (after); the first of the longest begins at 12.
    outage = metrics.longest_outage(stamps, answered)
    assert (outage.duration_s, outage.start_s) == (4.0, 12.0)
    assert metrics.time_to_first(stamps, [False] * 6) is None
    assert metrics.longest_outage(stamps, [False] * 6).duration_s == 10.0
    assert metrics.longest_outage([3.0], [True]).duration_s == 0.0


def test_stamps_out_of_order_are_refused():
    with pytest.raises(InputError, match=r"stamp 2 lies 0\.500 s"):
        metrics.longest_outage([0.0, 1.0, 0.5], [True] * 3)


def test_nees_worked_by_hand():
    covariances = [np.diag([4.0, 1.0]), [[2.0, 1.0], [1.0, 2.0]]]
    # 2²/4 + 3²/1 = 10; inverse of the second is [[2, −1], [−1, 2]]/3, so (1, −1) gives (2 + 1 + 1 + 2)/3 = 2.
    np.testing.assert_allclose(metrics.normalised_squared_errors([[2.0, 3.0], [1.0, -1.0]], covariances), [10.0, 2.0])


def test_covariance_that_is_not_positive_definite_is_refused():
    with pytest.raises(InputError, match="entry 1"):
        metrics.normalised_squared_errors(np.zeros((2, 2)), [np.eye(2), [[1.0, 2.0], [2.0, 1.0]]])
    with pytest.raises(InputError, match="entry 0"):
        metrics.normalised_squared_errors(np.zeros((1, 2)), [-np.eye(2)])


def test_anees_bounds_equal_the_tables():
    # χ² tables: the 2.5% and 97.5% points for 100 degrees of freedom are 74.22 and 129.56.
    result = metrics.consistency(np.full(50, 2.0))
    assert result.anees == 1.0
    assert (result.lower, result.upper) == (pytest.approx(0.7422, abs=5e-5), pytest.approx(1.2956, abs=5e-5))
    assert result.within_bounds
    # Of angles it takes a hundred fixes for as many degrees of freedom.
    assert metrics.anees_bounds(100, dimensions=1) == pytest.approx((result.lower, result.upper))


@pytest.mark.parametrize(("count", "common"), [(40, 0.7), (400, 0.7), (400, 0.1)])
def test_anees_bounds_where_all_errors_share_one_draw(count, common):
    """Drives over imagery that is off: 95% of them lie inside the bounds, half of the others on each side."""
    generator = np.random.default_rng(2)
    drives = 4000
    shared = generator.normal(0, math.sqrt(common), (drives, 1, 2))
    errors = shared + generator.normal(0, math.sqrt(1 - common), (drives, count, 2))
    anees = (errors**2).sum(axis=2).mean(axis=1) / 2
    lower, upper = metrics.anees_bounds(count, common=common)
    assert (anees < lower).mean() == pytest.approx(0.025, abs=0.006)
    assert (anees > upper).mean() == pytest.approx(0.025, abs=0.006)
    plain = metrics.anees_bounds(count)
    assert lower < plain[0] < plain[1] < upper, "the shared error is one draw, however many fixes there are"
    assert metrics.anees_bounds(count, common=1e-9) == pytest.approx(plain, rel=1e-3)


def test_share_of_the_covariance_that_all_errors_have_in_common():
    assert metrics.common_share([np.diag([4.0, 1.0])], 0.5) == pytest.approx(0.25 * (1 / 4 + 1) / 2)
    assert metrics.common_share([0.25 * np.eye(2)] * 3, 0.5) == pytest.approx(1.0)
    assert metrics.common_share(np.zeros((0, 2, 2)), 0.5) == 0.0
    result = metrics.consistency(np.full(50, 2.0), common=0.5)
    assert result.common == 0.5
    assert (result.lower, result.upper) == metrics.anees_bounds(50, common=0.5)
    assert (result.effective_lower, result.effective_upper) == metrics.anees_bounds(50, common=0.5)


@pytest.mark.parametrize(("factor", "inside"), [(1.0, True), (2.0, False), (0.5, False)])
def test_anees_of_consistent_and_overconfident_covariances(factor, inside):
    generator = np.random.default_rng(5)
    covariance = np.array([[3.0, 1.2], [1.2, 1.0]])
    errors = generator.multivariate_normal([0, 0], covariance, 3000)
    nees = metrics.normalised_squared_errors(errors, np.broadcast_to(covariance * factor, (3000, 2, 2)))
    result = metrics.consistency(nees)
    assert result.within_bounds is inside
    assert result.anees == pytest.approx(1 / factor, rel=0.06)
    (coverage,) = metrics.ellipse_coverage(nees, [0.95])
    assert coverage.value == pytest.approx(stats.chi2.cdf(5.991 * factor, 2), abs=0.012)
    assert (coverage.lower <= 0.95 <= coverage.upper) is inside


def test_effective_sample_size_of_repeated_and_independent_values():
    generator = np.random.default_rng(1)
    independent = generator.normal(size=4000)
    assert metrics.effective_sample_size(independent) == pytest.approx(4000, rel=0.15)
    # An AR(1) process with ρ = 0.8 is worth n (1 − ρ)/(1 + ρ) = n/9.
    correlated = [0.0]
    for value in independent:
        correlated.append(0.8 * correlated[-1] + value)
    assert metrics.effective_sample_size(correlated) == pytest.approx(4000 / 9, rel=0.35)
    assert metrics.effective_sample_size([1.0, 1.0, 1.0]) == 3.0
    assert metrics.effective_sample_size([]) == 0.0


def test_wilson_interval_against_the_published_one():
    # Wilson, 81 of 263: [0.2553, 0.3662] (Newcombe 1998, table I).
    result = metrics.share(81, 263)
    assert (result.lower, result.upper) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    nothing, everything = metrics.share(0, 20), metrics.share(20, 20)
    assert (nothing.value, nothing.lower) == (0.0, 0.0)
    assert nothing.upper == pytest.approx(0.1611, abs=1e-4)
    assert (everything.value, everything.upper) == (1.0, 1.0)
    with pytest.raises(InputError, match="3 successes out of 2"):
        metrics.share(3, 2)


def test_major_sigma_and_protection_level():
    covariances = [np.diag([4.0, 9.0]), [[2.0, 1.0], [1.0, 2.0]]]
    np.testing.assert_allclose(metrics.major_sigmas(covariances), [3.0, math.sqrt(3.0)])
    np.testing.assert_allclose(metrics.protection_levels(covariances)[0], 3 * 3.7169, rtol=1e-4)


def test_false_fix_needs_both_conditions():
    errors = [9.0, 11.0, 11.0, 9.0]
    nees = [100.0, 100.0, 13.0, 1.0]  # χ²₀.₉₉₉(2) = 13.82
    np.testing.assert_array_equal(metrics.false_fixes(errors, nees, 10.0), [False, True, False, False])
    np.testing.assert_array_equal(metrics.gross_errors(errors, 10.0), [False, True, True, False])


def test_stanford_regions():
    #        nominal, misleading, hazardous, unavailable, unavailable and misleading, borders count as safe
    errors = [2.0, 6.0, 12.0, 12.0, 14.0, 5.0, 10.0]
    levels = [5.0, 5.0, 5.0, 13.0, 13.0, 5.0, 10.0]
    regions = metrics.stanford_regions(errors, levels, 10.0)
    assert regions == metrics.Stanford(3, 1, 1, 1, 1)


def test_risk_coverage_worked_by_hand():
    curve = metrics.risk_coverage([3.0, 1.0, 2.0, 4.0], [True, False, False, False], total=8)
    np.testing.assert_allclose(curve.coverage, [1 / 8, 2 / 8, 3 / 8, 4 / 8])
    np.testing.assert_allclose(curve.risk, [0, 0, 1 / 3, 1 / 4])
    assert curve.area == pytest.approx((1 / 3 + 1 / 4) / 4)


def test_risk_coverage_does_not_depend_on_the_order_of_ties():
    failed = np.array([False, True])
    one = metrics.risk_coverage([1.0, 1.0], failed, 2)
    other = metrics.risk_coverage([1.0, 1.0], failed[::-1], 2)
    np.testing.assert_array_equal(one.coverage, [1.0])
    np.testing.assert_array_equal(one.risk, [0.5])
    np.testing.assert_array_equal(other.risk, one.risk)


@given(arrays(np.float64, st.integers(1, 30), elements=st.integers(0, 5).map(float)), st.integers(0, 10))
def test_risk_at_full_coverage_is_the_failure_rate(uncertainties, extra):
    failed = uncertainties > 3
    curve = metrics.risk_coverage(uncertainties, failed, len(uncertainties) + extra)
    assert curve.risk[-1] == pytest.approx(failed.mean())
    assert curve.coverage[-1] == pytest.approx(len(uncertainties) / (len(uncertainties) + extra))
    assert np.all(np.diff(curve.coverage) > 0)


def test_block_bootstrap_draws_runs_and_every_frame_equally_often():
    places = metrics.block_bootstrap_rows(10, 4, 3000, np.random.default_rng(0))
    assert places.shape == (3000, 10)
    np.testing.assert_array_equal((places[:, 1:4] - places[:, :3]) % 10, 1)
    assert np.bincount(places.ravel()).std() / 3000 < 0.05
    assert metrics.block_bootstrap_rows(0, 4, 7, np.random.default_rng(0)).shape == (7, 0)
