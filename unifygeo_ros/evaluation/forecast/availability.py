"""From what an index says of places to how often fixes will come there.

The constants were fitted to replays of rendered drives with the shipped model (`benchmarks/forecast.py fit`). With
another model or on photographs the forecast still orders stretches; its shares are then no more than a guess.
"""

from __future__ import annotations

import numpy as np

from unifygeo_ros.core.arrays import Float64
from unifygeo_ros.evaluation.forecast.likeness import Likeness

FITTED_WITH = "963c913f53fcbf3929257fdbf17517702eeda9eedf8ad5c5bccad5138af21594"
"""Checksum of the weights of that model."""

BIAS, LIKENESS_WEIGHT, COHERENCE_WEIGHT, DETAIL_WEIGHT = 0.953, -3.002, -3.403, 1.249
"""Log-odds that a single image whose heading is given gets a fix: BIAS + Σ weight · value."""

TYPICAL_FEATURES = (1.30, 0.195, 3.17)
"""Means of `features` over those drives: which of them is worse than usual says why a stretch is at risk."""

AT_RISK = 0.35
"""A stretch with fewer single images with a fix is at risk: a tenth of those drives."""

TYPICAL_AVAILABILITY = 0.625
"""Share of single images with a fix, heading given, on the drives on which `FIRST_FIX_M` was measured."""

FIRST_FIX_M = {"given": 22.0, "searched": 48.0}
"""Distance to the first fix of a sequence that begins with nothing known, by the heading: medians of the twenty drives
of docs/measurements/honesty.md."""

_WEIGHTS = np.array([LIKENESS_WEIGHT, COHERENCE_WEIGHT, DETAIL_WEIGHT])
_REASONS = (
    "it looks like other places of the index",
    "most edges run in one direction, so that each spot looks like the next",
    "the imagery shows little detail",
)

_MEDIAN_OF_TWO = 1.6783469900166605
"""Median of the sum of two exponential variables of mean 1."""


def features(found: Likeness) -> Float64:
    """What the log-odds are linear in: float64 (n, 3). A place without rivals counts as one with distant ones."""
    return np.stack([np.maximum(found.likeness, 0.0), found.coherence, np.log1p(found.detail)], axis=-1)


def single_availability(found: Likeness) -> Float64:
    """Probability that a single image gets a fix, heading given: float64 (n,), 0 where the index has no tile."""
    odds = BIAS + features(found) @ _WEIGHTS
    return np.asarray(np.where(found.covered, 1 / (1 + np.exp(-odds)), 0.0), np.float64)


def confirmed(availability: Float64, along_m: Float64, heading: str) -> Float64:
    """Probability that a sequence which begins at the first place has given its first fix, at each place.

    The tracker wants two independent confirmations of a place (`TrackerConfig.confirm_images`). They are taken to come
    at random along the way, more often where single images get fixes more often: Λ(s) = ∫ ρ ds of them are expected up
    to s, and P(at least two) = 1 − (1 + Λ) exp(−Λ).

    Args:
        availability: float64 (n,), of single images.
        along_m: float64 (n,), rising.
        heading: "given" or "searched".

    Returns:
        float64 (n,), rising from 0.
    """
    rate = _MEDIAN_OF_TWO / FIRST_FIX_M[heading] * availability / TYPICAL_AVAILABILITY
    steps = (rate[1:] + rate[:-1]) / 2 * np.diff(along_m)
    expected = np.concatenate([[0.0], np.cumsum(steps)])
    return np.asarray(1 - (1 + expected) * np.exp(-expected), np.float64)


def weakest_feature(found: Likeness, rows: slice) -> str:
    """What lowers the expectation most at some of the places, in words."""
    worse = _WEIGHTS * (features(found)[rows][found.covered[rows]].mean(axis=0) - TYPICAL_FEATURES)
    return _REASONS[int(np.argmin(worse))]
