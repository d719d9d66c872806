"""Calibration: the fits find what made the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unifygeo_ros.core.errors import InputError
from unifygeo_ros.inference.bundle import Calibration
from unifygeo_ros.localization.decision import position_covariance_m2
from unifygeo_training.calibrate import (
    Evidence,
    fit,
    fit_covariance,
    minimise,
    negative_log_likelihood,
    offset_in_words,
    read_calibration,
)


def test_negative_log_likelihood_by_hand() -> None:
    # softmax(ln 3, 0) = 3/4, 1/4; at temperature 2 it is √3 : 1. The second row holds no true entry and is left out.
    scores = np.array([[np.log(3), 0.0], [5.0, 1.0]], np.float32)
    true = np.array([[True, False], [False, False]])
    assert negative_log_likelihood(scores, true, 1.0) == pytest.approx(-np.log(0.75))
    assert negative_log_likelihood(scores, true, 2.0) == pytest.approx(-np.log(np.sqrt(3) / (np.sqrt(3) + 1)))
    with pytest.raises(InputError, match="true entry"):
        negative_log_likelihood(scores[1:], true[1:], 1.0)


def test_minimise_finds_the_minimum_of_a_parabola() -> None:
    assert minimise(lambda t: (np.log(t) - np.log(0.3)) ** 2, 1e-3, 1e2) == pytest.approx(0.3, rel=1e-5)


def test_temperature_of_drawn_labels_is_found_again() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 1, (4000, 6)).astype(np.float32)
    weights = np.exp(scores / 0.4)
    label = (weights.cumsum(axis=1) / weights.sum(axis=1, keepdims=True) < rng.random((4000, 1))).sum(axis=1)
    true = label[:, None] == np.arange(6)
    found = minimise(lambda t: negative_log_likelihood(scores, true, t), 1e-3, 1e2)
    assert found == pytest.approx(0.4, rel=0.08)


def test_images_of_which_the_network_knows_nothing_do_not_flatten_the_others() -> None:
    """Labels drawn at a temperature of 0.4, but of one row in ten at random."""
    rng = np.random.default_rng(3)
    scores = rng.normal(0, 1, (4000, 20)).astype(np.float32)
    weights = np.exp(scores / 0.4)
    label = (weights.cumsum(axis=1) / weights.sum(axis=1, keepdims=True) < rng.random((4000, 1))).sum(axis=1)
    label[::10] = rng.integers(20, size=400)
    true = label[:, None] == np.arange(20)
    found = minimise(lambda t: negative_log_likelihood(scores, true, t), 1e-3, 1e2)
    assert found == pytest.approx(0.4, rel=0.08)


def test_covariances_constants_are_found_again() -> None:
    """Errors drawn from 0.6 · M + (0.3² + 4² · v) · I, half of them with an exact heading."""
    rng = np.random.default_rng(1)
    n = 40_000
    axes = rng.uniform(0.2, 1.5, (n, 2))
    turn = rng.uniform(0, np.pi, n)
    rotation = np.moveaxis(np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]), -1, 0)
    moments = np.einsum("nij,nj,nkj->nik", rotation, axes**2, rotation)
    variances = np.where(np.arange(n) % 2, 0.0, 0.1**2)
    covariances = 0.6 * moments + (0.3**2 + 4.0**2 * variances)[:, None, None] * np.eye(2)
    errors = np.einsum("nij,nj->ni", np.linalg.cholesky(covariances), rng.normal(size=(n, 2)))
    found = fit_covariance(moments, variances, errors)
    assert found == pytest.approx({"covariance_scale": 0.6, "position_floor_m": 0.3, "heading_lever_m": 4.0}, rel=0.05)
    # Whatever the errors, their mean squared Mahalanobis distance is that of two degrees of freedom.
    tails = errors * rng.exponential(1.5, (n, 1))
    fitted = position_covariance_m2(
        moments, variances[:, None, None], Calibration(**fit_covariance(moments, variances, tails))
    )
    distances = np.einsum("ni,nij,nj->n", tails, np.linalg.inv(fitted), tails)
    assert distances.mean() == pytest.approx(2.0, rel=0.01)


def _evidence(n: int = 300, size: int = 24) -> Evidence:
    """Cameras at the centre pixel; the logits say so with an error of about a pixel, but twice too timidly."""
    rng = np.random.default_rng(2)
    pixel = np.arange(size)
    truth = size // 2
    where = truth + np.rint(rng.normal(0, 1.0, (n, 2)))
    distance = (pixel[None, :, None] - where[:, :1, None]) ** 2 + (pixel[None, None, :] - where[:, 1:, None]) ** 2
    offset = 0.5  # the pixel right and below of the middle, at 1 m a pixel
    return Evidence(
        logits=(-distance / 2 / 2).astype(np.float32),
        turned_logits=(-distance / 2 / 2).astype(np.float32),
        pixel=np.full(n, truth * size + truth),
        side_m=np.full(n, float(size)),
        offsets_m=np.tile([offset, -offset], (n, 1)),
        tile_scores=np.sort(rng.normal(1.0, 0.1, (n, 5)).astype(np.float32))[:, ::-1],
        holds_camera=np.tile([True, False, False, False, False], (n, 1)),
        roll_scores=np.concatenate([np.full((n, 1), 0.8), rng.normal(0.5, 0.1, (n, 9))], axis=1).astype(np.float32),
    )


def test_calibration_sharpens_flat_logits_and_writes_what_export_reads(tmp_path: Path) -> None:
    report = fit([_evidence()], "made up")
    # N(0, 1) errors, and logits of N(0, 2): the temperature that makes them N(0, 1) is one half.
    assert report.calibration.distribution_temperature == pytest.approx(0.5, rel=0.15)
    assert all(report.nll_after[name] <= report.nll_before[name] for name in report.nll_after)
    assert report.right_share == 1.0
    best = _evidence().tile_scores[:, 0]
    assert report.calibration.minimum_score == pytest.approx(np.quantile(best, 0.01))
    file = tmp_path / "calibration.json"
    file.write_text(report.to_json())
    assert read_calibration(file) == report.calibration


def test_queries_of_which_older_weights_were_certain_sharpen_nothing_below_those() -> None:
    """In all queries the right tile comes first by far, which any small temperature suits."""
    first = np.arange(5) == 0
    evidence = replace(
        _evidence(),
        tile_scores=np.where(first, 1.0, 0.5).astype(np.float32)[None].repeat(len(_evidence().pixel), 0),
        holds_camera=first[None].repeat(len(_evidence().pixel), 0),
    )
    alone = fit([evidence], "made up").calibration
    assert alone.tile_temperature < 0.02
    before = Calibration(tile_temperature=0.034, distribution_temperature=alone.distribution_temperature / 2)
    found = fit([evidence], "made up", before).calibration
    assert found.tile_temperature == 0.034
    assert found.distribution_temperature == alone.distribution_temperature  # flatter than before


def test_shift_of_the_imagery_is_reported_and_not_taken_for_the_networks_error() -> None:
    """Truth 1 m west and 2 m north of what the imagery shows, a metre a pixel: the constants are those without it."""
    exact = _evidence()
    east_m, north_m = exact.offsets_m[0] + [-1.0, 2.0]
    row, column = (24 - 1) / 2 - north_m, (24 - 1) / 2 + east_m
    shifted = replace(
        exact, offsets_m=exact.offsets_m + np.array([-1.0, 2.0]), pixel=np.full(300, int(row) * 24 + int(column))
    )
    report, plain = fit([shifted, exact], "made up"), fit([exact, exact], "made up")
    assert report.imagery_offsets_m[0] == pytest.approx((1.0, -2.0), abs=0.15)  # medians of 300 errors of a pixel
    assert report.imagery_offsets_m[1] == pytest.approx((0.0, 0.0), abs=0.15)
    assert vars(report.calibration) == pytest.approx(vars(plain.calibration))
    words = offset_in_words("town", *report.imagery_offsets_m[0])
    assert "m east and" in words
    assert "m south of the truth" in words
    assert "set localizer.imagery_sigma_m to 1.5" in words  # √5 / √2
    assert "set localizer" not in offset_in_words("town", *report.imagery_offsets_m[1])


def test_network_that_is_never_right_is_not_calibrated() -> None:
    evidence = _evidence()
    lost = Evidence(**{**vars(evidence), "offsets_m": evidence.offsets_m + 30.0})
    with pytest.raises(InputError, match="train the network first"):
        fit([lost], "made up")
