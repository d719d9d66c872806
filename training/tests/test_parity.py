"""The parity report: what deviates must not pass."""

from __future__ import annotations

import numpy as np
import pytest

from unifygeo_training.parity import compare

NAMES = ("ground descriptor", "aerial descriptor", "f0")


def _outputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    outputs = {name: rng.normal(0, 1, (4, 8)) for name in NAMES}
    for name in NAMES[:2]:
        outputs[name] /= np.linalg.norm(outputs[name], axis=1, keepdims=True)
    outputs["logits"] = np.zeros((4, 5, 5))
    outputs["logits"][:, 2, 2] = 10.0
    return outputs


def test_equal_outputs_pass() -> None:
    result = compare(_outputs(), _outputs(), "fp32")
    assert result.passed
    assert set(result.deviation.values()) == {0.0}
    assert result.cosine == pytest.approx(1.0)
    assert result.answers_moved == 0.0


def test_deviation_is_relative_to_the_largest_value() -> None:
    found = _outputs()
    found["logits"][1, 0, 0] = 0.2  # of 10: 2%
    assert compare(_outputs(), found, "fp16").deviation["logits"] == pytest.approx(0.02)
    assert compare(_outputs(), found, "fp16").passed
    assert not compare(_outputs(), found, "fp32").passed


def test_parity_counts_moved_answers() -> None:
    expected, found = _outputs(), _outputs()
    expected["logits"][0, 4, 4] = found["logits"][0, 4, 4] = 10.0  # a tie that the smallest change decides
    found["logits"][0, 4, 4] += 1e-3
    result = compare(expected, found, "fp32")
    assert result.answers_moved == 0.25
    assert not result.passed


def test_parity_refuses_values_that_are_not_finite() -> None:
    found = _outputs()
    found["f0"][0, 0] = np.nan
    assert not compare(_outputs(), found, "fp16").passed
