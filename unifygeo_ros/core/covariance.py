"""Covariance matrices: checks, ellipses and distances. The one home of their formulas and tolerances."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from unifygeo_ros.core.arrays import Float64

RELATIVE_TOLERANCE = 1e-6
"""How far from symmetric, or below zero in its smallest eigenvalue, a matrix may be by rounding alone, as a share of
its largest entry. Programs that compute in float32 leave asymmetries of 1e-7."""


def covariance_problem(covariance: npt.ArrayLike, size: int, *, definite: bool = True) -> str | None:
    """What is wrong with a covariance matrix from outside.

    Args:
        covariance: should be (size, size).
        size: rows that are expected.
        definite: whether all eigenvalues must be above zero; otherwise they may be zero (a value known exactly).

    Returns:
        None for a usable matrix; otherwise words that follow "the covariance …", with the value.
    """
    matrix = np.asarray(covariance, np.float64)
    if matrix.shape != (size, size):
        return f"has the shape {matrix.shape} and not ({size}, {size})"
    if not np.isfinite(matrix).all():
        return f"{matrix.tolist()} is not finite"
    slack = RELATIVE_TOLERANCE * float(np.abs(matrix).max())
    if float(np.abs(matrix - matrix.T).max()) > slack:
        return f"{matrix.tolist()} is not symmetric"
    smallest = float(np.linalg.eigvalsh(matrix)[0])
    if smallest <= 0 if definite else smallest < -slack:
        needed = "above 0" if definite else "at least 0"
        return f"{matrix.tolist()} has the eigenvalue {smallest:g}; all must be {needed}"
    return None


def symmetric(matrices: Float64) -> Float64:
    """The symmetric part, float64 (..., n, n): removes what rounding made asymmetric."""
    return np.asarray(0.5 * (matrices + np.swapaxes(matrices, -1, -2)))


def semi_major_sigma(covariance: npt.ArrayLike) -> float:
    """Standard deviation along the long axis of the error ellipse, for one covariance (2, 2) or larger (x, y first)."""
    return float(semi_major_sigmas(np.asarray(covariance, np.float64)[None])[0])


def semi_major_sigmas(covariances: Float64) -> Float64:
    """Standard deviations along the long axes, float64 (n,), for covariances float64 (n, ≥ 2, ≥ 2) with x, y first."""
    return np.asarray(np.sqrt(np.linalg.eigvalsh(np.asarray(covariances)[:, :2, :2])[:, -1]))


def semi_axes(covariance: npt.ArrayLike) -> tuple[float, float]:
    """Standard deviations (major, minor) along the axes of the error ellipse of one covariance (2, 2)."""
    minor, major = np.sqrt(np.linalg.eigvalsh(np.asarray(covariance, np.float64)))
    return float(major), float(minor)


def error_ellipse(covariance: npt.ArrayLike, probability: float = 0.95) -> tuple[float, float, float]:
    """The ellipse that holds a share `probability` of a Gaussian in the plane.

    Args:
        covariance: (2, 2).
        probability: between 0 and 1.

    Returns:
        Semi-major and semi-minor axis in the covariance's unit of length, and the angle of the major axis in radians,
        counter-clockwise from x.
    """
    variances, directions = np.linalg.eigh(np.asarray(covariance, np.float64))
    minor, major = math.sqrt(chi2_quantile(probability)) * np.sqrt(variances)
    return float(major), float(minor), math.atan2(directions[1, 1], directions[0, 1])


def chi2_quantile(probability: float, degrees: float = 2) -> float:
    """The value below which a χ² variable of so many degrees of freedom lies with the probability."""
    if degrees == 2:
        return -2 * math.log1p(-probability)
    from scipy import special  # with NumPy's test tools a quarter of a second; scipy.stats takes half a second more

    return float(2 * special.gammaincinv(degrees / 2, probability))


CHI2_95 = -2 * math.log(0.05)
"""χ² quantile of two degrees of freedom at 95%, 5.99: the squared Mahalanobis radius of the 95% ellipse."""


def mahalanobis2(difference: Float64, covariance: Float64) -> tuple[Float64, Float64]:
    """Squared Mahalanobis lengths and determinants, written out for two and three dimensions.

    For D = 3 the last coordinate is eliminated first (a step of Cholesky's factorisation), which is as stable as the
    inverse and needs no call for each matrix.

    Args:
        difference: float64 (..., D).
        covariance: float64 (..., D, D), symmetric; the leading axes broadcast.

    Returns:
        Two float64 (...): the squared lengths, the determinants.
    """
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    x, y = difference[..., 0], difference[..., 1]
    if covariance.shape[-1] == 2:
        determinant = a * c - b * b
        return (c * x * x - 2 * b * x * y + a * y * y) / determinant, determinant
    d, e, f = covariance[..., 0, 2], covariance[..., 1, 2], covariance[..., 2, 2]
    p, q, z = d / f, e / f, difference[..., 2]
    a, b, c = a - p * d, b - p * e, c - q * e
    x, y = x - p * z, y - q * z
    determinant = a * c - b * b
    return (c * x * x - 2 * b * x * y + a * y * y) / determinant + z * z / f, determinant * f
