"""SE(2) against complex numbers, homogeneous matrices and finite differences."""

import cmath
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unifygeo_ros.core.se2 import Pose2, rotate, rotation_derivative, rotation_matrix

METRES = st.floats(-1e4, 1e4)
ANGLES = st.floats(-3.1, 3.1)
POSES = st.builds(Pose2, METRES, METRES, ANGLES)


def homogeneous(pose: Pose2) -> np.ndarray:
    turned = cmath.exp(1j * pose.yaw_rad)
    return np.array([[turned.real, -turned.imag, pose.x_m], [turned.imag, turned.real, pose.y_m], [0, 0, 1]])


def as_pose(matrix: np.ndarray) -> Pose2:
    return Pose2(matrix[0, 2], matrix[1, 2], math.atan2(matrix[1, 0], matrix[0, 0]))


def assert_close(pose: Pose2, expected: Pose2) -> None:
    assert (pose.x_m, pose.y_m) == pytest.approx((expected.x_m, expected.y_m), abs=1e-8)
    assert cmath.exp(1j * pose.yaw_rad) == pytest.approx(cmath.exp(1j * expected.yaw_rad), abs=1e-12)


def test_rotate_turns_counter_clockwise():
    np.testing.assert_allclose(rotate(math.pi / 2, 1.0, 0.0), [0.0, 1.0], atol=1e-15)


@given(yaw=ANGLES, x=METRES, y=METRES)
@settings(deadline=None)
def test_rotate_equals_the_product_of_complex_numbers(yaw, x, y):
    turned = cmath.exp(1j * yaw) * complex(x, y)
    np.testing.assert_allclose(rotate(yaw, x, y), [turned.real, turned.imag], atol=1e-9)
    np.testing.assert_allclose(rotation_matrix(yaw) @ [x, y], [turned.real, turned.imag], atol=1e-9)


def test_rotate_broadcasts_and_rotation_matrix_stacks():
    yaws = np.array([0.1, -2.0, 3.0])
    each = np.array([rotation_matrix(yaw) @ [2.0, -1.0] for yaw in yaws])
    np.testing.assert_allclose(rotate(yaws, 2.0, -1.0), each, atol=1e-15)
    np.testing.assert_allclose(rotation_matrix(yaws) @ [2.0, -1.0], each, atol=1e-15)


def test_rotation_derivative_equals_a_finite_difference():
    h, yaw = 1e-6, 0.7
    difference = (rotate(yaw + h, 3.0, -2.0) - rotate(yaw - h, 3.0, -2.0)) / (2 * h)
    np.testing.assert_allclose(rotation_derivative(rotate(yaw, 3.0, -2.0)), difference, atol=1e-8)


@given(first=POSES, second=POSES)
@settings(deadline=None)
def test_compose_inverse_and_between_equal_homogeneous_matrices(first, second):
    a, b = homogeneous(first), homogeneous(second)
    assert_close(first.compose(second), as_pose(a @ b))
    assert_close(first.inverse(), as_pose(np.linalg.inv(a)))
    assert_close(first.between(second), as_pose(np.linalg.inv(a) @ b))
    np.testing.assert_allclose(first.apply(second.x_m, second.y_m), (a @ [second.x_m, second.y_m, 1])[:2], atol=1e-8)


def test_compose_jacobians_equal_finite_differences():
    first, second, h = Pose2(3.0, -1.0, 0.8), Pose2(-2.0, 5.0, -0.4), 1e-6

    def numeric(function):
        columns = []
        for axis in np.eye(3) * h:
            ahead, behind = function(axis), function(-axis)
            columns.append([(p - q) / (2 * h) for p, q in zip(ahead, behind, strict=True)])
        return np.array(columns).T

    def values(pose):
        return (pose.x_m, pose.y_m, pose.yaw_rad)

    def moved(pose, by):
        return Pose2(pose.x_m + by[0], pose.y_m + by[1], pose.yaw_rad + by[2])

    by_first, by_second = first.compose_jacobians(second)
    np.testing.assert_allclose(by_first, numeric(lambda d: values(moved(first, d).compose(second))), atol=1e-7)
    np.testing.assert_allclose(by_second, numeric(lambda d: values(first.compose(moved(second, d)))), atol=1e-7)
