"""The prior's gate: which tiles an image may have been taken on, given where base_link is believed to be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unifygeo_ros.core.arrays import Bool, Float64
from unifygeo_ros.core.covariance import covariance_problem
from unifygeo_ros.core.errors import InputError
from unifygeo_ros.core.records import Prior

_SLACK = 1e-9
"""Relative. Makes an ellipse at least 3e-5 times as wide as it is long."""


@dataclass(frozen=True)
class Gate:
    """The tiles whose square touches the ellipse of `prior` at `sigma` standard deviations (a Mahalanobis distance)."""

    prior: Prior
    sigma: float

    def __post_init__(self) -> None:
        covariance = np.asarray(self.prior.covariance_m2, np.float64)
        if not np.all(np.isfinite([self.prior.east_m, self.prior.north_m, self.sigma])) or self.sigma <= 0:
            raise InputError(
                f"prior {self.prior.east_m}, {self.prior.north_m} and gate {self.sigma} sigma: all must be finite, and "
                "the gate above 0"
            )
        problem = covariance_problem(covariance, 2, definite=False)
        if problem is None:
            var_east, var_north, cross = self._moments()
            # Rounding may make a covariance of perfectly correlated axes slightly indefinite; `touches` allows that.
            if min(var_east, var_north) <= 0 or cross * cross > var_east * var_north * (1 + _SLACK):
                problem = f"{covariance.tolist()} is not positive definite"
        if problem is not None:
            raise InputError(f"the prior's covariance {problem}; give variances above 0 in m²")

    def _moments(self) -> tuple[float, float, float]:
        """Variances of east and north, and their covariance."""
        covariance = np.asarray(self.prior.covariance_m2, np.float64)
        return float(covariance[0, 0]), float(covariance[1, 1]), float(covariance[0, 1] + covariance[1, 0]) / 2

    @property
    def half_extents_m(self) -> tuple[float, float]:
        """Half width (east) and half height (north) of the box around the ellipse."""
        var_east, var_north, _ = self._moments()
        return self.sigma * math.sqrt(var_east), self.sigma * math.sqrt(var_north)

    def touches(self, centres_m: Float64, side_m: float) -> Bool:
        """Which tiles touch the ellipse.

        The smallest Mahalanobis distance of a square is 0 if the mean lies inside, else it is reached on one of
        the four edges, where it is a parabola whose lowest point is clipped to the edge.

        Args:
            centres_m: float64 (n, 2), east and north in the map frame.
            side_m: side of the tiles, whose edges run east and north.

        Returns:
            bool (n,).
        """
        var_east, var_north, cross = self._moments()
        # Never quite a line, so that the inverse stays well conditioned.
        var_east, var_north = var_east * (1 + _SLACK), var_north * (1 + _SLACK)
        determinant = var_east * var_north - cross * cross
        # P = Σ⁻¹
        p_east, p_north, p_cross = var_north / determinant, var_east / determinant, -cross / determinant
        east = np.asarray(centres_m[:, 0]) - self.prior.east_m
        north = np.asarray(centres_m[:, 1]) - self.prior.north_m
        half = side_m / 2
        smallest = np.where((np.abs(east) <= half) & (np.abs(north) <= half), 0.0, np.inf)
        for sign in (-half, half):
            x = east + sign  # the west or east edge, y runs along it
            y = np.clip(-p_cross * x / p_north, north - half, north + half)
            smallest = np.minimum(smallest, p_east * x * x + 2 * p_cross * x * y + p_north * y * y)
            y = north + sign  # the south or north edge, x runs along it
            x = np.clip(-p_cross * y / p_east, east - half, east + half)
            smallest = np.minimum(smallest, p_east * x * x + 2 * p_cross * x * y + p_north * y * y)
        return np.asarray(smallest <= self.sigma**2)
