"""Covariance checks and distances against numpy's and scipy's own, and times against hand-worked values."""

import math

import numpy as np
import pytest
from scipy import stats

from unifygeo_ros.core.covariance import (
    CHI2_95,
    chi2_quantile,
    covariance_problem,
    error_ellipse,
    mahalanobis2,
    semi_axes,
    semi_major_sigma,
    semi_major_sigmas,
    symmetric,
)
from unifygeo_ros.core.time import ns_from_s, parts_from_stamp, s_from_ns, stamp_from_parts
from unifygeo_ros.core.unit_length import wrong_length

GOOD = np.array([[4.0, 1.0], [1.0, 2.0]])


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_covariance_problem_accepts_any_scale(scale):
    assert covariance_problem(scale * GOOD, 2) is None


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(
    ("matrix", "word"),
    [
        ([[4.0, 1.0], [1.1, 2.0]], "not symmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "eigenvalue"),
        ([[0.0, 0.0], [0.0, 1.0]], "above 0"),
    ],
)
def test_covariance_problem_refuses_bad_matrices_of_any_scale(matrix, word, scale):
    assert word in covariance_problem(scale * np.array(matrix), 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_covariance_problem_refuses_what_is_not_finite(bad):
    assert "not finite" in covariance_problem([[1.0, 0.0], [0.0, bad]], 2)


def test_covariance_problem_names_the_wrong_shape():
    assert covariance_problem(np.eye(3), 2) == "has the shape (3, 3) and not (2, 2)"


def test_covariance_problem_accepts_a_semidefinite_matrix_if_allowed():
    assert covariance_problem(np.zeros((2, 2)), 2, definite=False) is None
    assert covariance_problem(np.diag([1.0, 0.0]), 2, definite=False) is None
    assert "at least 0" in covariance_problem(np.diag([1.0, -1e-3]), 2, definite=False)


def test_covariance_problem_forgives_rounding():
    matrix = GOOD.copy()
    matrix[0, 1] += 1e-12
    assert covariance_problem(matrix, 2) is None


def test_semi_major_sigma_of_a_turned_ellipse():
    cos, sin = math.cos(0.6), math.sin(0.6)
    turn = np.array([[cos, -sin], [sin, cos]])
    covariance = turn @ np.diag([9.0, 1.0]) @ turn.T
    assert semi_major_sigma(covariance) == pytest.approx(3.0)
    pose = np.zeros((3, 3))
    pose[:2, :2], pose[2, 2] = covariance, 100.0
    np.testing.assert_allclose(semi_major_sigmas(np.array([pose, 4 * pose])), [3.0, 6.0])


def test_semi_axes_and_error_ellipse_of_a_turned_ellipse():
    cos, sin = math.cos(0.6), math.sin(0.6)
    turn = np.array([[cos, -sin], [sin, cos]])
    covariance = turn @ np.diag([9.0, 1.0]) @ turn.T
    assert semi_axes(covariance) == pytest.approx((3.0, 1.0))
    major, minor, angle = error_ellipse(covariance, 0.95)
    assert (major, minor) == pytest.approx((3 * math.sqrt(5.991464547), math.sqrt(5.991464547)))
    assert angle % math.pi == pytest.approx(0.6)  # an axis has no sense of direction


def test_wrong_length_names_the_worst_row():
    rows = np.eye(4, dtype=np.float32)[:3]
    assert wrong_length(rows) is None
    assert wrong_length(rows[:0]) is None
    rows[1] *= np.float32(1.0009)
    assert wrong_length(rows) is None
    rows[2] *= np.float32(0.99)
    assert wrong_length(rows) == (2, pytest.approx(0.99))
    rows[0, 0] = np.nan
    row, length = wrong_length(rows)
    assert row == 0
    assert math.isnan(length)


def test_chi2_quantile_equals_scipy_stats():
    for degrees in (1, 2, 3, 197.5):
        for probability in (0.001, 0.5, 0.95, 0.999):
            assert chi2_quantile(probability, degrees) == pytest.approx(stats.chi2.ppf(probability, degrees), rel=1e-10)
    assert pytest.approx(stats.chi2.ppf(0.95, 2), rel=1e-12) == CHI2_95


@pytest.mark.parametrize("size", [2, 3])
def test_mahalanobis2_equals_the_inverse_and_the_determinant(size):
    rng = np.random.default_rng(size)
    roots = rng.normal(size=(50, size, size))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(size)
    differences = rng.normal(size=(50, size))
    expected = [d @ np.linalg.inv(c) @ d for d, c in zip(differences, covariances, strict=True)]
    lengths, determinants = mahalanobis2(differences, covariances)
    np.testing.assert_allclose(lengths, expected, rtol=1e-9)
    np.testing.assert_allclose(determinants, np.linalg.det(covariances), rtol=1e-9)


def test_symmetric_is_the_mean_with_the_transpose():
    np.testing.assert_array_equal(symmetric(np.array([[[1.0, 2.0], [4.0, 3.0]]])), [[[1.0, 3.0], [3.0, 3.0]]])


def test_time_conversions_by_hand():
    assert ns_from_s(1.5) == 1_500_000_000
    assert ns_from_s(-0.12) == -120_000_000
    assert s_from_ns(2_500_000_000) == 2.5
    assert stamp_from_parts(1_700_000_000, 7) == 1_700_000_000_000_000_007
    assert parts_from_stamp(1_700_000_000_000_000_007) == (1_700_000_000, 7)
    assert parts_from_stamp(-1) == (-1, 999_999_999)
