"""Softmax against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unifygeo_ros.core.softmax import softmax


def test_softmax_is_the_share_of_each_exponential() -> None:
    weights = softmax(np.array([1.0, 0.9, 0.7], np.float32), 0.1)
    exact = [math.exp(0.0), math.exp(-1.0), math.exp(-3.0)]
    np.testing.assert_allclose(weights, np.array(exact) / sum(exact), rtol=1e-6)  # scores in float32
    assert weights.dtype == np.float64


@pytest.mark.parametrize("shift", [0.0, 1e6, -1e6])
def test_softmax_over_all_axes_does_not_overflow(shift: float) -> None:
    weights = softmax(shift + np.array([[0.0, 1.0], [2.0, 3.0]]), 1e-3)
    assert weights.shape == (2, 2)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[1, 1] == pytest.approx(1.0)
